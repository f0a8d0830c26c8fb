"""A year of ten thousand random schedules in all the world's time zones, compared with what other libraries say was due."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import trio
from trio.testing import MockClock

from consensus import schedules
from consensus.triggers import Cron, Interval, Moments, Schedule
from coordinator.scheduler.time import TimeScheduler
from coordinator.store.records import Edge, Fired, Firing, MissedPolicy, Planned
from node.infra.clock import TrioClock
from tests.consensus import oracle

START = 1_793_000_000  # October 2026: the clocks of both hemispheres change within weeks
YEAR = 365 * 86400
END = START + YEAR


@dataclass(frozen=True)
class Case:
    """A job, and the seconds at which the oracle has it fire."""

    trigger: Schedule
    created_at: int
    time_frame: int
    due: list[int]


def any_case(chance: random.Random, most: int) -> Case:
    """A job that begins some time in the year, every other one on a day on which its zone's clock changes.

    It lives until the year is over or until just before its next firing after `most`.
    """
    kind = chance.random()
    zone = chance.choice(oracle.zone_names())
    changes = oracle.days_before_changes(zone, START, END)
    day = chance.choice(changes) if changes and chance.random() < 0.5 else chance.randrange(START, END - 86400)
    created_at = day + chance.randrange(86400)
    if kind < 0.12:
        interval = chance.choice([chance.randint(1, 100), 3600, 86400, chance.randint(1, 10**7)])
        life = min(END - created_at, interval * most + chance.randrange(interval))
        return Case(Interval(interval), created_at, life, [*range(created_at + interval, created_at + life + 1, interval)])
    if kind < 0.15:
        times = sorted({chance.randrange(created_at - 10**6, END) for _ in range(min(most, 1000))})
        return Case(Moments(tuple(times)), created_at, END - created_at, [s for s in times if s > created_at])
    while True:
        line = oracle.any_line(chance)
        try:
            trigger = Cron(line, zone)
        except ValueError:
            assert oracle.never_due(line), line  # a 30th of February
            continue
        due = oracle.first_due(line, zone, created_at, END, most + 1, shift=oracle.shift_of(zone, START, END))
        end = due.pop() - 1 if len(due) > most else END
        return Case(trigger, created_at, max(1, end - created_at), [second for second in due if second <= end])


async def test_a_year_of_ten_thousand_schedules_fires_what_other_libraries_say(autojump_clock: MockClock) -> None:
    chance = random.Random(20261025)
    cases = [any_case(chance, chance.randint(2, 14)) for _ in range(10_000)]
    fired: list[list[int]] = [[] for _ in cases]
    clock = TrioClock(START)

    async def fire(firings: Sequence[Firing], /) -> Sequence[Fired]:
        now = clock.now()
        for firing in firings:
            if firing.task is not None:
                assert 0 <= now - firing.task.trigger_id < 0.001
                fired[firing.job_id].append(firing.task.trigger_id)
        return [Fired.NEW] * len(firings)

    scheduler = TimeScheduler(clock, fire, lookahead=0)
    for job_id, case in enumerate(cases):
        scheduler.put(planned(job_id, case))
    with trio.move_on_after(YEAR + 1):
        await scheduler.run()
    different = [(case, got) for case, got in zip(cases, fired, strict=True) if case.due != got]
    assert different == []
    assert len(scheduler) == 0
    assert scheduler.fired == sum(len(case.due) for case in cases) > 50_000
    assert scheduler.skipped == 0


def planned(job_id: int, case: Case) -> Planned:
    first = schedules.next_due(case.trigger, case.created_at, created_at=case.created_at, time_frame=case.time_frame)
    return Planned(
        job_id=job_id,
        chain_id=31337,
        definition=1,
        trigger=case.trigger,
        created_at=case.created_at,
        time_frame=case.time_frame,
        starts_at=case.created_at,
        next_due=first,
        recurring=True,
        missed=MissedPolicy.RUN_ALL,
        priority=2,
        edge=Edge(),
        caught_up=False,
        trace_id="",
    )


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
def test_whole_years_of_schedules_are_what_other_libraries_say(seed: int) -> None:
    """Up to 2,000 firings each: all of the year for lines that run every five hours or less often."""
    chance = random.Random(seed)
    for _ in range(1000):
        case = any_case(chance, 2000)
        due, second = [], case.created_at
        while (
            after := schedules.next_due(case.trigger, second, created_at=case.created_at, time_frame=case.time_frame)
        ) is not None:
            due.append(second := after)
        assert due == case.due, case.trigger
