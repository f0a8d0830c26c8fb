"""Logs of any contract by JSON-RPC, each with its position within its receipt, in a constant number of calls a block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import structlog

from consensus.errors import Transient
from node.infra.chain import Log, Receipt
from node.infra.evm_reads import Reader, hex_of
from node.infra.rpc import RpcError, Unreachable

log = structlog.get_logger(__name__)

MOST_NAMED = 500
"""Addresses, or topics, of one query: some nodes refuse more. Beyond it all are asked for and sorted out here."""
_MOST = 50_000  # logs of one answer, at a kilobyte each
_FEW = 4  # transactions of a block whose receipts are read one by one: less to carry than all logs of a full block
_AT_ONCE = 8  # blocks of one batch: full ones answer with a megabyte each
_RECEIPTS = 100  # of one batch; half as many when they are too much for one answer


class LogReader:
    """Logs and receipts as values; malformed answers are `Transient` (`RPC_ERROR`): the node's fault."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._wanted: tuple[Sequence[bytes], Sequence[bytes], frozenset[str], frozenset[str]] = ((), (), frozenset(), frozenset())

    async def logs(
        self, contracts: Sequence[bytes], topics: Sequence[bytes], from_block: int, to_block: int, tip: bytes | None
    ) -> list[Log]:
        """As `Chain.logs`. A transaction whose receipt is longer than any answer may be is passed over, with a warning: nobody
        could check its logs, and whoever fills blocks with such must not keep all others' events waiting."""
        found = await self.raw(contracts, topics, from_block, to_block, tip, most=_MOST)
        positions = await self._positions(found)
        try:
            placed = ((each, positions[each["transactionHash"]]) for each in found)
            return [_log_of(each, each["_index"] - begin) for each, begin in placed if begin is not None]
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
            answer = await self._reader.logs(named, first, from_block, to_block, most=most, held=tip is not None)
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
        try:
            answer = await self._reader.call("eth_getLogs", [_block_query(hex_of(tip), addresses, topics)])
        except Unreachable as error:
            if not error.too_large:
                raise
            return await self._by_transaction(tip)
        if not isinstance(answer, list) or not all(isinstance(log, dict) for log in answer):
            raise Transient("RPC_ERROR", "eth_getLogs: no list of logs")
        return answer

    async def _stands(self, number: int, tip: bytes) -> None:
        block = await self._reader.block(number)
        if block is None or block.hash != tip:
            raise Transient("RPC_ERROR", f"block {number} is another one by now")

    async def _by_transaction(self, tip: bytes) -> list[dict[str, Any]]:
        """All logs of a block, those of a transaction at a time: together they are too much for one answer."""
        block = await self._reader.call("eth_getBlockByHash", [hex_of(tip), False])
        try:
            receipts = await self._receipts(list(block["transactions"]))
            if any(receipt is None or receipt["blockHash"] != hex_of(tip) for receipt in receipts.values()):
                raise Transient("RPC_ERROR", "the block is not on the chain any more")
            return [each for receipt in receipts.values() for each in receipt["logs"]]
        except (KeyError, TypeError):
            raise Transient("RPC_ERROR", "a malformed block or receipt") from None

    async def _receipts(self, transactions: Sequence[str]) -> dict[str, Any]:
        """By transaction, in the order given; without those that are too long by themselves."""
        found: dict[str, Any] = {}
        for begin in range(0, len(transactions), _RECEIPTS):
            found |= await self._receipts_in_parts(transactions[begin : begin + _RECEIPTS])
        return found

    async def _receipts_in_parts(self, transactions: Sequence[str]) -> dict[str, Any]:
        try:
            answers = await self._reader.batch([("eth_getTransactionReceipt", [tx]) for tx in transactions])
        except Unreachable as error:
            if not error.too_large:
                raise
            if len(transactions) == 1:
                log.warning("logs_passed_over", transaction=transactions[0], why="its receipt is too long for any answer")
                return {}
            half = len(transactions) // 2
            return await self._receipts_in_parts(transactions[:half]) | await self._receipts_in_parts(transactions[half:])
        return dict(zip(transactions, answers, strict=True))

    async def _positions(self, logs: Sequence[dict[str, Any]]) -> dict[str, int | None]:
        """Block-wide index of the first log of each transaction; None where it cannot be read."""
        blocks: dict[str, set[str]] = {}
        try:
            for each in logs:
                blocks.setdefault(each["blockHash"], set()).add(each["transactionHash"])
        except (KeyError, TypeError):
            raise Transient("RPC_ERROR", "a malformed log") from None
        first: dict[str, int | None] = {}
        pending = list(blocks.items())
        for begin in range(0, len(pending), _AT_ONCE):
            await self._begin(pending[begin : begin + _AT_ONCE], first)
        missing = next((each for each in logs if each["transactionHash"] not in first), None)
        if missing is not None:
            raise Transient("RPC_ERROR", f"the block of transaction {missing['transactionHash']!s:.66} is gone")
        return first

    async def _begin(self, blocks: Sequence[tuple[str, set[str]]], first: dict[str, int | None]) -> None:
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
        receipts = await self._receipts([tx for _, tx in single]) if single else {}
        try:
            for block, tx in single:
                if tx not in receipts:
                    first[tx] = None
                    continue
                if receipts[tx] is None or receipts[tx]["blockHash"] != block:
                    raise Transient("RPC_ERROR", "a transaction is in another block by now")
                answers.append(receipts[tx]["logs"])
            for answer in answers:
                for each in answer:
                    index, known = int(each["logIndex"], 16), first.get(each["transactionHash"])
                    first[each["transactionHash"]] = index if known is None else min(known, index)
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
