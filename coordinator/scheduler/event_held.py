"""Matches between being seen and being out of reach of a reorganisation: those that wait for depth, and those just fired."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from consensus.events import OnEvent
from consensus.triggers import LogSeen

Key = tuple[int, int]
"""Job id and trigger id: one firing."""


@dataclass(frozen=True, slots=True)
class Match:
    """A log that fires a job, and the block from whose position on it is deep enough."""

    job_id: int
    trigger_id: int
    seen: LogSeen
    block: int
    due_at: int

    @property
    def key(self) -> Key:
        return (self.job_id, self.trigger_id)


class Held:
    """Matches that wait, by the block that makes them due and by job."""

    def __init__(self) -> None:
        self._due: dict[int, dict[Key, Match]] = {}
        self._jobs: dict[int, dict[Key, Match]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: Key) -> bool:
        return key in self._jobs.get(key[0], {})

    def add(self, match: Match) -> None:
        """In place of what was held of the same firing."""
        self.drop(match.key)
        self._due.setdefault(match.due_at, {})[match.key] = match
        self._jobs.setdefault(match.job_id, {})[match.key] = match
        self._count += 1

    def drop(self, key: Key) -> None:
        match = self._jobs.get(key[0], {}).pop(key, None)
        if match is None:
            return
        self._count -= 1
        if not self._jobs[key[0]]:
            del self._jobs[key[0]]
        del self._due[match.due_at][key]
        if not self._due[match.due_at]:
            del self._due[match.due_at]

    def drop_job(self, job_id: int) -> None:
        for key in list(self._jobs.get(job_id, ())):
            self.drop(key)

    def drop_from(self, block: int) -> None:
        """Those of logs in `block` or later."""
        for match in [m for matches in self._jobs.values() for m in matches.values() if m.block >= block]:
            self.drop(match.key)

    def due(self, position: int) -> Iterator[Match]:
        """Those deep enough at `position`, the deepest first."""
        for due_at in sorted(at for at in self._due if at <= position):
            yield from sorted(self._due[due_at].values(), key=lambda m: m.block)

    def latest(self, job_id: int, count: int) -> Match | None:
        """The match in the newest block of a job that has `count` of them or more."""
        matches = self._jobs.get(job_id, {})
        return max(matches.values(), key=lambda m: m.block) if len(matches) >= count else None

    def oldest(self) -> dict[int, int]:
        """Each job's oldest block."""
        return {job_id: min(m.block for m in matches.values()) for job_id, matches in self._jobs.items()}

    def largest(self) -> list[tuple[int, int]]:
        """Jobs and the number of their matches, the most first."""
        return sorted(((job_id, len(matches)) for job_id, matches in self._jobs.items()), key=lambda each: -each[1])

    def clear(self) -> None:
        self._due.clear()
        self._jobs.clear()
        self._count = 0


@dataclass(frozen=True, slots=True)
class Fired:
    """A firing whose block may still be reorganised away, and where to look whether it was."""

    trigger: OnEvent
    seen: LogSeen
    block: int


class Recent:
    """Firings of the newest blocks; of those that a reorganisation took back, since when they are missed.

    At most `limit` are known: of more, the oldest are believed to stay.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._fired: dict[Key, Fired] = {}
        self._missed: dict[Key, tuple[Fired, int]] = {}

    def __len__(self) -> int:
        return len(self._fired) + len(self._missed)

    def add(self, key: Key, fired: Fired) -> None:
        self._missed.pop(key, None)
        self._fired.pop(key, None)
        self._fired[key] = fired
        while len(self._fired) > self._limit:
            del self._fired[next(iter(self._fired))]

    def seen_again(self, key: Key, block: int) -> bool:
        """Whether this firing is known and was not missed; its log is in `block` by now."""
        known = self._fired.get(key)
        if known is not None:
            self.add(key, Fired(known.trigger, known.seen, block))
        return known is not None

    def miss(self, key: Key, fired: Fired, head: int) -> None:
        """It was taken back, as of `head`, while it was being fired."""
        if key not in self._fired:
            self._missed[key] = (fired, head)

    def take_back(self, block: int, head: int) -> int:
        """What was fired by logs in `block` or later is missed as of `head`. Returns how many that are."""
        taken = [key for key, fired in self._fired.items() if fired.block >= block]
        for key in taken:
            self._missed[key] = (self._fired.pop(key), head)
        return len(taken)

    def missed_since(self, head: int) -> list[tuple[Key, Fired]]:
        """Those missed since `head` or longer."""
        return [(key, fired) for key, (fired, since) in self._missed.items() if since <= head]

    def give_up(self, key: Key) -> None:
        self._missed.pop(key, None)

    def forget_before(self, block: int) -> None:
        """Logs in blocks before `block` stay for good."""
        while self._fired and next(iter(self._fired.values())).block < block:  # they are in the order of their coming
            del self._fired[next(iter(self._fired))]
