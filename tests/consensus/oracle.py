"""When cron lines are due, by other people's code: croniter matches the fields, dateutil reads the zones.

Shares nothing with `consensus.crontab` but the zone files of the package tzdata.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import resources
from itertools import pairwise

from croniter import CroniterBadDateError, croniter
from dateutil import tz

EPOCH = datetime(1970, 1, 1)
MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
WEEKDAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]
_ALIASES = ["@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually"]


@cache
def zone_names() -> list[str]:
    return [name for name in resources.files("tzdata").joinpath("zones").read_text().split() if name != "Factory"]


@cache
def zone(name: str) -> tz.tzfile:
    with resources.as_file(resources.files("tzdata").joinpath("zoneinfo", *name.split("/"))) as path:
        return tz.tzfile(str(path))


def shown(second: int, where: tz.tzfile) -> datetime:
    """What the clock on the wall shows then."""
    return datetime.fromtimestamp(second, UTC).astimezone(where).replace(tzinfo=None, fold=0)


def seconds_of(reading: datetime, where: tz.tzfile) -> list[int]:
    """When the clock shows this: once, twice, or never."""
    naive = int((reading - EPOCH).total_seconds())
    offsets = {int((reading.replace(tzinfo=where, fold=fold).utcoffset() or timedelta()).total_seconds()) for fold in (0, 1)}
    return sorted(naive - offset for offset in offsets if shown(naive - offset, where) == reading)


def _end_of_gap(reading: datetime, where: tz.tzfile, shift: int) -> int:
    offset = (reading.replace(tzinfo=where, fold=0).utcoffset() or timedelta()).total_seconds()
    second = int((reading - EPOCH).total_seconds() - offset) - shift
    while shown(second, where) < reading:
        second += 60
    return second


def due(expression: str, name: str, after: int, shift: int) -> Iterator[int]:
    """The due seconds after `after`, ascending, for ever. No clock is put back by more than `shift` seconds."""
    where = zone(name)
    start = shown(after, where) - timedelta(seconds=shift)
    lines = croniter(expression, start, ret_type=datetime, implement_cron_bug=True)
    every_hour = lines.expanded[1] == ["*"] or set(lines.expanded[1]) == set(range(24))
    held: list[int] = []  # until no later reading can come before them
    while True:
        reading = lines.get_next()
        times = seconds_of(reading, where)
        if not every_hour:
            times = times[:1] or [_end_of_gap(reading, where, shift)]
        while held and times and held[0] < times[0] - shift:
            yield held.pop(0)
        held = sorted({*held, *(second for second in times if second > after)})


def first_due(expression: str, name: str, after: int, before: int, most: int, *, shift: int = 2 * 3600) -> list[int]:
    """At most `most` of them, up to `before`."""
    found: list[int] = []
    for second in due(expression, name, after, shift):
        if second > before or len(found) == most:
            break
        found.append(second)
    return found


def never_due(expression: str) -> bool:
    """Whether the line names a date that never comes."""
    try:
        croniter(expression, EPOCH, ret_type=datetime, implement_cron_bug=True).get_next()
    except CroniterBadDateError:
        return True
    return False


@cache
def shift_of(name: str, start: int, end: int) -> int:
    """Seconds by which the zone's clock is put forward or back between two changes of its date."""
    offsets = [int((shown(day, zone(name)) - EPOCH).total_seconds()) - day for day in range(start, end, 86400)]
    return max(abs(after - before) for before, after in pairwise(offsets))


@cache
def days_before_changes(name: str, start: int, end: int) -> list[int]:
    """Seconds less than a day before the zone's clock is put forward or back."""
    days = range(start, end, 86400)
    offsets = [(day, (shown(day, zone(name)) - EPOCH).total_seconds() - day) for day in days]
    return [day for (day, before), (_, after) in pairwise(offsets) if before != after]


def any_line(chance: random.Random) -> str:
    """A crontab line such as people write, and some that they do not; hours of the night more often than others."""
    if chance.random() < 0.04:
        return chance.choice(_ALIASES)
    minute = _field(chance, 0, 59, star=0.15)
    hour = chance.choice([str(chance.randint(0, 4)), "1-3", "0-23", "2,3", "*/2"]) if chance.random() < 0.4 else ""
    hour = hour or _field(chance, 0, 23, star=0.4)
    day = "L" if chance.random() < 0.05 else _field(chance, 1, 31, star=0.6)
    month = chance.choice([*MONTHS, "mar-may", "SEP-nov", "3,10"]) if chance.random() < 0.1 else _field(chance, 1, 12, star=0.8)
    weekday = _field(chance, 0, 6, star=0.7)
    if chance.random() < 0.2:
        weekday = chance.choice([*WEEKDAYS, "mon-fri", "SAT,SUN", "7", "0"])
    elif day == "*" and chance.random() < 0.1:
        weekday = chance.choice(
            ["5#2", "sun#1"]
        )  # beside days of the month croniter takes these for "and", crontab's rule is "or"
    return f"{minute} {hour} {day} {month} {weekday}"


def _field(chance: random.Random, low: int, high: int, *, star: float) -> str:
    if chance.random() < star:
        return "*"
    first = chance.randint(low, high)
    last = chance.randint(first, high)
    if first == last:  # croniter takes 5-5 for *
        return str(first)
    every = chance.randint(1, 30)
    kinds = [
        str(first),
        f"*/{chance.randint(2, max(2, (high - low) // 2))}",
        f"{first}-{last}",
        f"{first}-{last}/{min(every, last - first)}",
        ",".join(map(str, sorted({chance.randint(low, high) for _ in range(chance.randint(2, 5))}))),
        f"{first},{max(first, last - 1)}-{last}",
    ]
    return chance.choice(kinds)
