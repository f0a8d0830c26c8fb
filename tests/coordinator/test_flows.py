"""Whole flows through coordinators: linked jobs, and conditions from the edge to the execution."""

from __future__ import annotations

from decimal import Decimal

import trio
from trio.testing import MockClock

from consensus.conditions import ApiSource, Comparison, OnCondition
from consensus.lifecycle import TaskState
from consensus.triggers import EdgeSeen
from coordinator.attempts import DispatchPolicy
from coordinator.store.records import JobStatus
from tests.coordinator.world import World, is_silent, open_world

S = TaskState


async def statuses(world: World, jobs: list[int]) -> list[JobStatus]:
    found = [await world.store.job(job_id) for job_id in jobs]
    return [job.status for job in found if job is not None]


async def linked(world: World, count: int = 3, via: str | None = None) -> list[int]:
    jobs = [world.create(interval=10, time_frame=1000) for _ in range(count)]
    await world.take_on(*(world.posted(job_id) for job_id in jobs), via=via)
    return jobs


async def test_the_next_job_begins_when_the_former_has_completed(autojump_clock: MockClock) -> None:
    async with open_world() as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.certify_all)
        jobs = [world.create(interval=10, time_frame=frame) for frame in (20, 100, 200)]
        await world.take_on(*(world.posted(job_id) for job_id in jobs))
        first = await world.ended(jobs[0], 2)
        assert [t.state for t in first] == [S.COMPLETED] * 2
        second = await world.until(lambda tasks: len(tasks) >= 1, jobs[1])
        created_at = world.ledger.state.jobs[jobs[1]].created_at
        assert created_at + 20 < second[0].trigger_id <= created_at + 40
        assert await world.tasks(jobs[2]) == []
        last = created_at + 100
        await world.until(lambda tasks: all(t.ended for t in tasks) and tasks[-1].trigger_id == last, jobs[1])
        third = await world.until(lambda tasks: len(tasks) >= 1, jobs[2])
        assert third[0].trigger_id > last
        assert await statuses(world, jobs) == [JobStatus.COMPLETED, JobStatus.COMPLETED, JobStatus.SCHEDULED]
        nursery.cancel_scope.cancel()


async def test_a_linked_job_begins_at_whichever_coordinator_holds_it(autojump_clock: MockClock) -> None:
    async with open_world(coordinators=("a", "b")) as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.certify_all)
        chains = []
        for n in range(4):
            jobs = [world.create(interval=5, time_frame=frame) for frame in (5, 40, 80)]
            await world.take_on(*(world.posted(job_id) for job_id in jobs), via="ab"[n % 2])
            chains.append(jobs)
        for jobs in chains:
            for job_id in jobs:
                await world.until(lambda tasks: len(tasks) >= 1, job_id)
        nursery.cancel_scope.cancel()


async def test_what_waits_for_a_job_that_is_deleted_never_begins(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        jobs = await linked(world)
        world.ledger.delete_job(jobs[0])
        await trio.sleep(60)
        assert await statuses(world, jobs) == [JobStatus.DELETED, JobStatus.FAILED, JobStatus.FAILED]
        assert [await world.tasks(job_id) for job_id in jobs[1:]] == [[], []]


URL = "https://price.example.org/eth"


def above(limit: str) -> OnCondition:
    return OnCondition(Comparison(ApiSource(URL), "greater_than", upper=limit))


async def test_a_condition_job_executes_on_each_edge_with_what_was_seen(autojump_clock: MockClock) -> None:
    async with open_world() as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.certify_all)
        world.sources.values[URL] = Decimal(90)
        job_id = world.create(interval=0, time_frame=10_000, definition=5)
        await world.take_on(world.posted(job_id, trigger=above("100")))
        for value, count in ((90, 0), (101, 1), (105, 1), (99, 1), (200, 2)):
            world.sources.values[URL] = Decimal(value)
            await trio.sleep(10)
            tasks = await world.tasks(job_id)
            assert len(tasks) == count
        tasks = await world.ended(job_id, 2)
        assert [(t.trigger_id, t.state) for t in tasks] == [(1, S.COMPLETED), (2, S.COMPLETED)]
        assert [t.observation.values for t in tasks if isinstance(t.observation, EdgeSeen)] == [("101",), ("200",)]
        assert all(t.executed_at is not None and t.executed_at - t.scheduled_at <= 2 for t in tasks)
        nursery.cancel_scope.cancel()


async def test_two_coordinators_fire_an_edge_once_and_watch_on_when_one_dies(autojump_clock: MockClock) -> None:
    async with open_world(coordinators=("a", "b")) as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.certify_all)
        world.sources.values[URL] = Decimal(90)
        jobs = [world.create(interval=0, time_frame=10_000, definition=5) for _ in range(6)]
        for job_id in jobs:
            await world.take_on(world.posted(job_id, trigger=above("100")), via="a")
        await trio.sleep(3)
        world.sources.values[URL] = Decimal(101)
        await trio.sleep(5)
        world.sources.values[URL] = Decimal(90)
        await trio.sleep(5)
        world.kill("a")
        await trio.sleep(10)
        world.sources.values[URL] = Decimal(102)
        for job_id in jobs:
            tasks = await world.ended(job_id, 2)
            assert [t.trigger_id for t in tasks] == [1, 2] == sorted(world.executed_seconds(job_id))
        nursery.cancel_scope.cancel()


async def test_a_condition_job_that_runs_once_ends_with_its_task(autojump_clock: MockClock) -> None:
    async with open_world() as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.certify_all)
        world.sources.values[URL] = Decimal(1)
        job_id = world.create(interval=0, time_frame=10_000, definition=5, recurring=False)
        await world.take_on(world.posted(job_id, trigger=above("100")))
        await trio.sleep(3)
        for value in (101, 99, 101):
            world.sources.values[URL] = Decimal(value)
            await trio.sleep(10)
        [task] = await world.ended(job_id)
        assert task.state is S.COMPLETED
        assert await statuses(world, [job_id]) == [JobStatus.COMPLETED]
        nursery.cancel_scope.cancel()


async def test_an_executed_task_of_an_expired_non_timed_job_gets_no_attempt_beyond_its_life(autojump_clock: MockClock) -> None:
    async with open_world(policy=DispatchPolicy(ack_timeout=5, retries=(1, 2, 4), window=30, settle=5)) as world:
        for keeper in world.keepers:
            keeper.behaviour = is_silent
        world.sources.values[URL] = Decimal(1)
        job_id = world.create(interval=0, time_frame=60, definition=5)
        await world.take_on(world.posted(job_id, trigger=above("100")))
        await trio.sleep(20)
        world.sources.values[URL] = Decimal(101)
        [task] = await world.ended(job_id)
        job = await world.store.job(job_id)
        assert job is not None
        assert (task.state, task.reason) == (S.FAILED, "JOB_INACTIVE")
        attempts = await world.attempts(task)
        assert attempts
        assert all(a.deadline <= job.expires_at for a in attempts)
