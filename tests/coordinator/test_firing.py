"""The firing desk: tasks reach the store before anything else happens, and the queue whenever it can take them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest
import trio
from pytest_trio import trio_fixture

from consensus.errors import Transient
from consensus.lifecycle import TaskState
from coordinator import firing
from coordinator.firing import FiringDesk
from coordinator.store.memory import MemoryStore
from coordinator.store.records import SHARDS, Fired, Firing, JobStatus, TaskChange, shard_of
from coordinator.streams.memory import MemoryServer, MemoryStreams
from node.infra.clock import TrioClock
from tests.coordinator.factory import ON_CONDITION, START, make_edge_firing, make_job, make_task


class Store(MemoryStore):
    away = False

    async def complete_job(self, job_id, at):
        if self.away:
            raise Transient("STORE_UNAVAILABLE", "away")
        return await super().complete_job(job_id, at)

    async def fire(self, firings, at, fences):
        if self.away:
            raise Transient("STORE_UNAVAILABLE", "away")
        return await super().fire(firings, at, fences)


@dataclass
class Desk:
    store: Store
    server: MemoryServer
    streams: MemoryStreams
    fences: dict[int, int]
    fenced: list[tuple[int, int]] = field(default_factory=list)
    reread: list[int] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)
    news: trio.Event = field(default_factory=trio.Event)

    async def heard(self, job_id: int) -> None:
        self.changed.append(job_id)
        self.news.set()


@trio_fixture  # type: ignore[untyped-decorator]
async def world(autojump_clock) -> AsyncIterator[Desk]:
    server = MemoryServer()
    store = Store()
    fences = dict.fromkeys(range(SHARDS), 1)
    for shard in fences:
        await store.claim_shard(shard, 1, START)
    yield Desk(store, server, MemoryStreams(server, "one"), fences)


def desk_of(world: Desk) -> FiringDesk:
    return FiringDesk(
        world.store,
        world.streams.push,
        TrioClock(START),
        world.fences,
        fenced=lambda shard, token: world.fenced.append((shard, token)),
        reread=world.reread.append,
        changed=world.heard,
    )


@trio_fixture  # type: ignore[untyped-decorator]
async def desk(world, nursery) -> FiringDesk:
    desk = desk_of(world)
    await nursery.start(desk.run)
    return desk


def due(job, second: int = START + 10, **changes) -> Firing:
    return Firing(job.id, make_task(job, second), next_due=second + 10, **changes)


async def test_a_new_task_is_stored_and_queued_with_its_priority(world, desk, autojump_clock):
    low, high = await world.store.add_job(make_job(1, priority=3)), await world.store.add_job(make_job(2, priority=1))
    assert await desk([due(low), due(high)]) == [Fired.NEW, Fired.NEW]
    await trio.testing.wait_all_tasks_blocked()
    taken = await world.streams.take(10)
    assert [(entry.task_id, entry.priority) for entry in taken] == [
        (make_task(high, START + 10).id, 1),
        (make_task(low, START + 10).id, 3),
    ]


async def test_what_is_known_is_not_queued_again(world, desk, autojump_clock):
    job = await world.store.add_job(make_job(1))
    await desk([due(job)])
    assert await desk([due(job)]) == [Fired.KNOWN]
    await trio.testing.wait_all_tasks_blocked()
    assert await world.streams.backlog() == 1


async def test_a_store_that_is_away_is_the_scheduler_s_to_wait_for(world, desk, autojump_clock):
    job = await world.store.add_job(make_job(1))
    world.store.away = True
    with pytest.raises(Transient):
        await desk([due(job)])
    await trio.testing.wait_all_tasks_blocked()
    assert await world.streams.backlog() == 0


@pytest.mark.parametrize("trouble", ["away", "hangs"])
async def test_firing_waits_for_no_queue(world, desk, autojump_clock, trouble):
    job = await world.store.add_job(make_job(1, time_frame=100_000))
    if trouble == "away":
        world.server.take_down()
    else:
        world.server.hang()
    began = trio.current_time()
    for number in range(1, 1001):
        assert await desk([due(job, START + 10 * number)]) == [Fired.NEW]
    assert trio.current_time() == began
    assert len(await world.store.open_tasks()) == 1000


async def test_the_way_to_a_queue_that_hangs_holds_a_bounded_number_of_tasks(world, desk, autojump_clock, monkeypatch):
    monkeypatch.setattr(firing, "_WAITING", 5)
    job = await world.store.add_job(make_job(1, time_frame=100_000))
    world.server.hang()
    await desk([due(job)])
    await trio.testing.wait_all_tasks_blocked()  # that one is on its way
    for number in range(2, 10):
        await desk([due(job, START + 10 * number)])
    assert desk.overflowed == 3
    world.server.run_on()
    await trio.testing.wait_all_tasks_blocked()
    assert await world.streams.backlog() == 6
    assert len(await world.store.open_tasks()) == 9  # the others are where the dispatcher's sweep finds them


async def test_a_shard_that_another_claimed_is_reported_with_the_token_that_was_used(world, desk, autojump_clock):
    job = await world.store.add_job(make_job(1))
    await world.store.claim_shard(shard_of(job.id), 2, START)
    assert await desk([due(job)]) == [Fired.FENCED]
    assert world.fenced == [(shard_of(job.id), 1)]
    assert await world.store.tasks_of_job(job.id, 10) == []


async def test_a_shard_that_is_not_held_is_nothing_to_report(world, desk, autojump_clock):
    job = await world.store.add_job(make_job(1))
    del world.fences[shard_of(job.id)]
    assert await desk([due(job)]) == [Fired.FENCED]
    assert world.fenced == []


async def test_a_job_that_fires_no_more_completes_and_what_waited_for_it_begins(world, desk, autojump_clock):
    first = await world.store.add_job(make_job(1, link_job_id=2))
    await world.store.add_job(make_job(2, starts_at=None))
    assert await desk([Firing(first.id, None, spent=True)]) == [Fired.NEW]
    await world.news.wait()
    assert (await world.store.job(1)).status is JobStatus.COMPLETED
    assert world.changed == [2]


async def test_a_job_with_an_open_task_completes_with_it(world, desk, autojump_clock):
    job = await world.store.add_job(make_job(1))
    await desk([due(job, spent=True)])
    await trio.testing.wait_all_tasks_blocked()
    assert (await world.store.job(1)).active


async def test_a_job_whose_end_could_not_be_written_is_completed_later(world, desk, autojump_clock):
    job = await world.store.add_job(make_job(1))
    await world.store.add_job(make_job(3, link_job_id=4))
    await desk([Firing(job.id, None, spent=True)])
    world.store.away = True
    await trio.sleep(5)
    world.store.away = False
    await trio.sleep(5)
    assert (await world.store.job(1)).status is JobStatus.COMPLETED


async def test_a_condition_whose_edge_moved_on_is_read_anew(world, desk, autojump_clock):
    job = await world.store.add_job(make_job(1, trigger=ON_CONDITION, next_due=None))
    assert await desk([make_edge_firing(job, 1)]) == [Fired.NEW]
    assert await desk([make_edge_firing(job, 1)]) == [Fired.KNOWN]
    assert world.reread == [job.id]


async def test_a_job_that_ended_elsewhere_is_read_anew(world, desk, autojump_clock):
    job = make_job()
    await world.store.add_job(job)
    await world.store.end_job(job.id, JobStatus.DELETED, START)
    assert await desk([Firing(job.id, make_task(job, START + 10), next_due=START + 20)]) == [Fired.INACTIVE]
    assert world.reread == [job.id]


async def test_it_has_settled_when_the_last_firing_is_written(world, desk, autojump_clock, monkeypatch):
    job = await world.store.add_job(make_job(1))
    may_write, order = trio.Event(), list[str]()
    write = world.store.fire

    async def fire(firings: Sequence[Firing], at: int, fences):
        await may_write.wait()
        answers = await write(firings, at, fences)
        order.append("written")
        return answers

    monkeypatch.setattr(world.store, "fire", fire)
    await desk.settled()
    async with trio.open_nursery() as nursery:

        async def settled() -> None:
            await desk.settled()
            order.append("settled")

        nursery.start_soon(desk, [due(job)])
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(settled)
        await trio.testing.wait_all_tasks_blocked()
        may_write.set()
    assert order == ["written", "settled"]


async def test_a_task_that_executed_meanwhile_is_queued_all_the_same_and_ends_there(world, desk, autojump_clock):
    job = await world.store.add_job(make_job(1))
    await desk([due(job)])
    task = make_task(job, START + 10)
    await world.store.change(TaskChange(task.id, (TaskState.EXECUTED,)), START)
    await trio.testing.wait_all_tasks_blocked()
    assert [entry.task_id for entry in await world.streams.take(1)] == [task.id]
