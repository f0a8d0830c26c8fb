"""Following one chain block by block, over any adapter and whatever is read of it: back-fill, confirmations, reorganisations,
outages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar

from node.infra.chain import Head

T = TypeVar("T")
Read = Callable[[int, Head], Awaitable[Sequence[T]]]
"""What the blocks from a number up to a head hold. Raises `Transient` when the node does not hold that head."""

REWIND_BLOCKS = 64
"""How far a reorganisation is followed back: two epochs of Ethereum, after which blocks are final."""
BATCH_BLOCKS = 5_000
"""Of a back-fill: what is read between two answers."""
_REMEMBERED = 64  # heads whose hashes are kept to find the common ancestor


class FeedSource(Protocol):
    """The reads a feed needs of its chain."""

    @property
    def confirmations(self) -> int: ...

    async def head(self) -> Head: ...

    async def block(self, number: int) -> Head | None: ...


class ChainFeed(Generic[T]):
    """What `read` finds in each block, once, in order. A failed read raises `Transient` and moves nothing: the next call resumes.

    When the block last delivered is no longer on the chain, the feed goes back to the newest block that it delivered and
    that still stands (at most `REWIND_BLOCKS`), tells `rewound` the first block of the new branch, and delivers it.
    `batch_blocks` may be changed between two calls.
    """

    def __init__(
        self,
        source: FeedSource,
        from_block: int,
        wait: Callable[[], Awaitable[None]],
        read: Read[T],
        rewound: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.batch_blocks = BATCH_BLOCKS
        self._source = source
        self._read = read
        self._first = from_block
        self._next = from_block
        self._wait = wait
        self._rewound = rewound
        self._seen: list[Head] = []
        self._taken_back: int | None = None  # to be told with the next batch
        self._at_head = False  # the last batch ended in the newest block there was: the next one is worth waiting for
        self.rewound: int | None = None
        """As `EventFeed.rewound`."""

    async def next(self) -> tuple[Head, Sequence[T]]:
        """The confirmed head, once it moved, and what the blocks since the last call hold."""
        while True:
            if self._at_head:
                self._at_head = False
                await self._wait()
            head = await self._confirmed()
            if head is not None and await self._rewind(head):
                newest = head.number
                if head.number >= self._next + self.batch_blocks:
                    head = await self._source.block(self._next + self.batch_blocks - 1)
                if head is not None and head.number >= self._next:
                    found = await self._read(self._next, head)
                    self._next = head.number + 1
                    self._at_head = head.number == newest
                    self._seen = [*self._seen[-_REMEMBERED + 1 :], head]
                    self.rewound, self._taken_back = self._taken_back, None
                    return head, found
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
        if head.number == last.number + 1 and head.parent == last.hash:
            return True
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
