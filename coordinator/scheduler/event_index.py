"""Which event jobs a log is of: found by contract, topic and one filter's value, whatever the number of jobs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from consensus.events import Declaration, OnEvent, Wanted, declared, wanted
from node.infra.chain import Log

_Key = tuple[int, Any] | None
"""A filter's parameter and value, by which its job is found; None for jobs without filters."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a trigger asks for, read once."""

    contract: bytes
    declaration: Declaration
    filters: Wanted


def ask_of(trigger: OnEvent) -> Ask:
    """Raises ValueError for a trigger that no log can match (`events.wanted`)."""
    return Ask(trigger.contract, declared(trigger.event), wanted(trigger))


@dataclass(slots=True)
class _Jobs:
    """The jobs of one declaration on one contract: a log is decoded once for all of them."""

    declaration: Declaration
    by_key: dict[_Key, dict[int, Wanted]] = field(default_factory=dict)


class EventIndex:
    """Jobs by what they ask for. `asked` is what has to be asked of the chain on their behalf."""

    def __init__(self) -> None:
        self._places: dict[tuple[bytes, bytes], dict[str, _Jobs]] = {}
        self._jobs: dict[int, tuple[tuple[bytes, bytes], str, _Key]] = {}
        self._asked: tuple[tuple[bytes, ...], tuple[bytes, ...]] | None = ((), ())

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job_id: int, ask: Ask) -> None:
        self.remove(job_id)
        place = (ask.contract, ask.declaration.topic)
        if place not in self._places:
            self._asked = None
        text = ask.declaration.text
        jobs = self._places.setdefault(place, {}).setdefault(text, _Jobs(ask.declaration))
        key: _Key = ask.filters[0] if ask.filters else None
        jobs.by_key.setdefault(key, {})[job_id] = ask.filters
        self._jobs[job_id] = (place, text, key)

    def remove(self, job_id: int) -> None:
        found = self._jobs.pop(job_id, None)
        if found is None:
            return
        place, text, key = found
        jobs = self._places[place][text]
        del jobs.by_key[key][job_id]
        if not jobs.by_key[key]:
            del jobs.by_key[key]
        if not jobs.by_key:
            del self._places[place][text]
        if not self._places[place]:
            del self._places[place]
            self._asked = None

    @property
    def asked(self) -> tuple[Sequence[bytes], Sequence[bytes]]:
        """Contracts and first topics of all jobs."""
        if self._asked is None:
            self._asked = (
                tuple(dict.fromkeys(contract for contract, _ in self._places)),
                tuple(dict.fromkeys(topic for _, topic in self._places)),
            )
        return self._asked

    def jobs_of(self, log: Log) -> list[int]:
        """Ids of the jobs whose trigger the log matches."""
        return list(self._matching(log)) if log.topics else []

    def _matching(self, log: Log) -> Iterator[int]:
        for jobs in self._places.get((log.address, log.topics[0]), {}).values():
            values = jobs.declaration.decode(log.topics, log.data)
            if values is None:
                continue
            for key in (None, *enumerate(values)):
                for job_id, filters in jobs.by_key.get(key, {}).items():
                    if all(values[place] == value for place, value in filters):
                        yield job_id
