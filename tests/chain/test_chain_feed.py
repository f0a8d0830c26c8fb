"""The feed every adapter follows its chain with: branches, nodes that lag, and long back-fills."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.errors import Transient
from node.infra.chain import ChainEvent, EventPlace, Head, TaskExpired
from node.infra.chain_feed import REWIND_BLOCKS, ChainFeed


class Blocks:
    """A chain of (number, branch) blocks with one event each."""

    def __init__(self, confirmations: int = 0) -> None:
        self.confirmations = confirmations
        self.branches = [0]
        self.visible: int | None = None
        self.away = False
        self.asked: list[tuple[int, int]] = []

    def grow(self, count: int, branch: int = 0) -> None:
        self.branches += [branch] * count

    def fork(self, depth: int, count: int, branch: int) -> None:
        del self.branches[len(self.branches) - depth :]
        self.grow(count, branch)

    def _head(self, number: int) -> Head:
        return Head(number, bytes([self.branches[number]]) + number.to_bytes(31, "big"), number)

    async def head(self) -> Head:
        return self._head(len(self.branches) - 1 if self.visible is None else self.visible)

    async def block(self, number: int) -> Head | None:
        return self._head(number) if number <= (await self.head()).number else None

    async def read(self, from_block: int, head: Head) -> Sequence[ChainEvent]:
        if self.away:
            raise Transient("RPC_UNREACHABLE")
        self.asked.append((from_block, head.number))
        heads = [self._head(n) for n in range(from_block, head.number + 1)]
        return [TaskExpired(EventPlace(h.number, h.hash, bytes(32), 0), h.hash[0], h.number) for h in heads]


class NothingNewError(Exception):
    """The feed would wait."""


async def stop() -> None:
    raise NothingNewError


async def drain(feed: ChainFeed[ChainEvent]) -> list[tuple[int, int]]:
    """(branch, block) of every event that the feed has for now."""
    found: list[tuple[int, int]] = []
    while True:
        try:
            _, events = await feed.next()
        except NothingNewError:
            return found
        found += [(e.task_id, e.number) for e in events if isinstance(e, TaskExpired)]


async def test_a_new_branch_is_delivered_from_the_fork_on() -> None:
    chain = Blocks()
    chain.grow(5)
    rewound: list[int] = []
    feed = ChainFeed(chain, 1, stop, chain.read, rewound.append)
    await drain(feed)
    for _ in range(3):
        chain.grow(1)
        await drain(feed)
    chain.fork(2, 3, branch=1)
    assert await drain(feed) == [(1, 7), (1, 8), (1, 9)]
    assert rewound == [7]
    assert feed.rewound == 7
    chain.grow(1, branch=1)
    assert await drain(feed) == [(1, 10)]
    assert feed.rewound is None


async def test_a_reorganisation_is_told_with_the_batch_that_replaces_it_even_if_that_had_to_be_read_twice() -> None:
    chain = Blocks()
    feed = ChainFeed(chain, 1, stop, chain.read)
    for _ in range(5):
        chain.grow(1)
        await drain(feed)
    chain.fork(2, 3, branch=1)
    chain.away = True
    with pytest.raises(Transient):
        await feed.next()
    assert feed.rewound is None
    chain.away = False
    assert await drain(feed) == [(1, 4), (1, 5), (1, 6)]
    assert feed.rewound == 4


async def test_a_shorter_branch_is_followed_too() -> None:
    chain = Blocks()
    feed = ChainFeed(chain, 1, stop, chain.read)
    for _ in range(5):
        chain.grow(1)
        await drain(feed)
    chain.fork(3, 1, branch=1)
    assert await drain(feed) == [(1, 3)]
    chain.grow(1, branch=1)
    assert await drain(feed) == [(1, 4)]


async def test_a_node_that_lags_is_waited_for() -> None:
    chain = Blocks()
    feed = ChainFeed(chain, 1, stop, chain.read)
    for _ in range(5):
        chain.grow(1)
        await drain(feed)
    chain.visible = 3
    assert await drain(feed) == []
    chain.visible = None
    chain.grow(1)
    assert await drain(feed) == [(0, 6)]


async def test_a_fork_deeper_than_is_remembered_goes_back_so_many_blocks_and_no_further() -> None:
    chain = Blocks()
    chain.grow(200)
    feed = ChainFeed(chain, 150, stop, chain.read)
    assert len(await drain(feed)) == 51
    chain.fork(150, 151, branch=1)
    found = await drain(feed)
    assert found[0] == (1, 150)
    chain.fork(150, 200, branch=2)
    found = await drain(feed)
    assert found[0] == (2, max(150, 201 - REWIND_BLOCKS + 1))
    assert found[-1] == (2, len(chain.branches) - 1)


async def test_a_long_back_fill_comes_in_batches() -> None:
    chain = Blocks()
    chain.grow(12_000)
    feed = ChainFeed(chain, 1, stop, chain.read)
    assert len(await drain(feed)) == 12_000
    assert chain.asked == [(1, 5_000), (5_001, 10_000), (10_001, 12_000)]


async def test_unconfirmed_blocks_are_held_back() -> None:
    chain = Blocks(confirmations=2)
    chain.grow(4)
    feed = ChainFeed(chain, 1, stop, chain.read)
    assert await drain(feed) == [(0, 1), (0, 2)]
    chain.fork(2, 3, branch=1)
    assert await drain(feed) == [(1, 3)]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6), st.booleans()), max_size=12))
async def test_whatever_the_forks_what_came_last_of_a_block_is_canonical(
    steps: list[tuple[int, int, bool]],
) -> None:
    chain = Blocks()
    chain.grow(10)
    feed = ChainFeed(chain, 1, stop, chain.read)
    delivered: dict[int, int] = {}
    for branch, (depth, count, look) in enumerate([*steps, (0, 1, True)], 1):
        chain.fork(min(depth, len(chain.branches) - 1), count, branch)
        if look:
            delivered.update({number: b for b, number in await drain(feed)})
    canonical = dict(enumerate(chain.branches))
    assert {n: b for n, b in delivered.items() if n in canonical} == {n: b for n, b in canonical.items() if n > 0}
