"""The one deploy function: predicted addresses, links, and clear words when something is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from eth_abi.abi import encode as abi_encode
from eth_account import Account

from consensus.codec import keccak
from consensus.contracts import artifact
from consensus.errors import Failed, Misconfigured
from node.infra.deploy import DeploySettings, canonical_address, created_address, deploy
from tests.contracts.evm import GAS, Chain, Contract, Refused, abi_of, text
from tests.contracts.world import OWNER, STRANGER, USER, World

SETTINGS = DeploySettings(
    owner=text(OWNER),
    dispatchers=(text(USER), text(STRANGER)),
    epoch_seconds=600,
    round_seconds=60,
    min_stake=2,
    seat_stake=1,
    unbonding_seconds=601,
    unit=4,
    demo=True,
)


HUB_TYPES = ["address", "address[]", *["address"] * 4, "uint256"]


class Node:
    """A chain with some answers replaced."""

    def __init__(self, chain: Chain, **answers: Any) -> None:
        self.chain = chain
        self.answers = answers
        self.sent = 0

    async def call(self, method: str, params: list[Any]) -> Any:
        self.sent += method == "eth_sendRawTransaction"
        if method in self.answers:
            return self.answers[method](self.chain.rpc(method, *params))
        return self.chain.rpc(method, *params)


@pytest.fixture
def deployer(bare: World):
    made = Account.from_key(keccak(b"another deployer"))
    bare.chain.fund(bytes.fromhex(made.address[2:]))
    return made


async def test_a_set_is_linked_as_its_settings_say(bare: World, deployer):
    made = await deploy(Node(bare.chain), deployer, SETTINGS)
    at = {
        name: Contract(bare.chain, bytes.fromhex(address[2:]), abi_of(name))
        for name, address in [
            ("Hub", made.hub),
            ("AttestationCenter", made.attestation_center),
            ("KeeperRegistry", made.keeper_registry),
            ("JobRegistry", made.job_registry),
            ("TriggerGasRegistry", made.gas_registry),
            ("SafeModule", made.safe_module),
            ("SafeFactory", made.safe_factory),
            ("Demo", made.demo or ""),
        ]
    }
    hub, center, registry = at["Hub"], at["AttestationCenter"], at["KeeperRegistry"]
    assert hub.view("jobRegistry") == at["JobRegistry"].address
    assert hub.view("gasRegistry") == at["TriggerGasRegistry"].address
    assert hub.view("keeperRegistry") == center.view("keeperRegistry") == registry.address
    assert hub.view("attestationCenter") == registry.view("attestationCenter") == center.address
    assert center.view("hub") == at["TriggerGasRegistry"].view("hub") == hub.address
    assert hub.view("owner") == OWNER
    assert hub.view("isDispatcher", USER)
    assert hub.view("isDispatcher", STRANGER)
    assert hub.view("UNIT") == 4
    assert center.view("ROUND_SECONDS") == 60
    names = ("MIN_STAKE", "SEAT_STAKE", "EPOCH_SECONDS", "UNBONDING_SECONDS")
    assert [registry.view(name) for name in names] == [2, 1, 600, 601]
    assert at["Demo"].view("count") == 0
    assert made.chain_id == 31337
    module, factory = at["SafeModule"], at["SafeFactory"]
    assert module.view("hub") == hub.address
    assert module.view("multisendCallOnly") == bytes.fromhex(made.multisend_call_only[2:])
    assert factory.view("safeModule") == module.address
    assert made.block == bare.chain.number() - 11


async def test_safes_own_contracts_are_taken_where_the_chain_has_them(bare: World, deployer):
    """As public chains do, at the address that commits to their bytecode."""
    names = ("Safe", "SafeProxyFactory", "CompatibilityFallbackHandler", "MultiSendCallOnly")
    for name in names:
        made = bare.chain.send(USER, None, artifact(name).bytecode).created
        assert made is not None
        bare.chain.rpc("anvil_setCode", canonical_address(name), "0x" + bare.chain.code(made).hex())
    node = Node(bare.chain)
    deployed = await deploy(node, deployer, SETTINGS)
    assert node.sent == 8
    assert deployed.multisend_call_only == canonical_address("MultiSendCallOnly")
    factory = Contract(bare.chain, bytes.fromhex(deployed.safe_factory[2:]), abi_of("SafeFactory"))
    assert factory.view("safeSingleton") == bytes.fromhex(canonical_address("Safe")[2:])
    assert len(factory.view("predictSafeAddress", USER)) == 20
    factory.send("createSafeWallet", USER, sender=USER)


@pytest.mark.parametrize(
    ("name", "types", "values", "reason"),
    [
        ("KeeperRegistry", ["address", *["uint256"] * 4], [text(USER), 0, 1, 1, 1], "ZeroMinStake"),
        ("KeeperRegistry", ["address", *["uint256"] * 4], [text(USER), 1, 0, 1, 1], "ZeroSeatStake"),
        ("KeeperRegistry", ["address", *["uint256"] * 4], [text(USER), 1, 1, 0, 1], "ZeroEpoch"),
        ("AttestationCenter", ["address", "address", "uint256"], [text(USER), text(USER), 0], "ZeroRound"),
        ("Hub", HUB_TYPES, [text(bytes(20)), [], *[text(USER)] * 4, 1], "ZeroOwner"),
        ("Hub", HUB_TYPES, [text(USER), [text(bytes(20))], *[text(USER)] * 4, 1], "ZeroDispatcher"),
        ("Hub", HUB_TYPES, [text(USER), [], *[text(USER)] * 4, 2**64], "UnitTooLarge"),
    ],
)
def test_a_contract_refuses_constants_that_cannot_be(bare: World, name, types, values, reason):
    """Whatever deploys it: `DeploySettings` says the same earlier, and names the key."""
    request = bare.chain.request(USER, None, artifact(name).bytecode + abi_encode(types, values), 0, GAS)
    with pytest.raises(Refused) as refused:
        bare.chain.rpc("eth_call", request, "latest")
    assert refused.value.reason == reason


async def test_a_key_deploys_as_well_as_an_account_and_again(bare: World, deployer):
    first = await deploy(Node(bare.chain), deployer.key, SETTINGS)
    second = await deploy(Node(bare.chain), deployer.key.hex(), replace(SETTINGS, demo=False))
    assert second.demo is None
    assert second.hub != first.hub
    assert second.block > first.block


def test_created_addresses_are_the_chains(bare: World):
    """Nonces of each RLP form, against the examples of the chain."""
    for nonce in (0, 1, 127, 128, 255, 256, 70_000):
        bare.chain.rpc("anvil_setNonce", text(USER), hex(nonce))
        bare.chain.fund(USER)
        created = bare.chain.send(USER, None, bytes.fromhex("5f5ff3")).created
        assert created is not None
        assert created_address(text(USER), nonce) == created_address(text(USER).upper().replace("0X", "0x"), nonce)
        assert created_address(text(USER), nonce).lower() == text(created)


async def test_a_poor_deployer_is_told_what_it_needs(bare: World):
    poor = Account.from_key(keccak(b"poor"))
    bare.chain.fund(bytes.fromhex(poor.address[2:]), 10**9)
    with pytest.raises(Misconfigured, match="fund it") as refusal:
        await deploy(Node(bare.chain, eth_estimateGas=lambda _: "0x100000"), poor, SETTINGS)
    assert refusal.value.key == "deploy.account"
    assert poor.address in str(refusal.value)


async def test_a_reverted_step_stops_the_deployment(bare: World, deployer):
    node = Node(bare.chain, eth_getTransactionReceipt=lambda r: r and {**r, "status": "0x0"})
    with pytest.raises(Failed, match=r"JobRegistry: transaction 0x\w+ reverted"):
        await deploy(node, deployer, SETTINGS)
    assert node.sent == 1


async def test_a_nonce_that_moved_meanwhile_is_noticed(bare: World, deployer):
    node = Node(bare.chain, eth_getTransactionReceipt=lambda r: r and {**r, "contractAddress": text(USER)})
    with pytest.raises(Failed, match="sent something else meanwhile"):
        await deploy(node, deployer, SETTINGS)


async def test_an_address_without_code_is_noticed(bare: World, deployer):
    with pytest.raises(Failed, match="no code at 0x"):
        await deploy(Node(bare.chain, eth_getCode=lambda _: "0x"), deployer, SETTINGS)


async def test_a_transaction_that_is_never_mined_ends_the_wait(bare: World, deployer, autojump_clock):
    with pytest.raises(Failed, match="was not mined within 180 s"):
        await deploy(Node(bare.chain, eth_getTransactionReceipt=lambda _: None), deployer, SETTINGS)


async def test_a_receipt_that_comes_late_is_waited_for(bare: World, deployer, autojump_clock):
    answers = iter([None] * 20)
    node = Node(bare.chain, eth_getTransactionReceipt=lambda r: next(answers, r))
    assert (await deploy(node, deployer, SETTINGS)).chain_id == 31337


async def test_a_chain_without_base_fee_is_refused(bare: World, deployer):
    with pytest.raises(Failed, match="no base fee"):
        await deploy(Node(bare.chain, eth_getBlockByNumber=lambda b: {"number": b["number"]}), deployer, SETTINGS)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"owner": "0x12"}, "deploy.owner"),
        ({"owner": text(bytes(20))}, "deploy.owner"),
        ({"dispatchers": ("nobody",)}, "deploy.dispatchers"),
        ({"dispatchers": (text(USER),) * 17}, "deploy.dispatchers"),
        ({"epoch_seconds": 0}, "deploy.epoch_seconds"),
        ({"epoch_seconds": 239}, "deploy.epoch_seconds"),
        ({"round_seconds": 0}, "deploy.round_seconds"),
        ({"seat_stake": 0}, "deploy.seat_stake"),
        ({"min_stake": -1}, "deploy.min_stake"),
        ({"min_stake": 1, "seat_stake": 2}, "deploy.min_stake"),
        ({"unbonding_seconds": 599}, "deploy.unbonding_seconds"),
        ({"unit": 2**64}, "deploy.unit"),
    ],
)
def test_a_setting_that_cannot_be_names_its_key(change, key):
    with pytest.raises(Misconfigured) as refusal:
        replace(SETTINGS, **change)
    assert refusal.value.key == key
