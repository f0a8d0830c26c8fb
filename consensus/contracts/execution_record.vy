# pragma version 0.4.3
# pragma evm-version prague
"""
@title The head word of an execution record, as Hub writes it and AttestationCenter reads it, and the sizes of committees
@dev Read a field as (head >> NAME_AT) & NAME. From the low end: status 3 | success 1 | level 3 | performer id 24 | submitter id 24 | signers 4 | performer paid 1 |
     submitter paid 1 | task number 32 | block 36 | timestamp 34 | gas price 43 | fee 50, in steps of FEE_STEP wei
"""

PENDING: constant(uint256) = 1
CERTIFIED: constant(uint256) = 2
REJECTED: constant(uint256) = 3
EXPIRED: constant(uint256) = 4
NOT_EXECUTED: constant(uint256) = 5   # a run without a transaction, charged: only status, performer, block and timestamp are set

SUCCESS: constant(uint256) = 8
PERFORMER_PAID: constant(uint256) = 1 << 59
SUBMITTER_PAID: constant(uint256) = 1 << 60

LEVEL_AT: constant(uint256) = 4
PERFORMER_AT: constant(uint256) = 7
SUBMITTER_AT: constant(uint256) = 31
SIGNERS_AT: constant(uint256) = 55
NUMBER_AT: constant(uint256) = 61
BLOCK_AT: constant(uint256) = 93
TIMESTAMP_AT: constant(uint256) = 129
PRICE_AT: constant(uint256) = 163
FEE_AT: constant(uint256) = 206

STATUS: constant(uint256) = 2**3 - 1
LEVEL: constant(uint256) = 2**3 - 1
ID: constant(uint256) = 2**24 - 1
SIGNERS: constant(uint256) = 2**4 - 1
NUMBER: constant(uint256) = 2**32 - 1
BLOCK: constant(uint256) = 2**36 - 1
TIMESTAMP: constant(uint256) = 2**34 - 1
PRICE: constant(uint256) = 2**43 - 1

FEE_STEP: constant(uint256) = 10**6
MAX_FEE: constant(uint256) = (2**50 - 1) * 10**6

# N by security level, a byte each: 0 -> 5, 1 -> 13, 2 -> 7, 3 -> 5, 4 -> 3
SIZES: constant(uint256) = 5 | (13 << 8) | (7 << 16) | (5 << 24) | (3 << 32)


@internal
@pure
def size_of(level_: uint256) -> uint256:
    """
    @notice N, the committee of a security level 0..4.
    """
    return (SIZES >> unsafe_mul(8, level_)) & 255
