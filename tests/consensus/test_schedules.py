"""When a schedule is due: by hand where the clock is put forward or back, by its own laws everywhere else."""

from __future__ import annotations

import random
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from consensus import crontab, schedules
from consensus.errors import Reject
from consensus.messages import JobSpec, Uint256
from consensus.schedules import Cron, Interval, Moments, Schedule
from consensus.triggers import Trigger
from tests.consensus import oracle

DOCUMENT = Path(__file__).parents[2] / "docs" / "scheduling.md"
ALWAYS: dict[str, Any] = {"created_at": 0, "time_frame": 2**62}
BERLIN, NEW_YORK, LORD_HOWE = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"
APIA, KATHMANDU = "Pacific/Apia", "Asia/Kathmandu"


def utc(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def between(trigger: Schedule, first: int, last: int, **life: int) -> list[int]:
    """Walked forward; every law that ties the functions together is checked on the way."""
    found: list[int] = []
    second = schedules.next_due(trigger, first - 1, **(life := life or ALWAYS))
    while second is not None and second <= last:
        assert schedules.is_due(trigger, second, **life)
        assert schedules.last_due(trigger, second, **life) == second
        if found:
            assert schedules.last_due(trigger, second - 1, **life) == found[-1]
        found.append(second)
        second = schedules.next_due(trigger, second, **life)
    assert schedules.count_due(trigger, first, last, **life) == len(found)
    return found


# Every time below is UTC.
# Berlin: +1, and +2 from 2027-03-28 01:00 to 2027-10-31 01:00.
# New York: -5, and -4 from 2027-03-14 07:00 to 2027-11-07 06:00.
# Lord Howe: +11 until 2027-04-03 15:00, +10:30 until 2027-10-02 15:30, then +11.
# Apia: -10 until 2011-12-30 10:00, then +14: it had no 30th of December.
# Kathmandu: +5:45.
FORWARD = [
    ("30 2 * * *", BERLIN, "2027-03-27 00:00", "2027-03-29 12:00", ["03-27 01:30", "03-28 01:00", "03-29 00:30"]),
    ("0,15,30 2 * * *", BERLIN, "2027-03-28 00:00", "2027-03-28 12:00", ["03-28 01:00"]),
    (
        "*/30 1-3 * * *",
        BERLIN,
        "2027-03-28 00:00",
        "2027-03-28 12:00",
        ["03-28 00:00", "03-28 00:30", "03-28 01:00", "03-28 01:30"],
    ),
    ("* 2 * * *", BERLIN, "2027-03-28 00:00", "2027-03-28 12:00", ["03-28 01:00"]),
    ("30 2 28 3 *", BERLIN, "2027-01-01 00:00", "2027-12-31 00:00", ["03-28 01:00"]),
    ("30 * * * *", BERLIN, "2027-03-28 00:00", "2027-03-28 02:00", ["03-28 00:30", "03-28 01:30"]),
    ("*/30 0-23 * * SUN", BERLIN, "2027-03-28 00:30", "2027-03-28 01:30", ["03-28 00:30", "03-28 01:00", "03-28 01:30"]),
    ("0 */2 * * *", BERLIN, "2027-03-27 23:00", "2027-03-28 02:00", ["03-27 23:00", "03-28 01:00", "03-28 02:00"]),
    ("15 2 * * *", NEW_YORK, "2027-03-13 12:00", "2027-03-15 12:00", ["03-14 07:00", "03-15 06:15"]),
    ("0 2 * * SUN", NEW_YORK, "2027-03-13 12:00", "2027-03-15 12:00", ["03-14 07:00"]),
    ("15 2 * * *", LORD_HOWE, "2027-10-02 00:00", "2027-10-03 20:00", ["10-02 15:30", "10-03 15:15"]),
    ("15 * * * *", LORD_HOWE, "2027-10-02 14:00", "2027-10-02 17:00", ["10-02 14:45", "10-02 16:15"]),
    ("45 * * * *", LORD_HOWE, "2027-10-02 14:30", "2027-10-02 17:00", ["10-02 15:15", "10-02 15:45", "10-02 16:45"]),
    ("0 9 * * *", APIA, "2011-12-29 00:00", "2011-12-31 23:59", ["12-29 19:00", "12-30 10:00", "12-30 19:00", "12-31 19:00"]),
    ("0 0 30 * *", APIA, "2011-12-01 00:00", "2011-12-31 23:59", ["12-30 10:00"]),
    ("0 * 30 12 *", APIA, "2011-12-01 00:00", "2011-12-31 23:59", []),
    ("0 * * * SAT", APIA, "2011-12-30 08:00", "2011-12-30 12:00", ["12-30 10:00", "12-30 11:00", "12-30 12:00"]),
]
BACK = [
    ("30 2 * * *", BERLIN, "2027-10-30 12:00", "2027-11-01 12:00", ["10-31 00:30", "11-01 01:30"]),
    ("*/20 2 * * *", BERLIN, "2027-10-30 12:00", "2027-10-31 12:00", ["10-31 00:00", "10-31 00:20", "10-31 00:40"]),
    ("0 3 * * *", BERLIN, "2027-10-30 12:00", "2027-10-31 12:00", ["10-31 02:00"]),
    ("30 * * * *", BERLIN, "2027-10-30 23:45", "2027-10-31 02:45", ["10-31 00:30", "10-31 01:30", "10-31 02:30"]),
    ("@hourly", BERLIN, "2027-10-30 23:30", "2027-10-31 02:00", ["10-31 00:00", "10-31 01:00", "10-31 02:00"]),
    ("0 */2 * * *", BERLIN, "2027-10-30 22:30", "2027-10-31 05:00", ["10-31 00:00", "10-31 03:00", "10-31 05:00"]),
    ("30 1 * * *", NEW_YORK, "2027-11-06 12:00", "2027-11-08 12:00", ["11-07 05:30", "11-08 06:30"]),
    ("0 1-2 * * *", NEW_YORK, "2027-11-07 04:00", "2027-11-07 12:00", ["11-07 05:00", "11-07 07:00"]),
    ("45 1 * * *", LORD_HOWE, "2027-04-03 00:00", "2027-04-04 00:00", ["04-03 14:45"]),
    ("0 2 * * *", LORD_HOWE, "2027-04-03 00:00", "2027-04-04 00:00", ["04-03 15:30"]),
    ("45 * * * *", LORD_HOWE, "2027-04-03 14:00", "2027-04-03 16:30", ["04-03 14:45", "04-03 15:15", "04-03 16:15"]),
]
FIELDS = [
    ("0 9 * * *", KATHMANDU, "2027-01-01 00:00", "2027-01-02 23:00", ["01-01 03:15", "01-02 03:15"]),
    ("@hourly", KATHMANDU, "2027-01-01 00:00", "2027-01-01 02:00", ["01-01 00:15", "01-01 01:15"]),
    ("@daily", BERLIN, "2027-03-27 00:00", "2027-03-29 23:00", ["03-27 23:00", "03-28 22:00", "03-29 22:00"]),
    ("@weekly", "UTC", "2027-01-01 00:00", "2027-01-12 00:00", ["01-03 00:00", "01-10 00:00"]),
    ("@monthly", "UTC", "2027-01-01 00:00", "2027-02-12 00:00", ["01-01 00:00", "02-01 00:00"]),
    ("@yearly", "UTC", "2027-01-01 00:00", "2027-12-31 00:00", ["01-01 00:00"]),
    ("0 12 1 JAN,mar *", "UTC", "2027-01-01 00:00", "2027-12-31 00:00", ["01-01 12:00", "03-01 12:00"]),
    ("0 0 13 * FRI", "UTC", "2027-01-08 00:00", "2027-01-16 00:00", ["01-08 00:00", "01-13 00:00", "01-15 00:00"]),
    ("0 0 */13 * FRI", "UTC", "2027-01-01 00:00", "2027-01-31 00:00", ["01-01 00:00"]),
    ("0 0 * * 7", "UTC", "2027-01-01 00:00", "2027-01-05 00:00", ["01-03 00:00"]),
    ("0 0 L * *", "UTC", "2027-01-01 00:00", "2027-03-01 00:00", ["01-31 00:00", "02-28 00:00"]),
    ("0 0 LW * *", "UTC", "2027-01-01 00:00", "2027-02-01 00:00", ["01-29 00:00"]),
    ("0 0 * * 5L", "UTC", "2027-01-01 00:00", "2027-02-01 00:00", ["01-29 00:00"]),
    ("0 0 * * MON#1", "UTC", "2027-01-01 00:00", "2027-01-31 00:00", ["01-04 00:00"]),
    ("0 0 29 2 *", BERLIN, "2024-03-01 00:00", "2028-12-31 00:00", ["2028-02-28 23:00"]),
]


@pytest.mark.parametrize(("line", "zone", "first", "last", "due"), [*FORWARD, *BACK, *FIELDS])
def test_a_line_is_due_when_a_person_says_so(line: str, zone: str, first: str, last: str, due: list[str]) -> None:
    expected = [utc(text if len(text) > 11 else f"{first[:4]}-{text}") for text in due]
    assert between(Cron(line, zone), utc(first), utc(last)) == expected


@pytest.mark.parametrize(("line", "zone", "first", "last", "due"), [row for row in [*FORWARD, *BACK] if row[1] != APIA])
def test_the_oracle_agrees_with_that_person(line: str, zone: str, first: str, last: str, due: list[str]) -> None:
    assert len(oracle.first_due(line, zone, utc(first) - 1, utc(last), 100)) == len(due)


def test_the_examples_in_the_document_are_true() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| (\w+/\w+) \| [^|]+ \| (\S+) ([^|]+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert len(rows) == 9
    for line, zone, day, times in rows:
        due = [utc(f"{day} {at}") for at in times.split(", ")]
        assert between(Cron(line, zone), due[0] - 1800, due[-1] + 600) == due


def test_a_day_without_its_hour_has_one_firing_for_each_line_and_none_is_lost_when_asked_in_the_middle() -> None:
    line = Cron("0,15,30 2 * * *", BERLIN)
    gap = utc("2027-03-28 01:00")
    assert [schedules.is_due(line, gap + minute * 60, **ALWAYS) for minute in (-60, -1, 0, 15, 30)] == [
        False,
        False,
        True,
        False,
        False,
    ]
    assert schedules.next_due(line, gap - 1, **ALWAYS) == gap
    assert schedules.last_due(line, gap + 3600, **ALWAYS) == gap
    again = utc("2027-10-31 01:10")  # the clock shows 02:10 for the second time
    assert schedules.last_due(line, again, **ALWAYS) == utc("2027-10-31 00:30")
    assert schedules.next_due(line, again, **ALWAYS) == utc("2027-11-01 01:00")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("", "five fields"),
        ("* * * *", "five fields"),
        ("* * * * * *", "five fields"),
        ("0 0 1 1 * 2027", "five fields"),
        ("@reboot", "names no time"),
        ("@every 5m", "five fields"),
        ("@fortnightly", "five fields"),
        ("60 * * * *", "minute"),
        ("* 24 * * *", "hour"),
        ("* * 0 * *", "day-of-month"),
        ("* * 32 * *", "day-of-month"),
        ("* * * 13 *", "month"),
        ("* * * FOO *", "month"),
        ("* * * * 8", "day-of-week"),
        ("* * * * FRI-MON", "day-of-week"),
        ("*/0 * * * *", "minute"),
        ("5- * * * *", "minute"),
        ("1,,2 * * * *", "minute"),
        ("-1 * * * *", "minute"),
        ("1/1/1 * * * *", "minute"),
        ("* * L/2 * *", "numbers, names"),
        ("* * ? * *", "numbers, names"),
        ("H * * * *", "minute"),
        ("* * * * MON#6", "day-of-week"),
        ("٣ * * * *", "numbers, names"),
        ("\x00 * * * *", "numbers, names"),
        ("0 0 30 2 *", "day-of-month"),
        ("0 0 31 4,6,9,11 *", "day-of-month"),
        ("0 0 */30 2 MON#5", "never comes"),
        ("0 0 */30 * MON#3", "never comes"),
        ("0," * 200 + "0 * * * *", "256 characters"),
    ],
)
def test_a_line_that_is_none_or_never_comes_is_refused(line: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Cron(line, "UTC")


@pytest.mark.parametrize("zone", ["", "Mars/Olympus", "../UTC", "/etc/localtime", "europe/berlin", "EST5EDT4", "Europe", "\x00"])
def test_a_zone_that_is_none_is_refused(zone: str) -> None:
    with pytest.raises(ValueError, match="IANA time zone"):
        Cron("* * * * *", zone)


@pytest.mark.parametrize("seconds", [(), (0,), (-5, 5), (5, 5), (6, 5), tuple(range(1, 1002)), (2**63,)])
def test_specific_times_are_few_positive_and_in_order(seconds: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="specific times"):
        Moments(seconds)


def test_specific_times_are_due_within_the_jobs_life() -> None:
    moments = Moments((5, 10, 11, 400))
    assert between(moments, 0, 1000, created_at=5, time_frame=100) == [10, 11]
    assert schedules.last_due(moments, 9, created_at=5, time_frame=100) is None
    assert not schedules.is_due(moments, 400, created_at=5, time_frame=100)
    assert len(Moments(tuple(range(1, 1001))).seconds) == 1000


def test_an_interval_is_anchored_to_the_jobs_creation() -> None:
    assert between(Interval(7), 0, 1000, created_at=100, time_frame=21) == [107, 114, 121]
    assert schedules.last_due(Interval(7), 106, created_at=100, time_frame=21) is None
    assert schedules.count_due(Interval(1), 1, 2**40, created_at=0, time_frame=2**40) == 2**40


@pytest.mark.parametrize("trigger", [Interval(60), Cron("0 9 * * MON-FRI", BERLIN), Moments((1, 2, 2**62))])
def test_schedules_travel_in_a_job_spec(trigger: Schedule) -> None:
    spec = JobSpec(Uint256(1), 1, 1, bytes(20), 1, 1, trigger, bytes(20), "f()", "[]", 0)
    assert JobSpec.decode(spec.encode()) == spec
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(trigger), type=Trigger) == trigger


@pytest.mark.parametrize(
    "trigger",
    [
        {"type": "cron", "expression": "0 0 30 2 *", "timezone": "UTC"},
        {"type": "cron", "expression": "* * * * *", "timezone": "nowhere"},
        {"type": "specific", "seconds": [2, 1]},
        {"type": "interval", "interval": 0},
    ],
)
def test_a_spec_with_a_schedule_that_is_none_is_malformed(trigger: dict[str, Any]) -> None:
    good = JobSpec(Uint256(1), 1, 1, bytes(20), 1, 1, Interval(60), bytes(20), "f()", "[]", 0).encode()
    fields = msgspec.msgpack.decode(good[1:])
    fields[6] = trigger
    with pytest.raises(Reject, match="MALFORMED"):
        JobSpec.decode(good[:1] + msgspec.msgpack.encode(fields))


@pytest.mark.parametrize(
    "trigger", [Interval(2**40), Cron("*/5 * * * *", LORD_HOWE), Cron("1 2 3 4 *", APIA), Moments((2**63 - 1,))]
)
@pytest.mark.parametrize("created_at", [1, 946_684_799, 7_258_118_399, 2**40, 2**62, 2**63 - 1])
@pytest.mark.parametrize("offset", [-(2**62), -1, 0, 59, 2**33, 2**62])
def test_times_out_of_all_reason_break_nothing(trigger: Schedule, created_at: int, offset: int) -> None:
    life = {"created_at": created_at, "time_frame": 2**63 - 1}
    second = created_at + offset
    schedules.is_due(trigger, second, **life)
    schedules.last_due(trigger, second, **life)
    schedules.count_due(trigger, second, second + 2**20, **life)
    due = schedules.next_due(trigger, second, **life)
    assert due is None or (due > second and schedules.is_due(trigger, due, **life))


@pytest.mark.parametrize(
    "line",
    [
        "0 0 29 2 *",
        "0 0 */28 2 MON#5",
        "0 0 * 2 SUN#5",
        "0 0 29 2 1",
        "59 23 31 12 *",
        "* * * 2 6#5",
        "0 0 */30 * MON#1",
        "1 * * 2 WED#5",
    ],
)
def test_no_search_for_a_rare_date_takes_long(line: str) -> None:
    began = time.process_time()
    crontab.Crontab(line, LORD_HOWE)  # read anew, not from the cache
    assert time.process_time() - began < 0.2
    for ask in (schedules.next_due, schedules.last_due, schedules.is_due):
        began = time.process_time()
        ask(Cron(line, LORD_HOWE), utc("2100-06-01 00:00"), **ALWAYS)
        assert time.process_time() - began < 0.1  # a few milliseconds, on a machine with much else to do


def test_every_zone_of_the_package_is_known_and_keeps_whole_minutes() -> None:
    chance = random.Random(1)
    for name in oracle.zone_names():
        line = crontab.crontab("* * * * *", name)
        for _ in range(20):
            second = chance.randrange(crontab.FIRST, utc("2037-01-01 00:00"))
            assert line.after(second) == second // 60 * 60 + 60


@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(utc("2020-01-01 00:00"), utc("2036-01-01 00:00")), st.integers(0, 86400))
def test_asked_anywhere_the_answers_agree(chance: random.Random, day: int, part: int) -> None:
    zone = chance.choice(oracle.zone_names())
    changes = oracle.days_before_changes(zone, utc("2026-01-01 00:00"), utc("2027-01-01 00:00"))
    second = chance.choice(changes) + part if changes and chance.random() < 0.5 else day
    try:
        trigger = Cron(oracle.any_line(chance), zone)
    except ValueError:
        assume(False)
    after, before = schedules.next_due(trigger, second, **ALWAYS), schedules.last_due(trigger, second, **ALWAYS)
    assert after is not None
    assert before is not None
    assert before <= second < after
    assert schedules.next_due(trigger, before, **ALWAYS) == after
    assert schedules.last_due(trigger, after - 1, **ALWAYS) == before
    assert schedules.is_due(trigger, second, **ALWAYS) == (before == second)
    assert schedules.is_due(trigger, after, **ALWAYS)
    assert not schedules.is_due(trigger, after, created_at=after, time_frame=5)
    assert not schedules.is_due(trigger, after, created_at=after - 9, time_frame=8)
    assert schedules.next_due(trigger, second, created_at=second, time_frame=after - second) == after
    assert schedules.next_due(trigger, second, created_at=second, time_frame=after - second - 1) is None
