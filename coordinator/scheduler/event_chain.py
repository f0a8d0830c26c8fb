"""The event jobs of one chain: every block read once for all of them, matches held until they are deep enough, and fired."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence

import structlog
import trio

from consensus import codec, events
from consensus.errors import Transient
from consensus.events import OnEvent
from consensus.triggers import LogSeen
from coordinator.scheduler.event_held import Fired as FiredLog
from coordinator.scheduler.event_held import Held, Match, Recent
from coordinator.scheduler.event_index import EventIndex, ask_of
from coordinator.scheduler.event_reads import MOST_SPAN, Hit, Reading, read_hits
from coordinator.scheduler.event_search import FIRST_SPAN, Search, Watched
from coordinator.scheduler.event_shards import Checkpoints, Shards
from coordinator.scheduler.port import Fire
from coordinator.store.records import Fired, Firing, MissedPolicy, Planned, Task
from node.infra.chain import Chain, Head
from node.infra.chain_feed import REWIND_BLOCKS, ChainFeed
from node.infra.clock import Clock

log = structlog.get_logger(__name__)

RETURN_BLOCKS = 2
"""A log that a reorganisation took away has so many blocks to come back before its task is cancelled: most are there at once."""
HELD_BLOCKS = 256
"""Matches wait in memory for this many confirmations; jobs that want more are searched again when blocks are deep enough."""
MOST_HELD = 100_000
"""Matches in memory; beyond it the jobs with the most of them are searched again later instead."""
_ENOUGH = 8  # oldest matches kept of a job that fires once, until its past has been searched
_STRIDE = 16  # blocks between two searches for the same job
_BATCH = 256  # firings of one transaction: bounds how long the store is held
_WITHOUT_PAUSE = 256  # jobs of one log that are looked at in one go, a millisecond or two
_RETRY_S = 1.0
_SEARCHES = 4  # at a time: a long one must not keep new jobs waiting

Cancel = Callable[[int], Awaitable[None]]
"""Ends a task (by id) whose log is gone, unless it has executed: FAILED, EVENT_REORGANISED. Raises `Transient`."""


class ChainWatch:
    """Matches of one chain's logs with jobs. `position` is the newest block that has been read for all of them."""

    def __init__(self, chain: Chain, clock: Clock, fire: Fire, checkpoints: Checkpoints, cancel: Cancel) -> None:
        self._chain = chain
        self._chain_id = chain.domain.chain_id
        self._clock = clock
        self._fire = fire
        self._checkpoints = checkpoints
        self._cancel = cancel
        self._index = EventIndex()
        self._jobs: dict[int, Watched] = {}
        self._later: set[Watched] = set()
        self._unsearched: list[Watched] = []
        self._searching: set[Watched] = set()
        self._shards = Shards(self._chain_id, checkpoints)
        self._held = Held()
        self._recent = Recent(MOST_HELD)
        self._hits: deque[Hit] = deque()  # read, and not yet held
        self._reading: Reading | None = None
        self._under_way = False
        self._wake = trio.Event()
        self._began = trio.Event()
        self._flushing = trio.Lock()
        self.position: int | None = None
        self.rewinds = 0
        self.fired = 0

    # --- jobs

    def __len__(self) -> int:
        return len(self._jobs)

    def job_ids(self) -> Collection[int]:
        return self._jobs.keys()

    def put(self, planned: Planned, trigger: OnEvent) -> None:
        """From the next block on it is watched; its past is searched meanwhile. Raises ValueError for a senseless trigger."""
        ask = ask_of(trigger)
        job_id = planned.job_id
        self.remove(job_id, replaced=True)
        extra = max(0, trigger.confirmations - self._chain.confirmations)
        watched = Watched(planned, trigger, ask, extra, extra > HELD_BLOCKS, planned.caught_up)
        self._jobs[job_id] = watched
        if watched.later:
            self._later.add(watched)
        else:
            self._index.put(job_id, ask)
        self._shards.enter(job_id, caught_up=planned.caught_up)
        if self.position is not None:
            self._set_floor(watched, self.position)
        self._unsearched.append(watched)
        self._wake_searches()

    def remove(self, job_id: int, *, replaced: bool = False) -> None:
        watched = self._jobs.pop(job_id, None)
        if watched is None:
            return
        self._index.remove(job_id)
        self._later.discard(watched)
        self._searching.discard(watched)
        self._held.drop_job(job_id)
        self._shards.leave(job_id, replaced=replaced)

    def wants(self, watched: Watched) -> bool:
        """Whether a search goes on for the job."""
        return watched in self._searching

    def _set_floor(self, watched: Watched, position: int) -> None:
        """By the policy `skip` what became deep enough before this moment is over."""
        if watched.planned.missed is MissedPolicy.SKIP and not watched.floor:
            watched.floor = max(1, position - watched.extra + 1)

    def _wake_searches(self) -> None:
        self._wake.set()
        self._wake = trio.Event()

    # --- following

    async def run(self) -> None:
        """Watches until cancelled; may be run again after it failed."""
        self._held.clear()
        self._hits.clear()
        self._searching.clear()
        self.position, self._under_way, self._began = None, False, trio.Event()
        for watched in self._jobs.values():
            watched.searched, watched.next, watched.caught_up = False, None, watched.planned.caught_up
        self._unsearched = list(self._jobs.values())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._search_all, nursery)
            await self._follow()

    async def _follow(self) -> None:
        feed: ChainFeed[Hit] | None = None
        async with self._chain.heads() as heads:
            while True:
                try:
                    if feed is None:
                        first = (await self._chain.head()).number - self._chain.confirmations - REWIND_BLOCKS + 1
                        feed = ChainFeed(self._chain, max(0, first), heads.wait, self._read_new, self._take_back)
                        feed.batch_blocks = MOST_SPAN
                    await self._step(feed)
                except Transient as error:
                    log.warning("chain_or_store_unavailable", chain=self._chain_id, code=error.code, detail=error.detail)
                    if feed is not None and self.position is not None:
                        feed.batch_blocks = max(1, min(FIRST_SPAN, feed.batch_blocks // 2))
                    await trio.sleep(_RETRY_S)

    async def _step(self, feed: ChainFeed[Hit]) -> None:
        await self._hold_hits()
        await self.flush()
        try:
            head, hits = await feed.next()
            self._advance(head.number, hits)
        finally:
            self._under_way = False
            self._wake_searches()
        if self._reading is not None:
            feed.batch_blocks = self._reading.next_span(feed.batch_blocks)
        await self._hold_hits()
        await self.flush()
        await self._give_up_missed(head.number)
        await self._save()

    def _advance(self, position: int, hits: Sequence[Hit]) -> None:
        if self.position is None:
            for watched in self._jobs.values():
                self._set_floor(watched, position)
        self.position = position
        self._began.set()
        self._hits.extend(hits)
        for watched in self._later:
            if watched.searched and position - watched.extra >= (watched.next or 0) + _STRIDE - 1:
                watched.searched = False
                self._unsearched.append(watched)

    async def _hold_hits(self) -> None:
        """What was read becomes matches, and is not forgotten when the store is away meanwhile."""
        while self._hits:
            hit = self._hits[0]
            for count, job_id in enumerate(hit.job_ids, 1):
                if count % _WITHOUT_PAUSE == 0:
                    await trio.lowlevel.checkpoint()
                if (watched := self._jobs.get(job_id)) is not None and not watched.later:
                    self.take(watched, hit)
            self._hits.popleft()
            await self.make_room()

    async def make_room(self) -> None:
        """Keeps memory within bounds, and lets others work. Raises `Transient`."""
        await trio.lowlevel.checkpoint()
        if len(self._held) > MOST_HELD:
            await self.flush()
        if len(self._held) > MOST_HELD:
            self._put_off()

    async def _read_new(self, first: int, head: Head) -> Sequence[Hit]:
        if self.position is None:
            return ()  # what was before the first look is searched for each job
        self._under_way = True
        self._reading = await read_hits(self._chain, self._index, first, head)
        return self._reading.hits

    def take(self, watched: Watched, hit: Hit) -> None:
        """A match: held until it is deep enough, unless it has fired."""
        block = hit.log.block_number
        if not watched.counts(block, hit.timestamp):
            return
        seen = LogSeen(hit.log.tx_hash, hit.log.position)
        key = (watched.planned.job_id, events.firing_id(self._chain_id, seen.transaction, seen.position))
        if self._recent.seen_again(key, block):
            return
        if not watched.planned.recurring and (latest := self._held.latest(watched.planned.job_id, _ENOUGH)) is not None:
            if latest.block <= block:
                return
            self._held.drop(latest.key)
        self._held.add(Match(*key, seen, block, block + watched.extra))

    def _put_off(self) -> None:
        """Too many matches wait: the jobs with the most of them are searched again when the blocks are deep enough."""
        oldest, position = self._held.oldest(), self.position or 0
        for job_id, count in self._held.largest():
            watched = self._jobs[job_id]
            if len(self._held) <= MOST_HELD * 9 // 10:
                return
            if not watched.extra:
                continue
            log.warning("event_job_searched_later", job_id=str(job_id), chain=self._chain_id, matches=count)
            self._index.remove(job_id)
            self._held.drop_job(job_id)
            self._later.add(watched)
            watched.later, watched.until = True, min(watched.until, position - watched.extra)
            watched.next = (
                min(oldest[job_id], watched.next) if watched.next is not None and not watched.searched else oldest[job_id]
            )

    def _take_back(self, block: int) -> None:
        """The blocks from this one on are others now; the feed reads them next."""
        self.rewinds += 1
        if self.position is None:
            return
        self._held.drop_from(block)
        missed = self._recent.take_back(block, self.position)
        for watched in self._later:
            watched.next = block if watched.next is None else min(watched.next, block)
        log.warning("events_reorganised", chain=self._chain_id, from_block=block, head=self.position, fired=missed)
        self.position = min(self.position, block - 1)

    # --- firing

    async def flush(self) -> None:
        """Fires what is deep enough, the oldest first. What `Transient` interrupts stays held."""
        async with self._flushing:
            while due := self._due():
                for begin in range(0, len(due), _BATCH):
                    await self._fire_batch([m for m in due[begin : begin + _BATCH] if self._still_due(m)])

    async def _fire_batch(self, batch: list[Match]) -> None:
        now_ms, rewinds = self._clock.now_ns() // 1_000_000, self.rewinds
        answers = await self._fire([self._firing(self._jobs[m.job_id].planned, m, now_ms) for m in batch])
        for match, answer in zip(batch, answers, strict=True):
            self._settle(match, answer, taken_back=rewinds != self.rewinds and match.key not in self._held)

    def _still_due(self, match: Match) -> bool:
        return match.key in self._held and match.job_id in self._jobs and match.due_at <= (self.position or 0)

    def _due(self) -> list[Match]:
        found: list[Match] = []
        once: set[int] = set()
        for match in self._held.due(self.position if self.position is not None else -1):
            watched = self._jobs[match.job_id]
            if not watched.planned.recurring:
                # Its first match only, and which that is shows when the past has been searched.
                if match.job_id in once or not watched.searched:
                    continue
                once.add(match.job_id)
            found.append(match)
        return found

    def _firing(self, planned: Planned, match: Match, now_ms: int) -> Firing:
        task = Task(
            id=codec.task_id(planned.job_id, match.trigger_id),
            job_id=planned.job_id,
            chain_id=planned.chain_id,
            trigger_id=match.trigger_id,
            definition=planned.definition,
            created_at_ms=now_ms,
            trace_id=planned.trace_id,
            scheduled_at=now_ms // 1000,
            priority=planned.priority,
            observation=match.seen,
            stages={"created": now_ms},
        )
        return Firing(planned.job_id, task, spent=not planned.recurring)

    def _settle(self, match: Match, answer: Fired, *, taken_back: bool) -> None:
        self._held.drop(match.key)
        watched = self._jobs.get(match.job_id)
        if answer not in (Fired.NEW, Fired.KNOWN):
            if answer is Fired.FENCED:
                self._shards.freeze(match.job_id)
            self.remove(match.job_id)
            return
        self.fired += answer is Fired.NEW
        if watched is None:
            return  # whoever watches the job now knows of the firing by the store
        fired = FiredLog(watched.trigger, match.seen, match.block)
        if taken_back:
            self._recent.miss(match.key, fired, self.position or 0)
        else:
            self._recent.add(match.key, fired)
        if not watched.planned.recurring:
            self.remove(match.job_id)

    async def _give_up_missed(self, position: int) -> None:
        """Cancels tasks whose log has not come back, and forgets firings beyond the reach of a reorganisation."""
        for key, fired in self._recent.missed_since(position - RETURN_BLOCKS):
            block = await self._where(fired)
            if block is not None:
                self._recent.add(key, FiredLog(fired.trigger, fired.seen, block))
                continue
            task_id = codec.task_id(*key)
            await self._cancel(task_id)
            log.warning("event_gone", chain=self._chain_id, job_id=str(key[0]), task_id=str(task_id), block=fired.block)
            self._recent.give_up(key)
        self._recent.forget_before(position - REWIND_BLOCKS)

    async def _where(self, fired: FiredLog) -> int | None:
        """The block of the log that fired, when it is on the chain after all: its job may not be watched here any more."""
        receipt = await self._chain.receipt(fired.seen.transaction)
        if receipt is None or fired.seen.position >= len(receipt.logs):
            return None
        found = receipt.logs[fired.seen.position]
        return receipt.block_number if events.matches(fired.trigger, found.address, found.topics, found.data) else None

    # --- checkpoints

    async def _save(self) -> None:
        """The shards' checkpoints, as far as nothing of their jobs is pending."""
        if self.position is None:
            return
        position = min(self.position, self._hits[0].log.block_number - 1) if self._hits else self.position
        unfinished = {*self._searching, *self._unsearched, *self._later}
        # What is not caught up is searched from its creation whatever the checkpoint.
        current = [w for w in unfinished if w.caught_up and self._jobs.get(w.planned.job_id) is w]
        await self._shards.save(position, [*((w.planned.job_id, w.next) for w in current), *self._held.oldest().items()])

    async def done(self, watched: Watched) -> int | None:
        """The block that the job's search goes on from, by its shard's checkpoint."""
        return await self._shards.searched_to(watched.planned.job_id)

    # --- searching the past

    async def _search_all(self, nursery: trio.Nursery) -> None:
        await self._began.wait()
        limit = trio.Semaphore(_SEARCHES)
        while True:
            await limit.acquire()
            while self._under_way or not self._unsearched:
                # What was put while a read was under way may be missing in it: that read is part of its past.
                await self._wake.wait()
            jobs = [w for w in self._unsearched if self._jobs.get(w.planned.job_id) is w]
            self._unsearched = []
            self._searching.update(jobs)
            nursery.start_soon(self._search, jobs, limit)

    async def _search(self, jobs: list[Watched], limit: trio.Semaphore) -> None:
        await Search(self, self._chain, jobs).run()
        limit.release()

    async def end_search(self, jobs: list[Watched]) -> None:
        """From here on their shards' checkpoints speak for them: these are written first. Raises `Transient`."""
        for watched in jobs:
            watched.searched = watched.caught_up = True
        await self.flush()
        await self._save()
        fresh = [w.planned.job_id for w in jobs if not w.planned.caught_up and self.wants(w)]
        if fresh:
            await self._checkpoints.mark_caught_up(fresh)
        for watched in jobs:
            if self.wants(watched):
                self._shards.searched(watched.planned.job_id)
            self._searching.discard(watched)
