"""Targets that attack the hub from inside their own call gain nothing and break nothing."""

from __future__ import annotations

import pytest
from eth_abi.abi import encode as abi_encode

from consensus.codec import keccak
from consensus.messages import Uint256
from tests.contracts.evm import Contract, Refused, create, reason_of
from tests.contracts.world import ETHER, UNIT, USER, World, account


def said(puppet: Contract) -> str:
    """The reason with which the puppet's own call was refused."""
    assert puppet.view("ok") is False
    return reason_of("0x" + puppet.view("answer").hex())


def books(world: World) -> int:
    """Wei that the gas registry holds beyond balances: what executions have escrowed."""
    return world.chain.balance(world.gas.address) - int(world.gas.view("getBalance", USER))


@pytest.fixture
def puppet(world: World) -> Contract:
    return create(world.chain, "Puppet", USER)


def poke(world: World, puppet: Contract, to: bytes, data: bytes, **changes):
    puppet.send("arm", to, data, sender=USER)
    job = world.create_job(target=puppet.address)
    call = puppet.encode("poke")
    task = world.execute(job, call=call, target=puppet.address, gas_limit=changes.pop("gas_limit", 1_000_000), **changes)
    assert task.success
    assert puppet.view("calls") == 1
    assert books(world) == task.fee
    return task


def test_a_target_sees_whose_job_calls_it_and_nobody_does_afterwards(world: World, puppet):
    poke(world, puppet, world.hub.address, world.hub.encode("currentJobOwner"))
    assert puppet.view("answer") == abi_encode(["address"], [USER])
    assert world.hub.view("currentJobOwner") == bytes(20)


def test_a_target_that_its_owner_did_not_register_is_told_no_owner_and_re_enters_nothing(world: World, puppet):
    opened = {"target": bytes(20), "to": puppet.address, "selector": bytes(4), "call_hash": bytes(32), "gas_limit": 1_000_000}

    def poked(data: bytes) -> bool:
        puppet.send("arm", world.hub.address, data, sender=USER)
        job = world.create_job(kind=7, target=bytes(20), data=bytes(32))
        assert world.execute(job, call=puppet.encode("poke"), **opened).success
        return bool(puppet.view("ok"))

    assert poked(world.hub.encode("currentJobOwner"))
    assert puppet.view("answer") == abi_encode(["address"], [world.hub.address])
    assert not poked(world.hub.encode("claim", 1, []))
    assert said(puppet) == "Reentered"
    assert world.hub.view("currentJobOwner") == bytes(20)


def test_a_target_cannot_re_enter_execute(world: World, puppet):
    job = world.create_job()
    a = world.authorise(job, world.due(job), puppet.address, world.ping(1))
    again = world.hub.encode("execute", world.struct(a), world.signed(a), a.target, world.ping(1), 0)
    poke(world, puppet, world.hub.address, again)
    assert said(puppet) == "Reentered"
    assert world.demo.view("count") == 0


def test_a_target_cannot_claim_while_it_runs(world: World, puppet):
    poke(world, puppet, world.hub.address, world.hub.encode("claim", 1, []))
    assert said(puppet) == "Reentered"


def test_a_target_cannot_expire_its_own_execution(world: World, puppet):
    job = world.create_job(target=puppet.address)
    task_id = world.hub.view("taskId", job, world.due(job))
    puppet.send("arm", world.center.address, world.center.encode("expire", task_id), sender=USER)
    task = world.execute(job, call=puppet.encode("poke"), target=puppet.address, gas_limit=500_000)
    assert said(puppet) == "Reentered"
    assert world.status(task) == 1


def test_a_target_cannot_withdraw_what_is_locked_for_its_own_fee(world: World, puppet):
    """The target owns the job: its balance, all of it locked, is its own to withdraw, but nothing is left to."""
    owner = world.chain.fund(puppet.address)
    world.deposit(ETHER, owner)
    job = world.create_job(owner=owner, target=owner)
    puppet.send("arm", world.gas.address, world.gas.encode("withdrawETHBalance", 1), sender=USER)
    call = puppet.encode("poke")
    task = world.execute(job, call=call, target=owner, gas_limit=500_000, max_fee=Uint256(ETHER))
    assert said(puppet) == "InsufficientBalance"
    assert world.gas.view("getBalance", owner) == ETHER - task.fee


def test_a_target_may_withdraw_its_unlocked_balance_and_the_books_hold(world: World, puppet):
    owner = world.chain.fund(puppet.address)
    world.deposit(ETHER, owner)
    job = world.create_job(owner=owner, target=owner)
    puppet.send("arm", world.gas.address, world.gas.encode("withdrawETHBalance", 9 * ETHER // 10), sender=USER)
    task = world.execute(job, call=puppet.encode("poke"), target=owner, gas_limit=500_000, max_fee=Uint256(ETHER // 10))
    assert task.success
    rest = world.gas.view("getBalance", owner)
    assert rest == ETHER // 10 - task.fee
    users = world.gas.view("getBalance", USER)
    assert world.chain.balance(world.gas.address) == users + rest + task.fee


def test_a_target_may_create_jobs_in_its_own_name_only(world: World, puppet):
    create_job = world.jobs.encode("createJob", "x", 1, 60, world.demo.address, (10).to_bytes(32, "big"))
    poke(world, puppet, world.jobs.address, create_job)
    created = int.from_bytes(puppet.view("answer"), "big")
    assert world.jobs.view("job", created)["owner"] == puppet.address


def test_a_target_cannot_delete_its_callers_job(world: World, puppet):
    job = world.create_job(target=puppet.address)
    puppet.send("arm", world.jobs.address, world.jobs.encode("deleteJob", job), sender=USER)
    world.execute(job, call=puppet.encode("poke"), target=puppet.address, gas_limit=500_000)
    assert said(puppet) == "NotJobOwner"
    assert world.jobs.view("job", job)["active"] is True


def test_a_target_that_deletes_its_own_job_is_still_booked(world: World, puppet):
    owner = world.chain.fund(puppet.address)
    world.deposit(ETHER, owner)
    job = world.create_job(owner=owner, target=owner)
    puppet.send("arm", world.jobs.address, world.jobs.encode("deleteJob", job), sender=USER)
    task = world.execute(job, call=puppet.encode("poke"), target=owner, gas_limit=500_000)
    assert world.jobs.view("job", job)["active"] is False
    world.submit(world.certificate(task))
    assert world.status(task) == 2


@pytest.mark.parametrize(
    ("code", "success"),
    [
        ("5b600056", False),  # burns all the gas it is given
        ("620493e05ff3", True),  # returns 300 kB
        ("620493e05ffd", False),  # reverts with 300 kB
        ("fe", False),
        ("33ff", True),  # self-destructs in favour of the hub
    ],
)
def test_a_hostile_target_spends_its_own_gas_limit_at_most(world: World, code, success):
    target = keccak(b"hostile")[:20]
    world.chain.rpc("anvil_setCode", "0x" + target.hex(), "0x" + code)
    world.chain.fund(target, 0)
    job = world.create_job(target=target)
    world.execute(world.create_job())  # the first execution ever fills fresh slots
    task = world.execute(job, call=b"", target=target, gas_limit=1_000_000)
    assert task.success is success
    assert task.receipt.gas < 1_000_000 + 200_000
    assert world.status(task) == 1
    world.submit(world.certificate(task))
    assert world.status(task) == 2


def test_eth_forced_on_the_hub_changes_no_book(world: World):
    target = keccak(b"generous")[:20]
    world.chain.rpc("anvil_setCode", "0x" + target.hex(), "0x33ff")
    world.chain.fund(target, ETHER)
    task = world.execute(world.create_job(target=target), call=b"", target=target)
    assert world.chain.balance(world.hub.address) == ETHER
    assert books(world) == task.fee


@pytest.mark.parametrize("call", [b"", bytes(16_384)])
def test_the_target_gets_its_full_limit_or_nothing_happens(world: World, call):
    """Whatever gas the performer sends, the call either gets all of gasLimit or is refused before anything is booked."""
    spender = keccak(b"spender")[:20]
    world.chain.rpc("anvil_setCode", "0x" + spender.hex(), "0x5a5f5500")  # stores GAS in slot 0
    job = world.create_job(target=spender)
    seen, refused = set(), set()
    for i, gas in enumerate(range(600_000, 1_000_000, 37_000)):
        second = world.due(job, i + 1)
        a = world.authorise(job, second, account(1), call, target=spender, gas_limit=500_000)
        arguments = (world.struct(a), world.signed(a), spender, call, 0)
        try:
            world.hub.send("execute", *arguments, sender=account(1), gas=gas)
        except Refused as why:
            refused.add(why.reason or why.message)
            continue
        seen.add(int(world.chain.rpc("eth_getStorageAt", "0x" + spender.hex(), "0x0", "latest"), 16))
    assert seen == {500_000 - 2}
    assert "GasTooLow" in refused
    assert refused <= {"GasTooLow", "EVM error OutOfGas"}


def test_rewards_that_re_enter_are_paid_once(world: World, puppet):
    task = world.execute(world.create_job())
    world.submit(world.certificate(task))
    world.registry.send("setRewards", puppet.address, sender=account(1))
    owed = world.hub.view("owed", task.id, 1) + world.center.view("attestations", 1) * UNIT
    puppet.send("arm", world.hub.address, world.hub.encode("claim", 1, [task.id]), sender=USER)
    world.hub.send("claim", 1, [task.id], sender=USER)
    assert puppet.view("calls") == 1
    assert said(puppet) == "NothingToClaim"
    assert world.chain.balance(puppet.address) == owed
