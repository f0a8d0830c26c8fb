"""The store in dictionaries: forgets everything with the process; for tests and simulations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import trio

from consensus.lifecycle import TaskState
from coordinator.store.changes import changed, exhausted, fired, job_after
from coordinator.store.records import (
    ApiKey,
    Attempt,
    Firing,
    Job,
    JobStatus,
    KeeperSeen,
    Planned,
    Task,
    TaskChange,
    User,
)


class MemoryStore:
    """Implements `coordinator.store.port.Store`. Each method is one step of the event loop, hence whole."""

    def __init__(self) -> None:
        self._users: dict[bytes, User] = {}
        self._jobs: dict[int, Job] = {}
        self._tasks: dict[int, Task] = {}
        self._by_job: dict[int, list[int]] = {}
        self._open: dict[int, None] = {}
        self._attempts: dict[int, list[Attempt]] = {}
        self._checkpoints: dict[int, int] = {}
        self._keys: dict[bytes, ApiKey] = {}
        self._keepers: dict[tuple[int, bytes], KeeperSeen] = {}

    async def user(self, address: bytes) -> User | None:
        await trio.lowlevel.checkpoint()
        return self._users.get(address)

    async def add_job(self, job: Job) -> Job:
        await trio.lowlevel.checkpoint()
        if job.id in self._jobs:
            return self._jobs[job.id]
        at = job.posted_at
        user = self._users.get(job.owner) or User(len(self._users) + 1, job.owner, "", "0", 0, 0, at, at)
        self._users[job.owner] = replace(user, total_jobs=user.total_jobs + 1, updated_at=at)
        self._jobs[job.id] = job
        return job

    async def job(self, job_id: int) -> Job | None:
        await trio.lowlevel.checkpoint()
        return self._jobs.get(job_id)

    async def jobs(self, *, key_owner: str, owner: bytes | None = None) -> Sequence[Job]:
        await trio.lowlevel.checkpoint()
        return [j for j in self._jobs.values() if j.key_owner == key_owner and owner in (None, j.owner)]

    async def planned(self, after: int | None, limit: int) -> Sequence[Planned]:
        await trio.lowlevel.checkpoint()
        start = "" if after is None else str(after)
        planned = (p for j in self._jobs.values() if str(j.id) > start and (p := j.planned) is not None)
        return sorted(planned, key=lambda p: str(p.job_id))[:limit]  # as text, in which ids are stored

    async def end_job(self, job_id: int, status: JobStatus, at: int) -> Job | None:
        await trio.lowlevel.checkpoint()
        return self._end_job(job_id, status, at)

    async def complete_job(self, job_id: int, at: int) -> bool:
        await trio.lowlevel.checkpoint()
        return self._complete(job_id, at)

    async def fire(self, firings: Sequence[Firing], at: int) -> Sequence[bool]:
        await trio.lowlevel.checkpoint()
        return [self._fire(firing, at) for firing in firings]

    async def task(self, task_id: int) -> Task | None:
        await trio.lowlevel.checkpoint()
        return self._tasks.get(task_id)

    async def tasks_of_job(self, job_id: int, limit: int) -> Sequence[Task]:
        return [self._tasks[i] for i in await self.task_ids_of_job(job_id, limit)]

    async def task_ids_of_job(self, job_id: int, limit: int) -> Sequence[int]:
        await trio.lowlevel.checkpoint()
        return self._by_job.get(job_id, [])[-limit:]

    async def open_tasks(self) -> Sequence[Task]:
        await trio.lowlevel.checkpoint()
        return sorted((self._tasks[i] for i in self._open), key=lambda t: t.created_at_ms)

    async def change(self, change: TaskChange, at: int) -> Task | None:
        await trio.lowlevel.checkpoint()
        return self._change(change, at)

    async def task_counts(self) -> dict[tuple[str, str], int]:
        await trio.lowlevel.checkpoint()
        return dict(Counter((t.state.value, t.reason) for t in self._tasks.values()))

    async def add_attempt(self, attempt: Attempt, change: TaskChange, at: int) -> Task | None:
        await trio.lowlevel.checkpoint()
        attempts = self._attempts.setdefault(attempt.task_id, [])
        if any(a.number == attempt.number for a in attempts):
            return None
        task = self._change(change, at)
        if task is not None:
            attempts.append(attempt)
        return task

    async def attempts(self, task_id: int) -> Sequence[Attempt]:
        await trio.lowlevel.checkpoint()
        return tuple(self._attempts.get(task_id, ()))

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

    async def end_attempt(self, task_id: int, number: int, code: str, detail: str, at_ms: int) -> bool:
        await trio.lowlevel.checkpoint()
        attempts = self._attempts.get(task_id, [])
        for place, attempt in enumerate(attempts):
            if attempt.number == number and attempt.ended_ms is None:
                attempts[place] = replace(attempt, ended_ms=at_ms, code=code, detail=detail)
                return True
        return False

    async def checkpoint(self, chain_id: int) -> int | None:
        await trio.lowlevel.checkpoint()
        return self._checkpoints.get(chain_id)

    async def record(
        self, chain_id: int, block: int, changes: Sequence[TaskChange], deleted: Sequence[int], at: int
    ) -> Sequence[Task]:
        await trio.lowlevel.checkpoint()
        self._checkpoints[chain_id] = block
        for job_id in deleted:
            self._end_job(job_id, JobStatus.DELETED, at)
        return [task for change in changes if (task := self._change(change, at)) is not None]

    async def add_key(self, key: ApiKey) -> None:
        await trio.lowlevel.checkpoint()
        self._keys.setdefault(key.digest, key)

    async def key(self, digest: bytes) -> ApiKey | None:
        await trio.lowlevel.checkpoint()
        return self._keys.get(digest)

    async def save_keeper(self, keeper: KeeperSeen) -> None:
        await trio.lowlevel.checkpoint()
        self._keepers[keeper.chain_id, keeper.address] = keeper

    async def keepers(self) -> Sequence[KeeperSeen]:
        await trio.lowlevel.checkpoint()
        return sorted(self._keepers.values(), key=lambda k: (k.chain_id, k.address))

    def _end_job(self, job_id: int, status: JobStatus, at: int) -> Job | None:
        job = self._jobs.get(job_id)
        if job is not None and job.active:
            job = self._jobs[job_id] = replace(job, status=status, updated_at=at)
        return job

    def _complete(self, job_id: int, at: int) -> bool:
        job = self._jobs.get(job_id)
        if job is None or not exhausted(job) or any(i in self._open for i in self._by_job.get(job_id, ())):
            return False
        self._end_job(job_id, JobStatus.COMPLETED, at)
        return True

    def _fire(self, firing: Firing, at: int) -> bool:
        job = self._jobs.get(firing.job_id)
        if job is None or not job.active:
            return False
        self._jobs[job.id] = fired(job, firing.next_due, at)
        task = firing.task
        if task is None or task.id in self._tasks:
            return False
        self._tasks[task.id] = task
        self._by_job.setdefault(job.id, []).append(task.id)
        self._open[task.id] = None
        user = self._users[job.owner]
        self._users[job.owner] = replace(user, total_tasks=user.total_tasks + 1, updated_at=at)
        return True

    def _change(self, change: TaskChange, at: int) -> Task | None:
        before = self._tasks.get(change.task_id)
        after = changed(before, change) if before is not None else None
        if before is None or after is None:
            return None
        self._tasks[after.id] = after
        self._jobs[after.job_id] = job_after(self._jobs[after.job_id], before, after, at)
        if after.ended:
            self._open.pop(after.id, None)
            self._complete(after.job_id, at)
        else:
            self._open[after.id] = None
        return after
