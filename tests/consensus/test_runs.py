"""Certificates of runs without a transaction: who may sign, how many must, and over what."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from consensus import bls, rules, runs
from consensus.codec import keccak
from consensus.committee import Committee, Epoch, Operator
from consensus.errors import Ignore, Reject
from consensus.messages import NotExecuted, PackageReference, RunCertificate, Uint256, Verdict
from tests.consensus import samples
from tests.consensus.samples import DOMAIN, NOW, PEER
from tests.consensus.test_rules import KNOWN

SECRETS = {keccak(b"address %d" % i)[:20]: bls.secret_from_seed(keccak(b"seed %d" % i)) for i in range(8)}
OPERATORS = tuple(Operator(i + 1, address, bls.public_key(secret)) for i, (address, secret) in enumerate(SECRETS.items()))
EPOCH = Epoch(7, 1, None, OPERATORS, tuple(range(8)))
BLOCK_HASH = keccak(b"pinned")
SAID = samples.not_executed()


def committee(round_: int = 0, said: NotExecuted = SAID) -> Committee:
    return runs.drawn(said.task, EPOCH, BLOCK_HASH, round_)


def certified(
    said: NotExecuted = SAID, round_: int = 0, *, signers: int = 4, verdict: Verdict = Verdict.YES, epoch: int = 7
) -> RunCertificate:
    """Signed by the first members of the round's committee."""
    members = committee(round_, said).members[:signers]
    message = runs.digest(said, DOMAIN, epoch, round_, verdict)
    signature = bls.aggregate([bls.sign(SECRETS[member.address], message) for member in members])
    return RunCertificate(said, epoch, round_, tuple(member.address for member in members), signature)


def check(certificate: RunCertificate) -> None:
    runs.check_certificate(certificate, DOMAIN, EPOCH, BLOCK_HASH)


@pytest.mark.parametrize("round_", [0, 1, 2])
def test_a_quorum_of_the_rounds_committee_certifies(round_: int) -> None:
    certificate = certified(round_=round_)
    rules.check_run_certificate(certificate, PEER, KNOWN, NOW)
    check(certificate)


def test_too_few_certify_nothing() -> None:
    with pytest.raises(Reject, match="NO_QUORUM"):
        check(certified(signers=committee().yes_quorum - 1))


def test_another_rounds_committee_certifies_nothing() -> None:
    other = certified(round_=1)
    assert committee(1) != committee(0)
    with pytest.raises(Reject, match=r"NOT_IN_COMMITTEE|BAD_SIGNATURE"):
        check(msgspec.structs.replace(other, round=0))


@pytest.mark.parametrize("verdict", [Verdict.NO, Verdict.CANNOT_TELL])
def test_a_committee_that_said_no_certifies_nothing(verdict: Verdict) -> None:
    with pytest.raises(Reject, match="BAD_SIGNATURE"):
        check(certified(verdict=verdict))


@pytest.mark.parametrize("changed", [{"code": "SCRIPT_FAILED"}, {"fee": Uint256(1)}, {"run": None}])
def test_what_was_signed_is_what_is_certified(changed: dict[str, Any]) -> None:
    with pytest.raises(Reject, match="BAD_SIGNATURE"):
        check(msgspec.structs.replace(certified(), not_executed=msgspec.structs.replace(SAID, **changed)))


def test_one_member_listed_twice_is_no_quorum() -> None:
    honest = certified()
    doubled = msgspec.structs.replace(honest, signers=(honest.signers[0], *honest.signers[:3]))
    with pytest.raises(Reject, match="DUPLICATE_SIGNER"):
        rules.check_run_certificate(doubled, PEER, KNOWN, NOW)
    with pytest.raises(Reject, match="NOT_IN_COMMITTEE"):
        check(doubled)


def test_signers_stand_in_draw_order() -> None:
    honest = certified()
    with pytest.raises(Reject, match="NOT_IN_COMMITTEE"):
        check(msgspec.structs.replace(honest, signers=honest.signers[::-1]))


def test_a_stranger_among_the_signers_is_refused() -> None:
    honest = certified()
    with pytest.raises(Reject, match="NOT_IN_COMMITTEE"):
        check(msgspec.structs.replace(honest, signers=(*honest.signers[:3], b"\x01" * 20)))


def test_another_epoch_certifies_nothing() -> None:
    with pytest.raises(Reject, match="WRONG_EPOCH"):
        check(certified(epoch=6))


def test_another_block_draws_another_committee() -> None:
    with pytest.raises(Reject):
        runs.check_certificate(certified(), DOMAIN, EPOCH, keccak(b"another branch"))


def test_the_performer_has_no_seat() -> None:
    mine = samples.not_executed(samples.script_task(performer=OPERATORS[0].address))
    for round_ in range(runs.ROUNDS):
        assert runs.drawn(mine.task, EPOCH, BLOCK_HASH, round_).rank(OPERATORS[0].address) is None


@pytest.mark.parametrize(
    ("now", "source", "code"),
    [
        (NOW + 180 + rules.MAX_AFTER_ROUNDS + 1, PEER, "LATE"),
        (NOW, "stranger", "UNKNOWN_PEER"),
    ],
)
def test_a_certificate_of_no_use_is_ignored(now: float, source: str, code: str) -> None:
    with pytest.raises(Ignore, match=code):
        rules.check_run_certificate(certified(), source, KNOWN, now)


def test_a_certificate_of_words_that_the_performer_never_said_is_rejected() -> None:
    forged = samples.not_executed(secret=samples.DISPATCHER)
    with pytest.raises(Reject, match="BAD_SIGNATURE"):
        rules.check_run_certificate(certified(forged), PEER, KNOWN, NOW)


def test_rounds_are_counted_from_the_authorised_time() -> None:
    task = SAID.task
    assert [runs.round_at(task, NOW + after) for after in (-100, 0, 59.9, 60, 179, 180)] == [0, 0, 0, 1, 2, 3]
    assert [runs.opens(task, round_) for round_ in range(4)] == [NOW, NOW + 60, NOW + 120, NOW + 180]


def test_references_are_for_registered_keepers_of_known_chains() -> None:
    rules.check_reference(samples.PACKAGE_REFERENCE, PEER, KNOWN)
    with pytest.raises(Ignore, match="UNKNOWN_PEER"):
        rules.check_reference(samples.PACKAGE_REFERENCE, "stranger", KNOWN)
    with pytest.raises(Ignore, match="UNKNOWN_CHAIN"):
        rules.check_reference(msgspec.structs.replace(samples.PACKAGE_REFERENCE, chain_id=1), PEER, KNOWN)


@pytest.mark.parametrize("cid", ["", "b" * 129, "bé"])
def test_a_reference_without_a_cid_cannot_exist(cid: str) -> None:
    with pytest.raises(ValueError, match="CID"):
        PackageReference(1, Uint256(1), 1, cid)
