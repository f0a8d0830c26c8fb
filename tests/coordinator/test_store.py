"""One suite for every store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from pytest_trio import trio_fixture

from consensus.codec import UINT256_MAX
from consensus.lifecycle import TaskState
from consensus.triggers import Interval
from coordinator.store.memory import MemoryStore
from coordinator.store.port import Store
from coordinator.store.records import Firing, JobStatus, KeeperSeen, Planned, TaskChange
from coordinator.store.sqlite import open_store
from tests.coordinator.factory import CHAIN, KEY_OWNER, OWNER, START, make_attempt, make_job, make_key, make_task

S = TaskState


@trio_fixture
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
    else:
        async with open_store(tmp_path / "store.db" if request.param == "sqlite" else ":memory:") as opened:
            yield opened


pytestmark = pytest.mark.parametrize("store", ["memory", "sqlite", "sqlite inline"], indirect=True)


async def with_task(store: Store, job_id: int = 7, next_due: int | None = START + 20) -> int:
    job = await store.add_job(make_job(job_id))
    task = make_task(job, START + 10, created_at_ms=(START + job_id + 3) * 1000)
    assert await store.fire([Firing(job.id, task, next_due)], START) == [True]
    return task.id


async def test_a_job_is_read_back_as_it_was_written(store: Store) -> None:
    job = make_job(UINT256_MAX, cost_actual=10**30, safe_name="Ä\0", trigger=Interval(2**40), time_frame=2**41)
    assert await store.add_job(job) == job
    assert await store.job(job.id) == job
    assert await store.job(1) is None


async def test_a_job_posted_twice_is_stored_and_counted_once(store: Store) -> None:
    job = await store.add_job(make_job())
    assert await store.add_job(make_job(title="another title")) == job
    user = await store.user(OWNER)
    assert user is not None
    assert (user.id, user.total_jobs, user.total_tasks) == (1, 1, 0)


async def test_concurrent_posts_of_one_job_store_one(store: Store) -> None:
    stored = []

    async def post(title: str) -> None:
        stored.append(await store.add_job(make_job(title=title)))

    async with trio.open_nursery() as nursery:
        for i in range(20):
            nursery.start_soon(post, f"title {i}")
    assert len({job.title for job in stored}) == 1
    user = await store.user(OWNER)
    assert user is not None
    assert user.total_jobs == 1


async def test_jobs_are_listed_by_key_owner_and_owner(store: Store) -> None:
    other = b"\x09" * 20
    mine = await store.add_job(make_job(1))
    also_mine = await store.add_job(make_job(2, owner=other, posted_at=START + 1))
    await store.add_job(make_job(3, key_owner="somebody else"))
    assert await store.jobs(key_owner=KEY_OWNER) == [mine, also_mine]
    assert await store.jobs(key_owner=KEY_OWNER, owner=other) == [also_mine]
    assert await store.jobs(key_owner="nobody") == []


async def test_active_jobs_are_paged_completely(store: Store) -> None:
    for i in range(1, 26):
        await store.add_job(make_job(i))
    await store.end_job(13, JobStatus.DELETED, START)
    await store.fire([Firing(14, None, None)], START)
    seen: list[Planned] = []
    while page := await store.planned(seen[-1].job_id if seen else None, 7):
        seen += page
    assert sorted(p.job_id for p in seen) == [i for i in range(1, 26) if i not in (13, 14)]
    assert seen[0] == Planned(1, CHAIN, 1, Interval(10), START, 100, START + 10, "tgrx-test")


async def test_a_firing_writes_its_task_and_moves_the_schedule_together(store: Store) -> None:
    task_id = await with_task(store)
    task, job, user = await store.task(task_id), await store.job(7), await store.user(OWNER)
    assert task == make_task(make_job(), START + 10, created_at_ms=(START + 10) * 1000)
    assert job is not None
    assert user is not None
    assert (job.next_due, job.status, user.total_tasks) == (START + 20, JobStatus.SCHEDULED, 1)


async def test_the_same_second_never_makes_a_second_task(store: Store) -> None:
    task_id = await with_task(store)
    await store.change(TaskChange(task_id, (S.FAILED,), reason="NO_KEEPER"), START)
    again = make_task(make_job(), START + 10, trace_id="another")
    assert await store.fire([Firing(7, again, START + 20)], START) == [False]
    task = await store.task(task_id)
    assert task is not None
    assert (task.state, task.trace_id) == (S.FAILED, "tgrx-test")


async def test_a_deleted_job_fires_no_more(store: Store) -> None:
    job = await store.add_job(make_job())
    ended = await store.end_job(job.id, JobStatus.DELETED, START + 1)
    assert ended is not None
    assert ended.status is JobStatus.DELETED
    assert await store.fire([Firing(job.id, make_task(job, START + 10), START + 20)], START) == [False]
    assert await store.tasks_of_job(job.id, 10) == []
    again = await store.end_job(job.id, JobStatus.COMPLETED, START + 2)
    assert again is not None
    assert again.status is JobStatus.DELETED
    assert await store.end_job(99, JobStatus.DELETED, START) is None


async def test_tasks_of_a_job_are_the_newest_oldest_first(store: Store) -> None:
    job = await store.add_job(make_job())
    tasks = [make_task(job, START + 10 * i) for i in range(1, 6)]
    for task in tasks:
        await store.fire([Firing(job.id, task, None)], START)
    assert await store.tasks_of_job(job.id, 3) == tasks[2:]
    assert await store.task_ids_of_job(job.id, 9) == [t.id for t in tasks]


async def test_a_task_only_goes_where_the_lifecycle_lets_it(store: Store) -> None:
    task_id = await with_task(store)
    assert await store.change(TaskChange(task_id, (S.COMPLETED,)), START) is None
    assert await store.change(TaskChange(99, (S.FAILED,)), START) is None
    executed = TaskChange(
        task_id, (S.EXECUTED,), stages={"executed": 5}, number=3, executed_at=START + 11, cost=7, successful=True
    )
    task = await store.change(executed, START)
    assert task is not None
    assert (task.state, task.number, task.cost, task.successful) == (S.EXECUTED, 3, 7, True)
    assert task.stages == {"created": (START + 10) * 1000, "executed": 5}
    assert await store.change(executed, START) is None
    assert await store.task(task_id) == task


async def test_only_one_of_many_concurrent_changes_applies(store: Store) -> None:
    task_id = await with_task(store)
    applied = []

    async def fail(reason: str) -> None:
        if await store.change(TaskChange(task_id, (S.FAILED,), reason=reason), START):
            applied.append(reason)

    async with trio.open_nursery() as nursery:
        for i in range(10):
            nursery.start_soon(fail, f"REASON_{i}")
    task = await store.task(task_id)
    assert task is not None
    assert [task.reason] == applied
    assert await store.task_counts() == {("failed", task.reason): 1}


async def test_an_attempt_and_its_bytes_come_with_the_step_to_dispatched(store: Store) -> None:
    task_id = await with_task(store)
    task = await store.task(task_id)
    assert task is not None
    attempt = make_attempt(task)
    step = TaskChange(task_id, (S.DISPATCHED,), attempt=1, predicted_cost=10**20)
    dispatched = await store.add_attempt(attempt, step, START)
    assert dispatched is not None
    assert (dispatched.state, dispatched.attempt, dispatched.predicted_cost) == (S.DISPATCHED, 1, 10**20)
    assert await store.attempts(task_id) == [attempt] or await store.attempts(task_id) == (attempt,)
    assert await store.add_attempt(attempt, step, START) is None


async def test_no_attempt_is_stored_for_a_task_that_has_executed(store: Store) -> None:
    task_id = await with_task(store)
    task = await store.change(TaskChange(task_id, (S.EXECUTED,), number=1), START)
    assert task is not None
    assert await store.add_attempt(make_attempt(task), TaskChange(task_id, (S.DISPATCHED,)), START) is None
    assert len(await store.attempts(task_id)) == 0


async def test_an_attempt_is_published_acknowledged_and_ended_once(store: Store) -> None:
    task_id = await with_task(store)
    task = await store.task(task_id)
    assert task is not None
    await store.add_attempt(make_attempt(task), TaskChange(task_id, (S.DISPATCHED,), attempt=1), START)
    await store.mark_published(task_id, 1, 100)
    await store.mark_published(task_id, 1, 200)
    assert await store.acknowledge(task_id, 2, 300) is None
    acknowledged = await store.acknowledge(task_id, 1, 300)
    assert acknowledged is not None
    assert acknowledged.state is S.ACKNOWLEDGED
    await store.acknowledge(task_id, 1, 400)
    assert await store.end_attempt(task_id, 1, "NO_EXECUTION", "because", 500)
    assert not await store.end_attempt(task_id, 1, "OTHER", "", 600)
    assert await store.acknowledge(task_id, 1, 700) is None
    [attempt] = await store.attempts(task_id)
    assert (attempt.published_ms, attempt.acknowledged_ms, attempt.ended_ms) == (100, 300, 500)
    assert (attempt.code, attempt.detail) == ("NO_EXECUTION", "because")
    task = await store.task(task_id)
    assert task is not None
    assert (task.stages["published"], task.stages["acknowledged"]) == (100, 300)


async def test_open_tasks_are_those_that_have_not_ended(store: Store) -> None:
    first, second = await with_task(store, 7), await with_task(store, 8)
    assert [t.id for t in await store.open_tasks()] == [first, second]
    await store.change(TaskChange(first, (S.FAILED,), reason="NO_EXECUTION"), START)
    assert [t.id for t in await store.open_tasks()] == [second]
    await store.change(TaskChange(first, (S.EXECUTED,), number=1), START)
    assert [t.id for t in await store.open_tasks()] == [first, second]


async def test_a_reorganisation_that_executes_elsewhere_is_followed(store: Store) -> None:
    task_id = await with_task(store)
    await store.record(CHAIN, 40, [TaskChange(task_id, (S.EXECUTED,), number=1, execution_tx=b"\1" * 32)], [], START)
    [task] = await store.record(CHAIN, 40, [TaskChange(task_id, (S.EXECUTED,), number=2, execution_tx=b"\2" * 32)], [], START)
    assert (task.state, task.number, task.execution_tx) == (S.EXECUTED, 2, b"\2" * 32)


async def test_a_job_completes_with_its_last_task_and_not_before(store: Store) -> None:
    task_id = await with_task(store, next_due=None)
    assert not await store.complete_job(7, START)
    await store.change(TaskChange(task_id, (S.EXECUTED,), number=1, executed_at=START + 11, cost=5), START)
    await store.change(TaskChange(task_id, (S.CERTIFIED,), accepted=True), START)
    job = await store.job(7)
    assert job is not None
    assert (job.status, job.cost_actual, job.last_executed_at) == (JobStatus.COMPLETED, 5, START + 11)


async def test_a_job_with_a_further_due_second_does_not_complete(store: Store) -> None:
    task_id = await with_task(store)
    await store.change(TaskChange(task_id, (S.FAILED,), reason="NO_KEEPER"), START)
    assert not await store.complete_job(7, START)
    await store.fire([Firing(7, None, None)], START)
    assert await store.complete_job(7, START)
    assert not await store.complete_job(7, START)


async def test_a_block_told_twice_has_its_effects_once(store: Store) -> None:
    task_id = await with_task(store)
    await with_task(store, 8)
    executed = TaskChange(task_id, (S.EXECUTED,), number=1, cost=5, successful=False)
    certified = TaskChange(task_id, (S.CERTIFIED,), accepted=True, attester_ids=(3, 1), proof=b"\x05" * 32)
    assert await store.checkpoint(CHAIN) is None
    changed = await store.record(CHAIN, 40, [executed, certified], [8], START)
    assert [t.state for t in changed] == [S.EXECUTED, S.FAILED]
    assert await store.record(CHAIN, 40, [executed, certified], [8], START) == []
    assert await store.checkpoint(CHAIN) == 40
    assert await store.record(CHAIN, 39, [executed, certified], [], START) == []
    assert await store.checkpoint(CHAIN) == 39
    task, job, other = await store.task(task_id), await store.job(7), await store.job(8)
    assert task is not None
    assert job is not None
    assert other is not None
    assert (task.reason, task.attester_ids, task.accepted) == ("INNER_CALL_FAILED", (3, 1), True)
    assert (job.cost_actual, job.status, other.status) == (5, JobStatus.SCHEDULED, JobStatus.DELETED)


async def test_counts_follow_the_tasks(store: Store) -> None:
    first, _ = await with_task(store, 7), await with_task(store, 8)
    assert await store.task_counts() == {("created", ""): 2}
    await store.change(TaskChange(first, (S.FAILED,), reason="NO_KEEPER"), START)
    assert await store.task_counts() == {("created", ""): 1, ("failed", "NO_KEEPER"): 1}


async def test_keys_and_keepers_are_kept(store: Store) -> None:
    key = make_key()
    await store.add_key(key)
    assert await store.key(key.digest) == key
    assert await store.key(b"\x02" * 32) is None
    keeper = KeeperSeen(CHAIN, OWNER, "12D3Koo", "0.1.0", START, START, 0)
    await store.save_keeper(keeper)
    await store.save_keeper(replace(keeper, last_seen=START + 60, uptime_s=60))
    assert await store.keepers() == [replace(keeper, last_seen=START + 60, uptime_s=60)]
