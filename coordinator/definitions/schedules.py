"""Schedules from posted fields: fixed intervals, cron expressions, and named times with or without an offset."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from consensus import crontab
from consensus.errors import Invalid
from consensus.schedules import MAX_MOMENTS, Cron, Interval, Moments, Schedule

_FIELDS = {"interval": "time_interval", "cron": "cron_expression", "specific": "specific_schedule"}
_LAST_SECOND = 2**40  # the contracts' bound; today's milliseconds lie beyond it
_TIME = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.0{1,9})?)?)?\s*(Z|z|[+-]\d\d:?\d\d)?\Z", re.ASCII)


def zone(name: str) -> str:
    """The IANA time zone; UTC when none is given. Raises `Invalid`."""
    name = name or "UTC"
    try:
        crontab.zone(name)
    except ValueError:
        raise Invalid("timezone", f"{name[:60]!r} is no time zone", "send an IANA name like Europe/Berlin, or UTC") from None
    return name


def schedule(kind: str, interval: int | None, expression: str, moments: str | list[Any], timezone: str) -> Schedule:
    """The one schedule that is given; `kind` is `schedule_type`, and may be left out. Raises `Invalid`."""
    given = {"interval": interval is not None, "cron": bool(expression), "specific": bool(moments)}
    if kind and kind not in _FIELDS:
        raise Invalid("schedule_type", f"{kind[:40]!r} is no schedule", "send interval, cron or specific")
    chosen = kind or next((each for each in ("cron", "specific") if given[each]), "interval")
    if not given[chosen]:
        raise Invalid(_FIELDS[chosen], f"is missing, schedule_type {chosen} takes it", "add it")
    for other, is_given in given.items():
        if is_given and other != chosen:
            raise Invalid(_FIELDS[other], f"comes with {_FIELDS[chosen]}", "send exactly one of the two")
    match chosen:
        case "cron":
            return cron(expression, timezone)
        case "specific":
            return specific(moments, timezone)
    assert interval is not None
    return every(interval)


def every(interval: int | None) -> Interval:
    """Raises `Invalid`."""
    if interval is None or not 1 <= interval < _LAST_SECOND:
        raise Invalid("time_interval", "is missing or not a positive number of seconds", "send whole seconds, at least 1")
    return Interval(interval)


def cron(expression: str, timezone: str) -> Cron:
    """Raises `Invalid`."""
    named = zone(timezone)
    try:
        return Cron(" ".join(expression.split()), named)
    except ValueError as error:
        raise Invalid("cron_expression", str(error)[:200], "send five fields like 0 9 * * mon-fri, or @daily") from None


def specific(moments: str | list[Any], timezone: str) -> Moments:
    """Times as a list or comma-separated, each RFC 3339, local in `timezone`, or epoch seconds. Raises `Invalid`.

    Sorted, and each once. A local time that a change of clocks skips is as much later as was skipped; of one that comes twice
    the first is meant.
    """
    named = crontab.zone(zone(timezone))
    if not isinstance(moments, str | list):
        raise Invalid("specific_schedule", "is neither text nor list", "send times like 2030-01-31T09:00:00Z, comma-separated")
    parts = [part for part in moments.split(",") if part.strip()] if isinstance(moments, str) else moments
    if not 1 <= len(parts) <= MAX_MOMENTS:
        raise Invalid("specific_schedule", f"has {len(parts)} times", f"send 1 to {MAX_MOMENTS}")
    try:
        return Moments(tuple(sorted({_moment(part, named) for part in parts})))
    except ValueError as error:
        raise Invalid("specific_schedule", str(error)[:200], "send times like 2030-01-31T09:00:00Z") from None


def _moment(value: Any, named: ZoneInfo) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        second = value
    else:
        text = value.strip() if isinstance(value, str) else ""
        second = int(text) if text.isascii() and text.isdecimal() and len(text) <= 20 else _second(text, value, named)
    if not 0 < second < _LAST_SECOND:
        raise Invalid(
            "specific_schedule", f"{second} is no time in seconds", "send seconds, not milliseconds, or 2030-01-31T09:00:00Z"
        )
    return second


def _second(text: str, value: Any, named: ZoneInfo) -> int:
    shown, remedy = repr(value)[:60], "send 2030-01-31T09:00:00Z, local 2030-01-31 09:00, or epoch seconds"
    if not _TIME.match(text):
        raise Invalid("specific_schedule", f"{shown} is no time of whole seconds", remedy)
    try:
        time = datetime.fromisoformat(text.replace(" ", "T", 1).replace(" ", ""))
        return int((time if time.tzinfo else time.replace(tzinfo=named)).timestamp())
    except (ValueError, OverflowError):
        raise Invalid("specific_schedule", f"{shown} is no time", remedy) from None


def fields(trigger: Schedule) -> Mapping[str, Any]:
    """The schedule as it would be posted, beside `timezone`."""
    match trigger:
        case Interval(interval=interval):
            return {**_NONE, "schedule_type": "interval", "time_interval": interval}
        case Cron(expression=expression):
            return {**_NONE, "schedule_type": "cron", "cron_expression": expression}
        case Moments(seconds=seconds):
            times = ",".join(datetime.fromtimestamp(s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for s in seconds)
            return {**_NONE, "schedule_type": "specific", "specific_schedule": times}


_NONE: Mapping[str, Any] = {"time_interval": 0, "cron_expression": "", "specific_schedule": ""}
