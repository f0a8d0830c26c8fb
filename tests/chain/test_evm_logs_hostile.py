"""Nodes that lag behind one URL, and blocks that somebody filled with more than an answer may hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from consensus.errors import Transient
from node.infra.evm_logs import LogReader
from node.infra.evm_reads import Reader
from node.infra.rpc import Unreachable
from tests.chain.test_evm_logs import CONTRACT, TOPIC, entry, text


def header(number: int) -> dict[str, Any]:
    return {"number": hex(number), "hash": text(number), "parentHash": text(number - 1), "timestamp": hex(number)}


class Farm:
    """Several nodes behind one URL, a log a block: `heads` are those of the nodes that answer next, one a request."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.heads: list[int] = []

    async def call(self, method: str, params: Sequence[Any] = ()) -> Any:
        return self._answer(method, params, self.heads.pop(0) if self.heads else self.blocks)

    async def batch(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        head = self.heads.pop(0) if self.heads else self.blocks
        return [self._answer(method, params, head) for method, params in calls]

    def _answer(self, method: str, params: Sequence[Any], head: int) -> Any:
        if method == "eth_getBlockByNumber":
            number = int(params[0], 16)
            return header(number) if number <= head else None
        if method == "eth_getTransactionReceipt":
            number = int(params[0], 16) // 1000
            return {"blockHash": text(number), "logs": [entry(number, 0, 0)]}
        first, last = int(params[0]["fromBlock"], 16), int(params[0]["toBlock"], 16)
        return [entry(n, 0, 0) for n in range(first, min(last, head) + 1)]


@pytest.mark.parametrize("lag", [1, 5, 50])
async def test_logs_of_a_node_that_lags_are_never_taken_for_all(lag: int) -> None:
    farm = Farm(20)
    reader = LogReader(Reader(farm))
    farm.heads = [20 - lag]  # who answers eth_getLogs; whoever is asked next whether the block stands is at the head
    with pytest.raises(Transient):
        await reader.logs([CONTRACT], [TOPIC], 11, 20, bytes.fromhex(text(20)[2:]))
    farm.heads = []
    assert [log.block_number for log in await reader.logs([CONTRACT], [TOPIC], 11, 20, bytes.fromhex(text(20)[2:]))] == [
        *range(11, 21)
    ]


async def test_an_answer_for_another_block_is_the_nodes_fault() -> None:
    class Newest(Farm):
        def _answer(self, method: str, params: Sequence[Any], head: int) -> Any:
            return header(head)

    with pytest.raises(Transient):
        await Reader(Newest(20)).block(7)
    found = await Reader(Newest(20)).block(20)
    assert found is not None
    assert found.number == 20


class Crammed:
    """One block, number 1, of transactions with logs of so many bytes; an answer may have `most` bytes."""

    def __init__(self, sizes: Sequence[Sequence[int]], most: int) -> None:
        self.most = most
        self.logs: list[list[dict[str, Any]]] = []
        index = 0
        for tx, logs in enumerate(sizes):
            self.logs.append([])
            for size in logs:
                self.logs[-1].append({**entry(1, tx, index), "data": "0x" + "00" * size})
                index += 1

    async def call(self, method: str, params: Sequence[Any] = ()) -> Any:
        return (await self.batch([(method, params)]))[0]

    async def batch(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        answers = [self._answer(method, params[0]) for method, params in calls]
        if len(str(answers)) > self.most:
            raise Unreachable("answer too long", too_large=True)
        return answers

    def _answer(self, method: str, asked: Any) -> Any:
        if method == "eth_getTransactionReceipt":
            return {"blockHash": text(1), "logs": self.logs[int(asked, 16) - 1000]}
        if method == "eth_getBlockByHash":
            return {"transactions": [text(1000 + tx) for tx in range(len(self.logs))]}
        return [log for logs in self.logs for log in logs]


async def read(node: Crammed) -> list[tuple[int, int]]:
    logs = await LogReader(Reader(node)).logs([CONTRACT], [TOPIC], 1, 1, bytes.fromhex(text(1)[2:]))
    return [(int.from_bytes(log.tx_hash, "big") - 1000, log.position) for log in logs]


async def test_a_block_with_more_than_an_answer_may_hold_is_read_a_transaction_at_a_time() -> None:
    assert await read(Crammed([[1_000, 1_000]] * 40, most=10_000)) == [(tx, i) for tx in range(40) for i in (0, 1)]


async def test_receipts_that_are_too_much_together_are_read_in_parts() -> None:
    # The logs fit one answer, but not the receipts of their transactions, which hold others beside.
    class Filtered(Crammed):
        def _answer(self, method: str, asked: Any) -> Any:
            if method == "eth_getLogs":
                return [logs[0] for logs in self.logs] if "topics" in asked else [log for logs in self.logs for log in logs]
            return super()._answer(method, asked)

    assert await read(Filtered([[1, 3_000]] * 12, most=10_000)) == [(tx, 0) for tx in range(12)]


async def test_a_transaction_too_long_for_any_answer_keeps_no_others_logs_waiting() -> None:
    assert await read(Crammed([[10], [50_000], [10, 10]], most=10_000)) == [(0, 0), (2, 0), (2, 1)]
