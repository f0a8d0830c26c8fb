"""What the contracts of the in-process chain keep: frozen values in containers that are copied per block, so that a
reorganisation is a return to an older copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from consensus.codec import Domain, keccak, word
from consensus.committee import Epoch
from node.infra.chain import ChainEvent, EventPlace, ExecutionRecord, Job, Keeper, Policy


class Reverted(Exception):
    """A contract refused; the message is its reason string."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A keeper and its stake in seats."""

    keeper: Keeper
    seats: int


@dataclass(frozen=True, slots=True)
class Executed:
    """A record and what is held in escrow for it."""

    record: ExecutionRecord
    owner: bytes
    validation_share: int
    unit: int


@dataclass(frozen=True, slots=True)
class TargetCall:
    """One call that reached a target contract."""

    target: bytes
    data: bytes
    job_id: int
    job_owner: bytes
    performer: bytes
    block_number: int
    timestamp: int
    success: bool


@dataclass(slots=True)
class State:
    """All contracts' storage after some block."""

    jobs: dict[int, Job] = field(default_factory=dict)
    policies: dict[int, Policy] = field(default_factory=dict)
    balances: dict[bytes, int] = field(default_factory=dict)
    credits: dict[bytes, int] = field(default_factory=dict)
    dispatchers: frozenset[bytes] = frozenset()
    keepers: dict[bytes, Registered] = field(default_factory=dict)
    keys_ever: frozenset[bytes] = frozenset()
    seated: tuple[Registered, ...] = ()
    epochs: tuple[Epoch, ...] = ()
    epoch_at: int = 0
    executed: dict[int, Executed] = field(default_factory=dict)
    charged: dict[int, ExecutionRecord] = field(default_factory=dict)
    run_allowances: dict[int, int] = field(default_factory=dict)
    ran: frozenset[int] = frozenset()
    failing: frozenset[bytes] = frozenset()
    calls: list[TargetCall] = field(default_factory=list)
    views: dict[tuple[bytes, bytes], bytes] = field(default_factory=dict)
    native: dict[bytes, int] = field(default_factory=dict)

    def copy(self) -> State:
        return replace(
            self,
            jobs=dict(self.jobs),
            policies=dict(self.policies),
            balances=dict(self.balances),
            credits=dict(self.credits),
            keepers=dict(self.keepers),
            executed=dict(self.executed),
            charged=dict(self.charged),
            run_allowances=dict(self.run_allowances),
            calls=list(self.calls),
            views=dict(self.views),
            native=dict(self.native),
        )

    def epoch_of(self, block_number: int) -> Epoch | None:
        return next((e for e in reversed(self.epochs) if e.covers(block_number)), None)


@dataclass(frozen=True, slots=True)
class Context:
    """The block and message a rule runs in. `place` numbers the transaction's events; `block_hash` looks back."""

    domain: Domain
    job_registry: bytes
    sender: bytes
    number: int
    timestamp: int
    round_seconds: int
    epoch_seconds: int
    place: Callable[[], EventPlace]
    block_hash: Callable[[int], bytes | None]


Rule = Callable[[State, Context], list[ChainEvent]]
"""A transaction's effect on the state; raises `Reverted` before it changes anything."""


def address_from(label: str) -> bytes:
    """A made-up address, the same for the same label."""
    return keccak(label.encode())[12:]


def hash_of_block(number: int, parent: bytes, timestamp: int, branch: int) -> bytes:
    """A made-up block hash, another one on another branch."""
    return keccak(word(number) + parent + word(timestamp) + word(branch))
