"""The journal: what was accepted is found again, and what was voted is never contradicted."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from consensus.messages import Uint256, Verdict
from node.decisions import Decision
from node.infra.sqlite import MEMORY, open_database
from node.journal import MIGRATIONS, Journal, Opinion, Subject
from tests.consensus import samples

DIGEST = b"\x01" * 32
DECISION = Decision(fee=Uint256(7), run=samples.RUN, target=b"\x55" * 20, call=samples.CALL)
DECLINED = Decision(fee=Uint256(7), run=samples.RUN, code="SCRIPT_DECLINED", detail="not today")


async def test_an_accepted_task_is_found_after_a_restart_until_it_is_closed(tmp_path: Path) -> None:
    task = samples.task()
    async with open_database(tmp_path / "journal", MIGRATIONS, durable=True) as database:
        assert await Journal(database).accept(task, "coordinator", DECISION)
        assert not await Journal(database).accept(task, "coordinator", DECISION)
    async with open_database(tmp_path / "journal", MIGRATIONS, durable=True) as database:
        journal = Journal(database)
        assert await journal.open_tasks() == [(task, "coordinator", DECISION)]
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
        await Journal(database).accept(task, "coordinator", DECISION)
        await Journal(database).close_task(task.task_id, task.authorisation.attempt, "done")
        assert not await Journal(database).accept(task, "coordinator", DECISION)
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
        await journal.accept(task, "coordinator", DECISION)
        assert await journal.open_tasks() == [(task, "coordinator", DECISION)]


async def test_the_first_decision_on_an_attempt_stands() -> None:
    task = samples.task()
    async with open_database(MEMORY, MIGRATIONS, durable=True) as database:
        journal = Journal(database)
        assert await journal.accept(task, "coordinator", DECISION)
        assert not await journal.accept(task, "coordinator", DECLINED)
        assert await journal.open_tasks() == [(task, "coordinator", DECISION)]
        assert not await journal.reported(task.task_id)


async def test_that_no_transaction_follows_is_known_of_all_attempts_even_when_they_have_ended() -> None:
    first = samples.script_task(attempt=1)
    async with open_database(MEMORY, MIGRATIONS, durable=True) as database:
        journal = Journal(database)
        await journal.accept(first, "coordinator", DECLINED)
        assert await journal.open_tasks() == [(first, "coordinator", DECLINED)]
        await journal.close_task(first.task_id, 1, "SCRIPT_DECLINED")
        assert await journal.reported(first.task_id)
        assert not await journal.reported(first.task_id + 1)


async def test_a_task_of_a_former_release_has_no_decision(tmp_path: Path) -> None:
    task = samples.task()

    def formerly(db: sqlite3.Connection) -> None:
        row = (str(task.task_id), 2, "coordinator", task.encode())
        db.execute("INSERT INTO task (task_id, attempt, publisher, message) VALUES (?, ?, ?, ?)", row)

    async with open_database(tmp_path / "journal", MIGRATIONS[:1], durable=True) as database:
        await database.write(formerly)
    async with open_database(tmp_path / "journal", MIGRATIONS, durable=True) as database:
        assert await Journal(database).open_tasks() == [(task, "coordinator", None)]


@pytest.mark.parametrize(("first", "then"), [(Subject.EXECUTION, Subject.RUN), (Subject.RUN, Subject.EXECUTION)])
async def test_nobody_says_yes_to_an_execution_and_to_its_absence(first: Subject, then: Subject) -> None:
    yes, other = Opinion(Verdict.YES, ""), b"\x02" * 32
    async with open_database(MEMORY, MIGRATIONS, durable=True) as database:
        journal = Journal(database)
        assert await journal.vote(1, DIGEST, yes, first) == yes
        assert await journal.vote(1, other, yes, then) == (Verdict.CANNOT_TELL, "OTHER_OUTCOME")
        assert await journal.vote(1, other, Opinion(Verdict.NO, "WRONG_FEE"), then) == (Verdict.NO, "WRONG_FEE")
        assert await journal.vote(2, b"\x03" * 32, yes, then) == yes


async def test_two_executions_of_one_task_are_no_contradiction() -> None:
    yes = Opinion(Verdict.YES, "")  # a reorganisation executed it anew
    async with open_database(MEMORY, MIGRATIONS, durable=True) as database:
        journal = Journal(database)
        assert [await journal.vote(1, bytes([i]) * 32, yes) for i in (1, 2)] == [yes, yes]
