"""Who checks an execution: the draw of a committee from a block hash, its ranks, and the quorums.

The same integers as AttestationCenter.vy: everybody, contract included, computes the same seats from the chain alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from consensus.codec import keccak, word, words

MAX_SEATS = 192
"""Seats of one epoch: six 32-byte words of the on-chain seat table."""
MAX_OPERATORS = 150
"""Operators of one epoch: 152 bytes each in a contract's 24,576 bytes of code (EIP-170)."""
MAX_SEATS_PER_OPERATOR = 8
MAX_ROUNDS = 3
SIZE_BY_LEVEL = {0: 5, 1: 13, 2: 7, 3: 5, 4: 3}
"""Committee size N by a job's security level; 0 is "not stated"."""


@dataclass(frozen=True, slots=True)
class Operator:
    """One keeper as the registry knows it in an epoch: id, address (20 bytes) and BLS key (48 bytes, compressed)."""

    id: int
    address: bytes
    key: bytes


@dataclass(frozen=True)
class Epoch:
    """The keepers who may be drawn for executions in blocks `from_block` .. `until_block` (None: still current).

    `seats[i]` is the position in `operators` of whoever holds seat i.
    """

    number: int
    from_block: int
    until_block: int | None
    operators: tuple[Operator, ...]
    seats: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.operators) > MAX_OPERATORS or len(self.seats) > MAX_SEATS:
            raise ValueError("an epoch has at most 150 operators and 192 seats")
        if any(not 0 <= s < len(self.operators) for s in self.seats):
            raise ValueError("a seat names no operator of the epoch")

    @cached_property
    def by_address(self) -> dict[bytes, int]:
        """Position in `operators` by address."""
        return {o.address: i for i, o in enumerate(self.operators)}

    def covers(self, block_number: int) -> bool:
        return self.from_block <= block_number and (self.until_block is None or block_number <= self.until_block)


@dataclass(frozen=True, slots=True)
class Committee:
    """The drawn members of one task in one round, in draw order, and their quorums.

    The draw order is also the aggregators' rank: member k steps in k rank intervals after the block.
    """

    members: tuple[Operator, ...]

    @property
    def yes_quorum(self) -> int:
        """ceil(2N/3): enough to certify."""
        return yes_quorum(len(self.members))

    @property
    def no_quorum(self) -> int:
        """floor(N/3) + 1: enough to reject."""
        return no_quorum(len(self.members))

    def rank(self, address: bytes) -> int | None:
        """Position of `address` in draw order; None when it is not seated."""
        return next((i for i, m in enumerate(self.members) if m.address == address), None)


def yes_quorum(size: int) -> int:
    return -(-2 * size // 3)


def no_quorum(size: int) -> int:
    return size // 3 + 1


def size(level: int, operators: int) -> int:
    """N of a job's security level in a network of so many operators: min(N, operators - 1)."""
    return min(SIZE_BY_LEVEL[level], operators - 1)


def seed(block_hash: bytes, round_: int) -> bytes:
    """Round 0 is drawn from the hash of the block that executed; each further round from keccak(hash, round)."""
    if not 0 <= round_ < MAX_ROUNDS:
        raise ValueError(f"a task has {MAX_ROUNDS} rounds")
    return block_hash if round_ == 0 else keccak(block_hash + word(round_))


def draw(seed_: bytes, seats: Sequence[int], count: int) -> list[int]:
    """Positions of the first `count` distinct operators drawn, by Fisher-Yates over the seat table.

    Fewer come back only when the table has fewer distinct operators.
    """
    table = list(seats)
    drawn: list[int] = []
    for i in range(len(table)):
        if len(drawn) == count:
            break
        j = i + int.from_bytes(keccak(words(seed_, i)), "big") % (len(table) - i)
        table[i], table[j] = table[j], table[i]
        if table[i] not in drawn:
            drawn.append(table[i])
    return drawn


def of_task(epoch: Epoch, block_hash: bytes, round_: int, level: int, performer: bytes) -> Committee:
    """The committee of a task that `performer` executed in a block of `epoch`.

    N + 1 are drawn; the performer's own place passes to the last of them. Empty when nobody else is registered.
    """
    n = size(level, len(epoch.operators))
    if n < 1:
        return Committee(())
    drawn = [epoch.operators[p] for p in draw(seed(block_hash, round_), epoch.seats, n + 1)]
    if any(o.address == performer for o in drawn[:n]):
        return Committee(tuple(o for o in drawn if o.address != performer))
    return Committee(tuple(drawn[:n]))
