"""Where CPU-heavy work runs: never on the event loop in production, inline under a virtual clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import trio

T = TypeVar("T")

_WORKERS = 2  # pairings release the interpreter for milliseconds; more threads than this only queue for the cores


class Compute(Protocol):
    """Runs a pure function elsewhere and waits for its result."""

    async def __call__(self, work: Callable[..., T], /, *args: Any) -> T: ...


class Threads:
    """A few worker threads shared by all callers; the rest wait their turn."""

    def __init__(self, workers: int = _WORKERS) -> None:
        self._limiter = trio.CapacityLimiter(workers)

    async def __call__(self, work: Callable[..., T], /, *args: Any) -> T:
        return await trio.to_thread.run_sync(work, *args, limiter=self._limiter)


async def inline(work: Callable[..., T], /, *args: Any) -> T:
    """In place. For simulations: a virtual clock would run on while a thread works."""
    await trio.lowlevel.checkpoint()
    return work(*args)
