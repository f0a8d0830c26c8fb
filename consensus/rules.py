"""What the mesh accepts: one function a message, each check tagged REJECT or IGNORE, cheap before dear.

REJECT means the peer that signed the message broke the protocol; IGNORE means it is of no use to us and
nobody's fault. Nothing is believed because a message says it: every signature is checked against who should
have signed.
"""

from __future__ import annotations

from typing import Protocol

from consensus import ecdsa
from consensus.codec import Domain, keccak
from consensus.errors import Ignore, Reject
from consensus.messages import Acknowledgement, Authorisation, CheckIn, Execution, Task, Vote
from consensus.triggers import names

MAX_AHEAD = 3600
"""Seconds ahead of its `not_before` that a task may be published."""
MAX_ATTESTATION = 24 * 3600
"""Seconds after an authorisation's deadline that its execution is still of interest."""
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


def _authorised(task: Task, facts: Facts) -> Authorisation:
    domain = facts.domain(task.chain_id)
    if domain is None:  # IGNORE: not a chain of ours
        raise Ignore("UNKNOWN_CHAIN", str(task.chain_id))
    authorisation = task.authorisation
    job = task.job()  # REJECT: the JobSpec is not the one whose digest was signed, or is malformed
    if (job.job_id, job.chain_id, job.level) != (authorisation.job_id, task.chain_id, authorisation.level):  # REJECT
        raise Reject("SPEC_CONTRADICTS", "job, chain or level differ between JobSpec and authorisation")
    if not names(job.trigger, authorisation.trigger_id, task.observation):  # REJECT: what was seen is of another firing
        raise Reject("OBSERVATION_CONTRADICTS", "the observation is not of the firing that the trigger id names")
    signer = ecdsa.recover(domain.hub_digest(authorisation.struct_hash()), task.signature)
    if signer is None or signer not in facts.dispatchers(task.chain_id):  # REJECT: nobody the hub lists signed this
        raise Reject("NOT_DISPATCHER", "the authorisation is not signed by a dispatcher that the hub lists")
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
