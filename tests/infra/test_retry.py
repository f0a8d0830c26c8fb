"""Retry: only for what is transient, in time, and spread out."""

from __future__ import annotations

import math

import pytest
import trio

from consensus.errors import Failed, Transient
from node.infra.retry import doubling, full_jitter, no_jitter, retry


class Step:
    """Fails as told, then returns the time."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.at: list[float] = []

    async def __call__(self) -> float:
        self.at.append(trio.current_time())
        if self.errors:
            raise self.errors.pop(0)
        return trio.current_time()


async def test_the_pauses_are_the_backoff(autojump_clock):
    step = Step(*[Transient("BUSY")] * 3)
    begin = trio.current_time()
    await retry(step, [1, 2, 4], deadline=math.inf, jitter=no_jitter)
    assert [at - begin for at in step.at] == [0, 1, 3, 7]


async def test_the_tries_end_with_the_backoff(autojump_clock):
    step = Step(*[Transient("BUSY", str(number)) for number in range(9)])
    with pytest.raises(Transient, match="BUSY: 2"):
        await retry(step, [1, 2], deadline=math.inf)
    assert len(step.at) == 3


async def test_no_pause_reaches_beyond_the_deadline(autojump_clock):
    step = Step(*[Transient("BUSY")] * 99)
    begin = trio.current_time()
    with pytest.raises(Transient):
        await retry(step, doubling(1, 8), deadline=begin + 10, jitter=no_jitter)
    assert [at - begin for at in step.at] == [0, 1, 3, 7]
    assert trio.current_time() - begin == 7


@pytest.mark.parametrize("error", [Failed("NO"), ValueError("bug")])
async def test_what_is_not_transient_is_not_tried_again(error, autojump_clock):
    step = Step(error)
    with pytest.raises(type(error)):
        await retry(step, [1, 2], deadline=math.inf)
    assert len(step.at) == 1


async def test_the_jitter_is_the_callers(autojump_clock):
    step = Step(Transient("BUSY"))
    begin = trio.current_time()
    assert await retry(step, [10], deadline=math.inf, jitter=lambda pause: pause / 4) == begin + 2.5


async def test_cancellation_ends_a_pause(autojump_clock):
    begin = trio.current_time()
    with trio.move_on_after(5):
        await retry(Step(Transient("BUSY")), [100], deadline=math.inf)
    assert trio.current_time() - begin == 5


def test_the_default_jitter_stays_between_half_and_all():
    pauses = [full_jitter(8) for _ in range(200)]
    assert min(pauses) >= 4
    assert max(pauses) <= 8
    assert len(set(pauses)) > 100
