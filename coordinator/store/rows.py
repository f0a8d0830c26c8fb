"""Records as rows of the schema's tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from consensus.lifecycle import TaskState
from coordinator.store.records import (
    ApiKey,
    Attempt,
    Edge,
    Gap,
    Job,
    JobStatus,
    KeeperRecord,
    KeeperSeen,
    MissedPolicy,
    Planned,
    RunCharge,
    RunPackage,
    Target,
    Task,
    User,
)
from coordinator.store.table import Column, Table, big, flag, plain
from coordinator.store.trigger_columns import COLUMNS, columns_of, kind_of, observation_of, text_of, trigger_of

_MOST = 2**63 - 1


def _json_ids(ids: tuple[int, ...]) -> str:
    return json.dumps(ids) if ids else "[]"


def _counts_of(text: str) -> dict[int, int]:
    return {int(definition): count for definition, count in json.loads(text).items()}


USERS = Table(
    "user_data",
    ["user_address"],
    [
        Column("user_address", "address"),
        Column("email_id", "email"),
        big("user_points", "points"),
        *plain("total_jobs", "total_tasks", "created_at"),
        Column("last_updated_at", "updated_at"),
    ],
)

JOBS = Table(
    "job_data",
    ["job_id"],
    [
        big("job_id", "id"),
        Column("user_address", "owner"),
        Column("key_owner", "key_owner"),
        Column("job_title", "title"),
        Column("task_definition_id", "definition"),
        *plain("priority", "security"),
        big("link_job_id", "link_job_id"),
        Column("chain_status", "chain_status"),
        flag("custom", "custom"),
        Column("time_frame", "time_frame"),
        flag("recurring", "recurring"),
        Column("status", "status", str, JobStatus),
        Column("job_cost_prediction", "cost_prediction"),
        big("job_cost_actual", "cost_actual"),
        *plain("created_at", "posted_at", "updated_at", "last_executed_at", "timezone"),
        flag("is_imua", "is_imua"),
        Column("created_chain_id", "created_chain_id"),
        flag("is_safe", "is_safe"),
        *plain("safe_name", "safe_address", "trace_id"),
        Column("target_chain_id", "target.chain_id"),
        Column("trigger", "trigger", text_of, trigger_of),
        Column("missed_run_policy", "missed", str, MissedPolicy),
        Column("next_execution_timestamp", "next_due"),
        Column("starts_at", "starts_at"),
        flag("spent", "spent"),
        Column("edge_number", "edge.number"),
        flag("edge_armed", "edge.armed"),
        flag("caught_up", "caught_up"),
        Column("revision", "revision"),
        big("max_fee", "max_fee"),
    ],
    derived=[
        ("shard", lambda job: job.shard),
        ("trigger_kind", lambda job: kind_of(job.trigger)),
        ("expiration_time", lambda job: min(job.expires_at, _MOST)),
    ],
)
HOW_FAR = (
    "status",
    "job_cost_actual",
    "updated_at",
    "last_executed_at",
    "next_execution_timestamp",
    "starts_at",
    "spent",
    "edge_number",
    "edge_armed",
    "caught_up",
    "revision",
)
"""Columns of job_data in which a job moves on."""


def _of_trigger(name: str) -> Callable[[Job], Any]:
    return lambda job: columns_of(job.trigger).get(name)


SPECS = Table(
    "job_specs",
    ["job_no"],
    [
        Column("target_contract_address", "target.contract"),
        Column("target_function", "target.function"),
        Column("target_signature", "target.signature"),
        *[Column(name, f"target.{name}") for name in ("abi", "arg_type", "arguments")],
        Column("dynamic_arguments_script_url", "target.script_url"),
        *[Column(name, f"target.{name}") for name in ("language", "call", "gas_limit")],
        Column("spec", "spec"),
    ],
    derived=[(name, _of_trigger(name)) for name in COLUMNS],
    given=["job_no"],
)
SELECT_JOB = f"SELECT {JOBS.selected}, {SPECS.selected} FROM job_data JOIN job_specs USING (job_no)"  # noqa: S608

_PLANNED = (
    "SELECT job_id, target_chain_id, task_definition_id, trigger, created_at, time_frame, starts_at,"
    " next_execution_timestamp, recurring, missed_run_policy, priority, edge_number, edge_armed, caught_up, trace_id, revision"
    " FROM job_data WHERE is_planned = 1"
)
SELECT_PLANNED = (  # in the order in which they lie in the file, which is far quicker than that of their ids
    _PLANNED + " AND shard = :shard AND job_no > coalesce("  # noqa: S608 - our own words
    "(SELECT job_no FROM job_data WHERE job_id = :after AND shard = :shard), :otherwise)"
    " ORDER BY job_no"
)
SELECT_PLANNED_JOB = _PLANNED + " AND job_id = ?"


def job_of(row: tuple[Any, ...]) -> Job:
    size = len(JOBS.columns)
    job = JOBS.attributes(row[:size]) | SPECS.attributes(row[size:])
    target = {name.removeprefix("target."): job.pop(name) for name in list(job) if name.startswith("target.")}
    edge = _edge(job.pop("edge.number"), job.pop("edge.armed"))
    return Job(**job, target=Target(**target), edge=edge)


@lru_cache(maxsize=1024)
def _edge(number: int, armed: bool) -> Edge:
    return Edge(number, bool(armed))


def planned_of(row: tuple[Any, ...]) -> Planned:
    return Planned(
        int(row[0]),
        row[1],
        row[2],
        trigger_of(row[3]),
        row[4],
        row[5],
        row[6],
        row[7],
        bool(row[8]),
        MissedPolicy(row[9]),
        row[10],
        _edge(row[11], row[12]),
        bool(row[13]),
        row[14],
        row[15],
    )


TASKS = Table(
    "task_data",
    ["task_id"],
    [
        big("task_id", "id"),
        big("job_id", "job_id"),
        Column("chain_id", "chain_id"),
        big("trigger_id", "trigger_id"),
        Column("task_definition_id", "definition"),
        *plain("created_at_ms", "trace_id", "scheduled_at", "priority"),
        Column("observation", "observation", text_of, observation_of),
        Column("task_status", "state", str, TaskState),
        Column("reason", "reason"),
        Column("task_error", "detail"),
        Column("attempt", "attempt"),
        Column("converted_arguments", "arguments"),
        big("task_opx_predicted_cost", "predicted_cost"),
        big("task_opx_cost", "cost"),
        Column("task_number", "number"),
        Column("execution_timestamp", "executed_at"),
        Column("execution_tx_hash", "execution_tx"),
        Column("performer_address", "performer"),
        Column("task_performer_id", "performer_id"),
        Column("task_attester_ids", "attester_ids", _json_ids, lambda text: tuple(json.loads(text))),
        Column("proof_of_task", "proof"),
        flag("is_accepted", "accepted"),
        flag("is_successful", "successful"),
        Column("task_submission_tx_hash", "submission_tx"),
        Column("stages", "stages", lambda stages: json.dumps(dict(stages)), json.loads),
    ],
    derived=[("is_open", lambda task: int(not task.ended)), ("shard", lambda task: task.shard)],
    given=["job_no"],
)
MOVES = (
    "task_status",
    "reason",
    "task_error",
    "attempt",
    "converted_arguments",
    "task_opx_predicted_cost",
    "task_opx_cost",
    "task_number",
    "execution_timestamp",
    "execution_tx_hash",
    "performer_address",
    "task_performer_id",
    "task_attester_ids",
    "proof_of_task",
    "is_accepted",
    "is_successful",
    "task_submission_tx_hash",
    "stages",
)
"""Columns of task_data in which a task moves on."""
ENDS = (*MOVES, "is_open")

ATTEMPTS = Table(
    "task_attempts",
    ["task_id", "attempt"],
    [
        big("task_id", "task_id"),
        Column("attempt", "number"),
        Column("performer_address", "performer"),
        *plain("peer_id", "not_before", "deadline", "message", "created_ms", "published_ms", "acknowledged_ms"),
        *plain("ended_ms", "code", "detail"),
    ],
)

KEYS = Table(
    "apikeys",
    ["digest"],
    [*plain("digest", "masked", "owner", "role"), flag("is_active", "active"), *plain("rate_limit", "created_at")],
)

KEEPERS = Table(
    "keeper_data",
    ["chain_id", "keeper_address"],
    [
        Column("chain_id", "chain_id"),
        Column("keeper_address", "address"),
        *plain("peer_id", "version", "first_seen"),
        Column("last_checked_in", "last_seen"),
        Column("uptime", "uptime_s"),
        Column("sandbox", "sandbox"),
    ],
)

RECORDS = Table(
    "keeper_data",
    ["chain_id", "keeper_address"],
    [
        Column("chain_id", "chain_id"),
        Column("keeper_address", "address"),
        big("keeper_points", "points"),
        big("rewards", "rewards"),
        Column("no_executed_tasks", "executed"),
        Column("no_attested_tasks", "attested"),
        Column("no_rejected_tasks", "rejected"),
        Column("no_failed_attempts", "failed"),
        Column("executed_by_definition", "by_definition", lambda counts: json.dumps(dict(counts)), _counts_of),
        Column("rewards_booster", "booster"),
        flag("whitelisted", "whitelisted"),
        Column("keeper_name", "name"),
        Column("email_id", "email"),
        Column("chat_id", "chat_id"),
    ],
    derived=[("is_recorded", lambda _: 1)],
)

PACKAGES = Table(
    "run_packages",
    ["task_id", "attempt"],
    [big("task_id", "task_id"), *plain("attempt", "package", "heard_at"), flag("contradicted", "contradicted")],
)

CHARGES = Table("run_charges", ["task_id"], [big("task_id", "task_id"), *plain("chain_id", "certificate", "at")])

SELECT_USER = USERS.select.replace("SELECT ", "SELECT user_data.user_id, ")


def user_of(row: tuple[Any, ...]) -> User:
    return User(id=row[0], **USERS.attributes(row[1:]))


def task_of(row: tuple[Any, ...]) -> Task:
    return Task(**TASKS.attributes(row))


def attempt_of(row: tuple[Any, ...]) -> Attempt:
    return Attempt(**ATTEMPTS.attributes(row))


def key_of(row: tuple[Any, ...]) -> ApiKey:
    return ApiKey(**KEYS.attributes(row))


def keeper_of(row: tuple[Any, ...]) -> KeeperSeen:
    return KeeperSeen(**KEEPERS.attributes(row))


def record_of(row: tuple[Any, ...]) -> KeeperRecord:
    return KeeperRecord(**RECORDS.attributes(row))


def package_of(row: tuple[Any, ...]) -> RunPackage:
    return RunPackage(**PACKAGES.attributes(row))


def charge_of(row: tuple[Any, ...]) -> RunCharge:
    return RunCharge(**CHARGES.attributes(row))


def gap_of(row: tuple[Any, ...]) -> Gap:
    return Gap(*row)
