"""The streams as the coordinator sees them; adapters are redis (a server by URL, or the embedded one) and memory.

Nothing here is the truth: the store is. Whatever is lost here is rebuilt from it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

LEVELS = (1, 2, 3)
"""Priorities: 1 before 2 before 3."""

NEWS_KEPT = 10_000
"""About how many entries the stream of announcements and each stream of task states keep."""

UNREACHABLE = "STREAMS_UNREACHABLE"
"""Code of the `Transient` that every method raises while the server is away."""


def level_of(priority: int) -> int:
    """The queue of a priority; what is none of `LEVELS` comes last."""
    return priority if priority in LEVELS else LEVELS[-1]


@dataclass(frozen=True, slots=True)
class Entry:
    """A task's place in the queue, held until `done`. `id` is the stream's own: it differs within one priority."""

    task_id: int
    priority: int
    id: str


@dataclass(frozen=True, slots=True)
class TaskNews:
    """A task's step, for whoever follows: `kind` is dispatched, completed, failed or retry."""

    kind: str
    task_id: int
    job_id: int
    state: str
    reason: str
    attempt: int
    at_ms: int


class Streams(Protocol):
    """Every method raises `Transient` (`STREAMS_UNREACHABLE`) while the server is away."""

    # the queue of tasks to dispatch: one stream a priority, one consumer group of all coordinators

    async def push(self, tasks: Sequence[tuple[int, int]]) -> None:
        """Adds (task id, priority) each, but no task that is in the queue already, taken or not."""
        ...

    async def take(self, limit: int) -> Sequence[Entry]:
        """Waits until there is one; the highest priority first. What is taken is this consumer's until `done` or orphaned."""
        ...

    async def done(self, entries: Sequence[Entry]) -> None:
        """They are finished with: acknowledged and deleted."""
        ...

    async def keep(self, entries: Sequence[Entry]) -> None:
        """Still at work on them: their idle time starts anew. Not of those that another has taken over."""
        ...

    async def orphans(self, idle_s: float, limit: int) -> Sequence[Entry]:
        """Takes over what nobody has kept or done for so long, and at once what an instance holds that lives no more (`beat`).

        It may be what this consumer was sent and never got: a `take` cut short in the last moment.
        """
        ...

    async def backlog(self) -> int:
        """Entries that nobody has taken."""
        ...

    # leases

    async def acquire(self, name: str, ttl_s: float, *, floor: int = 0) -> int | None:
        """Takes a free lease; its fencing token, higher than any given for this name before. None when it is held.

        The token is at least `floor` and at least the server's time in microseconds, so that tokens go on rising when
        the server has lost its data. Whoever has seen a higher one all the same says so by `floor`.
        """
        ...

    async def renew(self, name: str, token: int, ttl_s: float) -> bool:
        """False when it is no longer ours."""
        ...

    async def release(self, name: str, token: int) -> None: ...

    async def bind(self, store: int, ttl_s: float) -> bool:
        """For so long these streams are of coordinators that share this store (`Store.identity`). False while they are of
        another's: theirs would be shards whose jobs we do not know, and ours theirs."""
        ...

    async def beat(self, instance: str, ttl_s: float) -> frozenset[str]:
        """This instance lives for `ttl_s` more; all that live now, itself included."""
        ...

    async def leave(self, instance: str) -> None:
        """It lives no more: the others need not wait for its time to run out."""
        ...

    # news

    async def announce(self, job_id: int) -> None:
        """Tells every other coordinator that the job is new or has changed."""
        ...

    def news(self) -> AbstractAsyncContextManager[AsyncIterator[int]]:
        """Jobs that other instances announce from the moment it is entered.

        Entering and iterating raise `Transient` when some may have been lost: read the store anew.
        """
        ...

    async def tell(self, news: Sequence[TaskNews]) -> None:
        """Appends to the streams `tasks:<kind>`, each trimmed to about 10,000 entries."""
        ...

    async def ping(self) -> None:
        """Returns when the server answers and takes writes."""
        ...
