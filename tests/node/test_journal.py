"""The journal: what was accepted is found again, and what was voted is never contradicted."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from consensus.messages import Verdict
from node.infra.sqlite import MEMORY, open_database
from node.journal import MIGRATIONS, Journal, Opinion
from tests.consensus import samples

DIGEST = b"\x01" * 32


async def test_an_accepted_task_is_found_after_a_restart_until_it_is_closed(tmp_path: Path) -> None:
    task = samples.task()
    async with open_database(tmp_path / "journal", MIGRATIONS, durable=True) as database:
        assert await Journal(database).accept(task, "coordinator")
        assert not await Journal(database).accept(task, "coordinator")
    async with open_database(tmp_path / "journal", MIGRATIONS, durable=True) as database:
        journal = Journal(database)
        assert await journal.open_tasks() == [(task, "coordinator")]
        await journal.close_task(task.task_id, task.authorisation.attempt, "mined")
        assert await journal.open_tasks() == []


async def test_a_verdict_stands_whatever_a_later_look_says(tmp_path: Path) -> None:
    async with open_database(tmp_path / "journal", MIGRATIONS, durable=True) as database:
        assert await Journal(database).vote(1, DIGEST, Opinion(Verdict.YES, "")) == (Verdict.YES, "")
    async with open_database(tmp_path / "journal", MIGRATIONS, durable=True) as database:
        assert await Journal(database).vote(1, DIGEST, Opinion(Verdict.NO, "WRONG_CALL")) == (Verdict.YES, "")


async def test_cannot_tell_binds_nobody(tmp_path: Path) -> None:
    async with open_database(tmp_path / "journal", MIGRATIONS, durable=True) as database:
        journal = Journal(database)
        await journal.vote(1, DIGEST, Opinion(Verdict.CANNOT_TELL, "RPC_UNREACHABLE"))
        assert await journal.vote(1, DIGEST, Opinion(Verdict.NO, "WRONG_CALL")) == (Verdict.NO, "WRONG_CALL")


async def test_an_ended_tasks_message_leaves_the_disk(tmp_path: Path) -> None:
    task = samples.task()
    async with open_database(tmp_path / "journal", MIGRATIONS, durable=True) as database:
        await Journal(database).accept(task, "coordinator")
        await Journal(database).close_task(task.task_id, task.authorisation.attempt, "done")
        assert not await Journal(database).accept(task, "coordinator")
        kept = await database.read(lambda db: db.execute("SELECT outcome, length(message) FROM task").fetchall())
        assert kept == [("done", 0)]


async def test_votes_and_ended_tasks_are_kept_by_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.journal._KEPT_VOTES", 3)
    monkeypatch.setattr("node.journal._PRUNE_EVERY", 2)
    async with open_database(MEMORY, MIGRATIONS, durable=True) as database:
        journal = Journal(database)
        for number in range(9):
            await journal.vote(number, bytes([number]) * 32, Opinion(Verdict.YES, ""))
        kept = await database.read(lambda db: db.execute("SELECT task_id FROM vote ORDER BY rowid").fetchall())
        assert kept == [("6",), ("7",), ("8",)]


async def test_a_task_that_this_release_cannot_read_stops_nothing() -> None:
    async with open_database(MEMORY, MIGRATIONS, durable=True) as database:
        journal, task = Journal(database), samples.task()

        def of_another_release(db: sqlite3.Connection) -> None:
            db.execute("INSERT INTO task (task_id, attempt, publisher, message) VALUES ('1', 1, 'x', x'ff00')")

        await database.write(of_another_release)
        await journal.accept(task, "coordinator")
        assert await journal.open_tasks() == [(task, "coordinator")]
