"""Trying again: only what may work later, with growing pauses, and never past the deadline."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable
from itertools import chain, repeat
from typing import TypeVar

import trio

from consensus.errors import Transient

T = TypeVar("T")


class RetryAfter(Transient):
    """The server asks to be left alone for `seconds`."""

    def __init__(self, code: str, detail: str, seconds: float) -> None:
        super().__init__(code, detail)
        self.seconds = seconds


def full_jitter(pause: float) -> float:
    """A pause between half and all of `pause`, so that many who failed together do not come back together."""
    return pause * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing


def no_jitter(pause: float) -> float:
    return pause


async def retry(
    step: Callable[[], Awaitable[T]],
    backoff: Iterable[float],
    *,
    deadline: float,
    jitter: Callable[[float], float] = full_jitter,
) -> T:
    """Runs `step` until it raises anything but `Transient`, or returns.

    `backoff` gives the pauses in seconds; when it ends, so do the tries. A pause that would reach beyond `deadline`
    (on trio's clock) is not begun: the last `Transient` is raised instead. A try under way at the deadline is not cut
    short; wrap the call in `trio.move_on_at` for that.
    """
    for pause in chain(backoff, repeat(None)):
        try:
            return await step()
        except Transient:
            if pause is None:
                raise
            wait = jitter(pause)
            if trio.current_time() + wait >= deadline:
                raise
        await trio.sleep(wait)
    raise AssertionError("unreachable: the chain of pauses has no end")


def doubling(first: float, ceiling: float) -> Iterable[float]:
    """`first`, twice that, and so on up to `ceiling`, for ever. Seconds."""
    pause = first
    while True:
        yield pause
        pause = min(2 * pause, ceiling)
