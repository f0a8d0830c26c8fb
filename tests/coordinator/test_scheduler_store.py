"""The time scheduler over real stores: what is fired, and what a process knew, meet in the job's row."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from consensus.triggers import Cron, Interval, Moments
from coordinator.firing import FiringDesk
from coordinator.scheduler.time import TimeScheduler
from coordinator.store.memory import MemoryStore
from coordinator.store.port import Store
from coordinator.store.records import JobStatus, MissedPolicy
from coordinator.store.sqlite import open_store
from node.infra.clock import TrioClock
from tests.coordinator.factory import START, claim_all, make_job


@asynccontextmanager
async def in_memory() -> AsyncIterator[Store]:
    yield MemoryStore()


@asynccontextmanager
async def in_sqlite() -> AsyncIterator[Store]:
    async with open_store(":memory:") as store:  # without a thread: virtual clocks stay exact
        yield store


class World:
    """A coordinator's part that fires time jobs; `restart` is a crash: the next one reads the store."""

    def __init__(self, store: Store, nursery: trio.Nursery) -> None:
        self.store = store
        self.clock = TrioClock(START)
        self.nursery = nursery
        self.life = trio.CancelScope()

    async def restart(self, *, after: float = 0) -> None:
        self.life.cancel()
        await trio.sleep(after)
        self.life = trio.CancelScope()
        await self.nursery.start(self._live, self.life)

    async def _live(self, life: trio.CancelScope, *, task_status: Any) -> None:
        async def push(_: object) -> None:
            await trio.lowlevel.checkpoint()

        async def changed(_: int) -> None:
            await trio.lowlevel.checkpoint()

        with life:
            fences = await claim_all(self.store)
            desk = FiringDesk(
                self.store, push, self.clock, fences, fenced=lambda *_: None, reread=lambda _: None, changed=changed
            )
            self.scheduler = TimeScheduler(self.clock, desk, lookahead=5)
            for shard in fences:
                for planned in await self.store.planned(shard, None, 100):
                    self.scheduler.put(planned)
            async with trio.open_nursery() as nursery:
                await nursery.start(desk.run)
                await nursery.start(self.scheduler.run)
                task_status.started()

    async def seconds(self, job_id: int = 7) -> list[int]:
        return [task.trigger_id - START for task in await self.store.tasks_of_job(job_id, 1000)]


@pytest.fixture(params=[in_memory, in_sqlite], ids=["memory", "sqlite"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    opened: Callable[[], Any] = request.param
    async with opened() as store, trio.open_nursery() as nursery:
        yield World(store, nursery)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("missed", "seconds"),
    [
        (MissedPolicy.RUN_ONCE, [10, 20, 60, 70, 80, 90, 100]),
        (MissedPolicy.RUN_ALL, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]),
        (MissedPolicy.SKIP, [10, 20, 70, 80, 90, 100]),
    ],
)
async def test_what_fell_due_while_nothing_ran_is_judged_by_the_policy(
    world: World, autojump_clock: MockClock, missed: MissedPolicy, seconds: list[int]
) -> None:
    await world.store.add_job(make_job(missed=missed))
    await world.restart()
    await trio.sleep(16)
    await world.restart(after=46)
    await trio.sleep(60)
    assert await world.seconds() == seconds
    job = await world.store.job(7)
    assert job is not None
    assert (job.spent, job.next_due) == (True, None)


async def test_a_crash_between_any_two_firings_repeats_nothing(world: World, autojump_clock: MockClock) -> None:
    await world.store.add_job(make_job(trigger=Interval(3), missed=MissedPolicy.RUN_ALL))
    await world.restart()
    for _ in range(20):
        await trio.sleep(3.3)
        await world.restart(after=1.7)
    await trio.sleep(30)
    assert await world.seconds() == list(range(3, 100, 3))


async def test_a_job_that_skipped_all_it_had_is_completed(world: World, autojump_clock: MockClock) -> None:
    await world.store.add_job(make_job(missed=MissedPolicy.SKIP))
    await trio.sleep(500)
    await world.restart()
    await trio.sleep(1)
    job = await world.store.job(7)
    assert job is not None
    assert (job.status, await world.seconds()) == (JobStatus.COMPLETED, [])


async def test_an_updated_job_fires_by_its_new_schedule_and_never_again_by_the_old(
    world: World, autojump_clock: MockClock
) -> None:
    stored = await world.store.add_job(make_job())
    await world.restart()
    await trio.sleep(21)
    await world.store.update_job(replace(stored, trigger=Interval(7), next_due=START + 28))
    await trio.sleep(10)  # nobody has told the scheduler: the store refuses what it fires by the old schedule
    assert await world.seconds() == [10, 20]
    planned = await world.store.planned_job(7)
    assert planned is not None
    world.scheduler.put(planned)
    await trio.sleep(21)
    assert await world.seconds() == [10, 20, 28, 35, 42, 49, 56]


async def test_a_paused_job_fires_nothing_until_it_is_resumed(world: World, autojump_clock: MockClock) -> None:
    stored = await world.store.add_job(make_job(missed=MissedPolicy.SKIP))
    await world.restart()
    await trio.sleep(6)
    await world.store.pause_job(stored.id, START + 6)
    world.scheduler.remove(stored.id)
    await trio.sleep(40)
    await world.store.resume_job(stored.id, START + 20, START + 46)
    planned = await world.store.planned_job(stored.id)
    assert planned is not None
    world.scheduler.put(planned)
    await trio.sleep(60)
    assert await world.seconds() == [10, 50, 60, 70, 80, 90, 100]


async def test_cron_lines_and_specific_times_are_stored_and_read_again(world: World, autojump_clock: MockClock) -> None:
    times = Moments((START + 12, START + 13, START + 90))
    line = Cron("* * * * *", "Asia/Kathmandu")
    await world.store.add_job(make_job(7, trigger=times))
    await world.store.add_job(make_job(8, trigger=line, time_frame=300, next_due=START + 40))
    await world.restart()
    await trio.sleep(20)
    await world.restart(after=5)
    await trio.sleep(300)
    assert await world.seconds(7) == [12, 13, 90]
    assert await world.seconds(8) == [40, 100, 160, 220, 280]
