"""The clocks: virtual time flies, the system's clock is precise and survives being stepped."""

from __future__ import annotations

import time

import pytest
import trio

from node.infra import clock as clock_module
from node.infra.clock import SystemClock, TrioClock


async def test_a_simulated_hour_passes_at_once(autojump_clock):
    clock = TrioClock(start=1_000.0)
    began = time.monotonic()
    await clock.sleep_until(4_600.0)
    assert clock.now() >= 4_600.0
    assert clock.now() == pytest.approx(4_600.0, abs=1e-3)
    assert time.monotonic() - began < 1


async def test_sleep_until_never_wakes_early_on_a_trio_clock(autojump_clock):
    clock = TrioClock(start=1_731_999_999.123)
    for step in (0.1, 0.30000000004, 1 / 3, 17.7):
        due = clock.now() + step
        await clock.sleep_until(due)
        assert clock.now() >= due


async def test_two_trio_clocks_may_disagree(autojump_clock):
    right, fast = TrioClock(start=1_000), TrioClock(start=1_007)
    await trio.sleep(5)
    assert fast.now() - right.now() == 7
    assert fast.now_ns() - right.now_ns() == 7_000_000_000


async def test_a_past_moment_is_still_a_checkpoint(autojump_clock):
    for clock in (TrioClock(), SystemClock()):
        with trio.CancelScope() as scope:
            scope.cancel()
            await clock.sleep_until(0)
        assert scope.cancelled_caught


async def test_the_system_clock_wakes_on_time():
    clock = SystemClock()
    late = []
    for _ in range(5):
        due = clock.now() + 0.02
        await clock.sleep_until(due)
        late.append(clock.now() - due)
    assert min(late) >= 0
    assert min(late) < 0.003  # the best of five: the machine may be busy
    assert abs(clock.now_ns() / 1e9 - clock.now()) < 1


@pytest.mark.parametrize(("step", "slept"), [(+500.0, 1.0), (-20.0, 120.0)])
async def test_a_stepped_wall_clock_is_noticed_within_a_second(autojump_clock, monkeypatch, step, slept):
    wall = Wall()
    monkeypatch.setattr(clock_module, "time", wall)
    begin = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(SystemClock().sleep_until, wall.time() + 100.0)
        await trio.sleep(0.5)
        wall.step(step)
    assert slept - 0.01 <= trio.current_time() - begin <= slept + 1.01


class Wall:
    """A wall clock that runs with trio's and can be stepped."""

    def __init__(self) -> None:
        self.offset = 1_700_000_000.0

    def time(self) -> float:
        return self.offset + trio.current_time()

    def step(self, seconds: float) -> None:
        self.offset += seconds
