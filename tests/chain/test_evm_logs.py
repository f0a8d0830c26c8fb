"""Logs by JSON-RPC from nodes with limits, nodes that are slow, and nodes that answer nonsense."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.errors import Transient
from node.infra.evm_logs import LogReader
from node.infra.evm_reads import Reader
from node.infra.rpc import RpcError, Unreachable

CONTRACT, TOPIC = b"\xc0" * 20, b"\x70" * 32


def text(number: int) -> str:
    return "0x" + number.to_bytes(32, "big").hex()


def entry(block: int, tx: int, index: int, topic: bytes = TOPIC) -> dict[str, Any]:
    return {
        "blockNumber": hex(block),
        "blockHash": text(block),
        "transactionHash": text(block * 1000 + tx),
        "logIndex": hex(index),
        "address": "0x" + CONTRACT.hex(),
        "topics": ["0x" + topic.hex()],
        "data": "0x",
    }


class Node:
    """Blocks of transactions with two logs each, of which the second is asked for."""

    def __init__(self, blocks: int, transactions: int) -> None:
        self.blocks = {
            n: [entry(n, i // 2, i, TOPIC if i % 2 else bytes(32)) for i in range(2 * transactions)] for n in range(1, blocks + 1)
        }
        self.refuse_whole_blocks = False
        self.most_bytes = 10**9
        self.failing: list[Exception] = []
        self.asked: list[tuple[str, Any]] = []

    async def call(self, method: str, params: Sequence[Any] = ()) -> Any:
        self.asked.append((method, params[0]))
        if self.failing:
            raise self.failing.pop(0)
        if method == "eth_getTransactionReceipt":
            number = int(params[0], 16) // 1000
            logs = [log for log in self.blocks[number] if log["transactionHash"] == params[0]]
            return {"blockHash": text(number), "blockNumber": hex(number), "status": "0x1", "logs": logs}
        query = params[0]
        if "blockHash" in query:
            if self.refuse_whole_blocks and "topics" not in query:
                raise RpcError(-32005, "too many logs")
            first = last = int(query["blockHash"], 16)
        else:
            first, last = int(query["fromBlock"], 16), int(query["toBlock"], 16)
        found = [log for n in range(max(1, first), last + 1) for log in self.blocks.get(n, [])]
        if "topics" in query:
            found = [log for log in found if log["topics"][0] in query["topics"][0]]
        if len(found) > self.most_bytes:
            raise Unreachable("answer over 16 bytes", too_large=True)
        return found

    async def batch(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        return [await self.call(*each) for each in calls]


async def read(node: Node, last: int) -> list[tuple[int, int]]:
    logs = await LogReader(Reader(node)).logs([CONTRACT], [TOPIC], 1, last, None)
    return [(int.from_bytes(log.tx_hash, "big"), log.position) for log in logs]


@pytest.mark.parametrize("transactions", [1, 4, 5, 30])
@pytest.mark.parametrize("refuse", [False, True])
async def test_positions_are_found_whatever_the_node_allows(transactions: int, refuse: bool) -> None:
    node = Node(20, transactions)
    node.refuse_whole_blocks = refuse
    assert await read(node, 20) == [(n * 1000 + i, 1) for n in range(1, 21) for i in range(transactions)]


async def test_a_full_block_costs_one_call_more_and_not_one_a_transaction() -> None:
    node = Node(1, 300)
    await read(node, 1)
    assert [method for method, _ in node.asked] == ["eth_getLogs", "eth_getLogs"]


async def test_an_answer_that_is_too_long_is_asked_for_in_parts() -> None:
    node = Node(50, 10)
    node.most_bytes = 100
    assert len(await read(node, 50)) == 500


async def test_a_block_that_is_too_long_by_itself_is_the_nodes_affair() -> None:
    node = Node(3, 10)
    node.most_bytes = 5
    with pytest.raises(Transient):
        await read(node, 3)


async def test_after_an_outage_a_long_range_is_begun_with_less() -> None:
    node = Node(1, 1)
    reader = Reader(node)
    node.failing = [Unreachable("no answer within 10 s")]
    with pytest.raises(Transient):
        await reader.logs([CONTRACT], [TOPIC], 1, 9_000)
    node.asked.clear()
    await reader.logs([CONTRACT], [TOPIC], 1, 9_000)
    first = node.asked[0][1]
    assert int(first["toBlock"], 16) - int(first["fromBlock"], 16) < 9_000


async def test_more_logs_than_fit_one_answer_are_for_the_caller_to_ask_for_in_parts() -> None:
    node = Node(100, 1)
    reader = Reader(node)
    reader._span = 10
    with pytest.raises(Transient, match="too many"):
        await reader.logs([CONTRACT], [TOPIC], 1, 100, most=25)
    assert len(await reader.logs([CONTRACT], [TOPIC], 1, 10, most=5)) == 10  # of the last range as many as there are


async def test_what_the_node_calls_removed_or_of_other_blocks_is_passed_over() -> None:
    node = Node(3, 1)
    node.blocks[2][1]["removed"] = True
    node.blocks[3][1]["blockNumber"] = "0x99"
    assert await read(node, 3) == [(1000, 1)]


_NONSENSE = st.one_of(
    st.none(), st.integers(), st.text(max_size=5), st.just("0x"), st.just([]), st.just({}), st.just("0x" + "ff" * 40)
)


@given(st.sampled_from(["blockNumber", "blockHash", "transactionHash", "logIndex", "address", "topics", "data"]), _NONSENSE)
async def test_a_malformed_log_is_the_nodes_fault(field: str, value: Any) -> None:
    log = {**entry(1, 0, 0), field: value}

    class Strange(Node):
        async def call(self, method: str, params: Sequence[Any] = ()) -> Any:
            return (
                [log] if method == "eth_getLogs" else {"blockHash": text(1), "blockNumber": "0x1", "status": "0x1", "logs": [log]}
            )

    for reading in (
        LogReader(Reader(Strange(1, 1))).logs([], [], 1, 1, None),
        LogReader(Reader(Strange(1, 1))).receipt(bytes(32)),
    ):
        with suppress(Transient):  # or it makes sense after all
            await reading


@pytest.mark.parametrize("answer", [5, "x", [5], [{}], [None]])
async def test_an_answer_without_sense_is_transient(answer: Any) -> None:
    class Strange(Node):
        async def call(self, method: str, params: Sequence[Any] = ()) -> Any:
            return answer

    for tip in (None, bytes(32)):
        with pytest.raises(Transient):
            await LogReader(Reader(Strange(1, 1))).logs([CONTRACT], [TOPIC], 1, 1, tip)
    if not isinstance(answer, int):
        with pytest.raises(Transient):
            await LogReader(Reader(Strange(1, 1))).receipt(bytes(32))
