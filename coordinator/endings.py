"""What the end of a job's last task means for schedulers: the job is dropped, and the one that waited for it begins."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from coordinator.store.port import Store


class Endings:
    """Called with the job of each task that ended, and of each job deleted on chain: tells of jobs that ended or began."""

    def __init__(self, store: Store, changed: Callable[[int], Awaitable[None]]) -> None:
        self._store = store
        self._changed = changed

    async def __call__(self, job_id: int) -> None:
        """Told twice is told once. Raises `Transient`."""
        job = await self._store.job(job_id)
        if job is None or job.active:
            return
        await self._changed(job_id)
        if (following := await self._store.linked_to(job_id)) is not None:
            await self._changed(following.id)
