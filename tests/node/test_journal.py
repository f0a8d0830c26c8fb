"""The journal: what was accepted is found again, and what was voted is never contradicted."""

from __future__ import annotations

from pathlib import Path

from consensus.messages import Verdict
from node.infra.sqlite import open_database
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
