"""The condition scheduler between sources that a test writes and a store in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from functools import partial
from typing import Any, NoReturn

import trio

from consensus.conditions import ApiSource, Comparison, Node, OnCondition, Source, WebSocketSource
from consensus.errors import Transient
from consensus.triggers import EdgeSeen
from coordinator.scheduler.condition import ConditionScheduler
from coordinator.store.memory import MemoryStore
from coordinator.store.records import SHARDS, Edge, Fired, Firing, Gap, Job, JobStatus, Task
from node.infra.clock import TrioClock
from node.infra.sources import Answer, Heard, Problem, Sources, Value
from tests.coordinator.factory import START, make_job

INTERVAL = 5.0
AWAY = Transient("SOURCE_UNREACHABLE", "away")
STORE_AWAY = Transient("DATABASE_BUSY", "away")

Written = str | int | Problem


class FakeSources:
    """Values by source as a test writes them; those of URLs in `hanging` wait, in `taking` take seconds. Counts requests."""

    def __init__(self) -> None:
        self.values: dict[Source, Written] = {}
        self.asked: Counter[str] = Counter()
        self.at: list[tuple[float, str]] = []
        self.hanging: dict[str, trio.Event] = {}
        self.taking: dict[str, float] = {}
        self.followed: dict[str, trio.MemorySendChannel[Heard]] = {}
        self.under_way = 0
        self.most_under_way = 0

    async def read_each(self, sources: Sequence[Source]) -> Mapping[Source, Value]:
        place = self.place(sources[0])
        self.asked[place] += 1
        self.at.append((trio.current_time(), place))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if place in self.hanging:
                await self.hanging[place].wait()
            if place in self.taking:
                await trio.sleep(self.taking[place])
            await trio.lowlevel.checkpoint()
        finally:
            self.under_way -= 1
        return {source: self._value(source) for source in sources}

    async def follow(self, url: str, hear: Callable[[Heard], Awaitable[None]]) -> NoReturn:
        self.followed[url], messages = trio.open_memory_channel[Heard](100)
        try:
            while True:
                await hear(await messages.receive())
        finally:
            del self.followed[url]

    def say(self, url: str, *values: str) -> None:
        """A WebSocket's messages: the value itself is each document."""
        self.followed[url].send_nowait([Answer(value) for value in values])

    def break_off(self, url: str) -> None:
        self.followed[url].send_nowait(AWAY)

    def _value(self, source: Source) -> Value:
        value = self.values.get(source, AWAY)
        return value if isinstance(value, Exception) else Decimal(value)

    place = staticmethod(Sources.place)
    host_of = staticmethod(Sources.host_of)


class World:
    """Time is trio's: `await world.passes(seconds)` under an autojump clock lets everything settle."""

    def __init__(self) -> None:
        self.clock = TrioClock(START)
        self.store = MemoryStore()
        self.sources = FakeSources()
        self.fences = dict.fromkeys(range(SHARDS), 1)
        self.store_away = False
        self.batches: list[int] = []
        self.answers: Counter[Fired] = Counter()
        self.scheduler = ConditionScheduler(self.sources, self.clock, self.fire, self.add_gap, interval=INTERVAL)

    async def fire(self, firings: Sequence[Firing], /) -> Sequence[Fired]:
        await trio.lowlevel.checkpoint()
        if self.store_away:
            raise STORE_AWAY
        answers = await self.store.fire(firings, int(self.clock.now()), self.fences)
        self.batches.append(len(firings))
        self.answers.update(answers)
        for firing, answer in zip(firings, answers, strict=True):
            if answer is Fired.KNOWN:
                await self.reload(firing.job_id)
        return answers

    async def add_gap(self, gap: Gap) -> None:
        if self.store_away:
            raise STORE_AWAY
        await self.store.add_gap(gap)

    async def reload(self, job_id: int) -> None:
        planned = await self.store.planned_job(job_id)
        if planned is None:
            self.scheduler.remove(job_id)
        else:
            self.scheduler.put(planned)

    async def post(self, root: Node, job_id: int = 7, **changes: Any) -> Job:
        base = make_job(job_id)
        job = make_job(
            job_id,
            **{
                "definition": 5,
                "trigger": OnCondition(root),
                "next_due": None,
                "time_frame": 10**6,
                "starts_at": int(self.clock.now()),
                "owner": base.owner,
                **changes,
            },
        )
        stored = await self.store.add_job(job)
        await self.reload(job_id)
        return stored

    async def passes(self, seconds: float = INTERVAL) -> None:
        await trio.sleep(seconds)

    async def tasks(self, job_id: int = 7) -> list[Task]:
        return list(await self.store.tasks_of_job(job_id, 10_000))

    async def numbers(self, job_id: int = 7) -> list[int]:
        return [task.trigger_id for task in await self.tasks(job_id)]

    async def seen(self, job_id: int = 7) -> list[tuple[str, ...]]:
        found = [task.observation for task in await self.tasks(job_id)]
        return [each.values for each in found if isinstance(each, EdgeSeen)]

    async def edge(self, job_id: int = 7) -> Edge:
        job = await self.store.job(job_id)
        assert job is not None
        return job.edge

    async def status(self, job_id: int = 7) -> JobStatus:
        job = await self.store.job(job_id)
        assert job is not None
        return job.status


@asynccontextmanager
async def open_world():
    world = World()
    for shard in range(SHARDS):
        await world.store.claim_shard(shard, 1, START)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(world.scheduler.run))
        yield world
        nursery.cancel_scope.cancel()


def url(n: int = 0, host: str = "a.example") -> str:
    return f"https://{host}/{n}"


def api(n: int = 0, route: str = "", host: str = "a.example") -> ApiSource:
    return ApiSource(url(n, host), route)


def above(source: Source, limit: str, hysteresis: str = "0") -> Comparison:
    return Comparison(source, "greater_than", limit, hysteresis=hysteresis)


FEED = WebSocketSource("wss://a.example/feed")
