"""One suite for every store: points, keepers' records, shards, gaps, alerts, and what is forgotten."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.lifecycle import TaskState
from coordinator import points
from coordinator.store.changes import MAX_CHANGES, MAX_GAPS
from coordinator.store.port import Store
from coordinator.store.records import SHARDS, Gap, KeeperRecord, KeeperSeen, TaskChange
from tests.coordinator.factory import CHAIN, OWNER, START, make_attempt, make_job, make_key
from tests.coordinator.stores import EVERY_STORE, owner_of, record_of, some, with_task
from tests.coordinator.stores import a_store as a_store

S = TaskState
PERFORMER, ONE, TWO = b"\x21" * 20, b"\x22" * 20, b"\x23" * 20
COST = 3 * 10**15 + 7


def executed(task_id: int, cost: int = COST) -> TaskChange:
    return TaskChange(task_id, (S.EXECUTED,), number=1, cost=cost, successful=True, performer=PERFORMER, performer_id=4)


def accepted(task_id: int, **facts: object) -> TaskChange:
    return TaskChange(task_id, (S.CERTIFIED,), accepted=True, attesters=(ONE, TWO), attester_ids=(1, 2), **facts)  # type: ignore[arg-type]


@EVERY_STORE
async def test_an_accepted_task_pays_user_performer_and_attesters_once(store: Store) -> None:
    task_id = await with_task(store)
    await store.save_keeper_form(KeeperRecord(CHAIN, TWO, booster=2, whitelisted=True, name="Two", email="t@x.org", chat_id="5"))
    effects = [executed(task_id), accepted(task_id, rewards={PERFORMER: 10**20, ONE: 5, b"\x24" * 20: 1})]
    for _ in range(3):  # after a crash, after a reorganisation: told again
        await store.record(CHAIN, 40, effects, [], START)
    await store.change(TaskChange(task_id, (), accepted=False), START)
    assert (await owner_of(store)).points == points.JOB_CREATED + COST
    assert await store.keeper_records() == [
        KeeperRecord(CHAIN, PERFORMER, points=COST, rewards=10**20, executed=1, by_definition={1: 1}),
        KeeperRecord(CHAIN, ONE, points=COST, rewards=5, attested=1),
        KeeperRecord(
            CHAIN, TWO, points=2 * COST, attested=1, booster=2, whitelisted=True, name="Two", email="t@x.org", chat_id="5"
        ),
        KeeperRecord(CHAIN, b"\x24" * 20, rewards=1),
    ]


@EVERY_STORE
async def test_a_rejected_task_costs_its_performer_a_tenth_and_nobody_else_anything(store: Store) -> None:
    task_id = await with_task(store)
    await store.save_keeper_form(KeeperRecord(CHAIN, PERFORMER, booster=2))
    rejected = TaskChange(task_id, (S.REJECTED,), accepted=False, attesters=(ONE,), reason="REFUSED_BY_COMMITTEE")
    for _ in range(2):
        await store.record(CHAIN, 40, [executed(task_id), rejected, accepted(task_id)], [], START)
    assert (await owner_of(store)).points == points.JOB_CREATED
    assert await store.keeper_records() == [
        KeeperRecord(CHAIN, PERFORMER, points=points.for_rejected(COST, 2), rejected=1, booster=2)
    ]


@EVERY_STORE
async def test_accepted_executions_are_counted_by_type_of_job(store: Store) -> None:
    for job_id in (7, 8):
        task_id = await with_task(store, job_id)
        await store.record(CHAIN, 40, [executed(task_id, cost=1), accepted(task_id)], [], START)
    record = await record_of(store, PERFORMER)
    assert (record.executed, record.by_definition, record.points) == (2, {1: 2}, 2)
    assert (await record_of(store, ONE)).attested == 2


@EVERY_STORE
async def test_a_task_that_nobody_attested_pays_nobody(store: Store) -> None:
    task_id = await with_task(store)
    await store.record(CHAIN, 40, [executed(task_id), TaskChange(task_id, (S.NOT_ATTESTED,), reason="NO_QUORUM")], [], START)
    assert await store.keeper_records() == []
    await store.record(CHAIN, 41, [accepted(task_id)], [], START)  # late, but certified after all
    assert (await record_of(store, PERFORMER)).executed == 1


@EVERY_STORE
async def test_an_attempt_given_up_counts_against_its_keeper_only_by_its_fault(store: Store) -> None:
    task_id = await with_task(store)
    task = some(await store.task(task_id))
    for number, fault in ((1, False), (2, True)):
        attempt = make_attempt(task, number, performer=ONE)
        await store.add_attempt(attempt, TaskChange(task_id, (S.DISPATCHED,), attempt=number), START)
        assert await store.end_attempt(task_id, number, "NO_ACKNOWLEDGEMENT", "", 5, fault=fault)
        assert not await store.end_attempt(task_id, number, "NO_ACKNOWLEDGEMENT", "", 5, fault=True)
    assert await store.keeper_records() == [KeeperRecord(CHAIN, ONE, failed=1)]


@EVERY_STORE
async def test_a_form_changes_what_it_says_and_leaves_the_counts(store: Store) -> None:
    task_id = await with_task(store)
    await store.record(CHAIN, 40, [executed(task_id), accepted(task_id)], [], START)
    await store.save_keeper_form(KeeperRecord(CHAIN, ONE, points=10**30, attested=99, name="One", booster=2))
    assert await record_of(store, ONE) == KeeperRecord(CHAIN, ONE, points=COST, attested=1, name="One", booster=2)


@EVERY_STORE
async def test_keys_and_keepers_are_kept(store: Store) -> None:
    key = make_key()
    await store.add_key(key)
    assert await store.key(key.digest) == key
    assert await store.key(b"\x02" * 32) is None
    keeper = KeeperSeen(CHAIN, OWNER, "12D3Koo", "0.1.0", START, START, 0, "docker")
    await store.save_keeper(keeper)
    await store.save_keeper_form(KeeperRecord(CHAIN, ONE, name="never seen"))
    await store.save_keeper(replace(keeper, last_seen=START + 60, uptime_s=60))
    assert await store.keepers() == [replace(keeper, last_seen=START + 60, uptime_s=60)]
    assert await store.keeper_records() == [KeeperRecord(CHAIN, ONE, name="never seen")]
    await store.save_keeper(replace(keeper, address=ONE))
    assert len(await store.keepers()) == 2
    assert (await record_of(store, ONE)).name == "never seen"


@given(st.integers(0, 2**200), st.integers(1, 5))
def test_points_are_exact_whatever_a_task_costs(cost: int, booster: int) -> None:
    assert points.for_accepted(cost, booster) == booster * cost
    assert 0 <= -10 * points.for_rejected(cost, booster) <= booster * cost


# --- shards, gaps, alerts


@EVERY_STORE
async def test_the_next_holder_of_a_shard_learns_since_when_it_was_not_watched(store: Store) -> None:
    assert await store.watched_at(3) is None
    await store.touch_shards(range(SHARDS), START + 2)
    await store.touch_shards([3], START + 9)
    await store.touch_shards([3], START + 5)
    await store.touch_shards([], START + 50)
    assert await store.claim_shard(3, 50, START + 60)
    assert [await store.watched_at(shard) for shard in (3, 4)] == [START + 9, START + 2]


@EVERY_STORE
async def test_gaps_are_told_oldest_first_and_the_newest_hundred(store: Store) -> None:
    for i in range(130):
        await store.add_gap(Gap("shard:3", START + 10 * i, START + 10 * i + 5))
    await store.add_gap(Gap("shard:4", START, START + 7))
    await store.add_gap(Gap("source:x", START, START + 1))
    await store.add_gap(Gap("source:x", START, START + 9))
    await store.add_gap(Gap("source:x", START, START + 8))
    assert await store.gaps(["shard:4", "source:x"], START) == [
        Gap("shard:4", START, START + 7),
        Gap("source:x", START, START + 9),
    ]
    assert await store.gaps(["shard:4"], START + 7) == []
    assert await store.gaps([], START) == []
    told = await store.gaps(["shard:3", "shard:4"], START)
    assert [gap.began for gap in told] == [START + 10 * i for i in range(30, 130)]


@EVERY_STORE
async def test_old_gaps_are_forgotten(store: Store) -> None:
    await store.add_gap(Gap("shard:1", START, START + 5))
    await store.add_gap(Gap("shard:1", START + 100, START + 100 + 30 * 86_400))
    assert [gap.began for gap in await store.gaps(["shard:1"], 0)] == [START + 100]


@pytest.mark.parametrize("store", ["memory", "sqlite inline"], indirect=True)
async def test_gaps_are_never_more_than_their_room(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_GAPS == 10_000
    monkeypatch.setattr("coordinator.store.changes.MAX_GAPS", 5)
    for i in range(9):
        await store.add_gap(Gap(f"source:{i}", START + i, START + i + 1))
    kept = await store.gaps([f"source:{i}" for i in range(9)], 0)
    assert [gap.scope for gap in kept] == [f"source:{i}" for i in range(4, 9)]


@EVERY_STORE
async def test_an_outage_is_told_once_and_its_end_once(store: Store) -> None:
    assert await store.open_alert("keeper:5", "is offline", START)
    assert not await store.open_alert("keeper:5", "is offline", START + 5)
    assert await store.open_alert("part:redis", "is away", START + 6)
    assert await store.alerts() == {"keeper:5": START, "part:redis": START + 6}
    assert await store.close_alert("keeper:5") == START
    assert await store.close_alert("keeper:5") is None
    assert await store.open_alert("keeper:5", "again", START + 9)
    assert await store.alerts() == {"keeper:5": START + 9, "part:redis": START + 6}


@pytest.mark.parametrize("store", ["memory", "sqlite inline"], indirect=True)
async def test_of_more_changes_than_are_remembered_it_says_so(store: Store) -> None:
    await store.add_jobs([make_job(i) for i in range(1, MAX_CHANGES + 6)])
    assert [await store.changed_jobs(after) for after in (None, 4)] == [(MAX_CHANGES + 5, []), (MAX_CHANGES + 5, None)]
    newest, changed = await store.changed_jobs(5)
    assert (newest, len(some(changed))) == (MAX_CHANGES + 5, MAX_CHANGES)
