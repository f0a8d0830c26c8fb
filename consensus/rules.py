"""What the mesh accepts: one function a message, each check tagged REJECT or IGNORE, cheap before dear.

REJECT means the peer that signed the message broke the protocol; IGNORE means it is of no use to us and
nobody's fault. Nothing is believed because a message says it: every signature is checked against who should
have signed.
"""

from __future__ import annotations

from typing import Protocol

from consensus import ecdsa, runs
from consensus.codec import Domain, keccak
from consensus.errors import Ignore, Reject
from consensus.lifecycle import SCRIPT_FAULTS
from consensus.messages import (
    Acknowledgement,
    Authorisation,
    CheckIn,
    Execution,
    NotExecuted,
    PackageReference,
    RunCertificate,
    Task,
    Vote,
)
from consensus.triggers import names

MAX_AHEAD = 3600
"""Seconds ahead of its `not_before` that a task may be published."""
MAX_ATTESTATION = 24 * 3600
"""Seconds after an authorisation's deadline that its execution is still of interest."""
MAX_AFTER_ROUNDS = 3600
"""Seconds after the last round of a run without a transaction that its certificate is still of interest."""
HISTORY_BLOCKS = 8_000
"""Blocks below the head whose hashes may draw a committee: a few less than the 8,191 that a contract could look up."""
AHEAD_BLOCKS = 1_000
"""Blocks by which this node may lag behind the one that named a task's pinned block."""
CLOCK_SKEW = 30
"""Seconds that a keeper's clock may be off without its check-ins being refused."""


class Facts(Protocol):
    """What the chain has told this node, as far as it has followed it."""

    def domain(self, chain_id: int) -> Domain | None:
        """The contracts of a chain this node serves."""
        ...

    def dispatchers(self, chain_id: int) -> frozenset[bytes]:
        """Addresses the hub lists as dispatchers."""
        ...

    def operator_of(self, chain_id: int, peer_id: str) -> bytes | None:
        """The active operator registered with this peer id."""
        ...

    def height(self, chain_id: int) -> int | None:
        """Number of the last block that this node has followed."""
        ...


def _authorised(task: Task, facts: Facts) -> Authorisation:
    domain = facts.domain(task.chain_id)
    if domain is None:  # IGNORE: not a chain of ours
        raise Ignore("UNKNOWN_CHAIN", str(task.chain_id))
    authorisation = task.authorisation
    job = task.job()  # REJECT: the JobSpec is not the one whose digest was signed, or is malformed
    if (job.job_id, job.chain_id, job.level) != (authorisation.job_id, task.chain_id, authorisation.level):  # REJECT
        raise Reject("SPEC_CONTRADICTS", "job, chain or level differ between JobSpec and authorisation")
    scripted = job.definition in runs.SCRIPTED
    if (task.pinned_block > 0, bool(task.inputs)) != (scripted, scripted):  # REJECT: taken off, or put to a call that is given
        raise Reject("INPUTS_CONTRADICT", "pinned block and signed inputs go with a script, and none without")
    if not names(job.trigger, authorisation.trigger_id, task.observation):  # REJECT: what was seen is of another firing
        raise Reject("OBSERVATION_CONTRADICTS", "the observation is not of the firing that the trigger id names")
    signer = ecdsa.recover(domain.hub_digest(authorisation.struct_hash()), task.signature)
    if signer is None or signer not in facts.dispatchers(task.chain_id):  # REJECT: nobody the hub lists signed this
        raise Reject("NOT_DISPATCHER", "the authorisation is not signed by a dispatcher that the hub lists")
    if task.inputs:
        digest = domain.hub_digest(Task.inputs_hash(authorisation, task.pinned_block, task.storage))
        if ecdsa.recover(digest, task.inputs) not in facts.dispatchers(task.chain_id):  # REJECT: somebody chose other inputs
            raise Reject("NOT_DISPATCHER", "pinned block and storage are not signed by a dispatcher that the hub lists")
    return authorisation


def check_task(task: Task, facts: Facts, now: float) -> None:
    """A task of the coordinator. Anyone may forward or republish one: its worth is the dispatcher's signature."""
    if now > task.authorisation.deadline:  # IGNORE: too late to execute
        raise Ignore("LATE", "the deadline has passed")
    if task.authorisation.not_before > now + MAX_AHEAD:  # IGNORE: it will be published again
        raise Ignore("EARLY", "more than an hour ahead")
    _authorised(task, facts)


def check_execution(execution: Execution, source: str, facts: Facts, now: float) -> None:
    """A performer's package: signed by the authorised performer, published by its registered peer."""
    authorisation = execution.task.authorisation
    if now > authorisation.deadline + MAX_ATTESTATION:  # IGNORE: nobody is left to attest it
        raise Ignore("LATE", "the attestation window has passed")
    operator = facts.operator_of(execution.task.chain_id, source)
    if operator is None:  # IGNORE: not registered, or registered later than we have followed
        raise Ignore("UNKNOWN_PEER", source)
    if operator != authorisation.performer:  # REJECT: a keeper speaks of another keeper's task
        raise Reject("WRONG_PERFORMER", "published by a keeper the task does not name")
    if any(authorisation.call_hash) and keccak(execution.call) != authorisation.call_hash:  # REJECT
        raise Reject("WRONG_CALL", "the calldata is not the authorised one")
    if any(authorisation.target) and execution.target != authorisation.target:  # REJECT
        raise Reject("WRONG_TARGET", "the target is not the authorised one")
    _authorised(execution.task, facts)
    domain = facts.domain(execution.task.chain_id)
    assert domain is not None  # _authorised has refused unknown chains
    e = execution
    said = Execution.struct_hash(authorisation, e.transaction, e.target, e.call, e.resource_fee, e.run)
    if ecdsa.recover(domain.hub_digest(said), execution.signature) != authorisation.performer:  # REJECT
        raise Reject("BAD_SIGNATURE", "the package is not signed by the task's performer")


def check_reference(reference: PackageReference, source: str, facts: Facts) -> None:
    """Where a package lies, by a registered keeper. Whether it is that keeper's, the package itself must show."""
    if facts.domain(reference.chain_id) is None:  # IGNORE
        raise Ignore("UNKNOWN_CHAIN", str(reference.chain_id))
    if facts.operator_of(reference.chain_id, source) is None:  # IGNORE: not registered, or not followed that far
        raise Ignore("UNKNOWN_PEER", source)


def check_not_executed(said: NotExecuted, source: str, facts: Facts, now: float) -> None:
    """A performer's word that no transaction follows: signed by the authorised performer, published by its registered peer."""
    task, authorisation = said.task, said.task.authorisation
    if now > runs.opens(task, runs.ROUNDS):  # IGNORE: its rounds are over
        raise Ignore("LATE", "all rounds have passed")
    operator = facts.operator_of(task.chain_id, source)
    if operator is None:  # IGNORE: not registered, or registered later than we have followed
        raise Ignore("UNKNOWN_PEER", source)
    if operator != authorisation.performer:  # REJECT: a keeper speaks of another keeper's task
        raise Reject("WRONG_PERFORMER", "published by a keeper the task does not name")
    _check_run(said, facts, now)


def check_run_certificate(certificate: RunCertificate, source: str, facts: Facts, now: float) -> None:
    """A run's certificate as far as it can be judged without the chain; `consensus.runs.check_certificate` is the rest.

    Any registered keeper may publish one: its worth is the committee's signature.
    """
    said = certificate.not_executed
    if now > runs.opens(said.task, runs.ROUNDS) + MAX_AFTER_ROUNDS:  # IGNORE: too late to matter
        raise Ignore("LATE", "all rounds have long passed")
    if facts.operator_of(said.task.chain_id, source) is None:  # IGNORE
        raise Ignore("UNKNOWN_PEER", source)
    if len(set(certificate.signers)) != len(certificate.signers):  # REJECT: a signer counted twice
        raise Reject("DUPLICATE_SIGNER", "a signer is listed twice")
    _check_run(said, facts, now)


def _check_run(said: NotExecuted, facts: Facts, now: float) -> None:
    task = said.task
    if task.authorisation.not_before > now + MAX_AHEAD:  # IGNORE
        raise Ignore("EARLY", "more than an hour ahead")
    if said.code not in SCRIPT_FAULTS:  # REJECT: no other reason ends a task without a transaction
        raise Reject("WRONG_REASON", f"{said.code[:64]} is not a script's own doing")
    if (said.run is None) != (said.code == "SCRIPT_INVALID"):  # REJECT: what cannot be run used nothing, all else was run
        raise Reject("WRONG_REASON", "a run is shown of a script that cannot be run, or none of another")
    height = facts.height(task.chain_id)
    if height is None:  # IGNORE
        raise Ignore("UNKNOWN_CHAIN", str(task.chain_id))
    if not height - HISTORY_BLOCKS <= task.pinned_block <= height + AHEAD_BLOCKS:  # IGNORE: of long ago, or we lag
        raise Ignore("UNKNOWN_BLOCK", f"pinned block {task.pinned_block}, head {height}")
    authorisation = _authorised(task, facts)
    definition = task.job().definition
    if said.code == "SCRIPT_DECLINED" and definition != runs.CUSTOM:  # REJECT: others print arguments and decide nothing
        raise Reject("WRONG_REASON", f"a script of task definition {definition} cannot decline")
    domain = facts.domain(task.chain_id)
    assert domain is not None  # _authorised has refused unknown chains
    if ecdsa.recover(domain.hub_digest(said.digest()), said.signature) != authorisation.performer:  # REJECT
        raise Reject("BAD_SIGNATURE", "not signed by the task's performer")


def check_acknowledgement(ack: Acknowledgement, authorisation: Authorisation, facts: Facts) -> None:
    """A performer's acknowledgement of an attempt that the coordinator has dispatched."""
    if ack.attempt != authorisation.attempt:  # IGNORE: of an earlier attempt
        raise Ignore("OTHER_ATTEMPT", f"attempt {ack.attempt}, now {authorisation.attempt}")
    domain = facts.domain(ack.chain_id)
    if domain is None:  # IGNORE
        raise Ignore("UNKNOWN_CHAIN", str(ack.chain_id))
    digest = domain.hub_digest(Acknowledgement.struct_hash(authorisation, ack.at))
    if ecdsa.recover(digest, ack.signature) != authorisation.performer:  # REJECT
        raise Reject("BAD_SIGNATURE", "not signed by the keeper the task was given to")


def check_vote(vote: Vote, source: str, facts: Facts) -> bytes:
    """A vote that came over a direct stream: the operator it counts for. Its BLS signature is checked in aggregate, later."""
    if facts.domain(vote.chain_id) is None:  # IGNORE
        raise Ignore("UNKNOWN_CHAIN", str(vote.chain_id))
    operator = facts.operator_of(vote.chain_id, source)
    if operator is None:  # IGNORE: not registered, or not followed that far
        raise Ignore("UNKNOWN_PEER", source)
    return operator


def check_check_in(check_in: CheckIn, source: str, facts: Facts, now: float) -> None:
    """A keeper's sign of life, from its registered peer and signed with its operator key."""
    if abs(now - check_in.at) > CLOCK_SKEW:  # IGNORE: replayed, or a wrong clock
        raise Ignore("STALE", "the keeper's clock or a replay")
    domain = facts.domain(check_in.chain_id)
    if domain is None:  # IGNORE
        raise Ignore("UNKNOWN_CHAIN", str(check_in.chain_id))
    if facts.operator_of(check_in.chain_id, source) != check_in.operator:  # IGNORE: not registered (yet) with this peer
        raise Ignore("UNKNOWN_PEER", source)
    digest = domain.hub_digest(CheckIn.struct_hash(source, check_in.version, check_in.sandbox, check_in.at))
    if ecdsa.recover(digest, check_in.signature) != check_in.operator:  # REJECT
        raise Reject("BAD_SIGNATURE", "the check-in is not signed by the peer's operator")
