"""A contract for anvil that leaves the logs its calldata asks for: a count, two topics, and the data."""

from __future__ import annotations

EMITTER_CODE = bytes.fromhex(
    "60603603 8060605f37"  # size = calldatasize - 96; memory[0:size] = calldata[96:]
    "5f35"  # n = calldata[0]
    "5b 8015602157"  # while n:
    "604035 602035 835fa2"  # log2(0, size, calldata[32], calldata[64])
    "60019003 600b56"  # n -= 1
    "5b00"
)


def emit_call(topic: bytes, second: bytes, data: bytes, count: int = 1) -> bytes:
    """Calldata that leaves `count` logs."""
    return count.to_bytes(32, "big") + topic + second + data
