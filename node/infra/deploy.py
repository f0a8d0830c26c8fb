"""Deploys one full set of contracts on one chain: used by the devnet, the tests and `triggerx deploy`.

The contracts link to each other in circles and immutably, so their addresses are predicted from the deployer's nonce and checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import trio
from eth_abi.abi import encode as abi_encode
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.address import is_address, to_checksum_address

from consensus.codec import keccak
from consensus.contracts import NAMES, SAFE_NAMES, artifact
from consensus.errors import Failed, Misconfigured

RECEIPT_SECONDS = 180.0
"""How long one transaction may take to be mined: 15 blocks of 12 s."""
_POLL_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.5)  # then the last again: quick for instant chains, gentle for slow ones
_EPOCH_ROUNDS = 4
_SINGLETON_FACTORY = bytes.fromhex("914d7fec6aac8cd542e72bca78b30650d45643d7")  # github.com/safe-global/safe-singleton-factory


class Rpc(Protocol):
    """What deploying needs of a chain: one JSON-RPC call that raises on an error answer."""

    async def call(self, method: str, params: list[Any], /) -> Any: ...


@dataclass(frozen=True, slots=True)
class DeploySettings:
    """The constants of a set of contracts. Addresses are 0x text, stakes and `unit` wei, times seconds.

    `seat_stake` is the stake that buys one seat in the draw; `unit` what one attestation earns. An epoch lasts at least four
    rounds, so that every execution can still be certified, or expire, while its epoch is the current or the previous one; stake
    is held that long too. Nobody gets a seat for less than a seat's stake.
    """

    owner: str
    dispatchers: tuple[str, ...]
    epoch_seconds: int
    round_seconds: int
    min_stake: int
    seat_stake: int
    unbonding_seconds: int
    unit: int
    demo: bool = False

    def __post_init__(self) -> None:
        for key, address in [("deploy.owner", self.owner), *(("deploy.dispatchers", d) for d in self.dispatchers)]:
            if not is_address(address) or int(address, 16) == 0:
                raise Misconfigured(key, f"{address!r} is not an address; give 0x and 40 hex digits")
        if len(self.dispatchers) > 16:
            raise Misconfigured("deploy.dispatchers", "at most 16 at deployment; list further ones with Hub.setDispatcher")
        for name in ("epoch_seconds", "round_seconds", "seat_stake"):
            if getattr(self, name) < 1:
                raise Misconfigured(f"deploy.{name}", "must be at least 1")
        for name in ("min_stake", "unbonding_seconds", "unit"):
            if getattr(self, name) < 0:
                raise Misconfigured(f"deploy.{name}", "must not be negative")
        if self.min_stake < self.seat_stake:
            raise Misconfigured("deploy.min_stake", f"must be at least seat_stake = {self.seat_stake}: every keeper holds a seat")
        if self.unit >= 2**64:
            raise Misconfigured("deploy.unit", "must be below 2**64 wei")
        if self.epoch_seconds < _EPOCH_ROUNDS * self.round_seconds:
            raise Misconfigured(
                "deploy.epoch_seconds", f"must be at least {_EPOCH_ROUNDS} x round_seconds = {_EPOCH_ROUNDS * self.round_seconds}"
            )
        if self.unbonding_seconds < self.epoch_seconds:
            raise Misconfigured("deploy.unbonding_seconds", f"must be at least epoch_seconds = {self.epoch_seconds}")


@dataclass(frozen=True, slots=True)
class Deployment:
    """Where a set of contracts lives, as checksummed addresses; `block` is the first that can hold an event of it."""

    chain_id: int
    hub: str
    attestation_center: str
    keeper_registry: str
    job_registry: str
    gas_registry: str
    safe_factory: str
    safe_module: str
    multisend_call_only: str
    demo: str | None
    block: int


def created_address(deployer: str, nonce: int) -> str:
    """The address of the contract that `deployer`'s transaction number `nonce` creates (Yellow Paper, section 7)."""
    number = nonce.to_bytes((nonce.bit_length() + 7) // 8, "big")  # RLP: no leading zeros, so 0 is empty
    if len(number) != 1 or nonce >= 0x80:
        number = bytes([0x80 + len(number)]) + number
    payload = b"\x94" + bytes.fromhex(deployer[2:]) + number
    return to_checksum_address(keccak(bytes([0xC0 + len(payload)]) + payload)[12:])


def canonical_address(name: str) -> str:
    """Where the deterministic deployment of Safe's contracts puts one of `SAFE_NAMES`: CREATE2 by the singleton factory, salt 0.

    The address commits to the bytecode: what has code there is that contract, whoever deployed it.
    """
    return to_checksum_address(keccak(b"\xff" + _SINGLETON_FACTORY + bytes(32) + keccak(artifact(name).bytecode))[12:])


async def deploy(rpc: Rpc, deployer: LocalAccount | str | bytes, settings: DeploySettings) -> Deployment:
    """Deploys all contracts from `deployer` (an account or its private key) and waits for their receipts.

    Safe's own contracts are taken where the chain has them, as public ones do, and deployed where it has not.

    Raises `Failed` (`DEPLOY_FAILED`) when a step did not do what it should: nothing of the set is usable then, run it again;
    `Misconfigured` (`deploy.account`) when the deployer cannot pay. Errors of `rpc` pass through.
    """
    account: LocalAccount = deployer if isinstance(deployer, LocalAccount) else Account.from_key(deployer)
    chain_id = int(await rpc.call("eth_chainId", []), 16)
    first = int(await rpc.call("eth_getTransactionCount", [account.address, "pending"]), 16)
    at = {name: canonical_address(name) for name in SAFE_NAMES}
    missing = [name for name in SAFE_NAMES if len(await rpc.call("eth_getCode", [at[name], "latest"])) <= 2]
    before = NAMES.index("SafeModule")
    names = [*NAMES[:before], *missing, *(name for name in NAMES[before:] if name != "Demo" or settings.demo)]
    at |= {name: created_address(account.address, first + i) for i, name in enumerate(names)}
    blocks = []
    for i, name in enumerate(names):
        types, values = _constructor(name, at, settings)
        initcode = artifact(name).bytecode + abi_encode(types, values)
        blocks.append(await _create(rpc, account, chain_id, first + i, name, initcode, at[name]))
    return Deployment(
        chain_id=chain_id,
        hub=at["Hub"],
        attestation_center=at["AttestationCenter"],
        keeper_registry=at["KeeperRegistry"],
        job_registry=at["JobRegistry"],
        gas_registry=at["TriggerGasRegistry"],
        safe_factory=at["SafeFactory"],
        safe_module=at["SafeModule"],
        multisend_call_only=at["MultiSendCallOnly"],
        demo=at.get("Demo"),
        block=min(blocks),
    )


def _constructor(name: str, at: dict[str, str], s: DeploySettings) -> tuple[Sequence[str], Sequence[Any]]:
    match name:
        case "TriggerGasRegistry":
            return ["address"], [at["Hub"]]
        case "KeeperRegistry":
            return ["address", *["uint256"] * 4], [
                at["AttestationCenter"],
                s.min_stake,
                s.seat_stake,
                s.epoch_seconds,
                s.unbonding_seconds,
            ]
        case "Hub":
            links = [at[n] for n in ("JobRegistry", "TriggerGasRegistry", "KeeperRegistry", "AttestationCenter")]
            return ["address", "address[]", *["address"] * 4, "uint256"], [s.owner, s.dispatchers, *links, s.unit]
        case "AttestationCenter":
            return ["address", "address", "uint256"], [at["Hub"], at["KeeperRegistry"], s.round_seconds]
        case "SafeModule":
            return ["address"] * 2, [at["Hub"], at["MultiSendCallOnly"]]
        case "SafeFactory":
            return ["address"] * 4, [at[n] for n in ("SafeProxyFactory", "Safe", "CompatibilityFallbackHandler", "SafeModule")]
        case _:
            return [], []


async def _create(rpc: Rpc, account: LocalAccount, chain_id: int, nonce: int, name: str, initcode: bytes, expected: str) -> int:
    """Sends one creation and returns the block that holds it."""
    request = {"from": account.address, "data": "0x" + initcode.hex()}
    gas = int(await rpc.call("eth_estimateGas", [request]), 16) * 6 // 5
    tip, cap = await _fees(rpc)
    balance = int(await rpc.call("eth_getBalance", [account.address, "pending"]), 16)
    if balance < gas * cap:
        raise Misconfigured("deploy.account", f"{account.address} holds {balance} wei and {name} may cost {gas * cap}; fund it")
    transaction: dict[str, Any] = {
        "type": 2,
        "chainId": chain_id,
        "nonce": nonce,
        "gas": gas,
        "maxFeePerGas": cap,
        "maxPriorityFeePerGas": tip,
        "value": 0,
        "data": initcode,
    }
    signed = account.sign_transaction(transaction)
    tx_hash = await rpc.call("eth_sendRawTransaction", ["0x" + signed.raw_transaction.hex().removeprefix("0x")])
    receipt = await _receipt(rpc, tx_hash, name)
    if int(receipt["status"], 16) != 1:
        raise Failed("DEPLOY_FAILED", f"{name}: transaction {tx_hash} reverted")
    if (receipt["contractAddress"] or "").lower() != expected.lower():
        raise Failed("DEPLOY_FAILED", f"{name} is not at {expected}: the account sent something else meanwhile")
    if len(await rpc.call("eth_getCode", [expected, receipt["blockNumber"]])) <= 2:
        raise Failed("DEPLOY_FAILED", f"{name}: no code at {expected}")
    return int(receipt["blockNumber"], 16)


async def _fees(rpc: Rpc) -> tuple[int, int]:
    """Priority fee and fee cap, wei per gas: the cap outlives six full blocks of rising base fee (EIP-1559: 9/8 a block)."""
    block = await rpc.call("eth_getBlockByNumber", ["latest", False])
    if "baseFeePerGas" not in block:
        raise Failed("DEPLOY_FAILED", "the chain has no base fee: EIP-1559 is needed")
    tip = int(await rpc.call("eth_maxPriorityFeePerGas", []), 16)
    return tip, 2 * int(block["baseFeePerGas"], 16) + tip


async def _receipt(rpc: Rpc, tx_hash: str, name: str) -> dict[str, Any]:
    polls = iter(_POLL_SECONDS)
    pause = next(polls)
    with trio.move_on_after(RECEIPT_SECONDS):
        while True:
            receipt: dict[str, Any] | None = await rpc.call("eth_getTransactionReceipt", [tx_hash])
            if receipt is not None:
                return receipt
            await trio.sleep(pause)
            pause = next(polls, pause)
    raise Failed("DEPLOY_FAILED", f"{name}: transaction {tx_hash} was not mined within {RECEIPT_SECONDS:.0f} s")
