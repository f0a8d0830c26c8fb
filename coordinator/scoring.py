"""Which keeper is given a task: the requirements that it must meet, and the score that decides among those who do.

Pure; every part of a score is between 0 and 1, and docs/dispatch.md defines it in words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from coordinator.store.records import KeeperRecord

PERFORMANCE, LOAD, REPUTATION, SPECIALIZATION = 0.40, 0.30, 0.20, 0.10
"""Weights of the score's parts."""
TIE = 0.05
"""Scores no further than this from the best are equal: chance makes such differences, and a rule would make them for ever."""
PASSED_OVER = 32
"""A keeper that was passed over for this many assignments a keeper is tried again, whatever its score."""

_BELIEF = 4  # attempts that a keeper without a history is taken to have done well
_RECENT = 1 / 8  # weight of the newest attempt: half of the memory is the last five or six
_PROMPT = 1 / 4  # of performance: how soon it acknowledges; the rest is whether it executes
_UNKNOWN_PROMPTNESS = 0.9
_AN_HOUR = 3600
_VERSION = re.compile(r"v?(\d{1,9})(?:\.(\d{1,9}))?(?:\.(\d{1,9}))?")


@dataclass(frozen=True, slots=True)
class Standing:
    """A keeper at this moment. `open` counts its open attempts; `recent` is the share of its recent attempts that executed
    (None before the first), `latency_s` how soon it acknowledged; `turn` numbers its last assignment, 0 for none."""

    address: bytes
    peer_id: str
    connected: bool
    version: str = ""
    sandbox: str = ""
    open: int = 0
    recent: float | None = None
    latency_s: float | None = None
    uptime_s: int = 0
    known_s: int = 0
    """Seconds since its first check-in."""
    turn: int = 0
    record: KeeperRecord | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """What the platform asks of keepers, and how much it gives them. `whitelist` is of operators, all when empty."""

    min_version: str = "0.0.0"
    whitelist: frozenset[bytes] = frozenset()
    tasks_each: int = 64
    ack_timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Need:
    """What one task asks of its keeper. `tried` have had it before."""

    definition: int
    sandbox: bool = False
    tried: frozenset[bytes] = frozenset()


def version_of(text: str) -> tuple[int, int, int]:
    """`1.2.3` as numbers, what follows them (`-rc1`) left out; (0, 0, 0) for what is no version."""
    found = _VERSION.match(text)
    if found is None:
        return (0, 0, 0)
    major, minor, patch = (int(part or 0) for part in found.groups())
    return (major, minor, patch)


def recent_after(before: float | None, *, executed: bool) -> float:
    """`Standing.recent` after one more attempt."""
    known = 1.0 if before is None else before
    return known + _RECENT * (float(executed) - known)


def share_executed(record: KeeperRecord | None) -> float:
    """Of all attempts ever given to a keeper the share it executed well, and 1 for one without a history."""
    if record is None:
        return 1.0
    return (record.executed + _BELIEF) / (record.executed + record.rejected + record.failed + _BELIEF)


def suits(keeper: Standing, need: Need, policy: Policy) -> bool:
    """Whether the keeper meets the requirements; that it is online, registered and of the chain is known before."""
    if policy.whitelist and keeper.address not in policy.whitelist:
        return False
    if need.sandbox and not keeper.sandbox:
        return False
    return version_of(keeper.version) >= version_of(policy.min_version)


def score(keeper: Standing, definition: int, policy: Policy) -> float:
    """Between 0 and 1; the higher the sooner it is given the task."""
    record = keeper.record
    executed, rejected = (record.executed, record.rejected) if record else (0, 0)
    done = keeper.recent if keeper.recent is not None else share_executed(record)
    prompt = _UNKNOWN_PROMPTNESS
    if keeper.latency_s is not None:
        prompt = 1 - min(1.0, keeper.latency_s / policy.ack_timeout_s)
    performance = (1 - _PROMPT) * done + _PROMPT * prompt
    load = 1 - min(1.0, keeper.open / policy.tasks_each)
    accepted = (executed + _BELIEF) / (executed + rejected + _BELIEF)
    present = min(1.0, (keeper.uptime_s + _AN_HOUR) / (keeper.known_s + _AN_HOUR))
    reputation = (accepted + present) / 2
    of_this = record.by_definition.get(definition, 0) if record else 0
    specialization = (of_this + _BELIEF / 2) / (executed + _BELIEF)
    return PERFORMANCE * performance + LOAD * load + REPUTATION * reputation + SPECIALIZATION * min(1.0, specialization)


def suitable(keepers: Iterable[Standing], need: Need, policy: Policy) -> list[Standing]:
    """Who may be given the task, busy or not: those that have not had it, if there are any; of these the connected, if any."""
    fit = [k for k in keepers if suits(k, need, policy)]
    fit = [k for k in fit if k.address not in need.tried] or fit
    return [k for k in fit if k.connected] or fit


def choose(keepers: Sequence[Standing], need: Need, policy: Policy, turn: int) -> Standing | None:
    """Whom of the suitable to give the task; None when each has as many as it may have. `turn` numbers this assignment.

    The best score; among equals who has waited longest. Who has been passed over for very long comes first all the same:
    a keeper that failed must get the chance to do better.
    """
    free = [k for k in keepers if k.open < policy.tasks_each]
    if not free:
        return None
    longest = min(free, key=lambda k: (k.turn, k.address))
    if turn - longest.turn >= PASSED_OVER * len(keepers):
        return longest
    scores = {k.address: score(k, need.definition, policy) for k in free}
    best = max(scores.values())
    return min((k for k in free if scores[k.address] >= best - TIE), key=lambda k: (k.turn, k.address))
