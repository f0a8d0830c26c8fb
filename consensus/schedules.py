"""When a time job is due: one implementation for the scheduler that fires it and the attester who re-checks it.

A job is due at its schedule's seconds after its creation, up to and with the last second of its `time_frame`. Seconds are UTC.
What a crontab line means where the clock is put forward or back is in `consensus.crontab`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import msgspec

from consensus.crontab import crontab

MAX_MOMENTS = 1000


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

    def __post_init__(self) -> None:
        crontab(self.expression, self.timezone)


class Moments(msgspec.Struct, frozen=True, tag="specific", forbid_unknown_fields=True):
    """The named seconds (UTC), ascending and distinct."""

    seconds: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.seconds) <= MAX_MOMENTS:
            raise ValueError(f"a schedule of specific times has 1 to {MAX_MOMENTS} of them")
        if not 0 < self.seconds[0] <= self.seconds[-1] < 2**63:
            raise ValueError("specific times are positive UTC seconds")
        if any(earlier >= later for earlier, later in zip(self.seconds, self.seconds[1:], strict=False)):
            raise ValueError("specific times are in ascending order, each once")


Schedule = Interval | Cron | Moments
"""Everything that makes a job due at a second known beforehand."""


def is_due(trigger: Schedule, second: int, *, created_at: int, time_frame: int) -> bool:
    """Whether `second` (UTC) is one of the schedule's due seconds within the job's life of `time_frame` seconds."""
    elapsed = second - created_at
    if not 0 < elapsed <= time_frame:
        return False
    match trigger:
        case Interval():
            return elapsed % trigger.interval == 0
        case Cron():
            return crontab(trigger.expression, trigger.timezone).names(second)
        case Moments():
            return second in trigger.seconds


def next_due(trigger: Schedule, after: int, *, created_at: int, time_frame: int) -> int | None:
    """First due second strictly after `after`, or None when the job's life is over."""
    due: int | None
    match trigger:
        case Interval():
            due = created_at + (max(0, after - created_at) // trigger.interval + 1) * trigger.interval
        case Cron():
            if after >= created_at + time_frame:
                return None
            due = crontab(trigger.expression, trigger.timezone).after(max(after, created_at))
        case Moments():
            at = bisect_right(trigger.seconds, max(after, created_at))
            due = trigger.seconds[at] if at < len(trigger.seconds) else None
    return due if due is not None and due <= created_at + time_frame else None


def last_due(trigger: Schedule, until: int, *, created_at: int, time_frame: int) -> int | None:
    """Latest due second at or before `until`, or None when none has come."""
    until = min(until, created_at + time_frame)
    if until <= created_at:
        return None
    due: int | None
    match trigger:
        case Interval():
            due = until - (until - created_at) % trigger.interval
        case Cron():
            due = crontab(trigger.expression, trigger.timezone).until(until)
        case Moments():
            at = bisect_right(trigger.seconds, until)
            due = trigger.seconds[at - 1] if at else None
    return due if due is not None and due > created_at else None


def count_due(trigger: Schedule, first: int, last: int, *, created_at: int, time_frame: int, limit: int = 1000) -> int:
    """Number of due seconds from `first` to `last`, both included. Exact, but a crontab line's are counted up to `limit`."""
    first, last = max(first, created_at + 1), min(last, created_at + time_frame)
    if first > last:
        return 0
    match trigger:
        case Interval():
            return (last - created_at) // trigger.interval - (first - 1 - created_at) // trigger.interval
        case Moments():
            return bisect_right(trigger.seconds, last) - bisect_left(trigger.seconds, first)
        case Cron():
            line, count = crontab(trigger.expression, trigger.timezone), 0
            due = line.after(first - 1)
            while due is not None and due <= last and count < limit:
                count, due = count + 1, line.after(due)
            return count
