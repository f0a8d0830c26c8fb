"""Jobs and tasks for tests, valid unless a test says otherwise."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from consensus import codec
from consensus.codec import Domain
from consensus.messages import JobSpec, Uint256
from consensus.triggers import Interval
from coordinator.store.records import ApiKey, Attempt, Job, Target, Task
from node.arguments import encode_call

CHAIN = 31337
START = 1_700_000_000
OWNER = bytes(19) + b"\x01"
KEY_OWNER = "devnet"
TARGET = bytes(19) + b"\x0a"
DOMAIN = Domain(CHAIN, bytes(19) + b"\x11", bytes(19) + b"\x12", bytes(19) + b"\x13")


def make_job(job_id: int = 7, **changes: Any) -> Job:
    created_at, time_frame = changes.get("created_at", START), changes.get("time_frame", 100)
    trigger = changes.get("trigger", Interval(10))
    spec = JobSpec(
        job_id=Uint256(job_id),
        chain_id=CHAIN,
        definition=1,
        owner=changes.get("owner", OWNER),
        created_at=created_at,
        time_frame=time_frame,
        trigger=trigger,
        target=TARGET,
        function="ping(uint256)",
        arguments="[5]",
        level=0,
    )
    job = Job(
        id=job_id,
        owner=OWNER,
        key_owner=KEY_OWNER,
        title="a job",
        definition=1,
        trigger=trigger,
        target=Target(
            chain_id=CHAIN,
            contract=TARGET,
            function="ping",
            signature="ping(uint256)",
            abi=json.dumps([{"type": "function", "name": "ping", "inputs": [{"type": "uint256"}]}]),
            arg_type=1,
            arguments='["5"]',
            script_url="",
            language="",
            call=encode_call("ping(uint256)", "[5]"),
            gas_limit=100_000,
        ),
        spec=spec.encode(),
        created_at=created_at,
        time_frame=time_frame,
        next_due=created_at + trigger.interval,
        posted_at=START,
        updated_at=START,
        created_chain_id=CHAIN,
        trace_id="tgrx-test",
    )
    return replace(job, **changes)


def make_task(job: Job, second: int, **changes: Any) -> Task:
    task = Task(
        id=codec.task_id(job.id, second),
        job_id=job.id,
        chain_id=CHAIN,
        trigger_id=second,
        definition=job.definition,
        created_at_ms=second * 1000,
        trace_id=job.trace_id,
        arguments="[5]",
        stages={"created": second * 1000},
    )
    return replace(task, **changes)


def make_attempt(task: Task, number: int = 1, **changes: Any) -> Attempt:
    attempt = Attempt(
        task_id=task.id,
        number=number,
        performer=bytes(19) + b"\x21",
        peer_id="12D3Koo",
        not_before=task.trigger_id,
        deadline=task.trigger_id + 60,
        message=b"bytes for the mesh",
        created_ms=task.created_at_ms,
    )
    return replace(attempt, **changes)


def make_key(**changes: Any) -> ApiKey:
    return replace(ApiKey(b"\x01" * 32, "TGRX...abcd", KEY_OWNER, "user", True, 60, START), **changes)
