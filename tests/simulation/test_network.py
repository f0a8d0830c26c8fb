"""The whole network, coordinator included, in one process on a virtual clock: what a posted job becomes in an hour."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from trio.testing import MockClock

from consensus import ecdsa
from consensus.conditions import OnCondition
from consensus.events import OnEvent
from consensus.lifecycle import TaskState
from consensus.triggers import Interval, Trigger
from coordinator.alerts import Alerts
from coordinator.app import Coordinator, Parts
from coordinator.attempts import DispatchPolicy
from coordinator.definitions.posted import Posted
from coordinator.store.memory import MemoryStore
from coordinator.store.records import JobStatus, KeeperRecord, Task
from coordinator.streams.memory import MemoryServer, MemoryStreams
from node.infra.chain_memory import MemoryChain
from node.infra.compute import inline
from node.infra.observe import Observer, Registry
from node.infra.secret import Secret
from tests.coordinator.told import Told
from tests.simulation.test_keepers import lying
from tests.simulation.test_triggers import ABOVE, PRICE, on_transfer, transfer
from tests.simulation.world import ARGUMENTS, DISPATCHER, FUNCTION, OWNER, TARGET, World, open_world

POLICY = DispatchPolicy(ack_timeout=6.0, window=12.0)


@dataclass
class Platform:
    """What of the coordinator outlives its process."""

    store: MemoryStore = field(default_factory=MemoryStore)
    server: MemoryServer = field(default_factory=MemoryServer)
    told: Told = field(default_factory=Told)


@asynccontextmanager
async def coordinating(world: World, platform: Platform) -> AsyncIterator[Coordinator]:
    """A coordinator's process."""
    chain = MemoryChain(world.clock, ledger=world.ledger, latency=0.002)
    observer = Observer(chain)
    registry = Registry({world.ledger.domain.chain_id: observer})
    platform.server.join("coordinator")
    coordinator = Coordinator(
        Parts(
            store=platform.store,
            streams=MemoryStreams(platform.server, "coordinator"),
            instance="coordinator",
            network=world.mesh.join("coordinator", gate=registry.may_publish),
            sources=world.readings,
            alerts=Alerts(platform.store, world.clock, telegram=platform.told, mail=platform.told),
            observers={world.ledger.domain.chain_id: observer},
            registry=registry,
            dispatcher_key=Secret(DISPATCHER),
            wallets={world.ledger.domain.chain_id: chain.wallet(ecdsa.address_of(DISPATCHER))},
            clock=world.clock,
            compute=inline,
            policy=POLICY,
            poll_interval=1.0,
        )
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(coordinator.run)
        yield coordinator
        nursery.cancel_scope.cancel()


def posted(world: World, job_id: int, trigger: Trigger) -> Posted:
    job = world.ledger.state.jobs[job_id]
    return Posted(
        id=job_id,
        owner=OWNER,
        title="simulated",
        definition=job.definition,
        time_frame=job.time_frame,
        trigger=trigger,
        chain_id=world.ledger.domain.chain_id,
        created_chain_id=world.ledger.domain.chain_id,
        contract=TARGET,
        function=FUNCTION,
        abi="",
        arg_type=1,
        arguments=ARGUMENTS,
        security=2,
        recurring=job.recurring,
    )


async def post(world: World, coordinator: Coordinator, *, interval: int, time_frame: int) -> int:
    """Creates the job on chain and posts it, as a client does."""
    job_id = world.ledger.create_job(OWNER, target=TARGET, interval=interval, time_frame=time_frame)
    await coordinator.jobs.create([posted(world, job_id, Interval(interval))], key_owner="simulation", trace_id="tgrx-simulation")
    return job_id


async def post_triggered(world: World, coordinator: Coordinator, trigger: OnEvent | OnCondition, *, time_frame: int) -> int:
    job_id = int(world.create_triggered_job(trigger, time_frame=time_frame).job_id)
    await coordinator.jobs.create([posted(world, job_id, trigger)], key_owner="simulation", trace_id="tgrx-simulation")
    return job_id


async def ended(world: World, store: MemoryStore, job_id: int) -> list[Task]:
    """The job's tasks, once the job has ended: every one of them has then ended."""
    with trio.fail_after(20_000):
        while True:
            job = await store.job(job_id)
            assert job is not None
            if job.status in (JobStatus.COMPLETED, JobStatus.FAILED):
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
        platform = Platform()
        async with coordinating(world, platform) as coordinator:
            job_id = await post(world, coordinator, interval=60, time_frame=3600)
            tasks = await ended(world, platform.store, job_id)
        assert Counter(t.state for t in tasks) == {TaskState.COMPLETED: 60}
        assert len({t.trigger_id for t in tasks}) == len(executed_seconds(world)) == 60
        # The one that is gone has no check-in, so nobody waits for it; the liar performs like any other.
        assert {t.performer for t in tasks} >= {liar.address, *(h.address for h in honest)}
        assert all(t.attempt == 1 for t in tasks)


async def test_a_performer_that_dies_after_its_acknowledgement_is_replaced(autojump_clock: MockClock) -> None:
    async with open_world(6) as world:
        for resident in world.residents:
            await world.start(resident)
        platform = Platform()
        async with coordinating(world, platform) as coordinator:
            job_id = await post(world, coordinator, interval=30, time_frame=30)
            while not (tasks := await platform.store.tasks_of_job(job_id, 1)) or tasks[0].state is not TaskState.ACKNOWLEDGED:
                await world.clock.sleep_until(world.clock.now() + 0.1)
            first = (await platform.store.attempts(tasks[0].id))[0]
            world.kill(next(r for r in world.residents if r.address == first.performer))
            [task] = await ended(world, platform.store, job_id)
        assert (task.state, task.attempt) == (TaskState.COMPLETED, 2)
        assert task.performer != first.performer
        assert len(world.ledger.calls) == 1
        assert world.ledger.calls[0].timestamp > first.deadline


async def test_a_coordinator_that_dies_every_ten_seconds_misses_nothing(autojump_clock: MockClock) -> None:
    async with open_world(6) as world:
        for resident in world.residents:
            await world.start(resident)
        platform = Platform()
        async with coordinating(world, platform) as coordinator:
            job_id = await post(world, coordinator, interval=7, time_frame=210)
        for _ in range(25):
            async with coordinating(world, platform):
                await trio.sleep(9.7)
            world.mesh.leave("coordinator")
            await trio.sleep(0.4)
        async with coordinating(world, platform):
            tasks = await ended(world, platform.store, job_id)
        assert Counter(t.state for t in tasks) == {TaskState.COMPLETED: 30}
        assert len(world.ledger.calls) == 30


async def test_with_every_keeper_gone_a_task_fails_by_name(autojump_clock: MockClock) -> None:
    async with open_world(4) as world:
        platform = Platform()
        async with coordinating(world, platform) as coordinator:
            job_id = await post(world, coordinator, interval=30, time_frame=30)
            [task] = await ended(world, platform.store, job_id)
        assert (task.state, task.reason) == (TaskState.FAILED, "NO_KEEPER")
        assert not world.ledger.calls


async def test_event_and_condition_jobs_with_one_lying_and_one_gone(autojump_clock: MockClock) -> None:
    async with open_world(10) as world:
        liar, _gone, *honest = world.residents
        await world.start(liar, lying)
        for resident in honest:
            await world.start(resident)
        platform = Platform()
        world.readings.values[PRICE] = "1999"
        async with coordinating(world, platform) as coordinator:
            events = await post_triggered(world, coordinator, on_transfer(world), time_frame=600)
            edges = await post_triggered(world, coordinator, ABOVE, time_frame=600)
            for _ in range(10):
                await world.clock.sleep_until(world.clock.now() + 20)
                transfer(world)
                transfer(world, 8)  # not one that the job asks for
                world.readings.values[PRICE] = "2001"
                await world.clock.sleep_until(world.clock.now() + 20)
                world.readings.values[PRICE] = "1999"
            fired, crossed = await ended(world, platform.store, events), await ended(world, platform.store, edges)
        assert Counter((t.state, t.reason) for t in fired) == {(TaskState.COMPLETED, ""): 10}
        assert Counter((t.state, t.reason) for t in crossed) == {(TaskState.COMPLETED, ""): 10}
        assert sorted(t.trigger_id for t in crossed) == list(range(1, 11))
        assert len(world.ledger.calls) == 20


async def test_a_keeper_that_dies_is_told_once_through_restarts_of_the_coordinator(autojump_clock: MockClock) -> None:
    async with open_world(4) as world:
        for resident in world.residents:
            await world.start(resident)
        platform, mortal = Platform(), world.residents[0]
        chain_id = world.ledger.domain.chain_id
        async with coordinating(world, platform):
            await trio.sleep(150)  # of check-ins
            await platform.store.save_keeper_form(KeeperRecord(chain_id, mortal.address, chat_id="42"))
            world.kill(mortal)
            await trio.sleep(300)
        for _ in range(5):
            world.mesh.leave("coordinator")
            async with coordinating(world, platform):
                await trio.sleep(300)
        assert [s.rpartition(" ")[2] for s in platform.told.to("42")] == ["offline"]
        world.mesh.leave("coordinator")
        async with coordinating(world, platform):
            await world.start(mortal)
            await trio.sleep(120)
        assert [s.rpartition(" ")[2] for s in platform.told.to("42")] == ["offline", "again"]


async def test_an_owner_hears_that_a_job_fails(autojump_clock: MockClock) -> None:
    async with open_world(6) as world:
        for resident in world.residents:
            await world.start(resident)
        platform = Platform()
        world.ledger.fail_target(TARGET)
        async with coordinating(world, platform) as coordinator:
            job_id = await post(world, coordinator, interval=30, time_frame=120)
            await platform.store.set_email(OWNER, "owner@example.org", 0)
            tasks = await ended(world, platform.store, job_id)
            await trio.sleep(30)
        assert {t.reason for t in tasks} == {"INNER_CALL_FAILED"}
        [subject] = platform.told.to("owner@example.org")
        assert subject == "TriggerX: job simulated fails"
