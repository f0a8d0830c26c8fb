"""The chain as keepers and coordinator see it: reads, followed events, and transactions that are sent once.

Adapters: `evm` (an EVM by JSON-RPC) and `chain_memory` (the same contracts' rules in Python, for simulations).
Addresses and hashes are bytes, amounts wei, times UTC seconds of the chain's own clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from consensus import codec
from consensus.codec import Domain
from consensus.committee import Epoch
from consensus.messages import Authorisation, Verdict


@dataclass(frozen=True, slots=True)
class Head:
    """A block: number, hash, timestamp in UTC seconds, and its parent's hash, empty where it is not known."""

    number: int
    hash: bytes
    timestamp: int
    parent: bytes = b""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the JobRegistry holds it. `interval` is 0 where the contract knows none; `recurring` is true for intervals."""

    id: int
    owner: bytes
    definition: int
    created_at: int
    time_frame: int
    target: bytes
    interval: int
    recurring: bool
    active: bool


@dataclass(frozen=True, slots=True)
class Keeper:
    """An operator as the KeeperRegistry holds it now; `key` is its BLS key, 48 bytes. The epoch says whether it is drawn."""

    id: int
    address: bytes
    key: bytes
    peer_id: str
    rewards: bytes
    active: bool


@dataclass(frozen=True, slots=True)
class Policy:
    """What a job's owner pinned by `setJobPolicy`; a zero leaves `spec_hash`, `max_fee` (wei) or `gas_limit` open."""

    spec_hash: bytes
    max_fee: int
    gas_limit: int
    level: int

    def refusal(self, a: Authorisation) -> str:
        """Why the hub refuses an authorisation of the job; empty when it does not."""
        pinned = codec.pin_hash(a.target, a.selector, a.call_hash, a.spec)
        reasons = {
            "PolicySpec": self.spec_hash not in (bytes(32), pinned),
            "PolicyFee": 0 < self.max_fee < a.max_fee,
            "PolicyGas": self.gas_limit not in (0, a.gas_limit),
            "PolicyLevel": self.level != a.level,
        }
        return next((reason for reason, holds in reasons.items() if holds), "")


class ExecutionStatus(IntEnum):
    """The hub's state of a task."""

    NONE = 0
    PENDING = 1
    CERTIFIED = 2
    REJECTED = 3
    EXPIRED = 4
    NOT_EXECUTED = 5
    """A run without a transaction, charged: of its record only performer, block and time are set; its event names the rest."""


@dataclass(frozen=True, slots=True)
class ExecutionRecord:
    """What the hub recorded of one task. `number` counts tasks from 1; `digest` is what attesters vote on.

    Of `fee`, once certified, `validation_share` wei go to the certificate's submitter, `attester_share` to each attester, and
    the rest to the performer.
    """

    task_id: int
    job_id: int
    number: int
    performer: bytes
    performer_id: int
    block_number: int
    timestamp: int
    level: int
    status: ExecutionStatus
    success: bool
    fee: int
    digest: bytes
    validation_share: int = 0
    attester_share: int = 0


@dataclass(frozen=True, slots=True)
class Transaction:
    """A transaction. `block_number` is None while it waits; `success` once it is mined and did not revert."""

    hash: bytes
    sender: bytes
    to: bytes | None
    input: bytes
    block_number: int | None
    success: bool = True


@dataclass(frozen=True, slots=True)
class Mined:
    """The receipt of one of our own transactions. `reason` is the revert's, when it failed and one is known."""

    tx_hash: bytes
    block_number: int
    success: bool
    gas_used: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Certificate:
    """Everything `submitTaskValidation` takes, for the tree of one: signers in draw order, the aggregate of 96 bytes."""

    task_id: int
    execution: bytes
    verdict: Verdict
    block_number: int
    epoch: int
    round: int
    signers: tuple[bytes, ...]
    signature: bytes


@dataclass(frozen=True, slots=True)
class RunCharge:
    """One script run that asked for no transaction, to be charged to the job's owner in favour of the operator that ran it.

    `fee` in wei, at least 1 and at most `MAX_RUN_FEE`.
    """

    job_id: int
    trigger_id: int
    performer_id: int
    fee: int

    @property
    def task_id(self) -> int:
        return codec.task_id(self.job_id, self.trigger_id)


MAX_RUN_FEE = 10**15
"""Wei that the hub charges for one run at most (Hub.vy)."""
MAX_CHARGES = 64
"""Runs in one call of `chargeRuns`."""


@dataclass(frozen=True, slots=True)
class EventPlace:
    """Where on the chain an event stands."""

    block_number: int
    block_hash: bytes
    tx_hash: bytes
    log_index: int


@dataclass(frozen=True, slots=True)
class TaskExecuted:
    place: EventPlace
    task_id: int
    job_id: int
    trigger_id: int
    attempt: int
    number: int
    performer: bytes
    performer_id: int
    success: bool
    fee: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class TaskValidated:
    place: EventPlace
    task_id: int
    number: int
    performer_id: int
    submitter_id: int
    attester_ids: tuple[int, ...]
    root: bytes
    accepted: bool
    round: int


@dataclass(frozen=True, slots=True)
class TaskExpired:
    place: EventPlace
    task_id: int
    number: int


@dataclass(frozen=True, slots=True)
class RunCharged:
    """The owner paid `fee` wei for a run without a transaction; the task can never execute."""

    place: EventPlace
    task_id: int
    job_id: int
    performer_id: int
    fee: int


@dataclass(frozen=True, slots=True)
class RunSkipped:
    """A charge that took nothing, and why: the hub's reason string. `AlreadyCharged` says that an earlier one did."""

    place: EventPlace
    task_id: int
    job_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class JobDeleted:
    place: EventPlace
    job_id: int


@dataclass(frozen=True, slots=True)
class RegistryChanged:
    """Keepers, epoch or dispatchers changed: re-read what you hold of them."""

    place: EventPlace


ChainEvent = TaskExecuted | TaskValidated | TaskExpired | RunCharged | RunSkipped | JobDeleted | RegistryChanged


@dataclass(frozen=True, slots=True)
class Log:
    """A log of any contract. `position` counts within its transaction's receipt: unlike the block-wide index it survives a
    reorganisation."""

    block_number: int
    block_hash: bytes
    tx_hash: bytes
    position: int
    address: bytes
    topics: tuple[bytes, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of any mined transaction; `logs` in their order."""

    tx_hash: bytes
    block_number: int
    block_hash: bytes
    success: bool
    logs: tuple[Log, ...]


class Prepared(Protocol):
    """A transaction priced and built ahead of its time; opaque to everybody but the wallet that made it."""

    @property
    def key(self) -> str: ...


class Wallet(Protocol):
    """One account's way to send transactions; each `key` reaches the chain at most once, restarts included.

    `send` returns the transaction hash when a node has taken it; it raises `Transient` when none could be reached and
    `Failed` with the hub's reason (code HUB_REFUSED, detail the reason string) when it is bound to revert.
    """

    @property
    def address(self) -> bytes: ...

    async def prepare_execution(
        self, authorisation: Authorisation, signature: bytes, target: bytes, call: bytes, resource_fee: int
    ) -> Prepared:
        """`Hub.execute`. `target` is the authorisation's; the script's where that is zero. `resource_fee` in wei."""
        ...

    async def prepare_certificate(self, certificate: Certificate) -> Prepared: ...

    async def prepare_expiry(self, task_id: int) -> Prepared: ...

    async def prepare_run_charges(self, charges: Sequence[RunCharge], *, again: int = 0) -> Prepared:
        """`Hub.chargeRuns`, a dispatcher's: at most `MAX_CHARGES`. Every charge ends in a `RunCharged` or a `RunSkipped`.

        The key is that of the charges and `again`: the same batch prepared again is the same transaction, and one that reverted,
        or was skipped and may be charged later, has to be divided otherwise or be another time's. Raises ValueError for a batch
        or a fee that the hub refuses as a whole.
        """
        ...

    async def prepare_epoch(self) -> Prepared:
        """`KeeperRegistry.advanceEpoch`: seats changes that wait for the next epoch."""
        ...

    async def send(self, prepared: Prepared) -> bytes: ...

    async def sent(self, key: str) -> bytes | None:
        """Hash of the transaction sent under `key`, in this run or a former one; the newest, where it was replaced.

        Keys are `execute:<task_id>:<attempt>`, `certify:<task_id>:<round>`, `expire:<task_id>`, and
        `charge:<hash of the call>[:<again>]`.
        """
        ...

    async def mined(self, tx_hash: bytes) -> Mined:
        """Waits for the receipt, and for a revert's to be `confirmations` deep. The caller sets the deadline.

        A transaction that was stuck may have been replaced, by itself at a higher price: the hash in the answer is the one that
        was mined, whichever of them is asked for. Raises `Failed` (`NONCE_TAKEN`) when none of them can be mined any more.
        """
        ...


class Chain(Protocol):
    """Reads of one chain. Every method raises `Transient` when no RPC answers."""

    @property
    def domain(self) -> Domain: ...

    @property
    def confirmations(self) -> int:
        """Blocks on top of an execution's before it is attested or recorded; 0 acts on the head."""
        ...

    @property
    def round_seconds(self) -> int:
        """Seconds a committee has before its seats are drawn again (the AttestationCenter's ROUND_SECONDS)."""
        ...

    async def head(self) -> Head: ...

    async def block(self, number: int) -> Head | None: ...

    async def job(self, job_id: int) -> Job | None: ...

    async def policy(self, job_id: int) -> Policy | None:
        """What the job's owner pinned; None for nothing."""
        ...

    async def balance(self, owner: bytes) -> int:
        """The deposit that pays for an owner's jobs, wei."""
        ...

    async def quote(self, level: int, gas_limit: int) -> int:
        """Upper bound in wei of the hub's charge for one execution of `gas_limit` inner gas at today's gas price, with margin."""
        ...

    async def dispatchers(self) -> frozenset[bytes]: ...

    async def keepers(self) -> tuple[Keeper, ...]: ...

    async def epoch_at(self, block_number: int) -> Epoch | None:
        """The epoch that covers a block; None before the first."""
        ...

    async def execution(self, task_id: int) -> ExecutionRecord | None: ...

    async def transaction(self, tx_hash: bytes) -> Transaction | None: ...

    async def events(self, from_block: int, to_block: int) -> Sequence[ChainEvent]:
        """Our contracts' events in a range of blocks, in chain order."""
        ...

    async def estimate_call(self, target: bytes, call: bytes) -> int:
        """Gas that `target` needs for `call` when the hub calls it. Raises `Failed` (`CALL_REVERTS` and the reason)."""
        ...

    async def logs(
        self,
        contracts: Sequence[bytes],
        topics: Sequence[bytes],
        from_block: int,
        to_block: int,
        *,
        tip: bytes | None = None,
    ) -> Sequence[Log]:
        """Logs of these contracts (of any, when empty) whose first topic is one of these (any, when empty), in chain order.

        `tip` is the hash of `to_block` on the branch that is meant: `Transient` when the node does not hold it (any more).
        """
        ...

    async def receipt(self, tx_hash: bytes) -> Receipt | None:
        """None while the transaction is not mined, or not known."""
        ...

    async def call(self, target: bytes, data: bytes, block: int | None = None) -> bytes:
        """What a view returns, at the head or at a block. Raises `Failed` (`CALL_REVERTS`)."""
        ...

    async def native_balance(self, account: bytes, block: int | None = None) -> int:
        """Wei of the chain's own coin."""
        ...

    def heads(self) -> AbstractAsyncContextManager[Heads]:
        """Wakes at each new block: told by WebSocket where the chain has one configured, else by looking every poll interval."""
        ...

    def follow(self, from_block: int) -> AbstractAsyncContextManager[EventFeed]:
        """Events from `from_block` on, confirmed by `confirmations`, as blocks come. Starts behind: back-fills first."""
        ...


class Heads(Protocol):
    """The chain's pulse. It may beat without a new block, and one beat may stand for several: read the head."""

    async def wait(self) -> None:
        """Returns when there may be a new head since the last return (since `heads()`, the first time); raises nothing."""
        ...


class EventFeed(Protocol):
    """Confirmed events as batches, one for each step of the head; a batch is empty when only the head moved."""

    async def next(self) -> tuple[Head, Sequence[ChainEvent]]:
        """Waits for the confirmed head to move; returns it with all events up to it since the last call."""
        ...

    @property
    def rewound(self) -> int | None:
        """The first block that the last `next` delivered anew, when a reorganisation had taken back what was delivered before."""
        ...
