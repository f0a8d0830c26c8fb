"""The whole coordinator: tasks to their end by the chain's word, deaths at every step, and what users are told."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from consensus.errors import Invalid, Transient
from consensus.lifecycle import TaskState
from consensus.triggers import Interval
from coordinator.store.memory import MemoryStore
from coordinator.store.records import Job, JobStatus
from tests.coordinator.world import KEY_OWNER, OWNER, TARGET, open_world

S = TaskState


async def test_a_certified_task_completes_with_everything_the_chain_said(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        job_id = await world.post()
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTED], job_id)
        world.settle(task.id)
        [task] = await world.ended(job_id)
        assert (task.state, task.accepted, task.attester_ids, task.reason) == (S.COMPLETED, True, (2, 3), "")
        assert task.submission_tx is not None
        order = ["created", "dispatched", "published", "acknowledged", "executed", "certified"]
        assert sorted(order, key=lambda stage: task.stages[stage]) == order
        job = await world.store.job(job_id)
        assert job is not None
        assert (job.status, job.cost_actual, job.last_executed_at) == (JobStatus.COMPLETED, task.cost, task.executed_at)


async def test_a_failed_inner_call_is_certified_and_fails_by_name(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        world.ledger.fail_target(TARGET)
        job_id = await world.post()
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTED], job_id)
        world.settle(task.id)
        [task] = await world.ended(job_id)
        assert (task.state, task.reason, task.accepted, task.successful) == (S.FAILED, "INNER_CALL_FAILED", True, False)


async def test_a_rejected_execution_costs_nothing(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        job_id = await world.post()
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTED], job_id)
        world.settle(task.id, accepted=False)
        [task] = await world.ended(job_id)
        job = await world.store.job(job_id)
        assert job is not None
        assert (task.state, task.reason, job.cost_actual) == (S.REJECTED, "REFUSED_BY_COMMITTEE", 0)


@pytest.mark.parametrize("told", [True, False])
async def test_without_a_quorum_a_task_is_not_attested(autojump_clock: MockClock, told: bool) -> None:
    async with open_world() as world:
        job_id = await world.post()
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTED], job_id)
        executed_at = task.executed_at
        assert executed_at is not None
        if told:
            world.expire(task.id)
        [task] = await world.ended(job_id)
        assert (task.state, task.reason) == (S.NOT_ATTESTED, "NO_QUORUM")
        assert told or executed_at + 60 < world.clock.now() < executed_at + 100


async def test_a_job_deleted_on_chain_fires_no_more(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        job_id = await world.post(interval=10, time_frame=1000)
        await world.until(lambda tasks: len(tasks) == 2, job_id)
        world.ledger.delete_job(job_id)
        await trio.sleep(100)
        job = await world.store.job(job_id)
        assert job is not None
        assert job.status is JobStatus.DELETED
        assert len(await world.tasks(job_id)) == 2


async def test_events_of_a_time_when_nobody_listened_are_caught_up(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        job_id = await world.post()
        await world.until(lambda tasks: [t.state for t in tasks] == [S.ACKNOWLEDGED], job_id)
        world.kill()
        await trio.sleep(20)
        [task_id] = world.ledger.state.executed
        world.settle(task_id)
        await world.start()
        [task] = await world.ended(job_id)
        assert (task.state, task.attempt) == (S.COMPLETED, 1)


async def test_a_posted_job_must_be_the_one_on_chain(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        job_id = world.ledger.create_job(OWNER, target=TARGET, interval=10, time_frame=100)
        for changes, field in (
            ({"owner": b"\x01" * 20}, "user_address"),
            ({"contract": b"\x01" * 20}, "target_contract_address"),
            ({"trigger": Interval(5)}, "time_interval"),
            ({"time_frame": 200}, "time_frame"),
            ({"chain_id": 5}, "target_chain_id"),
            ({"id": job_id + 1}, "job_id"),
            ({"arguments": "[]"}, "arguments[0]"),
            ({"function": "ping"}, "target_function"),
        ):
            with pytest.raises(Invalid) as refused:
                await world.coordinator.jobs.create([world.posted(job_id, **changes)], key_owner=KEY_OWNER, trace_id="")
            assert refused.value.field == field
        world.ledger.delete_job(job_id)
        with pytest.raises(Invalid) as refused:
            await world.coordinator.jobs.create([world.posted(job_id)], key_owner=KEY_OWNER, trace_id="")
        assert refused.value.code == "JOB_INACTIVE"
        assert await world.store.job(job_id) is None


async def test_the_same_job_posted_again_answers_the_same_and_another_does_not(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        job_id = await world.post(interval=10, time_frame=1000)
        create = world.coordinator.jobs.create
        again = await create([world.posted(job_id)], key_owner=KEY_OWNER, trace_id="another")
        assert (again.jobs[0].id, again.jobs[0].trace_id, again.user.total_jobs) == (job_id, "tgrx-test", 1)
        for posted, owner in ((world.posted(job_id, arguments="[6]"), KEY_OWNER), (world.posted(job_id), "thief")):
            with pytest.raises(Invalid) as refused:
                await create([posted], key_owner=owner, trace_id="")
            assert refused.value.code == "JOB_EXISTS"
        await world.until(lambda tasks: len(tasks) == 3, job_id)
        assert len({t.trigger_id for t in await world.tasks(job_id)}) == 3


async def test_a_call_that_reverts_now_may_be_posted(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        world.ledger.fail_target(TARGET)
        job_id = await world.post()
        world.ledger.fail_target(TARGET, failing=False)
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTED], job_id)
        assert task.successful


async def test_a_deleted_job_posted_again_is_refused_rather_than_taken_and_ignored(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        job_id = await world.post(interval=10, time_frame=1000)
        job = await world.store.job(job_id)
        assert job is not None
        await world.coordinator.jobs.delete(job)
        with pytest.raises(Invalid) as refused:
            await world.coordinator.jobs.create([world.posted(job_id)], key_owner=KEY_OWNER, trace_id="")
        assert refused.value.code == "JOB_INACTIVE"


async def test_a_job_deleted_on_chain_while_it_is_being_stored_is_deleted(autojump_clock: MockClock) -> None:
    class Slow(MemoryStore):
        async def add_jobs(self, jobs: Sequence[Job]) -> Sequence[Job]:
            world.ledger.delete_job(jobs[0].id)
            await trio.sleep(30)  # the monitor hears of the deletion of a job that is not there yet
            return await super().add_jobs(jobs)

    async with open_world(store=Slow()) as world:
        with pytest.raises(Invalid) as refused:
            await world.post(interval=10, time_frame=1000)
        assert refused.value.code == "JOB_INACTIVE"
        assert len(world.coordinator.time) == 0


async def test_a_job_that_the_store_could_not_delete_fires_on(autojump_clock: MockClock) -> None:
    class Busy(MemoryStore):
        async def end_job(self, job_id: int, status: JobStatus, at: int) -> Job | None:
            raise Transient("DATABASE_BUSY", "always")

    async with open_world(store=Busy()) as world:
        job_id = await world.post(interval=10, time_frame=1000)
        job = await world.store.job(job_id)
        assert job is not None
        with pytest.raises(Transient):
            await world.coordinator.jobs.delete(job)
        await world.until(lambda tasks: len(tasks) == 2, job_id)
