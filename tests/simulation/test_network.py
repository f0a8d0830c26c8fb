"""The whole network, coordinator included, in one process on a virtual clock: what a posted job becomes in an hour."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from trio.testing import MockClock

from consensus.lifecycle import TaskState
from coordinator.app import Coordinator, Parts
from coordinator.dispatcher import DispatchPolicy
from coordinator.jobs import Posted
from coordinator.store.memory import MemoryStore
from coordinator.store.records import JobStatus, Task
from node.infra.chain_memory import MemoryChain
from node.infra.compute import inline
from node.infra.observe import Observer, Registry
from node.infra.secret import Secret
from tests.simulation.test_keepers import lying
from tests.simulation.world import ARGUMENTS, DISPATCHER, FUNCTION, OWNER, TARGET, World, open_world

POLICY = DispatchPolicy(ack_timeout=6.0, window=12.0)


@asynccontextmanager
async def coordinating(world: World, store: MemoryStore) -> AsyncIterator[Coordinator]:
    """A coordinator's process over a store that outlives it."""
    observer = Observer(MemoryChain(world.clock, ledger=world.ledger, latency=0.002))
    registry = Registry({world.ledger.domain.chain_id: observer})
    coordinator = Coordinator(
        Parts(
            store=store,
            network=world.mesh.join("coordinator", gate=registry.may_publish),
            observers={world.ledger.domain.chain_id: observer},
            registry=registry,
            dispatcher_key=Secret(DISPATCHER),
            clock=world.clock,
            compute=inline,
            policy=POLICY,
        )
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(coordinator.run)
        yield coordinator
        nursery.cancel_scope.cancel()


async def post(world: World, coordinator: Coordinator, *, interval: int, time_frame: int) -> int:
    """Creates the job on chain and posts it, as a client does."""
    job_id = world.ledger.create_job(OWNER, target=TARGET, interval=interval, time_frame=time_frame)
    posted = Posted(
        id=job_id,
        owner=OWNER,
        title="simulated",
        definition=1,
        time_frame=time_frame,
        interval=interval,
        chain_id=world.ledger.domain.chain_id,
        created_chain_id=world.ledger.domain.chain_id,
        contract=TARGET,
        function=FUNCTION,
        abi="",
        arg_type=1,
        arguments=ARGUMENTS,
        priority=3,
        security=2,
        custom=True,
        timezone="UTC",
        is_imua=False,
        is_safe=False,
        safe_name="",
        safe_address="",
        cost_prediction="0",
        language="",
    )
    await coordinator.jobs.create(posted, key_owner="simulation", trace_id="tgrx-simulation")
    return job_id


async def ended(world: World, store: MemoryStore, job_id: int) -> list[Task]:
    """The job's tasks, once the job is completed: every one of them has then ended."""
    while True:
        job = await store.job(job_id)
        assert job is not None
        if job.status is JobStatus.COMPLETED:
            return list(await store.tasks_of_job(job_id, 10_000))
        await world.clock.sleep_until(world.clock.now() + 5)


def executed_seconds(world: World) -> list[int]:
    return [call.timestamp for call in world.ledger.calls]


async def test_an_hour_with_committees_of_seven_one_lying_and_one_gone(autojump_clock: MockClock) -> None:
    async with open_world(10) as world:
        liar, _gone, *honest = world.residents
        await world.start(liar, lying)
        for resident in honest:
            await world.start(resident)
        store = MemoryStore()
        async with coordinating(world, store) as coordinator:
            job_id = await post(world, coordinator, interval=60, time_frame=3600)
            tasks = await ended(world, store, job_id)
        assert Counter(t.state for t in tasks) == {TaskState.COMPLETED: 60}
        assert len({t.trigger_id for t in tasks}) == len(executed_seconds(world)) == 60
        # The one that is gone has no check-in, so nobody waits for it; the liar performs like any other.
        assert {t.performer for t in tasks} >= {liar.address, *(h.address for h in honest)}
        assert all(t.attempt == 1 for t in tasks)


async def test_a_performer_that_dies_after_its_acknowledgement_is_replaced(autojump_clock: MockClock) -> None:
    async with open_world(6) as world:
        for resident in world.residents:
            await world.start(resident)
        store = MemoryStore()
        async with coordinating(world, store) as coordinator:
            job_id = await post(world, coordinator, interval=30, time_frame=30)
            while not (tasks := await store.tasks_of_job(job_id, 1)) or tasks[0].state is not TaskState.ACKNOWLEDGED:
                await world.clock.sleep_until(world.clock.now() + 0.1)
            first = (await store.attempts(tasks[0].id))[0]
            world.kill(next(r for r in world.residents if r.address == first.performer))
            [task] = await ended(world, store, job_id)
        assert (task.state, task.attempt) == (TaskState.COMPLETED, 2)
        assert task.performer != first.performer
        assert len(world.ledger.calls) == 1
        assert world.ledger.calls[0].timestamp > first.deadline


async def test_a_coordinator_that_dies_every_ten_seconds_misses_nothing(autojump_clock: MockClock) -> None:
    async with open_world(6) as world:
        for resident in world.residents:
            await world.start(resident)
        store = MemoryStore()
        async with coordinating(world, store) as coordinator:
            job_id = await post(world, coordinator, interval=7, time_frame=210)
        for _ in range(25):
            async with coordinating(world, store):
                await trio.sleep(9.7)
            world.mesh.leave("coordinator")
            await trio.sleep(0.4)
        async with coordinating(world, store):
            tasks = await ended(world, store, job_id)
        assert Counter(t.state for t in tasks) == {TaskState.COMPLETED: 30}
        assert len(world.ledger.calls) == 30


async def test_with_every_keeper_gone_a_task_fails_by_name(autojump_clock: MockClock) -> None:
    async with open_world(4) as world:
        store = MemoryStore()
        async with coordinating(world, store) as coordinator:
            job_id = await post(world, coordinator, interval=30, time_frame=30)
            [task] = await ended(world, store, job_id)
        assert (task.state, task.reason) == (TaskState.FAILED, "NO_KEEPER")
        assert not world.ledger.calls
