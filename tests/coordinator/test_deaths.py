"""Deaths and outages at every call of the store: nothing is lost, nothing fires twice."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from consensus.errors import Transient
from consensus.lifecycle import TaskState
from coordinator.attempts import DispatchPolicy
from coordinator.store.memory import MemoryStore
from coordinator.store.records import JobStatus
from tests.coordinator.world import World, executes, is_silent, open_world

S = TaskState

UPKEEP = {"touch_shards", "expire_jobs", "keepers", "keeper_records", "save_keeper", "save_checkpoints", "alerts"}
"""Calls that come and go with time, whatever there is to do: none of a task's steps is among them."""


class BusyStore(MemoryStore):
    """Cannot answer its n-th call: nothing is then written, says the port."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 0
        self.where = ""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name.startswith("_") or "_of_job" in name or name in UPKEEP or not inspect.iscoroutinefunction(value):
            return value  # the tasks of a job are what this test itself looks at

        async def call(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                self.where = name
                raise Transient("DATABASE_BUSY", name)
            return await value(*args, **kwargs)

        return call


def test_a_store_that_is_busy_at_any_one_call_loses_nothing_and_fires_nothing_twice() -> None:
    places = set()

    async def scenario(at: int) -> bool:
        store = BusyStore()
        policy = DispatchPolicy(ack_timeout=6, retries=(1, 2, 4), window=8, settle=5)
        async with open_world(keepers=3, store=store, policy=policy) as world, trio.open_nursery() as nursery:
            nursery.start_soon(world.certify_all)
            job_id = await world.post(interval=10, time_frame=30)
            store.left = at
            with trio.fail_after(300):
                tasks = await world.ended(job_id, 3)
            places.add(store.where)
            created_at = world.ledger.state.jobs[job_id].created_at
            assert sorted(world.executed_seconds(job_id)) == [created_at + s for s in (10, 20, 30)], (at, store.where)
            assert [t.state for t in tasks] == [S.COMPLETED] * 3, (at, store.where)
            job = store._jobs[job_id]
            assert job.status is JobStatus.COMPLETED
            nursery.cancel_scope.cancel()
        return store.left <= 0

    at = 1
    while trio.run(scenario, at, clock=MockClock(autojump_threshold=0)):
        at += 1
    assert at > 60
    assert places >= {"fire", "add_attempt", "mark_published", "acknowledge", "record", "attempts", "task"}


class DyingStore(MemoryStore):
    """Kills the coordinator at its n-th call, before or after the call had its effect."""

    def __init__(self, at: int, *, after: bool) -> None:
        super().__init__()
        self.left = at
        self.after = after
        self.die: Callable[[], None] | None = None
        self.killed = trio.Event()
        self.where = ""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name.startswith("_") or name in UPKEEP or not inspect.iscoroutinefunction(value):
            return value

        async def call(*args: Any, **kwargs: Any) -> Any:
            if self.die is None:
                return await value(*args, **kwargs)
            self.left -= 1
            if self.left != 0:
                return await value(*args, **kwargs)
            self.where = name
            if self.after:
                await value(*args, **kwargs)
            self.die()
            self.killed.set()
            await trio.lowlevel.checkpoint()  # cancelled here
            raise AssertionError("a dead coordinator goes on")

        return call


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_call_of_the_store_it_loses_nothing_and_fires_nothing_twice(after: bool) -> None:
    places = set()

    async def scenario(at: int) -> bool:
        store = DyingStore(at, after=after)
        policy = DispatchPolicy(ack_timeout=6, retries=(1, 2, 4), window=8, settle=5)
        async with open_world(keepers=3, store=store, policy=policy) as world, trio.open_nursery() as nursery:
            nursery.start_soon(world.certify_all)
            job_id = await world.post(interval=10, time_frame=30)
            world.keepers[0].behaviour = is_silent  # so that reassignment is among the steps
            store.die = world.kill
            with trio.move_on_after(200):
                await store.killed.wait()
            died = store.killed.is_set()
            store.die = None
            if died:
                places.add(store.where)
                await trio.sleep(1)
                world.keepers[0].behaviour = executes
                await world.start()
            tasks = await world.ended(job_id, 3)
            assert_each_second_ran_once(world, job_id, [t.trigger_id for t in tasks if t.state is S.COMPLETED])
            job = await world.store.job(job_id)
            assert job is not None
            assert job.status is JobStatus.COMPLETED
            nursery.cancel_scope.cancel()
        return died

    def assert_each_second_ran_once(world: World, job_id: int, completed: list[int]) -> None:
        created_at = world.ledger.state.jobs[job_id].created_at
        assert sorted(world.executed_seconds(job_id)) == sorted(completed) == [created_at + s for s in (10, 20, 30)]

    at = 1
    while trio.run(scenario, at, clock=MockClock(autojump_threshold=0)):
        at += 1
    assert at > 60
    assert places >= {"fire", "add_attempt", "mark_published", "acknowledge", "end_attempt", "record", "attempts", "task"}
