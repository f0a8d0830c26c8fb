"""What a change makes of a record: pure, so that every store gives the same answer."""

from __future__ import annotations

from dataclasses import fields, replace

from consensus.lifecycle import REASONS, TaskState, may_follow
from coordinator.store.records import ACTIVE, Job, JobStatus, Task, TaskChange

_COPIED = tuple(f.name for f in fields(TaskChange) if f.name not in ("task_id", "path", "stages", "reason", "detail"))

_CHAIN_SAYS = {TaskState.EXECUTED, TaskState.CERTIFIED, TaskState.REJECTED}
_EXECUTED = (TaskState.EXECUTED, TaskState.ATTESTED)


def changed(task: Task, change: TaskChange) -> Task | None:
    """The task after the change, or None when the lifecycle does not let it go there, or it tells nothing new."""
    if task.accepted is not None and _CHAIN_SAYS & set(change.path):
        return None  # certified or rejected: nothing on chain follows, it can only be told again
    state, path = task.state, change.path
    if path == (TaskState.EXECUTED,) and state in _EXECUTED:
        path = ()  # told again, perhaps of another block after a reorganisation
    for step in path:
        if not may_follow(state, step):
            return None
        state = step
    reason, detail = change.reason, change.detail
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


def job_after(job: Job, before: Task, after: Task, now: int) -> Job:
    """What a task's step means for its job: when it last ran, and what it cost once the committee accepted."""
    if after.executed_at is not None and before.executed_at is None:
        job = replace(job, last_executed_at=max(after.executed_at, job.last_executed_at or 0), updated_at=now)
    if after.accepted and not before.accepted:
        job = replace(job, cost_actual=job.cost_actual + (after.cost or 0), updated_at=now)
    return job


def fired(job: Job, next_due: int | None, now: int) -> Job:
    """A job whose schedule moved on."""
    return replace(job, next_due=next_due, status=JobStatus.SCHEDULED, updated_at=now)


def exhausted(job: Job) -> bool:
    """Whether the job completes as soon as its last task has ended."""
    return job.status in ACTIVE and job.next_due is None
