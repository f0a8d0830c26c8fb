"""Tasks of two coordinators on a real server that is killed, comes back, and loses everything: the store has them all."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
import trio

from consensus.lifecycle import TaskState
from coordinator.dispatcher import Dispatcher
from coordinator.firing import FiringDesk
from coordinator.guard import Guard
from coordinator.ownership import Ownership
from coordinator.signals import Signals
from coordinator.store.memory import MemoryStore
from coordinator.store.records import SHARDS, Fired, Firing, TaskChange
from node.infra.clock import SystemClock
from p2p.memory import MemoryMesh
from tests.coordinator.factory import START, make_job, make_task
from tests.coordinator.servers import Server, running
from tests.coordinator.test_ownership import Watched

JOBS = 32
ROUNDS = 6


class Drives:
    """Stands for `Attempts`: a task executes a moment after it was begun. Counts how often each was begun, by whom."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.begun: Counter[int] = Counter()
        self.news = trio.Event()

    async def drive(self, task_id: int) -> None:
        self.begun[task_id] += 1
        await trio.sleep(0.05)
        await self._store.change(TaskChange(task_id, (TaskState.EXECUTED,)), START)
        self.news.set()
        self.news = trio.Event()

    async def fail(self, task_id: int, code: str) -> bool:
        raise AssertionError(code)


async def nobody(*args: Any) -> Any:
    raise AssertionError("no keeper answers here")


async def run_one(name: str, server: Server, store: MemoryStore, drives: Drives, mesh: MemoryMesh, ends: AsyncExitStack) -> tuple:
    """A coordinator without keepers: ownership, desk and dispatcher as they are wired in `coordinator.app`."""
    streams = await ends.enter_async_context(server.open(name))
    clock, guard = SystemClock(), Guard()
    ownership = Ownership(store, streams, clock, name, lease_s=2.0)
    dispatcher = Dispatcher(
        store,
        streams,
        mesh.join(name),
        drives,  # type: ignore[arg-type]
        nobody,  # type: ignore[arg-type]
        Signals(),
        guard,
        clock,
        held_shards=lambda: ownership.fences,
        alone=ownership.alone,
    )
    desk = FiringDesk(
        store,
        dispatcher.push,
        clock,
        ownership.fences,
        fenced=ownership.fenced,
        reread=ownership.reread,
        changed=ownership.job_changed,
    )
    scheduler = Watched()
    nursery = await ends.enter_async_context(trio.open_nursery())
    ends.callback(nursery.cancel_scope.cancel)
    await nursery.start(dispatcher.run)
    await nursery.start(desk.run)
    await nursery.start(partial(ownership.run, {"time": scheduler, "event": scheduler, "condition": scheduler}, desk.settled))
    return ownership, desk


@pytest.mark.parametrize("kind", ["embedded", "redis"])
async def test_every_task_is_driven_although_the_server_is_killed_and_loses_everything(kind, tmp_path):
    rng = random.Random(7)
    store = MemoryStore()
    jobs = [await store.add_job(make_job(100 + number, time_frame=10**6)) for number in range(JOBS)]
    drives, mesh = Drives(store), MemoryMesh()
    with trio.fail_after(120):
        async with running(kind, tmp_path) as server, AsyncExitStack() as ends:
            both = [await run_one(name, server, store, drives, mesh, ends) for name in ("one", "two")]
            while any(len(ownership.fences) != SHARDS / 2 for ownership, _ in both):  # noqa: ASYNC110 - a fact of two
                await trio.sleep(0.05)
            fired = []
            for number in range(1, ROUNDS + 1):
                second = START + 10 * number
                for job in jobs:
                    firing = Firing(job.id, make_task(job, second, priority=1 + job.id % 3), next_due=second + 10)
                    answers = [(await desk([firing]))[0] for _, desk in both]
                    assert sorted(answers) == [Fired.FENCED, Fired.NEW]
                    fired.append(firing.task.id)
                if number % 2:
                    await server.flush()
                await server.kill()
                await trio.sleep(rng.uniform(0, 0.3))  # firing goes on at any moment of the outage
                await server.start()
            while any(task.state is TaskState.CREATED for task in await store.open_tasks()):
                await drives.news.wait()
            assert {task.id for task in await store.open_tasks()} == set(fired)  # executed, and known
            again = sum(times - 1 for times in drives.begun.values())
            assert again <= len(fired) / 2  # harmless, but not the rule
            assert sum(ownership.losses for ownership, _ in both) <= SHARDS
