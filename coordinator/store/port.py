"""The store as the coordinator sees it. Every write is durable and whole when it returns; adapters are sqlite and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from consensus.messages import Usage
from coordinator.store.records import (
    ApiKey,
    Attempt,
    Called,
    Fired,
    Firing,
    Gap,
    Job,
    JobStatus,
    KeeperRecord,
    KeeperSeen,
    Planned,
    RunCharge,
    RunPackage,
    Task,
    TaskChange,
    User,
)

Fences = Mapping[int, int]
"""The shards a coordinator holds, each with the token of its lease (`claim_shard`)."""


class Store(Protocol):
    """Every method raises `Transient` when the store cannot answer now; nothing has then been written."""

    # users and jobs

    async def user(self, address: bytes) -> User | None: ...

    async def add_job(self, job: Job) -> Job:
        """Stores the job and counts it for its owner; when the id is known, changes nothing. Returns what is stored."""
        ...

    async def add_jobs(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Stores linked jobs together, and counts each for its owner; when one of their ids is known, changes nothing.
        Returns what is now stored of them, in this order."""
        ...

    async def job(self, job_id: int) -> Job | None: ...

    async def jobs(self, *, key_owner: str, owner: bytes | None = None) -> Sequence[Job]:
        """Jobs created with keys of `key_owner`, of one owner or of all, oldest first."""
        ...

    async def set_email(self, address: bytes, email: str, at: int) -> User | None:
        """Where the owner of jobs is written to; '' for nowhere. None when there is no such user."""
        ...

    async def planned(self, shard: int, after: int | None, limit: int) -> Sequence[Planned]:
        """Jobs of a shard to be watched (active, begun, not spent), paged in the order in which they were added: `after` is the
        last job id of the page before."""
        ...

    async def planned_job(self, job_id: int) -> Planned | None:
        """One job by the rule of `planned`."""
        ...

    async def changed_jobs(self, after: int | None) -> tuple[int, Sequence[int] | None]:
        """Number of the newest change to any job, and the jobs that changed since the change number `after`: added, begun,
        paused, resumed, updated or ended; not fired. Each once, in the order of their last change.

        Durable, unlike an announcement: what a coordinator wrote before it died is here. Nothing but the number when `after`
        is None; None for the jobs when more have changed since than are remembered (10,000): then read all anew.
        """
        ...

    async def end_job(self, job_id: int, status: JobStatus, at: int) -> Job | None:
        """An active or paused job ends with `status`. Returns the job as it now is, None when unknown.

        What waits for it (`link_job_id`) begins when the status is `completed`, else it ends as `failed`, and so on.
        """
        ...

    async def pause_job(self, job_id: int, at: int) -> Job | None:
        """An active job is paused: it fires no more until `resume_job`. Returns it as it now is."""
        ...

    async def resume_job(self, job_id: int, next_due: int | None, at: int) -> Job | None:
        """A paused job is active again, from `next_due` on (time jobs; None: nothing is left, it completes). An event job is
        to be searched again from its `starts_at` (not `caught_up`; what has its task is known), which its policy `skip` sets
        to `at`; a condition job is armed as it was. Returns it as it now is."""
        ...

    async def update_job(self, job: Job) -> Job | None:
        """Takes over what its owner may change: title, trigger, target, spec, priority, security, recurring, timezone, missed,
        cost_prediction, updated_at, and with another trigger `next_due`. How far it is (status, edge, spent, caught_up,
        starts_at, costs, links) stays as it is stored. Returns it as it now is; None when it has ended."""
        ...

    async def complete_job(self, job_id: int, at: int) -> Job | None:
        """An active or paused, spent job without an open task ends: as `failed` when it was to run once and its task did not
        succeed, else as `completed`; a linked one then begins. Returns it when that happened now."""
        ...

    async def expire_jobs(self, shard: int, at: int, limit: int) -> Sequence[int]:
        """Jobs of the shard whose life is over at `at` (waiting and paused ones too) are spent, and completed if nothing is
        open; so are spent ones that a crash left without an open task. Returns their ids, at most `limit`.

        Not those whose past may still fire: an active time job with a `next_due`, which its scheduler spends, and for an hour
        an active event job that has begun.
        """
        ...

    async def job_counts(self) -> dict[JobStatus, int]:
        """Number of jobs by status."""
        ...

    async def script_urls(self) -> Sequence[str]:
        """The URLs of scripts that jobs name which have not ended, each once, those of the newest jobs first; at most 10,000."""
        ...

    async def linked_to(self, job_id: int) -> Job | None:
        """The job that begins when this one completes."""
        ...

    # tasks

    async def fire(self, firings: Sequence[Firing], at: int, fences: Fences) -> Sequence[Fired]:
        """Each firing's task and what becomes of its job, together.

        FENCED where `fences` does not hold the newest token of the job's shard, INACTIVE where the job fires no more or not
        yet, or has been changed since the `revision` that the firing was made for: both change nothing. KNOWN where an edge
        has another number than expected (nothing changes) or the task exists: it stays as it is, and the job's row still
        moves on. NEW for everything else, with a task or without.
        """
        ...

    async def task(self, task_id: int) -> Task | None: ...

    async def called(self, task_id: int) -> Called | None:
        """What an open task executes: its job as it was when the task fired, whatever its owner has changed since. None when
        there is no such task."""
        ...

    async def tasks_of_job(self, job_id: int, limit: int) -> Sequence[Task]:
        """The newest `limit` tasks, oldest first."""
        ...

    async def task_ids_of_job(self, job_id: int, limit: int) -> Sequence[int]: ...

    async def open_tasks(self, shards: Sequence[int] | None = None) -> Sequence[Task]:
        """Tasks that have not ended, oldest first; of these shards' jobs or of all."""
        ...

    async def unexecuted(self, shards: Sequence[int], before_ms: int) -> Sequence[tuple[int, int]]:
        """Tasks (id, priority) of these shards' jobs that still need a keeper and were created by then: the highest priority
        first, then the oldest. Cheap: there may be a hundred thousand of them."""
        ...

    async def recent_tasks(self, limit: int) -> Sequence[Task]:
        """The newest of all, newest first."""
        ...

    async def change(self, change: TaskChange, at: int) -> Task | None:
        """Compare-and-set by the lifecycle. Returns the task after it, None when it did not apply."""
        ...

    async def task_counts(self) -> dict[tuple[str, str], int]:
        """Number of tasks by (state, reason)."""
        ...

    # attempts: the outbox

    async def add_attempt(self, attempt: Attempt, change: TaskChange, at: int) -> Task | None:
        """The attempt with its bytes, and the task's step to `dispatched`: both or, when the lifecycle refuses, neither."""
        ...

    async def attempts(self, task_id: int) -> Sequence[Attempt]: ...

    async def mark_published(self, task_id: int, number: int, at_ms: int) -> None:
        """The first time counts."""
        ...

    async def acknowledge(self, task_id: int, number: int, at_ms: int) -> Task | None:
        """The attempt is acknowledged, the task too when the lifecycle allows. None when it is not the open attempt."""
        ...

    async def end_attempt(self, task_id: int, number: int, code: str, detail: str, at_ms: int, *, fault: bool = False) -> bool:
        """Gives an attempt up, by its performer's `fault` or not. False when it had ended before."""
        ...

    # chain

    async def identity(self) -> int:
        """A number that this store was given when it was first asked, and no other has: who shares it shares the store."""
        ...

    async def checkpoint(self, name: str) -> int | None:
        """Last block done by a follower: `hub:<chain>` for the monitor, `events:<chain>:<shard>` for the event scheduler."""
        ...

    async def save_checkpoints(self, blocks: Mapping[str, int], fences: Fences | None = None) -> None:
        """Sets them, also backwards after a reorganisation. With `fences` only those of shards (`events:<chain>:<shard>`) whose
        newest token it has: who has lost a shard does not know all of its jobs."""
        ...

    async def mark_caught_up(self, job_ids: Sequence[int], fences: Fences | None = None) -> None:
        """Event jobs whose past has been searched: from here on their shard's checkpoint speaks for them. With `fences` only
        those of shards whose newest token it has."""
        ...

    async def record(
        self, chain_id: int, block: int, changes: Sequence[TaskChange], deleted: Sequence[int], at: int
    ) -> Sequence[Task]:
        """The effects of the blocks up to `block` and the checkpoint `hub:<chain>`, together; points and counts included.

        Effects may come again (after a crash, after a reorganisation): what is known changes nothing.
        Returns the tasks that changed, as they now are.
        """
        ...

    # scripts

    async def storage(self, job_id: int) -> str:
        """What a job keeps between its runs, as the text of a JSON object; '' for nothing. `TaskChange.storage` moves it."""
        ...

    async def add_package(self, package: RunPackage) -> None:
        """The first of an attempt is kept, for three days; another one of the same attempt marks it `contradicted`."""
        ...

    async def packages(self, task_id: int) -> Sequence[RunPackage]:
        """By attempt."""
        ...

    async def drop_packages(self, task_id: int) -> None: ...

    async def tasks_with_packages(self) -> Sequence[int]:
        """Oldest first."""
        ...

    async def run_charges(self, chain_id: int, limit: int) -> Sequence[RunCharge]:
        """Certified runs that have not been charged, oldest first. `TaskChange.charge` adds one, the change that brings the
        task's `cost` takes it away."""
        ...

    async def usage(self, script: str) -> Usage | None:
        """What runs of the script with this CID have used, smoothed; None before the first."""
        ...

    async def add_usage(self, script: str, latest: Usage) -> None: ...

    async def safe_addresses(self, owner: bytes) -> Sequence[tuple[str, str, int]]:
        """Address, name and time (UTC seconds) of the Safes that an owner's jobs have named, oldest first."""
        ...

    # keys and keepers

    async def add_key(self, key: ApiKey) -> None: ...

    async def key(self, digest: bytes) -> ApiKey | None: ...

    async def save_keeper(self, keeper: KeeperSeen) -> None: ...

    async def keepers(self) -> Sequence[KeeperSeen]: ...

    async def keeper_records(self) -> Sequence[KeeperRecord]:
        """Of every keeper that has ever executed, attested, failed, or been named. Written by `record`, `end_attempt` (a
        `fault` counts as `failed`) and `save_keeper_form`."""
        ...

    async def save_keeper_form(self, record: KeeperRecord) -> None:
        """Name, e-mail, chat id, whitelisting and booster; the counts stay what they are."""
        ...

    # shards

    async def claim_shard(self, shard: int, token: int, at: int) -> bool:
        """From now on only `token` fires for the shard. False when a newer token has claimed it. Leaves `watched_at` as it is."""
        ...

    async def touch_shards(self, shards: Sequence[int], at: int) -> None:
        """They are being watched at `at`: `Shard.watched_at` tells the next holder since when they were not."""
        ...

    async def watched_at(self, shard: int) -> int | None: ...

    # gaps and alerts

    async def add_gap(self, gap: Gap) -> None:
        """Told again with the same beginning, it ends where the later one ends. Gaps are kept for 30 days, at most 10,000."""
        ...

    async def gaps(self, scopes: Sequence[str], since: int) -> Sequence[Gap]:
        """Those that ended after `since`, oldest first; the newest 100."""
        ...

    async def open_alert(self, subject: str, text: str, at: int) -> bool:
        """True when there was none of this subject: whoever gets it tells people, once."""
        ...

    async def close_alert(self, subject: str) -> int | None:
        """Since when it was open; None when it was not: whoever gets a time tells people that it is over, once."""
        ...

    async def alerts(self) -> Mapping[str, int]:
        """Open ones by subject, and since when."""
        ...
