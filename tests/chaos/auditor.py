"""What was due against what the chain executed: none lost, none twice, none that was not due; and how late."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

FiringKey = tuple[int, int]
"""Job id and trigger id."""


@dataclass(frozen=True, slots=True)
class Due:
    """A firing that had to be: `at` is when it was due (UTC seconds), `kind` names the trigger."""

    job_id: int
    trigger_id: int
    kind: str
    at: float

    @property
    def key(self) -> FiringKey:
        return (self.job_id, self.trigger_id)


@dataclass(frozen=True, slots=True)
class Executed:
    """An execution on the canonical chain; `at` is its block's timestamp."""

    job_id: int
    trigger_id: int
    at: int


@dataclass(slots=True)
class Audit:
    """`reported` are due firings that did not execute and whose task says why; `lost` are those that nobody mentions."""

    due: int = 0
    executed: int = 0
    lost: list[Due] = field(default_factory=list)
    twice: list[FiringKey] = field(default_factory=list)
    strangers: list[FiringKey] = field(default_factory=list)
    reported: dict[FiringKey, str] = field(default_factory=dict)
    lateness: dict[str, list[float]] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Everything that was due executed once, and nothing else did."""
        return not (self.lost or self.twice or self.strangers or self.reported)

    def lines(self) -> list[str]:
        """For people."""
        found = [
            f"due {self.due}, executed once {self.executed}, reported {len(self.reported)}, lost {len(self.lost)}, "
            f"twice {len(self.twice)}, not due {len(self.strangers)}"
        ]
        found += [f"  lateness of {kind}: {_spread(seconds)}" for kind, seconds in sorted(self.lateness.items())]
        found += [f"  lost: {d.kind} job {d.job_id} trigger {d.trigger_id} due {d.at:.0f}" for d in self.lost[:20]]
        found += [f"  reported: job {job} trigger {trigger}: {why}" for (job, trigger), why in list(self.reported.items())[:20]]
        found += [f"  twice: job {job} trigger {trigger}" for job, trigger in self.twice[:20]]
        found += [f"  not due: job {job} trigger {trigger}" for job, trigger in self.strangers[:20]]
        return found


def audit(due: Iterable[Due], executed: Sequence[Executed], reasons: Mapping[FiringKey, str]) -> Audit:
    """`reasons` are the ends of tasks that failed, as the coordinator tells them; only asked where the chain has nothing."""
    wanted = {d.key: d for d in due}
    times = Counter((e.job_id, e.trigger_id) for e in executed)
    first = {(e.job_id, e.trigger_id): e.at for e in sorted(executed, key=lambda e: -e.at)}
    result = Audit(due=len(wanted))
    result.twice = [key for key, count in times.items() if count > 1]
    result.strangers = [key for key in times if key not in wanted]
    for key, firing in wanted.items():
        if key in first:
            result.executed += 1
            result.lateness.setdefault(firing.kind, []).append(first[key] - firing.at)
        elif key in reasons:
            result.reported[key] = reasons[key]
        else:
            result.lost.append(firing)
    return result


def _spread(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    at = lambda share: ordered[min(len(ordered) - 1, int(share * len(ordered)))]  # noqa: E731
    return f"p50 {at(0.5):.1f} s, p99 {at(0.99):.1f} s, max {ordered[-1]:.1f} s of {len(ordered)}"
