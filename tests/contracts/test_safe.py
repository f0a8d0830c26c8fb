"""Jobs that act for a Safe, on the real Safe contracts: its owner's, and nobody else's, however it is tried."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from consensus.contracts import SAFE_NAMES, artifact
from node.infra.deploy import canonical_address
from tests.contracts.evm import Contract, Refused, create, reason_of, text
from tests.contracts.safes import (
    DELEGATECALL,
    GAS_LIMIT,
    NOBODY,
    as_owner,
    batch,
    inner_refusal,
    job_call,
    make_by_hand,
    make_safe,
    proxy_factory,
    run,
    setup_call,
)
from tests.contracts.world import ETHER, STRANGER, USER, World, account

MALLORY = b"mallory" + bytes(13)
PACKAGE = Path(__file__).parents[1] / "js" / "node_modules" / "@safe-global" / "safe-contracts"


@pytest.fixture
def safe(world: World) -> Contract:
    made = make_safe(world)
    world.chain.fund(made.address, ETHER)
    return made


@pytest.fixture
def multisend(world: World) -> bytes:
    return bytes.fromhex(world.deployment.multisend_call_only[2:])


# --- the factory -------------------------------------------------------------------------------------------------------


def test_a_user_gets_a_safe_of_his_own_with_the_module_enabled(world: World):
    predicted = world.safe_factory.view("predictSafeAddress", USER)
    receipt = world.safe_factory.send("createSafeWallet", USER, sender=USER)
    [event] = world.safe_factory.events(receipt, "SafeWalletCreated")
    assert event == {"user": USER, "safeWallet": predicted, "saltNonce": 0}
    made = Contract(world.chain, predicted, make_safe(world).abi)
    assert made.view("getOwners") == [USER]
    assert made.view("getThreshold") == 1
    assert made.view("isModuleEnabled", world.safe_module.address) is True
    assert made.view("getModulesPaginated", b"\x01".rjust(20, b"\0"), 10)[0] == [world.safe_module.address]
    assert made.view("VERSION") == "1.4.1"
    handler = made.view("getStorageAt", int("6c9a6c4a39284e37ed1cf53d337577d14212a4870fb976a4366c693b939918d5", 16), 1)
    assert handler[12:] == world.safe_factory.view("safeFallbackHandler")


def test_the_newest_safe_is_the_latest_and_the_older_remain(world: World):
    assert world.safe_factory.view("latestSafeWallet", USER) == NOBODY
    made = [make_safe(world).address for _ in range(3)]
    assert len(set(made)) == 3
    assert world.safe_factory.view("latestSafeWallet", USER) == made[-1]
    assert world.safe_factory.view("getSafeWallets", USER) == made
    assert world.safe_factory.view("safeWalletCount", USER) == 3
    assert [world.safe_factory.view("safeWalletAt", USER, i) for i in range(3)] == made
    assert world.safe_factory.view("getSafeWallets", STRANGER) == []


def test_whoever_makes_the_next_safe_first_stops_nobody(world: World):
    """Safe's factory is open and the salt is known: the front-runner pays for the very Safe that the user is given."""
    predicted = world.safe_factory.view("predictSafeAddress", USER)
    singleton = world.safe_factory.view("safeSingleton")
    factory = proxy_factory(world)
    factory.send("createProxyWithNonce", singleton, setup_call(world, [USER]), 0, sender=world.chain.fund(MALLORY))
    assert len(world.chain.code(predicted)) > 0
    made = make_safe(world)
    assert made.address == predicted
    assert made.view("getOwners") == [USER]
    assert made.view("isModuleEnabled", world.safe_module.address) is True
    assert make_safe(world).address != predicted


def test_another_setup_never_takes_a_users_address(world: World):
    predicted = world.safe_factory.view("predictSafeAddress", USER)
    for owners, module in (([MALLORY], True), ([USER, MALLORY], True), ([USER], False)):
        assert make_by_hand(world, owners, module=module, salt=0).address != predicted


def test_anybody_may_pay_for_a_users_safe_and_gains_nothing(world: World):
    receipt = world.safe_factory.send("createSafeWallet", USER, sender=world.chain.fund(MALLORY))
    [event] = world.safe_factory.events(receipt, "SafeWalletCreated")
    assert (event["user"], world.safe_factory.view("latestSafeWallet", USER)) == (USER, event["safeWallet"])
    assert world.safe_factory.view("latestSafeWallet", MALLORY) == NOBODY


@pytest.mark.parametrize("nobody", [NOBODY, b"\x01".rjust(20, b"\0")])
def test_nobody_gets_no_safe(world: World, nobody: bytes):
    with pytest.raises(Refused):
        world.safe_factory.send("createSafeWallet", nobody, sender=USER)


# --- what an owner's job can do ----------------------------------------------------------------------------------------


def test_a_job_calls_in_the_safes_name(world: World, safe: Contract):
    task = run(world, job_call(world, safe.address, world.demo.address, world.ping(11)))
    assert task.success
    assert (world.demo.view("lastValue"), world.demo.view("lastCaller")) == (11, safe.address)
    world.submit(world.certificate(task))
    assert world.status(task) == 2


def test_a_job_pays_out_of_the_safe(world: World, safe: Contract):
    held = world.chain.balance(STRANGER)
    assert run(world, job_call(world, safe.address, STRANGER, b"", value=ETHER // 4)).success
    assert world.chain.balance(STRANGER) == held + ETHER // 4
    assert world.chain.balance(safe.address) == 3 * ETHER // 4


def test_a_batch_runs_whole(world: World, safe: Contract, multisend: bytes):
    held = world.chain.balance(STRANGER)
    calls = batch((world.demo.address, 0, world.ping(1)), (STRANGER, 7, b""), (world.demo.address, 0, world.ping(2)))
    assert run(world, job_call(world, safe.address, multisend, calls, operation=DELEGATECALL)).success
    assert (world.demo.view("count"), world.demo.view("lastCaller")) == (2, safe.address)
    assert world.chain.balance(STRANGER) == held + 7


def test_a_batch_that_fails_leaves_nothing_behind(world: World, safe: Contract, multisend: bytes):
    calls = batch((world.demo.address, 0, world.ping(1)), (world.demo.address, 0, world.demo.encode("fail")))
    task = run(world, job_call(world, safe.address, multisend, calls, operation=DELEGATECALL))
    assert inner_refusal(world, task) == "SafeCallFailed"
    assert world.demo.view("count") == 0


def test_a_call_that_fails_is_recorded_as_a_failure(world: World, safe: Contract):
    assert (
        inner_refusal(world, run(world, job_call(world, safe.address, world.demo.address, world.demo.encode("fail"))))
        == "SafeCallFailed"
    )
    beyond = job_call(world, safe.address, STRANGER, b"", value=2 * ETHER)
    assert inner_refusal(world, run(world, beyond)) == "SafeCallFailed"


def test_a_node_estimates_what_a_safe_job_needs(world: World, safe: Contract, multisend: bytes):
    """The hub names no owner while a node estimates: the module sees that no transaction can be under way."""
    calls = batch((world.demo.address, 0, world.ping(1)), (world.demo.address, 0, world.ping(2)))
    call = job_call(world, safe.address, multisend, calls, operation=DELEGATECALL)
    request = {"from": text(world.hub.address), "to": text(world.safe_module.address), "data": "0x" + call.hex()}
    gas = int(world.chain.rpc("eth_estimateGas", request), 16) - 21_000
    job = world.create_job(target=world.safe_module.address)
    assert world.execute(job, call=call, target=world.safe_module.address, gas_limit=gas).success
    failing = job_call(world, safe.address, world.demo.address, world.demo.encode("fail"))
    with pytest.raises(Refused, match="SafeCallFailed"):
        world.chain.rpc("eth_estimateGas", {**request, "data": "0x" + failing.hex()})
    others = job_call(world, safe.address, world.demo.address, world.ping(1), owner=MALLORY)
    with pytest.raises(Refused, match="NotSafeOwner"):
        world.chain.rpc("eth_estimateGas", {**request, "data": "0x" + others.hex()})


# --- what nobody else can ----------------------------------------------------------------------------------------------


def test_a_job_of_another_owner_cannot_drive_a_safe(world: World, safe: Contract):
    """Neither in its own owner's name nor in that of the Safe's."""
    for named, reason in ((MALLORY, "NotSafeOwner"), (USER, "NotJobOwner"), (NOBODY, "NotJobOwner")):
        call = job_call(world, safe.address, STRANGER, b"", value=1, owner=named)
        assert inner_refusal(world, run(world, call, job_owner=MALLORY)) == reason
    assert world.chain.balance(safe.address) == ETHER


def test_an_owners_job_cannot_name_another_owner_of_his_safe(world: World):
    shared = make_by_hand(world, [USER, STRANGER])
    call = job_call(world, shared.address, world.demo.address, world.ping(1), owner=STRANGER)
    assert inner_refusal(world, run(world, call)) == "NotJobOwner"
    assert run(world, job_call(world, shared.address, world.demo.address, world.ping(1))).success


@pytest.mark.parametrize("chosen_by", ["script", "dispatcher"])
def test_only_a_job_that_its_owner_made_for_the_module_drives_a_safe(world: World, safe: Contract, chosen_by: str):
    """A job without a target lets whoever sends its transaction choose one: not the Safes of its owner."""
    drain = job_call(world, safe.address, MALLORY, b"", value=ETHER)
    job = world.create_job(kind=7, target=NOBODY)
    changes = {"target": world.safe_module.address, "gas_limit": GAS_LIMIT}
    if chosen_by == "script":
        changes |= {"target": NOBODY, "selector": bytes(4), "call_hash": bytes(32)}
    task = world.execute(job, call=drain, to=world.safe_module.address, **changes)
    assert task.success is False
    assert world.chain.balance(safe.address) == ETHER


def test_nobody_but_the_hub_calls_the_module(world: World, safe: Contract):
    arguments = (safe.address, STRANGER, 1, b"", 0, USER)
    for sender in (account(1), USER, MALLORY, safe.address, world.safe_factory.address):
        assert world.safe_module.refusal("execJobFromHub", *arguments, sender=sender) == "NotHub"


def test_a_safe_without_the_module_is_left_alone(world: World):
    bare = make_by_hand(world, [USER], module=False)
    call = job_call(world, bare.address, world.demo.address, world.ping(1))
    assert inner_refusal(world, run(world, call)) == "ModuleNotEnabled"
    as_owner(bare, USER, "enableModule", world.safe_module.address)
    assert run(world, call).success
    sentinel = b"\x01".rjust(20, b"\0")
    as_owner(bare, USER, "disableModule", sentinel, world.safe_module.address)
    assert inner_refusal(world, run(world, call)) == "ModuleNotEnabled"


def test_one_owner_cannot_act_alone_where_two_have_to_sign(world: World):
    shared = make_by_hand(world, [USER, STRANGER], threshold=2)
    call = job_call(world, shared.address, world.demo.address, world.ping(1))
    assert inner_refusal(world, run(world, call)) == "ThresholdAboveOne"


def test_a_former_owners_job_is_over(world: World, safe: Contract):
    call = job_call(world, safe.address, world.demo.address, world.ping(1))
    assert run(world, call).success
    sentinel = b"\x01".rjust(20, b"\0")
    as_owner(safe, USER, "swapOwner", sentinel, USER, STRANGER)
    assert inner_refusal(world, run(world, call)) == "NotSafeOwner"


def test_foreign_code_never_runs_in_a_safes_name(world: World, safe: Contract, multisend: bytes):
    puppet = create(world.chain, "Puppet", world.chain.fund(MALLORY))
    for to in (puppet.address, world.demo.address, safe.address, world.safe_module.address):
        call = job_call(world, safe.address, to, puppet.encode("poke"), operation=DELEGATECALL)
        assert inner_refusal(world, run(world, call)) == "DelegatecallRefused"
    nested = batch((puppet.address, 0, b"")).replace(b"\0" + puppet.address, b"\x01" + puppet.address)
    call = job_call(world, safe.address, multisend, nested, operation=DELEGATECALL)
    assert inner_refusal(world, run(world, call)) == "SafeCallFailed"
    for operation in (2, 255):
        call = job_call(world, safe.address, multisend, batch(), operation=operation)
        assert inner_refusal(world, run(world, call)) == "UnknownOperation"


def test_what_is_no_safe_is_refused(world: World):
    call = job_call(world, STRANGER, world.demo.address, world.ping(1))
    assert inner_refusal(world, run(world, call)) == "NotSafe"
    call = job_call(world, world.demo.address, world.demo.address, world.ping(1))
    assert inner_refusal(world, run(world, call)) == ""  # a contract that does not answer


def test_a_safes_target_re_enters_nothing(world: World, safe: Contract):
    """While it runs, it knows the owner's name and can use it neither on the hub nor on the module."""
    puppet = create(world.chain, "Puppet", world.chain.fund(MALLORY))
    job = world.create_job()
    a = world.authorise(job, world.due(job), puppet.address, world.ping(1))
    again = world.hub.encode("execute", world.struct(a), world.signed(a), a.target, world.ping(1), 0)
    drain = job_call(world, safe.address, MALLORY, b"", value=ETHER)
    for to, data, reason in (
        (world.hub.address, again, "Reentered"),
        (world.hub.address, world.hub.encode("claim", 1, []), "Reentered"),
        (world.safe_module.address, drain, "NotHub"),
    ):
        puppet.send("arm", to, data, sender=MALLORY)
        assert run(world, job_call(world, safe.address, puppet.address, puppet.encode("poke"))).success
        assert puppet.view("ok") is False
        assert reason_of("0x" + puppet.view("answer").hex()) == reason
    assert world.chain.balance(safe.address) == ETHER


def test_a_job_that_a_safe_owns_does_not_make_it_its_own_owner(world: World, safe: Contract):
    call = job_call(world, safe.address, world.demo.address, world.ping(1), owner=safe.address)
    assert inner_refusal(world, run(world, call, job_owner=safe.address)) == "NotSafeOwner"


def test_the_setups_function_does_nothing_elsewhere(world: World, safe: Contract):
    with pytest.raises(Refused):
        world.safe_module.send("enableFromSetup", sender=USER)
    assert (
        run(world, job_call(world, safe.address, world.safe_module.address, world.safe_module.encode("enableFromSetup"))).success
        is False
    )


def test_a_keeper_cannot_bend_a_static_safe_job(world: World, safe: Contract):
    call = job_call(world, safe.address, world.demo.address, world.ping(1))
    job = world.create_job(target=world.safe_module.address)
    bent = job_call(world, safe.address, MALLORY, b"", value=ETHER)
    changes = {"target": world.safe_module.address, "gas_limit": GAS_LIMIT}
    assert world.refused(job, call=bent, authorised=call, **changes) == "WrongCalldata"


# --- Safe's own contracts ----------------------------------------------------------------------------------------------


def test_the_addresses_of_public_chains_follow_from_the_bytecode():
    """Release 1.4.1 as it is deployed on public chains; the SDK names the last one too."""
    assert {name: canonical_address(name) for name in SAFE_NAMES} == {
        "Safe": "0x41675C099F32341bf84BFc5382aF534df5C7461a",
        "SafeProxyFactory": "0x4e1DCf7AD4e460CfD30791CCC4F9c8a4f820ec67",
        "CompatibilityFallbackHandler": "0xfd0732Dc9E303f09fCEf3a7388Ad10A83459Ec99",
        "MultiSendCallOnly": "0x9641d764fc13c8B624c04430C7356C1C7C8102e2",
    }


@pytest.mark.skipif(not PACKAGE.is_dir(), reason="npm's packages are not installed")
@pytest.mark.parametrize("name", SAFE_NAMES)
def test_the_carried_artifacts_are_the_packages(name: str):
    [found] = [p for p in (PACKAGE / "build" / "artifacts" / "contracts").rglob(f"{name}.json") if p.parent.name == f"{name}.sol"]
    package = json.loads(found.read_text("utf-8"))
    assert artifact(name).bytecode == bytes.fromhex(package["bytecode"][2:])
    assert list(artifact(name).abi) == package["abi"]
