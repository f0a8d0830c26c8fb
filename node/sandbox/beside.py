"""Tasks that run beside a body, for context managers whose body's exceptions are somebody's to catch by their type."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def beside(*tasks: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Runs them until the body ends. What the body raises comes out as it is, in no group of a nursery's."""
    raised: Exception | None = None
    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(task)
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised below
            raised = error
        nursery.cancel_scope.cancel()
    if raised is not None:
        raise raised
