"""One durable SQLite connection in a worker thread of its own, so that a disk's sync never stops the event loop."""

from __future__ import annotations

import os
import queue
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import outcome
import trio

from consensus.errors import Misconfigured, Transient

T = TypeVar("T")

MEMORY = ":memory:"
"""A database without a file or a thread: its calls take microseconds and run inline, which keeps virtual clocks exact."""

_BUSY_MS = 5_000  # another process's write lasts milliseconds; five seconds mean that it hangs
_BUSY_PAUSE_S = 0.02
_GROUP = 64  # waiting writes that share one sync; bounds how long the first of them waits for the last


class Database(Protocol):
    """Functions get the connection inside a transaction and run on the worker thread; they must not commit, and must return
    plain values: never the connection or a cursor.

    Raises `Transient` (`DATABASE_BUSY`, `DISK_FULL`, `DATABASE_IO`) and `Misconfigured` (`data_dir`) for what SQLite
    reports; `sqlite3.IntegrityError` and whatever `fn` itself raises come through unchanged, with nothing written.
    Once begun a call is not cancelled: its outcome is known when it returns.
    """

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `fn` on one consistent snapshot; it cannot write."""
        ...

    async def write(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `fn`, commits, and returns when the commit is as durable as the database was opened to be.

        Writes that wait together share one commit; each still succeeds or fails alone.
        """
        ...


@asynccontextmanager
async def open_database(path: Path | str, migrations: Sequence[str], *, durable: bool) -> AsyncIterator[Database]:
    """Opens or creates `path`, applying the `migrations` it has not seen, each in a transaction of its own.

    `durable` syncs every commit to disk (a journal); without it a power cut, not a killed process, may lose the last ones.
    A migration is SQL, never edited once released; its place in the sequence is its version.
    """
    inline = str(path) == MEMORY
    worker = _Inline() if inline else _Worker(str(path))
    try:
        await worker.run(lambda: worker.open(str(path), migrations, durable))
        yield worker
    finally:
        with trio.CancelScope(shield=True):
            await worker.close()


class _Session:
    """The connection and what may be done with it; every method runs on the one thread that owns it."""

    connection: sqlite3.Connection | None = None

    def open(self, path: str, migrations: Sequence[str], durable: bool) -> None:
        if path != MEMORY:
            try:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            except OSError as error:
                raise _unusable_folder(str(error.strerror)) from error
        with _translated():
            db = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_MS / 1000, check_same_thread=False)
            self.connection = db
            _write_ahead(db)
            db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            db.execute("PRAGMA foreign_keys = ON")
            _migrate(db, migrations)

    def shut(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def read_one(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        db = self._opened()
        with _translated():
            db.execute("PRAGMA query_only = ON")
            try:
                with _transaction(db, "BEGIN"):
                    return fn(db)
            finally:
                db.execute("PRAGMA query_only = OFF")

    def write_all(self, fns: Sequence[Callable[[sqlite3.Connection], Any]]) -> list[outcome.Outcome[Any]]:
        """One transaction, one savepoint a function, one commit. Raises when the transaction as a whole is lost."""
        db = self._opened()
        outcomes: list[outcome.Outcome[Any]] = []
        with _translated(), _transaction(db, "BEGIN IMMEDIATE"):
            for fn in fns:
                outcomes.append(outcome.capture(self._write_one, db, fn))
                if not db.in_transaction:  # a full disk or a damaged page rolls back all of it
                    outcomes[-1].unwrap()  # raises what did it
        return outcomes

    @staticmethod
    def _write_one(db: sqlite3.Connection, fn: Callable[[sqlite3.Connection], T]) -> T:
        with _translated():
            db.execute("SAVEPOINT one")
            try:
                result = fn(db)
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK TO one")
                    db.execute("RELEASE one")
                raise
            if not db.in_transaction:
                raise sqlite3.ProgrammingError("a function given to write() ended the transaction")
            db.execute("RELEASE one")
            return result

    def _opened(self) -> sqlite3.Connection:
        if self.connection is None:
            raise trio.ClosedResourceError("the database is closed")
        return self.connection


class _Inline(_Session):
    """For `MEMORY`: nothing can block, so nothing leaves the event loop's thread."""

    async def run(self, fn: Callable[[], T]) -> T:
        return fn()

    async def close(self) -> None:
        self.shut()

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        await trio.lowlevel.checkpoint()
        return self.read_one(fn)

    async def write(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        await trio.lowlevel.checkpoint()
        [result] = self.write_all([fn])
        return result.unwrap()  # type: ignore[no-any-return]


@dataclass(slots=True)
class _Call:
    fn: Callable[[Any], Any]
    kind: str  # "write", "read" or "run"
    task: trio.lowlevel.Task = field(default_factory=trio.lowlevel.current_task)
    token: trio.lowlevel.TrioToken = field(default_factory=trio.lowlevel.current_trio_token)

    def answer(self, result: outcome.Outcome[Any]) -> None:
        with suppress(trio.RunFinishedError):
            self.token.run_sync_soon(trio.lowlevel.reschedule, self.task, outcome.Value(result))


class _Worker(_Session):
    def __init__(self, path: str) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()  # each entry is a waiting task: bounded by them
        self._closed = False
        self._thread = threading.Thread(target=self._main, name=f"sqlite {Path(path).name}", daemon=True)
        self._thread.start()

    async def run(self, fn: Callable[[], T]) -> T:
        return await self._call(lambda _: fn(), "run")

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        return await self._call(fn, "read")

    async def write(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        return await self._call(fn, "write")

    async def close(self) -> None:
        """What was asked before still happens."""
        self._closed = True
        self._calls.put(None)
        await trio.to_thread.run_sync(self._thread.join)

    async def _call(self, fn: Callable[[Any], T], kind: str) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closed:
            raise trio.ClosedResourceError("the database is closed")
        self._calls.put(_Call(fn, kind))
        result: outcome.Outcome[T] = await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        return result.unwrap()

    def _main(self) -> None:
        held: _Call | None = None
        try:
            while (call := held or self._calls.get()) is not None:
                held = None
                if call.kind != "write":
                    call.answer(outcome.capture(self.read_one if call.kind == "read" else _plain, call.fn))
                    continue
                group = [call]
                while len(group) < _GROUP and not self._calls.empty():
                    following = self._calls.get()
                    if following is None or following.kind != "write":
                        held = following
                        if following is None:
                            self._calls.put(None)
                        break
                    group.append(following)
                written = outcome.capture(self.write_all, [each.fn for each in group])
                for index, each in enumerate(group):
                    each.answer(outcome.Error(written.error) if isinstance(written, outcome.Error) else written.value[index])
        finally:
            self.shut()


def _plain(fn: Callable[[Any], T]) -> T:
    return fn(None)


@contextmanager
def _transaction(db: sqlite3.Connection, begin: str) -> Iterator[None]:
    """BEGIN ... COMMIT, or ROLLBACK; sqlite3's own context manager begins nothing."""
    db.execute(begin)
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


@contextmanager
def _translated() -> Iterator[None]:
    """Turns what SQLite reports into whose matter it is."""
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise
    except sqlite3.Error as error:
        match getattr(error, "sqlite_errorcode", 0) & 0xFF:  # the low byte is the primary code, the rest refines it
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                raise Transient("DATABASE_BUSY", str(error)) from error
            case sqlite3.SQLITE_FULL:
                raise Transient("DISK_FULL", str(error)) from error
            case sqlite3.SQLITE_IOERR:
                raise Transient("DATABASE_IO", str(error)) from error
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                raise Misconfigured("data_dir", f"the database is damaged ({error}): restore a backup or move it away") from error
            case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
                raise _unusable_folder(str(error)) from error
        raise


def _unusable_folder(why: str) -> Misconfigured:
    return Misconfigured("data_dir", f"cannot open the database ({why}): check the folder's owner and rights")


def _write_ahead(db: sqlite3.Connection) -> None:
    """For this SQLite's own patience does not count: of two processes that make a file together the second is refused at once."""
    deadline = time.monotonic() + _BUSY_MS / 1000
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(_BUSY_PAUSE_S)  # of the worker's thread
        else:
            return


def _migrate(db: sqlite3.Connection, migrations: Sequence[str]) -> None:
    with _transaction(db, "BEGIN IMMEDIATE"):
        db.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY, applied_at TEXT NOT NULL)")
    while True:
        with _transaction(db, "BEGIN IMMEDIATE"):  # the version is read under the lock: another process may be migrating too
            version: int = db.execute("SELECT coalesce(max(version), 0) FROM schema_version").fetchone()[0]
            if version > len(migrations):
                raise Misconfigured(
                    "data_dir",
                    f"the database has schema {version}, this release knows {len(migrations)}: run the newer release",
                )
            if version == len(migrations):
                return
            for statement in _statements(migrations[version]):
                db.execute(statement)
            db.execute("INSERT INTO schema_version VALUES (?, datetime('now'))", (version + 1,))


def _statements(script: str) -> list[str]:
    """Splits SQL at the semicolons that end a statement: `executescript` would commit before it begins."""
    statements, pending = [], ""
    for piece in script.split(";"):
        pending += piece + ";"
        if sqlite3.complete_statement(pending):
            if pending.strip("; \n\t"):
                statements.append(pending)
            pending = ""
    return statements
