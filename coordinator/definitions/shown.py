"""Jobs as they would be posted: what answers show of their triggers, and what an update starts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eth_utils.address import to_checksum_address

from consensus.triggers import Cron, Interval, Moments, OnCondition, OnEvent, Trigger
from coordinator.definitions import conditions, events, schedules
from coordinator.definitions.posted import DYNAMIC, NO_CONTRACT
from coordinator.store.records import Job
from node.arguments import parse_json


def trigger_fields(trigger: Trigger) -> Mapping[str, Any]:
    """The posted fields of a trigger, a schedule's time zone excepted."""
    match trigger:
        case OnEvent():
            return events.fields(trigger)
        case OnCondition():
            return conditions.fields(trigger)
        case Interval() | Cron() | Moments():
            return schedules.fields(trigger)


def target_fields(job: Job) -> dict[str, Any]:
    """The posted fields of what a job calls; numbers among its arguments are exact."""
    target = job.target
    return {
        "target_chain_id": str(target.chain_id),
        "target_contract_address": "" if target.contract == NO_CONTRACT else to_checksum_address(target.contract),
        "target_function": target.function,
        "abi": target.abi,
        "arg_type": target.arg_type,
        "arguments": parse_json(target.arguments or "[]", "arguments"),
        "dynamic_arguments_script_url": target.script_url,
        "language": target.language,
    }


def posted_fields(job: Job) -> dict[str, Any]:
    """Everything that a client would post for the job as it now is."""
    return {
        "job_id": str(job.id),
        "user_address": to_checksum_address(job.owner),
        "job_title": job.title,
        "task_definition_id": job.definition,
        "time_frame": job.time_frame,
        "timezone": job.timezone,
        "created_chain_id": str(job.created_chain_id),
        "recurring": job.recurring,
        "missed_run_policy": job.missed.value,
        "priority": job.priority,
        "security": job.security,
        "custom": job.custom,
        "is_imua": job.is_imua,
        "job_cost_prediction": job.cost_prediction,
        "max_fee": str(job.max_fee),
        "is_safe": job.is_safe,
        "safe_name": job.safe_name,
        "safe_address": job.safe_address,
        **({"gas_limit": job.target.gas_limit} if job.definition in DYNAMIC else {}),  # a static call is tried again
        **trigger_fields(job.trigger),
        **target_fields(job),
    }
