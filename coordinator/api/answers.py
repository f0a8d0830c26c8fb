"""What clients get: jobs, tasks and users as JSON, in the field's names. Ids and wei are decimal strings, times RFC 3339."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from eth_utils.address import to_checksum_address

from consensus import schedules
from consensus.messages import JobSpec
from coordinator.jobs import Taken
from coordinator.store.records import ACTIVE, Job, JobStatus, Task, User
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


def created(taken: Taken) -> dict[str, Any]:
    """The answer to `POST /api/jobs`."""
    return {
        "user_id": taken.user.id,
        "account_balance": str(taken.balance),
        "token_balance": str(taken.balance),
        "job_ids": [str(taken.job.id)],
        "task_definition_ids": [taken.job.definition],
        "time_frames": [taken.job.time_frame],
    }


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
        "status": _STATUS_TEXT[job.status],
        "job_cost_prediction": job.cost_prediction,
        "job_cost_actual": str(job.cost_actual),
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


def time_job_data(job: Job, now: float) -> dict[str, Any]:
    """FIELD's time_job_data: the trigger and the target."""
    following = schedules.next_due(job.trigger, int(now), created_at=job.created_at, time_frame=job.time_frame)
    return {
        "job_id": str(job.id),
        "task_definition_id": job.definition,
        "schedule_type": "interval",
        "time_interval": job.trigger.interval,
        "cron_expression": "",
        "specific_schedule": "",
        "timezone": job.timezone,
        "next_execution_timestamp": rfc3339(following) if job.status in ACTIVE else None,
        "expiration_time": rfc3339(job.expires_at),
        "created_at": rfc3339(job.created_at),
        "updated_at": rfc3339(job.updated_at),
        "is_active": job.status in ACTIVE,
        "is_completed": job.status is JobStatus.COMPLETED,
        "target_chain_id": str(job.target.chain_id),
        "target_contract_address": to_checksum_address(job.target.contract),
        "target_function": job.target.function,
        "abi": job.target.abi,
        "arg_type": job.target.arg_type,
        "arguments": [_argument(a) for a in parse_json(job.target.arguments or "[]", "arguments")],
        "dynamic_arguments_script_url": job.target.script_url,
    }


def _argument(value: object) -> object:
    """Numbers as text: a client's JSON parser would round what is beyond 2^53."""
    if isinstance(value, list):
        return [_argument(v) for v in value]
    if isinstance(value, dict):
        return {k: _argument(v) for k, v in value.items()}
    return value if isinstance(value, str | bool) or value is None else str(value)


def task_data(task: Task, job: Job, explorer: str | None) -> dict[str, Any]:
    """FIELD's task_data. `explorer` is the base URL of the chain's block explorer."""
    tx = hex_of(task.execution_tx)
    return {
        "task_id": str(task.id),
        "task_number": task.number,
        "job_id": str(task.job_id),
        "task_definition_id": task.definition,
        "created_at": rfc3339(task.created_at_ms / 1000),
        "scheduled_at": rfc3339(task.trigger_id),
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
        "converted_arguments": task.arguments or JobSpec.decode(job.spec).arguments,
        "trace_id": task.trace_id,
        "stages": dict(task.stages),
    }


def user_data(user: User, job_ids: Sequence[int], balance: int) -> dict[str, Any]:
    """FIELD's user_data. The deposit is the chain's; there is no token beside it."""
    return {
        "user_id": user.id,
        "user_address": to_checksum_address(user.address),
        "job_ids": [str(j) for j in job_ids],
        "ether_balance": str(balance),
        "token_balance": str(balance),
        "user_points": user.points,
        "total_jobs": user.total_jobs,
        "total_tasks": user.total_tasks,
        "created_at": rfc3339(user.created_at),
        "last_updated_at": rfc3339(user.updated_at),
        "email": user.email,
    }
