"""What event schedulers write down of their shards' progress, under the shards' fences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from coordinator.store.changes import shard_of_checkpoint
from coordinator.store.port import Fences, Store
from coordinator.store.records import shard_of


class FencedCheckpoints:
    """A shard's checkpoint speaks for all of its jobs: it moves only while all of them are watched here (`watched`).

    Who was paused, or has yet to read a shard's jobs, would move it past logs of jobs that he does not know. What is not
    written stays as the former holder left it, which costs the next one a longer search and no firing.
    """

    def __init__(self, store: Store, watched: Callable[[], Fences]) -> None:
        self._store = store
        self._watched = watched

    async def checkpoint(self, name: str) -> int | None:
        """See `Store.checkpoint`."""
        return await self._store.checkpoint(name)

    async def save_checkpoints(self, blocks: Mapping[str, int]) -> None:
        """Those of watched shards. Raises `Transient`."""
        fences = self._watched()
        kept = {name: block for name, block in blocks.items() if shard_of_checkpoint(name) in fences}
        if kept:
            await self._store.save_checkpoints(kept, fences)

    async def mark_caught_up(self, job_ids: Sequence[int]) -> None:
        """Those of watched shards. Raises `Transient`."""
        fences = self._watched()
        kept = [job_id for job_id in job_ids if shard_of(job_id) in fences]
        if kept:
            await self._store.mark_caught_up(kept, fences)
