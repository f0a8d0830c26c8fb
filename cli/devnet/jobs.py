"""Posting a job as any client does: fee from the API, deposit and job on chain, then the job to the API."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from cli.account import Sender
from consensus.errors import Failed
from node.infra.contracts import Function

DEPOSIT = Function("depositETH", ("uint256",))
CREATE_JOB = Function("createJob", ("string", "uint8", "uint256", "address", "bytes"))
STATIC_TIME_JOB = 1
REQUEST_S = 10.0

DEMO_ABI: list[dict[str, Any]] = [
    {
        "type": "function",
        "name": "ping",
        "stateMutability": "nonpayable",
        "inputs": [{"name": "value", "type": "uint256"}],
        "outputs": [],
    }
]


@dataclass(frozen=True, slots=True)
class IntervalJob:
    """Call `function` of `target` with `arguments` every `interval` seconds for `time_frame` seconds."""

    title: str
    target: str
    function: str
    abi: Sequence[dict[str, Any]]
    arguments: tuple[str, ...]
    interval: int
    time_frame: int

    @property
    def executions(self) -> int:
        return math.ceil(self.time_frame / self.interval)


def demo_job(target: str, value: int, *, interval: int, time_frame: int) -> IntervalJob:
    """Ping the demo contract."""
    return IntervalJob("demo", target, "ping(uint256)", DEMO_ABI, (str(value),), interval, time_frame)


@dataclass(frozen=True, slots=True)
class Platform:
    """Where jobs are posted: the coordinator's API, and the two contracts that a user calls."""

    coordinator_url: str
    api_key: str
    chain_id: int
    job_registry: str
    gas_registry: str


async def post(client: httpx.AsyncClient, platform: Platform, owner: Sender, job: IntervalJob) -> str:
    """Pays for a job, creates it and posts it; returns its id, a decimal string. Raises `Failed` with the step's reason."""
    headers = {"X-API-KEY": platform.api_key, "Authorization": f"Bearer {platform.api_key}"}
    fee = await _fee(client, platform, headers, job)
    deposit = fee * job.executions
    await owner.send(platform.gas_registry, DEPOSIT.encode(deposit), value=deposit)
    data = job.interval.to_bytes(32, "big")
    target = bytes.fromhex(job.target[2:])
    call = CREATE_JOB.encode(job.title, STATIC_TIME_JOB, job.time_frame, target, data)
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


async def _fee(client: httpx.AsyncClient, platform: Platform, headers: dict[str, str], job: IntervalJob) -> int:
    query = {
        "ipfs_url": "",
        "task_definition_id": str(STATIC_TIME_JOB),
        "target_chain_id": str(platform.chain_id),
        "target_contract_address": job.target,
        "target_function": job.function,
        "abi": json.dumps(job.abi),
        "args": json.dumps(job.arguments),
    }
    answer = await client.get(f"{platform.coordinator_url}/api/fees", params=query, headers=headers, timeout=REQUEST_S)
    _require_ok(answer)
    return int(answer.json()["current_total_fee"])


def _posted(platform: Platform, owner: str, job: IntervalJob, job_id: str, fee: int, deposit: int) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "user_address": owner,
        "ether_balance": deposit,
        "token_balance": deposit,
        "job_title": job.title,
        "task_definition_id": STATIC_TIME_JOB,
        "custom": True,
        "time_frame": job.time_frame,
        "recurring": False,
        "job_cost_prediction": fee * job.executions / 10**18,
        "timezone": "UTC",
        "created_chain_id": str(platform.chain_id),
        "target_chain_id": str(platform.chain_id),
        "schedule_type": "interval",
        "time_interval": job.interval,
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
