"""Receipts of our own transactions as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from consensus.errors import Transient


@dataclass(frozen=True, slots=True)
class Log:
    """An event: 20-byte address, 32-byte topics, data, and its index in the block."""

    address: bytes
    topics: tuple[bytes, ...]
    data: bytes
    log_index: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """A mined transaction. `status` is false when it reverted; prices in wei."""

    tx_hash: bytes
    block_number: int
    block_hash: bytes
    status: bool
    gas_used: int
    effective_gas_price: int
    logs: tuple[Log, ...]


def receipt_of(found: Any) -> Receipt:
    """The value of a node's answer; raises `Transient` (`RPC_ERROR`) for a malformed one."""

    def data(value: Any) -> bytes:
        return bytes.fromhex(value.removeprefix("0x"))

    try:
        return Receipt(
            tx_hash=data(found["transactionHash"]),
            block_number=int(found["blockNumber"], 16),
            block_hash=data(found["blockHash"]),
            status=int(found["status"], 16) == 1,
            gas_used=int(found["gasUsed"], 16),
            effective_gas_price=int(found.get("effectiveGasPrice") or "0x0", 16),
            logs=tuple(
                Log(data(each["address"]), tuple(map(data, each["topics"])), data(each["data"]), int(each["logIndex"], 16))
                for each in found["logs"]
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Transient("RPC_ERROR", "a malformed receipt") from None
