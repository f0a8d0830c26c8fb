"""What clients get: jobs, tasks and users as JSON, in the field's names. Ids and wei are decimal strings, times RFC 3339."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from eth_utils.address import to_checksum_address

from consensus import conditions, schedules
from consensus.fees import Quote
from consensus.messages import JobSpec
from consensus.triggers import Cron, EdgeSeen, Interval, LogSeen, Moments, Observation, OnCondition, OnEvent
from coordinator import points
from coordinator.definitions.posted import DYNAMIC
from coordinator.definitions.shown import target_fields, trigger_fields
from coordinator.jobs import Taken
from coordinator.store.records import ACTIVE, Gap, Job, JobStatus, Task, User, shard_of
from node.arguments import parse_json

_LAST_SECOND = 253_402_300_799  # of the year 9999: a job may be registered for longer
_STATUS_TEXT = {
    JobStatus.CREATED: "pending",
    JobStatus.SCHEDULED: "running",
    JobStatus.COMPLETED: "completed",
    JobStatus.FAILED: "failed",
    JobStatus.PAUSED: "paused",
    JobStatus.DELETED: "deleted",
}


def rfc3339(seconds: float | None) -> str | None:
    """UTC, whole seconds; None stays None. RFC 3339 ends with the year 9999, and so does what lies beyond."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(min(int(seconds), _LAST_SECOND), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def hex_of(data: bytes | None) -> str:
    """0x text; empty where there is nothing yet."""
    return "" if data is None else "0x" + data.hex()


def status_text(job: Job) -> str:
    """FIELD's words for where a job is; one that waits for the job before it is `in-queue`."""
    return "in-queue" if job.waiting and job.status in ACTIVE else _STATUS_TEXT[job.status]


def created(taken: Taken) -> dict[str, Any]:
    """The answer to `POST /api/jobs`."""
    return {
        "user_id": taken.user.id,
        "account_balance": str(taken.balance),
        "token_balance": str(taken.balance),
        "job_ids": [str(job.id) for job in taken.jobs],
        "task_definition_ids": [job.definition for job in taken.jobs],
        "time_frames": [job.time_frame for job in taken.jobs],
    }


def fee(quote: Quote, gas: int) -> dict[str, Any]:
    """The answer to `GET /api/fees`: the bound under the names that clients know, and what it is made of."""
    total = dict.fromkeys(("total_fee", "total_fee_wei", "current_total_fee", "current_total_fee_wei"), str(quote.total))
    parts = {"execution_fee": str(quote.execution), "base_fee": str(quote.base), "script_fee": str(quote.script)}
    return {**total, **parts, "gas_limit": gas}


def job_data(job: Job, user_id: int, task_ids: Sequence[int]) -> dict[str, Any]:
    """FIELD's job_data."""
    return {
        "job_id": str(job.id),
        "job_title": job.title,
        "task_definition_id": job.definition,
        "user_id": user_id,
        "user_address": to_checksum_address(job.owner),
        "priority": job.priority,
        "security": job.security,
        "link_job_id": str(job.link_job_id),
        "chain_status": job.chain_status,
        "custom": job.custom,
        "time_frame": job.time_frame,
        "recurring": job.recurring,
        "status": status_text(job),
        "missed_run_policy": job.missed.value,
        "starts_at": rfc3339(job.starts_at),
        "job_cost_prediction": job.cost_prediction,
        "job_cost_actual": str(job.cost_actual),
        "max_fee": str(job.max_fee),
        "task_ids": [str(t) for t in task_ids],
        "created_at": rfc3339(job.created_at),
        "updated_at": rfc3339(job.updated_at),
        "last_executed_at": rfc3339(job.last_executed_at),
        "timezone": job.timezone,
        "is_imua": job.is_imua,
        "created_chain_id": str(job.created_chain_id),
        "is_safe": job.is_safe,
        "safe_name": job.safe_name,
        "safe_address": job.safe_address,
    }


def trigger_data(job: Job, now: float, gaps: Sequence[Gap]) -> tuple[str, dict[str, Any]]:
    """FIELD's time_job_data, event_job_data or condition_job_data, by its name: the trigger and the target.

    `gaps` are the times in which the condition was not looked at.
    """
    target = target_fields(job)
    parts = {
        "job_id": str(job.id),
        "task_definition_id": job.definition,
        **trigger_fields(job.trigger),
        "recurring": job.recurring,
        "expiration_time": rfc3339(job.expires_at),
        "created_at": rfc3339(job.created_at),
        "updated_at": rfc3339(job.updated_at),
        "is_active": job.status in ACTIVE,
        "is_completed": job.status is JobStatus.COMPLETED,
        **target,
        "arguments": [_argument(a) for a in target["arguments"]],
    }
    match job.trigger:
        case Interval() | Cron() | Moments():
            following = schedules.next_due(job.trigger, int(now), created_at=job.created_at, time_frame=job.time_frame)
            going = job.status in ACTIVE and not job.waiting
            due = {"timezone": job.timezone, "next_execution_timestamp": rfc3339(following) if going else None}
            return "time_job_data", {**parts, **due}
        case OnEvent():
            return "event_job_data", parts
        case OnCondition():
            unobserved = [{"from": rfc3339(gap.began), "to": rfc3339(gap.ended)} for gap in gaps]
            return "condition_job_data", {
                **parts,
                "times_fired": job.edge.number,
                "armed": job.edge.armed,
                "unobserved": unobserved,
            }


def gap_scopes(job: Job) -> Sequence[str]:
    """The gaps that concern a job: in which its shard, or one of its sources, was not watched. Only conditions have any."""
    if not isinstance(job.trigger, OnCondition):
        return ()
    return [f"shard:{shard_of(job.id)}", *{conditions.gap_scope(leaf.source) for leaf in conditions.leaves(job.trigger.root)}]


def storage(text: str) -> object:
    """What a script keeps, numbers as text."""
    return _argument(parse_json(text or "{}", "storage"))


def _argument(value: object) -> object:
    """Numbers as text: a client's JSON parser would round what is beyond 2^53."""
    if isinstance(value, list):
        return [_argument(v) for v in value]
    if isinstance(value, dict):
        return {k: _argument(v) for k, v in value.items()}
    return value if isinstance(value, str | bool) or value is None else str(value)


def task_data(task: Task, spec: bytes, explorer: str | None) -> dict[str, Any]:
    """FIELD's task_data. `spec` is the JobSpec that it executes, `explorer` the base URL of the chain's block explorer."""
    tx = hex_of(task.execution_tx)
    return {
        "task_id": str(task.id),
        "task_number": task.number,
        "job_id": str(task.job_id),
        "task_definition_id": task.definition,
        "created_at": rfc3339(task.created_at_ms / 1000),
        "scheduled_at": rfc3339(task.scheduled_at),
        "observation": _observation(task.observation),
        "task_opx_predicted_cost": str(task.predicted_cost),
        "task_opx_cost": None if task.cost is None else str(task.cost),
        "execution_timestamp": rfc3339(task.executed_at),
        "execution_tx_hash": tx,
        "task_performer_id": task.performer_id,
        "task_performer_address": to_checksum_address(task.performer) if task.performer else "",
        "proof_of_task": hex_of(task.proof),
        "task_attester_ids": list(task.attester_ids),
        "is_accepted": task.accepted,
        "is_successful": task.successful,
        "task_submission_tx_hash": hex_of(task.submission_tx),
        "submission_tx_hash": hex_of(task.submission_tx),
        "tx_url": f"{explorer.rstrip('/')}/tx/{tx}" if explorer and tx else "",
        "task_status": task.state.value,
        "task_error": f"{task.reason}: {task.detail}" if task.reason and task.detail else task.reason,
        "attempt": task.attempt,
        "converted_arguments": task.arguments or ("" if task.definition in DYNAMIC else JobSpec.decode(spec).arguments),
        "trace_id": task.trace_id,
        "stages": dict(task.stages),
    }


def _observation(seen: Observation) -> dict[str, Any] | None:
    """What fired the task, beside its schedule: the log's place, or the values that the condition held for."""
    match seen:
        case LogSeen(transaction=transaction, position=position):
            return {"event_tx_hash": hex_of(transaction), "event_position": position}
        case EdgeSeen(at=at, values=values):
            return {"observed_at": rfc3339(at), "values": list(values)}
    return None


def safe(safe_address: str, name: str, at: int) -> dict[str, Any]:
    """One of FIELD's safe_addresses."""
    return {"safe_address": safe_address, "safe_name": name, "created_at": rfc3339(at)}


def user_data(user: User, job_ids: Sequence[int], balance: int) -> dict[str, Any]:
    """FIELD's user_data. The deposit is the chain's; there is no token beside it."""
    return {
        "user_id": user.id,
        "user_address": to_checksum_address(user.address),
        "job_ids": [str(j) for j in job_ids],
        "ether_balance": str(balance),
        "token_balance": str(balance),
        "user_points": points.shown(user.points),
        "total_jobs": user.total_jobs,
        "total_tasks": user.total_tasks,
        "created_at": rfc3339(user.created_at),
        "last_updated_at": rfc3339(user.updated_at),
        "email": user.email,
    }
