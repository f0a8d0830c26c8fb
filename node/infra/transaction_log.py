"""What was sent from an account: written to disk before it leaves, so that a restart sends the same bytes or nothing."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from typing import Protocol

from node.infra.sqlite import Database

NO_LIMIT = 2**62
"""More than anybody offers for a unit of gas, wei, and still a number that SQLite holds."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A transaction as it was recorded before it left. `most` is what it may offer for a unit of gas, wei; `given_up` whether its
    nonce may have gone to another transaction since."""

    key: str
    raw: bytes = field(repr=False)
    tx_hash: bytes
    nonce: int
    most: int = NO_LIMIT
    given_up: bool = False


class TransactionLog(Protocol):
    """Memory of what was sent, durable when a call returns. A key has one nonce, and a version for each time it was priced."""

    async def record(self, key: str, raw: bytes, tx_hash: bytes, nonce: int, most: int = NO_LIMIT) -> None:
        """A key's first version, or its next one, which has the same nonce."""
        ...

    async def find(self, key: str) -> Sent | None:
        """The newest version."""
        ...

    async def versions(self, tx_hash: bytes) -> list[Sent]:
        """Every version of the key that this hash belongs to, the newest first; none when the hash is unknown."""
        ...

    async def forget(self, key: str) -> None:
        """All of it: it never left."""
        ...

    async def forget_version(self, tx_hash: bytes) -> None:
        """This version never left."""
        ...

    async def give_up(self, key: str, given_up: bool = True) -> None:
        """Its nonce is free for others, though it may have left; or, with `given_up` false, is its own again."""
        ...

    async def since(self, nonce: int) -> list[Sent]:
        """The newest version of each key with this nonce or a higher one that is not given up, in order."""
        ...

    async def begin(self, genesis: bytes) -> bool:
        """Says which chain it is, by the hash of its first block. False when the records were another's: they are gone."""
        ...


SENT_TABLE = """
CREATE TABLE sent (
    key TEXT NOT NULL PRIMARY KEY, raw BLOB NOT NULL, tx_hash BLOB NOT NULL, nonce INTEGER NOT NULL
);
"""
_VERSIONS = """
CREATE TABLE versions (
    key TEXT NOT NULL, version INTEGER NOT NULL, raw BLOB NOT NULL, tx_hash BLOB NOT NULL, nonce INTEGER NOT NULL,
    most INTEGER NOT NULL, given_up INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (key, version)
);
INSERT INTO versions (key, version, raw, tx_hash, nonce, most)
    SELECT key, 0, raw, tx_hash, nonce, 4611686018427387904 FROM sent;
DROP TABLE sent;
CREATE INDEX versions_by_nonce ON versions (nonce);
CREATE INDEX versions_by_hash ON versions (tx_hash);
CREATE TABLE sent_on (genesis BLOB NOT NULL);
"""
SENT_MIGRATIONS = (SENT_TABLE, _VERSIONS)
"""Migrations for a database that holds a `SqliteTransactionLog`."""


_KEPT_NONCES = 10_000
"""Back from the newest: days of work, while a key is asked for minutes after it was sent at most. 20 MB, 200 at the worst."""
_PRUNE_EVERY = 256
_COLUMNS = "key, raw, tx_hash, nonce, most, given_up"


class SqliteTransactionLog:
    """Over the tables of `SENT_MIGRATIONS`, of a database opened with `durable=True`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, key: str, raw: bytes, tx_hash: bytes, nonce: int, most: int = NO_LIMIT) -> None:
        def write(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO versions (key, version, raw, tx_hash, nonce, most, given_up)"
                " SELECT ?, coalesce(max(version) + 1, 0), ?, ?, ?, ?, coalesce(max(given_up), 0) FROM versions WHERE key = ?",
                (key, raw, tx_hash, nonce, min(most, NO_LIMIT), key),
            )
            if nonce % _PRUNE_EVERY == 0:
                db.execute("DELETE FROM versions WHERE nonce < ?", (nonce - _KEPT_NONCES,))

        await self._database.write(write)

    async def find(self, key: str) -> Sent | None:
        found = await self._select("key = ? ORDER BY version DESC LIMIT 1", key)
        return found[0] if found else None

    async def versions(self, tx_hash: bytes) -> list[Sent]:
        return await self._select("key = (SELECT key FROM versions WHERE tx_hash = ? LIMIT 1) ORDER BY version DESC", tx_hash)

    async def forget(self, key: str) -> None:
        await self._execute("DELETE FROM versions WHERE key = ?", key)

    async def forget_version(self, tx_hash: bytes) -> None:
        await self._execute("DELETE FROM versions WHERE tx_hash = ?", tx_hash)

    async def give_up(self, key: str, given_up: bool = True) -> None:
        await self._execute("UPDATE versions SET given_up = ? WHERE key = ?", given_up, key)

    async def since(self, nonce: int) -> list[Sent]:
        newest = "version = (SELECT max(version) FROM versions AS other WHERE other.key = versions.key)"
        return await self._select(f"nonce >= ? AND NOT given_up AND {newest} ORDER BY nonce", nonce)

    async def begin(self, genesis: bytes) -> bool:
        def write(db: sqlite3.Connection) -> bool:
            former = db.execute("SELECT genesis FROM sent_on").fetchone()
            if former == (genesis,):
                return True
            db.execute("DELETE FROM sent_on")
            db.execute("INSERT INTO sent_on VALUES (?)", (genesis,))
            if former is not None:
                db.execute("DELETE FROM versions")
            return former is None

        return await self._database.write(write)

    async def _select(self, where: str, value: str | bytes | int) -> list[Sent]:
        query = f"SELECT {_COLUMNS} FROM versions WHERE {where}"  # noqa: S608 - `where` is one of those above

        def read(db: sqlite3.Connection) -> list[Sent]:
            rows = db.execute(query, (value,))
            return [Sent(key, raw, tx_hash, nonce, most, bool(up)) for key, raw, tx_hash, nonce, most, up in rows]

        return await self._database.read(read)

    async def _execute(self, statement: str, *values: str | bytes | bool) -> None:
        def write(db: sqlite3.Connection) -> None:
            db.execute(statement, values)

        await self._database.write(write)
