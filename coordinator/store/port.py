"""The store as the coordinator sees it. Every write is durable and whole when it returns; adapters are sqlite and memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from coordinator.store.records import ApiKey, Attempt, Firing, Job, JobStatus, KeeperSeen, Planned, Task, TaskChange, User


class Store(Protocol):
    """Every method raises `Transient` when the store cannot answer now; nothing has then been written."""

    # users and jobs

    async def user(self, address: bytes) -> User | None: ...

    async def add_job(self, job: Job) -> Job:
        """Stores the job and counts it for its owner; when the id is known, changes nothing. Returns what is stored."""
        ...

    async def job(self, job_id: int) -> Job | None: ...

    async def jobs(self, *, key_owner: str, owner: bytes | None = None) -> Sequence[Job]:
        """Jobs created with keys of `key_owner`, of one owner or of all, oldest first."""
        ...

    async def planned(self, after: int | None, limit: int) -> Sequence[Planned]:
        """Active jobs with a due second, paged: `after` is the last job id of the page before."""
        ...

    async def end_job(self, job_id: int, status: JobStatus, at: int) -> Job | None:
        """An active job ends with `status`. Returns the job as it now is, None when unknown."""
        ...

    async def complete_job(self, job_id: int, at: int) -> bool:
        """An active job without a further due second and without an open task is completed; says whether that happened."""
        ...

    # tasks

    async def fire(self, firings: Sequence[Firing], at: int) -> Sequence[bool]:
        """Each firing's task and the job's new `next_due`, together. True where the task is new.

        A firing of a job that is no longer active changes nothing; a task that exists stays as it is.
        """
        ...

    async def task(self, task_id: int) -> Task | None: ...

    async def tasks_of_job(self, job_id: int, limit: int) -> Sequence[Task]:
        """The newest `limit` tasks, oldest first."""
        ...

    async def task_ids_of_job(self, job_id: int, limit: int) -> Sequence[int]: ...

    async def open_tasks(self) -> Sequence[Task]:
        """Tasks that have not ended, oldest first."""
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

    async def end_attempt(self, task_id: int, number: int, code: str, detail: str, at_ms: int) -> bool:
        """Gives an attempt up. False when it had ended before."""
        ...

    # chain

    async def checkpoint(self, chain_id: int) -> int | None:
        """Last block whose events are in the store."""
        ...

    async def record(
        self, chain_id: int, block: int, changes: Sequence[TaskChange], deleted: Sequence[int], at: int
    ) -> Sequence[Task]:
        """The effects of the blocks up to `block` and that checkpoint, together.

        Effects may come again (after a crash, after a reorganisation): what is known changes nothing.
        Returns the tasks that changed, as they now are.
        """
        ...

    # keys and keepers

    async def add_key(self, key: ApiKey) -> None: ...

    async def key(self, digest: bytes) -> ApiKey | None: ...

    async def save_keeper(self, keeper: KeeperSeen) -> None: ...

    async def keepers(self) -> Sequence[KeeperSeen]: ...
