"""One suite for every store: users and jobs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from consensus.codec import UINT256_MAX
from consensus.conditions import (
    AllOf,
    AnyOf,
    ApiSource,
    BalanceSource,
    Comparison,
    ConfirmationsSource,
    OracleSource,
    StaticSource,
    ViewSource,
    WebSocketSource,
)
from consensus.events import EventFilter
from consensus.triggers import Cron, Interval, Moments, OnCondition, OnEvent, Trigger
from coordinator.points import CUSTOM_JOB_CREATED, JOB_CREATED
from coordinator.store.port import Store
from coordinator.store.records import Edge, Firing, Job, JobStatus, MissedPolicy, Planned, User, shard_of
from tests.coordinator.factory import CHAIN, FENCES, KEY_OWNER, ON_CONDITION, ON_EVENT, OWNER, START, make_edge_firing, make_job
from tests.coordinator.stores import EVERY_STORE, owner_of, some, with_task
from tests.coordinator.stores import a_store as a_store

pytestmark = EVERY_STORE

_ADDRESS = b"\xab" * 20
_LEAF = Comparison(StaticSource("-0.50"), "between", "1000000000000000000000000000000", "-3", "0.1")
TRIGGERS: list[Trigger] = [
    Interval(2**40),
    Cron("*/5 9-17 * * MON-FRI", "America/New_York"),
    Moments((START + 1, START + 5, 2**45)),
    OnEvent(1, _ADDRESS, "Transfer(address indexed from,address indexed to,uint256 value)"),
    OnEvent(1, _ADDRESS, "Said(string text)", (EventFilter("text", "Ä\0 \U0001f600"),), 12),
    OnEvent(1, _ADDRESS, "Two(uint256 a,uint256 b)", (EventFilter("a", "1"), EventFilter("b", "2"))),
    ON_CONDITION,
    OnCondition(Comparison(ApiSource("https://example.org/p?q=1", "data.prices[0].usd"), "greater_than", "0.2")),
    OnCondition(Comparison(WebSocketSource("wss://example.org"), "less_equal", "1")),
    OnCondition(Comparison(OracleSource(1, _ADDRESS), "equals", "1")),
    OnCondition(Comparison(BalanceSource(1, _ADDRESS), "less_than", "1")),
    OnCondition(Comparison(BalanceSource(1, _ADDRESS, _ADDRESS), "less_than", "1")),
    OnCondition(Comparison(ViewSource(1, _ADDRESS, "f(uint256)(uint256,bool)", "[5]", 1), "not_equals", "1")),
    OnCondition(Comparison(ConfirmationsSource(1, b"\x07" * 32), "greater_equal", "3")),
    OnCondition(AllOf((_LEAF, AnyOf((_LEAF, Comparison(OracleSource(5, _ADDRESS), "equals", "1")))))),
]


@pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda trigger: type(trigger).__name__)
async def test_a_job_is_read_back_as_it_was_written(store: Store, trigger: Trigger) -> None:
    job = make_job(
        UINT256_MAX,
        cost_actual=10**30,
        safe_name="Ä\0",
        trigger=trigger,
        time_frame=2**62,
        next_due=None,
        missed=MissedPolicy.RUN_ALL,
        starts_at=START + 1,
        edge=Edge(3, armed=False),
        caught_up=True,
        recurring=False,
        priority=1,
        security=4,
        link_job_id=UINT256_MAX - 1,
        chain_status=1,
        revision=4,
        spent=True,
        last_executed_at=START,
        status=JobStatus.SCHEDULED,
    )
    assert await store.add_job(job) == job
    assert await store.job(job.id) == job
    assert await store.job(1) is None
    planned = replace(job, spent=False, id=5)
    await store.add_job(planned)
    assert await store.planned_job(5) == planned.planned is not None


async def test_a_job_posted_twice_is_stored_counted_and_credited_once(store: Store) -> None:
    job = await store.add_job(make_job())
    assert await store.add_job(make_job(title="another title")) == job
    assert await owner_of(store) == User(1, OWNER, "", JOB_CREATED, 1, 0, START, START)


async def test_a_custom_job_earns_its_owner_twice_as_much(store: Store) -> None:
    await store.add_job(make_job(1))
    await store.add_job(make_job(2, definition=7))
    assert (await owner_of(store)).points == JOB_CREATED + CUSTOM_JOB_CREATED


async def test_linked_jobs_are_stored_all_or_none(store: Store) -> None:
    jobs = [make_job(1, link_job_id=2, chain_status=1), make_job(2, chain_status=2, starts_at=None)]
    assert await store.add_jobs(jobs) == jobs
    assert await store.add_jobs([make_job(2, title="another"), make_job(3)]) == [jobs[1]]
    assert await store.job(3) is None
    assert (await owner_of(store)).total_jobs == 2
    assert (await store.linked_to(1), await store.linked_to(2), await store.linked_to(9)) == (jobs[1], None, None)


async def test_concurrent_posts_of_one_job_store_one(store: Store) -> None:
    stored = []

    async def post(title: str) -> None:
        stored.append(await store.add_job(make_job(title=title)))

    async with trio.open_nursery() as nursery:
        for i in range(20):
            nursery.start_soon(post, f"title {i}")
    assert len({job.title for job in stored}) == 1
    assert (await owner_of(store)).total_jobs == 1


async def test_jobs_are_listed_by_key_owner_and_owner(store: Store) -> None:
    other = b"\x09" * 20
    mine = await store.add_job(make_job(1))
    also_mine = await store.add_job(make_job(2, owner=other, posted_at=START + 1))
    await store.add_job(make_job(3, key_owner="somebody else"))
    assert await store.jobs(key_owner=KEY_OWNER) == [mine, also_mine]
    assert await store.jobs(key_owner=KEY_OWNER, owner=other) == [also_mine]
    assert await store.jobs(key_owner="nobody") == []


async def test_owners_get_and_lose_their_email(store: Store) -> None:
    assert await store.set_email(OWNER, "a@example.org", START) is None
    await store.add_job(make_job())
    user = some(await store.set_email(OWNER, "a@example.org", START + 5))
    assert (user.email, user.updated_at) == ("a@example.org", START + 5)
    assert await store.user(OWNER) == user
    assert some(await store.set_email(OWNER, "", START + 6)).email == ""


async def test_the_jobs_of_a_shard_are_paged_completely(store: Store) -> None:
    ids = [16 * i + 5 for i in range(1, 31)]
    for job_id in [*ids, 4, 6]:
        await store.add_job(make_job(job_id))
    await store.end_job(ids[3], JobStatus.DELETED, START)
    await store.pause_job(ids[4], START)
    await store.fire([Firing(ids[5], None, None, spent=True)], START, FENCES)
    await store.add_job(make_job(16 * 50 + 5, starts_at=None))
    seen: list[Planned] = []
    while page := await store.planned(5, seen[-1].job_id if seen else None, 7):
        assert len(page) <= 7
        seen += page
    assert sorted(p.job_id for p in seen) == [i for i in ids if i not in ids[3:6]]
    assert {shard_of(p.job_id) for p in seen} == {5}
    assert some(await store.planned_job(ids[0])) == Planned(
        job_id=ids[0],
        chain_id=CHAIN,
        definition=1,
        trigger=Interval(10),
        created_at=START,
        time_frame=100,
        starts_at=0,
        next_due=START + 10,
        recurring=True,
        missed=MissedPolicy.RUN_ONCE,
        priority=3,
        edge=Edge(),
        caught_up=False,
        trace_id="tgrx-test",
    )
    assert [await store.planned_job(i) for i in (*ids[3:6], 16 * 50 + 5, 999)] == [None] * 5


async def test_what_comes_after_a_job_of_another_shard_is_nothing(store: Store) -> None:
    await store.add_jobs([make_job(i) for i in (5, 21, 6)])
    assert [len(await store.planned(5, after, 9)) for after in (None, 5, 21, 6, 99)] == [2, 1, 0, 0, 0]


async def test_jobs_are_counted_by_status(store: Store) -> None:
    assert await store.job_counts() == {}
    for job_id in range(1, 6):
        await store.add_job(make_job(job_id))
    await store.end_job(1, JobStatus.DELETED, START)
    await store.pause_job(2, START)
    await store.fire([Firing(3, None, START + 20)] * 2, START, FENCES)
    assert await store.job_counts() == {
        JobStatus.CREATED: 2,
        JobStatus.DELETED: 1,
        JobStatus.PAUSED: 1,
        JobStatus.SCHEDULED: 1,
    }


async def test_the_scripts_of_jobs_that_have_not_ended_are_listed_once_the_newest_first(store: Store) -> None:
    assert await store.script_urls() == []
    for job_id, url in enumerate(("ipfs://a", "ipfs://b", "", "ipfs://c", "ipfs://a", "ipfs://d"), 1):
        job = make_job(job_id, definition=2)
        await store.add_job(replace(job, target=replace(job.target, script_url=url)))
    await store.end_job(6, JobStatus.DELETED, START)
    await store.pause_job(4, START)
    assert await store.script_urls() == ["ipfs://a", "ipfs://c", "ipfs://b"]


async def test_what_changes_is_remembered_for_those_who_did_not_hear_of_it(store: Store) -> None:
    assert await store.changed_jobs(None) == (0, [])
    jobs = [make_job(1, link_job_id=2), make_job(2, starts_at=None), make_job(3)]
    await store.add_jobs(jobs)
    assert await store.changed_jobs(0) == (3, [1, 2, 3])
    await store.fire([Firing(3, None, START + 20)], START, FENCES)
    await store.mark_caught_up([3])
    assert await store.changed_jobs(3) == (3, [])
    await store.pause_job(3, START)
    await store.resume_job(3, START + 20, START)
    await store.update_job(make_job(1, title="another"))
    assert await store.changed_jobs(3) == (6, [3, 1])
    await store.end_job(1, JobStatus.COMPLETED, START)  # by which the second begins
    assert await store.changed_jobs(6) == (8, [1, 2])
    assert await store.changed_jobs(0) == (8, [3, 1, 2])


# --- what owners do to their jobs


async def test_a_deleted_job_fires_no_more_and_stays_deleted(store: Store) -> None:
    job = await store.add_job(make_job())
    assert some(await store.end_job(job.id, JobStatus.DELETED, START + 1)).status is JobStatus.DELETED
    again = some(await store.end_job(job.id, JobStatus.COMPLETED, START + 2))
    assert (again.status, again.updated_at) == (JobStatus.DELETED, START + 1)
    assert await store.end_job(99, JobStatus.DELETED, START) is None
    assert await store.update_job(make_job(title="too late")) is None
    assert some(await store.pause_job(job.id, START)).status is JobStatus.DELETED
    assert some(await store.resume_job(job.id, START, START)).status is JobStatus.DELETED


async def test_a_paused_job_goes_on_from_the_second_it_is_given(store: Store) -> None:
    await store.add_job(make_job())
    paused = some(await store.pause_job(7, START + 5))
    assert (paused.status, paused.revision, await store.planned_job(7)) == (JobStatus.PAUSED, 1, None)
    assert await store.pause_job(7, START + 6) == paused
    resumed = some(await store.resume_job(7, START + 40, START + 33))
    assert (resumed.status, resumed.next_due, resumed.revision) == (JobStatus.SCHEDULED, START + 40, 2)
    assert await store.resume_job(7, START + 90, START + 34) == resumed
    assert await store.planned_job(7) == resumed.planned
    assert [await store.pause_job(99, START), await store.resume_job(99, None, START)] == [None, None]


async def test_a_job_resumed_when_nothing_is_left_completes(store: Store) -> None:
    await store.add_job(make_job())
    await store.pause_job(7, START + 5)
    assert some(await store.resume_job(7, None, START + 500)).status is JobStatus.COMPLETED


@pytest.mark.parametrize("policy", MissedPolicy)
async def test_an_event_job_that_was_paused_is_searched_again_unless_it_skips(store: Store, policy: MissedPolicy) -> None:
    await store.add_job(make_job(trigger=ON_EVENT, missed=policy, starts_at=START))
    await store.mark_caught_up([7, 99])
    assert some(await store.job(7)).caught_up
    await store.pause_job(7, START + 5)
    resumed = some(await store.resume_job(7, None, START + 50))
    assert not resumed.caught_up
    assert resumed.starts_at == (START + 50 if policy is MissedPolicy.SKIP else START)


async def test_a_condition_job_is_armed_after_a_pause_as_it_was_before(store: Store) -> None:
    job = await store.add_job(make_job(trigger=ON_CONDITION))
    await store.fire([make_edge_firing(job, 1)], START, FENCES)
    await store.pause_job(7, START)
    assert some(await store.resume_job(7, None, START + 9)).edge == Edge(1, armed=False)


async def test_an_update_takes_what_is_the_owners_and_leaves_how_far_the_job_is(store: Store) -> None:
    job = await store.add_job(make_job(link_job_id=3, starts_at=START))
    await with_task(store)
    wanted = replace(
        job,
        title="another",
        trigger=Interval(7),
        target=replace(job.target, gas_limit=5, abi="[]"),
        spec=b"another",
        next_due=START + 14,
        priority=1,
        security=2,
        missed=MissedPolicy.SKIP,
        timezone="Asia/Tokyo",
        cost_prediction="1",
        updated_at=START + 12,
        # and what is not the owner's
        spent=True,
        edge=Edge(9),
        key_owner="another",
        cost_actual=99,
        link_job_id=-1,
        status=JobStatus.CREATED,
    )
    expected = replace(
        wanted,
        spent=False,
        edge=Edge(),
        key_owner=KEY_OWNER,
        cost_actual=0,
        link_job_id=3,
        status=JobStatus.SCHEDULED,
        revision=1,
    )
    assert await store.update_job(wanted) == expected
    assert await store.job(7) == expected
    assert await store.planned_job(7) == expected.planned
    assert await store.update_job(make_job(99)) is None


async def test_an_update_of_the_title_does_not_turn_back_the_schedule(store: Store) -> None:
    read_before: Job = await store.add_job(make_job())
    await with_task(store, next_due=START + 20)
    updated = some(await store.update_job(replace(read_before, title="another")))
    assert (updated.title, updated.next_due) == ("another", START + 20)
