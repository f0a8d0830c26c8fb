# pragma version 0.4.3
# pragma evm-version prague
"""
@title The head word of an execution record, as Hub writes it and AttestationCenter reads it, and the sizes of committees
@dev From the low end: status 3 | success 1 | level 3 | performer id 27 | task number 32 | block 36 | timestamp 34 | gas price 48 | fee 72
"""

PENDING: constant(uint256) = 1
CERTIFIED: constant(uint256) = 2
REJECTED: constant(uint256) = 3
EXPIRED: constant(uint256) = 4

# N by security level, a byte each: 0 -> 5, 1 -> 13, 2 -> 7, 3 -> 5, 4 -> 3
SIZES: constant(uint256) = (5) | (13 << 8) | (7 << 16) | (5 << 24) | (3 << 32)


@internal
@pure
def status(head: uint256) -> uint256:
    return head & 7


@internal
@pure
def success(head: uint256) -> bool:
    return head & 8 != 0


@internal
@pure
def level(head: uint256) -> uint256:
    return (head >> 4) & 7


@internal
@pure
def performer_id(head: uint256) -> uint256:
    return (head >> 7) & (2**27 - 1)


@internal
@pure
def number(head: uint256) -> uint256:
    return (head >> 34) & (2**32 - 1)


@internal
@pure
def block_number(head: uint256) -> uint256:
    return (head >> 66) & (2**36 - 1)


@internal
@pure
def timestamp(head: uint256) -> uint256:
    return (head >> 102) & (2**34 - 1)


@internal
@pure
def price(head: uint256) -> uint256:
    return (head >> 136) & (2**48 - 1)


@internal
@pure
def fee(head: uint256) -> uint256:
    return head >> 184


@internal
@pure
def size_of(level_: uint256) -> uint256:
    """
    @notice N, the committee of a security level 0..4.
    """
    return (SIZES >> unsafe_mul(8, level_)) & 255
