"""What chains and clocks do to a network: blocks that take time, reorganisations, absent endpoints, clocks that are wrong."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from consensus.messages import Task
from node.infra.chain import ExecutionStatus
from p2p.topics import TASKS
from tests.simulation.test_hostile import drawn, outcomes, resident_of, settled
from tests.simulation.world import World, open_world


async def executed(world: World, task: Task) -> None:
    with trio.fail_after(100):
        await world.ledger.wait_until(lambda: task.task_id in world.ledger.state.executed)


@pytest.mark.parametrize("confirmations", [0, 2])
@pytest.mark.parametrize("block_seconds", [1, 2, 5])
async def test_blocks_that_take_time_and_confirmations(autojump_clock: MockClock, confirmations: int, block_seconds: int) -> None:
    async with open_world(6, block_seconds=block_seconds) as world:
        for resident in world.residents:
            await world.start(resident, confirmations=confirmations)
        spec = world.create_job()
        task = world.task(spec, spec.created_at + 10, world.residents[0].address, window=30)
        await world.publisher.publish(TASKS, task)
        assert await settled(world, task) is ExecutionStatus.CERTIFIED
        await trio.sleep(100)
        assert len(world.ledger.calls) == 1
        assert {outcomes(r)[task.task_id] for r in world.residents} == {"done"}
        certificates = [s for b in world.ledger.blocks for s in b.sendings if s.to == world.ledger.domain.attestation_center]
        assert len(certificates) <= 6  # three of a round step in while the first waits for its block, and of two rounds at most


async def test_confirmations_that_outlast_the_patience_for_a_package(autojump_clock: MockClock) -> None:
    """The record is there: what is waited for is depth, and that may take as long as the rounds do."""
    async with open_world(6, block_seconds=8) as world:
        world.ledger.round_seconds = 60
        for resident in world.residents:
            await world.start(resident, confirmations=10)
        spec = world.create_job()
        task = world.task(spec, spec.created_at + 10, world.residents[0].address, window=30)
        await world.publisher.publish(TASKS, task)
        assert await settled(world, task) is ExecutionStatus.CERTIFIED


@pytest.mark.parametrize("depth", [1, 2])
async def test_a_reorganised_execution_is_attested_in_its_new_block(autojump_clock: MockClock, depth: int) -> None:
    async with open_world(8) as world:
        for resident in world.residents:
            await world.start(resident)
        # No vote arrives before the block is gone.
        world.mesh.latency = lambda _a, _b: 0.05
        spec = world.create_job()
        task = world.task(spec, spec.created_at + 10, world.residents[0].address)
        await world.publisher.publish(TASKS, task)
        await executed(world, task)
        before = drawn(world, task)
        await trio.sleep(0.08)  # packages and records are there, and the first votes under way
        assert world.status(task) == ExecutionStatus.PENDING
        world.ledger.reorg(depth)
        assert drawn(world, task) != before
        assert await settled(world, task) is ExecutionStatus.CERTIFIED
        record = world.ledger.state.executed[task.task_id].record
        assert world.ledger.head.timestamp < record.timestamp + world.ledger.round_seconds  # the round began anew at once
        await trio.sleep(60)
        assert len(world.ledger.calls) == 1
        assert all(not r.tracker or outcomes(r)[task.task_id] == "done" for r in world.residents)


async def test_a_reorganisation_that_loses_the_execution_has_it_sent_again(autojump_clock: MockClock) -> None:
    async with open_world(6) as world:
        for resident in world.residents:
            await world.start(resident)
        world.mesh.latency = lambda _a, _b: 0.05
        spec = world.create_job()
        task = world.task(spec, spec.created_at + 10, world.residents[0].address, window=60)
        await world.publisher.publish(TASKS, task)
        await executed(world, task)
        await trio.sleep(0.08)
        world.ledger.reorg(1, keep=False)
        assert not world.ledger.calls
        assert await settled(world, task) is ExecutionStatus.CERTIFIED
        assert len(world.ledger.calls) == 1


async def test_a_certificate_that_a_reorganisation_takes_back_leaves_no_task_open(autojump_clock: MockClock) -> None:
    async with open_world(6) as world:
        for resident in world.residents:
            await world.start(resident)
        spec = world.create_job()
        task = world.task(spec, spec.created_at + 10, world.residents[0].address)
        await world.publisher.publish(TASKS, task)
        assert await settled(world, task) is ExecutionStatus.CERTIFIED
        await trio.sleep(1)
        world.ledger.reorg(1, keep=False)
        assert world.status(task) == ExecutionStatus.PENDING
        assert await settled(world, task) is not ExecutionStatus.PENDING


@pytest.mark.parametrize("keepers", [2, 3])
async def test_the_smallest_networks_certify(autojump_clock: MockClock, keepers: int) -> None:
    async with open_world(keepers) as world:
        for resident in world.residents:
            await world.start(resident)
        spec = world.create_job()
        tasks = [world.task(spec, spec.created_at + 10 * i, world.residents[i % keepers].address) for i in (1, 2, 3)]
        for task in tasks:
            await world.publisher.publish(TASKS, task)
        assert [await settled(world, task) for task in tasks] == [ExecutionStatus.CERTIFIED] * 3


async def test_in_a_network_of_two_a_dead_attester_means_a_refund(autojump_clock: MockClock) -> None:
    async with open_world(2) as world:
        await world.start(world.residents[0])
        spec = world.create_job()
        task = world.task(spec, spec.created_at + 10, world.residents[0].address)
        await world.publisher.publish(TASKS, task)
        assert await settled(world, task) is ExecutionStatus.EXPIRED
        await trio.sleep(30)
        assert outcomes(world.residents[0]) == {task.task_id: "NO_QUORUM"}


async def test_a_committee_of_thirteen(autojump_clock: MockClock) -> None:
    async with open_world(15) as world:
        for resident in world.residents[:-4]:  # four of thirteen at most are gone: nine are a quorum
            await world.start(resident)
        spec = world.create_job(level=1)
        task = world.task(spec, spec.created_at + 10, world.residents[0].address)
        await world.publisher.publish(TASKS, task)
        assert await settled(world, task) is ExecutionStatus.CERTIFIED
        assert len(drawn(world, task).members) == 13


@pytest.mark.parametrize("ahead", [-5.0, 5.0])
async def test_an_attester_whose_clock_is_wrong_harms_nobody(autojump_clock: MockClock, ahead: float) -> None:
    async with open_world(5) as world:
        for resident in world.residents:
            await world.start(resident, ahead=ahead if resident.number in (1, 2) else 0)
        spec = world.create_job()
        tasks = [world.task(spec, spec.created_at + 10 * i, world.residents[0].address) for i in range(1, 5)]
        for task in tasks:
            await world.publisher.publish(TASKS, task)
        assert [await settled(world, task) for task in tasks] == [ExecutionStatus.CERTIFIED] * 4
        assert world.ledger.head.timestamp <= spec.created_at + 40 + 5


async def test_a_performer_whose_clock_is_late_still_executes_in_its_window(autojump_clock: MockClock) -> None:
    async with open_world(5) as world:
        for resident in world.residents:
            await world.start(resident, ahead=0 if resident.number else -5)
        spec = world.create_job()
        task = world.task(spec, spec.created_at + 10, world.residents[0].address)
        await world.publisher.publish(TASKS, task)
        assert await settled(world, task) is ExecutionStatus.CERTIFIED


async def test_a_performer_whose_clock_is_early_fails_with_the_hubs_reason(autojump_clock: MockClock) -> None:
    async with open_world(5) as world:
        for resident in world.residents:
            await world.start(resident, ahead=0 if resident.number else 5)
        spec = world.create_job()
        task = world.task(spec, spec.created_at + 10, world.residents[0].address)
        await world.publisher.publish(TASKS, task)
        await trio.sleep(60)
        assert outcomes(world.residents[0]) == {task.task_id: "HUB_REFUSED"}
        retried = world.task(spec, spec.created_at + 10, world.residents[1].address, attempt=2, window=120)
        await world.publisher.publish(TASKS, retried)
        assert await settled(world, task) is ExecutionStatus.CERTIFIED


@pytest.mark.parametrize("rank", [0, 1, 3])
async def test_a_member_without_its_rpc_for_a_minute_is_done_without(autojump_clock: MockClock, rank: int) -> None:
    async with open_world(8) as world:
        for resident in world.residents:
            await world.start(resident)
        spec = world.create_job()
        task = world.task(spec, spec.created_at + 10, world.residents[0].address)
        await world.publisher.publish(TASKS, task)
        await executed(world, task)
        cut = resident_of(world, drawn(world, task).members[rank].address)
        assert cut.chain is not None
        cut.chain.go_offline()
        assert await settled(world, task) is ExecutionStatus.CERTIFIED
        await trio.sleep(50)
        cut.chain.go_online()
        await trio.sleep(80)
        assert outcomes(cut).get(task.task_id) in ("done", "RPC_UNREACHABLE")
        # And it is at work again.
        following = world.task(spec, spec.created_at + 200, cut.address)
        await world.publisher.publish(TASKS, following)
        assert await settled(world, following) is ExecutionStatus.CERTIFIED


async def test_a_performer_without_its_rpc_at_its_second_executes_when_it_is_back(autojump_clock: MockClock) -> None:
    async with open_world(5) as world:
        for resident in world.residents:
            await world.start(resident)
        performer = world.residents[0]
        spec = world.create_job()
        task = world.task(spec, spec.created_at + 10, performer.address, window=60)
        await world.publisher.publish(TASKS, task)
        await trio.sleep(5)
        assert performer.chain is not None
        performer.chain.go_offline()
        await trio.sleep(40)
        assert not world.ledger.calls
        performer.chain.go_online()
        assert await settled(world, task) is ExecutionStatus.CERTIFIED
        assert len(world.ledger.calls) == 1


async def test_a_lagging_member_is_heard_once_it_has_caught_up_whoever_of_the_aggregators_is_dead(
    autojump_clock: MockClock,
) -> None:
    async with open_world(4) as world:  # N = 3, a quorum is 2: performer, dead aggregator, two attesters
        for resident in world.residents:
            await world.start(resident)
        spec = world.create_job()
        task = world.task(spec, spec.created_at + 10, world.residents[0].address)
        await world.publisher.publish(TASKS, task)
        await executed(world, task)
        first, lagging, _ = (resident_of(world, m.address) for m in drawn(world, task).members)
        world.kill(first)
        assert lagging.chain is not None
        read = lagging.chain.transaction

        async def not_yet(tx_hash: bytes) -> None:
            await read(tx_hash)

        lagging.chain.transaction = not_yet  # type: ignore[assignment]
        await trio.sleep(3)
        lagging.chain.transaction = read  # type: ignore[method-assign]
        assert await settled(world, task) is ExecutionStatus.CERTIFIED
        record = world.ledger.state.executed[task.task_id].record
        assert world.ledger.head.timestamp < record.timestamp + world.ledger.round_seconds


@pytest.mark.parametrize("round_", [1, 2])
async def test_a_later_round_certifies_when_its_members_are_back(autojump_clock: MockClock, round_: int) -> None:
    async with open_world(6) as world:
        for resident in world.residents:
            await world.start(resident)
        spec = world.create_job()
        task = world.task(spec, spec.created_at + 10, world.residents[0].address)
        await world.publisher.publish(TASKS, task)
        await executed(world, task)
        away = [r for r in world.residents[1:] if r.number % 2]
        for resident in away:
            world.mesh.cut(resident.peer_id)
        await trio.sleep(round_ * world.ledger.round_seconds + 0.5)
        for resident in away:
            world.mesh.restore(resident.peer_id)
        assert await settled(world, task) is ExecutionStatus.CERTIFIED
        record = world.ledger.state.executed[task.task_id].record
        late = world.ledger.head.timestamp - record.timestamp
        assert round_ * world.ledger.round_seconds <= late < (round_ + 1) * world.ledger.round_seconds
