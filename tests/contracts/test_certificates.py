"""What the AttestationCenter accepts: quorums, trees, rounds, levels, late blocks; and what it then books."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from consensus import bls, merkle
from consensus.codec import keccak
from tests.contracts.evm import Refused
from tests.contracts.world import NO, ROUND_SECONDS, STRANGER, UNIT, USER, YES, World, account


def test_a_quorum_certifies(world: World):
    task = world.execute(world.create_job())
    certificate = world.certificate(task)
    receipt = world.submit(certificate)
    assert world.center.events(receipt, "TaskValidated") == [
        {
            "taskId": task.id,
            "taskNumber": 1,
            "performerId": 1,
            "submitterId": 1,
            "attesterIds": tuple(m.id for m in world.committee(task).members[:4]),
            "proofOfTask": certificate.root,
            "accepted": True,
            "round": 0,
        }
    ]
    assert world.status(task) == 2
    assert world.center.view("committee", task.id, 0) == [m.address for m in world.committee(task).members]


def test_any_four_of_five_and_all_five_certify(world: World):
    job = world.create_job()
    for i, signers in enumerate([(0, 1, 2, 3), (1, 2, 3, 4), (0, 2, 3, 4), (0, 1, 2, 3, 4)]):
        task = world.execute(job, world.due(job, i + 1))
        world.submit(world.certificate(task, signers=signers))
        assert world.status(task) == 2


def test_more_than_a_third_rejects_and_refunds(world: World):
    task = world.execute(world.create_job())
    before = world.gas.view("getBalance", USER)
    receipt = world.submit(world.certificate(task, verdict=NO))
    event = world.center.events(receipt, "TaskValidated")[0]
    assert (event["accepted"], len(event["attesterIds"])) == (False, 2)
    assert world.status(task) == 3
    assert world.gas.view("getBalance", USER) == before + task.fee
    assert all(world.center.view("attestations", i) == 0 for i in range(1, 11))
    assert world.hub.view("owed", task.id, 1) == 0


def test_the_fee_is_the_performers_the_attesters_and_the_submitters(world: World):
    task = world.execute(world.create_job())
    submitter = 7
    certificate = world.certificate(task, signers=range(5))
    world.submit(replace(certificate, position=submitter - 1))
    record = world.hub.view("execution", task.id)
    share = record["validationShare"]
    assert world.hub.view("owed", task.id, submitter) == share
    assert world.hub.view("owed", task.id, 1) == task.fee - share - 5 * UNIT
    attesters = {m.id for m in world.committee(task).members}
    assert {i for i in range(1, 11) if world.center.view("attestations", i)} == attesters
    for i in {1, submitter} | attesters:
        before = world.chain.balance(account(i))
        world.hub.send("claim", i, [task.id, task.id], sender=STRANGER)
        due = (task.fee - share - 5 * UNIT) * (i == 1) + share * (i == submitter) + UNIT * (i in attesters)
        assert world.chain.balance(account(i)) - before == due
        assert world.hub.refusal("claim", i, [task.id], sender=STRANGER) == "NothingToClaim"
    assert world.chain.balance(world.gas.address) == world.gas.view("getBalance", USER)
    assert world.hub.refusal("claim", 99, [], sender=STRANGER) == "UnknownOperator"


def test_a_failed_execution_pays_its_gas_and_no_attester(world: World):
    task = world.execute(world.create_job(), call=world.demo.encode("fail"))
    world.submit(world.certificate(task))
    assert world.status(task) == 2
    assert world.hub.view("owed", task.id, 1) == task.fee  # submitter and performer at once
    assert all(world.center.view("attestations", i) == 0 for i in range(1, 11))


def test_earnings_go_to_the_rewards_address(world: World):
    task = world.execute(world.create_job())
    world.submit(world.certificate(task))
    elsewhere = keccak(b"cold wallet")[:20]
    world.registry.send("setRewards", elsewhere, sender=account(1))
    world.hub.send("claim", 1, [task.id], sender=STRANGER)
    assert world.chain.balance(elsewhere) >= world.hub.view("execution", task.id)["validationShare"]


def test_attestations_are_counted_beyond_a_byte(world: World):
    """Counters are a byte each and carry: 300 attestations are 300 units."""
    slot = keccak(counts_slot(world).to_bytes(32, "big") + (0).to_bytes(32, "big"))
    full = int.from_bytes(bytes([254]) * 32, "big")
    world.chain.rpc("anvil_setStorageAt", "0x" + world.center.address.hex(), "0x" + slot.hex(), f"0x{full:064x}")
    job = world.create_job()
    counted = dict.fromkeys(range(1, 11), 254)
    for i in range(8):
        task = world.execute(job, world.due(job, i + 1))
        world.submit(world.certificate(task, signers=range(5)))
        for member in world.committee(task).members:
            counted[member.id] += 1
    assert max(counted.values()) > 256
    assert {i: world.center.view("attestations", i) for i in counted} == counted


def counts_slot(world: World) -> int:
    """The storage slot of AttestationCenter.counts: the one mapping that a certificate writes."""
    for slot in range(8):
        place = keccak(slot.to_bytes(32, "big") + (0).to_bytes(32, "big"))
        world.chain.rpc("anvil_setStorageAt", "0x" + world.center.address.hex(), "0x" + place.hex(), f"0x{5:064x}")
        found = world.center.view("attestations", 1) == 5
        world.chain.rpc("anvil_setStorageAt", "0x" + world.center.address.hex(), "0x" + place.hex(), f"0x{0:064x}")
        if found:
            return slot
    raise AssertionError("no such slot")


@pytest.mark.parametrize(("count", "index"), [(1, 0), (2, 1), (3, 0), (3, 2), (5, 4), (32, 0), (32, 17), (32, 31)])
def test_a_leaf_of_a_larger_tree_certifies(world: World, count, index):
    task = world.execute(world.create_job())
    others = [merkle.leaf(n, keccak(bytes([n])), YES) for n in range(count - 1)]
    certificate = world.certificate(task, others=others, index=index)
    assert len(certificate.path) == (count - 1).bit_length()
    world.submit(certificate)
    assert world.status(task) == 2


def test_tasks_of_one_block_share_a_committee_and_one_certificate(world: World):
    jobs = [world.create_job(), world.create_job(), world.create_job()]
    second = max(world.due(job) for job in jobs)
    world.chain.rpc("evm_setAutomine", False)
    hashes, authorisations = [], []
    for job in jobs:
        second = world.jobs.view("job", job)["createdAt"] + 10
        a = world.authorise(job, second, account(1), world.ping(7))
        data = world.hub.encode("execute", world.struct(a), world.signed(a), a.target, world.ping(7), 0)
        request = world.chain.request(account(1), world.hub.address, data, 0, 2_000_000)
        hashes.append(world.chain.rpc("eth_sendTransaction", request))
        authorisations.append(a)
    world.chain.mine()
    world.chain.rpc("evm_setAutomine", True)
    ids = [a.task_id for a in authorisations]
    records = [world.hub.view("execution", i) for i in ids]
    block = {r["blockNumber"] for r in records}
    assert len(block) == 1
    assert [r["taskNumber"] for r in records] == [1, 2, 3]
    drawn = world.center.view("committee", ids[0], 0)
    assert all(world.center.view("committee", i, 0) == drawn for i in ids)
    leaves = [merkle.leaf(i, r["digest"], YES) for i, r in zip(ids, records, strict=True)]
    root = merkle.root(leaves)
    numbers = [next(n for n in range(1, 11) if account(n) == a) for a in drawn[:4]]
    signature = world.sign(numbers, root, block.pop(), 1)
    for place, i in enumerate(ids):
        head = bytes([1, YES, 0, place, 2, 0]) + (1).to_bytes(8, "big") + records[0]["blockNumber"].to_bytes(8, "big")
        packed = head + signature + b"".join(merkle.path(leaves, place))
        world.center.send("submitTaskValidation", i, root, packed, drawn[:4], sender=account(1))
    assert [world.hub.view("execution", i)["status"] for i in ids] == [2, 2, 2]


@pytest.mark.parametrize("level", [0, 1, 2, 3, 4])
def test_each_security_level_has_its_committee(world: World, level):
    task = world.execute(world.create_job(), level=level)
    drawn = world.committee(task)
    assert len(drawn.members) == {0: 5, 1: 9, 2: 7, 3: 5, 4: 3}[level]  # level 1 asks for 13 of ten operators
    assert world.refuse(world.certificate(task, signers=range(drawn.yes_quorum - 1))) == "TooFewSigners"
    world.submit(world.certificate(task))
    assert world.status(task) == 2


@pytest.mark.parametrize("performer", range(1, 11))
def test_the_performer_never_sits_on_its_own_committee(world: World, performer):
    task = world.execute(world.create_job(), performer=account(performer), level=1)
    drawn = world.committee(task)
    assert performer not in {m.id for m in drawn.members}
    world.submit(world.certificate(task, signers=range(len(drawn.members))))
    assert world.status(task) == 2


def test_random_subsets_of_the_committee_certify_whatever_the_seats(bare: World):
    """The one-pass draw of a certificate equals the draw of the views and of Python, with many seats held by few."""
    generator = random.Random(1)
    for i in range(1, 21):
        bare.register(i, stake=generator.choice([1, 1, 2, 5, 8, 8, 8]) * 10**18)
    bare.advance()
    bare.deposit(10**20)
    assert bare.epoch().seats.count(0) >= 1
    assert len(bare.epoch().seats) > 64
    job = bare.create_job()
    for i in range(1, 25):
        performer = account(generator.randint(1, 20))
        level = generator.randint(0, 4)
        task = bare.execute(job, bare.due(job, i), performer=performer, level=level)
        drawn = bare.committee(task)
        assert bare.center.view("committee", task.id, 0) == [m.address for m in drawn.members]
        count = generator.randint(drawn.yes_quorum, len(drawn.members))
        signers = sorted(generator.sample(range(len(drawn.members)), count))
        event = bare.center.events(bare.submit(bare.certificate(task, signers=signers)), "TaskValidated")[0]
        assert event["attesterIds"] == tuple(drawn.members[s].id for s in signers)


@pytest.mark.parametrize("round_", [1, 2])
def test_a_later_round_has_its_own_committee(world: World, round_):
    task = world.execute(world.create_job())
    certificate = world.certificate(task, round_=round_)
    assert world.refuse(certificate) == "RoundNotOpen"
    world.chain.warp(round_ * ROUND_SECONDS)
    assert world.center.view("committee", task.id, round_) == [m.address for m in world.committee(task, round_).members]
    world.submit(certificate)
    assert world.status(task) == 2


def test_an_earlier_rounds_certificate_still_counts(world: World):
    task = world.execute(world.create_job())
    certificate = world.certificate(task)
    world.chain.warp(3 * ROUND_SECONDS)
    world.submit(certificate)
    assert world.status(task) == 2


def test_there_is_no_fourth_round(world: World):
    task = world.execute(world.create_job())
    certificate = world.certificate(task)
    world.chain.warp(10 * ROUND_SECONDS)
    assert world.refuse(certificate, round=3) == "RoundNotOpen"
    assert world.refuse(certificate, round=255) == "RoundNotOpen"


def test_an_execution_without_certificate_expires_and_is_refunded(world: World):
    task = world.execute(world.create_job())
    certificate = world.certificate(task)
    before = world.gas.view("getBalance", USER)
    world.chain.warp_to(world.hub.view("execution", task.id)["timestamp"] + 4 * ROUND_SECONDS - 2)
    assert world.center.refusal("expire", task.id, sender=STRANGER) == "RoundsOpen"
    world.chain.warp(2)
    receipt = world.center.send("expire", task.id, sender=STRANGER)
    assert world.center.events(receipt, "TaskExpired") == [{"taskId": task.id, "taskNumber": 1}]
    assert world.status(task) == 4
    assert world.gas.view("getBalance", USER) == before + task.fee
    assert world.center.refusal("expire", task.id, sender=STRANGER) == "AlreadyCertified"
    assert world.refuse(certificate) == "AlreadyCertified"


def test_what_was_never_executed_or_is_certified_does_not_expire(world: World):
    assert world.center.refusal("expire", 1, sender=STRANGER) == "UnknownExecution"
    task = world.execute(world.create_job())
    world.submit(world.certificate(task))
    world.chain.warp(10 * ROUND_SECONDS)
    assert world.center.refusal("expire", task.id, sender=STRANGER) == "AlreadyCertified"


def test_a_block_older_than_256_is_still_known(world: World):
    task = world.execute(world.create_job())
    certificate = world.certificate(task)
    world.chain.mine(300)
    world.submit(certificate)
    assert world.status(task) == 2


def test_a_block_that_the_chain_has_forgotten_certifies_nothing(world: World):
    task = world.execute(world.create_job())
    certificate = world.certificate(task)
    world.chain.mine(300)
    history = "0x0000f90827f1c53a10cb7a02335b175320002935"  # EIP-2935: reverts for what is older than 8,191 blocks
    world.chain.rpc("anvil_setCode", history, "0x5f5ffd")
    assert world.refuse(certificate) == "BlockHashUnknown"


def test_the_block_that_executes_cannot_certify(world: World):
    """Within it its hash, and with it its committee, is unknown to everybody."""
    task = world.execute(world.create_job())
    data = world.center.encode("submitTaskValidation", *world.certificate(task).arguments())
    request = world.chain.request(account(1), world.center.address, data, 0, 5_000_000)
    with pytest.raises(Refused, match="BlockHashUnknown"):
        world.chain.rpc("eth_call", request, hex(task.block))


def test_two_operators_are_a_committee_of_one_and_one_operator_is_none(bare: World):
    bare.register(1)
    bare.advance()
    bare.deposit()
    job = bare.create_job()
    alone = bare.execute(job, bare.due(job, 1))
    nobody = bls.signature_to_evm(bls.sign(5, keccak(b"")))
    head = bytes([1, YES, 0, 0, 0, 0]) + (1).to_bytes(8, "big") + alone.block.to_bytes(8, "big")
    root = merkle.leaf(alone.id, alone.digest, YES)
    arguments = (alone.id, root, head + nobody, [account(1)])
    assert bare.center.refusal("submitTaskValidation", *arguments, sender=account(1)) == "NoCommittee"
    bare.register(2)
    bare.advance()
    task = bare.execute(job, bare.due(job, 20))
    assert [m.id for m in bare.committee(task).members] == [2]
    bare.submit(bare.certificate(task))
    assert bare.status(task) == 2
