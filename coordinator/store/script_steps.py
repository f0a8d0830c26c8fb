"""What the SQLite store does of scripts within a transaction: a job's storage, packages, runs to be charged, what runs used."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from consensus.messages import Usage
from coordinator.store import changes as rules
from coordinator.store import rows
from coordinator.store.records import RunCharge, RunPackage, Task, TaskChange
from coordinator.store.table import one


def note_run(db: sqlite3.Connection, before: Task, after: Task, change: TaskChange, at: int) -> None:
    """What a task's step means for its job's storage, and for what waits to be charged."""
    if rules.stores(before, after, change):
        _store(db, after.job_id, change.storage or {})
    if change.charge and after.cost is None:
        rows.CHARGES.upsert(db, RunCharge(after.id, after.chain_id, change.charge, at))
    elif after.cost is not None and before.cost is None:
        db.execute("DELETE FROM run_charges WHERE task_id = ?", [str(after.id)])


def storage(db: sqlite3.Connection, job_id: int) -> dict[str, str]:
    return dict(db.execute("SELECT key, value FROM script_storage WHERE job_id = ?", [str(job_id)]).fetchall())


def _store(db: sqlite3.Connection, job_id: int, updates: Mapping[str, str | None]) -> None:
    before = storage(db, job_id)
    after = rules.stored(before, updates)
    gone = [(str(job_id), key) for key in before if key not in after]
    db.executemany("DELETE FROM script_storage WHERE job_id = ? AND key = ?", gone)
    db.executemany(
        "INSERT INTO script_storage VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
        [(str(job_id), key, value) for key, value in after.items() if before.get(key) != value],
    )


def add_package(db: sqlite3.Connection, package: RunPackage) -> None:
    if not rows.PACKAGES.insert_new(db, package):
        query = "UPDATE run_packages SET contradicted = 1 WHERE task_id = ? AND attempt = ? AND package <> ?"
        db.execute(query, (str(package.task_id), package.attempt, package.package))
        return
    db.execute("DELETE FROM run_packages WHERE heard_at < ?", [package.heard_at - rules.PACKAGE_DAYS * 86_400])
    surplus = "SELECT rowid FROM run_packages ORDER BY heard_at DESC, rowid DESC LIMIT -1 OFFSET ?"
    db.execute(f"DELETE FROM run_packages WHERE rowid IN ({surplus})", [rules.MAX_PACKAGES])  # noqa: S608 - our own words


def usage(db: sqlite3.Connection, script: str) -> Usage | None:
    query = "SELECT cpu_ms, wall_ms, peak_kib, transferred FROM script_usage WHERE script = ?"
    return one(db, query, [script], lambda row: Usage(*row))


def add_usage(db: sqlite3.Connection, script: str, latest: Usage) -> None:
    after = rules.smoothed(usage(db, script), latest)
    values = (script, after.cpu_ms, after.wall_ms, after.peak_kib, after.transferred)
    db.execute("INSERT OR REPLACE INTO script_usage VALUES (?, ?, ?, ?, ?)", values)
