"""What this keeper took on, voted and sent: on disk before it leaves, so that a restart neither forgets nor contradicts."""

from __future__ import annotations

import sqlite3
from enum import StrEnum
from typing import NamedTuple

import structlog

from consensus.errors import Reject
from consensus.messages import Task, Verdict
from node.decisions import Decision
from node.infra.sqlite import Database

_log = structlog.get_logger(__name__)

MIGRATIONS = (
    """
    CREATE TABLE task (
        task_id TEXT NOT NULL, attempt INTEGER NOT NULL, publisher TEXT NOT NULL, message BLOB NOT NULL,
        outcome TEXT NOT NULL DEFAULT '', PRIMARY KEY (task_id, attempt)
    );
    CREATE INDEX task_open ON task (outcome) WHERE outcome = '';
    CREATE TABLE vote (
        execution BLOB NOT NULL PRIMARY KEY, task_id TEXT NOT NULL, verdict INTEGER NOT NULL, reason TEXT NOT NULL
    );
    """,
    """
    ALTER TABLE task ADD COLUMN decision BLOB NOT NULL DEFAULT x'';
    ALTER TABLE task ADD COLUMN reported INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE vote ADD COLUMN subject TEXT NOT NULL DEFAULT 'execution';
    CREATE INDEX vote_task ON vote (task_id);
    """,
)


_KEPT_VOTES = 200_000
"""Newest first: two a second for longer than a package is of interest (`rules.MAX_ATTESTATION`). About 40 MB."""
_KEPT_TASKS = 10_000
"""Ended attempts whose outcome is kept; their messages are not."""
_PRUNE_EVERY = 1024


class Accepted(NamedTuple):
    """A task this keeper acknowledged, the peer that published it (where its answers go), and what it decided to do.

    None for one that an earlier release took on, which knew only calls that follow from the task itself.
    """

    task: Task
    publisher: str
    decision: Decision | None


class Subject(StrEnum):
    """What a vote is about."""

    EXECUTION = "execution"
    RUN = "run"
    """Of a task that ended without a transaction."""


class Opinion(NamedTuple):
    """A verdict on one execution and its reason code; empty for a plain yes."""

    verdict: Verdict
    reason: str


class Journal:
    """Durable memory over one SQLite file; every method returns once the disk has it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._writes = 0

    async def accept(self, task: Task, publisher: str, decision: Decision) -> bool:
        """Takes a task on, with what will be done about it; False when this attempt was taken before: that decision stands."""
        row = (str(task.task_id), task.authorisation.attempt, publisher, task.encode(), decision.encode(), not decision.calls)
        insert = "INSERT OR IGNORE INTO task (task_id, attempt, publisher, message, decision, reported) VALUES (?, ?, ?, ?, ?, ?)"

        def write(db: sqlite3.Connection) -> bool:
            return db.execute(insert, row).rowcount == 1

        return await self._database.write(write)

    async def reported(self, task_id: int) -> bool:
        """Whether this keeper has decided, in any attempt, that no transaction follows."""
        query = "SELECT 1 FROM task WHERE task_id = ? AND reported = 1"
        return await self._database.read(lambda db: db.execute(query, (str(task_id),)).fetchone() is not None)

    async def close_task(self, task_id: int, attempt: int, outcome: str) -> None:
        """Notes how an attempt ended; it is not picked up again after a restart."""

        def write(db: sqlite3.Connection) -> None:
            ended = (outcome, str(task_id), attempt)
            db.execute("UPDATE task SET outcome = ?, message = x'', decision = x'' WHERE task_id = ? AND attempt = ?", ended)
            self._prune(db)

        await self._database.write(write)

    async def outcome(self, task_id: int, attempt: int) -> str:
        """How an attempt that was taken on has ended; '' when it has not, or was never taken on."""
        query = "SELECT outcome FROM task WHERE task_id = ? AND attempt = ?"

        def read(db: sqlite3.Connection) -> str:
            row = db.execute(query, (str(task_id), attempt)).fetchone()
            return row[0] if row is not None else ""

        return await self._database.read(read)

    async def open_tasks(self) -> list[Accepted]:
        """Acknowledged and not ended: what a restart goes on with. What this release cannot read is left to the one that can."""

        def read(db: sqlite3.Connection) -> list[tuple[bytes, str, bytes]]:
            return db.execute("SELECT message, publisher, decision FROM task WHERE outcome = '' ORDER BY rowid").fetchall()

        accepted = []
        for message, publisher, decision in await self._database.read(read):
            try:
                accepted.append(Accepted(Task.decode(message), publisher, Decision.decode(decision) if decision else None))
            except Reject as error:
                _log.warning("journalled task not readable", code=error.code, detail=error.detail)
        return accepted

    async def vote(self, task_id: int, digest: bytes, opinion: Opinion, subject: Subject = Subject.EXECUTION) -> Opinion:
        """Records the verdict on an execution or a run, or returns the one recorded before: a keeper never contradicts itself.

        `cannot_tell` is no verdict to be bound by: a later yes or no replaces it. A task has executed, or ended without a
        transaction: who has said yes to one says nothing of the other any more (OTHER_OUTCOME).
        """

        def write(db: sqlite3.Connection) -> Opinion:
            row = db.execute("SELECT verdict, reason FROM vote WHERE execution = ?", (digest,)).fetchone()
            if row is not None and row[0] != Verdict.CANNOT_TELL:
                return Opinion(Verdict(row[0]), row[1])
            said = opinion
            if said.verdict is Verdict.YES:
                other = "SELECT 1 FROM vote WHERE task_id = ? AND verdict = ? AND subject <> ?"
                if db.execute(other, (str(task_id), int(Verdict.YES), str(subject))).fetchone() is not None:
                    said = Opinion(Verdict.CANNOT_TELL, "OTHER_OUTCOME")
            db.execute(
                "INSERT OR REPLACE INTO vote (execution, task_id, verdict, reason, subject) VALUES (?, ?, ?, ?, ?)",
                (digest, str(task_id), int(said.verdict), said.reason, str(subject)),
            )
            self._prune(db)
            return said

        return await self._database.write(write)

    def _prune(self, db: sqlite3.Connection) -> None:
        """Now and then, and first after a start: what nobody will ask for again must not fill the disk."""
        self._writes += 1
        if self._writes % _PRUNE_EVERY == 1:
            db.execute("DELETE FROM vote WHERE rowid <= (SELECT max(rowid) FROM vote) - ?", (_KEPT_VOTES,))
            db.execute("DELETE FROM task WHERE outcome <> '' AND rowid <= (SELECT max(rowid) FROM task) - ?", (_KEPT_TASKS,))
