"""What the chain takes back: executions, and the logs that fired tasks."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from consensus.codec import keccak
from consensus.events import OnEvent
from consensus.lifecycle import TaskState
from consensus.messages import Task
from coordinator.attempts import DispatchPolicy
from coordinator.store.records import JobStatus
from node.infra.chain import ExecutionRecord, ExecutionStatus
from p2p.network import PeerId
from tests.coordinator.world import TARGET, FakeKeeper, World, executes, is_silent, open_world

S = TaskState
QUICK = DispatchPolicy(ack_timeout=6, retries=(1, 2), window=20, settle=5)


async def executed(world: World, job_id: int) -> None:
    await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTED], job_id)


async def test_an_execution_that_was_taken_back_gets_another_attempt_after_its_window(autojump_clock: MockClock) -> None:
    async with open_world(policy=QUICK) as world:
        job_id = await world.post()
        await executed(world, job_id)
        world.ledger.reorg(1, keep=False)
        await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTING], job_id)
        await executed(world, job_id)
        [task] = await world.tasks(job_id)
        first, second = await world.attempts(task)
        assert (first.code, task.attempt) == ("REORGANISED", 2)
        assert second.not_before > first.deadline
        assert task.executed_at is not None
        assert task.executed_at > first.deadline
        world.settle(task.id)
        [task] = await world.ended(job_id)
        assert task.state is S.COMPLETED
        assert len(world.executed_seconds(job_id)) == 1


async def test_within_its_window_the_same_performer_sends_again_and_no_other_is_asked(autojump_clock: MockClock) -> None:
    async def insists(keeper: FakeKeeper, task: Task, source: PeerId) -> None:
        await executes(keeper, task, source)
        await trio.sleep(5)
        await keeper.execute(task)

    async with open_world(policy=QUICK) as world:
        for keeper in world.keepers:
            keeper.behaviour = insists
        job_id = await world.post()
        await executed(world, job_id)
        world.ledger.reorg(1, keep=False)
        await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTING], job_id)
        await executed(world, job_id)
        [task] = await world.tasks(job_id)
        assert task.attempt == 1
        assert len(await world.attempts(task)) == 1


async def test_without_attempts_left_it_fails_by_that_name(autojump_clock: MockClock) -> None:
    async with open_world(policy=DispatchPolicy(ack_timeout=6, retries=(), window=20, settle=5)) as world:
        job_id = await world.post()
        await executed(world, job_id)
        world.ledger.reorg(1, keep=False)
        [task] = await world.ended(job_id)
        assert (task.state, task.reason) == (S.FAILED, "REORGANISED")


async def test_an_execution_taken_back_while_nobody_looked_is_dispatched_again(autojump_clock: MockClock) -> None:
    async with open_world(policy=QUICK) as world:
        job_id = await world.post()
        await executed(world, job_id)
        world.kill()
        world.ledger.reorg(1, keep=False)
        await trio.sleep(40)
        await world.start()
        await world.until(lambda tasks: [(t.state, t.attempt) for t in tasks] == [(S.EXECUTED, 2)], job_id)


async def test_an_execution_that_came_with_the_new_branch_needs_no_attempt(autojump_clock: MockClock) -> None:
    async with open_world(policy=QUICK) as world:
        job_id = await world.post()
        await executed(world, job_id)
        world.ledger.reorg(1, keep=True)
        world.ledger.mine()
        await trio.sleep(5)
        [task] = await world.tasks(job_id)
        assert (task.state, task.attempt) == (S.EXECUTED, 1)
        world.settle(task.id)
        [task] = await world.ended(job_id)
        assert task.state is S.COMPLETED


# --- logs

EVENT = OnEvent(31337, TARGET, "Pinged(uint256 indexed value)")
TOPIC = keccak(b"Pinged(uint256)")


async def event_job(world: World, *, recurring: bool = True) -> int:
    job_id = world.create(interval=0, time_frame=10_000, definition=3, recurring=recurring)
    await world.take_on(world.posted(job_id, trigger=EVENT))
    await trio.sleep(2)
    return job_id


async def test_a_log_fires_its_job_and_the_task_says_where_it_was_seen(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        job_id = await event_job(world)
        transaction = world.ledger.emit(TARGET, [TOPIC, bytes(32)])
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTED], job_id)
        assert task.observation is not None
        assert getattr(task.observation, "transaction", None) == transaction
        sent = [Task.decode(a.message) for a in await world.attempts(task)]
        assert [m.observation for m in sent] == [task.observation]
        assert sent[0].authorisation.not_before >= task.scheduled_at


async def test_a_task_whose_log_is_gone_is_cancelled_and_gets_no_further_attempt(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        job_id = await event_job(world)
        for keeper in world.keepers:
            keeper.behaviour = is_silent
        world.ledger.emit(TARGET, [TOPIC, bytes(32)])
        await world.until(lambda tasks: [t.state for t in tasks] == [S.DISPATCHED], job_id)
        world.ledger.reorg(1, keep=False)
        for _ in range(20):
            world.ledger.mine()
            await trio.sleep(1)
        [task] = await world.ended(job_id)
        assert (task.state, task.reason) == (S.FAILED, "EVENT_REORGANISED")
        assert len(await world.attempts(task)) == 1


async def test_a_job_that_runs_once_waits_for_the_next_log_when_its_own_is_gone(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        job_id = await event_job(world, recurring=False)
        for keeper in world.keepers:
            keeper.behaviour = is_silent
        world.ledger.emit(TARGET, [TOPIC, bytes(32)])
        await world.until(lambda tasks: [t.state for t in tasks] == [S.DISPATCHED], job_id)
        world.ledger.reorg(1, keep=False)
        for _ in range(20):
            world.ledger.mine()
            await trio.sleep(1)
        [gone] = await world.ended(job_id)
        assert gone.reason == "EVENT_REORGANISED"
        for keeper in world.keepers:
            keeper.behaviour = executes
        transaction = world.ledger.emit(TARGET, [TOPIC, bytes(32)])
        tasks = await world.until(lambda tasks: tasks[-1].state is S.EXECUTED, job_id)
        assert [getattr(t.observation, "transaction", None) for t in tasks[1:]] == [transaction]
        world.ledger.emit(TARGET, [TOPIC, bytes(32)])
        world.settle(tasks[-1].id)
        await world.ended(job_id, 2)
        await trio.sleep(10)
        job = await world.store.job(job_id)
        assert job is not None
        assert (job.status, len(await world.tasks(job_id))) == (JobStatus.COMPLETED, 2)


async def test_a_task_that_was_cancelled_is_dispatched_when_its_log_is_there_again(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        job_id = await event_job(world)
        for keeper in world.keepers:
            keeper.behaviour = is_silent
        world.ledger.emit(TARGET, [TOPIC, bytes(32)])
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [S.DISPATCHED], job_id)
        assert await world.coordinator.dispatcher.cancel(task.id, "EVENT_REORGANISED")
        await world.until(lambda tasks: [t.state for t in tasks] == [S.FAILED], job_id)
        await trio.sleep(1)
        for keeper in world.keepers:
            keeper.behaviour = executes
        assert await world.coordinator.dispatcher.revive(task.id)
        await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTED], job_id)
        assert not await world.coordinator.dispatcher.revive(task.id)


async def test_what_has_executed_cannot_be_cancelled(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        job_id = await event_job(world)
        world.ledger.emit(TARGET, [TOPIC, bytes(32)])
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTED], job_id)
        assert not await world.coordinator.dispatcher.cancel(task.id, "EVENT_REORGANISED")
        world.settle(task.id)
        [task] = await world.until(lambda tasks: [t.ended for t in tasks] == [True], job_id)
        assert task.state is S.COMPLETED


async def test_a_cancelled_task_that_executes_all_the_same_says_so(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        job_id = await event_job(world)

        async def late(keeper: FakeKeeper, task: Task, source: PeerId) -> None:
            await keeper.acknowledge(task, source)
            await trio.sleep(20)
            await keeper.execute(task)

        for keeper in world.keepers:
            keeper.behaviour = late
        world.ledger.emit(TARGET, [TOPIC, bytes(32)])
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [S.ACKNOWLEDGED], job_id)
        assert await world.coordinator.dispatcher.cancel(task.id, "EVENT_REORGANISED")
        await executed(world, job_id)
        assert world.ledger.state.executed[task.id].record.status is ExecutionStatus.PENDING
        assert len(world.ledger.state.executed) == 1


async def test_an_event_job_that_fires_once_completes_with_its_task(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        job_id = await event_job(world, recurring=False)
        world.ledger.emit(TARGET, [TOPIC, bytes(32)])
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTED], job_id)
        world.ledger.emit(TARGET, [TOPIC, bytes(32)])
        world.settle(task.id)
        await world.ended(job_id)
        job = await world.store.job(job_id)
        assert job is not None
        assert job.status is JobStatus.COMPLETED


async def test_an_rpc_that_wrongly_called_an_execution_gone_is_corrected(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        job_id = await world.post()
        await executed(world, job_id)
        [task] = await world.tasks(job_id)
        real, lies = world.chain.execution, [True]

        async def behind(task_id: int) -> ExecutionRecord | None:
            return None if lies else await real(task_id)

        world.chain.execution = behind  # type: ignore[method-assign]
        world.ledger.reorg(1, keep=True)
        world.ledger.mine()
        await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTING], job_id)
        lies.clear()
        await executed(world, job_id)
        assert world.clock.now() < task.scheduled_at + 30
        world.settle(task.id)
        [task] = await world.ended(job_id)
        assert (task.state, task.attempt) == (S.COMPLETED, 1)
        assert len(await world.attempts(task)) == 1
