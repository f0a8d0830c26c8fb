"""The store in one SQLite file: WAL, synced on every commit, one transaction a call."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from consensus.lifecycle import TaskState
from coordinator.store import rows
from coordinator.store.changes import changed, exhausted, fired, job_after
from coordinator.store.records import (
    ApiKey,
    Attempt,
    Firing,
    Job,
    JobStatus,
    KeeperSeen,
    Planned,
    Task,
    TaskChange,
    User,
)
from coordinator.store.schema import MIGRATIONS
from node.infra.sqlite import Database, open_database

R = TypeVar("R")


@asynccontextmanager
async def open_store(path: Path | str) -> AsyncIterator[SqliteStore]:
    """Opens or creates the file; `:memory:` keeps nothing. Raises `Misconfigured` for a folder that cannot be used."""
    async with open_database(path, MIGRATIONS, durable=True) as database:
        yield SqliteStore(database)


class SqliteStore:
    """Implements `coordinator.store.port.Store`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def user(self, address: bytes) -> User | None:
        return await self._db.read(lambda db: _user(db, address))

    async def add_job(self, job: Job) -> Job:
        def add(db: sqlite3.Connection) -> Job:
            if (known := _job(db, job.id)) is not None:
                return known
            at = job.posted_at
            if _user(db, job.owner) is None:
                db.execute(
                    "INSERT INTO user_data (user_address, created_at, last_updated_at) VALUES (?, ?, ?)", (job.owner, at, at)
                )
            db.execute(
                "UPDATE user_data SET total_jobs = total_jobs + 1, last_updated_at = ? WHERE user_address = ?", (at, job.owner)
            )
            rows.JOBS.insert(db, job)
            db.execute(rows.INSERT_TIME_JOB, rows.time_job_row(job))
            return job

        return await self._db.write(add)

    async def job(self, job_id: int) -> Job | None:
        return await self._db.read(lambda db: _job(db, job_id))

    async def jobs(self, *, key_owner: str, owner: bytes | None = None) -> Sequence[Job]:
        where = " WHERE key_owner = ?"
        arguments: list[str | bytes] = [key_owner]
        if owner is not None:
            where += " AND user_address = ?"
            arguments.append(owner)
        query = rows.SELECT_JOB + where + " ORDER BY posted_at, job_data.job_id"
        return await self._db.read(lambda db: _all(db, query, arguments, rows.job_of))

    async def planned(self, after: int | None, limit: int) -> Sequence[Planned]:
        start = "" if after is None else str(after)
        return await self._db.read(lambda db: _all(db, rows.SELECT_PLANNED, [start, limit], rows.planned_of))

    async def end_job(self, job_id: int, status: JobStatus, at: int) -> Job | None:
        return await self._db.write(lambda db: _end_job(db, job_id, status, at))

    async def complete_job(self, job_id: int, at: int) -> bool:
        return await self._db.write(lambda db: _complete(db, job_id, at))

    async def fire(self, firings: Sequence[Firing], at: int) -> Sequence[bool]:
        return await self._db.write(lambda db: [_fire(db, firing, at) for firing in firings])

    async def task(self, task_id: int) -> Task | None:
        return await self._db.read(lambda db: _task(db, task_id))

    async def tasks_of_job(self, job_id: int, limit: int) -> Sequence[Task]:
        query = rows.TASKS.select + " WHERE job_id = ? ORDER BY created_at_ms DESC, rowid DESC LIMIT ?"
        return (await self._db.read(lambda db: _all(db, query, [str(job_id), limit], rows.task_of)))[::-1]

    async def task_ids_of_job(self, job_id: int, limit: int) -> Sequence[int]:
        query = "SELECT task_id FROM task_data WHERE job_id = ? ORDER BY created_at_ms DESC, rowid DESC LIMIT ?"
        return (await self._db.read(lambda db: _all(db, query, [str(job_id), limit], lambda row: int(row[0]))))[::-1]

    async def open_tasks(self) -> Sequence[Task]:
        query = rows.TASKS.select + " WHERE is_open = 1 ORDER BY created_at_ms, rowid"
        return await self._db.read(lambda db: _all(db, query, [], rows.task_of))

    async def change(self, change: TaskChange, at: int) -> Task | None:
        return await self._db.write(lambda db: _change(db, change, at))

    async def task_counts(self) -> dict[tuple[str, str], int]:
        query = "SELECT task_status, reason, tasks FROM task_counts WHERE tasks > 0"
        return await self._db.read(lambda db: {(state, reason): n for state, reason, n in db.execute(query)})

    async def add_attempt(self, attempt: Attempt, change: TaskChange, at: int) -> Task | None:
        def add(db: sqlite3.Connection) -> Task | None:
            if _attempt(db, attempt.task_id, attempt.number) is not None:
                return None
            if (task := _change(db, change, at)) is not None:
                rows.ATTEMPTS.insert(db, attempt)
            return task

        return await self._db.write(add)

    async def attempts(self, task_id: int) -> Sequence[Attempt]:
        query = rows.ATTEMPTS.select + " WHERE task_id = ? ORDER BY attempt"
        return await self._db.read(lambda db: _all(db, query, [str(task_id)], rows.attempt_of))

    async def mark_published(self, task_id: int, number: int, at_ms: int) -> None:
        def mark(db: sqlite3.Connection) -> None:
            attempt, task = _attempt(db, task_id, number), _task(db, task_id)
            if attempt is None or task is None or attempt.published_ms is not None:
                return
            rows.ATTEMPTS.update(db, replace(attempt, published_ms=at_ms))
            rows.TASKS.update(db, replace(task, stages={"published": at_ms, **task.stages}))

        await self._db.write(mark)

    async def acknowledge(self, task_id: int, number: int, at_ms: int) -> Task | None:
        def mark(db: sqlite3.Connection) -> Task | None:
            attempt = _attempt(db, task_id, number)
            if attempt is None or attempt.ended_ms is not None:
                return None
            if attempt.acknowledged_ms is None:
                rows.ATTEMPTS.update(db, replace(attempt, acknowledged_ms=at_ms))
            step = TaskChange(task_id, (TaskState.ACKNOWLEDGED,), stages={"acknowledged": at_ms})
            return _change(db, step, at_ms // 1000) or _task(db, task_id)

        return await self._db.write(mark)

    async def end_attempt(self, task_id: int, number: int, code: str, detail: str, at_ms: int) -> bool:
        def end(db: sqlite3.Connection) -> bool:
            attempt = _attempt(db, task_id, number)
            if attempt is None or attempt.ended_ms is not None:
                return False
            rows.ATTEMPTS.update(db, replace(attempt, ended_ms=at_ms, code=code, detail=detail))
            return True

        return await self._db.write(end)

    async def checkpoint(self, chain_id: int) -> int | None:
        return await self._db.read(lambda db: _checkpoint(db, chain_id))

    async def record(
        self, chain_id: int, block: int, changes: Sequence[TaskChange], deleted: Sequence[int], at: int
    ) -> Sequence[Task]:
        def record(db: sqlite3.Connection) -> Sequence[Task]:
            db.execute("INSERT INTO checkpoints VALUES (?1, ?2) ON CONFLICT DO UPDATE SET block = ?2", (chain_id, block))
            for job_id in deleted:
                _end_job(db, job_id, JobStatus.DELETED, at)
            return [task for change in changes if (task := _change(db, change, at)) is not None]

        return await self._db.write(record)

    async def add_key(self, key: ApiKey) -> None:
        await self._db.write(lambda db: rows.KEYS.upsert(db, key))

    async def key(self, digest: bytes) -> ApiKey | None:
        query = rows.KEYS.select + " WHERE digest = ?"
        return await self._db.read(lambda db: _one(db, query, [digest], rows.key_of))

    async def save_keeper(self, keeper: KeeperSeen) -> None:
        await self._db.write(lambda db: rows.KEEPERS.upsert(db, keeper))

    async def keepers(self) -> Sequence[KeeperSeen]:
        query = rows.KEEPERS.select + " ORDER BY chain_id, keeper_address"
        return await self._db.read(lambda db: _all(db, query, [], rows.keeper_of))


def _one(db: sqlite3.Connection, query: str, arguments: Sequence[Any], read: Callable[[Any], R]) -> R | None:
    row = db.execute(query, arguments).fetchone()
    return None if row is None else read(row)


def _all(db: sqlite3.Connection, query: str, arguments: Sequence[Any], read: Callable[[Any], R]) -> list[R]:
    return [read(row) for row in db.execute(query, arguments)]


def _user(db: sqlite3.Connection, address: bytes) -> User | None:
    return _one(db, rows.USERS.select + " WHERE user_address = ?", [address], rows.user_of)


def _job(db: sqlite3.Connection, job_id: int) -> Job | None:
    return _one(db, rows.SELECT_JOB + " WHERE job_data.job_id = ?", [str(job_id)], rows.job_of)


def _task(db: sqlite3.Connection, task_id: int) -> Task | None:
    return _one(db, rows.TASKS.select + " WHERE task_id = ?", [str(task_id)], rows.task_of)


def _attempt(db: sqlite3.Connection, task_id: int, number: int) -> Attempt | None:
    query = rows.ATTEMPTS.select + " WHERE task_id = ? AND attempt = ?"
    return _one(db, query, [str(task_id), number], rows.attempt_of)


def _checkpoint(db: sqlite3.Connection, chain_id: int) -> int | None:
    return _one(db, "SELECT block FROM checkpoints WHERE chain_id = ?", [chain_id], lambda row: int(row[0]))


def _save_job(db: sqlite3.Connection, job: Job) -> Job:
    db.execute(
        "UPDATE job_data SET status = ?, job_cost_actual = ?, updated_at = ?, last_executed_at = ? WHERE job_id = ?",
        (job.status, str(job.cost_actual), job.updated_at, job.last_executed_at, str(job.id)),
    )
    db.execute(rows.UPDATE_TIME_JOB, rows.time_job_row(job))
    return job


def _end_job(db: sqlite3.Connection, job_id: int, status: JobStatus, at: int) -> Job | None:
    job = _job(db, job_id)
    if job is None or not job.active:
        return job
    return _save_job(db, replace(job, status=status, updated_at=at))


def _complete(db: sqlite3.Connection, job_id: int, at: int) -> bool:
    job = _job(db, job_id)
    if job is None or not exhausted(job):
        return False
    if db.execute("SELECT 1 FROM task_data WHERE job_id = ? AND is_open = 1 LIMIT 1", (str(job_id),)).fetchone():
        return False
    _save_job(db, replace(job, status=JobStatus.COMPLETED, updated_at=at))
    return True


def _fire(db: sqlite3.Connection, firing: Firing, at: int) -> bool:
    job = _job(db, firing.job_id)
    if job is None or not job.active:
        return False
    _save_job(db, fired(job, firing.next_due, at))
    task = firing.task
    if task is None or _task(db, task.id) is not None:
        return False
    rows.TASKS.insert(db, task)
    _count(db, task, 1)
    db.execute("UPDATE user_data SET total_tasks = total_tasks + 1, last_updated_at = ? WHERE user_address = ?", (at, job.owner))
    return True


def _change(db: sqlite3.Connection, change: TaskChange, at: int) -> Task | None:
    before = _task(db, change.task_id)
    after = changed(before, change) if before is not None else None
    if before is None or after is None:
        return None
    rows.TASKS.update(db, after)
    _count(db, before, -1)
    _count(db, after, 1)
    job = _job(db, after.job_id)
    if job is not None and (news := job_after(job, before, after, at)) is not job:
        _save_job(db, news)
    if after.ended:
        _complete(db, after.job_id, at)
    return after


def _count(db: sqlite3.Connection, task: Task, step: int) -> None:
    """Kept as tasks move: counting a million of them for every scrape would not do."""
    db.execute(
        "INSERT INTO task_counts VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET tasks = tasks + ?3",
        (task.state, task.reason, step),
    )
