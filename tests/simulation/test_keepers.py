"""The whole keeper workflow, simulated: one task's walk, liars, the dead, and an hour in seconds."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import pytest
import trio
from trio.testing import MockClock

from consensus import bls, merkle
from consensus.codec import Domain, keccak
from consensus.committee import of_task
from consensus.messages import Task, Verdict, Vote
from node.infra.chain import ExecutionStatus
from node.signer import Signer
from node.workflow import Keeper, Parts
from p2p.topics import TASKS
from tests.simulation.world import World, open_world


async def _settled(world: World, task: Task) -> ExecutionStatus:
    with trio.fail_after(600):
        await world.ledger.wait_until(
            lambda: (
                (e := world.ledger.state.executed.get(task.task_id)) is not None
                and e.record.status is not ExecutionStatus.PENDING
            )
        )
    return world.ledger.state.executed[task.task_id].record.status


class LyingSigner(Signer):
    """Says no to what is right, and every second time with a signature that is worth nothing."""

    def vote(
        self,
        domain: Domain,
        task_id: int,
        execution: bytes,
        verdict: Verdict,
        reason: str,
        *,
        block_number: int,
        epoch: int,
        round_: int,
    ) -> Vote:
        honest = super().vote(
            domain, task_id, execution, Verdict.NO, "WRONG_CALL", block_number=block_number, epoch=epoch, round_=round_
        )
        if task_id % 2:
            return honest
        root = merkle.leaf(task_id, execution, Verdict.YES)
        other = domain.attestation_digest(root, block_number + 1, epoch, round_)
        return Vote(
            honest.chain_id,
            honest.task_id,
            execution,
            Verdict.YES,
            "",
            block_number,
            epoch,
            round_,
            bls.sign(self._bls_secret, other),
        )


def lying(parts: Parts) -> Keeper:
    liar = LyingSigner(parts.signer._operator_secret, parts.signer._bls_secret)
    return Keeper(dataclasses.replace(parts, signer=liar))


async def _start_all(world: World) -> None:
    for resident in world.residents:
        await world.start(resident)


async def test_a_published_task_is_executed_once_and_certified(autojump_clock: MockClock) -> None:
    async with open_world(6) as world:
        await _start_all(world)
        spec = world.create_job()
        task = world.task(spec, spec.created_at + 10, world.residents[0].address)
        await world.publisher.publish(TASKS, task)
        assert await _settled(world, task) is ExecutionStatus.CERTIFIED
        assert [call.data[4:] for call in world.ledger.calls] == [(2**200).to_bytes(32, "big")]


async def test_a_task_published_again_and_again_executes_once(autojump_clock: MockClock) -> None:
    async with open_world(4) as world:
        await _start_all(world)
        spec = world.create_job()
        task = world.task(spec, spec.created_at + 10, world.residents[0].address)
        for _ in range(5):
            await world.publisher.publish(TASKS, task)
        assert await _settled(world, task) is ExecutionStatus.CERTIFIED
        await world.publisher.publish(TASKS, task)
        await trio.sleep(60)
        assert len(world.ledger.calls) == 1


async def test_a_task_that_no_listed_dispatcher_signed_moves_nobody(autojump_clock: MockClock) -> None:
    async with open_world(4) as world:
        await _start_all(world)
        spec = world.create_job()
        task = world.task(spec, spec.created_at + 10, world.residents[0].address, secret=keccak(b"somebody else"))
        await world.publisher.publish(TASKS, task)
        await trio.sleep(60)
        assert not world.ledger.calls
        assert all(not r.tracker.trails() for r in world.residents if r.tracker)


async def test_a_performer_killed_before_its_second_executes_after_a_restart(autojump_clock: MockClock) -> None:
    async with open_world(4) as world:
        await _start_all(world)
        spec = world.create_job()
        performer = world.residents[0]
        task = world.task(spec, spec.created_at + 10, performer.address, window=30)
        await world.publisher.publish(TASKS, task)
        await trio.sleep(2)
        world.kill(performer)
        await trio.sleep(15)
        assert not world.ledger.calls
        await world.start(performer)
        assert await _settled(world, task) is ExecutionStatus.CERTIFIED
        assert len(world.ledger.calls) == 1


async def test_a_performer_killed_after_sending_publishes_its_package_after_a_restart(autojump_clock: MockClock) -> None:
    async with open_world(4) as world:
        await _start_all(world)
        spec = world.create_job()
        performer = world.residents[0]
        task = world.task(spec, spec.created_at + 10, performer.address, window=30)
        world.mesh.loss = lambda source, _target, topic: source == performer.peer_id and topic.endswith("executions")
        await world.publisher.publish(TASKS, task)
        await world.ledger.wait_until(lambda: bool(world.ledger.calls))
        world.kill(performer)
        world.mesh.loss = lambda *_: False
        await world.start(performer)
        assert await _settled(world, task) is ExecutionStatus.CERTIFIED
        assert len(world.ledger.calls) == 1


@pytest.mark.parametrize("gone", [1, 2])
async def test_the_next_ranks_step_in_for_dead_aggregators(autojump_clock: MockClock, gone: int) -> None:
    async with open_world(10) as world:
        await _start_all(world)
        spec = world.create_job()
        performer = world.residents[0]
        task = world.task(spec, spec.created_at + 10, performer.address)
        await world.publisher.publish(TASKS, task)
        await world.ledger.wait_until(lambda: bool(world.ledger.calls))
        # The block has drawn the committee; nobody has voted yet, since reading the record takes time.
        record = world.ledger.state.executed[task.task_id].record
        epoch = world.ledger.state.epoch_of(record.block_number)
        block = world.ledger.block(record.block_number)
        assert epoch is not None
        assert block is not None
        committee = of_task(epoch, block.head.hash, 0, record.level, record.performer)
        dead = {m.address for m in committee.members[:gone]}
        for resident in world.residents:
            if resident.address in dead:
                world.kill(resident)
        assert await _settled(world, task) is ExecutionStatus.CERTIFIED


async def test_without_a_quorum_the_fee_is_refunded_after_three_rounds(autojump_clock: MockClock) -> None:
    async with open_world(5) as world:
        for resident in world.residents[:2]:  # performer and one attester of four: never a quorum
            await world.start(resident)
        before = world.ledger.state.balances.copy()
        spec = world.create_job()
        task = world.task(spec, spec.created_at + 10, world.residents[0].address)
        await world.publisher.publish(TASKS, task)
        assert await _settled(world, task) is ExecutionStatus.EXPIRED
        assert world.ledger.state.balances == before


async def test_an_hour_with_one_keeper_lying_and_one_gone_loses_nothing(autojump_clock: MockClock) -> None:
    async with open_world(10) as world:
        liar, _gone, *honest = world.residents
        await world.start(liar, lying)
        for resident in honest:
            await world.start(resident)
        spec = world.create_job(interval=60, time_frame=3600)
        turn = itertools.cycle([liar, *honest])
        tasks = []
        for second in range(spec.created_at + 60, spec.created_at + 3601, 60):
            task = world.task(spec, second, next(turn).address)
            tasks.append(task)
            await world.clock.sleep_until(second - 3)
            await world.publisher.publish(TASKS, task)
        statuses = Counter([await _settled(world, task) for task in tasks])
        assert statuses == {ExecutionStatus.CERTIFIED: 60}
        assert len(world.ledger.calls) == 60
        assert world.clock.now() >= spec.created_at + 3600
