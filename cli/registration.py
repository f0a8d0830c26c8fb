"""A keeper's entry into the registry: stake, BLS key with proof of possession, peer id, rewards; and the epoch that seats it."""

from __future__ import annotations

from typing import Any

from eth_utils.address import to_canonical_address

from cli.account import Sender
from consensus import bls
from consensus.codec import Domain
from consensus.errors import Failed, Misconfigured
from node.infra.contracts import ADVANCE_EPOCH, Function
from node.infra.rpc import Rpc

REGISTER = Function("register", ("bytes", "bytes", "bytes", "address"))
MIN_STAKE = Function("MIN_STAKE", (), ("uint256",))


async def register(
    sender: Sender, registry: str, domain: Domain, bls_secret: int, peer_id: str, rewards: str, stake: int
) -> dict[str, Any]:
    """Registers the sender as an operator with `stake` wei, active from the next epoch on; returns the receipt.

    Raises `Failed` with the registry's reason (`StakeTooLow`, `AlreadyRegistered`, `KeyReused`, ...).
    """
    key = bls.key_to_evm(bls.public_key(bls_secret))
    operator = to_canonical_address(sender.address)
    proof = bls.prove_possession(bls_secret, domain.possession_digest(key, operator))
    data = REGISTER.encode(key, bls.signature_to_evm(proof), peer_id.encode(), to_canonical_address(rewards))
    return await sender.send(registry, data, value=stake)


async def min_stake(rpc: Rpc, registry: str) -> int:
    """The least stake that the registry takes, wei."""
    data = await rpc.call("eth_call", [{"to": registry, "data": "0x" + MIN_STAKE.encode().hex()}, "latest"])
    return int(data, 16)


async def check_registry(rpc: Rpc, registry: str, named_by: str) -> None:
    """Raises `Misconfigured` when there is no contract: a transaction to an address without code succeeds, and does nothing."""
    if await rpc.call("eth_getCode", [registry, "latest"]) in ("0x", None):
        raise Misconfigured(named_by, f"no contract is at {registry} on this chain: copy the address of its KeeperRegistry")


async def check_funds(sender: Sender, stake: int) -> None:
    """Raises `Failed` when the account cannot pay its stake: no node's refusal names the account or the sum."""
    balance = int(await sender.rpc.call("eth_getBalance", [sender.address, "latest"]), 16)
    if balance <= stake:
        raise Failed(
            "INSUFFICIENT_FUNDS", f"{sender.address} has {balance} wei; send it the stake, {stake} wei, and something for gas"
        )


async def advance_epoch(sender: Sender, registry: str) -> dict[str, Any]:
    """Seats what waits for the next epoch. Raises `Failed` with the registry's reason (`NothingChanged`, `TooEarly`)."""
    return await sender.send(registry, ADVANCE_EPOCH.encode())
