"""Every due second fires once, whatever happens in between; compared with a scheduler that only counts."""

from __future__ import annotations

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from consensus import codec
from consensus.errors import Transient
from consensus.triggers import Interval
from coordinator.scheduler.time import MISSED_AFTER_S, Step, TimeScheduler, step
from coordinator.store.memory import MemoryStore
from coordinator.store.records import JobStatus, Planned
from node.infra.clock import TrioClock
from tests.coordinator.factory import CHAIN, START, make_job


def planned(interval: int = 10, time_frame: int = 100, next_due: int | None = None) -> Planned:
    return Planned(7, CHAIN, 1, Interval(interval), START, time_frame, next_due or START + interval, "trace")


def test_a_second_is_fired_ahead_of_itself() -> None:
    assert step(planned(), START + 5, 5) == Step((START + 10,), 0, START + 20)
    assert step(planned(), START + 4.9, 5) == Step((), 0, START + 10)
    assert step(planned(interval=2), START, 5) == Step((START + 2, START + 4), 0, START + 6)


def test_the_last_second_of_the_time_frame_is_fired_and_none_after() -> None:
    assert step(planned(time_frame=20, next_due=START + 20), START + 15, 5) == Step((START + 20,), 0, None)
    assert step(planned(time_frame=25, next_due=START + 20), START + 15, 5) == Step((START + 20,), 0, None)


def test_seconds_a_little_late_are_all_fired() -> None:
    assert step(planned(interval=3), START + 10, 0) == Step((START + 3, START + 6, START + 9), 0, START + 12)


def test_of_seconds_missed_only_the_last_is_fired() -> None:
    assert step(planned(), START + 45, 5) == Step((START + 40, START + 50), 3, START + 60)
    assert step(planned(), START + 5000, 5) == Step((START + 100,), 9, None)
    assert step(planned(time_frame=10), START + 5000, 5) == Step((START + 10,), 0, None)


@settings(max_examples=300)
@given(
    interval=st.integers(1, 50),
    time_frame=st.integers(1, 400),
    offset=st.floats(min_value=-20, max_value=600),
    lookahead=st.floats(min_value=0, max_value=30),
    first=st.integers(1, 20),
)
def test_a_step_is_what_counting_gives(interval: int, time_frame: int, offset: float, lookahead: float, first: int) -> None:
    now = START + offset
    seconds = [START + i * interval for i in range(first, time_frame // interval + 1)]
    if not seconds:
        return
    late = [s for s in seconds if s <= now]
    kept = late[-1:] if late and late[0] < now - MISSED_AFTER_S else late
    ahead = [s for s in seconds if now < s <= now + lookahead]
    rest = [s for s in seconds if s > now + lookahead]
    got = step(planned(interval, time_frame, seconds[0]), now, lookahead)
    assert got == Step(tuple(kept + ahead), len(late) - len(kept), rest[0] if rest else None)


class Run:
    """A scheduler's process over a store that outlives it."""

    def __init__(self, nursery: trio.Nursery, store: MemoryStore, clock: TrioClock, lookahead: float = 5) -> None:
        self.nursery, self.store, self.clock, self.lookahead = nursery, store, clock, lookahead
        self.handed: list[tuple[int, float]] = []
        self.scope = trio.CancelScope()
        self.scheduler = TimeScheduler(store, clock, self.take, lookahead=lookahead)

    async def take(self, task_id: int) -> None:
        self.handed.append((task_id, self.clock.now()))
        await trio.lowlevel.checkpoint()

    async def start(self) -> TimeScheduler:
        self.scope = trio.CancelScope()
        self.scheduler = TimeScheduler(self.store, self.clock, self.take, lookahead=self.lookahead)
        scope, scheduler = self.scope, self.scheduler

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await scheduler.run(task_status=task_status)

        await self.nursery.start(run)
        return scheduler


async def test_each_due_second_is_handed_over_once_and_on_time(autojump_clock: MockClock) -> None:
    store, clock = MemoryStore(), TrioClock(START)
    async with trio.open_nursery() as nursery:
        run = Run(nursery, store, clock)
        scheduler = await run.start()
        jobs = [make_job(i, trigger=Interval(i), time_frame=60, next_due=START + i) for i in (1, 7, 10, 60)]
        for job in jobs:
            await store.add_job(job)
            assert job.planned is not None
            scheduler.add(job.planned)
        await trio.sleep(100)
        due = {codec.task_id(job.id, second): second for job in jobs for second in range(START + job.id, START + 61, job.id)}
        assert sorted(task_id for task_id, _ in run.handed) == sorted(due)
        for task_id, at in run.handed:
            assert abs(at - max(START, due[task_id] - 5)) < 0.01
        assert len(scheduler) == 0
        nursery.cancel_scope.cancel()


async def test_a_job_created_later_starts_at_once_and_a_deleted_one_stops_at_once(autojump_clock: MockClock) -> None:
    store, clock = MemoryStore(), TrioClock(START)
    async with trio.open_nursery() as nursery:
        run = Run(nursery, store, clock, lookahead=0)
        scheduler = await run.start()
        await store.add_job(long := make_job(1, time_frame=10**6, trigger=Interval(10**5), next_due=START + 10**5))
        assert long.planned is not None
        scheduler.add(long.planned)
        await trio.sleep(3)
        await store.add_job(job := make_job(2, trigger=Interval(5), next_due=START + 5, time_frame=1000))
        assert job.planned is not None
        scheduler.add(job.planned)
        await trio.sleep(13)
        assert [at - START for _, at in run.handed] == [5, 10, 15]
        scheduler.remove(2)
        await store.end_job(2, JobStatus.DELETED, START + 16)
        await trio.sleep(100)
        assert len(run.handed) == 3
        nursery.cancel_scope.cancel()


async def test_a_deletion_that_only_the_store_knows_of_is_respected(autojump_clock: MockClock) -> None:
    store, clock = MemoryStore(), TrioClock(START)
    async with trio.open_nursery() as nursery:
        run = Run(nursery, store, clock)
        await store.add_job(make_job(2, trigger=Interval(5), next_due=START + 5, time_frame=1000))
        await run.start()
        await store.end_job(2, JobStatus.DELETED, START)
        await trio.sleep(100)
        assert len(await store.tasks_of_job(2, 100)) == len(run.handed) <= 1
        nursery.cancel_scope.cancel()


async def test_what_was_stored_but_not_handed_over_is_handed_over_by_the_next_run(autojump_clock: MockClock) -> None:
    store, clock = MemoryStore(), TrioClock(START)
    async with trio.open_nursery() as nursery:
        run = Run(nursery, store, clock)
        await store.add_job(make_job(2, trigger=Interval(5), next_due=START + 5, time_frame=5))

        async def dies(task_id: int) -> None:
            run.scope.cancel()
            await trio.lowlevel.checkpoint()

        taking, run.take = run.take, dies  # type: ignore[method-assign]
        await run.start()
        await trio.sleep(1)
        run.take = taking  # type: ignore[method-assign]
        await run.start()
        await trio.sleep(1)
        assert [task_id for task_id, _ in run.handed] == [codec.task_id(2, START + 5)]
        nursery.cancel_scope.cancel()


async def test_a_store_that_cannot_answer_for_a_while_loses_nothing(autojump_clock: MockClock) -> None:
    class Flaky(MemoryStore):
        broken = False

        async def fire(self, firings, at):  # type: ignore[no-untyped-def]
            if self.broken:
                raise Transient("DATABASE_BUSY", "for a while")
            return await super().fire(firings, at)

    store, clock = Flaky(), TrioClock(START)
    async with trio.open_nursery() as nursery:
        run = Run(nursery, store, clock)
        await store.add_job(make_job(2, trigger=Interval(5), next_due=START + 5, time_frame=30))
        await run.start()
        store.broken = True
        await trio.sleep(8)
        store.broken = False
        await trio.sleep(60)
        assert len(run.handed) == 6
        nursery.cancel_scope.cancel()


async def test_a_job_without_tasks_left_is_completed(autojump_clock: MockClock) -> None:
    store, clock = MemoryStore(), TrioClock(START)
    async with trio.open_nursery() as nursery:
        await store.add_job(make_job(2, trigger=Interval(5), next_due=START + 5, time_frame=5))
        run = Run(nursery, store, clock)
        await run.start()
        await trio.sleep(10)
        job = await store.job(2)
        assert job is not None
        assert (job.status, job.next_due) == (JobStatus.SCHEDULED, None)  # its task is open
        nursery.cancel_scope.cancel()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    jobs=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 120)), min_size=1, max_size=4),
    lives=st.lists(st.tuples(st.floats(min_value=0.01, max_value=40), st.floats(min_value=0.01, max_value=40)), max_size=5),
)
def test_restarts_fire_nothing_twice_and_miss_only_what_the_policy_says(
    jobs: list[tuple[int, int]], lives: list[tuple[float, float]]
) -> None:
    async def scenario() -> None:
        store, clock = MemoryStore(), TrioClock(START)
        starts: list[float] = []
        async with trio.open_nursery() as nursery:
            for i, (interval, frame) in enumerate(jobs, start=1):
                due = START + interval if interval <= frame else None
                await store.add_job(make_job(i, trigger=Interval(interval), time_frame=frame, next_due=due))
            run = Run(nursery, store, clock)
            for up, down in lives:
                starts.append(clock.now())
                await run.start()
                await trio.sleep(up)
                run.scope.cancel()
                await trio.sleep(down)
            starts.append(clock.now())
            await run.start()
            await trio.sleep(200)
            nursery.cancel_scope.cancel()
        downs = [(starts[n] + up, starts[n] + up + down) for n, (up, down) in enumerate(lives)]
        for i, (interval, frame) in enumerate(jobs, start=1):
            seconds = list(range(START + interval, START + frame + 1, interval))
            fired = [t.trigger_id for t in await store.tasks_of_job(i, 10_000)]
            assert sorted(fired) == sorted(set(fired))
            assert set(fired) <= set(seconds)
            for missing in set(seconds) - set(fired):
                # It fell due while nothing ran, long before the next start, and a later one was run in its stead.
                gap = [back for gone, back in downs if gone - 5 <= missing <= back]
                assert gap
                assert any(missing < later <= max(gap) for later in fired)
            if seconds:
                assert seconds[-1] in fired

    trio.run(scenario, clock=MockClock(autojump_threshold=0))
