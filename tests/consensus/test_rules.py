"""What the mesh accepts, refuses and ignores: one honest message of each kind, and one test a lie."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest

from consensus import ecdsa, rules
from consensus.codec import Domain, keccak
from consensus.errors import Ignore, Reject
from consensus.messages import JobSpec, Task
from consensus.triggers import LogSeen, Observation
from tests.consensus import samples
from tests.consensus.samples import DOMAIN, NOW, PEER

STRANGER = keccak(b"stranger")


@dataclass
class Known:
    """Facts as a node that has followed the chain holds them."""

    listed: frozenset[bytes] = frozenset({ecdsa.address_of(samples.DISPATCHER)})
    peers: dict[str, bytes] = field(default_factory=lambda: {PEER: ecdsa.address_of(samples.PERFORMER)})

    def domain(self, chain_id: int) -> Domain | None:
        return DOMAIN if chain_id == DOMAIN.chain_id else None

    def dispatchers(self, chain_id: int) -> frozenset[bytes]:
        return self.listed

    def operator_of(self, chain_id: int, peer_id: str) -> bytes | None:
        return self.peers.get(peer_id)

    def height(self, chain_id: int) -> int | None:
        return samples.PINNED + 3


KNOWN = Known()


def test_honest_messages_are_accepted() -> None:
    rules.check_task(samples.task(), KNOWN, NOW)
    rules.check_task(samples.event_task(), KNOWN, NOW)
    rules.check_task(samples.condition_task(), KNOWN, NOW)
    rules.check_execution(samples.execution(), PEER, KNOWN, NOW)
    rules.check_acknowledgement(samples.acknowledgement(), samples.authorisation(), KNOWN)
    rules.check_check_in(samples.check_in(), PEER, KNOWN, NOW)
    assert rules.check_vote(samples.VOTE, PEER, KNOWN) == ecdsa.address_of(samples.PERFORMER)


def test_a_late_task_is_ignored() -> None:
    with pytest.raises(Ignore, match="LATE"):
        rules.check_task(samples.task(), KNOWN, NOW + 31)


def test_a_task_far_ahead_is_ignored() -> None:
    with pytest.raises(Ignore, match="EARLY"):
        rules.check_task(samples.task(), KNOWN, NOW - 3601)


def test_a_task_of_an_unknown_chain_is_ignored() -> None:
    with pytest.raises(Ignore, match="UNKNOWN_CHAIN"):
        rules.check_task(msgspec.structs.replace(samples.task(), chain_id=1), KNOWN, NOW)


def test_a_task_that_a_stranger_signed_is_rejected() -> None:
    with pytest.raises(Reject, match="NOT_DISPATCHER"):
        rules.check_task(samples.task(secret=STRANGER), KNOWN, NOW)


def test_a_task_altered_after_signing_is_rejected() -> None:
    honest = samples.task()
    altered = msgspec.structs.replace(honest, authorisation=samples.authorisation(max_fee=samples.Uint256(1)))
    with pytest.raises(Reject, match="NOT_DISPATCHER"):
        rules.check_task(altered, KNOWN, NOW)


def test_a_task_whose_spec_speaks_of_another_job_is_rejected() -> None:
    other = msgspec.structs.replace(samples.SPEC, job_id=samples.Uint256(5))
    auth = samples.authorisation(spec=samples.spec_digest(other.encode()))
    with pytest.raises(Reject, match="SPEC_CONTRADICTS"):
        rules.check_task(samples.task(auth, spec=other), KNOWN, NOW)


@pytest.mark.parametrize(
    "altered",
    [
        msgspec.structs.replace(samples.script_task(), pinned_block=0, storage="", inputs=b""),
        samples.task(pinned_block=samples.PINNED),
        samples.task(storage="{}"),
        samples.script_task(pinned_block=0),
    ],
)
def test_a_task_whose_scripts_inputs_were_taken_off_or_put_on_is_rejected(altered: Task) -> None:
    """Anyone may publish a task again: a performer who took such a copy first would refuse the task for good."""
    with pytest.raises(Reject, match="INPUTS_CONTRADICT"):
        rules.check_task(altered, KNOWN, NOW)


FIRING = samples.event_task().authorisation.trigger_id
SECOND = samples.authorisation().trigger_id


@pytest.mark.parametrize(
    ("spec", "trigger_id", "observation"),
    [
        (samples.EVENT_SPEC, FIRING, None),
        (samples.EVENT_SPEC, FIRING, samples.EDGE),
        (samples.EVENT_SPEC, FIRING, LogSeen(samples.LOG.transaction, samples.LOG.position + 1)),
        (samples.EVENT_SPEC, FIRING, LogSeen(b"\xac" * 32, samples.LOG.position)),
        (samples.EVENT_SPEC, FIRING + 1, samples.LOG),
        (samples.CONDITION_SPEC, 1, None),
        (samples.CONDITION_SPEC, 1, samples.LOG),
        (samples.CONDITION_SPEC, 0, samples.EDGE),
        (samples.CONDITION_SPEC, 2**63, samples.EDGE),
        (samples.SPEC, SECOND, samples.EDGE),
        (samples.SPEC, SECOND, samples.LOG),
        (samples.SPEC, 0, None),
        (samples.SPEC, 2**64, None),
    ],
)
def test_a_task_whose_observation_is_of_another_firing_is_rejected(
    spec: JobSpec, trigger_id: int, observation: Observation
) -> None:
    task = samples.task_of(spec, trigger_id, observation)
    with pytest.raises(Reject, match="OBSERVATION_CONTRADICTS"):
        rules.check_task(task, KNOWN, NOW)
    with pytest.raises(Reject, match="OBSERVATION_CONTRADICTS"):
        rules.check_execution(samples.execution(task), PEER, KNOWN, NOW)


def test_a_check_in_that_claims_another_sandbox_than_was_signed_is_rejected() -> None:
    with pytest.raises(Reject, match="BAD_SIGNATURE"):
        rules.check_check_in(msgspec.structs.replace(samples.check_in(), sandbox="docker"), PEER, KNOWN, NOW)


def test_a_malleated_signature_is_rejected() -> None:
    honest = samples.task()
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    s = order - int.from_bytes(honest.signature[32:64], "big")
    twin = honest.signature[:32] + s.to_bytes(32, "big") + bytes([55 - honest.signature[64]])
    with pytest.raises(Reject, match="NOT_DISPATCHER"):
        rules.check_task(msgspec.structs.replace(honest, signature=twin), KNOWN, NOW)


def test_a_package_from_an_unregistered_peer_is_ignored() -> None:
    with pytest.raises(Ignore, match="UNKNOWN_PEER"):
        rules.check_execution(samples.execution(), "12D3KooWNobody", KNOWN, NOW)


def test_a_keeper_that_speaks_of_anothers_task_is_rejected() -> None:
    facts = Known(peers={PEER: b"\x01" * 20})
    with pytest.raises(Reject, match="WRONG_PERFORMER"):
        rules.check_execution(samples.execution(), PEER, facts, NOW)


def test_a_package_with_another_call_is_rejected() -> None:
    with pytest.raises(Reject, match="WRONG_CALL"):
        rules.check_execution(samples.execution(call=b"\x00" * 36), PEER, KNOWN, NOW)


def test_a_package_that_the_performer_did_not_sign_is_rejected() -> None:
    with pytest.raises(Reject, match="BAD_SIGNATURE"):
        rules.check_execution(samples.execution(secret=STRANGER), PEER, KNOWN, NOW)


def test_a_package_of_an_unauthorised_task_is_rejected() -> None:
    with pytest.raises(Reject, match="NOT_DISPATCHER"):
        rules.check_execution(samples.execution(samples.task(secret=STRANGER)), PEER, KNOWN, NOW)


def test_a_package_a_day_after_its_deadline_is_ignored() -> None:
    with pytest.raises(Ignore, match="LATE"):
        rules.check_execution(samples.execution(), PEER, KNOWN, NOW + 30 + 24 * 3600 + 1)


def test_an_acknowledgement_of_another_attempt_is_ignored() -> None:
    with pytest.raises(Ignore, match="OTHER_ATTEMPT"):
        rules.check_acknowledgement(samples.acknowledgement(samples.authorisation(attempt=1)), samples.authorisation(), KNOWN)


def test_an_acknowledgement_by_somebody_else_is_rejected() -> None:
    with pytest.raises(Reject, match="BAD_SIGNATURE"):
        rules.check_acknowledgement(samples.acknowledgement(secret=STRANGER), samples.authorisation(), KNOWN)


def test_a_vote_of_an_unregistered_peer_is_ignored() -> None:
    with pytest.raises(Ignore, match="UNKNOWN_PEER"):
        rules.check_vote(samples.VOTE, "12D3KooWNobody", KNOWN)


@pytest.mark.parametrize("drift", [-31, 31])
def test_a_replayed_check_in_is_ignored(drift: int) -> None:
    with pytest.raises(Ignore, match="STALE"):
        rules.check_check_in(samples.check_in(), PEER, KNOWN, NOW + drift)


def test_a_check_in_for_another_peer_is_rejected() -> None:
    with pytest.raises(Reject, match="BAD_SIGNATURE"):
        rules.check_check_in(samples.check_in(peer="12D3KooWOther"), PEER, KNOWN, NOW)


def test_a_check_in_of_another_operator_is_ignored() -> None:
    facts = Known(peers={PEER: b"\x01" * 20})
    with pytest.raises(Ignore, match="UNKNOWN_PEER"):
        rules.check_check_in(samples.check_in(), PEER, facts, NOW)


def test_a_scripts_task_is_accepted_with_the_inputs_that_a_dispatcher_signed() -> None:
    rules.check_task(samples.script_task(), KNOWN, NOW)


@pytest.mark.parametrize("changes", [{"pinned_block": 39}, {"storage": ""}, {"inputs": bytes(65)}])
def test_a_scripts_task_with_other_inputs_is_rejected(changes: dict[str, object]) -> None:
    with pytest.raises(Reject, match="NOT_DISPATCHER"):
        rules.check_task(msgspec.structs.replace(samples.script_task(), **changes), KNOWN, NOW)


def test_inputs_of_another_attempt_are_rejected() -> None:
    other = samples.script_task(attempt=1)
    with pytest.raises(Reject, match="NOT_DISPATCHER"):
        rules.check_task(msgspec.structs.replace(samples.script_task(), inputs=other.inputs), KNOWN, NOW)
