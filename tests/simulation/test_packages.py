"""Packages on the simulated network: too large for gossip, of replaced transactions, and those that are somebody else's."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import trio
from trio.testing import MockClock

from consensus.codec import keccak
from consensus.fees import resource_fee
from consensus.messages import PackageReference, Uint256
from consensus.schedules import Moments
from node.infra.chain import ExecutionStatus, Mined, Prepared, Wallet
from node.signer import Signer
from node.workflow import Keeper, Parts, Served
from p2p.topics import EXECUTIONS, NOT_EXECUTED, PACKAGES, TASKS
from tests.node.fake_scripts import USAGE
from tests.simulation.test_scripts import ARGUMENTS, DECLINES, decides, network, settled
from tests.simulation.world import open_world


async def test_a_package_too_large_for_gossip_is_fetched_by_its_cid(autojump_clock: MockClock) -> None:
    async with open_world(10) as world:
        performer = await network(world)
        call = bytes(4) + bytes(16_000)
        begins = int(world.clock.now()) + 10
        spec = world.create_script_job(decides(call), trigger=Moments(tuple(range(begins, begins + 1_000))))
        task = world.task(spec, begins, performer.address, storage='{"kept": "%s"}' % ("x" * 16_000))
        await world.publisher.publish(TASKS, task)
        assert await settled(world, task) is ExecutionStatus.CERTIFIED
        trails = {r.number: t for r in world.residents if r.tracker for t in r.tracker.trails() if t.task_id == task.task_id}
        cid = trails[performer.number].facts["package"]
        assert len(world.content[cid]) > EXECUTIONS.max_bytes
        assert {t.facts["package"] for t in trails.values()} == {cid}


class Replacing:
    """A wallet whose transactions get stuck: what it sent first is never mined, another with the same nonce is."""

    def __init__(self, wallet: Wallet) -> None:
        self._wallet = wallet
        self._mined: dict[bytes, bytes] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wallet, name)

    async def send(self, prepared: Prepared) -> bytes:
        tx_hash = await self._wallet.send(prepared)
        stuck = keccak(tx_hash)
        self._mined[stuck] = tx_hash
        return stuck

    async def mined(self, tx_hash: bytes) -> Mined:
        await trio.sleep(3)
        return await self._wallet.mined(self._mined.get(tx_hash, tx_hash))


async def test_a_package_names_the_transaction_that_took_a_stuck_ones_place(autojump_clock: MockClock) -> None:
    async with open_world(10) as world:

        def stuck(parts: Parts) -> Keeper:
            [(chain_id, served)] = parts.chains.items()
            wallet = cast(Wallet, Replacing(served.wallet))
            return Keeper(dataclasses.replace(parts, chains={chain_id: Served(served.observer, wallet)}))

        performer = await network(world, stuck)
        spec = world.create_script_job(ARGUMENTS, definition=2)
        task = world.task(spec, spec.created_at + 10, performer.address)
        await world.publisher.publish(TASKS, task)
        assert await settled(world, task) is ExecutionStatus.CERTIFIED
        record = world.ledger.state.executed[task.task_id].record
        assert world.ledger.head.timestamp < record.timestamp + world.ledger.round_seconds  # in the first round
        assert performer.tracker is not None
        [trail] = performer.tracker.trails()
        assert trail.facts["execution_tx"] == "0x" + world.ledger.blocks[record.block_number].sendings[0].hash.hex()


async def test_references_and_reports_of_a_loud_performer_leave_room_for_others(autojump_clock: MockClock) -> None:
    async with open_world(6) as world:
        loud, honest, *others = world.residents
        for resident in (honest, *others):
            await world.start(resident)
        flood, signer = world.mesh.join(loud.peer_id), Signer(loud.operator, loud.bls_secret)
        spec = world.create_script_job(ARGUMENTS, definition=2)
        for i in range(1, 300):
            empty = world.task(spec, spec.created_at + 10 * i, loud.address, attempt=1)
            await flood.publish(PACKAGES, PackageReference(spec.chain_id, Uint256(empty.task_id), 1, f"bafk{i}"))
            run = DECLINES.outcome(spec).run
            said = signer.not_executed(empty, world.ledger.domain, "SCRIPT_FAILED", "", run, resource_fee(3, USAGE))
            await flood.publish(NOT_EXECUTED, said)
        task = world.task(spec, spec.created_at + 10, honest.address, attempt=2)
        await world.publisher.publish(TASKS, task)
        assert await settled(world, task) is ExecutionStatus.CERTIFIED


async def test_a_reference_to_somebody_elses_package_moves_nobody(autojump_clock: MockClock) -> None:
    async with open_world(10) as world:
        performer = await network(world)
        envious = world.residents[-1]
        world.kill(envious)
        liar = world.mesh.join(envious.peer_id)
        spec = world.create_script_job(ARGUMENTS, definition=2)
        task = world.task(spec, spec.created_at + 10, performer.address)
        world.mesh.loss = lambda source, _target, topic: source == performer.peer_id and topic == EXECUTIONS.name
        await world.publisher.publish(TASKS, task)
        await world.ledger.wait_until(lambda: bool(world.ledger.calls))
        for cid in tuple(world.content):
            await liar.publish(PACKAGES, PackageReference(spec.chain_id, Uint256(task.task_id), 1, cid))
        await trio.sleep(2)
        attesters = [t for r in world.residents if r is not performer and r.tracker for t in r.tracker.trails()]
        assert not any("fetched" in trail.stages or "voted" in trail.stages for trail in attesters)
        world.mesh.loss = lambda *_: False
        assert await settled(world, task) is ExecutionStatus.CERTIFIED
