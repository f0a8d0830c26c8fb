"""What nodes say when they take no transaction: geth, erigon, nethermind, besu, reth, anvil and py-evm in one vocabulary."""

from __future__ import annotations

import re
from enum import Enum

from consensus.errors import Failed
from node.infra.rpc import RpcError


class Says(Enum):
    """There are no codes for any of it, so these are the words, in lower case."""

    KNOWN = ("already known", "known transaction", "alreadyknown", "already imported", "already exists", "already in mempool")
    NONCE_USED = ("nonce too low", "nonce is too low", "oldnonce", "invalid transaction nonce", "nonce has already been used")
    NONCE_AHEAD = ("nonce too high", "nonce gap")
    OCCUPIED = ("replacement transaction underpriced", "replacement not allowed")
    """Another transaction waits with this nonce, and ours does not offer enough to take its place."""
    TOO_CHEAP = ("less than block base fee", "max fee per gas", "fee cap less", "feetoolow", "transaction underpriced")
    FUNDS = ("insufficient funds", "insufficientfunds", "sender doesn't have enough", "upfront cost exceeds")


_REASON = re.compile(r"[A-Z][A-Za-z0-9]{2,63}")  # our contracts' reasons, as against a node's prose


def contract_reason(error: RpcError) -> str:
    """Why one of our contracts reverts; empty for anything else."""
    return error.reason if error.reason and _REASON.fullmatch(error.reason) else ""


def is_contract_reason(text: str) -> bool:
    return _REASON.fullmatch(text) is not None


def says(error: RpcError, *sayings: Says) -> bool:
    message = error.message.lower()
    if Says.TOO_CHEAP in sayings and Says.OCCUPIED not in sayings and _spoken(message, Says.OCCUPIED):
        return False  # the words for the one contain the words for the other
    return any(_spoken(message, saying) for saying in sayings)


def _spoken(message: str, saying: Says) -> bool:
    return any(phrase in message for phrase in saying.value)


def refused(error: RpcError) -> Failed:
    """`INSUFFICIENT_FUNDS`, or `TRANSACTION_REFUSED` with the node's reason."""
    if says(error, Says.FUNDS):
        return Failed("INSUFFICIENT_FUNDS", error.message)
    return Failed("TRANSACTION_REFUSED", error.reason or error.message)
