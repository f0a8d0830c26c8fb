"""One kind of record in one SQL table: which attribute is which column, and how each value is written."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeVar

R = TypeVar("R")
Arguments = Sequence[Any] | Mapping[str, Any]


def one(db: sqlite3.Connection, query: str, arguments: Arguments, read: Callable[[Any], R]) -> R | None:
    """The first row that a query finds, as `read` makes it."""
    row = db.execute(query, arguments).fetchone()
    return None if row is None else read(row)


def every(db: sqlite3.Connection, query: str, arguments: Arguments, read: Callable[[Any], R]) -> list[R]:
    """All rows that a query finds."""
    return [read(row) for row in db.execute(query, arguments)]


def _same(value: Any) -> Any:
    return value


def optional(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`fn` of what is not None."""
    return lambda value: None if value is None else fn(value)


@dataclass(frozen=True, slots=True)
class Column:
    """`name` in the table, `attribute` of the record (`edge.number` is an attribute's), and both ways of writing the value."""

    name: str
    attribute: str
    write: Callable[[Any], Any] = _same
    read: Callable[[Any], Any] = _same


def plain(*names: str) -> list[Column]:
    """Columns that are called and written as in the record."""
    return [Column(name, name) for name in names]


def big(name: str, attribute: str) -> Column:
    """An integer beyond 64 bits, or none: decimal text."""
    return Column(name, attribute, optional(str), optional(int))


def flag(name: str, attribute: str) -> Column:
    """A truth, or none: 0 or 1."""
    return Column(name, attribute, optional(int), optional(bool))


class Table:
    """The SQL of one table for one kind of record.

    `derived` columns are written from the record and never read, `given` ones are passed beside it.
    """

    def __init__(
        self,
        name: str,
        key: Sequence[str],
        columns: Sequence[Column],
        derived: Sequence[tuple[str, Callable[[Any], Any]]] = (),
        given: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.columns = columns
        self.key = key
        self._names = [c.name for c in columns] + [each for each, _ in derived] + list(given)
        self._writers = [(c.name, attrgetter(c.attribute), None if c.write is _same else c.write) for c in columns]
        self._derived = derived
        self.selected = ", ".join(f"{name}.{c.name}" for c in columns)
        self.select = f"SELECT {self.selected} FROM {name}"  # noqa: S608 - our own names
        self._insert = f"INSERT INTO {name} ({', '.join(self._names)}) VALUES ({', '.join(f':{n}' for n in self._names)})"  # noqa: S608
        self._insert_new = f"{self._insert} ON CONFLICT ({', '.join(key)}) DO NOTHING"
        self._update = self._updating(self._names)
        self._upsert = f"{self._insert} ON CONFLICT ({', '.join(key)}) DO UPDATE SET " + ", ".join(
            f"{n} = excluded.{n}" for n in self._names if n not in key
        )
        self._of_names: dict[tuple[str, ...], str] = {}

    def row(self, record: Any, given: dict[str, Any]) -> dict[str, Any]:
        row = {name: get(record) if write is None else write(get(record)) for name, get, write in self._writers}
        for name, derive in self._derived:
            row[name] = derive(record)
        return row | given

    def attributes(self, row: Iterable[Any]) -> dict[str, Any]:
        return {c.attribute: c.read(v) for c, v in zip(self.columns, row, strict=True)}

    def insert(self, db: sqlite3.Connection, record: Any, **given: Any) -> int:
        """Returns the new row's number, in a table that numbers its rows."""
        return db.execute(self._insert, self.row(record, given)).lastrowid or 0

    def insert_new(self, db: sqlite3.Connection, record: Any, **given: Any) -> bool:
        """False when there is one with its key: then it stays as it is."""
        return db.execute(self._insert_new, self.row(record, given)).rowcount == 1

    def update(self, db: sqlite3.Connection, record: Any, **given: Any) -> None:
        db.execute(self._update, self.row(record, given))

    def update_only(self, db: sqlite3.Connection, record: Any, names: tuple[str, ...]) -> None:
        """Those columns: an index that holds none of them is left alone."""
        sql = self._of_names.get(names) or self._of_names.setdefault(names, self._updating(names))
        db.execute(sql, self.row(record, {}))

    def upsert(self, db: sqlite3.Connection, record: Any) -> None:
        db.execute(self._upsert, self.row(record, {}))

    def _updating(self, names: Iterable[str]) -> str:
        where = " AND ".join(f"{k} = :{k}" for k in self.key)
        return f"UPDATE {self.name} SET {', '.join(f'{n} = :{n}' for n in names if n not in self.key)} WHERE {where}"  # noqa: S608
