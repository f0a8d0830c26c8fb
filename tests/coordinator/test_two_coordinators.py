"""Two coordinators on one store and one queue: jobs divided, taken over and handed over, nothing lost and nothing twice."""

from __future__ import annotations

from collections import Counter

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from consensus.lifecycle import TaskState
from coordinator.attempts import DispatchPolicy
from coordinator.store.records import JobStatus, MissedPolicy
from tests.coordinator.world import World, executes, is_silent, only_acknowledges, open_world

S = TaskState
BOTH = ("a", "b")
QUICK = DispatchPolicy(ack_timeout=6, retries=(1, 2, 4), window=8, settle=5)


def due(world: World, job_id: int) -> list[int]:
    job = world.ledger.state.jobs[job_id]
    return [job.created_at + n * job.interval for n in range(1, job.time_frame // job.interval + 1)]


async def test_shards_are_divided_and_each_job_is_watched_by_one(autojump_clock: MockClock) -> None:
    async with open_world(coordinators=BOTH) as world:
        a, b = (world.processes[name].coordinator for name in BOTH)
        assert (len(a.ownership.held), len(b.ownership.held)) == (8, 8)
        jobs = [await world.post(interval=50, time_frame=1000, via=BOTH[n % 2]) for n in range(20)]
        await trio.sleep(1)
        watched = Counter([*a.time.jobs(), *b.time.jobs()])
        assert watched == Counter(jobs)
        assert a.status()["instances"] == ["a", "b"]


async def test_what_one_publishes_the_other_does_not(autojump_clock: MockClock) -> None:
    async with open_world(coordinators=BOTH) as world:
        jobs = [await world.post(via=BOTH[n % 2]) for n in range(10)]
        for job_id in jobs:
            await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTED], job_id)
        heard = Counter(world.keepers[0].heard)
        assert len(heard) == 10
        assert set(heard.values()) == {1}


async def test_a_task_of_a_dead_coordinator_is_taken_over_with_the_same_bytes(autojump_clock: MockClock) -> None:
    async with open_world(coordinators=BOTH) as world:
        for keeper in world.keepers:
            keeper.behaviour = is_silent
        jobs = [await world.post(interval=20, time_frame=20, via="a") for n in range(8)]
        for job_id in jobs:
            await world.until(lambda tasks: [t.state for t in tasks] == [S.DISPATCHED], job_id)
        await trio.sleep(0.1)
        before = Counter(world.keepers[0].heard)
        world.kill("a")
        killed = world.clock.now()
        for keeper in world.keepers:
            keeper.behaviour = executes
        for job_id in jobs:
            await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTED], job_id)
            [task] = await world.tasks(job_id)
            assert task.attempt == 1
        assert world.clock.now() < killed + 30
        assert set(world.keepers[0].heard) == set(before)
        assert all(world.executed_seconds(job_id) == due(world, job_id) for job_id in jobs)


async def test_the_jobs_of_a_dead_coordinator_fire_on_within_seconds(autojump_clock: MockClock) -> None:
    async with open_world(coordinators=BOTH) as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.certify_all)
        jobs = [await world.post(interval=10, time_frame=60, via=BOTH[n % 2]) for n in range(8)]
        await trio.sleep(22)
        world.kill("b")
        for job_id in jobs:
            tasks = await world.ended(job_id, 6)
            assert [t.trigger_id for t in tasks] == due(world, job_id)
            assert {t.state for t in tasks} == {S.COMPLETED}
            assert all(t.executed_at is not None and t.executed_at - t.trigger_id < 10 for t in tasks)
        nursery.cancel_scope.cancel()


async def test_a_coordinator_that_ends_in_order_hands_over_at_once(autojump_clock: MockClock) -> None:
    async with open_world(coordinators=BOTH) as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.certify_all)
        jobs = [await world.post(interval=10, time_frame=60, via=BOTH[n % 2]) for n in range(8)]
        await trio.sleep(26)  # tasks of the next due second are under way
        began = world.clock.now()
        await world.stop("a")
        assert world.clock.now() - began < 0.5
        rest = world.processes["b"].coordinator
        with trio.fail_after(3):
            while len(rest.ownership.held) < 16:  # noqa: ASYNC110
                await trio.sleep(0.1)
        for job_id in jobs:
            tasks = await world.ended(job_id, 6)
            assert [t.trigger_id for t in tasks] == due(world, job_id)
            assert {t.state for t in tasks} == {S.COMPLETED}
            assert all(t.executed_at == t.trigger_id for t in tasks)
        nursery.cancel_scope.cancel()


async def test_a_third_one_takes_its_share_and_nothing_is_fired_twice(autojump_clock: MockClock) -> None:
    async with open_world(coordinators=BOTH) as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.certify_all)
        jobs = [await world.post(interval=5, time_frame=60) for _ in range(12)]
        await trio.sleep(13)
        await world.start("c")
        await world.shared()
        assert 4 <= len(world.processes["c"].coordinator.ownership.held) <= 6
        for job_id in jobs:
            tasks = await world.ended(job_id, 12)
            assert [t.trigger_id for t in tasks] == due(world, job_id) == sorted(world.executed_seconds(job_id))
        nursery.cancel_scope.cancel()


async def test_an_acknowledgement_that_reached_the_other_one_is_seen(autojump_clock: MockClock) -> None:
    async with open_world(coordinators=BOTH) as world:
        for keeper in world.keepers:
            keeper.behaviour = is_silent
        job_id = await world.post(interval=100, time_frame=100)
        world.coordinator.time._lookahead = 90  # published long before its second
        job_id = await world.post(interval=100, time_frame=100)
        await world.until(lambda tasks: [t.state for t in tasks] == [S.DISPATCHED], job_id)
        [task] = await world.tasks(job_id)
        # as another coordinator does that published the same bytes and was told
        assert await world.store.acknowledge(task.id, 1, int(world.clock.now() * 1000)) is not None
        await trio.sleep(45)
        [attempt] = await world.attempts(task)
        assert attempt.ended_ms is None


async def test_a_job_deleted_at_one_is_no_longer_fired_by_the_other(autojump_clock: MockClock) -> None:
    async with open_world(coordinators=BOTH) as world:
        jobs = [await world.post(interval=30, time_frame=1000, via="a") for _ in range(8)]
        await trio.sleep(5)
        for job_id in jobs:
            job = await world.store.job(job_id)
            assert job is not None
            await world.processes["b"].coordinator.jobs.delete(job)
        await trio.sleep(100)
        assert all([await world.tasks(job_id) == [] for job_id in jobs])


async def test_the_queue_away_and_back_loses_and_doubles_nothing(autojump_clock: MockClock) -> None:
    async with open_world(coordinators=BOTH) as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.certify_all)
        jobs = [await world.post(interval=10, time_frame=100, via=BOTH[n % 2]) for n in range(8)]
        await trio.sleep(12)
        world.server.take_down()
        await trio.sleep(25)
        world.server.bring_back(lose=True)
        await trio.sleep(20)
        world.server.take_down()
        await trio.sleep(3)
        world.server.bring_back()
        for job_id in jobs:
            tasks = await world.ended(job_id, 10)
            assert [t.trigger_id for t in tasks] == due(world, job_id) == sorted(world.executed_seconds(job_id))
            assert {t.state for t in tasks} == {S.COMPLETED}
            assert all(t.executed_at is not None and t.executed_at - t.trigger_id <= 1 for t in tasks)
        nursery.cancel_scope.cancel()


ACTS = ("kill a", "kill b", "stop a", "stop b", "start", "server down", "server up", "server lost", "silent", "well")


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=st.lists(st.tuples(st.floats(min_value=0.01, max_value=20), st.sampled_from(ACTS)), max_size=10))
def test_whatever_dies_and_whenever_each_second_runs_once(acts: list[tuple[float, str]]) -> None:
    async def scenario() -> None:
        async with open_world(coordinators=BOTH, keepers=4, policy=QUICK) as world, trio.open_nursery() as nursery:
            nursery.start_soon(world.certify_all)
            jobs = [await world.post(interval=7, time_frame=70, via=BOTH[n % 2], missed=MissedPolicy.RUN_ALL) for n in range(4)]
            for pause, act in acts:
                await trio.sleep(pause)
                await do(world, act)
            await mend(world)
            for job_id in jobs:
                tasks = await world.ended(job_id, 10)
                assert [t.trigger_id for t in tasks] == due(world, job_id)
                ran = world.executed_seconds(job_id)
                assert len(ran) == len(set(ran))
                assert sorted(ran) == [t.trigger_id for t in tasks if t.state is S.COMPLETED]
                assert all(t.state is S.COMPLETED or t.reason for t in tasks)
                job = await world.store.job(job_id)
                assert job is not None
                assert job.status is JobStatus.COMPLETED
            nursery.cancel_scope.cancel()

    trio.run(scenario, clock=MockClock(autojump_threshold=0))


async def do(world: World, act: str) -> None:
    what, _, name = act.partition(" ")
    if what in ("kill", "stop"):
        if not world.processes[name].scope.cancel_called:
            await world.stop(name) if what == "stop" else world.kill(name)
    elif what == "start":
        await start_all(world)
    elif what == "server":
        if name == "down":
            world.server.take_down()
        else:
            world.server.bring_back(lose=name == "lost")
    else:
        for keeper in world.keepers[:2]:
            keeper.behaviour = executes if what == "well" else only_acknowledges


async def start_all(world: World) -> None:
    for name in BOTH:
        if world.processes[name].scope.cancel_called:
            await world.start(name)


async def mend(world: World) -> None:
    world.server.bring_back()
    await start_all(world)
    for keeper in world.keepers:
        keeper.behaviour = executes
