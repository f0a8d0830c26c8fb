"""The port suite's world on anvil, with the contracts as they are deployed for real."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio
from eth_abi.abi import encode as abi_encode

from consensus import bls, ecdsa
from consensus.codec import Domain, keccak
from consensus.errors import Transient
from node.infra import contracts
from node.infra.chain import Chain, Policy, Wallet
from node.infra.contracts import Function
from node.infra.deploy import Deployment, DeploySettings, deploy
from node.infra.evm import EvmChain, open_chain
from node.infra.evm_reads import bytes_of, hex_of, int_of
from node.infra.evm_wallet import EvmWallet
from node.infra.rpc import Rpc
from node.infra.secret import Secret
from node.infra.settings import ChainSettings, ContractSettings
from node.infra.sqlite import MEMORY, open_database
from node.infra.transaction_log import SENT_MIGRATIONS, SqliteTransactionLog, TransactionLog
from node.infra.transactions import Outbox
from tests.chain.emitter import EMITTER_CODE, emit_call
from tests.chain.worlds import (
    COORDINATOR,
    COUNT,
    DEPOSIT,
    DISPATCHER,
    EMITTER,
    INTERVAL,
    KEEPERS,
    OWNER,
    ROUND_SECONDS,
    Actor,
    actors,
)

CHAIN_ID = 31337
STAKE = 10**18
_DEPLOYER = keccak(b"deployer")
_RICH = hex(10**24)


class CuttableRpc:
    """An `Rpc` whose line can be cut."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc
        self.cut = False
        self.calls: list[str] = []

    async def call(self, method: str, params: Sequence[Any] = ()) -> Any:
        if self.cut:
            raise Transient("RPC_UNREACHABLE", "cut")
        self.calls.append(method)
        return await self._rpc.call(method, params)

    async def batch(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        if self.cut:
            raise Transient("RPC_UNREACHABLE", "cut")
        self.calls.append("batch")
        return await self._rpc.batch(calls)


@dataclass
class Prepared:
    """What one anvil process keeps between tests: the deployed contracts and the snapshot of the seated network."""

    url: str
    deployment: Deployment | None = None
    snapshot: str = ""


class AnvilWorld:
    def __init__(self, rpc: Rpc, deployment: Deployment, url: str = "http://127.0.0.1:8545") -> None:
        self.url = url
        self.keepers: Sequence[Actor] = actors(KEEPERS)
        self.deployment = deployment
        self.rpc = rpc
        self.line = CuttableRpc(rpc)
        self.logs: dict[bytes, TransactionLog] = {}
        self.evm: EvmChain
        assert deployment.demo is not None
        self.target = bytes_of(deployment.demo)
        self._owner = ecdsa.address_of(OWNER)

    @property
    def chain(self) -> Chain:
        return self.evm

    async def open(self) -> None:
        await self.rpc.call("anvil_setCode", [hex_of(EMITTER), hex_of(EMITTER_CODE)])
        self.evm = await open_chain(self.settings(), self.line)

    def settings(self, confirmations: int = 0) -> ChainSettings:
        d = self.deployment
        return ChainSettings(
            id=CHAIN_ID,
            name="anvil",
            rpc=(self.url,),
            poll_interval_ms=10,
            confirmations=confirmations,
            contracts=ContractSettings(
                hub=bytes_of(d.hub),
                attestation_center=bytes_of(d.attestation_center),
                keeper_registry=bytes_of(d.keeper_registry),
                job_registry=bytes_of(d.job_registry),
                gas_registry=bytes_of(d.gas_registry),
                since_block=d.block,
            ),
        )

    def wallet(self, actor: Actor) -> Wallet:
        return EvmWallet(self.evm, Outbox(self.line, Secret(actor.secret), CHAIN_ID, self.logs[actor.address]))

    async def seat(self) -> None:
        """Funds everybody, registers the keepers and begins the first epoch."""
        for address in [self._owner, COORDINATOR.address, *(keeper.address for keeper in self.keepers)]:
            await self.rpc.call("anvil_setBalance", [hex_of(address), _RICH])
        for keeper in self.keepers:
            await self.register(keeper)
        await self.send(self.keepers[0].address, self.deployment.keeper_registry, contracts.ADVANCE_EPOCH)
        await self.send(self._owner, self.deployment.gas_registry, contracts.DEPOSIT, DEPOSIT, value=DEPOSIT)

    async def send(self, sender: bytes, to: str, function: Function, *arguments: Any, value: int = 0) -> dict[str, Any]:
        """A transaction that anvil signs in anybody's name."""
        request = {"from": hex_of(sender), "to": to, "data": hex_of(function.encode(*arguments)), "value": hex(value)}
        tx_hash = await self.rpc.call("eth_sendTransaction", [request])
        receipt: dict[str, Any] | None = None
        with trio.fail_after(10):
            while receipt is None:  # the pool answers before the block is mined
                receipt = await self.rpc.call("eth_getTransactionReceipt", [tx_hash])
        assert receipt["status"] == "0x1"
        return receipt

    async def create_job(self, interval: int = INTERVAL, time_frame: int = 3600, definition: int = 1) -> int:
        data = abi_encode(["uint256"], [interval])
        arguments = ("demo", definition, time_frame, self.target, data)
        receipt = await self.send(self._owner, self.deployment.job_registry, contracts.CREATE_JOB, *arguments)
        return int_of(receipt["logs"][0]["topics"][1])

    async def delete_job(self, job_id: int) -> None:
        await self.send(self._owner, self.deployment.job_registry, contracts.DELETE_JOB, job_id)

    async def pin(self, job_id: int, policy: Policy) -> None:
        said = (policy.spec_hash, policy.max_fee, policy.gas_limit, policy.level)
        await self.send(self._owner, self.deployment.hub, contracts.SET_POLICY, job_id, *said)

    async def unlist_dispatcher(self) -> None:
        owner = ecdsa.address_of(_DEPLOYER)
        await self.send(owner, self.deployment.hub, contracts.SET_DISPATCHER, ecdsa.address_of(DISPATCHER), False)

    async def register(self, actor: Actor) -> None:
        await self.rpc.call("anvil_setBalance", [hex_of(actor.address), _RICH])
        key = bls.key_to_evm(actor.key)
        registry = self.deployment.keeper_registry
        domain = domain_of(self.deployment)
        proof = bls.prove_possession(actor.bls_secret, domain.possession_digest(key, actor.address))
        arguments = (key, bls.signature_to_evm(proof), actor.peer_id.encode(), actor.address)
        await self.send(actor.address, registry, contracts.REGISTER, *arguments, value=STAKE)

    async def pass_seconds(self, seconds: int) -> None:
        await self.rpc.call("evm_increaseTime", [hex(seconds)])
        await self.rpc.call("evm_mine", [])

    async def reorg(self, depth: int) -> None:
        await self.rpc.call("anvil_reorg", [depth, []])

    async def calls(self) -> int:
        answer = await self.rpc.call("eth_call", [{"to": hex_of(self.target), "data": hex_of(COUNT.encode())}, "latest"])
        return int_of(answer)

    async def emit(self, topic: bytes, second: bytes, data: bytes) -> bytes:
        [tx_hash] = await self._emit([emit_call(topic, second, data)])
        return tx_hash

    async def emit_in_one_block(self, transactions: Sequence[tuple[bytes, int]]) -> list[bytes]:
        await self.rpc.call("evm_setAutomine", [False])
        try:
            return await self._emit([emit_call(topic, bytes(32), b"", count) for topic, count in transactions], mine=True)
        finally:
            await self.rpc.call("evm_setAutomine", [True])

    async def _emit(self, calls: Sequence[bytes], *, mine: bool = False) -> list[bytes]:
        requests = [
            {"from": hex_of(self._owner), "to": hex_of(EMITTER), "data": hex_of(call), "gas": "0x1e8480"} for call in calls
        ]
        hashes = [await self.rpc.call("eth_sendTransaction", [request]) for request in requests]
        if mine:
            await self.rpc.call("evm_mine", [])
        with trio.fail_after(10):
            for tx_hash in hashes:  # the pool answers before the block is mined
                while await self.rpc.call("eth_getTransactionReceipt", [tx_hash]) is None:
                    await trio.lowlevel.checkpoint()
        return [bytes_of(tx_hash) for tx_hash in hashes]

    async def fund(self, account: bytes, wei: int) -> None:
        await self.rpc.call("evm_mine", [])  # first: the lever changes the newest block's state
        await self.rpc.call("anvil_setBalance", [hex_of(account), hex(wei)])

    def cut(self) -> None:
        self.line.cut = True

    def mend(self) -> None:
        self.line.cut = False


def domain_of(deployment: Deployment) -> Domain:
    d = deployment
    return Domain(d.chain_id, bytes_of(d.hub), bytes_of(d.attestation_center), bytes_of(d.keeper_registry))


@asynccontextmanager
async def anvil_world(rpc: Rpc, prepared: Prepared) -> AsyncIterator[AnvilWorld]:
    """The seated network, deployed once for each anvil and brought back from a snapshot for every further test."""
    if prepared.deployment is None:
        await rpc.call("anvil_autoImpersonateAccount", [True])
        deployer = ecdsa.address_of(_DEPLOYER)
        await rpc.call("anvil_setBalance", [hex_of(deployer), _RICH])
        settings = DeploySettings(
            owner=hex_of(deployer),
            dispatchers=(hex_of(ecdsa.address_of(DISPATCHER)),),
            epoch_seconds=600,
            round_seconds=ROUND_SECONDS,
            min_stake=STAKE,
            seat_stake=STAKE,
            unbonding_seconds=3600,
            unit=10**12,
            demo=True,
        )
        prepared.deployment = await deploy(rpc, _DEPLOYER, settings)
        await AnvilWorld(rpc, prepared.deployment).seat()
    else:
        assert await rpc.call("evm_revert", [prepared.snapshot])
    prepared.snapshot = await rpc.call("evm_snapshot", [])
    world = AnvilWorld(rpc, prepared.deployment, prepared.url)
    await world.open()
    async with AsyncExitStack() as open_:
        for keeper in (COORDINATOR, *world.keepers):  # each account's own, which outlives its wallets as a file would
            database = await open_.enter_async_context(open_database(MEMORY, SENT_MIGRATIONS, durable=True))
            world.logs[keeper.address] = SqliteTransactionLog(database)
        yield world
