"""Which event jobs a log is of: found by contract, topic and the filters' values, whatever the number of jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from consensus.events import Declaration, OnEvent, Wanted, declared, wanted
from node.infra.chain import Log

_Shape = tuple[bool, ...]
"""Which parameters are indexed: with the topic, all that decides how a log is read. Parameters' names are their users' own."""
_Places = tuple[int, ...]
_Values = tuple[Any, ...]


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
class _Alike:
    """Jobs that ask for the very same."""

    ids: set[int] = field(default_factory=set)
    shared: tuple[int, ...] | None = ()
    """The same as one value for all logs that match; None when it has to be made anew."""

    def listed(self) -> tuple[int, ...]:
        if self.shared is None:
            self.shared = tuple(self.ids)
        return self.shared


@dataclass(slots=True)
class _Jobs:
    """The jobs of one event of one contract: a log is decoded once for all of them, and found once a set of filtered places."""

    declaration: Declaration
    filtered: dict[_Places, dict[_Values, _Alike]] = field(default_factory=dict)


class EventIndex:
    """Jobs by what they ask for. `asked` is what has to be asked of the chain on their behalf."""

    def __init__(self) -> None:
        self._places: dict[tuple[bytes, bytes], dict[_Shape, _Jobs]] = {}
        self._jobs: dict[int, tuple[tuple[bytes, bytes], _Shape, _Places, _Values]] = {}
        self._asked: tuple[tuple[bytes, ...], tuple[bytes, ...]] | None = ((), ())

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job_id: int, ask: Ask) -> None:
        self.remove(job_id)
        place = (ask.contract, ask.declaration.topic)
        if place not in self._places:
            self._asked = None
        shape = tuple(p.indexed for p in ask.declaration.parameters)
        filters = sorted(ask.filters, key=lambda each: each[0])
        at, values = tuple(p for p, _ in filters), tuple(value for _, value in filters)
        jobs = self._places.setdefault(place, {}).setdefault(shape, _Jobs(ask.declaration))
        alike = jobs.filtered.setdefault(at, {}).setdefault(values, _Alike())
        alike.ids.add(job_id)
        alike.shared = None
        self._jobs[job_id] = (place, shape, at, values)

    def remove(self, job_id: int) -> None:
        found = self._jobs.pop(job_id, None)
        if found is None:
            return
        place, shape, at, values = found
        jobs = self._places[place][shape]
        alike = jobs.filtered[at][values]
        alike.ids.remove(job_id)
        alike.shared = None
        if not alike.ids:
            del jobs.filtered[at][values]
        if not jobs.filtered[at]:
            del jobs.filtered[at]
        if not jobs.filtered:
            del self._places[place][shape]
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

    def jobs_of(self, log: Log) -> Sequence[int]:
        """Ids of the jobs whose trigger the log matches. What many logs match alike is one and the same sequence."""
        if not log.topics:
            return ()
        found: list[_Alike] = []
        for jobs in self._places.get((log.address, log.topics[0]), {}).values():
            values = jobs.declaration.decode(log.topics, log.data)
            if values is None:
                continue
            for at, wanted_there in jobs.filtered.items():
                if (alike := wanted_there.get(tuple(values[place] for place in at))) is not None:
                    found.append(alike)
        return found[0].listed() if len(found) == 1 else [job_id for alike in found for job_id in alike.ids]
