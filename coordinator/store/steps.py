"""What the SQLite store does within a transaction: rows are read, the rules say what becomes of them, and it is written."""

from __future__ import annotations

import secrets
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import structlog

from consensus.lifecycle import TaskState
from coordinator.store import changes as rules
from coordinator.store import rows, script_steps
from coordinator.store.port import Fences
from coordinator.store.records import (
    Attempt,
    Called,
    Edge,
    Fired,
    Firing,
    Job,
    JobStatus,
    KeeperRecord,
    Planned,
    Task,
    TaskChange,
    User,
    shard_of,
)
from coordinator.store.table import Arguments, every, one

log = structlog.get_logger(__name__)

# --- reading


def user(db: sqlite3.Connection, address: bytes) -> User | None:
    return one(db, rows.SELECT_USER + " WHERE user_address = ?", [address], rows.user_of)


def job(db: sqlite3.Connection, job_id: int) -> Job | None:
    return one(db, rows.SELECT_JOB + " WHERE job_id = ?", [str(job_id)], rows.job_of)


def task(db: sqlite3.Connection, task_id: int) -> Task | None:
    return one(db, rows.TASKS.select + " WHERE task_id = ?", [str(task_id)], rows.task_of)


def attempt(db: sqlite3.Connection, task_id: int, number: int) -> Attempt | None:
    query = rows.ATTEMPTS.select + " WHERE task_id = ? AND attempt = ?"
    return one(db, query, [str(task_id), number], rows.attempt_of)


def keeper_record(db: sqlite3.Connection, chain_id: int, address: bytes) -> KeeperRecord:
    query = rows.RECORDS.select + " WHERE chain_id = ? AND keeper_address = ?"
    return one(db, query, [chain_id, address], rows.record_of) or KeeperRecord(chain_id, address)


# --- checkpoints

SAVE_CHECKPOINT = "INSERT INTO checkpoints VALUES (?, ?) ON CONFLICT DO UPDATE SET block = excluded.block"


def identity(db: sqlite3.Connection) -> int:
    db.execute("INSERT INTO checkpoints VALUES ('store', ?) ON CONFLICT DO NOTHING", [secrets.randbits(62)])
    return int(db.execute("SELECT block FROM checkpoints WHERE name = 'store'").fetchone()[0])


def save_checkpoints(db: sqlite3.Connection, blocks: Mapping[str, int], fences: Fences | None) -> None:
    if fences is not None:
        tokens = tokens_of_shards(db)
        blocks = {name: block for name, block in blocks.items() if rules.holds(fences, tokens, rules.shard_of_checkpoint(name))}
    db.executemany(SAVE_CHECKPOINT, list(blocks.items()))


def mark_caught_up(db: sqlite3.Connection, job_ids: Sequence[int], fences: Fences | None) -> None:
    if fences is not None:
        tokens = tokens_of_shards(db)
        job_ids = [job_id for job_id in job_ids if rules.holds(fences, tokens, shard_of(job_id))]
    db.executemany("UPDATE job_data SET caught_up = 1 WHERE job_id = ?", [(str(job_id),) for job_id in job_ids])


# --- jobs


def add_jobs(db: sqlite3.Connection, jobs: Sequence[Job]) -> list[Job]:
    known = [stored for each in jobs if (stored := job(db, each.id)) is not None]
    if known:
        return known
    for each in jobs:
        at = each.posted_at
        if (owner := user(db, each.owner)) is None:
            owner = User(0, each.owner, "", 0, 0, 0, at, at)
            rows.USERS.insert(db, owner)
        rows.USERS.update(db, rules.with_job(owner, each))
        rows.SPECS.insert(db, each, job_no=rows.JOBS.insert(db, each))
        if each.is_safe:
            safe = (each.owner, each.safe_address, each.safe_name, at)
            db.execute("INSERT INTO safe_addresses VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", safe)
    return list(jobs)


def planned(db: sqlite3.Connection, query: str, arguments: Arguments, limit: int) -> list[Planned]:
    """The first so many that can be read. A trigger may be valid no more (a time zone that is gone, another release's kind):
    that is this job's matter and no other's."""
    found: list[Planned] = []
    for row in db.execute(query, arguments):
        try:
            found.append(rows.planned_of(row))
        except ValueError as error:
            log.error("job_unreadable", job_id=row[0], error=str(error))  # noqa: TRY400 - the row says it all
        if len(found) == limit:
            break
    return found


def changed_jobs(db: sqlite3.Connection, after: int | None) -> tuple[int, list[int] | None]:
    oldest, newest = db.execute("SELECT coalesce(min(change_no), 1), coalesce(max(change_no), 0) FROM job_changes").fetchone()
    if after is None:
        return newest, []
    query = "SELECT job_id FROM job_changes WHERE change_no > ? GROUP BY job_id ORDER BY max(change_no)"
    return newest, every(db, query, [after], lambda row: int(row[0])) if after >= oldest - 1 else None


def move_job(db: sqlite3.Connection, after: Job) -> Job:
    """Writes how far a job is."""
    rows.JOBS.update_only(db, after, rows.HOW_FAR)
    return after


def replace_job(db: sqlite3.Connection, before: Job, after: Job) -> Job:
    """Writes all of it; open tasks keep what they execute."""
    [number] = db.execute("SELECT job_no FROM job_data WHERE job_id = ?", [str(after.id)]).fetchone()
    _keep_call(db, number, before, after)
    rows.JOBS.update(db, after)
    rows.SPECS.update(db, after, job_no=number)
    return after


_OLDEST_OPEN = "SELECT min(task_no) FROM task_data INDEXED BY open_tasks WHERE shard = ? AND is_open = 1 AND job_no = ?"


def _keep_call(db: sqlite3.Connection, number: int, before: Job, after: Job) -> None:
    [oldest] = db.execute(_OLDEST_OPEN, [before.shard, number]).fetchone()
    if oldest is None:
        db.execute("DELETE FROM former_calls WHERE job_no = ?", [number])
        return
    db.execute("DELETE FROM former_calls WHERE job_no = ? AND last_task_no < ?", [number, oldest])
    if before.called != after.called:  # several changes without a firing in between: the first one's tasks are meant
        newest = "SELECT max(task_no) FROM task_data WHERE job_no = ?"
        values = (before.spec, before.target.call, before.target.gas_limit)
        db.execute(f"INSERT OR IGNORE INTO former_calls VALUES (?, ({newest}), ?, ?, ?)", (number, number, *values))  # noqa: S608


_FORMER = """
    SELECT f.spec, f.call, f.gas_limit FROM task_data AS t JOIN former_calls AS f USING (job_no)
    WHERE t.task_id = ? AND f.last_task_no >= t.task_no ORDER BY f.last_task_no LIMIT 1
"""
_CURRENT = "SELECT spec, call, gas_limit FROM task_data JOIN job_specs USING (job_no) WHERE task_id = ?"


def called(db: sqlite3.Connection, task_id: int) -> Called | None:
    read: Callable[[Any], Called] = lambda row: Called(*row)  # noqa: E731
    return one(db, _FORMER, [str(task_id)], read) or one(db, _CURRENT, [str(task_id)], read)


def end(db: sqlite3.Connection, job_id: int, status: JobStatus, at: int) -> Job | None:
    before = job(db, job_id)
    if before is None or before.ended:
        return before
    ended = last = move_job(db, replace(before, status=status, updated_at=at))
    while last.ended and last.link_job_id != -1:
        if (waits := rules.follower(last, job(db, last.link_job_id))) is None:
            break
        last = move_job(db, rules.moved_by(last, waits, at))
    return ended


def complete(db: sqlite3.Connection, job_id: int, at: int) -> Job | None:
    query = "SELECT job_no, recurring FROM job_data WHERE job_id = ? AND is_ended = 0 AND spent = 1 AND open_tasks = 0"
    row = db.execute(query, [str(job_id)]).fetchone()
    if row is None:
        return None
    number, recurring = row
    newest = "SELECT task_status FROM task_data WHERE job_no = ? ORDER BY task_no DESC LIMIT 1"
    state = one(db, newest, [number], lambda found: TaskState(found[0]))
    return end(db, job_id, rules.outcome(bool(recurring), state), at)


EXPIRED = """
    SELECT job_id, expiration_time FROM job_data
    WHERE shard = :shard AND is_ended = 0 AND expiration_time < :at AND spent = 0 AND NOT (
        is_active = 1 AND starts_at IS NOT NULL AND (
            trigger_kind = 'time' AND next_execution_timestamp IS NOT NULL
            OR trigger_kind = 'event' AND expiration_time >= :at - :grace
        )
    )
    UNION ALL
    SELECT job_id, expiration_time FROM job_data INDEXED BY finished_jobs
    WHERE shard = :shard AND is_ended = 0 AND spent = 1 AND open_tasks = 0
    ORDER BY expiration_time, job_id LIMIT :limit
"""


def expiring(db: sqlite3.Connection, shard: int, at: int, limit: int) -> list[int]:
    arguments = {"shard": shard, "at": at, "limit": limit, "grace": rules.EVENT_GRACE_S}
    return every(db, EXPIRED, arguments, lambda row: int(row[0]))


def expire(db: sqlite3.Connection, shard: int, at: int, limit: int) -> list[int]:
    over = []
    for job_id in expiring(db, shard, at, limit):
        try:
            before = job(db, job_id)
        except ValueError as error:
            log.error("job_unreadable", job_id=str(job_id), error=str(error))  # noqa: TRY400 - the row says it all
            continue
        after = rules.expired(before, at) if before is not None else None
        if after is not None:
            move_job(db, after)
        if complete(db, job_id, at) is not None or after is not None:
            over.append(job_id)
    return over


# --- firing


class _Row(NamedTuple):
    """As much of a job as a firing needs: not its ABI, not its JobSpec."""

    number: int
    owner: bytes
    status: JobStatus
    spent: bool
    starts_at: int | None
    edge: Edge
    revision: int


FIREABLE = (
    "SELECT job_no, user_address, status, spent, starts_at, edge_number, edge_armed, revision FROM job_data WHERE job_id = ?"
)
_STEP = "next_execution_timestamp = ?, updated_at = ?, edge_number = ?, edge_armed = ?, open_tasks = open_tasks + ?"
_NEXT = f"UPDATE job_data SET {_STEP} WHERE job_no = ?"  # noqa: S608 - our own words
_NEXT_AND_STATUS = f"UPDATE job_data SET {_STEP}, status = ?, spent = ? WHERE job_no = ?"  # noqa: S608
# apart: indexes hold what the second one changes, and it is seldom needed


def _row_of(row: tuple[Any, ...]) -> _Row:
    return _Row(row[0], row[1], JobStatus(row[2]), bool(row[3]), row[4], Edge(row[5], bool(row[6])), row[7])


def tokens_of_shards(db: sqlite3.Connection) -> dict[int, int]:
    return dict(db.execute("SELECT shard, token FROM shards WHERE token IS NOT NULL").fetchall())


def fire(db: sqlite3.Connection, firings: Sequence[Firing], at: int, fences: Fences) -> list[Fired]:
    tokens = tokens_of_shards(db)
    created: list[Task] = []
    owners: Counter[bytes] = Counter()
    answers = []
    for firing in firings:
        shard = shard_of(firing.job_id)
        if not rules.holds(fences, tokens, shard):
            answers.append(Fired.FENCED)
            continue
        row = one(db, FIREABLE, [str(firing.job_id)], _row_of)
        refused = rules.refusal(row, firing)
        if row is None or refused is not None:
            answers.append(refused or Fired.INACTIVE)
            continue
        new = firing.task is not None and rows.TASKS.insert_new(db, firing.task, job_no=row.number)
        if new and firing.task is not None:
            created.append(firing.task)
            owners[row.owner] += 1
        edge = firing.edge.after if firing.edge is not None else row.edge
        step = (firing.next_due, at, edge.number, edge.armed, new)
        if firing.spent or row.status is not JobStatus.SCHEDULED:
            db.execute(_NEXT_AND_STATUS, (*step, JobStatus.SCHEDULED, firing.spent, row.number))
        else:
            db.execute(_NEXT, (*step, row.number))
        answers.append(Fired.NEW if new or firing.task is None else Fired.KNOWN)
    _count(db, created, 1)
    db.executemany(
        "UPDATE user_data SET total_tasks = total_tasks + ?, last_updated_at = ? WHERE user_address = ?",
        [(tasks, at, owner) for owner, tasks in owners.items()],
    )
    return answers


# --- tasks


def change(db: sqlite3.Connection, news: TaskChange, at: int) -> Task | None:
    before = task(db, news.task_id)
    after = rules.changed(before, news) if before is not None else None
    if before is None or after is None:
        return None
    rows.TASKS.update_only(db, after, rows.MOVES if before.ended == after.ended else rows.ENDS)
    if (before.state, before.reason) != (after.state, after.reason):
        _count(db, [before], -1)
        _count(db, [after], 1)
    if rules.touches_job(before, after):
        _tell_job(db, before, after, at)
    if (settled := rules.settlement(before, after, news)) is not None:
        _settle(db, after, settled, at)
    script_steps.note_run(db, before, after, news, at)
    if before.ended != after.ended:
        step = -1 if after.ended else 1
        db.execute("UPDATE job_data SET open_tasks = open_tasks + ? WHERE job_id = ?", (step, str(after.job_id)))
    if after.ended:
        complete(db, after.job_id, at)
    return after


def _tell_job(db: sqlite3.Connection, before: Task, after: Task, at: int) -> None:
    if (stored := job(db, after.job_id)) is not None:
        told = rules.job_after(stored, before, after, at)
        rows.JOBS.update_only(db, told, ("job_cost_actual", "last_executed_at", "updated_at", "spent"))


def _settle(db: sqlite3.Connection, settled_task: Task, settled: rules.Settlement, at: int) -> None:
    owner = "(SELECT user_address FROM job_data WHERE job_id = ?)"
    query = f"{rows.SELECT_USER} WHERE user_address = {owner}"
    if (stored := one(db, query, [str(settled_task.job_id)], rows.user_of)) is not None:
        rows.USERS.update(db, replace(stored, points=stored.points + settled.user_points, updated_at=at))
    for address, credits_ in settled.keepers.items():
        record = keeper_record(db, settled_task.chain_id, address)
        rows.RECORDS.upsert(db, rules.credited(record, credits_))


def _count(db: sqlite3.Connection, tasks: Sequence[Task], step: int) -> None:
    """Kept as tasks move: counting a million of them for every scrape would not do."""
    counts = Counter((each.state, each.reason) for each in tasks)
    db.executemany(
        "INSERT INTO task_counts VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET tasks = tasks + excluded.tasks",
        [(state, reason, step * number) for (state, reason), number in counts.items()],
    )


def published(db: sqlite3.Connection, task_id: int, number: int, at_ms: int) -> None:
    marked, of = attempt(db, task_id, number), task(db, task_id)
    if marked is None or of is None or marked.published_ms is not None:
        return
    rows.ATTEMPTS.update(db, replace(marked, published_ms=at_ms))
    rows.TASKS.update_only(db, replace(of, stages={"published": at_ms, **of.stages}), ("stages",))


def acknowledged(db: sqlite3.Connection, task_id: int, number: int, at_ms: int) -> Task | None:
    open_attempt = attempt(db, task_id, number)
    if open_attempt is None or open_attempt.ended_ms is not None:
        return None
    if open_attempt.acknowledged_ms is None:
        rows.ATTEMPTS.update(db, replace(open_attempt, acknowledged_ms=at_ms))
    step = TaskChange(task_id, (TaskState.ACKNOWLEDGED,), stages={"acknowledged": at_ms})
    return change(db, step, at_ms // 1000) or task(db, task_id)


def given_up(db: sqlite3.Connection, task_id: int, number: int, code: str, detail: str, at_ms: int, fault: bool) -> bool:
    open_attempt, of = attempt(db, task_id, number), task(db, task_id)
    if open_attempt is None or of is None or open_attempt.ended_ms is not None:
        return False
    rows.ATTEMPTS.update(db, replace(open_attempt, ended_ms=at_ms, code=code, detail=detail))
    if fault:
        record = keeper_record(db, of.chain_id, open_attempt.performer)
        rows.RECORDS.upsert(db, replace(record, failed=record.failed + 1))
    return True
