"""The database: durable before it returns, shared commits that fail alone, errors that say whose matter they are."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from consensus.errors import Failed, Misconfigured, Transient
from node.infra import sqlite as module
from node.infra.sqlite import MEMORY, open_database

NOTES = ["CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);"]


def add(text: str):
    return lambda db: db.execute("INSERT INTO notes (text) VALUES (?)", (text,)).lastrowid


def texts(db: sqlite3.Connection) -> list[str]:
    return [row[0] for row in db.execute("SELECT text FROM notes ORDER BY id")]


@pytest.fixture(params=["file", "memory"])
def path(request, tmp_path) -> Path | str:
    return tmp_path / "deep" / "journal.sqlite" if request.param == "file" else MEMORY


async def test_what_is_written_is_read(path):
    async with open_database(path, NOTES, durable=True) as db:
        assert await db.write(add("one")) == 1
        assert await db.write(add("two")) == 2
        assert await db.read(texts) == ["one", "two"]


async def test_a_failing_function_writes_nothing(path):
    def half(db: sqlite3.Connection) -> None:
        add("half")(db)
        raise Failed("NO")

    async with open_database(path, NOTES, durable=True) as db:
        await db.write(add("one"))
        with pytest.raises(Failed, match="NO"):
            await db.write(half)
        with pytest.raises(sqlite3.IntegrityError):
            await db.write(add("one"))
        assert await db.read(texts) == ["one"]


async def test_a_read_cannot_write(path):
    async with open_database(path, NOTES, durable=True) as db:
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            await db.read(add("sneaky"))
        await db.write(add("open"))
        assert await db.read(texts) == ["open"]


async def test_a_function_that_ends_the_transaction_is_told_so(path):
    async with open_database(path, NOTES, durable=True) as db:
        with pytest.raises(sqlite3.ProgrammingError, match="ended the transaction"):
            await db.write(lambda c: c.execute("ROLLBACK"))
        assert await db.write(add("after")) == 1


async def test_a_closed_database_refuses(path):
    async with open_database(path, NOTES, durable=True) as db:
        pass
    with pytest.raises(trio.ClosedResourceError):
        await db.read(texts)


async def test_writes_that_wait_together_share_a_commit_and_fail_alone(tmp_path, monkeypatch):
    groups: list[int] = []
    original = module._Session.write_all

    def counted(self, fns):
        groups.append(len(fns))
        return original(self, fns)

    monkeypatch.setattr(module._Session, "write_all", counted)
    entered, go = threading.Event(), threading.Event()

    def hold(db: sqlite3.Connection) -> None:
        entered.set()
        assert go.wait(10)

    outcomes: dict[str, str] = {}

    async with open_database(tmp_path / "a.sqlite", NOTES, durable=True) as db:

        async def write(text: str) -> None:
            try:
                await db.write(add(text))
                outcomes[text] = "written"
            except sqlite3.IntegrityError:
                outcomes[text] = "refused"

        await db.write(add("taken"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(db.write, hold)
            await trio.to_thread.run_sync(entered.wait)
            for text in ("a", "b", "taken", "c"):
                nursery.start_soon(write, text)
            await trio.testing.wait_all_tasks_blocked()
            go.set()
        assert sorted(await db.read(texts)) == ["a", "b", "c", "taken"]
    assert outcomes == {"a": "written", "b": "written", "c": "written", "taken": "refused"}
    assert groups == [1, 1, 4]


async def test_calls_of_both_kinds_may_wait_together(tmp_path):
    seen: list[int] = []
    async with open_database(tmp_path / "a.sqlite", NOTES, durable=False) as db:

        async def write_then_read(number: int) -> None:
            await db.write(add(str(number)))
            found = await db.read(texts)
            assert str(number) in found
            seen.append(len(found))

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(write_then_read, number)
    assert max(seen) == 50


async def test_the_event_loop_goes_on_while_the_disk_is_slow(tmp_path):
    entered, go = threading.Event(), threading.Event()

    def slow(db: sqlite3.Connection) -> str:
        entered.set()
        assert go.wait(10)
        return threading.current_thread().name

    names = []
    async with open_database(tmp_path / "slow.sqlite", NOTES, durable=True) as db, trio.open_nursery() as nursery:

        async def run() -> None:
            names.append(await db.write(slow))

        nursery.start_soon(run)
        await trio.to_thread.run_sync(entered.wait)
        await trio.testing.wait_all_tasks_blocked()
        go.set()
    assert names == ["sqlite slow.sqlite"]
    assert not [thread for thread in threading.enumerate() if thread.name == "sqlite slow.sqlite"]


async def test_a_write_once_begun_is_not_cancelled(tmp_path):
    entered, go = threading.Event(), threading.Event()

    def slow(db: sqlite3.Connection) -> int | None:
        entered.set()
        assert go.wait(10)
        return add("kept")(db)

    async with open_database(tmp_path / "a.sqlite", NOTES, durable=True) as db:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(db.write, slow)
            await trio.to_thread.run_sync(entered.wait)
            nursery.cancel_scope.cancel()
            go.set()
        assert await db.read(texts) == ["kept"]


async def test_migrations_are_applied_once_and_in_order(tmp_path):
    path = tmp_path / "a.sqlite"
    async with open_database(path, NOTES, durable=True) as db:
        await db.write(add("old"))
    script = """
    -- a comment; with a semicolon
    ALTER TABLE notes ADD COLUMN mark TEXT NOT NULL DEFAULT 'a;b';
    CREATE TRIGGER upper AFTER INSERT ON notes BEGIN UPDATE notes SET mark = 'new' WHERE id = NEW.id; END;
    """
    for _ in range(2):
        async with open_database(path, [*NOTES, script], durable=True) as db:
            rows = await db.read(lambda c: c.execute("SELECT text, mark FROM notes").fetchall())
            assert rows == [("old", "a;b")]
            versions = await db.read(lambda c: c.execute("SELECT version FROM schema_version").fetchall())
            assert versions == [(1,), (2,)]


async def test_a_failing_migration_leaves_the_schema_as_it_was(tmp_path):
    path = tmp_path / "a.sqlite"
    with pytest.raises(sqlite3.OperationalError):
        async with open_database(path, [*NOTES, "CREATE TABLE extra (id); SELECT nonsense FROM nowhere;"], durable=True):
            pass
    async with open_database(path, NOTES, durable=True) as db:
        tables = await db.read(lambda c: c.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall())
    assert ("notes",) in tables
    assert ("extra",) not in tables


async def test_a_newer_schema_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "a.sqlite"
    async with open_database(path, [*NOTES, "CREATE TABLE more (id);"], durable=True):
        pass
    with pytest.raises(Misconfigured, match="run the newer release") as caught:
        async with open_database(path, NOTES, durable=True):
            pass
    assert caught.value.key == "data_dir"


async def test_a_damaged_file_is_the_operators(tmp_path):
    path = tmp_path / "a.sqlite"
    path.write_bytes(b"this is not a database " * 100)
    with pytest.raises(Misconfigured, match="damaged"):
        async with open_database(path, NOTES, durable=True):
            pass


async def test_an_unusable_folder_is_the_operators(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Misconfigured, match=r"data_dir.*owner and rights"):
        async with open_database(tmp_path / "file" / "a.sqlite", NOTES, durable=True):
            pass


async def test_a_database_locked_by_another_process_is_transient(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BUSY_MS", 20)
    path = tmp_path / "a.sqlite"
    async with open_database(path, NOTES, durable=True) as db:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Transient) as caught:
            await db.write(add("late"))
        assert caught.value.code == "DATABASE_BUSY"
        assert await db.read(texts) == []  # readers are not held up
        other.execute("ROLLBACK")
        other.close()
        await db.write(add("now"))


async def test_a_file_that_another_process_is_making_is_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "journal.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(module.time, "sleep", lambda _: other.execute("COMMIT"))
    async with open_database(path, NOTES, durable=True) as db:
        assert await db.write(add("one")) == 1
    other.close()


async def test_a_full_disk_is_transient_and_loses_only_what_was_not_acknowledged(tmp_path):
    async with open_database(tmp_path / "a.sqlite", NOTES, durable=True) as db:
        await db.write(add("kept"))
        pages = await db.read(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
        await db.write(lambda c: c.execute(f"PRAGMA max_page_count = {pages}").fetchall())
        with pytest.raises(Transient) as caught:
            await db.write(add("x" * 100_000))
        assert caught.value.code == "DISK_FULL"
        assert await db.read(texts) == ["kept"]


async def test_the_file_is_its_owners_only(tmp_path):
    path = tmp_path / "a.sqlite"
    async with open_database(path, NOTES, durable=True):
        assert os.stat(path).st_mode & 0o777 == 0o600


def test_an_acknowledged_write_survives_sigkill(tmp_path):
    program = textwrap.dedent("""
        import os, signal, sys, trio
        from node.infra.sqlite import open_database
        async def main():
            async with open_database(sys.argv[1], ["CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)"], durable=True) as db:
                await db.write(lambda c: c.execute("INSERT INTO notes (text) VALUES ('kept')"))
                os.kill(os.getpid(), signal.SIGKILL)
        trio.run(main)
    """)
    path = tmp_path / "a.sqlite"
    root = Path(module.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program, str(path)], cwd=root, timeout=30, check=False)
    assert done.returncode == -9
    assert sqlite3.connect(path).execute("SELECT text FROM notes").fetchall() == [("kept",)]
