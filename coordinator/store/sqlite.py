"""The store in one SQLite file: WAL, synced on every commit, one transaction a call; several processes may share it."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from consensus.lifecycle import UNEXECUTED
from consensus.messages import Usage
from coordinator.store import changes as rules
from coordinator.store import rows, script_steps, steps
from coordinator.store.port import Fences
from coordinator.store.records import (
    SCRIPT_URLS,
    ApiKey,
    Attempt,
    Called,
    Fired,
    Firing,
    Gap,
    Job,
    JobStatus,
    KeeperRecord,
    KeeperSeen,
    Planned,
    RunCharge,
    RunPackage,
    Task,
    TaskChange,
    User,
)
from coordinator.store.schema import MIGRATIONS
from coordinator.store.table import every, one
from node.infra.sqlite import Database, open_database

_CACHE_KIB = 64 * 1024  # the indexes of some hundred thousand jobs: a firing then reads little
_WAL_PAGES = 16_384  # 64 MiB: jobs that fire often are written to the file once for many firings


@asynccontextmanager
async def open_store(path: Path | str) -> AsyncIterator[SqliteStore]:
    """Opens or creates the file; `:memory:` keeps nothing. Raises `Misconfigured` for a folder that cannot be used."""
    async with open_database(path, MIGRATIONS, durable=True) as database:
        await database.write(_tune)
        yield SqliteStore(database)


def _tune(db: sqlite3.Connection) -> None:
    db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    db.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")


class SqliteStore:
    """Implements `coordinator.store.port.Store`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    # users and jobs

    async def user(self, address: bytes) -> User | None:
        return await self._db.read(lambda db: steps.user(db, address))

    async def add_job(self, job: Job) -> Job:
        [stored] = await self.add_jobs([job])
        return stored

    async def add_jobs(self, jobs: Sequence[Job]) -> Sequence[Job]:
        return await self._db.write(lambda db: steps.add_jobs(db, jobs))

    async def job(self, job_id: int) -> Job | None:
        return await self._db.read(lambda db: steps.job(db, job_id))

    async def jobs(self, *, key_owner: str, owner: bytes | None = None) -> Sequence[Job]:
        where = " WHERE key_owner = ?"
        arguments: list[str | bytes] = [key_owner]
        if owner is not None:
            where += " AND user_address = ?"
            arguments.append(owner)
        query = rows.SELECT_JOB + where + " ORDER BY posted_at, job_id"
        return await self._db.read(lambda db: every(db, query, arguments, rows.job_of))

    async def set_email(self, address: bytes, email: str, at: int) -> User | None:
        query = "UPDATE user_data SET email_id = ?, last_updated_at = ? WHERE user_address = ?"

        def write(db: sqlite3.Connection) -> User | None:
            db.execute(query, (email, at, address))
            return steps.user(db, address)

        return await self._db.write(write)

    async def planned(self, shard: int, after: int | None, limit: int) -> Sequence[Planned]:
        place = {"after": None, "otherwise": 0} if after is None else {"after": str(after), "otherwise": _LAST}
        return await self._db.read(lambda db: steps.planned(db, rows.SELECT_PLANNED, {"shard": shard, **place}, limit))

    async def planned_job(self, job_id: int) -> Planned | None:
        found = await self._db.read(lambda db: steps.planned(db, rows.SELECT_PLANNED_JOB, [str(job_id)], 1))
        return found[0] if found else None

    async def changed_jobs(self, after: int | None) -> tuple[int, Sequence[int] | None]:
        return await self._db.read(lambda db: steps.changed_jobs(db, after))

    async def end_job(self, job_id: int, status: JobStatus, at: int) -> Job | None:
        return await self._db.write(lambda db: steps.end(db, job_id, status, at))

    async def pause_job(self, job_id: int, at: int) -> Job | None:
        def pause(db: sqlite3.Connection) -> Job | None:
            job = steps.job(db, job_id)
            after = rules.paused(job, at) if job is not None else None
            return job if after is None else steps.move_job(db, after)

        return await self._db.write(pause)

    async def resume_job(self, job_id: int, next_due: int | None, at: int) -> Job | None:
        def resume(db: sqlite3.Connection) -> Job | None:
            job = steps.job(db, job_id)
            after = rules.resumed(job, next_due, at) if job is not None else None
            if after is not None:
                steps.move_job(db, after)
            return steps.complete(db, job_id, at) or after or job

        return await self._db.write(resume)

    async def update_job(self, job: Job) -> Job | None:
        def update(db: sqlite3.Connection) -> Job | None:
            stored = steps.job(db, job.id)
            after = rules.updated(stored, job) if stored is not None else None
            return steps.replace_job(db, stored, after) if stored is not None and after is not None else None

        return await self._db.write(update)

    async def complete_job(self, job_id: int, at: int) -> Job | None:
        return await self._db.write(lambda db: steps.complete(db, job_id, at))

    async def expire_jobs(self, shard: int, at: int, limit: int) -> Sequence[int]:
        if not await self._db.read(lambda db: steps.expiring(db, shard, at, limit)):
            return []  # as nearly always: the file's one lock for writing is left to others
        return await self._db.write(lambda db: steps.expire(db, shard, at, limit))

    async def job_counts(self) -> dict[JobStatus, int]:
        query = "SELECT status, jobs FROM job_counts WHERE jobs > 0"
        return await self._db.read(lambda db: {JobStatus(status): n for status, n in db.execute(query)})

    async def script_urls(self) -> Sequence[str]:
        query = (
            "SELECT dynamic_arguments_script_url FROM job_data JOIN job_specs USING (job_no)"
            " WHERE is_ended = 0 AND task_definition_id IN (2, 4, 6, 7) AND dynamic_arguments_script_url <> ''"
            " GROUP BY dynamic_arguments_script_url ORDER BY max(job_no) DESC LIMIT ?"
        )
        return await self._db.read(lambda db: [url for (url,) in db.execute(query, [SCRIPT_URLS])])

    async def linked_to(self, job_id: int) -> Job | None:
        query = rows.SELECT_JOB + " WHERE job_id = (SELECT link_job_id FROM job_data WHERE job_id = ?)"  # noqa: S608
        return await self._db.read(lambda db: one(db, query, [str(job_id)], rows.job_of))

    # tasks

    async def fire(self, firings: Sequence[Firing], at: int, fences: Fences) -> Sequence[Fired]:
        held = dict(fences)  # as it is now: it may change before the transaction begins
        return await self._db.write(lambda db: steps.fire(db, firings, at, held))

    async def task(self, task_id: int) -> Task | None:
        return await self._db.read(lambda db: steps.task(db, task_id))

    async def called(self, task_id: int) -> Called | None:
        return await self._db.read(lambda db: steps.called(db, task_id))

    async def tasks_of_job(self, job_id: int, limit: int) -> Sequence[Task]:
        query = f"{rows.TASKS.select} {_NEWEST_OF_JOB}"
        return (await self._db.read(lambda db: every(db, query, [str(job_id), limit], rows.task_of)))[::-1]

    async def task_ids_of_job(self, job_id: int, limit: int) -> Sequence[int]:
        query = f"SELECT task_id FROM task_data {_NEWEST_OF_JOB}"  # noqa: S608 - our own words
        return (await self._db.read(lambda db: every(db, query, [str(job_id), limit], lambda row: int(row[0]))))[::-1]

    async def open_tasks(self, shards: Sequence[int] | None = None) -> Sequence[Task]:
        query, arguments = f"{rows.TASKS.select} WHERE is_open = 1", list(shards or ())
        if shards is not None:
            query += f" AND shard IN ({', '.join('?' * len(arguments))})"
        query += " ORDER BY created_at_ms, task_no"
        return await self._db.read(lambda db: every(db, query, arguments, rows.task_of))

    async def unexecuted(self, shards: Sequence[int], before_ms: int) -> Sequence[tuple[int, int]]:
        states = sorted(UNEXECUTED)
        query = (
            "SELECT task_id, priority FROM task_data WHERE is_open = 1"  # noqa: S608 - our own words
            f" AND shard IN ({', '.join('?' * len(shards))}) AND task_status IN ({', '.join('?' * len(states))})"
            " AND created_at_ms <= ? ORDER BY priority, created_at_ms, task_no"
        )
        arguments = [*shards, *states, before_ms]
        return await self._db.read(lambda db: every(db, query, arguments, lambda row: (int(row[0]), row[1])))

    async def recent_tasks(self, limit: int) -> Sequence[Task]:
        query = rows.TASKS.select + " ORDER BY task_no DESC LIMIT ?"
        return await self._db.read(lambda db: every(db, query, [limit], rows.task_of))

    async def change(self, change: TaskChange, at: int) -> Task | None:
        return await self._db.write(lambda db: steps.change(db, change, at))

    async def task_counts(self) -> dict[tuple[str, str], int]:
        query = "SELECT task_status, reason, tasks FROM task_counts WHERE tasks > 0"
        return await self._db.read(lambda db: {(state, reason): n for state, reason, n in db.execute(query)})

    # attempts: the outbox

    async def add_attempt(self, attempt: Attempt, change: TaskChange, at: int) -> Task | None:
        def add(db: sqlite3.Connection) -> Task | None:
            if steps.attempt(db, attempt.task_id, attempt.number) is not None:
                return None
            if (task := steps.change(db, change, at)) is not None:
                rows.ATTEMPTS.insert(db, attempt)
            return task

        return await self._db.write(add)

    async def attempts(self, task_id: int) -> Sequence[Attempt]:
        query = rows.ATTEMPTS.select + " WHERE task_id = ? ORDER BY attempt"
        return await self._db.read(lambda db: every(db, query, [str(task_id)], rows.attempt_of))

    async def mark_published(self, task_id: int, number: int, at_ms: int) -> None:
        await self._db.write(lambda db: steps.published(db, task_id, number, at_ms))

    async def acknowledge(self, task_id: int, number: int, at_ms: int) -> Task | None:
        return await self._db.write(lambda db: steps.acknowledged(db, task_id, number, at_ms))

    async def end_attempt(self, task_id: int, number: int, code: str, detail: str, at_ms: int, *, fault: bool = False) -> bool:
        return await self._db.write(lambda db: steps.given_up(db, task_id, number, code, detail, at_ms, fault))

    # chain

    async def identity(self) -> int:
        return await self._db.write(steps.identity)

    async def checkpoint(self, name: str) -> int | None:
        query = "SELECT block FROM checkpoints WHERE name = ?"
        return await self._db.read(lambda db: one(db, query, [name], lambda row: int(row[0])))

    async def save_checkpoints(self, blocks: Mapping[str, int], fences: Fences | None = None) -> None:
        saved, held = dict(blocks), None if fences is None else dict(fences)
        await self._db.write(lambda db: steps.save_checkpoints(db, saved, held))

    async def mark_caught_up(self, job_ids: Sequence[int], fences: Fences | None = None) -> None:
        ids, held = list(job_ids), None if fences is None else dict(fences)
        await self._db.write(lambda db: steps.mark_caught_up(db, ids, held))

    async def record(
        self, chain_id: int, block: int, changes: Sequence[TaskChange], deleted: Sequence[int], at: int
    ) -> Sequence[Task]:
        def record(db: sqlite3.Connection) -> Sequence[Task]:
            db.execute(steps.SAVE_CHECKPOINT, (f"hub:{chain_id}", block))
            for job_id in deleted:
                steps.end(db, job_id, JobStatus.DELETED, at)
            return [task for change in changes if (task := steps.change(db, change, at)) is not None]

        return await self._db.write(record)

    # scripts

    async def storage(self, job_id: int) -> str:
        return await self._db.read(lambda db: rules.storage_text(script_steps.storage(db, job_id)))

    async def add_package(self, package: RunPackage) -> None:
        await self._db.write(lambda db: script_steps.add_package(db, package))

    async def packages(self, task_id: int) -> Sequence[RunPackage]:
        query = rows.PACKAGES.select + " WHERE task_id = ? ORDER BY attempt"
        return await self._db.read(lambda db: every(db, query, [str(task_id)], rows.package_of))

    async def drop_packages(self, task_id: int) -> None:
        query = "DELETE FROM run_packages WHERE task_id = ?"
        await self._db.write(lambda db: _write_many(db, query, [(str(task_id),)]))

    async def tasks_with_packages(self) -> Sequence[int]:
        query = "SELECT task_id FROM run_packages GROUP BY task_id ORDER BY min(heard_at), min(rowid)"
        return await self._db.read(lambda db: every(db, query, [], lambda row: int(row[0])))

    async def run_charges(self, chain_id: int, limit: int) -> Sequence[RunCharge]:
        query = rows.CHARGES.select + " WHERE chain_id = ? ORDER BY charge_no LIMIT ?"
        return await self._db.read(lambda db: every(db, query, [chain_id, limit], rows.charge_of))

    async def usage(self, script: str) -> Usage | None:
        return await self._db.read(lambda db: script_steps.usage(db, script))

    async def add_usage(self, script: str, latest: Usage) -> None:
        await self._db.write(lambda db: script_steps.add_usage(db, script, latest))

    async def safe_addresses(self, owner: bytes) -> Sequence[tuple[str, str, int]]:
        query = "SELECT safe_address, safe_name, created_at FROM safe_addresses WHERE user_address = ? ORDER BY created_at, 1"
        return await self._db.read(lambda db: every(db, query, [owner], lambda row: (row[0], row[1], row[2])))

    # keys and keepers

    async def add_key(self, key: ApiKey) -> None:
        await self._db.write(lambda db: rows.KEYS.upsert(db, key))

    async def key(self, digest: bytes) -> ApiKey | None:
        query = rows.KEYS.select + " WHERE digest = ?"
        return await self._db.read(lambda db: one(db, query, [digest], rows.key_of))

    async def save_keeper(self, keeper: KeeperSeen) -> None:
        await self._db.write(lambda db: rows.KEEPERS.upsert(db, keeper))

    async def keepers(self) -> Sequence[KeeperSeen]:
        query = rows.KEEPERS.select + " WHERE first_seen IS NOT NULL ORDER BY chain_id, keeper_address"
        return await self._db.read(lambda db: every(db, query, [], rows.keeper_of))

    async def keeper_records(self) -> Sequence[KeeperRecord]:
        query = rows.RECORDS.select + " WHERE is_recorded = 1 ORDER BY chain_id, keeper_address"
        return await self._db.read(lambda db: every(db, query, [], rows.record_of))

    async def save_keeper_form(self, record: KeeperRecord) -> None:
        def save(db: sqlite3.Connection) -> None:
            stored = steps.keeper_record(db, record.chain_id, record.address)
            rows.RECORDS.upsert(db, rules.named(stored, record))

        await self._db.write(save)

    # shards

    async def claim_shard(self, shard: int, token: int, at: int) -> bool:
        query = (
            "INSERT INTO shards (shard, token, claimed_at) VALUES (?, ?, ?) ON CONFLICT DO UPDATE"
            " SET token = excluded.token, claimed_at = excluded.claimed_at WHERE coalesce(token, 0) <= excluded.token"
        )
        return await self._db.write(lambda db: db.execute(query, (shard, token, at)).rowcount == 1)

    async def touch_shards(self, shards: Sequence[int], at: int) -> None:
        query = (
            "INSERT INTO shards (shard, watched_at) VALUES (?, ?) ON CONFLICT DO UPDATE"
            " SET watched_at = max(coalesce(watched_at, 0), excluded.watched_at)"
        )
        await self._db.write(lambda db: _write_many(db, query, [(shard, at) for shard in shards]))

    async def watched_at(self, shard: int) -> int | None:
        query = "SELECT watched_at FROM shards WHERE shard = ?"
        return await self._db.read(lambda db: one(db, query, [shard], lambda row: row[0]))

    # gaps and alerts

    async def add_gap(self, gap: Gap) -> None:
        def add(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO gaps VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET ended = max(ended, excluded.ended)",
                (gap.scope, gap.began, gap.ended),
            )
            db.execute("DELETE FROM gaps WHERE ended < ?", [rules.gap_horizon(gap)])
            db.execute(_DROP_GAPS, [rules.MAX_GAPS])

        await self._db.write(add)

    async def gaps(self, scopes: Sequence[str], since: int) -> Sequence[Gap]:
        query = (
            f"SELECT scope, began, ended FROM gaps WHERE scope IN ({', '.join('?' * len(scopes))}) AND ended > ?"  # noqa: S608
            " ORDER BY ended DESC, began DESC, scope DESC LIMIT ?"
        )
        arguments = [*scopes, since, rules.GAPS_SHOWN]
        return (await self._db.read(lambda db: every(db, query, arguments, rows.gap_of)))[::-1]

    async def open_alert(self, subject: str, text: str, at: int) -> bool:
        query = "INSERT INTO alerts VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
        return await self._db.write(lambda db: db.execute(query, (subject, text, at)).rowcount == 1)

    async def close_alert(self, subject: str) -> int | None:
        query = "DELETE FROM alerts WHERE subject = ? RETURNING since"
        return await self._db.write(lambda db: next((since for (since,) in db.execute(query, [subject]).fetchall()), None))

    async def alerts(self) -> Mapping[str, int]:
        return await self._db.read(lambda db: dict(db.execute("SELECT subject, since FROM alerts").fetchall()))


_LAST = 2**63 - 1  # what comes after a job that nobody knows: nothing
_NEWEST_OF_JOB = "WHERE job_no = (SELECT job_no FROM job_data WHERE job_id = ?) ORDER BY task_no DESC LIMIT ?"
_DROP_GAPS = (
    "DELETE FROM gaps WHERE (scope, began) IN"
    " (SELECT scope, began FROM gaps ORDER BY ended DESC, began DESC, scope DESC LIMIT -1 OFFSET ?)"
)


def _write_many(db: sqlite3.Connection, query: str, arguments: Sequence[tuple[Any, ...]]) -> None:
    db.executemany(query, arguments)
