"""Our contracts' logs as typed events; logs of other kinds are passed over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from eth_abi.abi import decode as abi_decode
from eth_abi.exceptions import DecodingError

from consensus.codec import Domain, keccak
from consensus.errors import Transient
from node.infra.chain import (
    ChainEvent,
    EventPlace,
    JobDeleted,
    RegistryChanged,
    RunCharged,
    RunSkipped,
    TaskExecuted,
    TaskExpired,
    TaskValidated,
)


@dataclass(frozen=True)
class Event:
    """A contract's event: its name, and the ABI types of its indexed and other fields, in the order of the declaration.

    In our contracts the indexed fields always come first.
    """

    name: str
    indexed: tuple[str, ...]
    plain: tuple[str, ...]

    @cached_property
    def topic(self) -> bytes:
        return keccak(f"{self.name}({','.join(self.indexed + self.plain)})".encode())

    def decode(self, topics: Sequence[bytes], data: bytes) -> tuple[Any, ...]:
        """All fields; addresses as 20 bytes. Raises DecodingError."""
        if len(topics) != len(self.indexed) + 1:
            raise DecodingError(f"{self.name}: {len(topics)} topics")
        values = [*abi_decode(self.indexed, b"".join(topics[1:])), *abi_decode(self.plain, data)]
        kinds = self.indexed + self.plain
        return tuple(bytes.fromhex(v[2:]) if k == "address" else v for k, v in zip(kinds, values, strict=True))


_U, _A, _H, _B = "uint256", "address", "bytes32", "bytes"
TASK_EXECUTED = Event("TaskExecuted", (_U, _U, _U), (_U, _U, _U, _A, _A, _H, "bool", _U, _H))
RUN_CHARGED = Event("RunCharged", (_U, _U, _U), (_U,))
RUN_SKIPPED = Event("RunSkipped", (_U, _U), ("string",))
DISPATCHER_SET = Event("DispatcherSet", (_A,), ("bool",))
TASK_VALIDATED = Event("TaskValidated", (_U, _U, _U), (_U, "uint256[]", _H, "bool", _U))
TASK_EXPIRED = Event("TaskExpired", (_U, _U), ())
JOB_CREATED = Event("JobCreated", (_U, _A), (_H, _U))
JOB_DELETED = Event("JobDeleted", (_U, _A), (_U,))
KEEPER_REGISTERED = Event("KeeperRegistered", (_U, _A), (_B, _B, _A, _U))
KEEPER_EXITED = Event("KeeperExited", (_U, _A), (_U,))
STAKE_ADDED = Event("StakeAdded", (_U,), (_U,))
KEY_ROTATED = Event("KeyRotated", (_U,), (_B, _U))
PEER_ID_SET = Event("PeerIdSet", (_U,), (_B,))
REWARDS_SET = Event("RewardsSet", (_U,), (_A,))
EPOCH_ADVANCED = Event("EpochAdvanced", (_U,), (_A, _U, _U, _U))

EVENTS: dict[str, tuple[Event, ...]] = {
    "Hub": (TASK_EXECUTED, RUN_CHARGED, RUN_SKIPPED, DISPATCHER_SET),
    "AttestationCenter": (TASK_VALIDATED, TASK_EXPIRED),
    "JobRegistry": (JOB_CREATED, JOB_DELETED),
    "KeeperRegistry": (
        KEEPER_REGISTERED,
        KEEPER_EXITED,
        STAKE_ADDED,
        KEY_ROTATED,
        PEER_ID_SET,
        REWARDS_SET,
        EPOCH_ADVANCED,
    ),
}
"""Every event named here, by contract: the table that the test compares with the artifacts."""


def _task_executed(place: EventPlace, values: tuple[Any, ...]) -> ChainEvent:
    task_id, job_id, performer_id, number, trigger_id, attempt, performer, _, _, success, fee, digest = values
    return TaskExecuted(
        place=place,
        task_id=task_id,
        job_id=job_id,
        trigger_id=trigger_id,
        attempt=attempt,
        number=number,
        performer=performer,
        performer_id=performer_id,
        success=success,
        fee=fee,
        digest=digest,
    )


def _task_validated(place: EventPlace, values: tuple[Any, ...]) -> ChainEvent:
    task_id, number, performer_id, submitter_id, attester_ids, root, accepted, round_ = values
    return TaskValidated(
        place=place,
        task_id=task_id,
        number=number,
        performer_id=performer_id,
        submitter_id=submitter_id,
        attester_ids=tuple(attester_ids),
        root=root,
        accepted=accepted,
        round=round_,
    )


def _registry_changed(place: EventPlace, _: tuple[Any, ...]) -> ChainEvent:
    return RegistryChanged(place)


_Build = Callable[[EventPlace, tuple[Any, ...]], ChainEvent]


class EventDecoder:
    """Decodes the logs of one set of contracts. `topics` and `addresses` make the filter that finds them."""

    def __init__(self, domain: Domain, job_registry: bytes) -> None:
        builders: list[tuple[bytes, Event, _Build]] = [
            (domain.hub, TASK_EXECUTED, _task_executed),
            (domain.hub, RUN_CHARGED, lambda place, v: RunCharged(place, *v)),
            (domain.hub, RUN_SKIPPED, lambda place, v: RunSkipped(place, *v)),
            (domain.hub, DISPATCHER_SET, _registry_changed),
            (domain.attestation_center, TASK_VALIDATED, _task_validated),
            (domain.attestation_center, TASK_EXPIRED, lambda place, v: TaskExpired(place, v[0], v[1])),
            (job_registry, JOB_DELETED, lambda place, v: JobDeleted(place, v[0])),
            *((domain.keeper_registry, event, _registry_changed) for event in EVENTS["KeeperRegistry"]),
        ]
        self._builders = {(address, event.topic): (event, build) for address, event, build in builders}
        self.addresses = tuple(dict.fromkeys(address for address, _, _ in builders))
        self.topics = tuple(event.topic for _, event, _ in builders)

    def decode(self, log: dict[str, Any]) -> ChainEvent | None:
        """The event of a log as `eth_getLogs` gives it; None for one that is not ours or is of no use to us.

        Raises `Transient` for a malformed one: the node's, since the contracts emit none.
        """
        if log.get("removed"):
            return None
        try:
            topics = [bytes.fromhex(topic[2:]) for topic in log["topics"]]
            found = self._builders.get((bytes.fromhex(log["address"][2:]), topics[0] if topics else b""))
            if found is None:
                return None
            event, build = found
            return build(place_of(log), event.decode(topics, bytes.fromhex(log["data"][2:])))
        except (DecodingError, KeyError, TypeError, ValueError) as error:
            raise Transient("RPC_ERROR", f"a malformed log: {error}") from None


def place_of(log: dict[str, Any]) -> EventPlace:
    """Where a log stands. Raises KeyError, TypeError or ValueError for a malformed or pending one."""
    return EventPlace(
        block_number=int(log["blockNumber"], 16),
        block_hash=bytes.fromhex(log["blockHash"][2:]),
        tx_hash=bytes.fromhex(log["transactionHash"][2:]),
        log_index=int(log["logIndex"], 16),
    )
