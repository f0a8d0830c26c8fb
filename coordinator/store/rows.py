"""Records as rows: which attribute is which column, and how each value is written."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from consensus.lifecycle import TaskState
from consensus.triggers import Interval
from coordinator.store.records import ApiKey, Attempt, Job, JobStatus, KeeperSeen, Planned, Target, Task, User


def _same(value: Any) -> Any:
    return value


def _optional(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else fn(value)


@dataclass(frozen=True, slots=True)
class Column:
    """`name` in the table, `attribute` of the record, and both ways of writing the value."""

    name: str
    attribute: str
    write: Callable[[Any], Any] = _same
    read: Callable[[Any], Any] = _same


def _plain(*names: str) -> list[Column]:
    return [Column(name, name) for name in names]


def _big(name: str, attribute: str) -> Column:
    """An integer beyond 64 bits, or none: decimal text."""
    return Column(name, attribute, _optional(str), _optional(int))


def _flag(name: str, attribute: str) -> Column:
    return Column(name, attribute, _optional(int), _optional(bool))


def _json_ids(ids: tuple[int, ...]) -> str:
    return json.dumps(ids)


class Table:
    """The SQL of one table for one kind of record."""

    def __init__(self, name: str, key: Iterable[str], columns: list[Column]) -> None:
        self.name = name
        self.columns = columns
        names = [c.name for c in columns]
        keys = list(key)
        others = [n for n in names if n not in keys]
        self.select = f"SELECT {', '.join(f'{name}.{n}' for n in names)} FROM {name}"  # noqa: S608 - our own names
        self._insert = f"INSERT INTO {name} ({', '.join(names)}) VALUES ({', '.join(f':{n}' for n in names)})"  # noqa: S608
        where = " AND ".join(f"{k} = :{k}" for k in keys)
        self._update = f"UPDATE {name} SET {', '.join(f'{n} = :{n}' for n in others)} WHERE {where}"  # noqa: S608
        self._upsert = (
            f"{self._insert} ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {', '.join(f'{n} = excluded.{n}' for n in others)}"
        )

    def row(self, record: Any) -> dict[str, Any]:
        return {c.name: c.write(getattr(record, c.attribute)) for c in self.columns}

    def attributes(self, row: Iterable[Any]) -> dict[str, Any]:
        return {c.attribute: c.read(v) for c, v in zip(self.columns, row, strict=True)}

    def insert(self, db: sqlite3.Connection, record: Any) -> None:
        db.execute(self._insert, self.row(record))

    def update(self, db: sqlite3.Connection, record: Any) -> None:
        db.execute(self._update, self.row(record))

    def upsert(self, db: sqlite3.Connection, record: Any) -> None:
        db.execute(self._upsert, self.row(record))


USERS = Table(
    "user_data",
    ["user_id"],
    [
        Column("user_id", "id"),
        Column("user_address", "address"),
        Column("email_id", "email"),
        Column("user_points", "points"),
        *_plain("total_jobs", "total_tasks", "created_at"),
        Column("last_updated_at", "updated_at"),
    ],
)

_JOB_COLUMNS = [
    _big("job_id", "id"),
    Column("user_address", "owner"),
    Column("key_owner", "key_owner"),
    Column("job_title", "title"),
    Column("task_definition_id", "definition"),
    *_plain("priority", "security"),
    _big("link_job_id", "link_job_id"),
    Column("chain_status", "chain_status"),
    _flag("custom", "custom"),
    Column("time_frame", "time_frame"),
    _flag("recurring", "recurring"),
    Column("status", "status", str, JobStatus),
    Column("job_cost_prediction", "cost_prediction"),
    _big("job_cost_actual", "cost_actual"),
    *_plain("created_at", "posted_at", "updated_at", "last_executed_at", "timezone"),
    _flag("is_imua", "is_imua"),
    Column("created_chain_id", "created_chain_id"),
    _flag("is_safe", "is_safe"),
    *_plain("safe_name", "safe_address", "spec", "trace_id"),
]

_TARGET_COLUMNS = [
    Column("target_chain_id", "chain_id"),
    Column("target_contract_address", "contract"),
    Column("target_function", "function"),
    Column("target_signature", "signature"),
    *_plain("abi", "arg_type", "arguments"),
    Column("dynamic_arguments_script_url", "script_url"),
    *_plain("language", "call", "gas_limit"),
]


class _JobTable(Table):
    """job_data holds the job and its target; the trigger stands in a table of its own kind."""

    def row(self, record: Job) -> dict[str, Any]:
        row = {c.name: c.write(getattr(record, c.attribute)) for c in _JOB_COLUMNS}
        return row | {c.name: c.write(getattr(record.target, c.attribute)) for c in _TARGET_COLUMNS}


JOBS = _JobTable("job_data", ["job_id"], [*_JOB_COLUMNS, *_TARGET_COLUMNS])
_TRIGGER = "schedule_type, time_interval, next_execution_timestamp"
SELECT_JOB = JOBS.select.replace(" FROM", f", {_TRIGGER} FROM") + " JOIN time_job_data USING (job_id)"
SELECT_PLANNED = (
    "SELECT job_id, target_chain_id, task_definition_id, time_job_data.created_at, expiration_time, trace_id,"  # noqa: S608
    f" {_TRIGGER} FROM time_job_data JOIN job_data USING (job_id)"
    " WHERE is_active = 1 AND next_execution_timestamp IS NOT NULL AND job_id > ? ORDER BY job_id LIMIT ?"
)
INSERT_TIME_JOB = (
    "INSERT INTO time_job_data VALUES (:job_id, :schedule_type, :time_interval, :created_at, :expiration_time,"
    " :next_execution_timestamp, :is_active)"
)
UPDATE_TIME_JOB = (
    "UPDATE time_job_data SET next_execution_timestamp = :next_execution_timestamp, is_active = :is_active WHERE job_id = :job_id"
)


def time_job_row(job: Job) -> dict[str, Any]:
    return {
        "job_id": str(job.id),
        "schedule_type": "interval",
        "time_interval": job.trigger.interval,
        "created_at": job.created_at,
        "expiration_time": job.expires_at,
        "next_execution_timestamp": job.next_due,
        "is_active": int(job.active),
    }


def job_of(row: tuple[Any, ...]) -> Job:
    size = len(_JOB_COLUMNS)
    job = {c.attribute: c.read(v) for c, v in zip(_JOB_COLUMNS, row[:size], strict=True)}
    target = {c.attribute: c.read(v) for c, v in zip(_TARGET_COLUMNS, row[size:-3], strict=True)}
    _kind, interval, next_due = row[-3:]
    return Job(**job, target=Target(**target), trigger=Interval(interval), next_due=next_due)


def planned_of(row: tuple[Any, ...]) -> Planned:
    job_id, chain_id, definition, created_at, expires_at, trace_id, _kind, interval, next_due = row
    return Planned(int(job_id), chain_id, definition, Interval(interval), created_at, expires_at - created_at, next_due, trace_id)


TASKS = Table(
    "task_data",
    ["task_id"],
    [
        _big("task_id", "id"),
        _big("job_id", "job_id"),
        Column("chain_id", "chain_id"),
        _big("trigger_id", "trigger_id"),
        Column("task_definition_id", "definition"),
        *_plain("created_at_ms", "trace_id"),
        Column("task_status", "state", str, TaskState),
        Column("reason", "reason"),
        Column("task_error", "detail"),
        Column("attempt", "attempt"),
        Column("converted_arguments", "arguments"),
        _big("task_opx_predicted_cost", "predicted_cost"),
        _big("task_opx_cost", "cost"),
        Column("task_number", "number"),
        Column("execution_timestamp", "executed_at"),
        Column("execution_tx_hash", "execution_tx"),
        Column("performer_address", "performer"),
        Column("task_performer_id", "performer_id"),
        Column("task_attester_ids", "attester_ids", _json_ids, lambda text: tuple(json.loads(text))),
        Column("proof_of_task", "proof"),
        _flag("is_accepted", "accepted"),
        _flag("is_successful", "successful"),
        Column("task_submission_tx_hash", "submission_tx"),
        Column("stages", "stages", lambda stages: json.dumps(dict(stages)), json.loads),
        Column("is_open", "ended", lambda ended: int(not ended)),
    ],
)


def task_of(row: tuple[Any, ...]) -> Task:
    attributes = TASKS.attributes(row)
    del attributes["ended"]
    return Task(**attributes)


ATTEMPTS = Table(
    "task_attempts",
    ["task_id", "attempt"],
    [
        _big("task_id", "task_id"),
        Column("attempt", "number"),
        Column("performer_address", "performer"),
        *_plain("peer_id", "not_before", "deadline", "message", "created_ms", "published_ms", "acknowledged_ms"),
        *_plain("ended_ms", "code", "detail"),
    ],
)

KEYS = Table(
    "apikeys",
    ["digest"],
    [*_plain("digest", "masked", "owner", "role"), _flag("is_active", "active"), *_plain("rate_limit", "created_at")],
)

KEEPERS = Table(
    "keeper_data",
    ["chain_id", "keeper_address"],
    [
        Column("chain_id", "chain_id"),
        Column("keeper_address", "address"),
        *_plain("peer_id", "version", "first_seen"),
        Column("last_checked_in", "last_seen"),
        Column("uptime", "uptime_s"),
    ],
)


def user_of(row: tuple[Any, ...]) -> User:
    return User(**USERS.attributes(row))


def attempt_of(row: tuple[Any, ...]) -> Attempt:
    return Attempt(**ATTEMPTS.attributes(row))


def key_of(row: tuple[Any, ...]) -> ApiKey:
    return ApiKey(**KEYS.attributes(row))


def keeper_of(row: tuple[Any, ...]) -> KeeperSeen:
    return KeeperSeen(**KEEPERS.attributes(row))
