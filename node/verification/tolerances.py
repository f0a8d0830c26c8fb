"""What cannot be reproduced exactly, and how far it may lie from what an attester finds itself."""

from __future__ import annotations

from consensus.messages import Usage
from node.sandbox.port import Limits

USAGE_FACTOR = 3
"""Claimed CPU, time, memory and traffic may be this many times the attester's own: other machines, and colder ones."""
USAGE_SLACK = Usage(cpu_ms=500, wall_ms=2_000, peak_kib=64 * 1024, transferred=256 * 1024)
"""And this much more: starts of interpreters and compilers, which weigh most in short runs."""


def most(own: Usage) -> Usage:
    """The most that another keeper may claim for a run that took `own` here."""
    return Usage(
        cpu_ms=USAGE_FACTOR * own.cpu_ms + USAGE_SLACK.cpu_ms,
        wall_ms=USAGE_FACTOR * own.wall_ms + USAGE_SLACK.wall_ms,
        peak_kib=USAGE_FACTOR * own.peak_kib + USAGE_SLACK.peak_kib,
        transferred=USAGE_FACTOR * own.transferred + USAGE_SLACK.transferred,
    )


def most_stopped(own: Usage, limits: Limits) -> Usage:
    """The same of a run that was stopped at a limit, here and there: all that the limits leave it.

    How far it had come by then, and so what it had taken of everything else, goes by the machine and what else that did.
    """
    bound = most(own)
    return Usage(
        cpu_ms=max(bound.cpu_ms, round(limits.cpus * limits.wall_s * 1000) + USAGE_SLACK.cpu_ms),
        wall_ms=max(bound.wall_ms, round(limits.wall_s * 1000) + USAGE_SLACK.wall_ms),
        peak_kib=max(bound.peak_kib, limits.memory // 1024 + USAGE_SLACK.peak_kib),
        transferred=max(bound.transferred, limits.transferred + USAGE_SLACK.transferred),
    )


def plausible(claimed: Usage, bound: Usage) -> bool:
    """Whether an honest keeper's machine may have used what is claimed, where it may have used `bound` at most."""
    return (
        claimed.cpu_ms <= bound.cpu_ms
        and claimed.wall_ms <= bound.wall_ms
        and claimed.peak_kib <= bound.peak_kib
        and claimed.transferred <= bound.transferred
    )


def near(code: str, own: Usage, limits: Limits) -> bool:
    """Whether a run that took `own` here may have broken the limit of `code` elsewhere: SCRIPT_TIMEOUT or SCRIPT_MEMORY."""
    bound = most(own)
    if code == "SCRIPT_TIMEOUT":
        return bound.wall_ms >= limits.wall_s * 1000
    return code == "SCRIPT_MEMORY" and bound.peak_kib * 1024 >= limits.memory
