"""Contracts and Python compute the same bytes: ids, digests, trees, draws, and the hash to the curve."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from eth_keys.datatypes import PrivateKey
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from py_arkworks_bls12381 import G2Point

from consensus import committee, ecdsa, merkle
from consensus.codec import EXECUTION_TYPEHASH, keccak, task_id, words
from consensus.committee import Operator
from consensus.messages import Authorisation, Uint256
from tests.contracts.evm import Contract, create
from tests.contracts.world import DISPATCHER, STRANGER, USER, Certificate, World, account

uint256 = st.integers(0, 2**256 - 1)
address = st.binary(min_size=20, max_size=20)
bytes32 = st.binary(min_size=32, max_size=32)
P = 0x1A0111EA397FE69A4B1BA7B6434BACD764774B84F38512BF6730D2A0F6B0F6241EABFFFEB153FFFFB9FEFFFFFFFFAAAB


def few(examples: int) -> Callable[[Any], Any]:
    """Each example costs a call of the chain; the fixture is only read."""
    return settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(job=uint256, trigger=uint256)
@few(20)
def test_task_ids(world: World, job, trigger):
    assert world.hub.view("taskId", job, trigger) == task_id(job, trigger)


@given(
    a=st.builds(
        Authorisation,
        job_id=uint256.map(Uint256),
        trigger_id=uint256.map(Uint256),
        attempt=st.integers(1, 255),
        performer=address,
        spec=bytes32,
        target=address,
        selector=st.binary(min_size=4, max_size=4),
        call_hash=bytes32,
        gas_limit=st.integers(1, 30_000_000),
        level=st.integers(0, 4),
        max_fee=uint256.map(Uint256),
        not_before=st.integers(0, 2**40),
        deadline=st.integers(2**40, 2**62),
    )
)
@few(30)
def test_authorisation_digests(world: World, a: Authorisation):
    digest = world.hub.view("authorisationDigest", world.struct(a))
    assert digest == world.domain.hub_digest(a.struct_hash())
    signature = world.signed(a)
    assert ecdsa.recover(digest, signature) == DISPATCHER.public_key.to_canonical_address()


@given(root=bytes32, block=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**64 - 1), round_=st.integers(0, 255))
@few(20)
def test_attestation_digests(world: World, root, block, epoch, round_):
    assert world.center.view("attestationDigest", root, block, epoch, round_) == world.domain.attestation_digest(
        root, block, epoch, round_
    )


@given(call=st.binary(max_size=300), spec=bytes32, resources=st.integers(0, 10**12), value=uint256)
@few(8)
def test_execution_digests(world: World, call, spec, resources, value):
    data = call or world.ping(value)
    job = world.create_job()
    task = world.execute(job, call=data, spec=spec, resource_fee=resources)
    a = task.authorisation
    now = world.hub.view("execution", task.id)["timestamp"]
    fields = (task.id, a.job_id, a.trigger_id, a.attempt, a.performer, spec, a.target, keccak(data))
    assert task.digest == keccak(words(EXECUTION_TYPEHASH, *fields, task.success, task.fee, task.block, now))


@given(count=st.integers(1, 32), index=st.integers(0, 31), salt=st.binary(max_size=8))
@few(12)
def test_trees(world: World, count, index, salt):
    """The center accepts Python's root with Python's path, and no other neighbour's."""
    index %= count
    task = world.execute(world.create_job())
    others = [merkle.leaf(i, keccak(salt + bytes([i])), 2) for i in range(count - 1)]
    certificate = world.certificate(task, others=others, index=index)
    if count > 1:
        assert world.refuse(certificate, index=index ^ 1) == "WrongRoot"
    world.submit(certificate)
    assert world.status(task) == 2


@given(stakes=st.lists(st.integers(1, 9), min_size=1, max_size=24), seed=st.integers(0, 2**32))
@example(stakes=[8] * 24, seed=0)
@example(stakes=[1], seed=0)
@few(6)
def test_draws(bare: World, stakes, seed):
    """Random seats, seeds and sizes: the same operators in the same order."""
    snapshot = bare.chain.rpc("evm_snapshot")
    for i, stake in enumerate(stakes, start=1):
        bare.register(i, stake=stake * 10**18)
    bare.advance()
    epoch = bare.epoch()
    assert [epoch.seats.count(p) for p in range(len(stakes))] == [min(s, 8) for s in stakes]
    generator = random.Random(seed)
    for _ in range(8):
        drawn_from = generator.randbytes(32)
        n = generator.randint(0, 15)
        expected = [epoch.operators[p].address for p in committee.draw(drawn_from, epoch.seats, n + 1)]
        assert bare.center.view("draw", drawn_from, epoch.number, n) == expected
    assert bare.chain.rpc("evm_revert", snapshot)


def test_every_operator_is_drawn_as_often_as_its_seats_say(bare: World):
    """First draws over 400 seeds with seats 1, 3 and 8: within five standard deviations of their share."""
    for i, stake in enumerate((1, 3, 8), start=1):
        bare.register(i, stake=stake * 10**18)
    bare.advance()
    first = [bare.center.view("draw", keccak(bytes([n % 256, n // 256])), 1, 0)[0] for n in range(400)]
    for i, seats in ((1, 1), (2, 3), (3, 8)):
        share = seats / 12
        assert abs(first.count(account(i)) - 400 * share) < 5 * (400 * share * (1 - share)) ** 0.5


@given(n=st.integers(0, 200))
@few(30)
def test_quorums(world: World, n):
    assert world.center.view("quorum", n) == committee.yes_quorum(n)
    assert world.center.view("rejection", n) == committee.no_quorum(n)


def test_sets_are_read_back_as_registered(world: World):
    epoch = world.epoch()
    assert [(o.id, o.address) for o in epoch.operators] == [(i, account(i)) for i in range(1, 11)]
    assert isinstance(epoch.operators[0], Operator)


@pytest.fixture
def probe(bare: World) -> Contract:
    return create(bare.chain, "Probe", USER)


@given(high=uint256, low=uint256)
@example(high=0, low=0)
@example(high=P >> 256, low=P % 2**256)
@example(high=P >> 256, low=P % 2**256 - 1)
@example(high=2**256 - 1, low=2**256 - 1)
@example(high=2**256 - 1, low=0)
@example(high=0, low=2**256 - 1)
@few(60)
def test_reduction_modulo_p(bare: World, probe: Contract, high, low):
    a, b = probe.view("mod_p", high, low)
    assert (a << 256) | b == ((high << 256) | low) % P


@given(k=st.integers(0, 2**512 // P), off=st.integers(-2, 2))
@few(60)
def test_reduction_around_multiples_of_p(bare: World, probe: Contract, k, off):
    x = min(max(k * P + off, 0), 2**512 - 1)
    a, b = probe.view("mod_p", x >> 256, x % 2**256)
    assert (a << 256) | b == x % P


@given(message=bytes32, tag=st.sampled_from([b"SIG", b"POP"]))
@few(12)
def test_hash_to_curve(bare: World, probe: Contract, message, tag):
    dst = b"BLS_" + tag + b"_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_"
    expected = G2Point.hash_to_curve(message, dst).to_xy_bytes_be()
    padded = b"".join(bytes(16) + expected[i : i + 48] for i in range(0, 192, 48))
    assert probe.view("hash_to_g2", message, int.from_bytes(dst[:31], "big")) == padded


def test_a_packed_certificate_has_the_documented_bytes():
    """version, verdict, round, leaf index, depth, submitter's position, epoch u64, block u64, signature, path."""
    made = Certificate(1, bytes(32), b"s" * 256, (), 2, 1, 3, 4, index=5, path=(b"p" * 32,) * 3, position=6)
    packed = made.arguments()[2]
    assert packed == bytes([1, 2, 1, 5, 3, 6]) + bytes(7) + b"\3" + bytes(7) + b"\4" + b"s" * 256 + b"p" * 96


def test_keys_of_the_tests_are_not_the_dispatchers():
    assert isinstance(DISPATCHER, PrivateKey)
    assert DISPATCHER.public_key.to_canonical_address() != STRANGER
