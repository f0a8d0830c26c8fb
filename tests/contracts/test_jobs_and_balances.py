"""JobRegistry and TriggerGasRegistry: who may create, delete, deposit, withdraw, and deduct."""

from __future__ import annotations

import pytest

from consensus.codec import keccak, word, words
from tests.contracts.evm import create
from tests.contracts.world import ETHER, STRANGER, USER, World


def test_a_job_id_is_of_this_chain_and_this_registry_only(bare: World):
    first, second = bare.create_job(), bare.create_job()
    mine = [int.from_bytes(keccak(words(31337, bare.jobs.address, n)), "big") for n in (1, 2)]
    assert [first, second] == mine


def test_a_job_keeps_what_the_hub_needs(bare: World):
    job_id = bare.create_job(kind=2, time_frame=99, data=word(0) + word(b"url"))
    assert bare.jobs.view("job", job_id) == {
        "owner": USER,
        "jobType": 2,
        "createdAt": bare.chain.now(),
        "timeFrame": 99,
        "target": bare.demo.address,
        "word": 0,
        "active": True,
    }
    assert bare.jobs.view("job", job_id + 1)["owner"] == bytes(20)


@pytest.mark.parametrize(
    ("kind", "time_frame", "target", "data", "reason"),
    [
        (0, 60, None, word(1), "InvalidJobType"),
        (8, 60, None, word(1), "InvalidJobType"),
        (1, 0, None, word(1), "InvalidTimeFrame"),
        (1, 2**40, None, word(1), "InvalidTimeFrame"),
        (1, 60, bytes(20), word(1), "InvalidTarget"),
        (1, 60, None, b"", "InvalidJobData"),
        (1, 60, None, word(1)[1:], "InvalidJobData"),
        (1, 60, None, word(2**40), "InvalidJobData"),
        (3, 60, None, word(2), "InvalidJobData"),
        (6, 60, None, word(2), "InvalidJobData"),
    ],
)
def test_a_job_that_means_nothing_is_refused(bare: World, kind, time_frame, target, data, reason):
    target = bare.demo.address if target is None else target
    assert bare.jobs.refusal("createJob", "x", kind, time_frame, target, data, sender=USER) == reason


def test_only_a_script_may_leave_the_target_open(bare: World):
    assert bare.jobs.view("job", bare.create_job(kind=7, target=bytes(20)))["target"] == bytes(20)


def test_only_its_owner_deletes_a_job_and_once(bare: World):
    job_id = bare.create_job()
    assert bare.jobs.refusal("deleteJob", job_id, sender=STRANGER) == "NotJobOwner"
    assert bare.jobs.refusal("deleteJob", job_id + 1, sender=USER) == "UnknownJob"
    deleted = bare.jobs.send("deleteJob", job_id, sender=USER)
    assert bare.jobs.events(deleted, "JobDeleted")[0]["jobId"] == job_id
    assert bare.jobs.view("job", job_id)["active"] is False
    assert bare.jobs.refusal("deleteJob", job_id, sender=USER) == "JobInactive"


def test_a_deposit_is_the_value_sent(bare: World):
    receipt = bare.deposit(5)
    assert bare.gas.events(receipt, "ETHDeposited") == [{"user": USER, "ethAmount": 5}]
    assert bare.gas.view("getBalance", USER) == bare.gas.view("balances", USER) == 5
    assert bare.gas.refusal("depositETH", 5, sender=USER, value=4) == "WrongAmount"
    assert bare.gas.refusal("depositETH", 0, sender=USER) == "ZeroAmount"


def test_a_user_withdraws_his_own_and_no_more(bare: World):
    bare.deposit(ETHER)
    assert bare.gas.refusal("withdrawETHBalance", ETHER + 1, sender=USER) == "InsufficientBalance"
    assert bare.gas.refusal("withdrawETHBalance", 1, sender=STRANGER) == "InsufficientBalance"
    assert bare.gas.refusal("withdrawETHBalance", 0, sender=USER) == "ZeroAmount"
    before = bare.chain.balance(USER)
    receipt = bare.gas.send("withdrawETHBalance", ETHER, sender=USER)
    assert bare.chain.balance(USER) == before + ETHER - receipt.gas * receipt.price
    assert bare.chain.balance(bare.gas.address) == bare.gas.view("getBalance", USER) == 0


@pytest.mark.parametrize("function", ["deductETHBalance", "creditETHBalance", "pay"])
def test_only_the_hub_moves_the_balances_of_others(bare: World, function):
    bare.deposit(ETHER)
    for who in (STRANGER, USER, bare.center.address):
        assert bare.gas.refusal(function, USER, 1, sender=who) == "NotHub"


def test_a_re_entering_withdrawal_gets_its_balance_once(bare: World):
    puppet = create(bare.chain, "Puppet", USER)
    bare.deposit(ETHER)
    puppet.send("do", bare.gas.address, bare.gas.encode("depositETH", 100), sender=USER, value=100)
    puppet.send("arm", bare.gas.address, bare.gas.encode("withdrawETHBalance", 100), sender=USER)
    puppet.send("do", bare.gas.address, bare.gas.encode("withdrawETHBalance", 100), sender=USER)
    assert puppet.view("calls") == 1
    assert puppet.view("ok") is False
    assert bare.chain.balance(puppet.address) == 100
    assert bare.chain.balance(bare.gas.address) == ETHER


def test_eth_that_nobody_books_is_refused(bare: World):
    for contract in (bare.gas, bare.hub, bare.center, bare.jobs, bare.registry):
        assert contract.chain.fund(USER)
        with pytest.raises(Exception, match="revert"):
            bare.chain.call(USER, contract.address, b"", value=1)


def test_a_payment_that_its_receiver_refuses_is_undone(bare: World):
    bare.chain.rpc("anvil_setCode", "0x" + USER.hex(), "0x")
    bare.deposit(ETHER)
    bare.chain.rpc("anvil_setCode", "0x" + USER.hex(), "0x5f5ffd")
    assert bare.gas.refusal("withdrawETHBalance", 1, sender=USER) == "TransferFailed"
