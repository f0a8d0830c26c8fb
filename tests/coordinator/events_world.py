"""What the tests of event jobs share: a desk that remembers firings, a contract's events, and an oracle of what must fire."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import trio

from consensus.codec import task_id
from consensus.errors import Transient
from consensus.events import OnEvent, checked, declared, firing_id
from consensus.triggers import LogSeen
from coordinator.scheduler.event import EventScheduler
from coordinator.store.records import Edge, Fired, Firing, MissedPolicy, Planned, shard_of
from node.infra.chain import Chain
from node.infra.clock import Clock

CONTRACT = b"\xee" * 20
EVENT = "Pinged(address indexed who,uint256 value)"
DAY = 86_400


def word(value: int) -> bytes:
    return value.to_bytes(32, "big")


def pinged(value: int, who: int = 1) -> tuple[tuple[bytes, ...], bytes]:
    """Topics and data of one log."""
    return (declared(EVENT).topic, word(who)), word(value)


def on_event(
    *filters: tuple[str, str], confirmations: int = 0, chain_id: int = 31337, contract: bytes = CONTRACT, event: str = EVENT
) -> OnEvent:
    return OnEvent(chain_id, contract, declared(event).text, checked(event, filters), confirmations)


def planned(
    job_id: int,
    trigger: OnEvent,
    created_at: float,
    *,
    time_frame: int = 30 * DAY,
    starts_at: int = 0,
    recurring: bool = True,
    missed: MissedPolicy = MissedPolicy.RUN_ONCE,
    caught_up: bool = False,
) -> Planned:
    return Planned(
        job_id=job_id,
        chain_id=trigger.chain_id,
        definition=3,
        trigger=trigger,
        created_at=int(created_at),
        time_frame=time_frame,
        starts_at=starts_at,
        next_due=None,
        recurring=recurring,
        missed=missed,
        priority=2,
        edge=Edge(),
        caught_up=caught_up,
        trace_id="trace",
    )


class Desk:
    """Firing desk and store in one, as far as event jobs see them: it outlives schedulers, as the store does."""

    def __init__(self) -> None:
        self.away = False
        self.tasks: dict[int, Firing] = {}
        self.answers: Counter[Fired] = Counter()
        self.fenced: set[int] = set()
        self.checkpoints: dict[str, int] = {}
        self.saves = 0
        self.caught_up: set[int] = set()
        self.cancelled: list[int] = []
        self.batches: list[int] = []
        self._news = trio.Event()

    async def fire(self, firings: Sequence[Firing], /) -> Sequence[Fired]:
        await self._reach()
        self.batches.append(len(firings))
        answers = [self._answer(firing) for firing in firings]
        self.answers.update(answers)
        self._tell()
        return answers

    def _answer(self, firing: Firing) -> Fired:
        assert firing.task is not None
        if shard_of(firing.job_id) in self.fenced:
            return Fired.FENCED
        if firing.task.id in self.tasks:
            if firing.task.id in self.cancelled:
                self.cancelled.remove(firing.task.id)  # taken up again
            return Fired.KNOWN
        self.tasks[firing.task.id] = firing
        return Fired.NEW

    async def checkpoint(self, name: str) -> int | None:
        await self._reach()
        return self.checkpoints.get(name)

    async def save_checkpoints(self, blocks: Mapping[str, int]) -> None:
        await self._reach()
        self.checkpoints.update(blocks)
        self.saves += 1
        self._tell()

    async def mark_caught_up(self, job_ids: Sequence[int]) -> None:
        await self._reach()
        self.caught_up |= set(job_ids)
        self._tell()

    async def cancel(self, task: int) -> None:
        await self._reach()
        self.cancelled.append(task)
        self._tell()

    async def _reach(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise Transient("STORE_BUSY", "the store is away")

    def _tell(self) -> None:
        news, self._news = self._news, trio.Event()
        news.set()

    async def until(self, condition: Callable[[], bool], seconds: float = 600) -> None:
        """Returns once `condition` holds; looks again after every write."""
        with trio.fail_after(seconds):
            while not condition():
                await self._news.wait()

    async def until_fired(self, job_id: int, count: int, seconds: float = 30) -> None:
        """Returns once the job has fired so often."""
        await self.until(lambda: len(self.fired(job_id)) == count, seconds)

    def fired(self, job_id: int) -> set[tuple[bytes, int]]:
        """(transaction, position) of each firing of a job."""
        found = set()
        for firing in self.tasks.values():
            if firing.job_id == job_id:
                assert firing.task is not None
                seen = firing.task.observation
                assert isinstance(seen, LogSeen)
                found.add((seen.transaction, seen.position))
        return found

    def task_of(self, job_id: int, transaction: bytes, position: int = 0, chain_id: int = 31337) -> int:
        return task_id(job_id, firing_id(chain_id, transaction, position))


@asynccontextmanager
async def scheduling(chain: Chain, clock: Clock, desk: Desk, *jobs: Planned) -> AsyncIterator[EventScheduler]:
    """A scheduler that holds these jobs; leaving is a crash."""
    scheduler = EventScheduler({chain.domain.chain_id: chain}, clock, desk.fire, desk, desk.cancel)
    for job in jobs:
        scheduler.put(job)
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        yield scheduler
        nursery.cancel_scope.cancel()
