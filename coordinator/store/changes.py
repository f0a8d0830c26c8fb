"""What a change makes of a record: pure, so that every store gives the same answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Protocol

from consensus import schedules
from consensus.lifecycle import REASONS, TaskState, may_follow
from consensus.messages import MAX_STORAGE_BYTES, Usage
from consensus.triggers import OnEvent, Schedule
from coordinator import points
from coordinator.store.records import (
    ACTIVE,
    Edge,
    Fired,
    Firing,
    Gap,
    Job,
    JobStatus,
    KeeperRecord,
    MissedPolicy,
    Task,
    TaskChange,
    User,
)

EVENT_GRACE_S = 3600
"""Seconds after an event job's life in which what happened within it may still become deep enough, or be read, and fire."""
MAX_CHANGES = 10_000
"""Changes to jobs that are remembered: two coordinators ask every few seconds."""
GAP_DAYS = 30
MAX_GAPS = 10_000
GAPS_SHOWN = 100
STORED = "stored"
"""The stage of a task that says when its run's storage became its job's."""
PACKAGE_DAYS = 3
"""Packages are forgotten after so long: attestation ends a day after a task's deadline."""
MAX_PACKAGES = 20_000
"""Packages that wait for their certificates: two hours of three a second."""

_NOT_KEPT = ("task_id", "path", "stages", "reason", "detail", "attesters", "rewards", "storage", "charge")
_COPIED = tuple(f.name for f in fields(TaskChange) if f.name not in _NOT_KEPT)

_CHAIN_SAYS = {TaskState.EXECUTED, TaskState.CERTIFIED, TaskState.REJECTED}
_EXECUTED = (TaskState.EXECUTED, TaskState.ATTESTED)

# --- tasks


def changed(task: Task, change: TaskChange) -> Task | None:
    """The task after the change, or None when the lifecycle does not let it go there, or it tells nothing new."""
    if task.accepted is not None and (_CHAIN_SAYS & set(change.path) or change.accepted is not None):
        return None  # certified or rejected: nothing on chain follows, it can only be told again
    if task.state is TaskState.NOT_EXECUTED and change.path == (TaskState.NOT_EXECUTED,):
        return None  # certified before, in another round or by another's word
    state, path = task.state, change.path
    if path == (TaskState.EXECUTED,) and state in _EXECUTED:
        path = ()  # told again, perhaps of another block after a reorganisation
    for step in path:
        if not may_follow(state, step):
            return None
        state = step
    reason, detail = (change.reason, change.detail) if change.path else (task.reason, task.detail)
    if state is TaskState.CERTIFIED:  # the last word on chain: what remains is whether the user's call worked
        state = TaskState.COMPLETED
        if task.successful is False:
            state, reason = TaskState.FAILED, "INNER_CALL_FAILED"
            detail = REASONS[reason].text
    news = {name: value for name in _COPIED if (value := getattr(change, name)) is not None}
    after = replace(
        task,
        state=state,
        reason=reason,
        detail=detail,
        stages={**change.stages, **task.stages},  # the first time something was seen is when it happened
        **news,
    )
    return None if after == task else after


@dataclass(frozen=True, slots=True)
class Credit:
    """What the verdict on one task adds to a keeper's record. Costs and `reward` are wei, `definition` the type of the job."""

    accepted_cost: int = 0
    rejected_cost: int = 0
    reward: int = 0
    executed: int = 0
    attested: int = 0
    rejected: int = 0
    definition: int = 0


@dataclass(frozen=True, slots=True)
class Settlement:
    """What the committee's verdict on a task means for others: points of its user, and what each keeper did."""

    user_points: int = 0
    keepers: Mapping[bytes, Sequence[Credit]] = field(default_factory=dict)


def settlement(before: Task, after: Task, change: TaskChange) -> Settlement | None:
    """Given once for each task: by the change that brings the verdict, or of a run without a transaction its charge."""
    if charged(before, after):
        return _accepted(after, change)
    if before.accepted is not None or after.accepted is None:
        return None
    if after.accepted:
        return _accepted(after, change)
    return Settlement(0, {after.performer: [Credit(rejected_cost=after.cost or 0, rejected=1)]} if after.performer else {})


def _accepted(task: Task, change: TaskChange) -> Settlement:
    cost = task.cost or 0
    keepers: dict[bytes, list[Credit]] = {}
    if task.performer is not None:
        keepers[task.performer] = [Credit(accepted_cost=cost, executed=1, definition=task.definition)]
    for attester in dict.fromkeys(change.attesters):
        keepers.setdefault(attester, []).append(Credit(accepted_cost=cost, attested=1))
    for operator, wei in change.rewards.items():
        keepers.setdefault(operator, []).append(Credit(reward=wei))
    return Settlement(cost, keepers)


def credited(record: KeeperRecord, credited_with: Sequence[Credit]) -> KeeperRecord:
    """A keeper's record with what it did."""
    for credit in credited_with:
        by_definition = dict(record.by_definition)
        if credit.executed:
            by_definition[credit.definition] = by_definition.get(credit.definition, 0) + 1
        earned = points.for_accepted(credit.accepted_cost, record.booster)
        record = replace(
            record,
            points=record.points + earned + points.for_rejected(credit.rejected_cost, record.booster),
            rewards=record.rewards + credit.reward,
            executed=record.executed + credit.executed,
            attested=record.attested + credit.attested,
            rejected=record.rejected + credit.rejected,
            by_definition=by_definition,
        )
    return record


def named(stored: KeeperRecord, form: KeeperRecord) -> KeeperRecord:
    """A keeper's record with what a form says of it."""
    return replace(
        stored,
        booster=form.booster,
        whitelisted=form.whitelisted,
        name=form.name,
        email=form.email,
        chat_id=form.chat_id,
    )


# --- users


def with_job(user: User, job: Job) -> User:
    """An owner who has created a job."""
    earned = user.points + points.for_creating(job.definition)
    return replace(user, points=earned, total_jobs=user.total_jobs + 1, updated_at=job.posted_at)


# --- jobs


class Fireable(Protocol):
    """What decides whether a job fires; a `Job` has it, and so has the narrow row that a store reads."""

    @property
    def status(self) -> JobStatus: ...
    @property
    def spent(self) -> bool: ...
    @property
    def starts_at(self) -> int | None: ...
    @property
    def edge(self) -> Edge: ...
    @property
    def revision(self) -> int: ...


def holds(fences: Mapping[int, int], tokens: Mapping[int, int], shard: int) -> bool:
    """Whether a coordinator's `fences` have the newest of the shard's `tokens`."""
    return shard in tokens and fences.get(shard) == tokens[shard]


def shard_of_checkpoint(name: str) -> int:
    """Of `events:<chain>:<shard>`."""
    return int(name.rpartition(":")[2])


def refusal(job: Fireable | None, firing: Firing) -> Fired | None:
    """Why a firing changes nothing; None when it is to be written."""
    if job is None or job.status not in ACTIVE or job.spent or job.starts_at is None:
        return Fired.INACTIVE
    if firing.revision is not None and firing.revision != job.revision:
        return Fired.INACTIVE
    if firing.edge is not None and firing.edge.expected != job.edge.number:
        return Fired.KNOWN
    return None


def fired(job: Job, firing: Firing, at: int) -> Job:
    """A job whose firing was written."""
    return replace(
        job,
        next_due=firing.next_due,
        edge=firing.edge.after if firing.edge is not None else job.edge,
        spent=firing.spent,
        status=JobStatus.SCHEDULED,
        updated_at=at,
    )


def touches_job(before: Task, after: Task) -> bool:
    """Whether a task's step means something for its job: `job_after`."""
    first_run, accepted = after.executed_at is not None and before.executed_at is None, after.accepted and not before.accepted
    return first_run or bool(accepted) or charged(before, after) or _never_fired(before, after)


def charged(before: Task, after: Task) -> bool:
    """Whether the run of a task that ended without a transaction has been charged now."""
    return after.state is TaskState.NOT_EXECUTED and before.cost is None and after.cost is not None


def _never_fired(before: Task, after: Task) -> bool:
    """The log that fired the task is gone: for the job it was none."""
    return before.state is not after.state is TaskState.FAILED and after.reason == "EVENT_REORGANISED"


def job_after(job: Job, before: Task, after: Task, at: int) -> Job:
    """What a task's step means for its job: when it last ran, and what it cost once the committee accepted.

    One that runs once fires again when what it ran for never was.
    """
    if _never_fired(before, after) and job.active and not job.recurring:
        job = replace(job, spent=False, updated_at=at)
    if after.executed_at is not None and before.executed_at is None:
        job = replace(job, last_executed_at=max(after.executed_at, job.last_executed_at or 0), updated_at=at)
    if (after.accepted and not before.accepted) or charged(before, after):
        job = replace(job, cost_actual=job.cost_actual + (after.cost or 0), updated_at=at)
    return job


def outcome(recurring: bool, newest: TaskState | None) -> JobStatus:
    """How a spent job ends, by the state of its newest task."""
    return JobStatus.FAILED if not recurring and newest not in (None, TaskState.COMPLETED) else JobStatus.COMPLETED


def begun(job: Job, at: int) -> Job:
    """A job that waited, when the one before it has completed: due seconds that passed meanwhile were never its own."""
    next_due, spent = job.next_due, at > job.expires_at
    if isinstance(job.trigger, Schedule):
        next_due = schedules.next_due(job.trigger, at, created_at=job.created_at, time_frame=job.time_frame)
        spent = next_due is None
    return replace(job, starts_at=at, next_due=next_due, spent=spent, updated_at=at, revision=job.revision + 1)


def paused(job: Job, at: int) -> Job | None:
    """None when it is not active."""
    return replace(job, status=JobStatus.PAUSED, updated_at=at, revision=job.revision + 1) if job.active else None


def resumed(job: Job, next_due: int | None, at: int) -> Job | None:
    """None when it is not paused."""
    if job.status is not JobStatus.PAUSED:
        return None
    job = replace(job, status=JobStatus.SCHEDULED, updated_at=at, revision=job.revision + 1)
    if isinstance(job.trigger, Schedule):
        return replace(job, next_due=next_due, spent=job.spent or (next_due is None and job.starts_at is not None))
    if isinstance(job.trigger, OnEvent):
        skip = job.missed is MissedPolicy.SKIP and job.starts_at is not None
        return replace(job, caught_up=False, starts_at=at if skip else job.starts_at)
    return job


_OWNERS = (
    "title",
    "trigger",
    "target",
    "spec",
    "priority",
    "security",
    "recurring",
    "timezone",
    "missed",
    "cost_prediction",
    "max_fee",
)


def updated(stored: Job, wanted: Job) -> Job | None:
    """The stored job with what its owner may change of it; None when it has ended."""
    if stored.ended:
        return None
    return replace(
        stored,
        next_due=stored.next_due if wanted.trigger == stored.trigger else wanted.next_due,  # it may have moved on meanwhile
        updated_at=wanted.updated_at,
        revision=stored.revision + 1,
        **{name: getattr(wanted, name) for name in _OWNERS},
    )


def expired(job: Job, at: int) -> Job | None:
    """The job as one that fires no more; None while it may, or its scheduler has yet to go through its past."""
    if job.ended or job.spent or at <= job.expires_at:
        return None
    if job.active and job.starts_at is not None:
        if isinstance(job.trigger, Schedule) and job.next_due is not None:
            return None
        if isinstance(job.trigger, OnEvent) and at <= job.expires_at + EVENT_GRACE_S:
            return None
    return replace(job, spent=True, updated_at=at)


def follower(job: Job, linked: Job | None) -> Job | None:
    """Who waits for the job: the one its link names, when that is its owner's too and has not begun."""
    return linked if linked is not None and linked.waiting and linked.owner == job.owner else None


def moved_by(ended: Job, waits: Job, at: int) -> Job:
    """What becomes of a job that waits, by the end of the one before it. When it ends by that too, its own follower is next."""
    if ended.status is not JobStatus.COMPLETED:
        return replace(waits, status=JobStatus.FAILED, updated_at=at)
    after = begun(waits, at)
    return replace(after, status=JobStatus.COMPLETED) if after.spent else after


def is_change(before: Job, after: Job) -> bool:
    """Whether those who watch the job must hear of it."""
    return before.revision != after.revision or before.ended != after.ended


# --- scripts


def stores(before: Task, after: Task, change: TaskChange) -> bool:
    """Whether the change's storage is the job's from now on: once for each task, whoever tells it again."""
    return change.storage is not None and STORED in after.stages and STORED not in before.stages


def stored(before: Mapping[str, str], updates: Mapping[str, str | None]) -> Mapping[str, str]:
    """A job's storage after a run: JSON text by key. As before when it would be too large to travel with a task."""
    after = {key: value for key, value in {**before, **updates}.items() if value is not None}
    return after if len(storage_text(after).encode()) <= MAX_STORAGE_BYTES else before


def storage_text(storage: Mapping[str, str]) -> str:
    """As tasks carry it: the text of a JSON object, the same for the same content; '' for none."""
    if not storage:
        return ""
    return "{" + ",".join(f"{json.dumps(key)}:{storage[key]}" for key in sorted(storage)) + "}"


def smoothed(before: Usage | None, latest: Usage) -> Usage:
    """What a script's runs use, the latest weighing a quarter."""
    if before is None:
        return latest

    def between(old: int, new: int) -> int:
        return old + (new - old) // 4

    return Usage(
        between(before.cpu_ms, latest.cpu_ms),
        between(before.wall_ms, latest.wall_ms),
        between(before.peak_kib, latest.peak_kib),
        between(before.transferred, latest.transferred),
    )


# --- gaps


def gap_horizon(gap: Gap) -> int:
    """Gaps that ended before are forgotten."""
    return gap.ended - GAP_DAYS * 86_400


def by_end(gap: Gap) -> tuple[int, int, str]:
    """Their order."""
    return gap.ended, gap.began, gap.scope
