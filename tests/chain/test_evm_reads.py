"""Ranges of logs against nodes with limits, and answers that make no sense."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.committee import MAX_SEATS
from consensus.errors import Transient
from node.infra.evm_epochs import decode_set
from node.infra.evm_reads import Reader, bytes_of, head_of, int_of
from node.infra.rpc import RpcError


class LimitedNode:
    """Answers ranges of at most `limit` blocks with one log a block."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.ranges: list[tuple[int, int]] = []

    async def call(self, method: str, params: Sequence[Any] = ()) -> Any:
        begin, end = int(params[0]["fromBlock"], 16), int(params[0]["toBlock"], 16)
        self.ranges.append((begin, end))
        if end - begin >= self.limit:
            raise RpcError(-32005, f"query exceeds {self.limit} blocks")
        return [{"blockNumber": n} for n in range(begin, end + 1)]

    async def batch(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        return [await self.call(*each) for each in calls]


@given(st.integers(0, 500), st.integers(0, 30_000), st.integers(1, 40_000), st.booleans())
async def test_every_block_is_read_once_whatever_the_nodes_limit(first: int, length: int, limit: int, rare: bool) -> None:
    node = LimitedNode(max(limit, length // 50 + 1))
    found = await Reader(node).logs([b"a" * 20], [b"t" * 32], first, first + length, rare=rare)
    assert [log["blockNumber"] for log in found] == list(range(first, first + length + 1))


async def test_of_a_long_catch_up_few_ranges_are_refused() -> None:
    node = LimitedNode(1_000)
    await Reader(node).logs([], [], 0, 99_999)
    refused = [r for r in node.ranges if r[1] - r[0] >= node.limit]
    assert len(refused) < len(node.ranges) / 6


async def test_of_rare_logs_the_whole_range_is_asked_for_at_once() -> None:
    node = LimitedNode(10**9)
    await Reader(node).logs([], [], 0, 50_000, rare=True)
    assert node.ranges == [(0, 50_000)]


async def test_a_block_that_a_node_refuses_by_itself_is_its_fault() -> None:
    with pytest.raises(Transient) as failed:
        await Reader(LimitedNode(0)).logs([], [], 5, 9)
    assert failed.value.code == "RPC_ERROR"


@pytest.mark.parametrize("answer", [None, 5, "zz", "0xzz", {}, []])
def test_answers_without_sense_are_transient(answer: Any) -> None:
    for read in (bytes_of, int_of):
        with pytest.raises(Transient):
            read(answer)
    if answer is not None:
        with pytest.raises(Transient):
            head_of(answer)


@given(st.binary(max_size=600))
def test_other_code_is_no_set_of_an_epoch(code: bytes) -> None:
    with pytest.raises(ValueError):
        decode_set(code or b"\x01")
    with pytest.raises(ValueError):
        decode_set(bytes(1 + MAX_SEATS) + b"\x01" * 152 + code[:100])
