"""Checkpoints of event jobs: they move only under the shard's fence, and only where all of its jobs are known."""

from __future__ import annotations

from collections.abc import AsyncIterator

import trio
from pytest_trio import trio_fixture
from trio.testing import MockClock

from coordinator.checkpoints import FencedCheckpoints
from coordinator.store.memory import MemoryStore
from coordinator.store.port import Store
from coordinator.store.records import SHARDS, shard_of
from node.infra.clock import TrioClock
from tests.coordinator.factory import FENCES, ON_EVENT, START, make_job
from tests.coordinator.stores import EVERY_STORE, a_store, some, with_job  # noqa: F401
from tests.coordinator.test_ownership import LEASE, SlowStore, World, jobs


@trio_fixture  # type: ignore[untyped-decorator]
async def world(autojump_clock: MockClock) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        yield World(SlowStore(), TrioClock(START), nursery)
        nursery.cancel_scope.cancel()


@EVERY_STORE
async def test_a_checkpoint_is_not_moved_by_who_has_lost_its_shard(store: Store) -> None:
    await store.save_checkpoints({"events:1:3": 5, "events:1:4": 5}, FENCES)
    assert await store.claim_shard(3, 2, START)
    await store.save_checkpoints({"events:1:3": 9, "events:1:4": 9}, FENCES)
    assert [await store.checkpoint(f"events:1:{shard}") for shard in (3, 4)] == [5, 9]
    await store.save_checkpoints({"events:1:3": 7, "events:1:4": 1}, {3: 2})
    assert [await store.checkpoint(f"events:1:{shard}") for shard in (3, 4)] == [7, 9]


@EVERY_STORE
async def test_a_job_is_not_caught_up_by_the_word_of_who_has_lost_its_shard(store: Store) -> None:
    for job_id in (3, 4):
        await with_job(store, make_job(job_id, trigger=ON_EVENT))
    assert (shard_of(3), shard_of(4)) == (3, 4)
    assert await store.claim_shard(3, 2, START)
    await store.mark_caught_up([3, 4], FENCES)
    assert [some(await store.job(job_id)).caught_up for job_id in (3, 4)] == [False, True]
    await store.mark_caught_up([3], {3: 2})
    assert some(await store.job(3)).caught_up


async def test_nothing_is_written_of_shards_whose_jobs_are_not_all_read_yet() -> None:
    store = MemoryStore()
    await store.claim_shard(1, 5, START)
    watched: dict[int, int] = {}
    checkpoints = FencedCheckpoints(store, lambda: watched)
    await checkpoints.save_checkpoints({"events:1:1": 100})
    assert await checkpoints.checkpoint("events:1:1") is None
    watched[1] = 5
    await checkpoints.save_checkpoints({"events:1:1": 100, "events:1:2": 100})
    assert [await checkpoints.checkpoint(f"events:1:{shard}") for shard in (1, 2)] == [100, None]


async def test_a_shard_is_watched_when_its_last_job_is_put_in_not_when_it_is_claimed(
    world: World, autojump_clock: MockClock
) -> None:
    await world.add(*jobs())
    one = await world.start("one")
    assert one.ownership.watched() == one.ownership.fences
    two = await world.start("two")
    await trio.sleep(2 * LEASE)
    world.store.unreadable = True
    two.kill()
    await trio.sleep(3 * LEASE)
    assert len(one.shards) == SHARDS
    assert len(one.ownership.watched()) == SHARDS // 2
    world.store.unreadable = False
    await trio.sleep(2)
    assert one.ownership.watched() == one.ownership.fences


async def test_a_shard_that_is_claimed_anew_is_watched_when_it_is_read_anew(world: World, autojump_clock: MockClock) -> None:
    await world.add(*jobs())
    one = await world.start("one")
    world.store.unreadable = True
    world.server.lose()  # every lease is taken anew, and another may have had it
    await trio.sleep(LEASE)
    assert len(one.shards) == SHARDS
    assert one.ownership.watched() == {}
