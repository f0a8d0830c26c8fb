"""KeeperRegistry: proofs of possession, stake as seats, epochs, rotation, exit, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from consensus import bls
from consensus.codec import keccak
from tests.contracts.evm import create
from tests.contracts.test_center_refusals import malformed
from tests.contracts.world import EPOCH_SECONDS, MIN_STAKE, STRANGER, UNBONDING_SECONDS, USER, World, account, key, secret


def registering(world: World, i: int = 1, **changes) -> str:
    """Why a registration is refused."""
    who = world.chain.fund(account(i))
    given = {
        "key": key(i),
        "possession": world.possession(i, who),
        "peer_id": b"peer",
        "rewards": who,
        "sender": who,
        "value": MIN_STAKE,
        **changes,
    }
    arguments = [given.pop(name) for name in ("key", "possession", "peer_id", "rewards")]
    return world.registry.refusal("register", *arguments, **given)


def test_an_operator_registers_and_is_seated_by_the_next_epoch(bare: World):
    receipt = bare.register(1)
    assert bare.registry.events(receipt, "KeeperRegistered") == [
        {
            "operatorId": 1,
            "operator": account(1),
            "key": key(1),
            "peerId": b"peer1",
            "rewards": account(1),
            "stake": MIN_STAKE,
        }
    ]
    assert bare.registry.view("operatorIdOf", account(1)) == bare.registry.view("activeOperatorId", account(1)) == 1
    assert bare.registry.view("operator", 1) == {
        "id": 1,
        "account": account(1),
        "rewards": account(1),
        "stake": MIN_STAKE,
        "seats": 1,
        "peerId": b"peer1",
        "key": key(1),
        "registeredAt": bare.chain.now(),
        "fromEpoch": 1,
        "exitedAt": 0,
        "untilEpoch": 0,
    }
    assert bare.registry.view("currentEpoch") == 0
    advanced = bare.advance()
    event = bare.registry.events(advanced, "EpochAdvanced")[0]
    assert (event["epoch"], event["operators"], event["seats"], event["fromBlock"]) == (1, 1, 1, advanced.block + 1)
    assert bare.epoch().operators[0].key == bls.public_key(secret(1))
    assert bare.registry.view("operator", 99)["id"] == 0


def test_a_possession_of_another_operator_chain_or_registry_is_refused(bare: World):
    for possession in (
        bare.possession(1, account(2)),
        bare.possession(2, account(1)),
        bare.possession(1, account(1), replace(bare.domain, chain_id=1)),
        bare.possession(1, account(1), replace(bare.domain, keeper_registry=bytes(range(20)))),
        bls.signature_to_evm(bls.sign(secret(1), bare.domain.possession_digest(key(1), account(1)))),
    ):
        assert registering(bare, possession=possession) == "InvalidPossession"


def test_a_rogue_key_has_no_possession(bare: World):
    """key(2) minus key(1): its owner could cancel key 1 in a sum, but signs nothing with it."""
    order = 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001
    rogue = (secret(2) - secret(1)) % order
    point = bls.key_to_evm(bls.public_key(rogue))
    assert registering(bare, key=point, possession=bare.possession(2, account(1))) == "InvalidPossession"


def test_the_identity_is_no_key_and_no_possession(bare: World):
    assert registering(bare, key=bytes(128)) == "IdentityKey"
    assert registering(bare, key=bytes(128), possession=bytes(256)) == "IdentityKey"
    assert registering(bare, possession=bytes(256)) == "InvalidPossession"


def test_points_of_the_wrong_length_are_refused(bare: World):
    for size in (0, 48, 127, 129):
        assert registering(bare, key=(key(1) + bytes(32))[:size]) == "BadKeyLength"
    for size in (0, 96, 255, 257):
        assert registering(bare, possession=(bare.possession(1, account(1)) + bytes(32))[:size]) == "BadPossessionLength"


@pytest.mark.parametrize("name", [n for n in malformed(bytes(256)) if n != "infinity"])
def test_a_bad_possession_is_refused_at_a_bounded_price(bare: World, name):
    bad = malformed(bare.possession(1, account(1)))[name]
    assert registering(bare, possession=bad) == "InvalidPossession"
    who = account(1)
    wasted = bare.registry.wasted("register", key(1), bad, b"p", who, sender=who, value=MIN_STAKE, gas=5_000_000)
    assert wasted < 320_000


def test_a_key_off_the_curve_or_outside_the_subgroup_is_refused(bare: World):
    p = 0x1A0111EA397FE69A4B1BA7B6434BACD764774B84F38512BF6730D2A0F6B0F6241EABFFFEB153FFFFB9FEFFFFFFFFAAAB
    x = next(x for x in range(1, 50) if pow(x**3 + 4, (p - 1) // 2, p) == 1)
    y = pow(x**3 + 4, (p + 1) // 4, p)
    outside = x.to_bytes(64, "big") + y.to_bytes(64, "big")
    with pytest.raises(bls.InvalidPoint):
        bls.key_from_evm(outside)
    off = key(1)[:-1] + bytes([key(1)[-1] ^ 1])
    unreduced = (int.from_bytes(key(1)[:64], "big") + p).to_bytes(64, "big") + key(1)[64:]
    for bad in (outside, off, unreduced, b"\x01" + key(1)[1:]):
        assert registering(bare, key=bad) == "InvalidPossession"


def test_each_misuse_of_register_has_its_reason(bare: World):
    assert registering(bare, value=MIN_STAKE - 1) == "StakeTooLow"
    assert registering(bare, peer_id=b"") == "BadPeerId"
    assert registering(bare, rewards=bytes(20)) == "ZeroRewards"
    bare.register(1)
    assert registering(bare) == "AlreadyRegistered"
    assert registering(bare, 2, key=key(1), possession=bare.possession(1, account(2))) == "KeyReused"


def test_a_key_is_registered_once_ever(bare: World):
    bare.register(1)
    bare.registry.send("rotateKey", key(2), bare.possession(2, account(1)), sender=account(1))
    assert registering(bare, 3, key=key(1), possession=bare.possession(1, account(3))) == "KeyReused"
    back = bare.registry.refusal("rotateKey", key(1), bare.possession(1, account(1)), sender=account(1))
    assert back == "KeyReused"


def test_stake_buys_seats_up_to_eight(bare: World):
    for i, stake in enumerate((1, 2, 5, 8, 9, 100), start=1):
        bare.register(i, stake=stake * MIN_STAKE + 1)
    bare.advance()
    seats = bare.epoch().seats
    assert [seats.count(p) for p in range(6)] == [1, 2, 5, 8, 8, 8]
    assert list(seats) == sorted(seats)


def test_added_stake_counts_from_the_next_epoch(bare: World):
    bare.register(1)
    bare.register(2)
    bare.advance()
    receipt = bare.registry.send("addStake", sender=account(1), value=2 * MIN_STAKE)
    assert bare.registry.events(receipt, "StakeAdded") == [{"operatorId": 1, "stake": 3 * MIN_STAKE}]
    assert bare.epoch().seats == (0, 1)
    bare.advance()
    assert bare.epoch().seats == (0, 0, 0, 1)
    assert bare.registry.refusal("addStake", sender=account(1)) == "ZeroAmount"
    assert bare.registry.refusal("addStake", sender=STRANGER, value=1) == "UnknownOperator"


def test_stake_that_buys_no_seat_changes_no_epoch(bare: World):
    bare.register(1)
    bare.advance()
    bare.registry.send("addStake", sender=account(1), value=1)
    assert bare.registry.view("changed") is False


def test_seats_and_operators_are_limited(bare: World):
    for i in range(1, 24):
        bare.register(i, stake=8 * MIN_STAKE)
    bare.register(24, stake=7 * MIN_STAKE)
    assert registering(bare, 25, value=2 * MIN_STAKE) == "NoSeatsLeft"
    bare.register(25)
    assert bare.registry.refusal("addStake", sender=account(24), value=MIN_STAKE) == "NoSeatsLeft"
    bare.registry.send("exit", sender=account(25))
    bare.registry.send("addStake", sender=account(24), value=MIN_STAKE)
    assert bare.registry.view("seatCount") == 192
    bare.advance()
    epoch = bare.epoch()
    assert len(epoch.seats) == 192
    assert len(epoch.operators) == 24


def test_an_epoch_holds_150_operators(bare: World):
    for i in range(1, 151):
        bare.register(i)
    assert registering(bare, 151) == "TooManyOperators"
    receipt = bare.advance()
    assert receipt.gas < 8_000_000
    epoch = bare.epoch()
    assert [o.id for o in epoch.operators] == list(range(1, 151))
    assert all(o.key == bls.public_key(secret(o.id)) and o.address == account(o.id) for o in epoch.operators)
    assert epoch.seats == tuple(range(150))


def test_rotation_takes_effect_with_the_next_epoch_and_keeps_the_old_key_on_record(bare: World):
    bare.register(1)
    bare.register(2)
    bare.advance()
    receipt = bare.registry.send("rotateKey", key(3), bare.possession(3, account(1)), sender=account(1))
    assert bare.registry.events(receipt, "KeyRotated") == [{"operatorId": 1, "key": key(3), "fromEpoch": 2}]
    assert bare.epoch().operators[0].key == bls.public_key(secret(1))
    bare.advance()
    assert bare.epoch().operators[0].key == bls.public_key(secret(3))
    assert bare.epoch(1).operators[0].key == bls.public_key(secret(1))
    assert bare.registry.view("operator", 1)["key"] == key(3)
    old, new = (bare.registry.view("keySlots", bare.registry.view("keySlotOf", keccak(key(i)))) for i in (1, 3))
    assert (old["operatorId"], old["fromEpoch"], old["untilEpoch"]) == (1, 1, 1)
    assert (new["operatorId"], new["fromEpoch"], new["untilEpoch"]) == (1, 2, 2**256 - 1)
    assert bare.chain.code(old["holder"])[24:] == key(1)


def test_rotation_needs_possession(bare: World):
    bare.register(1)
    assert bare.registry.refusal("rotateKey", key(2), bare.possession(2, account(2)), sender=account(1)) == "InvalidPossession"
    assert bare.registry.refusal("rotateKey", key(2), bare.possession(2, STRANGER), sender=STRANGER) == "UnknownOperator"


def test_exit_leaves_with_the_next_epoch_and_pays_after_unbonding(bare: World):
    for i in (1, 2, 3):
        bare.register(i)
    bare.advance()
    receipt = bare.registry.send("exit", sender=account(1))
    assert bare.registry.events(receipt, "KeeperExited") == [{"operatorId": 1, "operator": account(1), "untilEpoch": 1}]
    assert bare.registry.view("activeOperatorId", account(1)) == 0
    assert bare.registry.view("operator", 1)["exitedAt"] == bare.chain.now()
    assert bare.registry.refusal("exit", sender=account(1)) == "Exited"
    assert bare.registry.refusal("withdraw", sender=account(1)) == "StillSeated"
    bare.chain.warp(10 * UNBONDING_SECONDS)
    assert bare.registry.refusal("withdraw", sender=account(1)) == "StillSeated"
    bare.advance()
    assert [o.id for o in bare.epoch().operators] == [3, 2]
    assert bare.registry.refusal("withdraw", sender=account(1)) == "Unbonding"
    bare.chain.warp(UNBONDING_SECONDS)
    before = bare.chain.balance(account(1))
    paid = bare.registry.send("withdraw", sender=account(1))
    assert bare.chain.balance(account(1)) == before + MIN_STAKE - paid.gas * paid.price
    assert bare.registry.refusal("withdraw", sender=account(1)) == "NothingToWithdraw"
    assert bare.chain.balance(bare.registry.address) == 2 * MIN_STAKE


def test_nobody_withdraws_without_exit(bare: World):
    bare.register(1)
    assert bare.registry.refusal("withdraw", sender=account(1)) == "NotExited"
    assert bare.registry.refusal("withdraw", sender=STRANGER) == "UnknownOperator"


def test_who_came_back_has_a_new_id_and_needs_a_new_key(bare: World):
    bare.register(1)
    bare.register(2)
    bare.advance()
    bare.registry.send("exit", sender=account(1))
    assert registering(bare, key=key(3), possession=bare.possession(3, account(1))) == "AlreadyRegistered"
    bare.advance()
    bare.chain.warp(UNBONDING_SECONDS)
    bare.registry.send("withdraw", sender=account(1))
    assert registering(bare) == "KeyReused"
    again = (key(3), bare.possession(3, account(1)), b"peer", account(1))
    bare.registry.send("register", *again, sender=account(1), value=MIN_STAKE)
    assert bare.registry.view("operatorIdOf", account(1)) == 3
    assert bare.registry.view("operator", 1)["stake"] == 0


def test_a_re_entering_withdrawal_gets_its_stake_once(bare: World):
    puppet = create(bare.chain, "Puppet", USER)
    who = puppet.address
    bare.register(2)
    call = bare.registry.encode("register", key(1), bare.possession(1, who), b"peer", who)
    puppet.send("do", bare.registry.address, call, sender=USER, value=MIN_STAKE)
    puppet.send("do", bare.registry.address, bare.registry.encode("exit"), sender=USER)
    bare.advance()
    bare.chain.warp(UNBONDING_SECONDS)
    withdraw = bare.registry.encode("withdraw")
    puppet.send("arm", bare.registry.address, withdraw, sender=USER)
    puppet.send("do", bare.registry.address, withdraw, sender=USER)
    assert puppet.view("ok") is False
    assert bare.chain.balance(who) == bare.chain.balance(bare.registry.address) == MIN_STAKE


def test_epochs_advance_no_faster_than_they_may_and_only_for_a_change(bare: World):
    assert bare.registry.refusal("advanceEpoch", sender=STRANGER) == "NothingChanged"
    bare.register(1)
    bare.advance()
    assert bare.registry.refusal("advanceEpoch", sender=STRANGER) == "NothingChanged"
    bare.register(2)
    assert bare.registry.refusal("advanceEpoch", sender=STRANGER) == "TooEarly"
    bare.chain.warp(EPOCH_SECONDS)
    bare.registry.send("advanceEpoch", sender=STRANGER)
    assert bare.registry.view("currentEpoch") == 2


def test_each_block_belongs_to_one_epoch(bare: World):
    starts = []
    for i in range(1, 6):
        bare.register(i)
        starts.append(bare.advance().block + 1)
        bare.chain.mine(i)
    for block in range(starts[0] - 2, bare.chain.number() + 3):
        expected = sum(start <= block for start in starts)
        assert bare.registry.view("epochAt", block) == expected
    assert [bare.registry.view("epochInfo", e)[3] for e in range(1, 6)] == starts
    assert bare.registry.view("epochInfo", 6) == (bytes(20), 0, 0, 0)


def test_everybody_may_leave(bare: World):
    bare.register(1)
    bare.advance()
    bare.registry.send("exit", sender=account(1))
    bare.advance()
    assert bare.epoch().operators == ()
    bare.chain.warp(UNBONDING_SECONDS)
    bare.registry.send("withdraw", sender=account(1))
    assert bare.chain.balance(bare.registry.address) == 0


def test_peer_ids_and_rewards_are_the_operators_to_set(bare: World):
    bare.register(1)
    bare.registry.send("setPeerId", b"another", sender=account(1))
    assert bare.registry.view("operator", 1)["peerId"] == b"another"
    assert bare.registry.refusal("setPeerId", b"", sender=account(1)) == "BadPeerId"
    assert bare.registry.refusal("setPeerId", b"x", sender=STRANGER) == "UnknownOperator"
    assert bare.registry.refusal("setRewards", bytes(20), sender=account(1)) == "ZeroRewards"
    assert bare.registry.refusal("setRewards", STRANGER, sender=STRANGER) == "UnknownOperator"
    bare.registry.send("setRewards", STRANGER, sender=account(1))
    assert bare.registry.view("rewardsOf", 1) == STRANGER


def test_a_peer_id_is_one_operators_only(bare: World):
    """Votes count for the operator whose peer sends them: two with one peer id would speak for each other."""
    bare.register(1)
    bare.register(2)
    assert registering(bare, 3, peer_id=b"peer1") == "PeerIdTaken"
    assert bare.registry.refusal("setPeerId", b"peer1", sender=account(2)) == "PeerIdTaken"
    bare.registry.send("setPeerId", b"peer1", sender=account(1))
    bare.registry.send("setPeerId", b"another", sender=account(1))
    bare.registry.send("setPeerId", b"peer1", sender=account(2))
    assert bare.registry.refusal("setPeerId", b"peer1", sender=account(1)) == "PeerIdTaken"
    assert registering(bare, 3, peer_id=b"another") == "PeerIdTaken"
    bare.registry.send("setPeerId", b"peer2", sender=account(1))


def test_a_peer_id_stays_with_the_account_that_left(bare: World):
    bare.register(1)
    bare.register(2)
    bare.advance()
    bare.registry.send("exit", sender=account(1))
    assert registering(bare, 3, peer_id=b"peer1") == "PeerIdTaken"
    bare.advance()
    bare.chain.warp(UNBONDING_SECONDS)
    bare.registry.send("withdraw", sender=account(1))
    again = (key(3), bare.possession(3, account(1)), b"peer1", account(1))
    bare.registry.send("register", *again, sender=account(1), value=MIN_STAKE)
    assert bare.registry.view("operator", 3)["peerId"] == b"peer1"


def test_the_contract_states_a_possession_as_python_does(bare: World):
    assert bare.registry.view("possessionDigest", key(4), account(4)) == bare.domain.possession_digest(key(4), account(4))
