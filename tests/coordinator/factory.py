"""Jobs and tasks for tests, valid unless a test says otherwise."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from consensus import codec, events
from consensus.codec import Domain
from consensus.conditions import Comparison, StaticSource
from consensus.messages import JobSpec, Uint256
from consensus.triggers import EdgeSeen, Interval, LogSeen, Moments, OnCondition, OnEvent, Trigger
from coordinator.store.port import Fences, Store
from coordinator.store.records import SHARDS, ApiKey, Attempt, Edge, EdgeStep, Firing, Job, Target, Task
from node.arguments import encode_call

CHAIN = 31337
START = 1_700_000_000
OWNER = bytes(19) + b"\x01"
KEY_OWNER = "devnet"
TARGET = bytes(19) + b"\x0a"
DOMAIN = Domain(CHAIN, bytes(19) + b"\x11", bytes(19) + b"\x12", bytes(19) + b"\x13")


ON_EVENT = OnEvent(CHAIN, bytes(19) + b"\x0b", "Ping(address indexed from,uint256 value)")
ON_CONDITION = OnCondition(Comparison(StaticSource("7"), "greater_than", "5"))
FENCES: Fences = dict.fromkeys(range(SHARDS), 1)
"""What `claim_all` claims: pass it to `fire`."""


async def claim_all(store: Store) -> Fences:
    """Every shard, by the token 1."""
    for shard, token in FENCES.items():
        await store.claim_shard(shard, token, START)
    return FENCES


def first_due(trigger: Trigger, created_at: int) -> int | None:
    """Of a schedule whose first second is plain to see."""
    match trigger:
        case Interval():
            return created_at + trigger.interval
        case Moments():
            return trigger.seconds[0]
    return None


def make_job(job_id: int = 7, **changes: Any) -> Job:
    """Posted at `START`, every ten seconds for a hundred; another trigger brings its own definition and no `next_due`."""
    created_at, time_frame = changes.get("created_at", START), changes.get("time_frame", 100)
    trigger: Trigger = changes.get("trigger", Interval(10))
    definition = {OnEvent: 3, OnCondition: 5}.get(type(trigger), 1)
    spec = JobSpec(
        job_id=Uint256(job_id),
        chain_id=CHAIN,
        definition=changes.get("definition", definition),
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
        definition=definition,
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
        next_due=first_due(trigger, created_at),
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
        scheduled_at=second,
        priority=job.priority,
        arguments="[5]",
        stages={"created": second * 1000},
    )
    return replace(task, **changes)


def make_event_task(job: Job, position: int = 0, **changes: Any) -> Task:
    """Of the log at `position` of the transaction 0x0707..07."""
    assert isinstance(job.trigger, OnEvent)
    seen = LogSeen(b"\x07" * 32, position)
    trigger_id = events.firing_id(job.trigger.chain_id, seen.transaction, seen.position)
    facts = {"id": codec.task_id(job.id, trigger_id), "trigger_id": trigger_id, "observation": seen}
    return replace(make_task(job, START + 10), **facts | changes)


def make_edge_firing(job: Job, number: int, *, spent: bool = False) -> Firing:
    """The condition's next edge, number `number` (from 1)."""
    facts = {"id": codec.task_id(job.id, number), "trigger_id": number, "observation": EdgeSeen(START + 10, ("7",))}
    task = replace(make_task(job, START + 10), **facts)
    return Firing(job.id, task, edge=EdgeStep(number - 1, Edge(number, armed=False)), spent=spent)


def make_attempt(task: Task, number: int = 1, **changes: Any) -> Attempt:
    attempt = Attempt(
        task_id=task.id,
        number=number,
        performer=bytes(19) + b"\x21",
        peer_id="12D3Koo",
        not_before=task.scheduled_at,
        deadline=task.scheduled_at + 60,
        message=b"bytes for the mesh",
        created_ms=task.created_at_ms,
    )
    return replace(attempt, **changes)


def make_key(**changes: Any) -> ApiKey:
    return replace(ApiKey(b"\x01" * 32, "TGRX...abcd", KEY_OWNER, "user", True, 60, START), **changes)
