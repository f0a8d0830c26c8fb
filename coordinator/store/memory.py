"""The store in dictionaries: forgets everything with the process; for tests and simulations."""

from __future__ import annotations

import secrets
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TypeVar

import trio

from consensus.lifecycle import UNEXECUTED, TaskState
from coordinator.store import changes as rules
from coordinator.store.memory_platform import PlatformInMemory
from coordinator.store.memory_scripts import ScriptsInMemory
from coordinator.store.port import Fences
from coordinator.store.records import (
    SCRIPT_URLS,
    SHARDS,
    Attempt,
    Called,
    Fired,
    Firing,
    Job,
    JobStatus,
    Planned,
    Task,
    TaskChange,
    User,
    shard_of,
)

T = TypeVar("T")


class MemoryStore(ScriptsInMemory, PlatformInMemory):
    """Implements `coordinator.store.port.Store`. Each method is one step of the event loop, hence whole."""

    def __init__(self) -> None:
        super().__init__()
        self._identity = secrets.randbits(62)
        self._users: dict[bytes, User] = {}
        self._jobs: dict[int, Job] = {}
        self._shards: list[dict[int, None]] = [{} for _ in range(SHARDS)]
        self._changes = 0
        self._changed: deque[int] = deque(maxlen=rules.MAX_CHANGES)
        self._tasks: dict[int, Task] = {}
        self._by_job: dict[int, list[int]] = {}
        self._open: dict[int, None] = {}
        self._open_of_job: Counter[int] = Counter()
        self._former: dict[int, list[tuple[int, Called]]] = {}  # by job: of the tasks up to that place
        self._attempts: dict[int, list[Attempt]] = {}
        self._checkpoints: dict[str, int] = {}

    # users and jobs

    async def user(self, address: bytes) -> User | None:
        return await _now(self._users.get(address))

    async def add_job(self, job: Job) -> Job:
        [stored] = await self.add_jobs([job])
        return stored

    async def add_jobs(self, jobs: Sequence[Job]) -> Sequence[Job]:
        await trio.lowlevel.checkpoint()
        if not any(job.id in self._jobs for job in jobs):
            for job in jobs:
                self._add_job(job)
        return [self._jobs[job.id] for job in jobs if job.id in self._jobs]

    async def job(self, job_id: int) -> Job | None:
        return await _now(self._jobs.get(job_id))

    async def jobs(self, *, key_owner: str, owner: bytes | None = None) -> Sequence[Job]:
        await trio.lowlevel.checkpoint()
        chosen = (j for j in self._jobs.values() if j.key_owner == key_owner and owner in (None, j.owner))
        return sorted(chosen, key=lambda j: (j.posted_at, str(j.id)))

    async def set_email(self, address: bytes, email: str, at: int) -> User | None:
        await trio.lowlevel.checkpoint()
        if (user := self._users.get(address)) is None:
            return None
        self._users[address] = replace(user, email=email, updated_at=at)
        return self._users[address]

    async def planned(self, shard: int, after: int | None, limit: int) -> Sequence[Planned]:
        await trio.lowlevel.checkpoint()
        ids = iter(self._shards[shard])
        if after is not None and after not in ids:  # which leaves those that come after it
            return []
        planned = (found for job_id in ids if (found := self._jobs[job_id].planned) is not None)
        return list(islice(planned, limit))

    async def planned_job(self, job_id: int) -> Planned | None:
        await trio.lowlevel.checkpoint()
        job = self._jobs.get(job_id)
        return job.planned if job is not None else None

    async def changed_jobs(self, after: int | None) -> tuple[int, Sequence[int] | None]:
        await trio.lowlevel.checkpoint()
        forgotten = self._changes - len(self._changed)
        if after is None:
            return self._changes, []
        if after < forgotten:
            return self._changes, None
        since = islice(self._changed, after - forgotten, None)
        return self._changes, list(dict.fromkeys(reversed(list(since))))[::-1]

    async def end_job(self, job_id: int, status: JobStatus, at: int) -> Job | None:
        await trio.lowlevel.checkpoint()
        return self._end(job_id, status, at)

    async def pause_job(self, job_id: int, at: int) -> Job | None:
        await trio.lowlevel.checkpoint()
        job = self._jobs.get(job_id)
        return job if job is None else self._put(rules.paused(job, at) or job)

    async def resume_job(self, job_id: int, next_due: int | None, at: int) -> Job | None:
        await trio.lowlevel.checkpoint()
        if (job := self._jobs.get(job_id)) is None:
            return None
        after = self._put(rules.resumed(job, next_due, at) or job)
        return self._complete(job_id, at) or after

    async def update_job(self, job: Job) -> Job | None:
        await trio.lowlevel.checkpoint()
        stored = self._jobs.get(job.id)
        after = rules.updated(stored, job) if stored is not None else None
        if stored is None or after is None:
            return None
        if not self._open_of_job[job.id]:
            self._former.pop(job.id, None)
        elif stored.called != after.called:
            self._former.setdefault(job.id, []).append((len(self._by_job[job.id]), stored.called))
        return self._put(after)

    async def complete_job(self, job_id: int, at: int) -> Job | None:
        await trio.lowlevel.checkpoint()
        return self._complete(job_id, at)

    async def expire_jobs(self, shard: int, at: int, limit: int) -> Sequence[int]:
        await trio.lowlevel.checkpoint()
        over: list[int] = []
        for job_id in sorted(self._shards[shard], key=lambda i: (self._jobs[i].expires_at, str(i))):
            if len(over) == limit:
                break
            after = rules.expired(self._jobs[job_id], at)
            if after is not None:
                self._put(after)
            if self._complete(job_id, at) is not None or after is not None:
                over.append(job_id)
        return over

    async def job_counts(self) -> dict[JobStatus, int]:
        return await _now(dict(Counter(job.status for job in self._jobs.values())))

    async def script_urls(self) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        jobs = [job for job in reversed(self._jobs.values()) if not job.ended and job.definition in (2, 4, 6, 7)]
        urls = [job.target.script_url for job in jobs if job.target.script_url]
        return list(dict.fromkeys(urls))[:SCRIPT_URLS]

    async def linked_to(self, job_id: int) -> Job | None:
        await trio.lowlevel.checkpoint()
        job = self._jobs.get(job_id)
        return self._jobs.get(job.link_job_id) if job is not None else None

    # tasks

    async def fire(self, firings: Sequence[Firing], at: int, fences: Fences) -> Sequence[Fired]:
        await trio.lowlevel.checkpoint()
        return [self._fire(firing, at, fences) for firing in firings]

    async def task(self, task_id: int) -> Task | None:
        return await _now(self._tasks.get(task_id))

    async def called(self, task_id: int) -> Called | None:
        await trio.lowlevel.checkpoint()
        if (task := self._tasks.get(task_id)) is None:
            return None
        place = self._by_job[task.job_id].index(task_id)
        former = (called for until, called in self._former.get(task.job_id, ()) if place < until)
        return next(former, self._jobs[task.job_id].called)

    async def tasks_of_job(self, job_id: int, limit: int) -> Sequence[Task]:
        return [self._tasks[i] for i in await self.task_ids_of_job(job_id, limit)]

    async def task_ids_of_job(self, job_id: int, limit: int) -> Sequence[int]:
        return await _now(self._by_job.get(job_id, [])[-limit:])

    async def open_tasks(self, shards: Sequence[int] | None = None) -> Sequence[Task]:
        await trio.lowlevel.checkpoint()
        places = {task_id: place for place, task_id in enumerate(self._tasks)}
        tasks = (self._tasks[i] for i in self._open)
        chosen = (t for t in tasks if shards is None or shard_of(t.job_id) in shards)
        return sorted(chosen, key=lambda t: (t.created_at_ms, places[t.id]))

    async def unexecuted(self, shards: Sequence[int], before_ms: int) -> Sequence[tuple[int, int]]:
        tasks = [t for t in await self.open_tasks(shards) if t.state in UNEXECUTED and t.created_at_ms <= before_ms]
        return [(t.id, t.priority) for t in sorted(tasks, key=lambda t: t.priority)]

    async def recent_tasks(self, limit: int) -> Sequence[Task]:
        return await _now(list(self._tasks.values())[-limit:][::-1])

    async def change(self, change: TaskChange, at: int) -> Task | None:
        await trio.lowlevel.checkpoint()
        return self._change(change, at)

    async def task_counts(self) -> dict[tuple[str, str], int]:
        return await _now(dict(Counter((t.state.value, t.reason) for t in self._tasks.values())))

    # attempts: the outbox

    async def add_attempt(self, attempt: Attempt, change: TaskChange, at: int) -> Task | None:
        await trio.lowlevel.checkpoint()
        attempts = self._attempts.setdefault(attempt.task_id, [])
        if any(a.number == attempt.number for a in attempts):
            return None
        task = self._change(change, at)
        if task is not None:
            attempts.append(attempt)
            attempts.sort(key=lambda a: a.number)
        return task

    async def attempts(self, task_id: int) -> Sequence[Attempt]:
        return await _now(list(self._attempts.get(task_id, ())))

    async def mark_published(self, task_id: int, number: int, at_ms: int) -> None:
        await trio.lowlevel.checkpoint()
        attempts = self._attempts.get(task_id, [])
        for place, attempt in enumerate(attempts):
            if attempt.number == number and attempt.published_ms is None:
                attempts[place] = replace(attempt, published_ms=at_ms)
                task = self._tasks[task_id]
                self._tasks[task_id] = replace(task, stages={"published": at_ms, **task.stages})

    async def acknowledge(self, task_id: int, number: int, at_ms: int) -> Task | None:
        await trio.lowlevel.checkpoint()
        attempts = self._attempts.get(task_id, [])
        for place, attempt in enumerate(attempts):
            if attempt.number == number and attempt.ended_ms is None:
                if attempt.acknowledged_ms is None:
                    attempts[place] = replace(attempt, acknowledged_ms=at_ms)
                step = TaskChange(task_id, (TaskState.ACKNOWLEDGED,), stages={"acknowledged": at_ms})
                return self._change(step, at_ms // 1000) or self._tasks[task_id]
        return None

    async def end_attempt(self, task_id: int, number: int, code: str, detail: str, at_ms: int, *, fault: bool = False) -> bool:
        await trio.lowlevel.checkpoint()
        attempts = self._attempts.get(task_id, [])
        for place, attempt in enumerate(attempts):
            if attempt.number == number and attempt.ended_ms is None:
                attempts[place] = replace(attempt, ended_ms=at_ms, code=code, detail=detail)
                if fault:
                    record = self._record_of(self._tasks[task_id].chain_id, attempt.performer)
                    self._records[record.chain_id, record.address] = replace(record, failed=record.failed + 1)
                return True
        return False

    # chain

    async def identity(self) -> int:
        return await _now(self._identity)

    async def checkpoint(self, name: str) -> int | None:
        return await _now(self._checkpoints.get(name))

    async def save_checkpoints(self, blocks: Mapping[str, int], fences: Fences | None = None) -> None:
        await trio.lowlevel.checkpoint()
        for name, block in blocks.items():
            if fences is None or rules.holds(fences, self._tokens, rules.shard_of_checkpoint(name)):
                self._checkpoints[name] = block

    async def mark_caught_up(self, job_ids: Sequence[int], fences: Fences | None = None) -> None:
        await trio.lowlevel.checkpoint()
        for job_id in job_ids:
            if job_id in self._jobs and (fences is None or rules.holds(fences, self._tokens, shard_of(job_id))):
                self._put(replace(self._jobs[job_id], caught_up=True))

    async def record(
        self, chain_id: int, block: int, changes: Sequence[TaskChange], deleted: Sequence[int], at: int
    ) -> Sequence[Task]:
        await trio.lowlevel.checkpoint()
        self._checkpoints[f"hub:{chain_id}"] = block
        for job_id in deleted:
            self._end(job_id, JobStatus.DELETED, at)
        return [task for change in changes if (task := self._change(change, at)) is not None]

    # steps within one call

    def _put(self, job: Job) -> Job:
        before = self._jobs.get(job.id)
        if before is None or rules.is_change(before, job):
            self._changes += 1
            self._changed.append(job.id)
        self._jobs[job.id] = job
        return job

    def _add_job(self, job: Job) -> Job:
        at = job.posted_at
        user = self._users.get(job.owner) or User(len(self._users) + 1, job.owner, "", 0, 0, 0, at, at)
        self._users[job.owner] = rules.with_job(user, job)
        self._shards[shard_of(job.id)][job.id] = None
        if job.is_safe:
            self._safes.setdefault((job.owner, job.safe_address), (job.safe_address, job.safe_name, at))
        return self._put(job)

    def _end(self, job_id: int, status: JobStatus, at: int) -> Job | None:
        job = self._jobs.get(job_id)
        if job is None or job.ended:
            return job
        job = last = self._put(replace(job, status=status, updated_at=at))
        while last.ended and (waits := rules.follower(last, self._jobs.get(last.link_job_id))) is not None:
            last = self._put(rules.moved_by(last, waits, at))
        return job

    def _complete(self, job_id: int, at: int) -> Job | None:
        job = self._jobs.get(job_id)
        if job is None or job.ended or not job.spent or self._open_of_job[job_id]:
            return None
        ids = self._by_job.get(job_id)
        return self._end(job_id, rules.outcome(job.recurring, self._tasks[ids[-1]].state if ids else None), at)

    def _fire(self, firing: Firing, at: int, fences: Fences) -> Fired:
        if not rules.holds(fences, self._tokens, shard_of(firing.job_id)):
            return Fired.FENCED
        job = self._jobs.get(firing.job_id)
        refused = rules.refusal(job, firing)
        if job is None or refused is not None:
            return refused or Fired.INACTIVE
        self._put(rules.fired(job, firing, at))
        task = firing.task
        if task is None:
            return Fired.NEW
        if task.id in self._tasks:
            return Fired.KNOWN
        self._tasks[task.id] = task
        self._by_job.setdefault(job.id, []).append(task.id)
        self._opened(task, True)
        user = self._users[job.owner]
        self._users[job.owner] = replace(user, total_tasks=user.total_tasks + 1, updated_at=at)
        return Fired.NEW

    def _change(self, change: TaskChange, at: int) -> Task | None:
        before = self._tasks.get(change.task_id)
        after = rules.changed(before, change) if before is not None else None
        if before is None or after is None:
            return None
        self._tasks[after.id] = after
        job = self._put(rules.job_after(self._jobs[after.job_id], before, after, at))
        if (settled := rules.settlement(before, after, change)) is not None:
            user = self._users[job.owner]
            self._users[job.owner] = replace(user, points=user.points + settled.user_points, updated_at=at)
            for address, credits in settled.keepers.items():
                record = self._record_of(after.chain_id, address)
                self._records[after.chain_id, address] = rules.credited(record, credits)
        self._note_run(before, after, change, at)
        self._opened(after, not after.ended)
        if after.ended:
            self._complete(after.job_id, at)
        return after

    def _opened(self, task: Task, is_open: bool) -> None:
        if is_open and task.id not in self._open:
            self._open[task.id] = None
            self._open_of_job[task.job_id] += 1
        elif not is_open and task.id in self._open:
            del self._open[task.id]
            self._open_of_job[task.job_id] -= 1


async def _now(answer: T) -> T:
    await trio.lowlevel.checkpoint()
    return answer
