"""What the conditions of all jobs watch: each source read once however many ask, spread in time, none waiting for another."""

from __future__ import annotations

import heapq
import zlib
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import count
from typing import NoReturn, Protocol

import structlog
import trio

from consensus.conditions import Source, StaticSource, WebSocketSource, gap_scope
from consensus.errors import Failed, Transient
from consensus.numbers import number
from coordinator.store.records import Gap
from node.infra.clock import Clock
from node.infra.sources import Heard, Value, latest

log = structlog.get_logger(__name__)

_MOST_READING = 128  # reads under way,
_MOST_SLOW = 64  # and of them those of places that took long the last time: whoever names many such delays only his like
_SLOW_S = 1.0
_PER_HOST = 4  # of them at one host, as many as the fetcher sends there at a time: the rest wait here and hold up nobody
_MOST_FOLLOWED = 1000  # WebSockets open
_LONGEST_READ_S = 60.0  # a source's own limits are shorter: this is for what has none
_UNOBSERVED_AFTER = 2
"""Intervals without a value after which the time since the last one counts as a gap."""
_GAP_TOLD_EVERY_S = 60.0  # while it lasts


class SourceReader(Protocol):
    """`node.infra.sources.Sources`, or what tests put in its place."""

    async def read_each(self, sources: Sequence[Source]) -> Mapping[Source, Value]: ...

    async def follow(self, url: str, hear: Callable[[Heard], Awaitable[None]]) -> NoReturn: ...

    def place(self, source: Source) -> str: ...

    def host_of(self, source: Source) -> str: ...


class Reading:
    """A source's latest value, None while it is not known, and the jobs that watch it."""

    __slots__ = ("failing", "jobs", "place", "seen_at", "source", "told_at", "value")

    def __init__(self, source: Source, place: _Place, now: float) -> None:
        self.source = source
        self.place = place
        self.value: Decimal | None = None
        self.jobs: dict[int, None] = {}
        self.failing = False
        self.seen_at = now
        """UTC seconds; until when it was observed: from here a gap begins."""
        self.told_at = float("-inf")


class _Place:
    """Sources that one request answers; or one WebSocket."""

    __slots__ = ("due", "host", "life", "name", "readings", "slow", "under_way")

    def __init__(self, name: str, host: str) -> None:
        self.name = name
        self.host = host
        self.readings: dict[Source, Reading] = {}
        self.due = 0.0
        self.under_way = False
        self.slow = False
        self.life = trio.CancelScope()


class Readings:
    """`moved` is told which jobs have a source with a new value. `gap` is told of times in which a source was not observed.

    `requests` counts reads; a place is read every `interval` seconds, at a moment of its own. URLs hold secrets: logs name hosts.
    """

    def __init__(
        self,
        sources: SourceReader,
        clock: Clock,
        interval: float,
        *,
        moved: Callable[[Iterable[int]], None],
        gap: Callable[[Gap], None],
    ) -> None:
        self._sources = sources
        self._clock = clock
        self._interval = interval
        self._moved = moved
        self._gap = gap
        self._readings: dict[Source, Reading] = {}
        self._places: dict[str, _Place] = {}
        self._heap: list[tuple[float, int, _Place]] = []
        self._numbers = count()
        self._resting = trio.CancelScope()
        self._ready: deque[_Place] = deque()
        self._slow: deque[_Place] = deque()
        self._at_host: Counter[str] = Counter()
        self._waiting: dict[str, deque[_Place]] = {}
        self._nursery: trio.Nursery | None = None
        self._following: trio.CapacityLimiter | None = None
        self._at_work = self._slow_at_work = 0
        self.requests = 0

    def __len__(self) -> int:
        """Places that are asked."""
        return len(self._places)

    @property
    def failing(self) -> int:
        """Sources without a value though they were asked."""
        return sum(reading.failing for reading in self._readings.values())

    def watch(self, source: Source, job_id: int) -> Reading:
        """The source's reading, from now on for this job too. A static one has its value at once."""
        reading = self._readings.get(source)
        if reading is None:
            reading = self._readings[source] = self._new(source)
        reading.jobs[job_id] = None
        return reading

    def drop(self, reading: Reading, job_id: int) -> None:
        """The job watches it no more; what no job watches is closed and forgotten."""
        reading.jobs.pop(job_id, None)
        if reading.jobs or self._readings.get(reading.source) is not reading:
            return
        del self._readings[reading.source]
        place = reading.place
        place.readings.pop(reading.source, None)
        if not place.readings and self._places.get(place.name) is place:
            del self._places[place.name]
            place.life.cancel()
            if len(self._heap) > 2 * len(self._places) + 1024:  # entries of places that are gone
                self._heap = [entry for entry in self._heap if self._places.get(entry[2].name) is entry[2]]
                heapq.heapify(self._heap)

    async def run(self) -> None:
        """Reads until cancelled; may be begun anew."""
        self._following = trio.CapacityLimiter(_MOST_FOLLOWED)
        self._heap, self._ready, self._slow, self._waiting, self._at_host = [], deque(), deque(), {}, Counter()
        self._at_work = self._slow_at_work = 0
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for place in self._places.values():
                place.under_way = False
                self._begin(place)
            try:
                await self._look()
            finally:
                self._nursery = None

    async def _look(self) -> NoReturn:
        while True:
            now = trio.current_time()
            while self._heap and self._heap[0][0] <= now:
                due, _, place = heapq.heappop(self._heap)
                if self._places.get(place.name) is place and place.due == due and not place.under_way:
                    self._queue(place)
            self._start()
            with trio.CancelScope() as self._resting:
                if self._heap:
                    await trio.sleep_until(self._heap[0][0])
                else:
                    await trio.sleep_forever()

    def _new(self, source: Source) -> Reading:
        now = self._clock.now()
        if isinstance(source, StaticSource):
            reading = Reading(source, _Place("", ""), now)
            reading.value = number(source.value)
            return reading
        name = self._sources.place(source)
        place = self._places.get(name)
        if place is None:
            place = self._places[name] = _Place(name, self._sources.host_of(source))
            self._begin(place, source)
        reading = place.readings[source] = Reading(source, place, now)
        return reading

    def _begin(self, place: _Place, source: Source | None = None) -> None:
        if self._nursery is None:
            return  # `run` begins all there are
        source = source or next(iter(place.readings))
        if isinstance(source, WebSocketSource):
            place.life = trio.CancelScope()
            self._nursery.start_soon(self._follow, place, source.url)
        else:  # each at a moment of its own within the interval, whenever it was put
            self._plan(place, trio.current_time() + self._interval * (zlib.crc32(place.name.encode()) % 4096) / 4096)

    def _plan(self, place: _Place, due: float) -> None:
        place.due = due
        heapq.heappush(self._heap, (due, next(self._numbers), place))
        if self._heap[0][2] is place:
            self._resting.cancel()

    # polling

    def _queue(self, place: _Place) -> None:
        place.under_way = True
        if self._at_host[place.host] >= _PER_HOST:
            self._waiting.setdefault(place.host, deque()).append(place)
        else:
            self._at_host[place.host] += 1
            self._line(place).append(place)

    def _line(self, place: _Place) -> deque[_Place]:
        return self._slow if place.slow else self._ready

    def _start(self) -> None:
        assert self._nursery is not None
        while self._at_work < _MOST_READING:
            slow = bool(self._slow) and self._slow_at_work < _MOST_SLOW
            if not slow and not self._ready:
                return
            place = (self._slow if slow else self._ready).popleft()
            self._at_work += 1
            self._slow_at_work += slow
            self._nursery.start_soon(self._read, place, slow)

    async def _read(self, place: _Place, slow: bool) -> None:
        began = trio.current_time()
        try:
            sources = list(place.readings)
            if sources:  # else its jobs went while it waited
                self.requests += 1
                values: Mapping[Source, Value] = {}
                with trio.move_on_after(_LONGEST_READ_S):
                    values = await self._sources.read_each(sources)
                self._take(place, values)
        finally:
            place.slow = trio.current_time() - began > _SLOW_S
            self._at_work -= 1
            self._slow_at_work -= slow
            self._freed(place)
        if self._places.get(place.name) is place:
            behind = max(0.0, trio.current_time() - place.due)
            self._plan(place, place.due + self._interval * (1 + behind // self._interval))
        self._start()

    def _freed(self, place: _Place) -> None:
        place.under_way = False
        waiting = self._waiting.get(place.host)
        if waiting:
            following = waiting.popleft()
            self._line(following).append(following)
            if not waiting:
                del self._waiting[place.host]
            return
        self._at_host[place.host] -= 1
        if not self._at_host[place.host]:
            del self._at_host[place.host]

    def _take(self, place: _Place, values: Mapping[Source, Value]) -> None:
        moved: dict[int, None] = {}
        timeout = Transient("SOURCE_UNREACHABLE", f"no answer within {_LONGEST_READ_S:g} s")
        for reading in list(place.readings.values()):
            if reading.source not in values and values:
                continue  # joined while the others were read: its turn is next
            value = values.get(reading.source, timeout)
            if self._failed(reading, value) if isinstance(value, Failed | Transient) else self._seen(reading, value):
                moved |= reading.jobs
        self._moved(moved)

    # following

    async def _follow(self, place: _Place, url: str) -> None:
        async def hear(heard: Heard) -> None:
            moved: dict[int, None] = {}
            for reading in list(place.readings.values()):
                if isinstance(heard, Failed | Transient):
                    changed = self._failed(reading, heard)
                else:
                    assert isinstance(reading.source, WebSocketSource)
                    value = latest(heard, reading.source)
                    changed = value is not None and self._seen(reading, value, followed=True)
                if changed:
                    moved |= reading.jobs
            self._moved(moved)

        assert self._following is not None
        with place.life:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._look_after, place)
                async with self._following:
                    await self._sources.follow(url, hear)

    async def _look_after(self, place: _Place) -> NoReturn:
        """A WebSocket that waits for its turn, or has not told the value yet, is not observed, though nothing fails."""
        while True:
            await trio.sleep(max(self._unobserved_after, _GAP_TOLD_EVERY_S))
            for reading in list(place.readings.values()):
                if reading.value is None:
                    self._failed(reading, Transient("SOURCE_UNREACHABLE", "no message with the value so far"))

    # what it means

    def _seen(self, reading: Reading, value: Decimal, *, followed: bool = False) -> bool:
        """Whether the value is another one. A followed source that is silent is observed all the same."""
        now = self._clock.now()
        if reading.failing:
            log.info("source_recovered", host=reading.place.host)
        if (reading.failing or not followed) and now - reading.seen_at > self._unobserved_after:
            self._tell(reading, now)
        reading.failing, reading.seen_at, reading.told_at = False, now, float("-inf")
        changed = value != reading.value
        reading.value = value
        return changed

    def _failed(self, reading: Reading, problem: Failed | Transient) -> bool:
        now = self._clock.now()
        if not reading.failing:
            log.warning("source_failed", host=reading.place.host, code=problem.code, detail=problem.detail)
            reading.failing = True
            if isinstance(reading.source, WebSocketSource) and reading.value is not None:
                reading.seen_at = now  # until here it would have told
        if now - reading.seen_at > self._unobserved_after and now - reading.told_at >= _GAP_TOLD_EVERY_S:
            self._tell(reading, now)
        changed = reading.value is not None
        reading.value = None
        return changed

    @property
    def _unobserved_after(self) -> float:
        return _UNOBSERVED_AFTER * self._interval

    def _tell(self, reading: Reading, now: float) -> None:
        reading.told_at = now
        self._gap(Gap(gap_scope(reading.source), int(reading.seen_at), max(int(now), int(reading.seen_at) + 1)))
