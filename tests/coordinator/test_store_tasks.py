"""One suite for every store: tasks, attempts, and what the chain says of them."""

from __future__ import annotations

from dataclasses import replace

import trio

from consensus.lifecycle import TaskState
from coordinator.store.memory import MemoryStore
from coordinator.store.port import Store
from coordinator.store.records import Called, Fired, Firing, JobStatus, TaskChange
from tests.coordinator.factory import CHAIN, FENCES, START, make_attempt, make_job, make_task
from tests.coordinator.stores import EVERY_STORE, some, with_task
from tests.coordinator.stores import a_store as a_store

pytestmark = EVERY_STORE

S = TaskState
HUB = f"hub:{CHAIN}"


async def test_tasks_of_a_job_are_the_newest_oldest_first(store: Store) -> None:
    job = await store.add_job(make_job())
    tasks = [make_task(job, START + 10 * i) for i in range(1, 6)]
    for task in tasks:
        await store.fire([Firing(job.id, task, None)], START, FENCES)
    assert await store.tasks_of_job(job.id, 3) == tasks[2:]
    assert await store.task_ids_of_job(job.id, 9) == [t.id for t in tasks]
    assert [await store.tasks_of_job(99, 3), await store.task_ids_of_job(99, 3)] == [[], []]


async def test_the_newest_tasks_of_all_come_newest_first(store: Store) -> None:
    assert await store.recent_tasks(2) == []
    ids = [await with_task(store, job_id) for job_id in (9, 7, 8)]
    assert [t.id for t in await store.recent_tasks(2)] == [ids[2], ids[1]]
    assert len(await store.recent_tasks(9)) == 3


async def test_a_task_only_goes_where_the_lifecycle_lets_it(store: Store) -> None:
    task_id = await with_task(store)
    assert await store.change(TaskChange(task_id, (S.COMPLETED,)), START) is None
    assert await store.change(TaskChange(99, (S.FAILED,)), START) is None
    executed = TaskChange(
        task_id, (S.EXECUTED,), stages={"executed": 5}, number=3, executed_at=START + 11, cost=10**20, successful=True
    )
    task = some(await store.change(executed, START))
    assert (task.state, task.number, task.cost, task.successful) == (S.EXECUTED, 3, 10**20, True)
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
    task = some(await store.task(task_id))
    assert [task.reason] == applied
    assert await store.task_counts() == {("failed", task.reason): 1}


async def test_open_tasks_are_those_that_have_not_ended(store: Store) -> None:
    first, second = await with_task(store, 7), await with_task(store, 8)
    assert [t.id for t in await store.open_tasks()] == [first, second]
    assert [t.id for t in await store.open_tasks([8, 3])] == [second]
    assert await store.open_tasks([]) == []
    await store.change(TaskChange(first, (S.FAILED,), reason="NO_EXECUTION"), START)
    assert [t.id for t in await store.open_tasks()] == [second]
    await store.change(TaskChange(first, (S.EXECUTED,), number=1), START)
    assert [t.id for t in await store.open_tasks([7, 8])] == [first, second]


async def test_counts_follow_the_tasks(store: Store) -> None:
    first, _ = await with_task(store, 7), await with_task(store, 8)
    assert await store.task_counts() == {("created", ""): 2}
    await store.change(TaskChange(first, (S.FAILED,), reason="NO_KEEPER"), START)
    assert await store.task_counts() == {("created", ""): 1, ("failed", "NO_KEEPER"): 1}


# --- attempts


async def test_an_attempt_and_its_bytes_come_with_the_step_to_dispatched(store: Store) -> None:
    task_id = await with_task(store)
    attempt = make_attempt(some(await store.task(task_id)))
    step = TaskChange(task_id, (S.DISPATCHED,), attempt=1, predicted_cost=10**20)
    dispatched = some(await store.add_attempt(attempt, step, START))
    assert (dispatched.state, dispatched.attempt, dispatched.predicted_cost) == (S.DISPATCHED, 1, 10**20)
    assert await store.attempts(task_id) == [attempt]
    assert await store.add_attempt(attempt, step, START) is None
    assert await store.attempts(99) == []


async def test_no_attempt_is_stored_for_a_task_that_has_executed(store: Store) -> None:
    task_id = await with_task(store)
    task = some(await store.change(TaskChange(task_id, (S.EXECUTED,), number=1), START))
    assert await store.add_attempt(make_attempt(task), TaskChange(task_id, (S.DISPATCHED,)), START) is None
    assert await store.attempts(task_id) == []


async def test_an_attempt_is_published_acknowledged_and_ended_once(store: Store) -> None:
    task_id = await with_task(store)
    task = some(await store.task(task_id))
    await store.add_attempt(make_attempt(task), TaskChange(task_id, (S.DISPATCHED,), attempt=1), START)
    await store.mark_published(task_id, 1, 100)
    await store.mark_published(task_id, 1, 200)
    await store.mark_published(99, 1, 200)
    assert await store.acknowledge(task_id, 2, 300) is None
    assert some(await store.acknowledge(task_id, 1, 300)).state is S.ACKNOWLEDGED
    assert some(await store.acknowledge(task_id, 1, 400)).state is S.ACKNOWLEDGED
    assert await store.end_attempt(task_id, 1, "NO_EXECUTION", "because", 500)
    assert not await store.end_attempt(task_id, 1, "OTHER", "", 600)
    assert await store.acknowledge(task_id, 1, 700) is None
    [attempt] = await store.attempts(task_id)
    assert (attempt.published_ms, attempt.acknowledged_ms, attempt.ended_ms) == (100, 300, 500)
    assert (attempt.code, attempt.detail) == ("NO_EXECUTION", "because")
    task = some(await store.task(task_id))
    assert (task.stages["published"], task.stages["acknowledged"]) == (100, 300)


# --- the chain's word


async def test_a_reorganisation_that_executes_elsewhere_is_followed(store: Store) -> None:
    task_id = await with_task(store)
    await store.record(CHAIN, 40, [TaskChange(task_id, (S.EXECUTED,), number=1, execution_tx=b"\1" * 32)], [], START)
    [task] = await store.record(CHAIN, 40, [TaskChange(task_id, (S.EXECUTED,), number=2, execution_tx=b"\2" * 32)], [], START)
    assert (task.state, task.number, task.execution_tx) == (S.EXECUTED, 2, b"\2" * 32)


async def test_a_block_told_twice_has_its_effects_once(store: Store) -> None:
    task_id = await with_task(store)
    await with_task(store, 8)
    executed = TaskChange(task_id, (S.EXECUTED,), number=1, cost=5, successful=False)
    certified = TaskChange(task_id, (S.CERTIFIED,), accepted=True, attester_ids=(3, 1), proof=b"\x05" * 32)
    assert await store.checkpoint(HUB) is None
    changed = await store.record(CHAIN, 40, [executed, certified], [8], START)
    assert [t.state for t in changed] == [S.EXECUTED, S.FAILED]
    assert await store.record(CHAIN, 40, [executed, certified], [8], START) == []
    assert await store.checkpoint(HUB) == 40
    assert await store.record(CHAIN, 39, [executed, certified], [], START) == []
    assert await store.checkpoint(HUB) == 39
    task, job, other = some(await store.task(task_id)), some(await store.job(7)), some(await store.job(8))
    assert (task.reason, task.attester_ids, task.accepted) == ("INNER_CALL_FAILED", (3, 1), True)
    assert (job.cost_actual, job.status, other.status) == (5, JobStatus.SCHEDULED, JobStatus.DELETED)


async def test_checkpoints_are_kept_by_name(store: Store) -> None:
    await store.save_checkpoints({"events:1:3": 5, "events:1:4": 2**60})
    await store.save_checkpoints({"events:1:3": 4})
    await store.save_checkpoints({})
    await store.record(1, 77, [], [], START)
    assert [await store.checkpoint(n) for n in ("events:1:3", "events:1:4", "hub:1", "hub:2")] == [4, 2**60, 77, None]


async def test_open_tasks_keep_what_they_execute_when_their_job_is_changed(store: Store) -> None:
    first = await with_task(store)
    jobs = [some(await store.job(7))]

    async def changes(spec: bytes) -> None:
        changed = replace(jobs[-1], spec=spec, target=replace(jobs[-1].target, call=spec, gas_limit=len(spec)))
        jobs.append(some(await store.update_job(changed)))

    await changes(b"second")
    await changes(b"third")  # nothing fired in between
    second = make_task(jobs[-1], START + 20)
    assert await store.fire([Firing(7, second, START + 30)], START, FENCES) == [Fired.NEW]
    await changes(b"fourth")
    third = make_task(jobs[-1], START + 30)
    assert await store.fire([Firing(7, third, START + 40)], START, FENCES) == [Fired.NEW]
    assert await store.called(first) == jobs[0].called
    assert await store.called(second.id) == Called(b"third", b"third", 5)
    assert await store.called(third.id) == jobs[-1].called
    assert await store.called(99) is None
    for task_id in (first, second.id):
        await store.change(TaskChange(task_id, (S.FAILED,)), START)
    await changes(b"fifth")
    assert await store.called(third.id) == Called(b"fourth", b"fourth", 6)
    await store.change(TaskChange(third.id, (S.FAILED,)), START)
    await changes(b"sixth")
    last = make_task(jobs[-1], START + 40)
    await store.fire([Firing(7, last, START + 50)], START, FENCES)
    assert await store.called(last.id) == Called(b"sixth", b"sixth", 5)


async def test_a_store_has_a_number_of_its_own_that_stays(store: Store) -> None:
    assert await store.identity() == await store.identity() != await MemoryStore().identity()


async def test_tasks_that_need_a_keeper_come_by_priority_then_age(store: Store) -> None:
    job = await store.add_job(make_job(7))
    made = [
        make_task(job, START + 10 * n, priority=p, created_at_ms=1000 * n) for n, p in ((1, 3), (2, 1), (3, 3), (4, 1), (5, 2))
    ]
    for task in made:
        await store.fire([Firing(7, task, START + 90)], START, FENCES)
    await store.change(TaskChange(made[3].id, (S.EXECUTED,), executed_at=START), START)
    by_priority = [(made[n].id, made[n].priority) for n in (1, 4, 0, 2)]
    assert await store.unexecuted([7], 5000) == by_priority
    assert await store.unexecuted([3, 7], 3000) == [by_priority[0], *by_priority[2:]]
    assert await store.unexecuted([8], 5000) == await store.unexecuted([], 5000) == []
