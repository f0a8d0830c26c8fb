"""The past of event jobs, read again for those who were not watched in it: new jobs, jobs taken over, jobs that ask for depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import structlog
import trio

from consensus.errors import Transient
from consensus.events import OnEvent
from coordinator.scheduler.event_index import Ask, EventIndex
from coordinator.scheduler.event_reads import Hit, first_block_at, read_hits
from coordinator.store.records import MissedPolicy, Planned
from node.infra.chain import Chain
from node.infra.chain_feed import REWIND_BLOCKS

log = structlog.get_logger(__name__)

FIRST_SPAN = 64
"""Blocks of the first read: it is not known how much they hold."""
_RETRY_S = 1.0


@dataclass(slots=True, eq=False)
class Watched:
    """A job, and how far its past has been searched.

    `extra` are confirmations beyond those that every read block has. `floor` is the first block that counts. `next` is the
    block that the search goes on with, None until it is known; `until` is where it ends. A job of `later` is only searched.
    """

    planned: Planned
    trigger: OnEvent
    ask: Ask
    extra: int
    later: bool
    caught_up: bool
    floor: int = 0
    next: int | None = None
    until: int = -1
    searched: bool = False

    def counts(self, block: int, timestamp: int) -> bool:
        """Whether a log of that block is within the job's life."""
        planned = self.planned
        begun = timestamp > planned.created_at and timestamp >= planned.starts_at
        return begun and timestamp <= planned.expires_at and block >= self.floor


class Searched(Protocol):
    """What a search needs of the watch that it serves."""

    @property
    def position(self) -> int | None: ...

    @property
    def rewinds(self) -> int:
        """Reorganisations so far."""
        ...

    def wants(self, watched: Watched) -> bool:
        """Whether the job is still to be searched for."""
        ...

    async def done(self, watched: Watched) -> int | None:
        """The block up to which the job's past has been searched, by its shard's checkpoint."""
        ...

    def take(self, watched: Watched, hit: Hit) -> None: ...

    async def flush(self) -> None:
        """Fires what is deep enough."""
        ...

    async def make_room(self) -> None:
        """Keeps what waits within bounds."""
        ...

    async def end_search(self, jobs: list[Watched]) -> None: ...


class Search:
    """One search for a group of jobs, which may begin at different blocks."""

    def __init__(self, watch: Searched, chain: Chain, jobs: list[Watched]) -> None:
        self._watch = watch
        self._chain = chain
        self._jobs = jobs
        self._indexed: list[Watched] = []
        self._index = EventIndex()

    async def run(self) -> None:
        """Finds what these jobs missed up to the position; tries until it has."""
        position = self._watch.position or 0
        for watched in self._jobs:
            watched.until = position - watched.extra if watched.later else position
        span = FIRST_SPAN
        while True:
            try:
                await self._find_beginnings()
                while unfinished := self._unfinished():
                    span = await self._search_range(unfinished, span)
                await self._watch.end_search([w for w in self._jobs if self._watch.wants(w)])
                return
            except Transient as error:
                log.warning("event_search_interrupted", chain=self._chain.domain.chain_id, code=error.code, detail=error.detail)
                span = max(1, span // 2)
                await trio.sleep(_RETRY_S)

    async def _find_beginnings(self) -> None:
        for watched in filter(self._watch.wants, self._jobs):
            if watched.next is None and watched.caught_up:
                done = await self._watch.done(watched)
                if done is None:
                    watched.caught_up = False  # nobody has written one down so far
                else:
                    # Blocks below the checkpoint may have become others while nobody looked.
                    watched.next = max(watched.floor, done + 1 - REWIND_BLOCKS, 0)
        new = [w for w in self._jobs if w.next is None and self._watch.wants(w)]
        for watched in new:
            if watched.planned.missed is MissedPolicy.SKIP:
                watched.next = watched.floor
        since = [max(w.planned.created_at + 1, w.planned.starts_at) for w in new if w.next is None]
        if since:
            first = await first_block_at(self._chain, min(since), self._watch.position or 0)
            for watched in new:
                watched.next = first if watched.next is None else watched.next

    def _unfinished(self) -> list[tuple[int, Watched]]:
        """The jobs that are to be searched on, and from which block."""
        position = self._watch.position or 0  # what lies beyond is read for every job anyway
        return [
            (w.next, w) for w in self._jobs if self._watch.wants(w) and w.next is not None and w.next <= min(w.until, position)
        ]

    async def _search_range(self, unfinished: list[tuple[int, Watched]], span: int) -> int:
        """Reads up to `span` blocks from the first that somebody has not got. Returns the next span."""
        first = min(begin for begin, _ in unfinished)
        last = min(first + span - 1, max(w.until for _, w in unfinished), self._watch.position or 0)
        concerned = {w.planned.job_id: w for begin, w in unfinished if begin <= last}
        if self._indexed != (indexed := list(concerned.values())):
            self._indexed, self._index = indexed, EventIndex()
            for job_id, watched in concerned.items():
                self._index.put(job_id, watched.ask)
        rewinds = self._watch.rewinds
        head = await self._chain.block(last)
        if head is None:
            raise Transient("RPC_ERROR", f"block {last} is not there")
        reading = await read_hits(self._chain, self._index, first, head)
        if rewinds != self._watch.rewinds:
            return span  # read before a reorganisation: once more
        for hit in reading.hits:
            for job_id in hit.job_ids:
                watched = concerned[job_id]
                if self._watch.wants(watched) and (watched.next or 0) <= hit.log.block_number <= watched.until:
                    self._watch.take(watched, hit)
            await self._watch.make_room()
            if rewinds != self._watch.rewinds:
                return span
        for watched in concerned.values():
            watched.next = min(last, watched.until) + 1
        await self._watch.flush()
        return reading.next_span(span)
