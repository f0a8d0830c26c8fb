"""Whatever is asked of it in whatever order, the store on disk answers as the one in dictionaries does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus import codec
from consensus.lifecycle import TaskState
from consensus.messages import Usage
from consensus.triggers import EdgeSeen, Interval, LogSeen, Moments, Trigger
from coordinator.store.changes import STORED
from coordinator.store.memory import MemoryStore
from coordinator.store.port import Store
from coordinator.store.records import (
    SHARDS,
    Edge,
    EdgeStep,
    Firing,
    Gap,
    Job,
    JobStatus,
    KeeperRecord,
    KeeperSeen,
    MissedPolicy,
    RunPackage,
    TaskChange,
)
from coordinator.store.sqlite import open_store
from tests.coordinator.factory import CHAIN, ON_CONDITION, ON_EVENT, START, make_attempt, make_job, make_task

IDS = st.sampled_from([1, 2, 3, 17, 18, 10**40 + 7])
OWNERS = st.sampled_from([b"\x01" * 20, b"\x02" * 20])
KEEPERS = st.sampled_from([b"\x21" * 20, b"\x22" * 20])
TIMES = st.integers(START, START + 130)
TRIGGERS: st.SearchStrategy[Trigger] = st.sampled_from(
    [Interval(10), Interval(1000), Moments((START + 10, START + 60)), ON_EVENT, ON_CONDITION]
)
MAYBE = st.booleans()
STATES = st.sampled_from([*TaskState, TaskState.EXECUTED, TaskState.CERTIFIED, TaskState.REJECTED])
SECONDS = st.sampled_from([START + 10, START + 20, START + 60])
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@st.composite
def jobs(draw: st.DrawFn, job_id: int) -> Job:
    trigger = draw(TRIGGERS)
    return make_job(
        job_id,
        owner=draw(OWNERS),
        trigger=trigger,
        title=draw(TEXTS),
        posted_at=draw(TIMES),
        time_frame=draw(st.sampled_from([30, 100, 1000])),
        recurring=draw(MAYBE),
        missed=draw(st.sampled_from(MissedPolicy)),
        starts_at=START,
        max_fee=draw(st.sampled_from([0, 2**90])),
        is_safe=draw(MAYBE),
        safe_address=draw(TEXTS),
    )


@st.composite
def linked(draw: st.DrawFn) -> list[Job]:
    ids = draw(st.lists(IDS, min_size=1, max_size=3, unique=True))
    made = [draw(jobs(job_id)) for job_id in ids]
    following = [*ids[1:], -1]
    return [
        replace(job, link_job_id=after, chain_status=min(i, 1) + 1, starts_at=None if i else START)
        for i, (job, after) in enumerate(zip(made, following, strict=True))
    ]


@st.composite
def firings(draw: st.DrawFn) -> Firing:
    job_id, second = draw(IDS), draw(SECONDS)
    edge = draw(st.none() | st.builds(EdgeStep, st.integers(0, 2), st.builds(Edge, st.integers(0, 3), MAYBE)))
    seen = draw(st.sampled_from([None, LogSeen(b"\x07" * 32, 1), EdgeSeen(START, ("1", "-2.50"))]))
    task = make_task(make_job(job_id), second, observation=seen, priority=draw(st.integers(1, 3)))
    return Firing(
        job_id,
        draw(st.sampled_from([task, task, None])),
        draw(st.none() | SECONDS),
        edge,
        draw(MAYBE),
        draw(st.none() | st.integers(0, 2)),
    )


@st.composite
def changes(draw: st.DrawFn) -> TaskChange:
    return TaskChange(
        codec.task_id(draw(IDS), draw(SECONDS)),
        tuple(draw(st.lists(STATES, max_size=2))),
        stages={draw(TEXTS | st.just(STORED)): draw(st.integers(0, 9))},
        reason=draw(st.sampled_from(["", "NO_KEEPER"])),
        detail=draw(TEXTS),
        cost=draw(st.none() | st.integers(0, 2**70)),
        executed_at=draw(st.none() | TIMES),
        performer=draw(st.none() | KEEPERS),
        accepted=draw(st.none() | MAYBE),
        successful=draw(st.none() | MAYBE),
        attester_ids=draw(st.none() | st.just((3, 1))),
        attesters=tuple(draw(st.lists(KEEPERS, max_size=2))),
        rewards=draw(st.dictionaries(KEEPERS, st.integers(0, 2**70), max_size=2)),
        storage=draw(st.none() | st.dictionaries(TEXTS, st.sampled_from([None, "1", '"x"']), max_size=2)),
        charge=draw(st.sampled_from([b"", b"certificate"])),
    )


@st.composite
def attempts(draw: st.DrawFn) -> tuple[Any, ...]:
    attempt = make_attempt(make_task(make_job(draw(IDS)), draw(SECONDS)), draw(NUMBERS), performer=draw(KEEPERS))
    return attempt, TaskChange(attempt.task_id, (TaskState.DISPATCHED,), attempt=attempt.number), START


Call = tuple[str, tuple[Any, ...]]
NUMBERS = st.integers(1, 2)
SHARD = st.integers(0, 3)
TASK_IDS = st.builds(codec.task_id, IDS, SECONDS)
FENCES = st.sampled_from([dict.fromkeys(range(SHARDS), 1), dict.fromkeys(range(SHARDS), 1), {1: 2, 2: 2, 3: 1}])
ENDS = st.sampled_from([JobStatus.DELETED, JobStatus.COMPLETED, JobStatus.FAILED])
SCOPES = st.sampled_from(["shard:1", "source:x"])
GAPS = st.builds(lambda scope, began, length: Gap(scope, began, began + length), SCOPES, TIMES, st.sampled_from([1, 9, 10**7]))


def call(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Call]:
    return st.tuples(st.just(name), st.tuples(*arguments))


FIRE = call("fire", st.lists(firings(), min_size=1, max_size=4), TIMES, FENCES)
ADD = call("add_jobs", linked())
RECORD = call("record", st.just(CHAIN), TIMES, st.lists(changes(), max_size=3), st.lists(IDS, max_size=1), TIMES)
CALLS: st.SearchStrategy[Call] = st.one_of(
    ADD,
    FIRE,
    FIRE,
    RECORD,
    RECORD,
    call("change", changes(), TIMES),
    call("claim_shard", SHARD, NUMBERS, TIMES),
    call("touch_shards", st.lists(SHARD, max_size=2), TIMES),
    call("end_job", IDS, ENDS, TIMES),
    call("pause_job", IDS, TIMES),
    call("resume_job", IDS, st.none() | SECONDS, TIMES),
    call("update_job", IDS.flatmap(jobs)),
    call("complete_job", IDS, TIMES),
    call("expire_jobs", SHARD, TIMES | st.integers(START + 3600, START + 5000), st.just(100)),
    call("mark_caught_up", st.lists(IDS, max_size=2), st.none() | FENCES),
    attempts().map(lambda arguments: ("add_attempt", arguments)),
    call("mark_published", TASK_IDS, NUMBERS, TIMES),
    call("acknowledge", TASK_IDS, NUMBERS, TIMES),
    call("end_attempt", TASK_IDS, NUMBERS, TEXTS, TEXTS, TIMES),
    call("save_checkpoints", st.dictionaries(st.sampled_from(["events:1:1", "events:1:2"]), TIMES), st.none() | FENCES),
    call("save_keeper_form", st.builds(KeeperRecord, st.just(CHAIN), KEEPERS, name=TEXTS, booster=NUMBERS)),
    call("save_keeper", st.builds(KeeperSeen, st.just(CHAIN), KEEPERS, TEXTS, TEXTS, TIMES, TIMES, TIMES)),
    call("add_gap", GAPS),
    call("open_alert", SCOPES, TEXTS, TIMES),
    call("close_alert", SCOPES),
    call("set_email", OWNERS, TEXTS, TIMES),
    call("add_package", st.builds(RunPackage, TASK_IDS, NUMBERS, st.sampled_from([b"one", b"two"]), TIMES)),
    call("drop_packages", TASK_IDS),
    call("add_usage", TEXTS, st.builds(Usage, *[st.integers(0, 9)] * 4)),
)


async def everything(store: Store) -> list[Any]:
    """All that can be read of it."""
    ids = [1, 2, 3, 17, 18, 10**40 + 7]
    pages: list[Any] = [await store.planned(shard, after, 2) for shard in range(4) for after in (None, 1, 17)]
    tasks = await store.recent_tasks(1000)
    return [
        *pages,
        [(await store.job(i), await store.linked_to(i), await store.planned_job(i)) for i in ids],
        [await store.user(owner) for owner in (b"\x01" * 20, b"\x02" * 20)],
        await store.jobs(key_owner="devnet"),
        await store.jobs(key_owner="devnet", owner=b"\x01" * 20),
        tasks,
        [await store.attempts(task.id) for task in tasks],
        [await store.called(task.id) for task in tasks if not task.ended],
        [(await store.tasks_of_job(i, 2), await store.task_ids_of_job(i, 9)) for i in ids],
        await store.open_tasks(),
        await store.open_tasks([1, 2]),
        await store.unexecuted([1, 2], 10**15),
        await store.task_counts(),
        await store.job_counts(),
        [await store.changed_jobs(after) for after in (None, 0, 3, 99)],
        await store.keepers(),
        await store.keeper_records(),
        [await store.watched_at(shard) for shard in range(4)],
        [await store.checkpoint(name) for name in ("events:1:1", "events:1:2", f"hub:{CHAIN}")],
        await store.gaps(["shard:1", "source:x"], START + 20),
        await store.alerts(),
        [await store.storage(i) for i in ids],
        [await store.packages(task.id) for task in tasks],
        sorted(await store.tasks_with_packages()),
        await store.run_charges(CHAIN, 100),
        await store.usage(""),
        [await store.safe_addresses(owner) for owner in (b"\x01" * 20, b"\x02" * 20)],
    ]


async def compare(calls: list[Call]) -> None:
    memory: Store = MemoryStore()
    async with open_store(":memory:") as sqlite:
        for shard in range(SHARDS):
            assert await memory.claim_shard(shard, 1, START) == await sqlite.claim_shard(shard, 1, START)
        for name, arguments in calls:
            assert await getattr(memory, name)(*arguments) == await getattr(sqlite, name)(*arguments), name
        for one, other in zip(await everything(memory), await everything(sqlite), strict=True):
            assert one == other


@settings(deadline=None)
@given(ADD, st.lists(CALLS, min_size=1, max_size=30))
def test_both_stores_answer_the_same_whatever_they_are_asked(first: Call, calls: list[Call]) -> None:
    trio.run(compare, [first, *calls])
