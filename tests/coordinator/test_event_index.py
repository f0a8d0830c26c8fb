"""Which jobs a log is of, and what finding them costs, whatever the jobs call their parameters and filter by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from consensus import events
from consensus.codec import keccak
from consensus.events import Declaration, EventFilter, OnEvent
from coordinator.scheduler.event_index import EventIndex, ask_of
from coordinator.scheduler.event_reads import read_hits
from node.infra.chain import Head, Log

CONTRACT = b"\xc0" * 20
TOPIC = keccak(b"Moved(uint256,uint256,uint256)")
SHAPES = [
    "Moved(uint256 indexed a, uint256 indexed b, uint256 c)",
    "Moved(uint256 indexed x, uint256 y, uint256 indexed z)",
    "Moved(uint256 from, uint256 to, uint256 value)",
]


def word(value: int) -> bytes:
    return value.to_bytes(32, "big")


def log_of(indexed: Sequence[int], plain: Sequence[int]) -> Log:
    topics = (TOPIC, *map(word, indexed))
    return Log(1, b"\xbb" * 32, b"\x77" * 32, 0, CONTRACT, topics, b"".join(map(word, plain)))


def on_moved(declaration: str, *filters: tuple[int, int]) -> OnEvent:
    """Filters by place."""
    names = [p.name for p in events.declared(declaration).parameters]
    return OnEvent(1, CONTRACT, declaration, tuple(EventFilter(names[place], str(value)) for place, value in filters))


_FILTERS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=4)
_JOBS = st.lists(st.tuples(st.sampled_from(SHAPES), _FILTERS), max_size=12)
_LOGS = st.tuples(st.integers(0, 3), st.lists(st.integers(0, 2), min_size=3, max_size=3))


@given(_JOBS, _LOGS, st.sets(st.integers(0, 11)))
def test_the_jobs_found_are_those_whose_trigger_matches(jobs: list[Any], said: tuple[int, list[int]], gone: set[int]) -> None:
    index = EventIndex()
    triggers = {number: on_moved(declaration, *filters) for number, (declaration, filters) in enumerate(jobs)}
    log = log_of(said[1][: said[0]], said[1][said[0] :])
    for job_id, trigger in triggers.items():
        index.put(job_id, ask_of(trigger))
    index.jobs_of(log)
    for job_id in gone & set(triggers):
        index.remove(job_id)
        del triggers[job_id]
    found = index.jobs_of(log)
    assert sorted(found) == [i for i, trigger in triggers.items() if events.matches(trigger, log.address, log.topics, log.data)]
    assert len(index) == len(triggers)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The declarations that a log was decoded by."""
    found: list[str] = []
    decode = Declaration.decode

    def counting(self: Declaration, topics: Sequence[bytes], data: bytes) -> tuple[Any, ...] | None:
        found.append(self.text)
        return decode(self, topics, data)

    monkeypatch.setattr(Declaration, "decode", counting)
    return found


def test_a_log_is_decoded_once_however_differently_its_parameters_are_named(decoded: list[str]) -> None:
    index = EventIndex()
    for job_id in range(300):
        index.put(job_id, ask_of(on_moved(f"Moved(uint256 indexed a{job_id}, uint256 b, uint256 c)", (2, job_id))))
    assert index.jobs_of(log_of([1], [2, 77])) == (77,)
    assert len(decoded) == 1


class _Untouchable(int):
    """A value that tells when it is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        _Untouchable.compared += 1
        return int(self) == other

    def __hash__(self) -> int:
        return int.__hash__(self)


def test_jobs_that_share_a_filter_and_differ_in_another_are_not_looked_at_one_by_one() -> None:
    index = EventIndex()
    for job_id in range(300):
        ask = ask_of(on_moved(SHAPES[0], (0, 1), (2, job_id)))
        index.put(job_id, type(ask)(ask.contract, ask.declaration, tuple((place, _Untouchable(v)) for place, v in ask.filters)))
    _Untouchable.compared = 0
    assert index.jobs_of(log_of([1, 5], [77])) == (77,)
    assert _Untouchable.compared < 10


def test_what_a_thousand_logs_match_alike_is_held_once() -> None:
    index = EventIndex()
    for job_id in range(50):
        index.put(job_id, ask_of(on_moved(SHAPES[0])))
    assert index.jobs_of(log_of([1, 2], [3])) is index.jobs_of(log_of([4, 5], [6]))
    index.put(50, ask_of(on_moved(SHAPES[0])))
    assert len(index.jobs_of(log_of([1, 2], [3]))) == 51


class _Flood:
    """A chain whose one block has many logs."""

    def __init__(self, count: int) -> None:
        self._logs = [log_of([1, 2], [3])] * count

    async def logs(self, *_: object, tip: bytes) -> Sequence[Log]:
        return self._logs


async def test_other_work_goes_on_while_a_flood_of_logs_is_looked_at() -> None:
    index = EventIndex()
    index.put(1, ask_of(on_moved(SHAPES[0], (2, 4))))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        reading = await read_hits(_Flood(5_000), index, 1, Head(1, b"\xbb" * 32, 1))  # type: ignore[arg-type]
        nursery.cancel_scope.cancel()
    assert (reading.logs, reading.hits) == (5_000, [])
    assert turns >= 50
