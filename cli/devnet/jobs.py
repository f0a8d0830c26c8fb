"""Posting a job as any client does: fee from the API, deposit and job on chain, then the job to the API."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from cli.account import Sender
from consensus.errors import Failed
from node.infra.contracts import Function

DEPOSIT = Function("depositETH", ("uint256",))
CREATE_JOB = Function("createJob", ("string", "uint8", "uint256", "address", "bytes"))
TIME_JOB, EVENT_JOB, CONDITION_JOB = 1, 3, 5
"""Task definitions of static jobs."""
REQUEST_S = 10.0

DEMO_ABI: list[dict[str, Any]] = [
    {
        "type": "function",
        "name": "ping",
        "stateMutability": "nonpayable",
        "inputs": [{"name": "value", "type": "uint256"}],
        "outputs": [],
    },
    {
        "type": "event",
        "name": "Pinged",
        "anonymous": False,
        "inputs": [
            {"name": "value", "type": "uint256", "indexed": False},
            {"name": "count", "type": "uint256", "indexed": False},
        ],
    },
]


@dataclass(frozen=True, slots=True)
class StaticJob:
    """Call `function` of `target` with `arguments` whenever the trigger fires, for `time_frame` seconds.

    `word` is what the JobRegistry keeps of the trigger: the interval of a time job (0 for cron and specific times), whether
    it recurs (0 or 1) for the others. `trigger` are the fields posted for it; `executions` are paid for in advance.
    """

    title: str
    target: str
    function: str
    abi: Sequence[dict[str, Any]]
    arguments: tuple[str, ...]
    time_frame: int
    definition: int
    word: int
    trigger: Mapping[str, Any]
    executions: int


def demo_job(target: str, value: int, *, interval: int, time_frame: int) -> StaticJob:
    """Ping the demo contract at an interval."""
    trigger = {"schedule_type": "interval", "time_interval": interval}
    return ping_job(target, value, time_frame, TIME_JOB, interval, trigger, math.ceil(time_frame / interval))


def ping_job(
    target: str, value: int, time_frame: int, definition: int, word: int, trigger: Mapping[str, Any], executions: int
) -> StaticJob:
    """Ping the demo contract whenever any trigger fires."""
    return StaticJob(
        title="demo",
        target=target,
        function="ping(uint256)",
        abi=DEMO_ABI,
        arguments=(str(value),),
        time_frame=time_frame,
        definition=definition,
        word=word,
        trigger=trigger,
        executions=executions,
    )


@dataclass(frozen=True, slots=True)
class Platform:
    """Where jobs are posted: the coordinator's API, and the two contracts that a user calls."""

    coordinator_url: str
    api_key: str
    chain_id: int
    job_registry: str
    gas_registry: str


async def post(client: httpx.AsyncClient, platform: Platform, owner: Sender, job: StaticJob) -> str:
    """Pays for a job, creates it and posts it; returns its id, a decimal string. Raises `Failed` with the step's reason."""
    headers = {"X-API-KEY": platform.api_key, "Authorization": f"Bearer {platform.api_key}"}
    fee = await _fee(client, platform, headers, job)
    deposit = fee * job.executions
    await owner.send(platform.gas_registry, DEPOSIT.encode(deposit), value=deposit)
    data = job.word.to_bytes(32, "big")
    target = bytes.fromhex(job.target[2:])
    call = CREATE_JOB.encode(job.title, job.definition, job.time_frame, target, data)
    receipt = await owner.send(platform.job_registry, call)
    job_id = str(int(receipt["logs"][0]["topics"][1], 16))  # JobCreated is the call's only event
    posted = await client.post(
        f"{platform.coordinator_url}/api/jobs",
        json=[_posted(platform, owner.address, job, job_id, fee, deposit)],
        headers=headers,
        timeout=REQUEST_S,
    )
    _require_ok(posted)
    return job_id


async def _fee(client: httpx.AsyncClient, platform: Platform, headers: dict[str, str], job: StaticJob) -> int:
    query = {
        "ipfs_url": "",
        "task_definition_id": str(job.definition),
        "target_chain_id": str(platform.chain_id),
        "target_contract_address": job.target,
        "target_function": job.function,
        "abi": json.dumps(job.abi),
        "args": json.dumps(job.arguments),
    }
    answer = await client.get(f"{platform.coordinator_url}/api/fees", params=query, headers=headers, timeout=REQUEST_S)
    _require_ok(answer)
    return int(answer.json()["current_total_fee"])


def _posted(platform: Platform, owner: str, job: StaticJob, job_id: str, fee: int, deposit: int) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "user_address": owner,
        "ether_balance": deposit,
        "token_balance": deposit,
        "job_title": job.title,
        "task_definition_id": job.definition,
        "custom": True,
        "time_frame": job.time_frame,
        "recurring": job.definition != TIME_JOB and job.word == 1,
        "job_cost_prediction": fee * job.executions / 10**18,
        "timezone": "UTC",
        "created_chain_id": str(platform.chain_id),
        "target_chain_id": str(platform.chain_id),
        **job.trigger,
        "target_contract_address": job.target,
        "target_function": job.function,
        "abi": json.dumps(job.abi),
        "arg_type": 1,
        "arguments": list(job.arguments),
        "is_imua": False,
        "is_safe": False,
        "safe_name": "",
        "safe_address": "",
        "language": "",
    }


def _require_ok(answer: httpx.Response) -> None:
    if answer.is_error:
        raise Failed(
            "API_REFUSED", f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.text[:300]}"
        )
