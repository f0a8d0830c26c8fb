"""Times as people are told them."""

from __future__ import annotations

from datetime import UTC, datetime


def utc(seconds: float) -> str:
    """`2026-01-31 12:00:00 UTC`."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def minutes(seconds: float) -> str:
    """A duration of seconds: `45 s`, `12 min`, `3 h 5 min`, `2 d 1 h`."""
    whole = max(0, int(seconds))
    if whole < 120:
        return f"{whole} s"
    if whole < 2 * 3600:
        return f"{whole // 60} min"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
