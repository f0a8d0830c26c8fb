"""After a long outage much was missed: counting it must not keep those waiting who are on time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import trio
from trio.testing import MockClock

from consensus import schedules
from consensus.schedules import Cron, Interval
from coordinator.scheduler.time import TimeScheduler
from coordinator.store.records import Fired, Firing, MissedPolicy, Planned
from node.infra.clock import TrioClock
from tests.coordinator.events_world import on_event, planned

A_DAY = 86_400


async def batches(trigger: Cron | Interval, count: int) -> list[int]:
    """Sizes of the batches in which so many jobs catch up that missed a day."""
    clock, sizes, done = TrioClock(), list[int](), trio.Event()
    now = int(clock.now())

    async def fire(firings: Sequence[Firing]) -> list[Fired]:
        await trio.lowlevel.checkpoint()
        sizes.append(len(firings))
        if sum(sizes) >= count:
            done.set()
        return [Fired.NEW] * len(firings)

    scheduler = TimeScheduler(clock, fire, lookahead=2.0)
    for job_id in range(1, count + 1):
        job: Planned = planned(job_id, on_event(), now - 2 * A_DAY)
        due = schedules.next_due(trigger, now - A_DAY, created_at=job.created_at, time_frame=30 * A_DAY)
        scheduler.put(
            replace(job, trigger=trigger, next_due=due, time_frame=30 * A_DAY, starts_at=0, missed=MissedPolicy.RUN_ONCE)
        )
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        await done.wait()
        nursery.cancel_scope.cancel()
    return sizes


async def test_what_crontab_lines_missed_is_counted_a_few_jobs_at_a_time(autojump_clock: MockClock) -> None:
    sizes = await batches(Cron("*/2 3-22 * * *", "America/New_York"), 60)
    assert max(sizes) <= 10


async def test_what_intervals_missed_is_counted_at_once(autojump_clock: MockClock) -> None:
    assert (await batches(Interval(60), 200))[0] == 200
