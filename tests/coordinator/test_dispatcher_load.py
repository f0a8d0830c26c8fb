"""More tasks than keepers: by priority and in turn, never more at a keeper than it may have, and never for ever."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
from trio.testing import MockClock

from consensus.lifecycle import TaskState
from consensus.messages import Task
from coordinator import scoring
from coordinator.attempts import DispatchPolicy
from coordinator.store.records import Attempt
from p2p.network import PeerId
from tests.coordinator.world import FakeKeeper, World, executes, is_silent, only_acknowledges, open_world, refuses

S = TaskState
ONE_EACH = scoring.Policy(tasks_each=1)


async def slowly(keeper: FakeKeeper, task: Task, source: PeerId) -> None:
    await keeper.acknowledge(task, source)
    await trio.sleep(3)
    await keeper.execute(task)


async def all_executed(world: World, jobs: list[int]) -> list[Attempt]:
    attempts = []
    for job_id in jobs:
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTED], job_id)
        attempts += await world.attempts(task)
    return attempts


async def test_under_load_the_higher_priority_is_dispatched_first(autojump_clock: MockClock) -> None:
    async with open_world(keepers=1, keeper_policy=ONE_EACH) as world:
        world.keepers[0].behaviour = slowly
        busy = await world.post()
        await world.until(lambda tasks: len(tasks) == 1, busy)
        jobs = {priority: [await world.post(priority=priority) for _ in range(3)] for priority in (3, 2, 1)}
        for each in jobs.values():
            for job_id in each:
                await world.until(lambda tasks: len(tasks) == 1, job_id)
        attempts = {p: await all_executed(world, each) for p, each in jobs.items()}
        order = sorted((a.created_ms, p) for p, each in attempts.items() for a in each)
        assert [p for _, p in order] == [1, 1, 1, 2, 2, 2, 3, 3, 3]


async def test_a_few_keepers_work_off_a_burst_in_turn_and_nothing_fails(autojump_clock: MockClock) -> None:
    async with open_world(keepers=2, keeper_policy=scoring.Policy(tasks_each=2)) as world:
        open_: Counter[bytes] = Counter()
        most: Counter[bytes] = Counter()

        async def counted(keeper: FakeKeeper, task: Task, source: PeerId) -> None:
            open_[keeper.address] += 1
            most[keeper.address] = max(most[keeper.address], open_[keeper.address])
            await keeper.acknowledge(task, source)
            await trio.sleep(3)
            open_[keeper.address] -= 1  # before the block that tells the coordinator so
            await keeper.execute(task)

        for keeper in world.keepers:
            keeper.behaviour = counted
        jobs = [await world.post() for _ in range(40)]
        attempts = await all_executed(world, jobs)
        assert len(attempts) == 40
        assert all(a.number == 1 for a in attempts)
        assert set(most.values()) == {2}
        assert set(Counter(a.performer for a in attempts).values()) == {20}


async def test_who_waits_too_long_fails_by_name(autojump_clock: MockClock) -> None:
    policy = DispatchPolicy(ack_timeout=30, retries=(), window=2000, settle=5)
    async with open_world(keepers=1, policy=policy, keeper_policy=ONE_EACH) as world:
        world.keepers[0].behaviour = only_acknowledges
        await world.until(lambda tasks: [t.state for t in tasks] == [S.ACKNOWLEDGED], await world.post())
        job_id = await world.post()
        await world.until(lambda tasks: len(tasks) == 1, job_id)
        [task] = await world.ended(job_id)
        assert (task.state, task.reason) == (S.FAILED, "KEEPERS_BUSY")
        assert world.clock.now() == pytest.approx(task.scheduled_at + 600, abs=10)


async def test_a_job_deleted_while_its_task_waits_in_line_is_not_dispatched(autojump_clock: MockClock) -> None:
    async with open_world(keepers=1, keeper_policy=ONE_EACH) as world:
        world.keepers[0].behaviour = slowly
        first = await world.post()
        await world.until(lambda tasks: len(tasks) == 1, first)
        second = await world.post()
        await world.until(lambda tasks: len(tasks) == 1, second)
        job = await world.store.job(second)
        assert job is not None
        await world.coordinator.jobs.delete(job)
        [task] = await world.ended(second)
        assert (task.state, task.reason, await world.attempts(task)) == (S.FAILED, "JOB_INACTIVE", [])
        await all_executed(world, [first])


async def test_a_keeper_below_the_least_version_is_given_nothing(autojump_clock: MockClock) -> None:
    async with open_world(keepers=2, keeper_policy=scoring.Policy(min_version="0.2")) as world:
        [task] = await world.ended(await world.post())
        assert (task.state, task.reason) == (S.FAILED, "NO_KEEPER")


async def test_only_whitelisted_keepers_are_given_tasks(autojump_clock: MockClock) -> None:
    async with open_world(keepers=0) as probe:
        await probe.add_keepers(2)
        chosen = probe.keepers[1].address
    async with open_world(keepers=3, keeper_policy=scoring.Policy(whitelist=frozenset({chosen}))) as world:
        attempts = await all_executed(world, [await world.post() for _ in range(4)])
        assert {a.performer for a in attempts} == {chosen}


async def test_a_silent_keeper_is_asked_less_and_less(autojump_clock: MockClock) -> None:
    async with open_world(keepers=4) as world:
        world.keepers[0].behaviour = is_silent
        job_id = await world.post(interval=10, time_frame=1600)
        with trio.fail_after(2000):
            while len(await world.tasks(job_id)) < 160:  # noqa: ASYNC110
                await trio.sleep(10)
        tasks = await world.tasks(job_id)
        performers = Counter([a.performer for t in tasks for a in await world.attempts(t)])
        assert performers[world.keepers[0].address] <= 8
        others = [performers[k.address] for k in world.keepers[1:]]
        assert max(others) - min(others) <= 4


async def test_a_busy_keeper_that_is_freed_takes_over_at_once(autojump_clock: MockClock) -> None:
    async with open_world(keepers=1, keeper_policy=ONE_EACH) as world:
        first, second = await world.post(interval=3, time_frame=3), await world.post(interval=3, time_frame=3)
        [a, b] = await all_executed(world, [first, second])
        done = max(t.stages["executed"] for t in [*await world.tasks(first), *await world.tasks(second)])
        earlier, later = sorted((a, b), key=lambda attempt: attempt.created_ms)
        assert earlier.number == later.number == 1
        assert later.created_ms <= done
        assert world.keepers[0].behaviour is executes


async def test_who_refuses_everything_blamelessly_is_not_given_the_flood(autojump_clock: MockClock) -> None:
    async with open_world(keepers=2, keeper_policy=scoring.Policy(tasks_each=4)) as world:
        refuser = world.keepers[0]
        refuser.behaviour = refuses("CONDITION_NOT_MET")
        world.keepers[1].behaviour = slowly
        jobs = [await world.post() for _ in range(40)]
        attempts = await all_executed(world, jobs)
        first_minute = [a for a in attempts if a.performer == refuser.address and a.created_ms < attempts[0].created_ms + 60_000]
        assert len(first_minute) <= 4


async def test_a_refusal_that_another_keeper_disproves_counts_like_a_fault(autojump_clock: MockClock) -> None:
    async with open_world(keepers=4) as world:
        world.keepers[0].behaviour = refuses("CONDITION_NOT_MET")
        job_id = await world.post(interval=10, time_frame=1600)
        with trio.fail_after(2000):
            while len(await world.tasks(job_id)) < 160:  # noqa: ASYNC110
                await trio.sleep(10)
        performers = Counter([a.performer for t in await world.tasks(job_id) for a in await world.attempts(t)])
        assert performers[world.keepers[0].address] <= 12
