"""Jobs that their owners pause, resume, update, delete and link, in running coordinators: what fires then, and what no more."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from trio.testing import MockClock

from consensus.messages import JobSpec
from consensus.schedules import Moments
from coordinator.jobs import Jobs
from coordinator.store.records import Job, JobStatus, MissedPolicy
from coordinator.store.records import Task as TaskRecord
from tests.coordinator.world import World, open_world

LIFE = 1000


def seconds(tasks: list[TaskRecord]) -> list[int]:
    return sorted(task.trigger_id for task in tasks)


async def stored(world: World, job_id: int) -> Job:
    job = await world.store.job(job_id)
    assert job is not None
    return job


def jobs(world: World, name: str = "coordinator") -> Jobs:
    return world.processes[name].coordinator.jobs


@pytest.mark.parametrize("names", [("coordinator",), ("one", "two")])
async def test_a_pause_and_its_end_take_effect_at_once_whichever_coordinator_is_asked(
    autojump_clock: MockClock, names: tuple[str, ...]
) -> None:
    async with open_world(coordinators=names) as world:
        for here, there in ((names[0], names[-1]), (names[-1], names[0])):
            job_id = await world.post(interval=10, time_frame=LIFE, via=here, missed=MissedPolicy.SKIP)
            await world.until(lambda tasks: len(tasks) >= 2, job_id)
            await jobs(world, there).pause(await stored(world, job_id))
            paused_at = world.clock.now()
            fired = seconds(await world.tasks(job_id))
            await world.clock.sleep_until(paused_at + 100)
            assert seconds(await world.tasks(job_id)) == fired
            await jobs(world, here).resume(await stored(world, job_id))
            resumed_at = world.clock.now()
            wanted = len(fired) + 3
            tasks = await world.until(lambda tasks, wanted=wanted: len(tasks) >= wanted, job_id)
            after = seconds(tasks)[len(fired) :]
            assert all(later - earlier == 10 for earlier, later in pairwise(after))
            assert resumed_at < after[0] <= resumed_at + 10
            await jobs(world, there).delete(await stored(world, job_id))


@pytest.mark.parametrize(
    ("missed", "caught_up"), [(MissedPolicy.RUN_ONCE, 1), (MissedPolicy.RUN_ALL, 10), (MissedPolicy.SKIP, 0)]
)
async def test_what_was_due_during_a_pause_runs_by_the_jobs_policy(
    autojump_clock: MockClock, missed: MissedPolicy, caught_up: int
) -> None:
    async with open_world() as world:
        job_id = await world.post(interval=10, time_frame=LIFE, missed=missed)
        created_at = (await stored(world, job_id)).created_at
        await jobs(world).pause(await stored(world, job_id))
        await world.clock.sleep_until(created_at + 104)  # ten due seconds later
        await jobs(world).resume(await stored(world, job_id))
        tasks = await world.until(lambda tasks: any(t.trigger_id == created_at + 110 for t in tasks), job_id)
        late = [second for second in seconds(tasks) if second <= created_at + 104]
        assert len(late) == caught_up
        assert not late or late[-1] == created_at + 100


async def test_an_updated_schedule_replaces_the_old_one_at_once(autojump_clock: MockClock) -> None:
    async with open_world(coordinators=("one", "two")) as world:
        job_id = world.create(interval=0, time_frame=100_000)
        soon = int(world.clock.now()) + 30
        posted = world.posted(job_id, trigger=Moments((soon,)))
        [job] = await world.take_on(posted, via="one")
        later = (soon + 60, soon + 90)
        await jobs(world, "two").update(job, replace(posted, trigger=Moments(later), arguments='["6"]', priority=1))
        after = await stored(world, job_id)
        assert JobSpec.decode(after.spec).trigger == Moments(later)
        world.calls[job_id] = after.target.call
        tasks = await world.until(lambda tasks: len(tasks) == 2, job_id)
        assert seconds(tasks) == list(later)
        assert {task.priority for task in tasks} == {1}


async def test_a_linked_job_begins_when_the_one_before_it_has_completed(autojump_clock: MockClock) -> None:
    async with open_world(coordinators=("one", "two")) as world:
        first, second = world.create(interval=10, time_frame=20), world.create(interval=10, time_frame=500)
        await world.take_on(world.posted(first), world.posted(second), via="one")
        [a, b] = await world.until(lambda tasks: len(tasks) == 2, first)
        assert await world.tasks(second) == []
        for task in (a, b):
            await world.until(lambda tasks, task=task: any(t.id == task.id and t.executed_at for t in tasks), first)
            world.settle(task.id)
        [task, *_] = await world.until(lambda tasks: len(tasks) > 0, second)
        done = await stored(world, first)
        assert done.status is JobStatus.COMPLETED
        begun = await stored(world, second)
        assert begun.starts_at is not None
        assert begun.starts_at >= done.expires_at
        assert task.trigger_id > begun.starts_at


async def test_what_waits_for_a_deleted_job_never_begins(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        first, second, third = (world.create(interval=10, time_frame=500) for _ in range(3))
        await world.take_on(*(world.posted(job_id) for job_id in (first, second, third)))
        await jobs(world).delete(await stored(world, first))
        await world.clock.sleep_until(world.clock.now() + 60)
        assert await world.tasks(second) == await world.tasks(third) == []
        assert [(await stored(world, j)).status for j in (second, third)] == [JobStatus.FAILED, JobStatus.FAILED]
