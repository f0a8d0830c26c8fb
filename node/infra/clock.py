"""Wall time as a port: the system's clock in production, trio's clock (virtual in tests) everywhere else."""

from __future__ import annotations

import time
from typing import Protocol

import trio

_RECHECK_S = 1.0  # the wall clock may be stepped (NTP, an operator) while we sleep on the monotonic one


class Clock(Protocol):
    """The only source of wall time. All values are UTC seconds since the epoch."""

    def now(self) -> float: ...

    def now_ns(self) -> int:
        """Nanoseconds since the epoch."""
        ...

    async def sleep_until(self, t: float) -> None:
        """Returns once `now() >= t`, at once (but with a checkpoint) when `t` is past."""
        ...


class SystemClock:
    """The machine's clock. Wakes within about a millisecond of `t`, and within a second of a step past it."""

    def now(self) -> float:
        return time.time()

    def now_ns(self) -> int:
        return time.time_ns()

    async def sleep_until(self, t: float) -> None:
        await trio.lowlevel.checkpoint()
        while True:
            remaining = t - time.time()
            if remaining <= 0:
                return
            await trio.sleep(min(remaining, _RECHECK_S))


class TrioClock:
    """Wall time that starts at `start` and runs with `trio.current_time()`: under an autojump clock an hour passes in seconds.

    Construct it inside `trio.run`. Clocks built at the same moment with different `start` model keepers whose clocks disagree.
    """

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._start = start
        self._origin = trio.current_time()

    def now(self) -> float:
        return self._start + (trio.current_time() - self._origin)

    def now_ns(self) -> int:
        return round(self._start * 1e9) + round((trio.current_time() - self._origin) * 1e9)

    async def sleep_until(self, t: float) -> None:
        await trio.lowlevel.checkpoint()
        # A float sum may land one rounding step short of t; go round until the promise `now() >= t` holds.
        while True:
            remaining = t - self.now()
            if remaining <= 0:
                return
            await trio.sleep(max(remaining, 1e-6))
