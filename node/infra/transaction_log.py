"""What was sent from an account: written to disk before it leaves, so that a restart sends the same bytes or nothing."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from typing import Protocol

from node.infra.sqlite import Database


@dataclass(frozen=True, slots=True)
class Sent:
    """A transaction as it was recorded before it left."""

    key: str
    raw: bytes = field(repr=False)
    tx_hash: bytes
    nonce: int


class TransactionLog(Protocol):
    """Memory of what was sent, durable when a call returns."""

    async def record(self, key: str, raw: bytes, tx_hash: bytes, nonce: int) -> None: ...

    async def find(self, key: str) -> Sent | None: ...

    async def forget(self, key: str) -> None: ...

    async def since(self, nonce: int) -> list[Sent]:
        """Those with this nonce or a higher one, in order."""
        ...


SENT_TABLE = """
CREATE TABLE sent (
    key TEXT NOT NULL PRIMARY KEY, raw BLOB NOT NULL, tx_hash BLOB NOT NULL, nonce INTEGER NOT NULL
);
"""
"""Migration for a database that holds a `SqliteTransactionLog`."""


_KEPT_NONCES = 10_000
"""Back from the newest: days of work, while a key is asked for minutes after it was sent at most. 20 MB, 200 at the worst."""
_PRUNE_EVERY = 256


class SqliteTransactionLog:
    """Over the table `sent` of a database opened with `durable=True`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, key: str, raw: bytes, tx_hash: bytes, nonce: int) -> None:
        def write(db: sqlite3.Connection) -> None:
            db.execute("INSERT INTO sent (key, raw, tx_hash, nonce) VALUES (?, ?, ?, ?)", (key, raw, tx_hash, nonce))
            if nonce % _PRUNE_EVERY == 0:
                db.execute("DELETE FROM sent WHERE nonce < ?", (nonce - _KEPT_NONCES,))

        await self._database.write(write)

    async def find(self, key: str) -> Sent | None:
        found = await self._select("WHERE key = ?", key)
        return found[0] if found else None

    async def forget(self, key: str) -> None:
        def write(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM sent WHERE key = ?", (key,))

        await self._database.write(write)

    async def since(self, nonce: int) -> list[Sent]:
        return await self._select("WHERE nonce >= ? ORDER BY nonce", nonce)

    async def _select(self, where: str, value: str | int) -> list[Sent]:
        query = f"SELECT key, raw, tx_hash, nonce FROM sent {where}"  # noqa: S608 - `where` is one of the two above
        return await self._database.read(lambda db: [Sent(*row) for row in db.execute(query, (value,))])
