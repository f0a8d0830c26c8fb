"""Logs of any contract by JSON-RPC, each with its position within its receipt, in a constant number of calls a block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from consensus.errors import Transient
from node.infra.chain import Log, Receipt
from node.infra.evm_reads import Reader, hex_of
from node.infra.rpc import RpcError, Unreachable

MOST_NAMED = 500
"""Addresses, or topics, of one query: some nodes refuse more. Beyond it all are asked for and sorted out here."""
_MOST = 50_000  # logs of one answer, at a kilobyte each
_FEW = 4  # transactions of a block whose receipts are read one by one: less to carry than all logs of a full block
_AT_ONCE = 8  # blocks of one batch: full ones answer with a megabyte each


class LogReader:
    """Logs and receipts as values; malformed answers are `Transient` (`RPC_ERROR`): the node's fault."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._wanted: tuple[Sequence[bytes], Sequence[bytes], frozenset[str], frozenset[str]] = ((), (), frozenset(), frozenset())

    async def logs(
        self, contracts: Sequence[bytes], topics: Sequence[bytes], from_block: int, to_block: int, tip: bytes | None
    ) -> list[Log]:
        """As `Chain.logs`."""
        found = await self.raw(contracts, topics, from_block, to_block, tip, most=_MOST)
        positions = await self._positions(found)
        try:
            return [_log_of(log, log["_index"] - positions[log["transactionHash"]]) for log in found]
        except (KeyError, TypeError, ValueError):
            raise Transient("RPC_ERROR", "a malformed log") from None

    async def raw(
        self,
        contracts: Sequence[bytes],
        topics: Sequence[bytes],
        from_block: int,
        to_block: int,
        tip: bytes | None,
        *,
        most: int | None = None,
    ) -> list[dict[str, Any]]:
        """The same as the node gives them, `_index` being the block-wide index as a number."""
        named, first = _filter_of(contracts), _filter_of(topics)
        if tip is not None and from_block == to_block:
            answer = await self._of_block(tip, named, first)
        else:
            answer = await self._reader.logs(named, first, from_block, to_block, most=most)
            if tip is not None:  # after the logs: what was read then stood on this branch
                await self._stands(to_block, tip)
        addresses, wanted = self._as_text(contracts, topics)
        found = []
        try:
            for log in answer:
                number = int(log["blockNumber"], 16)
                if log.get("removed") or not from_block <= number <= to_block:
                    continue
                if addresses and log["address"].lower() not in addresses:
                    continue
                if wanted and (not log["topics"] or log["topics"][0].lower() not in wanted):
                    continue
                found.append({**log, "_index": int(log["logIndex"], 16)})
        except (AttributeError, KeyError, TypeError, ValueError):
            raise Transient("RPC_ERROR", "a malformed log") from None
        return found

    def _as_text(self, contracts: Sequence[bytes], topics: Sequence[bytes]) -> tuple[frozenset[str], frozenset[str]]:
        """Both as the node writes them. Who asks for thousands block by block asks with the same objects."""
        if self._wanted[0] is contracts and self._wanted[1] is topics:
            return self._wanted[2], self._wanted[3]
        addresses, first = frozenset(map(hex_of, contracts)), frozenset(map(hex_of, topics))
        if isinstance(contracts, tuple) and isinstance(topics, tuple):
            self._wanted = (contracts, topics, addresses, first)
        return addresses, first

    async def receipt(self, tx_hash: bytes) -> Receipt | None:
        """As `Chain.receipt`."""
        answer = await self._reader.call("eth_getTransactionReceipt", [hex_of(tx_hash)])
        try:
            if answer is None or answer["blockNumber"] is None:
                return None
            logs = tuple(_log_of(log, position) for position, log in enumerate(answer["logs"]))
            return Receipt(
                tx_hash=tx_hash,
                block_number=int(answer["blockNumber"], 16),
                block_hash=bytes.fromhex(answer["blockHash"][2:]),
                success=int(answer["status"], 16) == 1,
                logs=logs,
            )
        except (KeyError, TypeError, ValueError):
            raise Transient("RPC_ERROR", "a malformed receipt") from None

    async def _of_block(self, tip: bytes, addresses: Sequence[bytes], topics: Sequence[bytes]) -> list[dict[str, Any]]:
        answer = await self._reader.call("eth_getLogs", [_block_query(hex_of(tip), addresses, topics)])
        if not isinstance(answer, list) or not all(isinstance(log, dict) for log in answer):
            raise Transient("RPC_ERROR", "eth_getLogs: no list of logs")
        return answer

    async def _stands(self, number: int, tip: bytes) -> None:
        block = await self._reader.block(number)
        if block is None or block.hash != tip:
            raise Transient("RPC_ERROR", f"block {number} is another one by now")

    async def _positions(self, logs: Sequence[dict[str, Any]]) -> dict[str, int]:
        """Block-wide index of the first log of each transaction."""
        blocks: dict[str, set[str]] = {}
        try:
            for log in logs:
                blocks.setdefault(log["blockHash"], set()).add(log["transactionHash"])
        except (KeyError, TypeError):
            raise Transient("RPC_ERROR", "a malformed log") from None
        first: dict[str, int] = {}
        pending = list(blocks.items())
        for begin in range(0, len(pending), _AT_ONCE):
            await self._begin(pending[begin : begin + _AT_ONCE], first)
        missing = next((log for log in logs if log["transactionHash"] not in first), None)
        if missing is not None:
            raise Transient("RPC_ERROR", f"the block of transaction {missing['transactionHash']!s:.66} is gone")
        return first

    async def _begin(self, blocks: Sequence[tuple[str, set[str]]], first: dict[str, int]) -> None:
        """Adds the first index of every transaction of these blocks. Raises `Transient` when one is not there any more."""
        whole = [block for block, transactions in blocks if len(transactions) > _FEW]
        single = [(block, tx) for block, transactions in blocks if len(transactions) <= _FEW for tx in transactions]
        answers: list[Any] = []
        try:
            if whole:
                answers = await self._reader.rpc.batch([("eth_getLogs", [_block_query(block, (), ())]) for block in whole])
        except (RpcError, Unreachable) as error:
            if isinstance(error, Unreachable) and not error.too_large:
                raise
            # Too much for this node at once.
            single += [(block, tx) for block, transactions in blocks if block in whole for tx in transactions]
        receipts = await self._reader.batch([("eth_getTransactionReceipt", [tx]) for _, tx in single]) if single else []
        try:
            for (block, _), receipt in zip(single, receipts, strict=True):
                if receipt is None or receipt["blockHash"] != block:
                    raise Transient("RPC_ERROR", "a transaction is in another block by now")
                answers.append(receipt["logs"])
            for answer in answers:
                for log in answer:
                    index = int(log["logIndex"], 16)
                    first[log["transactionHash"]] = min(first.get(log["transactionHash"], index), index)
        except (KeyError, TypeError, ValueError):
            raise Transient("RPC_ERROR", "a malformed log") from None


def _filter_of(named: Sequence[bytes]) -> Sequence[bytes]:
    return named if len(named) <= MOST_NAMED else ()


def _block_query(block: str, addresses: Sequence[bytes], topics: Sequence[bytes]) -> dict[str, Any]:
    query: dict[str, Any] = {"blockHash": block}
    if addresses:
        query["address"] = [hex_of(a) for a in addresses]
    if topics:
        query["topics"] = [[hex_of(t) for t in topics]]
    return query


def _log_of(log: dict[str, Any], position: int) -> Log:
    """Raises KeyError, TypeError or ValueError for what is no log."""
    topics = tuple(bytes.fromhex(topic[2:]) for topic in log["topics"])
    address, data = bytes.fromhex(log["address"][2:]), bytes.fromhex(log["data"][2:])
    block_hash, tx_hash = bytes.fromhex(log["blockHash"][2:]), bytes.fromhex(log["transactionHash"][2:])
    if len(address) != 20 or len(block_hash) != 32 or len(tx_hash) != 32 or position < 0 or any(len(t) != 32 for t in topics):
        raise ValueError("no log")
    return Log(int(log["blockNumber"], 16), block_hash, tx_hash, position, address, topics, data)
