"""When a time job is due: one implementation for the scheduler that fires it and the attester who re-checks it."""

from __future__ import annotations

import msgspec


class Interval(msgspec.Struct, frozen=True, tag="interval", forbid_unknown_fields=True):
    """Every `interval` seconds, anchored to the job's creation: due at created_at + i * interval, i >= 1, up to its end."""

    interval: int

    def __post_init__(self) -> None:
        if not 1 <= self.interval <= 2**40:
            raise ValueError("interval is 1 to 2^40 seconds")


class Cron(msgspec.Struct, frozen=True, tag="cron", forbid_unknown_fields=True):
    """A crontab line's five fields (or `@daily` and its like) in an IANA time zone."""

    expression: str
    timezone: str


class Moments(msgspec.Struct, frozen=True, tag="specific", forbid_unknown_fields=True):
    """The named seconds (UTC), ascending and distinct."""

    seconds: tuple[int, ...]


Schedule = Interval | Cron | Moments
"""Everything that makes a job due at a second known beforehand."""


def is_due(trigger: Schedule, second: int, *, created_at: int, time_frame: int) -> bool:
    """Whether `second` (UTC) is one of the schedule's due seconds within the job's life of `time_frame` seconds."""
    assert isinstance(trigger, Interval)
    elapsed = second - created_at
    return 0 < elapsed <= time_frame and elapsed % trigger.interval == 0


def next_due(trigger: Schedule, after: int, *, created_at: int, time_frame: int) -> int | None:
    """First due second strictly after `after`, or None when the job's life is over."""
    assert isinstance(trigger, Interval)
    steps = max(0, after - created_at) // trigger.interval + 1
    due = created_at + steps * trigger.interval
    return due if due <= created_at + time_frame else None


def last_due(trigger: Schedule, until: int, *, created_at: int, time_frame: int) -> int | None:
    """Latest due second at or before `until`, or None when none has come."""
    assert isinstance(trigger, Interval)
    steps = (min(until, created_at + time_frame) - created_at) // trigger.interval
    return created_at + steps * trigger.interval if steps >= 1 else None
