"""Following one chain's events block by block, over any adapter: back-fill, confirmations, reorganisations, outages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from node.infra.chain import ChainEvent, Head

REWIND_BLOCKS = 64
"""How far a reorganisation is followed back: two epochs of Ethereum, after which blocks are final."""
_BATCH_BLOCKS = 5_000  # of a back-fill: what an adapter reads between two answers
_REMEMBERED = 64  # heads whose hashes are kept to find the common ancestor


class FeedSource(Protocol):
    """The reads a feed needs of its chain."""

    @property
    def confirmations(self) -> int: ...

    async def head(self) -> Head: ...

    async def block(self, number: int) -> Head | None: ...

    async def events(self, from_block: int, to_block: int) -> Sequence[ChainEvent]: ...


class ChainFeed:
    """`EventFeed` over a chain's reads. A failed read raises `Transient` and moves nothing: the next call resumes.

    When the block last delivered is no longer on the chain, the feed goes back to the newest block that it delivered and
    that still stands (at most `REWIND_BLOCKS`), tells `rewound` the first block of the new branch, and delivers it.
    """

    def __init__(
        self,
        source: FeedSource,
        from_block: int,
        wait: Callable[[], Awaitable[None]],
        rewound: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._source = source
        self._first = from_block
        self._next = from_block
        self._wait = wait
        self._rewound = rewound
        self._seen: list[Head] = []
        self._taken_back: int | None = None  # to be told with the next batch
        self.rewound: int | None = None
        """As `EventFeed.rewound`."""

    async def next(self) -> tuple[Head, Sequence[ChainEvent]]:
        """The confirmed head, once it moved, and the events since the last call."""
        while True:
            head = await self._confirmed()
            if head is not None and await self._rewind(head):
                if head.number >= self._next + _BATCH_BLOCKS:
                    head = await self._source.block(self._next + _BATCH_BLOCKS - 1)
                if head is not None and head.number >= self._next:
                    events = await self._source.events(self._next, head.number)
                    self._next = head.number + 1
                    self._seen = [*self._seen[-_REMEMBERED + 1 :], head]
                    self.rewound, self._taken_back = self._taken_back, None
                    return head, events
            await self._wait()

    async def _confirmed(self) -> Head | None:
        head = await self._source.head()
        depth = self._source.confirmations
        if not depth:
            return head
        return await self._source.block(head.number - depth) if head.number >= depth else None

    async def _rewind(self, head: Head) -> bool:
        """Takes back what a reorganisation took back. False while the node is behind what was delivered before."""
        if not self._seen or head == self._seen[-1]:
            return True
        last = self._seen[-1]
        found = head if head.number == last.number else await self._source.block(last.number)
        if found is not None and found.hash == last.hash:
            return True
        if found is None and head.number < last.number:
            found = await self._source.block(head.number)
            if any(seen.number == head.number and found and seen.hash == found.hash for seen in self._seen):
                return False  # the same branch, seen through a node that lags
        seen = list(self._seen)
        while seen:
            standing = await self._source.block(seen[-1].number)
            if standing is not None and standing.hash == seen[-1].hash:
                break
            seen.pop()
        floor = last.number - REWIND_BLOCKS + 1
        self._next = max(self._first, floor, seen[-1].number + 1 if seen else 0)
        self._seen = seen
        self._taken_back = self._next if self._taken_back is None else min(self._taken_back, self._next)
        self._rewound(self._next)
        return True
