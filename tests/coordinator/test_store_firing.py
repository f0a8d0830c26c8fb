"""One suite for every store: firings, fences, edges, and how jobs end and begin."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import trio

from consensus import schedules
from consensus.lifecycle import TaskState
from consensus.triggers import Interval, Moments, Trigger
from coordinator.store.changes import EVENT_GRACE_S
from coordinator.store.port import Store
from coordinator.store.records import Edge, EdgeStep, Fired, Firing, Job, JobStatus, TaskChange, shard_of
from tests.coordinator.factory import (
    FENCES,
    ON_CONDITION,
    ON_EVENT,
    OWNER,
    START,
    make_edge_firing,
    make_event_task,
    make_job,
    make_task,
)
from tests.coordinator.stores import EVERY_STORE, certify, owner_of, some, with_task
from tests.coordinator.stores import a_store as a_store

pytestmark = EVERY_STORE

S = TaskState
NEW, KNOWN, INACTIVE, FENCED = Fired.NEW, Fired.KNOWN, Fired.INACTIVE, Fired.FENCED


async def test_a_firing_writes_its_task_and_moves_the_schedule_together(store: Store) -> None:
    task_id = await with_task(store)
    assert await store.task(task_id) == make_task(make_job(), START + 10, created_at_ms=(START + 10) * 1000)
    job = some(await store.job(7))
    assert (job.next_due, job.status, (await owner_of(store)).total_tasks) == (START + 20, JobStatus.SCHEDULED, 1)


async def test_a_task_of_an_event_is_read_back_with_what_was_seen(store: Store) -> None:
    job = await store.add_job(make_job(trigger=ON_EVENT))
    tasks = [make_event_task(job, position, priority=1) for position in (0, 2**32 - 1)]
    assert await store.fire([Firing(job.id, task) for task in tasks], START, FENCES) == [NEW, NEW]
    assert await store.tasks_of_job(job.id, 10) == tasks
    assert not some(await store.job(job.id)).spent


async def test_the_same_second_never_makes_a_second_task(store: Store) -> None:
    task_id = await with_task(store)
    await store.change(TaskChange(task_id, (S.FAILED,), reason="NO_KEEPER"), START)
    again = make_task(make_job(), START + 10, trace_id="another")
    assert await store.fire([Firing(7, again, START + 30)], START, FENCES) == [KNOWN]
    task = some(await store.task(task_id))
    assert (task.state, task.trace_id) == (S.FAILED, "tgrx-test")
    assert some(await store.job(7)).next_due == START + 30
    assert (await owner_of(store)).total_tasks == 1


async def test_a_batch_is_answered_one_by_one(store: Store) -> None:
    job, other = await store.add_job(make_job()), await store.add_job(make_job(8))
    await store.end_job(8, JobStatus.DELETED, START)
    seconds = [START + 10, START + 20, START + 10]
    firings = [Firing(7, make_task(job, second), second + 10) for second in seconds]
    firings += [
        Firing(8, make_task(other, START + 10), None),
        Firing(9, make_task(make_job(9), START), None),
        Firing(7, None, None),
    ]
    assert await store.fire(firings, START, FENCES) == [NEW, NEW, KNOWN, INACTIVE, INACTIVE, NEW]
    assert [t.trigger_id for t in await store.tasks_of_job(7, 9)] == [START + 10, START + 20]
    assert await store.tasks_of_job(8, 9) == []


async def test_paused_waiting_and_spent_jobs_fire_nothing(store: Store) -> None:
    jobs = [make_job(1), make_job(2, starts_at=None), make_job(3, spent=True)]
    await store.add_jobs(jobs)
    await store.pause_job(1, START)
    firings = [Firing(job.id, make_task(job, START + 10), START + 20) for job in jobs]
    assert await store.fire(firings, START, FENCES) == [INACTIVE] * 3
    assert await store.open_tasks() == []
    assert [some(await store.job(i)).next_due for i in (1, 2, 3)] == [START + 10] * 3


async def test_a_firing_made_before_the_job_was_changed_is_refused(store: Store) -> None:
    job = await store.add_job(make_job())
    planned = some(job.planned)
    updated = some(await store.update_job(replace(job, trigger=Interval(7), next_due=START + 7)))
    stale = Firing(7, make_task(job, START + 10), START + 20, revision=planned.revision)
    assert await store.fire([stale], START, FENCES) == [INACTIVE]
    assert await store.job(7) == updated
    fresh = Firing(7, make_task(job, START + 7), START + 14, revision=some(updated.planned).revision)
    assert await store.fire([fresh], START, FENCES) == [NEW]


# --- fences


async def test_only_the_newest_holder_of_a_shard_fires_for_it(store: Store) -> None:
    job = await store.add_job(make_job(7))
    await store.add_job(make_job(8))
    firing = Firing(7, make_task(job, START + 10), START + 20)
    assert await store.claim_shard(shard_of(7), 5, START + 1)
    assert await store.fire([firing, Firing(8, None, START + 20)], START, FENCES) == [FENCED, NEW]
    assert await store.fire([firing], START, {}) == [FENCED]
    assert await store.fire([firing], START, {shard_of(7): 6}) == [FENCED]
    assert await store.task(some(firing.task).id) is None
    assert await store.fire([firing], START, {shard_of(7): 5}) == [NEW]


async def test_an_older_token_never_takes_a_shard_back(store: Store) -> None:
    assert await store.claim_shard(3, 9, START)
    assert await store.claim_shard(3, 9, START)
    assert not await store.claim_shard(3, 8, START)
    assert await store.claim_shard(3, 10, START)


# --- edges


async def test_an_edge_fires_once_and_rearms(store: Store) -> None:
    job = await store.add_job(make_job(trigger=ON_CONDITION))
    assert await store.fire([make_edge_firing(job, 1), make_edge_firing(job, 1)], START, FENCES) == [NEW, KNOWN]
    assert some(await store.job(7)).edge == Edge(1, armed=False)
    rearm = Firing(7, None, edge=EdgeStep(1, Edge(1, armed=True)))
    assert await store.fire([rearm, rearm], START, FENCES) == [NEW, NEW]
    assert some(await store.planned_job(7)).edge == Edge(1, armed=True)
    assert await store.fire([make_edge_firing(job, 3), make_edge_firing(job, 2), rearm], START, FENCES) == [KNOWN, NEW, KNOWN]
    assert some(await store.job(7)).edge == Edge(2, armed=False)
    assert [t.trigger_id for t in await store.tasks_of_job(7, 9)] == [1, 2]


async def test_of_two_coordinators_that_see_an_edge_one_fires_it(store: Store) -> None:
    job = await store.add_job(make_job(trigger=ON_CONDITION))
    answers = []

    async def see() -> None:
        answers.extend(await store.fire([make_edge_firing(job, 1)], START, FENCES))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(see)
    assert sorted(answers) == [KNOWN] * 9 + [NEW]


async def test_an_edge_with_an_unexpected_number_does_not_spend_its_job(store: Store) -> None:
    job = await store.add_job(make_job(trigger=ON_CONDITION, edge=Edge(4)))
    assert await store.fire([make_edge_firing(job, 1, spent=True)], START, FENCES) == [KNOWN]
    assert await store.job(7) == job


# --- how jobs end


async def test_a_job_completes_with_its_last_task_and_not_before(store: Store) -> None:
    task_id = await with_task(store, next_due=None, spent=True)
    assert await store.complete_job(7, START) is None
    await certify(store, task_id)
    job = some(await store.job(7))
    assert (job.status, job.cost_actual, job.last_executed_at) == (JobStatus.COMPLETED, 5, START + 11)


async def test_a_job_that_is_not_spent_does_not_complete(store: Store) -> None:
    task_id = await with_task(store)
    await store.change(TaskChange(task_id, (S.FAILED,), reason="NO_KEEPER"), START)
    assert await store.complete_job(7, START) is None
    await store.fire([Firing(7, None, None, spent=True)], START, FENCES)
    assert some(await store.complete_job(7, START)).status is JobStatus.COMPLETED
    assert await store.complete_job(7, START) is None
    assert await store.complete_job(99, START) is None


@pytest.mark.parametrize(("recurring", "status"), [(True, JobStatus.COMPLETED), (False, JobStatus.FAILED)])
async def test_a_job_that_was_to_run_once_fails_with_its_task(store: Store, recurring: bool, status: JobStatus) -> None:
    job = await store.add_job(make_job(trigger=ON_EVENT, recurring=recurring))
    task = make_event_task(job)
    assert await store.fire([Firing(7, task, spent=True)], START, FENCES) == [NEW]
    await store.change(TaskChange(task.id, (S.FAILED,), reason="NO_KEEPER"), START)
    assert some(await store.job(7)).status is status


async def test_a_job_paused_while_its_last_task_runs_completes_with_it(store: Store) -> None:
    task_id = await with_task(store, next_due=None, spent=True)
    await store.pause_job(7, START)
    await certify(store, task_id)
    assert some(await store.job(7)).status is JobStatus.COMPLETED


async def test_a_failed_task_that_executed_after_all_reopens_and_its_job_waits_for_it(store: Store) -> None:
    first = await with_task(store)
    await store.change(TaskChange(first, (S.FAILED,), reason="NO_EXECUTION"), START)
    await store.change(TaskChange(first, (S.EXECUTED,), number=1), START)
    await store.fire([Firing(7, None, None, spent=True)], START, FENCES)
    assert await store.complete_job(7, START) is None
    await store.change(TaskChange(first, (S.CERTIFIED,), accepted=True), START)
    assert some(await store.job(7)).status is JobStatus.COMPLETED


# --- linked jobs


def chain_of(*jobs: Job) -> list[Job]:
    """Linked as the API links them."""
    linked = [replace(job, link_job_id=after.id) for job, after in pairwise(jobs)] + [jobs[-1]]
    return [replace(linked[0], chain_status=1)] + [replace(job, chain_status=2, starts_at=None) for job in linked[1:]]


async def test_the_next_job_begins_when_the_former_completed(store: Store) -> None:
    await store.add_jobs(chain_of(make_job(1, recurring=False), make_job(2, trigger=Interval(30), time_frame=300)))
    task = make_task(make_job(1), START + 10)
    await store.fire([Firing(1, task, None, spent=True)], START, FENCES)
    assert await store.planned_job(2) is None
    await certify(store, task)
    begun = some(await store.job(2))
    assert (begun.starts_at, begun.next_due, begun.status) == (START, START + 30, JobStatus.CREATED)
    assert await store.planned_job(2) == begun.planned


async def test_seconds_that_were_due_while_a_job_waited_are_not_its_own(store: Store) -> None:
    await store.add_jobs(chain_of(make_job(1), make_job(2)))
    await store.end_job(1, JobStatus.COMPLETED, START + 45)
    begun = some(await store.job(2))
    expected = schedules.next_due(begun.trigger, START + 45, created_at=START, time_frame=100)  # type: ignore[arg-type]
    assert (begun.starts_at, begun.next_due) == (START + 45, expected)
    assert expected == START + 50


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.DELETED])
async def test_all_that_follow_fail_when_one_does_not_complete(store: Store, status: JobStatus) -> None:
    await store.add_jobs(chain_of(make_job(1), make_job(2, trigger=ON_EVENT), make_job(3, trigger=ON_CONDITION)))
    await store.pause_job(2, START)
    await store.end_job(1, status, START + 5)
    assert [some(await store.job(i)).status for i in (1, 2, 3)] == [status, JobStatus.FAILED, JobStatus.FAILED]


async def test_a_follower_that_begins_after_its_life_completes_and_lets_the_next_begin(store: Store) -> None:
    late = make_job(2, time_frame=20)
    await store.add_jobs(chain_of(make_job(1), late, make_job(3, trigger=ON_CONDITION, time_frame=500)))
    await store.end_job(1, JobStatus.COMPLETED, START + 50)
    assert some(await store.job(2)).status is JobStatus.COMPLETED
    assert some(await store.planned_job(3)).starts_at == START + 50


async def test_a_follower_that_began_is_let_be_when_its_former_is_told_to_end_again(store: Store) -> None:
    await store.add_jobs(chain_of(make_job(1), make_job(2, trigger=ON_CONDITION)))
    await store.end_job(1, JobStatus.COMPLETED, START + 5)
    await store.end_job(1, JobStatus.DELETED, START + 6)
    assert some(await store.planned_job(2)).starts_at == START + 5


async def test_nobody_begins_somebody_elses_job(store: Store) -> None:
    await store.add_job(make_job(2, owner=b"\x09" * 20, starts_at=None))
    await store.add_job(make_job(1, link_job_id=2))
    await store.end_job(1, JobStatus.DELETED, START + 5)
    assert some(await store.job(2)).status is JobStatus.CREATED


async def test_a_paused_follower_begins_when_it_is_resumed(store: Store) -> None:
    await store.add_jobs(chain_of(make_job(1), make_job(2)))
    await store.pause_job(2, START)
    await store.end_job(1, JobStatus.COMPLETED, START + 5)
    assert await store.planned_job(2) is None
    await store.resume_job(2, START + 20, START + 15)
    assert some(await store.planned_job(2)).next_due == START + 20


# --- lives that are over


@pytest.mark.parametrize(
    ("facts", "paused", "over"),
    [
        ({"trigger": ON_CONDITION}, False, True),
        ({"trigger": ON_CONDITION, "starts_at": None}, False, True),
        ({"trigger": ON_EVENT}, False, False),
        ({"trigger": ON_EVENT}, True, True),
        ({"trigger": ON_EVENT, "starts_at": None}, False, True),
        ({"trigger": Interval(10)}, False, False),
        ({"trigger": Interval(10)}, True, True),
        ({"trigger": Moments((START + 50,)), "starts_at": None}, False, True),
        ({"trigger": Moments((START + 50,)), "next_due": None}, False, True),
    ],
)
async def test_a_job_expires_unless_its_past_may_still_fire(
    store: Store, facts: dict[str, Trigger | int | None], paused: bool, over: bool
) -> None:
    await store.add_job(make_job(**facts))
    if paused:
        await store.pause_job(7, START)
    assert await store.expire_jobs(7, START + 100, 10) == []
    assert await store.expire_jobs(6, START + 101, 10) == []
    assert await store.expire_jobs(7, START + 101, 10) == ([7] if over else [])
    assert await store.expire_jobs(7, START + 101, 10) == []
    assert some(await store.job(7)).status is not JobStatus.COMPLETED or over
    assert some(await store.job(7)).ended == over


async def test_what_happened_in_an_event_jobs_life_may_fire_for_an_hour_after_it(store: Store) -> None:
    job = await store.add_job(make_job(trigger=ON_EVENT))
    over = START + 100 + EVENT_GRACE_S
    assert await store.expire_jobs(7, over, 10) == []
    assert await store.fire([Firing(7, make_event_task(job))], over, FENCES) == [NEW]
    assert await store.expire_jobs(7, over + 1, 10) == [7]
    assert await store.fire([Firing(7, make_event_task(job, 2))], over, FENCES) == [INACTIVE]


async def test_a_job_that_expires_with_an_open_task_completes_with_it(store: Store) -> None:
    job = await store.add_job(make_job(trigger=ON_CONDITION))
    firing = make_edge_firing(job, 1)
    await store.fire([firing], START, FENCES)
    assert await store.expire_jobs(7, START + 101, 10) == [7]
    assert await store.expire_jobs(7, START + 101, 10) == []
    assert some(await store.job(7)).active
    await certify(store, some(firing.task))
    assert some(await store.job(7)).status is JobStatus.COMPLETED


async def test_a_spent_job_that_a_crash_left_without_an_open_task_is_completed(store: Store) -> None:
    await store.add_job(make_job())
    await store.fire([Firing(7, None, None, spent=True)], START, FENCES)
    assert await store.expire_jobs(7, START + 1, 10) == [7]
    assert some(await store.job(7)).status is JobStatus.COMPLETED


async def test_expired_jobs_are_taken_in_bites_and_let_their_followers_begin(store: Store) -> None:
    jobs = [make_job(16 * i, trigger=ON_CONDITION, time_frame=10 * i) for i in range(1, 6)]
    await store.add_jobs(jobs)
    await store.add_jobs(chain_of(make_job(160, trigger=ON_CONDITION, time_frame=5), make_job(161, trigger=ON_CONDITION)))
    assert await store.expire_jobs(0, START + 35, 2) == [160, 16]
    assert await store.expire_jobs(0, START + 35, 2) == [32, 48]
    assert await store.expire_jobs(0, START + 35, 2) == []
    assert some(await store.planned_job(161)).starts_at == START + 35
    assert some(await store.job(161)).owner == OWNER


@pytest.mark.parametrize("recurring", [False, True])
async def test_a_job_that_runs_once_fires_again_when_the_log_it_ran_for_is_gone(store: Store, recurring: bool) -> None:
    job = await store.add_job(make_job(trigger=ON_EVENT, recurring=recurring, next_due=None))
    first, second = make_event_task(job, 0), make_event_task(job, 1)
    assert await store.fire([Firing(7, first, spent=not recurring)], START, FENCES) == [NEW]
    gone = TaskChange(first.id, (S.FAILED,), reason="EVENT_REORGANISED")
    assert await store.change(gone, START) is not None
    stored = some(await store.job(7))
    assert (stored.spent, stored.status) == (False, JobStatus.SCHEDULED)
    assert await store.planned_job(7) is not None
    assert await store.fire([Firing(7, second, spent=not recurring)], START, FENCES) == [NEW]
    assert some(await store.job(7)).spent is not recurring
    back = TaskChange(first.id, (S.CREATED,))
    assert some(await store.change(back, START)).state is S.CREATED
    assert {t.id for t in await store.open_tasks()} == {first.id, second.id}
