"""A crontab line in a time zone: which UTC seconds it names, also where the clock is put forward or back.

cronsim reads the line and walks over readings of the wall clock; what a reading means in UTC is decided here, with the zones
of the package `tzdata`, never with the machine's, so that everybody who has the same package agrees on every second:

- A line that names **some hours** of the day runs at those hours. A reading that the clock skips (02:30 when it is put forward
  from 02:00 to 03:00) is due once, at the first second after the gap; several skipped readings of one line are one firing. A
  reading that the clock shows twice is due the first time only.
- A line that names **every hour** (`*`, `*/1`, `0-23`) runs by what the clock shows: what it skips is not due, and what it
  shows twice is due twice, so that hourly jobs and finer ones keep their pace.

This is how Debian's cron treats fixed times and `*`; unlike there, `*/2` in the hour's field is a list of hours like any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import cache, lru_cache
from importlib import resources
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

MAX_CHARS = 256
"""Of an expression: a list of all sixty minutes has 169."""
FIRST, LAST = 946_684_800, 7_258_118_400  # 2000 and 2200: in between every zone's offset is in whole minutes
_MINUTE = timedelta(minutes=1)
_DAY = timedelta(days=1)
_SYNTAX = re.compile(r"[0-9A-Za-z*,/#-]+")
_ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}


class Crontab:
    """The due seconds (UTC) of one line in one zone. Raises `ValueError` for what is none, or would never run."""

    def __init__(self, expression: str, timezone: str) -> None:
        self._zone = zone(timezone)
        fields = _fields(expression)
        self._line = " ".join(fields)
        self._days = " ".join(["0", "0", *fields[2:]])  # the midnights of its days
        try:
            self._named = CronSim(self._line, datetime(2000, 1, 1))
        except CronSimError as error:
            raise ValueError(f"cron expression {self._line!r}: {str(error).lower()}") from None
        if _first(self._days, datetime(2000, 1, 1)) is None:  # cronsim looks fifty years ahead; every date recurs within forty
            raise ValueError(f"cron expression {self._line!r} names a date that never comes")
        self._every_hour = len(self._named.hours) == 24

    def names(self, second: int) -> bool:
        """Whether it is due at `second`."""
        if second % 60 or not FIRST <= second < LAST:
            return False
        shown = self._clock(second)
        if self._every_hour or shown.fold:
            return self._every_hour and shown.minute in self._named.minutes and self._on(shown)
        wall = shown.replace(tzinfo=None)
        due = self._clock(second - 60).replace(tzinfo=None) + _MINUTE  # earlier than `wall` where a gap has just ended
        if due == wall:
            return shown.minute in self._named.minutes and shown.hour in self._named.hours and self._on(shown)
        reading = _first(self._line, due - _MINUTE)
        return reading is not None and reading <= wall

    def after(self, second: int) -> int | None:
        """The first due second after `second`."""
        if second >= LAST:
            return None
        second = max(second, FIRST)
        if self._every_hour:
            return self._step(second, 1)
        for wall in CronSim(self._line, self._clock(second).replace(tzinfo=None)):
            due = self._instant(wall)
            if due > second:  # not so for a reading that the clock is showing again
                return due if due < LAST else None
        return None

    def until(self, second: int) -> int | None:
        """The last due second at or before `second`."""
        if second < FIRST:
            return None
        second = min(second, LAST - 60)
        if self._every_hour:
            return self._step(second + 1, -1)
        shown = self._clock(second)
        start = shown.replace(tzinfo=None) + timedelta(seconds=1)
        if shown.fold:  # whatever the clock shows twice has been due, the first time
            start += (shown.replace(fold=0).utcoffset() or _DAY) - (shown.utcoffset() or _DAY)
        for wall in CronSim(self._line, start, reverse=True):
            due = self._instant(wall)
            if due <= second:
                return due if due >= FIRST else None
        return None

    def _step(self, second: int, way: int) -> int | None:
        """Of a line that names every hour: the next minute after (1) or before (-1) `second` at which the clock shows it."""
        at = second // 60 * 60 + 60 if way > 0 else -(-second // 60) * 60 - 60
        while FIRST <= at < LAST:
            shown = self._clock(at)
            if not self._on(shown):
                at = self._day(shown, at, way)
            elif shown.minute in self._named.minutes:
                return at
            else:
                wait = next(n for n in range(1, 61) if (shown.minute + way * n) % 60 in self._named.minutes)
                then = at + way * wait * 60
                unchanged = self._clock(then) - shown == way * wait * _MINUTE  # readings: both have the same zone
                at = then if unchanged else at + way * 60
        return None

    def _day(self, shown: datetime, at: int, way: int) -> int:
        """The first or last minute of the next day that the line names, or at least a step in its direction."""
        midnight = _first(self._days, datetime(shown.year, shown.month, shown.day), reverse=way < 0)
        if midnight is None:
            return LAST if way > 0 else FIRST - 60
        if way > 0:
            return max(at + 60, self._instant(midnight))
        return min(at - 60, self._instant(midnight + _DAY, fold=1) - 60)

    def _on(self, day: datetime) -> bool:
        return day.month in self._named.months and self._named.match_day(day)

    def _clock(self, second: int) -> datetime:
        return datetime.fromtimestamp(second, self._zone)

    def _instant(self, wall: datetime, fold: int = 0) -> int:
        """When the clock shows `wall` (the second time if `fold`, and there is one); the end of the gap if it never does."""
        local = wall.replace(tzinfo=self._zone, fold=fold)
        late = int(local.timestamp())
        if self._clock(late) == local:
            return late
        early = int(local.replace(fold=1).timestamp())  # in a gap the two readings lie on either side of its end
        late = int(local.replace(fold=0).timestamp())
        before = self._clock(early).utcoffset()
        while late - early > 1:
            middle = (early + late) // 2
            if self._clock(middle).utcoffset() == before:
                early = middle
            else:
                late = middle
        return late


@lru_cache(maxsize=1024)  # some 10 KB each
def crontab(expression: str, timezone: str) -> Crontab:
    """The line as read. Raises `ValueError` with a text for whoever wrote it."""
    return Crontab(expression, timezone)


def _fields(expression: str) -> list[str]:
    if len(expression) > MAX_CHARS:
        raise ValueError(f"a cron expression has at most {MAX_CHARS} characters")
    text = expression.strip().lower()
    if text == "@reboot":
        raise ValueError("@reboot names no time: nothing here is ever rebooted")
    fields = _ALIASES.get(text, expression).upper().split()
    if len(fields) != 5:
        known = ", ".join(_ALIASES)
        raise ValueError(
            f"a cron expression has five fields (minute hour day month weekday) or is one of {known}: {expression!r}"
        )
    if not all(_SYNTAX.fullmatch(field) for field in fields) or "L/" in fields[2]:
        raise ValueError(f"cron expression {expression!r}: fields are made of numbers, names and * , - / # L")
    return fields


def _first(line: str, start: datetime, *, reverse: bool = False) -> datetime | None:
    readings: Iterator[datetime] = iter(CronSim(line, start, reverse))
    return next(readings, None)


def zone(name: str) -> ZoneInfo:
    """By its IANA name, from the package tzdata. Raises `ValueError`."""
    if name not in _names():
        raise ValueError(f"{name[:64]!r} is no IANA time zone, such as UTC or Europe/Berlin")
    return _load(name)


@cache
def _names() -> frozenset[str]:
    return frozenset(resources.files("tzdata").joinpath("zones").read_text(encoding="utf-8").split())


@cache  # as many as there are names
def _load(name: str) -> ZoneInfo:
    with resources.files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as file:
        return ZoneInfo.from_file(file, key=name)
