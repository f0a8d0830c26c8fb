"""How far each shard's event jobs have been served on one chain: the checkpoint that its next holder begins from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import trio

from consensus.errors import Transient
from coordinator.store.records import shard_of

LOADING_S = 30.0
"""Seconds after the last job that came with its shard in which the shard's checkpoint is not moved: more may be to come."""


class Checkpoints(Protocol):
    """What of the store the event scheduler needs. Every method raises `Transient` when it is away."""

    async def checkpoint(self, name: str) -> int | None: ...

    async def save_checkpoints(self, blocks: Mapping[str, int]) -> None: ...

    async def mark_caught_up(self, job_ids: Sequence[int]) -> None: ...


class _Shard:
    """A shard that jobs here belong to. `base` is its checkpoint as it was found, `done` as it was last written here."""

    def __init__(self) -> None:
        self.jobs = 0
        self.known: set[int] = set()
        self.read = False
        self.base: int | None = None
        self.done: int | None = None
        self.loading_until = float("-inf")
        self.frozen = False


class Shards:
    """Checkpoints `events:<chain>:<shard>` of the shards whose jobs are watched here."""

    def __init__(self, chain_id: int, checkpoints: Checkpoints) -> None:
        self._chain_id = chain_id
        self._checkpoints = checkpoints
        self._shards: dict[int, _Shard] = {}

    def enter(self, job_id: int, *, caught_up: bool) -> None:
        """A job is watched from now on."""
        shard = self._shards.setdefault(shard_of(job_id), _Shard())
        shard.jobs += 1
        shard.frozen = False
        if caught_up and job_id not in shard.known:
            shard.loading_until = trio.current_time() + LOADING_S

    def leave(self, job_id: int, *, replaced: bool) -> None:
        """A job is watched no more, or in another form (`replaced`)."""
        shard = self._shards[shard_of(job_id)]
        shard.jobs -= 1
        if not shard.jobs and not replaced:
            del self._shards[shard_of(job_id)]  # when its jobs come back, another may have moved the checkpoint

    def freeze(self, job_id: int) -> None:
        """The job's shard is another's by now, and its checkpoint too."""
        if (shard := self._shards.get(shard_of(job_id))) is not None:
            shard.frozen = True

    def searched(self, job_id: int) -> None:
        """The job's past has been searched: the checkpoint that is written here speaks for it."""
        if (shard := self._shards.get(shard_of(job_id))) is not None:
            shard.known.add(job_id)

    async def searched_to(self, job_id: int) -> int | None:
        """The block that a job's search goes on from; None when none was ever written down."""
        number = shard_of(job_id)
        shard = self._shards[number]
        if not shard.read:
            base = await self._checkpoints.checkpoint(self._name(number))
            if not shard.read:
                shard.read, shard.base = True, base
        # One that was watched here before has missed nothing before what was written here.
        return shard.done if job_id in shard.known and shard.done is not None else shard.base

    async def save(self, position: int, pending: Iterable[tuple[int, int | None]]) -> None:
        """Writes the checkpoints that moved, all at once. `position` is done but for what is pending: jobs, and the first
        block of each that is not done, None where that is not known yet."""
        moved = {n: block for n, block in self._served(position, pending).items() if self._shards[n].done != block}
        if not moved:
            return
        try:
            await self._checkpoints.save_checkpoints({self._name(number): block for number, block in moved.items()})
        except Transient:
            for shard in self._shards.values():  # what could not be loaded either is to come
                if shard.loading_until > float("-inf"):
                    shard.loading_until = trio.current_time() + LOADING_S
            raise
        for number, block in moved.items():
            if (known := self._shards.get(number)) is not None:
                known.done = block

    def _served(self, position: int, pending: Iterable[tuple[int, int | None]]) -> dict[int, int]:
        now = trio.current_time()
        served = {n: position for n, s in self._shards.items() if not s.frozen and s.loading_until <= now}
        for job_id, block in pending:
            number = shard_of(job_id)
            if block is None:
                served.pop(number, None)
            elif number in served:
                served[number] = min(served[number], block - 1)
        return served

    def _name(self, shard: int) -> str:
        return f"events:{self._chain_id}:{shard}"
