"""A store that the first schema made is brought up to date, with all that was in it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from consensus.lifecycle import TaskState
from consensus.triggers import Interval
from coordinator.store.records import SHARDS, ApiKey, Fired, Firing, Job, JobStatus, KeeperSeen, TaskChange
from coordinator.store.schema import MIGRATIONS
from coordinator.store.sqlite import open_store
from node.infra.sqlite import open_database
from tests.coordinator.factory import CHAIN, FENCES, OWNER, START, claim_all, make_attempt, make_job, make_task
from tests.coordinator.stores import certify, owner_of, some

RUNNING = make_job(10**60 + 7, trigger=Interval(10), next_due=START + 20, status=JobStatus.SCHEDULED, starts_at=START)
SPENT = make_job(3, next_due=None, status=JobStatus.SCHEDULED, starts_at=START, spent=True, posted_at=START + 1)
DELETED = make_job(4, status=JobStatus.DELETED, starts_at=START, posted_at=START + 2)


def insert(db: sqlite3.Connection, table: str, **values: object) -> None:
    marks = ", ".join("?" * len(values))
    db.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", list(values.values()))


def insert_job(db: sqlite3.Connection, job: Job) -> None:
    """As the first release of the store wrote it."""
    assert isinstance(job.trigger, Interval)
    plain = ["key_owner", "priority", "security", "chain_status", "custom", "time_frame", "recurring", "created_at", "posted_at"]
    plain += ["updated_at", "last_executed_at", "timezone", "is_imua", "created_chain_id", "is_safe", "safe_name", "safe_address"]
    target = ["abi", "arg_type", "arguments", "language", "call", "gas_limit"]
    insert(
        db,
        "job_data",
        job_id=str(job.id),
        user_address=job.owner,
        job_title=job.title,
        task_definition_id=job.definition,
        link_job_id=str(job.link_job_id),
        status=job.status.value,
        job_cost_prediction=job.cost_prediction,
        job_cost_actual=str(job.cost_actual),
        target_chain_id=job.target.chain_id,
        target_contract_address=job.target.contract,
        target_function=job.target.function,
        target_signature=job.target.signature,
        dynamic_arguments_script_url=job.target.script_url,
        spec=job.spec,
        trace_id=job.trace_id,
        **{name: getattr(job, name) for name in plain},
        **{name: getattr(job.target, name) for name in target},
    )
    insert(
        db,
        "time_job_data",
        job_id=str(job.id),
        schedule_type="interval",
        time_interval=job.trigger.interval,
        created_at=job.created_at,
        expiration_time=job.expires_at,
        next_execution_timestamp=job.next_due,
        is_active=int(job.active),
    )


@pytest.fixture
async def old_store(tmp_path: Path) -> Path:
    path = tmp_path / "store.db"

    def fill(db: sqlite3.Connection) -> None:
        insert(db, "user_data", user_address=OWNER, total_jobs=3, total_tasks=2, created_at=START, last_updated_at=START)
        for job in (RUNNING, SPENT, DELETED):
            insert_job(db, job)
        for job, state, reason in ((RUNNING, "failed", "NO_KEEPER"), (SPENT, "dispatched", "")):
            task = make_task(job, START + 10)
            insert(
                db,
                "task_data",
                task_id=str(task.id),
                job_id=str(job.id),
                chain_id=CHAIN,
                trigger_id=str(task.trigger_id),
                task_definition_id=1,
                created_at_ms=task.created_at_ms,
                trace_id=task.trace_id,
                task_status=state,
                reason=reason,
                task_error="",
                attempt=0,
                converted_arguments=task.arguments,
                task_opx_predicted_cost="0",
                task_attester_ids="[]",
                stages=json.dumps(dict(task.stages)),
                is_open=int(not reason),
            )
            insert(db, "task_counts", task_status=state, reason=reason, tasks=1)
        attempt = make_attempt(make_task(SPENT, START + 10))
        insert(
            db,
            "task_attempts",
            task_id=str(attempt.task_id),
            attempt=1,
            performer_address=attempt.performer,
            peer_id=attempt.peer_id,
            not_before=attempt.not_before,
            deadline=attempt.deadline,
            message=attempt.message,
            created_ms=attempt.created_ms,
            code="",
            detail="",
        )
        insert(db, "checkpoints", chain_id=CHAIN, block=41)
        insert(
            db, "apikeys", digest=b"\x01" * 32, masked="T", owner="o", role="user", is_active=1, rate_limit=6, created_at=START
        )
        insert(
            db,
            "keeper_data",
            chain_id=CHAIN,
            keeper_address=OWNER,
            peer_id="12D3Koo",
            version="0.1.0",
            first_seen=START,
            last_checked_in=START + 60,
            uptime=60,
        )

    async with open_database(path, MIGRATIONS[:1], durable=True) as database:
        await database.write(fill)
    return path


async def test_everything_in_it_is_there_afterwards(old_store: Path) -> None:
    async with open_store(old_store) as store:
        assert [await store.job(job.id) for job in (RUNNING, SPENT, DELETED)] == [RUNNING, SPENT, DELETED]
        failed, running = make_task(RUNNING, START + 10), make_task(SPENT, START + 10)
        assert [t.id for t in await store.recent_tasks(9)] == [running.id, failed.id]
        assert (some(await store.task(failed.id)).state, some(await store.task(failed.id)).reason) == (
            TaskState.FAILED,
            "NO_KEEPER",
        )
        [task] = await store.open_tasks([3])
        assert (task.id, task.scheduled_at, task.priority, task.observation) == (running.id, START + 10, 3, None)
        assert await store.attempts(running.id) == [make_attempt(running)]
        assert await store.checkpoint(f"hub:{CHAIN}") == 41
        assert await store.key(b"\x01" * 32) == ApiKey(b"\x01" * 32, "T", "o", "user", True, 6, START)
        assert await store.keepers() == [KeeperSeen(CHAIN, OWNER, "12D3Koo", "0.1.0", START, START + 60, 60)]
        assert await store.keeper_records() == []
        assert await store.task_counts() == {("failed", "NO_KEEPER"): 1, ("dispatched", ""): 1}
        assert await store.job_counts() == {JobStatus.SCHEDULED: 2, JobStatus.DELETED: 1}
        owner = await owner_of(store)
        assert (owner.id, owner.points, owner.total_jobs, owner.total_tasks) == (1, 0, 3, 2)


async def test_it_goes_on_as_if_nothing_had_been(old_store: Path) -> None:
    async with open_store(old_store) as store:
        await claim_all(store)
        assert await store.planned(RUNNING.shard, None, 9) == [RUNNING.planned]
        assert await store.planned(SPENT.shard, None, 9) == []
        firings = [Firing(RUNNING.id, make_task(RUNNING, second), second + 10) for second in (START + 10, START + 20)]
        assert await store.fire(firings, START, FENCES) == [Fired.KNOWN, Fired.NEW]
        assert await store.complete_job(SPENT.id, START) is None
        await certify(store, make_task(SPENT, START + 10))
        assert some(await store.job(SPENT.id)).status is JobStatus.COMPLETED
        dispatched = TaskChange(make_task(RUNNING, START + 20).id, (TaskState.DISPATCHED,), attempt=1)
        assert await store.add_attempt(make_attempt(make_task(RUNNING, START + 20)), dispatched, START) is not None
    async with open_store(old_store) as store:  # a second time there is nothing to bring up
        assert (await owner_of(store)).total_tasks == 3


async def test_its_references_hold(old_store: Path) -> None:
    async with open_store(old_store):
        pass
    with closing(sqlite3.connect(old_store, isolation_level=None)) as db:
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert "new_" not in "".join(sql for (sql,) in db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"))


@pytest.mark.parametrize("job_id", [1, 15, 16, 9_999, 10_000, 10**60 + 7, 2**256 - 1])
def test_the_last_four_digits_say_the_shard(job_id: int) -> None:
    assert int(str(job_id)[-4:]) % SHARDS == job_id % SHARDS
    assert SHARDS == 16  # the migration's, too
