"""Work that several ask for at the same time, done once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import trio

from consensus.errors import Failed, Transient

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(slots=True)
class _Flight(Generic[V]):
    over: trio.Event = field(default_factory=trio.Event)
    result: list[V] = field(default_factory=list)
    error: Failed | Transient | None = None


class Once(Generic[K, V]):
    """Whoever asks for a key while its work is under way gets the same result, or the same `Failed` or `Transient`. The first
    to ask does the work; when it is cancelled, or breaks otherwise, the next one does it. Nothing is kept afterwards."""

    def __init__(self) -> None:
        self._flights: dict[K, _Flight[V]] = {}

    async def __call__(self, key: K, work: Callable[[], Awaitable[V]]) -> V:
        while (flight := self._flights.get(key)) is not None:
            await flight.over.wait()
            if flight.error is not None:
                raise type(flight.error)(flight.error.code, flight.error.detail)
            if flight.result:
                return flight.result[0]
        flight = self._flights[key] = _Flight()
        try:
            result = await work()
            flight.result.append(result)
        except (Failed, Transient) as error:
            flight.error = error
            raise
        finally:
            del self._flights[key]
            flight.over.set()
        return result
