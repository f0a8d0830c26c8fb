"""Shards divided among coordinators: fairly, without a gap when one leaves, soon when one dies, and never written by two."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import pytest
import trio
from pytest_trio import trio_fixture
from trio.testing import MockClock

from consensus.errors import Misconfigured, Transient, first_of
from coordinator.firing import FiringDesk
from coordinator.ownership import GAP_S, TOUCH_S, Ownership, kind_of
from coordinator.store.memory import MemoryStore
from coordinator.store.records import SHARDS, Fired, Firing, Job, JobStatus, Planned, shard_of
from coordinator.streams.memory import MemoryServer, MemoryStreams
from node.infra.clock import TrioClock
from tests.coordinator.factory import START, make_job, make_task

LEASE = 4.0
JOBS = 64


class Watched:
    """A scheduler that only remembers."""

    def __init__(self) -> None:
        self.planned: dict[int, Planned] = {}
        self.puts: list[int] = []

    def put(self, planned: Planned) -> None:
        self.planned[planned.job_id] = planned
        self.puts.append(planned.job_id)

    def remove(self, job_id: int) -> None:
        self.planned.pop(job_id, None)

    def jobs(self) -> Sequence[int]:
        return list(self.planned)

    def __len__(self) -> int:
        return len(self.planned)

    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()


class SlowStore(MemoryStore):
    """Firings take as long as the test says, and the store may be away."""

    def __init__(self) -> None:
        super().__init__()
        self.writing = trio.Event()
        self.may_write = trio.Event()
        self.may_write.set()
        self.away = False
        self.unreadable = False
        """Whether jobs cannot be listed."""

    async def fire(self, firings, at, fences):
        self.writing.set()
        await self.may_write.wait()
        return await super().fire(firings, at, fences)

    async def claim_shard(self, shard, token, at):
        self._answer()
        return await super().claim_shard(shard, token, at)

    async def planned(self, shard, after, limit):
        self._answer()
        if self.unreadable:
            raise Transient("STORE_UNAVAILABLE", "away")
        return await super().planned(shard, after, limit)

    async def planned_job(self, job_id):
        self._answer()
        return await super().planned_job(job_id)

    def _answer(self) -> None:
        if self.away:
            raise Transient("STORE_UNAVAILABLE", "away")


@dataclass
class Instance:
    """A coordinator's ownership and desk, which can be stopped as SIGTERM, and as SIGKILL does."""

    ownership: Ownership
    desk: FiringDesk
    time: Watched
    stop: Callable[[], None]
    kill: Callable[[], None]

    @property
    def shards(self) -> set[int]:
        return set(self.ownership.fences)

    @property
    def jobs(self) -> set[int]:
        return set(self.time.planned)


@dataclass
class World:
    store: SlowStore
    clock: TrioClock
    nursery: trio.Nursery
    server: MemoryServer = field(default_factory=MemoryServer)
    pushed: list[int] = field(default_factory=list)

    async def add(self, *jobs: Job) -> None:
        for job in jobs:
            await self.store.add_job(job)

    async def start(self, name: str, *, ready: bool = True) -> Instance:
        streams = MemoryStreams(self.server, name)
        ownership = Ownership(self.store, streams, self.clock, name, lease_s=LEASE)

        async def push(tasks: Sequence[tuple[int, int]]) -> None:
            await streams.push(tasks)
            self.pushed.extend(task for task, _ in tasks)

        desk = FiringDesk(
            self.store,
            push,
            self.clock,
            ownership.fences,
            fenced=ownership.fenced,
            reread=ownership.reread,
            changed=ownership.job_changed,
        )
        time, scope = Watched(), trio.CancelScope()

        async def run(*, task_status=trio.TASK_STATUS_IGNORED) -> None:
            with scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(desk.run)
                    await nursery.start(
                        partial(ownership.run, {"time": time, "event": Watched(), "condition": Watched()}, desk.settled)
                    )
                    task_status.started()

        def kill() -> None:
            self.server.isolate(name)  # what is killed says no goodbye
            scope.cancel()

        if ready:
            await self.nursery.start(run)
        else:
            self.nursery.start_soon(run)
        return Instance(ownership, desk, time, scope.cancel, kill)

    async def fire(self, instance: Instance, job: Job, second: int = START + 10) -> Fired:
        planned = await self.store.planned_job(job.id)
        assert planned is not None
        (answer,) = await instance.desk([Firing(job.id, make_task(job, second), next_due=second + 10)])
        return answer


@trio_fixture  # type: ignore[untyped-decorator]
async def world(autojump_clock: MockClock) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        yield World(SlowStore(), TrioClock(START), nursery)
        nursery.cancel_scope.cancel()


def jobs(count: int = JOBS, first: int = 100) -> list[Job]:
    return [make_job(first + number, time_frame=1_000_000) for number in range(count)]


async def test_one_alone_holds_every_shard_and_watches_every_job(world, autojump_clock):
    await world.add(*jobs())
    one = await world.start("one")
    assert one.shards == set(range(SHARDS))
    assert one.jobs == {job.id for job in jobs()}
    assert one.ownership.alone()


async def test_two_share_the_shards_and_every_job_is_watched_by_one(world, autojump_clock):
    await world.add(*jobs())
    one = await world.start("one")
    two = await world.start("two")
    await trio.sleep(2 * LEASE)
    assert len(one.shards) == len(two.shards) == SHARDS / 2
    assert one.shards | two.shards == set(range(SHARDS))
    assert one.jobs == {job.id for job in jobs() if shard_of(job.id) in one.shards}
    assert two.jobs == {job.id for job in jobs() if shard_of(job.id) in two.shards}
    assert not one.ownership.alone()
    assert one.ownership.instances == {"one", "two"}


async def test_five_share_the_shards_too(world, autojump_clock):
    everybody = [await world.start(f"instance {number}") for number in range(5)]
    await trio.sleep(4 * LEASE)
    assert sorted(shard for instance in everybody for shard in instance.shards) == list(range(SHARDS))
    assert max(len(instance.shards) for instance in everybody) == 4


async def test_the_jobs_of_one_who_was_killed_are_watched_within_seconds(world, autojump_clock):
    await world.add(*jobs())
    one, two = await world.start("one"), await world.start("two")
    await trio.sleep(2 * LEASE)
    two.kill()
    await trio.sleep(LEASE + LEASE / 3 + 0.1)
    assert one.shards == set(range(SHARDS))
    assert one.jobs == {job.id for job in jobs()}
    assert one.ownership.takeovers == SHARDS / 2


async def test_who_leaves_hands_over_within_a_round(world, autojump_clock):
    await world.add(*jobs())
    one, two = await world.start("one"), await world.start("two")
    await trio.sleep(2 * LEASE)
    two.stop()
    await trio.sleep(LEASE / 3 + 0.1)
    assert one.jobs == {job.id for job in jobs()}
    assert two.jobs == set()
    assert await world.store.gaps([f"shard:{shard}" for shard in range(SHARDS)], 0) == []


async def test_a_shard_changes_hands_only_when_its_last_firing_is_written(world, autojump_clock):
    job = make_job(100, time_frame=1_000_000)
    await world.add(job)
    one = await world.start("one")
    world.store.may_write = trio.Event()
    answers: list[Fired] = []
    async with trio.open_nursery() as nursery:

        async def fire() -> None:
            answers.append(await world.fire(one, job))

        nursery.start_soon(fire)
        await world.store.writing.wait()
        one.stop()
        two = await world.start("two")
        assert two.shards == set()
        world.store.may_write.set()
    await trio.sleep(LEASE / 3 + 0.1)
    assert answers == [Fired.NEW]
    assert two.shards == set(range(SHARDS))
    planned = two.time.planned[job.id]
    assert planned.next_due == START + 20  # as the last firing left it


async def test_what_one_gives_back_is_watched_by_the_other_as_it_was_left(world, autojump_clock):
    await world.add(*jobs())
    one = await world.start("one")
    for job in jobs():
        assert await world.fire(one, job) is Fired.NEW
    two = await world.start("two")
    await trio.sleep(2 * LEASE)
    assert len(two.jobs) == JOBS / 2
    assert {planned.next_due for planned in two.time.planned.values()} == {START + 20}
    given = next(job for job in jobs() if job.id in two.jobs)
    assert await world.fire(one, given, START + 20) is Fired.FENCED
    assert await world.fire(two, given, START + 20) is Fired.NEW


# outages of the streams


async def test_while_the_streams_are_away_everybody_goes_on_with_what_he_has(world, autojump_clock):
    await world.add(*jobs())
    one, two = await world.start("one"), await world.start("two")
    await trio.sleep(2 * LEASE)
    before = one.shards, two.shards
    world.server.take_down()
    await trio.sleep(100 * LEASE)
    assert (one.shards, two.shards) == before
    assert not one.ownership.reachable
    assert [await world.fire(one, job) for job in jobs() if job.id in one.jobs] == [Fired.NEW] * 32
    world.server.bring_back()
    await trio.sleep(2 * LEASE)
    assert (one.shards, two.shards) == before
    assert one.ownership.reachable


async def test_streams_that_come_back_empty_change_no_owner_and_stop_no_firing(world, autojump_clock):
    await world.add(*jobs())
    one, two = await world.start("one"), await world.start("two")
    await trio.sleep(2 * LEASE)
    before, tokens = (one.shards, two.shards), dict(one.ownership.fences)
    world.server.take_down()
    await trio.sleep(LEASE)
    world.server.bring_back(lose=True)
    await trio.sleep(3 * LEASE)
    assert (one.shards, two.shards) == before
    assert all(one.ownership.fences[shard] > tokens[shard] for shard in tokens)
    assert one.ownership.losses == two.ownership.losses == 0
    assert [await world.fire(two, job) for job in jobs() if job.id in two.jobs] == [Fired.NEW] * 32


async def test_streams_that_forget_without_going_away_change_no_owner_either(world, autojump_clock):
    one, two = await world.start("one"), await world.start("two")
    await trio.sleep(2 * LEASE)
    before = one.shards, two.shards
    world.server.lose()
    await trio.sleep(4 * LEASE)
    assert (one.shards, two.shards) == before


async def test_a_server_whose_tokens_and_time_are_behind_is_brought_up_to_the_store(world, autojump_clock):
    for shard in range(SHARDS):
        assert await world.store.claim_shard(shard, 10**13 + shard, START)  # months of microseconds ahead of this clock
    await world.add(*jobs())
    one = await world.start("one")
    assert one.shards == set(range(SHARDS))
    assert await world.fire(one, jobs()[0]) is Fired.NEW


async def test_who_reaches_no_streams_at_the_start_takes_shards_when_they_are_back(world, autojump_clock):
    await world.add(*jobs())
    world.server.take_down()
    one = await world.start("one")
    assert one.shards == set()
    world.server.bring_back()
    await trio.sleep(LEASE)
    assert one.jobs == {job.id for job in jobs()}


async def test_a_job_announced_during_an_outage_is_watched_after_it(world, autojump_clock):
    one, two = await world.start("one"), await world.start("two")
    await trio.sleep(2 * LEASE)
    world.server.take_down()
    await trio.sleep(1)
    await world.add(*jobs())
    for job in jobs():
        await one.ownership.job_changed(job.id)
    assert one.jobs == {job.id for job in jobs() if shard_of(job.id) in one.shards}
    world.server.bring_back()
    await trio.sleep(LEASE)
    assert two.jobs == {job.id for job in jobs() if shard_of(job.id) in two.shards}


# two who believe that they hold the same


async def test_who_was_cut_off_writes_nothing_once_another_holds_his_shards(world, autojump_clock):
    await world.add(*jobs())
    one, two = await world.start("one"), await world.start("two")
    await trio.sleep(2 * LEASE)
    theirs = sorted(one.jobs)
    world.server.isolate("one")
    await trio.sleep(2 * LEASE + 0.1)
    assert two.shards == set(range(SHARDS))
    assert set(theirs) <= one.jobs  # it cannot know
    job = make_job(theirs[0], time_frame=1_000_000)
    assert await world.fire(one, job) is Fired.FENCED
    assert shard_of(job.id) not in one.shards
    assert job.id not in one.jobs
    assert await world.store.tasks_of_job(job.id, 10) == []
    assert await world.fire(two, job) is Fired.NEW


async def test_who_wakes_late_finds_his_shards_taken_and_shares_again(world, autojump_clock):
    await world.add(*jobs())
    one, two = await world.start("one"), await world.start("two")
    await trio.sleep(2 * LEASE)
    world.server.isolate("one")
    await trio.sleep(3 * LEASE)
    world.server.join("one")
    await trio.sleep(3 * LEASE)
    assert one.ownership.losses == SHARDS / 2
    assert len(one.shards) == len(two.shards) == SHARDS / 2
    assert one.shards | two.shards == set(range(SHARDS))
    assert one.jobs | two.jobs == {job.id for job in jobs()}


async def test_a_firing_refused_because_the_shard_was_claimed_anew_here_is_made_again(world, autojump_clock):
    (job,) = jobs(1)
    await world.add(job)
    one = await world.start("one")
    world.store.may_write, world.store.writing = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:

        async def fire() -> None:
            assert await world.fire(one, job) is Fired.FENCED

        nursery.start_soon(fire)
        await world.store.writing.wait()
        world.server.lose()
        await trio.sleep(LEASE)  # in which the lease is got anew, with a higher token
        one.time.puts.clear()
        world.store.may_write.set()
    await trio.sleep(0.1)
    assert one.time.puts == [job.id]
    assert await world.fire(one, job) is Fired.NEW


# jobs that change


async def test_a_change_takes_effect_here_at_once_and_there_soon(world, autojump_clock):
    one, two = await world.start("one"), await world.start("two")
    await trio.sleep(2 * LEASE)
    await world.add(*jobs())
    for job in jobs():
        await one.ownership.job_changed(job.id)
    assert one.jobs == {job.id for job in jobs() if shard_of(job.id) in one.shards}
    await trio.sleep(0.1)
    assert one.jobs | two.jobs == {job.id for job in jobs()}
    for job in jobs():
        await world.store.pause_job(job.id, START)
        await two.ownership.job_changed(job.id)
    assert two.jobs == set()
    await trio.sleep(0.1)
    assert one.jobs == set()


async def test_a_change_that_nobody_lived_to_announce_takes_effect_within_seconds(world, autojump_clock):
    one, two = await world.start("one"), await world.start("two")
    await trio.sleep(2 * LEASE)
    await world.add(*jobs())
    await trio.sleep(2 * TOUCH_S)
    assert one.jobs | two.jobs == {job.id for job in jobs()}
    assert not one.jobs & two.jobs
    for job in jobs():
        await world.store.pause_job(job.id, START)
    await trio.sleep(2 * TOUCH_S)
    assert one.jobs | two.jobs == set()


async def test_a_change_that_was_heard_of_is_applied_once(world, autojump_clock):
    one, two = await world.start("one"), await world.start("two")
    await trio.sleep(2 * LEASE + TOUCH_S / 2)  # between two looks at the store
    await world.add(*jobs())
    for job in jobs():
        await one.ownership.job_changed(job.id)
    await trio.sleep(3 * TOUCH_S)
    # here at once and by the announcement that comes back; there by the announcement
    assert max(map(one.time.puts.count, one.jobs)) <= 2
    assert max(map(two.time.puts.count, two.jobs)) == 1


async def test_a_change_during_an_outage_of_the_store_is_applied_after_it(world, autojump_clock):
    one = await world.start("one")
    await world.add(*jobs(3))
    world.store.away = True
    for job in jobs(3):
        await one.ownership.job_changed(job.id)
    assert one.jobs == set()
    world.store.away = False
    await trio.sleep(2)
    assert one.jobs == {job.id for job in jobs(3)}


async def test_shards_are_claimed_when_the_store_is_back(world, autojump_clock):
    await world.add(*jobs())
    world.store.away = True
    one = await world.start("one", ready=False)
    await trio.sleep(3 * LEASE)
    assert one.shards == set()
    world.store.away = False
    await trio.sleep(LEASE)
    assert one.jobs == {job.id for job in jobs()}


async def test_more_jobs_than_a_page_are_loaded(world, autojump_clock):
    many = jobs(1600 * 2)
    await world.add(*many)
    one = await world.start("one")
    assert one.jobs == {job.id for job in many}


async def test_a_job_that_ended_elsewhere_unheard_is_taken_out_when_all_is_read_anew(world, autojump_clock):
    await world.add(*jobs())
    one = await world.start("one")
    await world.store.end_job(100, JobStatus.DELETED, START)
    world.server.take_down()
    world.server.bring_back()
    await trio.sleep(LEASE)
    assert one.jobs == {job.id for job in jobs() if job.id != 100}


async def test_jobs_whose_life_is_over_are_taken_out_and_what_waited_for_them_begins(world, autojump_clock):
    first = make_job(100, time_frame=20, link_job_id=101, next_due=None, recurring=True)
    second = make_job(101, time_frame=1_000_000, starts_at=None)
    await world.add(first, second)
    one = await world.start("one")
    await trio.sleep(60)
    assert (await world.store.job(100)).status is JobStatus.COMPLETED
    assert one.jobs == {101}


# gaps


async def test_a_shard_that_nobody_watched_has_a_gap(world, autojump_clock):
    one = await world.start("one")
    await trio.sleep(20)
    one.kill()
    await trio.sleep(300)
    await world.start("two")
    gaps = await world.store.gaps(["shard:3"], 0)
    assert len(gaps) == 1
    assert gaps[0].ended - gaps[0].began == pytest.approx(300, abs=GAP_S)


async def test_a_process_that_was_stopped_notes_what_it_did_not_see(world, autojump_clock):
    one = await world.start("one")
    await trio.sleep(20)
    autojump_clock.jump(60)
    await trio.sleep(5)
    (gap,) = await world.store.gaps(["shard:3"], 0)
    assert gap.ended - gap.began == pytest.approx(60, abs=GAP_S)
    assert one.shards == set(range(SHARDS))


def test_every_trigger_has_its_scheduler():
    assert kind_of(make_job().trigger) == "time"


async def test_a_job_that_its_scheduler_cannot_take_keeps_no_other_from_being_watched(world, autojump_clock):
    await world.add(*jobs())
    one = await world.start("one", ready=False)
    put = one.time.put

    def defective(planned: Planned) -> None:
        if planned.job_id == 100:
            raise OverflowError("a schedule beyond all time")
        put(planned)

    one.time.put = defective
    await trio.sleep(LEASE)
    assert one.jobs == {job.id for job in jobs() if job.id != 100}
    assert one.ownership.watched().keys() == set(range(SHARDS))


async def test_who_has_another_store_on_the_same_streams_is_told_so_and_takes_nothing(world, autojump_clock):
    await world.add(*jobs())
    one = await world.start("one")
    other = Ownership(MemoryStore(), MemoryStreams(world.server, "other"), world.clock, "other", lease_s=LEASE)
    with pytest.RaisesGroup(Misconfigured, flatten_subgroups=True, allow_unwrapped=True) as caught:
        await other.run({"time": Watched(), "event": Watched(), "condition": Watched()}, one.desk.settled)
    error = caught.value if isinstance(caught.value, Misconfigured) else first_of(caught.value)
    assert isinstance(error, Misconfigured)
    assert error.key == "redis.prefix"
    assert len(one.shards) == SHARDS


async def test_streams_that_another_store_took_after_a_loss_of_all_data_cost_no_shard(world, autojump_clock):
    await world.add(*jobs())
    one = await world.start("one")
    world.server.lose()
    assert await MemoryStreams(world.server, "other").bind(1, LEASE)
    await trio.sleep(LEASE / 2)
    assert len(one.shards) == SHARDS
    assert not one.ownership.reachable
    await trio.sleep(2 * LEASE)
    assert one.ownership.reachable
