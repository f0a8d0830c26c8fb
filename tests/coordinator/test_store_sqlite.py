"""What only a store on disk can be asked: that it is still there, whole, and the same for everybody who shares the file."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio

from consensus.errors import Transient
from consensus.lifecycle import TaskState
from consensus.triggers import Cron, Moments
from coordinator.store import rows, steps
from coordinator.store.records import Edge, Fired, Firing, TaskChange
from coordinator.store.sqlite import SqliteStore, open_store
from tests.coordinator.factory import (
    CHAIN,
    FENCES,
    ON_CONDITION,
    ON_EVENT,
    OWNER,
    START,
    claim_all,
    make_attempt,
    make_edge_firing,
    make_job,
    make_key,
    make_task,
)
from tests.coordinator.stores import certify, owner_of, some
from tests.coordinator.test_store import TRIGGERS

JOBS = 40


async def test_everything_acknowledged_is_there_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    job = make_job()
    task = make_task(job, START + 10)
    async with open_store(path) as store:
        await store.add_job(job)
        await store.fire([Firing(job.id, task, START + 20)], START, await claim_all(store))
        await store.add_attempt(make_attempt(task), TaskChange(task.id, (TaskState.DISPATCHED,), attempt=1), START)
        await store.record(CHAIN, 12, [], [], START)
        await store.add_key(make_key())
        open_before = await store.open_tasks()
    async with open_store(path) as store:
        stored = some(await store.job(job.id))
        assert (stored.spec, stored.next_due) == (job.spec, START + 20)
        assert await store.open_tasks() == open_before
        assert [a.message for a in await store.attempts(task.id)] == [b"bytes for the mesh"]
        assert await store.checkpoint(f"hub:{CHAIN}") == 12
        assert await store.key(make_key().digest) == make_key()
        assert await store.fire([Firing(job.id, task, START + 20)], START, FENCES) == [Fired.KNOWN]


# --- two of them on one file


@asynccontextmanager
async def two_stores(path: Path) -> AsyncIterator[tuple[SqliteStore, SqliteStore]]:
    async with open_store(path) as one, open_store(path) as other:
        await claim_all(one)
        yield one, other


async def test_two_coordinators_fire_every_second_once(tmp_path: Path) -> None:
    answers: list[Fired] = []

    async def fire(store: SqliteStore, job_ids: list[int]) -> None:
        for second in (START + 10, START + 20):
            for job_id in job_ids:
                task = make_task(make_job(job_id), second)
                answers.extend(await store.fire([Firing(job_id, task, second + 10)], START, FENCES))

    async with two_stores(tmp_path / "store.db") as (one, other):
        await one.add_jobs([make_job(i) for i in range(1, JOBS + 1)])
        async with trio.open_nursery() as nursery:
            for store, ids in ((one, range(1, JOBS + 1)), (other, range(JOBS, 0, -1))):
                nursery.start_soon(fire, store, list(ids))
        assert (answers.count(Fired.NEW), answers.count(Fired.KNOWN)) == (2 * JOBS, 2 * JOBS)
        assert (await owner_of(one)).total_tasks == 2 * JOBS
        assert await other.task_counts() == {("created", ""): 2 * JOBS}


async def test_two_coordinators_lose_no_count_and_no_point(tmp_path: Path) -> None:
    async with two_stores(tmp_path / "store.db") as (one, other):
        await one.add_jobs([make_job(i) for i in range(1, JOBS + 1)])
        tasks = [make_task(make_job(i), START + 10) for i in range(1, JOBS + 1)]
        await one.fire([Firing(t.job_id, t, None, spent=True) for t in tasks], START, FENCES)

        async def accept(store: SqliteStore, task_id: int) -> None:
            executed = TaskChange(task_id, (TaskState.EXECUTED,), cost=7, performer=b"\x21" * 20)
            accepted = TaskChange(task_id, (TaskState.CERTIFIED,), accepted=True, attesters=(b"\x22" * 20,))
            await store.record(CHAIN, 5, [executed, accepted], [], START)

        before = (await owner_of(one)).points
        async with trio.open_nursery() as nursery:
            for task in tasks:
                for store in (one, other):
                    nursery.start_soon(accept, store, task.id)
        assert (await owner_of(other)).points == before + 7 * JOBS
        assert [(r.points, r.executed, r.attested) for r in await other.keeper_records()] == [
            (7 * JOBS, JOBS, 0),
            (7 * JOBS, 0, JOBS),
        ]
        assert await other.task_counts() == {("completed", ""): JOBS}
        assert {status.value: n for status, n in (await other.job_counts()).items()} == {"completed": JOBS}


async def test_a_shard_claimed_through_one_fences_off_the_other(tmp_path: Path) -> None:
    async with two_stores(tmp_path / "store.db") as (one, other):
        await one.add_job(make_job())
        firing = Firing(7, make_task(make_job(), START + 10), START + 20)
        assert await other.claim_shard(7, 2, START)
        assert await one.fire([firing], START, FENCES) == [Fired.FENCED]
        assert await other.fire([firing], START, {7: 2}) == [Fired.NEW]


def process(path: Path, seconds: int) -> list[str]:
    return [sys.executable, "-m", "tests.coordinator.store_process", str(path), str(JOBS), str(seconds)]


async def test_processes_share_the_file_and_every_second_fires_once(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with open_store(path) as store:
        await claim_all(store)
        await store.add_jobs([make_job(i) for i in range(1, JOBS + 1)])
        new: list[int] = []

        async def run() -> None:
            done = await trio.run_process(process(path, 5), capture_stdout=True)
            new.extend(map(int, done.stdout.split()))

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(run)
        assert (sum(new), len(new)) == (5 * JOBS, 15)
        assert (await owner_of(store)).total_tasks == 5 * JOBS
        assert len(await store.open_tasks()) == 5 * JOBS


# --- all or nothing


async def test_a_killed_process_leaves_whole_transactions_and_what_it_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with open_store(path) as store:
        await claim_all(store)
        await store.add_jobs([make_job(i) for i in range(1, JOBS + 1)])
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            running = await nursery.start(lambda task_status: _run(process(path, 100_000), task_status))
            seen = b""
            while seen.count(b"\n") < 5:
                seen += await running.stdout.receive_some()
            running.kill()
    async with open_store(path) as store:
        tasks = [await store.task_ids_of_job(i, 10**6) for i in range(1, JOBS + 1)]
        jobs = [some(await store.job(i)) for i in range(1, JOBS + 1)]
        fired = len(tasks[0])
        assert fired >= 5
        assert {len(each) for each in tasks} == {fired}
        assert {job.next_due for job in jobs} == {START + fired + 1}
        assert (await owner_of(store)).total_tasks == fired * JOBS == (await store.task_counts())["created", ""]


async def _run(command: list[str], task_status: trio.TaskStatus[trio.Process]) -> None:
    await trio.run_process(command, stdout=subprocess.PIPE, check=False, task_status=task_status)


async def test_a_batch_that_fails_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with open_store(path) as store:
        await claim_all(store)
        await store.add_jobs([make_job(i) for i in (1, 2, 3)])
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute(
                "CREATE TRIGGER broken BEFORE INSERT ON task_data WHEN new.job_id = '2' BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
        firings = [Firing(i, make_task(make_job(i), START + 10), START + 20) for i in (1, 2, 3)]
        with pytest.raises(sqlite3.IntegrityError):
            await store.fire(firings, START, FENCES)
        assert await store.recent_tasks(9) == []
        assert [some(await store.job(i)).next_due for i in (1, 2, 3)] == [START + 10] * 3
        with pytest.raises(sqlite3.IntegrityError):  # a key that is taken: the second of the same batch
            await store.add_jobs([make_job(9), make_job(9)])
        assert await store.job(9) is None
        assert (await owner_of(store)).total_jobs == 3


async def test_a_file_that_another_process_holds_is_tried_again_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.infra.sqlite._BUSY_MS", 50)
    async with open_store(tmp_path / "store.db") as store:
        await store.add_job(make_job())
        with closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            with pytest.raises(Transient) as error:
                await store.pause_job(7, START)
            assert error.value.code == "DATABASE_BUSY"
            assert some(await store.job(7)).active  # who reads waits for nobody
            db.execute("COMMIT")
        assert not some(await store.pause_job(7, START)).active


# --- how it is laid out


@pytest.mark.parametrize(
    ("query", "arguments", "index"),
    [
        (rows.SELECT_PLANNED, {"shard": 3, "after": "5", "otherwise": 0, "limit": 5}, "planned_jobs"),
        (steps.EXPIRED, {"shard": 3, "at": START, "limit": 5, "grace": 60}, "jobs_by_end"),
        (steps.EXPIRED, {"shard": 3, "at": START, "limit": 5, "grace": 60}, "finished_jobs"),
        (rows.TASKS.select + " WHERE is_open = 1 AND shard IN (?)", (3,), "open_tasks"),
        (steps.FIREABLE, ("3",), "sqlite_autoindex_job_data_1"),
    ],
)
async def test_what_is_asked_often_is_answered_from_an_index(
    tmp_path: Path, query: str, arguments: steps.Arguments, index: str
) -> None:
    async with open_store(tmp_path / "store.db"):
        with closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None)) as db:
            plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {query}", arguments)]
    assert any(index in step for step in plan), plan
    assert not any(step.startswith("SCAN") for step in plan), plan


async def test_jobs_that_are_alike_share_their_trigger_in_memory() -> None:
    async with open_store(":memory:") as store:
        await store.add_jobs([make_job(16 * i, trigger=Cron("0 9 * * *", "Europe/Berlin")) for i in range(1, 4)])
        page = await store.planned(0, None, 9)
        assert len({id(planned.trigger) for planned in page}) == 1
        assert len({id(planned.edge) for planned in page}) == 1


async def test_the_fields_tables_can_be_read_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    moments = Moments((START + 10, START + 60))
    async with open_store(path) as store:
        await claim_all(store)
        for i, trigger in enumerate([moments, ON_EVENT, ON_CONDITION, *TRIGGERS], 1):
            await store.add_job(make_job(i, trigger=trigger, next_due=START + 10, timezone="Asia/Tokyo"))
        await store.fire([make_edge_firing(make_job(3, trigger=ON_CONDITION), 1, spent=True)], START, FENCES)
        await certify(store, make_edge_firing(make_job(3, trigger=ON_CONDITION), 1).task or 0)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.row_factory = sqlite3.Row

        def row(view: str, job_id: int) -> dict[str, object]:
            return dict(db.execute(f"SELECT * FROM {view} WHERE job_id = ?", [str(job_id)]).fetchone())

        time, event, condition = row("time_job_data", 1), row("event_job_data", 2), row("condition_job_data", 3)
        counts = [db.execute(f"SELECT count(*) FROM {v}_job_data").fetchone()[0] for v in ("time", "event", "condition")]
    assert sum(counts) == len(TRIGGERS) + 3
    assert (time["schedule_type"], time["specific_schedule"]) == ("specific", "2023-11-14T22:13:30Z,2023-11-14T22:14:20Z")
    assert (time["next_execution_timestamp"], time["expiration_time"], time["is_active"]) == (START + 10, START + 100, 1)
    assert (time["timezone"], time["target_function"], time["is_completed"]) == ("Asia/Tokyo", "ping", 0)
    assert (event["trigger_event"], event["trigger_chain_id"]) == (ON_EVENT.event, CHAIN)
    assert (condition["condition_type"], condition["upper_limit"], condition["value_source_type"]) == (
        "greater_than",
        "5",
        "static",
    )
    assert (condition["value_source_url"], condition["is_active"], condition["is_completed"]) == ("7", 0, 1)


async def test_an_unarmed_edge_comes_back_unarmed(tmp_path: Path) -> None:
    async with open_store(tmp_path / "store.db") as store:
        await store.add_job(make_job(trigger=ON_CONDITION, edge=Edge(2**40, armed=False), owner=OWNER))
    async with open_store(tmp_path / "store.db") as store:
        assert some(await store.planned_job(7)).edge == Edge(2**40, armed=False)


async def test_a_job_that_can_be_read_no_more_hides_no_other(tmp_path: Path) -> None:
    async with open_store(tmp_path / "store.db") as store:
        for number in range(5):
            await store.add_job(make_job(7 + 16 * number))
        with sqlite3.connect(tmp_path / "store.db") as other:
            cron = '{"type":"cron","expression":"* * * * *","timezone":"Gone/Zone"}'
            other.execute("UPDATE job_data SET trigger = ? WHERE job_id IN ('7', '39')", (cron,))
        first = await store.planned(7, None, 2)
        rest = await store.planned(7, first[-1].job_id, 2)
        assert [planned.job_id for planned in (*first, *rest)] == [23, 55, 71]
        assert await store.planned_job(39) is None
        everybody_over = START + 10**6
        for job_id in (23, 55, 71):
            assert await store.pause_job(job_id, START) is not None
        with sqlite3.connect(tmp_path / "store.db") as other:
            other.execute("UPDATE job_data SET next_execution_timestamp = NULL WHERE job_id = '7'")
        assert await store.expire_jobs(7, everybody_over, 100) == [23, 55, 71]
