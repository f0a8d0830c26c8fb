"""Every false certificate is refused, each with its own reason and at a bounded price."""

from __future__ import annotations

from dataclasses import replace

import pytest

from consensus import bls, merkle
from consensus.codec import keccak
from tests.contracts.world import NO, STRANGER, YES, Certificate, Task, World, account, secret

P = 0x1A0111EA397FE69A4B1BA7B6434BACD764774B84F38512BF6730D2A0F6B0F6241EABFFFEB153FFFFB9FEFFFFFFFFAAAB


@pytest.fixture
def task(world: World) -> Task:
    return world.execute(world.create_job())


@pytest.fixture
def good(world: World, task: Task) -> Certificate:
    return world.certificate(task)


@pytest.mark.parametrize(
    ("field", "number"),
    [("version", 0), ("version", 2), ("verdict", 0), ("verdict", 3), ("index", 1), ("depth", 1), ("depth", 6), ("depth", 255)],
)
def test_a_malformed_header_is_refused(world: World, good: Certificate, field, number):
    assert world.refuse(good, **{field: number}) == "BadEncoding"


@pytest.mark.parametrize("size", [0, 1, 22, 255, 257, 288])
def test_a_signature_of_the_wrong_length_is_refused(world: World, good: Certificate, size):
    assert world.refuse(good, signature=(good.signature + bytes(64))[:size]) == "BadEncoding"


def test_a_path_of_the_wrong_length_is_refused(world: World, task: Task):
    deep = world.certificate(task, others=[keccak(b"a"), keccak(b"b")])
    assert world.refuse(deep, depth=1) == "BadEncoding"
    assert world.refuse(deep, index=4) == "BadEncoding"
    assert world.refuse(deep, index=1) == "WrongRoot"


def test_a_task_that_the_hub_does_not_know_is_refused(world: World, good: Certificate):
    assert world.refuse(good, task_id=good.task_id ^ 1) == "UnknownExecution"


def test_a_replay_is_refused(world: World, good: Certificate):
    world.submit(good)
    assert world.refuse(good) == "AlreadyCertified"


def test_a_rejected_execution_is_not_certified_afterwards(world: World, task: Task, good: Certificate):
    world.submit(world.certificate(task, verdict=NO))
    assert world.refuse(good) == "AlreadyCertified"


def test_another_block_is_refused(world: World, task: Task, good: Certificate):
    world.chain.mine(2)
    for block in (task.block + 1, task.block - 1, 2**40):
        assert world.refuse(good, block=block) == "WrongBlock"


def test_another_epoch_is_refused(world: World, good: Certificate):
    for epoch in (0, 2, 2**40, 2**64 - 1):
        assert world.refuse(good, epoch=epoch) == "WrongEpoch"
    assert world.refuse(good, block=1) == "WrongEpoch"


def test_the_previous_epoch_still_certifies_and_the_one_before_does_not(world: World):
    job = world.create_job()
    first = world.certificate(world.execute(job, world.due(job, 1)))
    second = world.certificate(world.execute(job, world.due(job, 2)))
    world.register(11)
    world.advance()
    assert world.refuse(first, epoch=2) == "WrongEpoch"
    world.submit(first)
    world.register(12)
    world.advance()
    assert world.refuse(second) == "WrongEpoch"
    assert world.refuse(second, epoch=2) == "WrongEpoch"


def test_a_new_epochs_executions_need_its_number(world: World):
    world.register(11)
    world.advance()
    task = world.execute(world.create_job())
    good = world.certificate(task)
    assert good.epoch == 2
    assert world.refuse(good, epoch=1) == "WrongEpoch"
    world.submit(good)


def test_an_altered_root_is_refused(world: World, good: Certificate):
    assert world.refuse(good, root=keccak(b"root")) == "WrongRoot"
    assert world.refuse(good, verdict=NO) == "WrongRoot"


def test_a_root_over_another_execution_digest_is_refused(world: World, task: Task, good: Certificate):
    root = merkle.leaf(task.id, keccak(b"digest"), YES)
    signature = world.sign([m.id for m in world.committee(task).members[:4]], root, task.block, good.epoch)
    assert world.refuse(good, root=root, signature=signature) == "WrongRoot"


def test_a_node_does_not_pass_for_a_leaf(world: World, task: Task, good: Certificate):
    above = keccak(b"\x01" + good.root + keccak(b"sibling"))
    assert world.refuse(good, root=above) == "WrongRoot"


def test_a_sibling_that_was_altered_is_refused(world: World, task: Task):
    deep = world.certificate(task, others=[keccak(b"a"), keccak(b"b")])
    assert world.refuse(deep, path=(deep.path[0], keccak(b"other"))) == "WrongRoot"
    assert world.refuse(deep, path=(deep.path[1], deep.path[0])) == "WrongRoot"


def test_too_few_signers_are_refused(world: World, task: Task):
    for verdict, few in ((YES, 3), (YES, 1), (NO, 1)):
        assert world.refuse(world.certificate(task, verdict=verdict, signers=range(few))) == "TooFewSigners"
    good = world.certificate(task)
    assert world.refuse(good, attesters=()) == "TooFewSigners"


def test_a_duplicate_signer_is_refused(world: World, good: Certificate):
    a, b, c, d = good.attesters
    for attesters in ((a, b, c, c), (a, a, b, c), (a, b, c, a), (a, b, c, d, d)):
        assert world.refuse(good, attesters=attesters) == "DuplicateSigner"


def test_an_unregistered_signer_is_refused(world: World, good: Certificate):
    for attesters in ((*good.attesters[:3], STRANGER), (STRANGER, *good.attesters[1:]), (bytes(20), *good.attesters)):
        assert world.refuse(good, attesters=attesters) == "NotRegistered"


def test_a_key_that_is_not_yet_active_is_refused(world: World):
    world.register(11)
    task = world.execute(world.create_job())
    good = world.certificate(task)
    signers = [m.id for m in world.committee(task).members[:3]]
    signature = world.sign([*signers, 11], good.root, task.block, good.epoch)
    assert world.refuse(good, attesters=(*good.attesters[:3], account(11)), signature=signature) == "NotRegistered"


def test_a_rotated_key_signs_from_the_next_epoch_on(world: World):
    """Key 21 replaces the key of the first member drawn."""
    task = world.execute(world.create_job())
    good = world.certificate(task)
    first = world.committee(task).members[0]
    world.registry.send("rotateKey", rotated(21), world.possession(21, first.address), sender=first.address)
    others = [m.id for m in world.committee(task).members[1:4]]
    assert world.refuse(good, signature=world.sign([21, *others], good.root, task.block, good.epoch)) == "InvalidSignature"
    world.advance()
    world.submit(good)
    while True:  # a committee of nine of ten: the first draws that seat it
        later = world.execute(world.create_job(), level=1)
        members = world.committee(later).members
        if first.id in [m.id for m in members]:
            break
    made = world.certificate(later, signers=range(len(members)))
    assert world.refuse(made) == "InvalidSignature"  # by the old key
    keys = [21 if m.id == first.id else m.id for m in members]
    world.submit(replace(made, signature=world.sign(keys, made.root, later.block, made.epoch)))
    assert world.status(later) == 2


def rotated(i: int) -> bytes:
    return bls.key_to_evm(bls.public_key(secret(i)))


def test_an_exited_operator_signs_to_the_end_of_its_epochs(world: World, task: Task, good: Certificate):
    leaving = world.committee(task).members[0]
    world.registry.send("exit", sender=leaving.address)
    world.advance()
    world.submit(good)
    assert world.status(task) == 2


def test_an_operator_without_a_seat_is_refused(world: World, task: Task, good: Certificate):
    seated = {m.id for m in world.committee(task).members}
    outside = [i for i in range(2, 11) if i not in seated]
    for i in outside:
        numbers = [m.id for m in world.committee(task).members[:3]]
        signature = world.sign([*numbers, i], good.root, task.block, good.epoch)
        assert world.refuse(good, attesters=(*good.attesters[:3], account(i)), signature=signature) == "NotInCommittee"


def test_the_performer_cannot_attest_itself(world: World, task: Task, good: Certificate):
    assert world.refuse(good, attesters=(*good.attesters[:3], account(1))) == "NotInCommittee"


def test_signers_stand_in_draw_order(world: World, good: Certificate):
    a, b, c, d = good.attesters
    for attesters in ((d, c, b, a), (b, a, c, d), (a, b, d, c)):
        assert world.refuse(good, attesters=attesters) == "OutOfOrder"


def test_the_submitter_is_an_operator_of_the_epoch_at_its_position(world: World, good: Certificate):
    assert world.refuse(good, sender=STRANGER) == "NotActiveOperator"
    assert world.refuse(good, sender=account(1), position=1) == "NotActiveOperator"
    for position in (10, 150, 255):
        assert world.refuse(good, sender=account(1), position=position) == "NotActiveOperator"
    world.register(11)
    assert world.refuse(good, sender=account(11), position=10) == "NotActiveOperator"
    world.submit(replace(good, position=9), sender=account(10))


def test_another_tasks_signature_is_refused(world: World):
    job = world.create_job()
    one = world.execute(job, world.due(job, 1))
    two = world.execute(job, world.due(job, 2))
    assert world.refuse(world.certificate(one), signature=world.certificate(two).signature) == "InvalidSignature"


@pytest.mark.parametrize("bent", [{"chain_id": 1}, {"attestation_center": bytes(range(20))}])
def test_another_chains_or_centers_signature_is_refused(world: World, task: Task, good: Certificate, bent):
    signers = [m.id for m in world.committee(task).members[:4]]
    signature = world.sign(signers, good.root, task.block, good.epoch, domain=replace(world.domain, **bent))
    assert world.refuse(good, signature=signature) == "InvalidSignature"


def test_a_signature_over_another_round_block_or_epoch_is_refused(world: World, task: Task, good: Certificate):
    signers = [m.id for m in world.committee(task).members[:4]]
    for block, epoch, round_ in ((task.block + 1, 1, 0), (task.block, 2, 0), (task.block, 1, 1)):
        assert world.refuse(good, signature=world.sign(signers, good.root, block, epoch, round_)) == "InvalidSignature"


def test_fewer_signatures_than_signers_are_refused(world: World, task: Task, good: Certificate):
    signers = [m.id for m in world.committee(task).members[:4]]
    assert world.refuse(good, signature=world.sign(signers[:3], good.root, task.block, good.epoch)) == "InvalidSignature"
    five = world.certificate(task, signers=range(5))
    assert world.refuse(five, signature=good.signature) == "InvalidSignature"


def test_a_vote_of_possession_is_no_vote(world: World, task: Task, good: Certificate):
    """Domain separation: the same digest, signed under the tag of proofs of possession, certifies nothing."""
    digest = world.domain.attestation_digest(good.root, task.block, good.epoch, 0)
    signers = [m.id for m in world.committee(task).members[:4]]
    proofs = [bls.prove_possession(secret(i), digest) for i in signers]
    assert world.refuse(good, signature=bls.signature_to_evm(bls.aggregate(proofs))) == "InvalidSignature"


def outside_subgroup() -> bytes:
    """A point of the twist that is not in the subgroup of the signatures."""
    for x in range(1, 100):
        real, imaginary = (x**3 + 4) % P, 4
        norm = pow(real * real + imaginary * imaginary, (P + 1) // 4, P)
        if norm * norm % P != (real * real + imaginary * imaginary) % P:
            continue
        for sign in (1, -1):
            half = (real + sign * norm) * pow(2, -1, P) % P
            a = pow(half, (P + 1) // 4, P)
            if a * a % P == half and a:
                b = imaginary * pow(2 * a, -1, P) % P
                point = b"".join(v.to_bytes(64, "big") for v in (x, 0, a, b))
                with pytest.raises(bls.InvalidPoint):
                    bls.signature_from_evm(point)
                return point
    raise AssertionError


def malformed(good: bytes) -> dict[str, bytes]:
    first = int.from_bytes(good[:64], "big")
    return {
        "infinity": bytes(256),
        "off the curve": good[:-1] + bytes([good[-1] ^ 1]),
        "outside the subgroup": outside_subgroup(),
        "coordinate not reduced": (first + P).to_bytes(64, "big") + good[64:],
        "dirty padding": b"\x01" + good[1:],
        "all ones": b"\xff" * 256,
        "swapped coordinates": good[64:128] + good[:64] + good[128:],
    }


@pytest.mark.parametrize("name", list(malformed(bytes(256))))
def test_a_bad_point_is_refused_and_costs_little_more_than_a_good_one(world: World, good: Certificate, name):
    bad = malformed(good.signature)[name]
    assert world.refuse(good, signature=bad) == "InvalidSignature"
    bent = replace(good, signature=bad)
    wasted = world.center.wasted("submitTaskValidation", *bent.arguments(), sender=world.submitter(good), gas=5_000_000)
    assert wasted < 260_000


def test_the_dearest_refusal_is_bounded(world: World, good: Certificate):
    many = (*good.attesters[:3], STRANGER)
    bent = replace(good, attesters=many)
    assert world.center.wasted("submitTaskValidation", *bent.arguments(), sender=account(1), gas=5_000_000) < 200_000


def test_a_refused_certificate_leaves_the_record_pending(world: World, task: Task, good: Certificate):
    world.center.wasted("submitTaskValidation", *replace(good, root=bytes(32)).arguments(), sender=account(1), gas=5_000_000)
    assert world.status(task) == 1
    world.submit(good)


def test_only_the_hub_takes_attestations_and_only_the_registry_seats(world: World):
    assert world.center.refusal("takeAttestations", 1, sender=STRANGER) == "NotHub"
    assert world.center.refusal("seatEpoch", 1, sender=STRANGER) == "NotKeeperRegistry"


def test_views_refuse_what_does_not_exist(world: World, task: Task):
    assert world.center.refusal("committee", 1, 0, sender=STRANGER) == "UnknownExecution"
    assert world.center.refusal("committee", task.id, 3, sender=STRANGER) == "RoundNotOpen"
    assert world.center.refusal("draw", bytes(32), 9, 5, sender=STRANGER) == "WrongEpoch"
    assert world.center.refusal("draw", bytes(32), 1, 16, sender=STRANGER) == "TooMany"
