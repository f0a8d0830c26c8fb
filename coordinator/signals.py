"""Wakes whoever waits for news of a task or of the keepers: the store holds the news, this only says that there is some."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable

import trio


class Signals:
    """Take `of(key)` first, then read the store, then wait: news that comes between is not missed."""

    def __init__(self) -> None:
        self._events: dict[Hashable, trio.Event] = {}

    def of(self, key: Hashable) -> trio.Event:
        """An event that the next `notify(key)` sets."""
        return self._events.setdefault(key, trio.Event())

    def notify(self, key: Hashable) -> None:
        event = self._events.pop(key, None)
        if event is not None:
            event.set()

    def forget(self, key: Hashable) -> None:
        """Nobody waits for `key` any more."""
        self._events.pop(key, None)


async def first_of(*waits: Callable[[], Awaitable[object]]) -> None:
    """Returns as soon as one of them does; the others are cancelled."""
    async with trio.open_nursery() as nursery:

        async def wait(one: Callable[[], Awaitable[object]]) -> None:
            await one()
            nursery.cancel_scope.cancel()

        for one in waits:
            nursery.start_soon(wait, one)
