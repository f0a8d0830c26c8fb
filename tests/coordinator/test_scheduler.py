"""Every due second fires once, whatever happens in between; compared with a scheduler that only counts."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from consensus import codec
from consensus.errors import Transient
from consensus.triggers import Cron, Interval, Moments, Schedule
from coordinator.guard import Guard
from coordinator.scheduler.port import Scheduler
from coordinator.scheduler.time import MISSED_AFTER_S, Step, TimeScheduler, step
from coordinator.store.records import Edge, Fired, Firing, MissedPolicy, Planned
from node.infra.clock import TrioClock

START = 1_700_000_000
RUN_ONCE, RUN_ALL, SKIP = MissedPolicy.RUN_ONCE, MissedPolicy.RUN_ALL, MissedPolicy.SKIP


def planned(
    interval: int = 10,
    time_frame: int = 100,
    next_due: int | None = -1,
    *,
    job_id: int = 7,
    trigger: Schedule | None = None,
    missed: MissedPolicy = RUN_ONCE,
    starts_at: int = 0,
) -> Planned:
    return Planned(
        job_id=job_id,
        chain_id=31337,
        definition=1,
        trigger=trigger or Interval(interval),
        created_at=START,
        time_frame=time_frame,
        starts_at=starts_at,
        next_due=START + interval if next_due == -1 else next_due,
        recurring=True,
        missed=missed,
        priority=2,
        edge=Edge(),
        caught_up=False,
        trace_id="trace",
    )


class Books:
    """A store's side of firing: remembers, refuses, or is away."""

    def __init__(self, clock: TrioClock) -> None:
        self.clock = clock
        self.tasks: dict[int, tuple[int, int, float]] = {}
        """By task id: job, second, and when it came."""
        self.batches: list[int] = []
        self.skipped_to: list[Firing] = []
        self.spent: list[int] = []
        self.answer: dict[int, Fired] = {}
        self.away = False
        self.slow = 0.0

    async def __call__(self, firings: Sequence[Firing], /) -> Sequence[Fired]:
        await trio.sleep(self.slow)
        if self.away:
            raise Transient("DATABASE_BUSY", "for a while")
        self.batches.append(len(firings))
        return [self._one(firing) for firing in firings]

    def _one(self, firing: Firing) -> Fired:
        if firing.job_id in self.answer:
            return self.answer[firing.job_id]
        if firing.spent:
            self.spent.append(firing.job_id)
        task = firing.task
        if task is None:
            self.skipped_to.append(firing)
            return Fired.NEW
        if task.id in self.tasks:
            return Fired.KNOWN
        assert task.id == codec.task_id(firing.job_id, task.trigger_id)
        assert (task.scheduled_at, task.priority) == (task.trigger_id, 2)
        self.tasks[task.id] = (firing.job_id, task.trigger_id, self.clock.now())
        return Fired.NEW

    def seconds(self, job_id: int = 7) -> list[int]:
        """Offsets from START, in the order in which they came."""
        return [second - START for job, second, _ in self.tasks.values() if job == job_id]


def life(lookahead: float = 0, start: float = START) -> tuple[Books, TimeScheduler]:
    books = Books(TrioClock(start))
    return books, TimeScheduler(books.clock, books, lookahead=lookahead)


# step


def test_a_second_is_fired_ahead_of_itself() -> None:
    assert step(planned(), START + 5, 5) == Step((START + 10,), 0, START + 20)
    assert step(planned(), START + 4.9, 5) == Step((), 0, START + 10)
    assert step(planned(interval=2), START, 5) == Step((START + 2, START + 4), 0, START + 6)


def test_the_last_second_of_the_time_frame_is_fired_and_none_after() -> None:
    assert step(planned(time_frame=20, next_due=START + 20), START + 15, 5) == Step((START + 20,), 0, None)
    assert step(planned(time_frame=25, next_due=START + 20), START + 15, 5) == Step((START + 20,), 0, None)


@pytest.mark.parametrize("missed", MissedPolicy)
def test_seconds_a_little_late_are_fired_whatever_the_policy(missed: MissedPolicy) -> None:
    assert step(planned(interval=3, missed=missed), START + 10, 0) == Step((START + 3, START + 6, START + 9), 0, START + 12)


@pytest.mark.parametrize(
    ("missed", "due", "skipped"),
    [(RUN_ONCE, (40, 50), 3), (RUN_ALL, (10, 20, 30, 40, 50), 0), (SKIP, (50,), 4)],
)
def test_the_policy_says_what_becomes_of_missed_seconds(missed: MissedPolicy, due: tuple[int, ...], skipped: int) -> None:
    assert step(planned(missed=missed), START + 45, 5) == Step(tuple(START + s for s in due), skipped, START + 60)


@pytest.mark.parametrize(("missed", "due", "skipped"), [(RUN_ONCE, (100,), 9), (SKIP, (), 10)])
def test_a_job_that_was_missed_to_its_end_is_over(missed: MissedPolicy, due: tuple[int, ...], skipped: int) -> None:
    assert step(planned(missed=missed), START + 5000, 5) == Step(tuple(START + s for s in due), skipped, None)


def test_a_year_missed_is_caught_up_in_steps_of_a_bounded_size() -> None:
    year = 365 * 86400
    taken = step(planned(1, year, missed=RUN_ALL), START + year, 0, limit=64)
    assert taken == Step(tuple(range(START + 1, START + 65)), 0, START + 65)
    once = step(planned(1, year), START + year, 0)
    assert once == Step((START + year,), year - 1, None)


def test_of_a_crontab_line_missed_seconds_are_counted_without_walking_over_all_of_them() -> None:
    year = 365 * 86400
    job = planned(trigger=Cron("* * * * *", "Europe/Berlin"), time_frame=year, next_due=START + 40)
    assert START % 60 == 20
    assert step(job, START + year, 0).skipped == 999  # at least


def test_nothing_fires_at_or_before_the_second_from_which_a_job_is_watched() -> None:
    assert step(planned(starts_at=START + 20), START + 25, 5) == Step((START + 30,), 0, START + 40)
    assert step(planned(starts_at=START + 200), START + 250, 5) == Step((), 0, None)


def test_a_second_of_the_schedule_that_the_job_had_before_is_not_fired() -> None:
    assert step(planned(interval=7, next_due=START + 10), START + 9, 5) == Step((START + 14,), 0, START + 21)


def test_a_job_without_a_due_second_is_over() -> None:
    assert step(planned(next_due=None), START, 5) == Step((), 0, None)


@settings(max_examples=300)
@given(
    interval=st.integers(1, 50),
    time_frame=st.integers(1, 400),
    offset=st.floats(min_value=-20, max_value=600),
    lookahead=st.floats(min_value=0, max_value=30),
    first=st.integers(1, 20),
    starts=st.integers(-5, 100),
    missed=st.sampled_from(MissedPolicy),
)
def test_a_step_is_what_counting_gives(
    interval: int, time_frame: int, offset: float, lookahead: float, first: int, starts: int, missed: MissedPolicy
) -> None:
    now = START + offset
    seconds = [START + i * interval for i in range(first, time_frame // interval + 1)]
    job = planned(interval, time_frame, seconds[0] if seconds else None, missed=missed, starts_at=START + starts)
    seconds = [s for s in seconds if s > START + starts]
    late = [s for s in seconds if s <= now]
    kept = late
    if late and late[0] < now - MISSED_AFTER_S:
        kept = {RUN_ONCE: late[-1:], RUN_ALL: late, SKIP: []}[missed]
    ahead = [s for s in seconds if now < s <= now + lookahead]
    rest = [s for s in seconds if s > now + lookahead]
    got = step(job, now, lookahead, limit=1000)
    assert got == Step(tuple(kept + ahead), len(late) - len(kept), rest[0] if rest else None)


# the scheduler


async def test_each_due_second_is_handed_over_once_and_on_time(autojump_clock: MockClock) -> None:
    books, scheduler = life(lookahead=5)
    port: Scheduler = scheduler
    async with trio.open_nursery() as nursery:
        await nursery.start(port.run)
        for i in (1, 7, 10, 60):
            port.put(planned(i, 60, job_id=i))
        assert sorted(port.jobs()) == [1, 7, 10, 60]
        await trio.sleep(100)
        assert {(job, second) for job, second, _ in books.tasks.values()} == {
            (i, second) for i in (1, 7, 10, 60) for second in range(START + i, START + 61, i)
        }
        for _, second, at in books.tasks.values():
            assert abs(at - max(START, second - 5)) < 0.01
        assert len(port) == 0
        assert sorted(books.spent) == [1, 7, 10, 60]
        assert (scheduler.fired, scheduler.lateness.count, scheduler.lateness.worst) == (len(books.tasks), len(books.tasks), 0)
        nursery.cancel_scope.cancel()


async def test_specific_times_and_cron_lines_fire_too(autojump_clock: MockClock) -> None:
    books, scheduler = life()
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        moments = Moments((START - 9, START + 3, START + 4, START + 3000))
        scheduler.put(planned(trigger=moments, next_due=START + 3, time_frame=1000))
        scheduler.put(planned(trigger=Cron("*/10 * * * *", "Asia/Kathmandu"), next_due=START + 100, time_frame=2000, job_id=8))
        await trio.sleep(4000)
        assert books.seconds() == [3, 4]
        assert books.seconds(8) == [100, 700, 1300, 1900]
        nursery.cancel_scope.cancel()


async def test_jobs_due_in_the_same_second_are_handed_over_one_after_the_other(autojump_clock: MockClock) -> None:
    books, scheduler = life(lookahead=5)
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        for i in range(1000):
            scheduler.put(planned(100, job_id=int.from_bytes(codec.keccak(i.to_bytes(4, "big")))))
        await trio.sleep(200)
        assert len(books.tasks) == 1000
        assert all(START + 94 <= at <= START + 95 for _, _, at in books.tasks.values())
        assert max(books.batches) < 10
        nursery.cancel_scope.cancel()


async def test_a_job_put_later_starts_at_once_and_a_removed_one_stops_at_once(autojump_clock: MockClock) -> None:
    books, scheduler = life()
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        scheduler.put(planned(10**5, 10**6, job_id=1))
        await trio.sleep(3)
        scheduler.put(planned(5, 1000))
        await trio.sleep(13)
        assert [at - START for _, _, at in books.tasks.values()] == [5, 10, 15]
        scheduler.remove(7)
        scheduler.remove(8)
        await trio.sleep(100)
        assert len(books.tasks) == 3
        nursery.cancel_scope.cancel()


async def test_a_changed_job_goes_by_its_new_schedule_at_once(autojump_clock: MockClock) -> None:
    books, scheduler = life()
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        scheduler.put(planned(50, 1000))
        await trio.sleep(1)
        scheduler.put(planned(20, 1000))
        await trio.sleep(64)
        scheduler.put(planned(50, 1000, next_due=START + 100))
        await trio.sleep(100)
        assert books.seconds() == [20, 40, 60, 100, 150]
        assert len(scheduler) == 1
        nursery.cancel_scope.cancel()


async def test_a_job_changed_or_removed_while_the_store_writes_stays_changed_or_removed(autojump_clock: MockClock) -> None:
    books, scheduler = life()
    books.slow = 0.5
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        scheduler.put(planned(10, 1000))
        scheduler.put(planned(10, 1000, job_id=8))
        scheduler.put(planned(10, 1000, job_id=9))
        await trio.sleep(10.2)
        scheduler.put(planned(25, 1000))  # its next second is read from the store before the store knew of the tenth
        scheduler.remove(8)
        await trio.sleep(50)
        assert books.seconds() == [10, 25, 50]
        assert books.seconds(8) == [10]
        assert books.seconds(9) == [10, 20, 30, 40, 50]
        nursery.cancel_scope.cancel()


async def test_a_store_that_cannot_answer_for_a_while_loses_nothing(autojump_clock: MockClock) -> None:
    books, scheduler = life(lookahead=5)
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        scheduler.put(planned(5, 30))
        books.away = True
        await trio.sleep(8)
        books.away = False
        await trio.sleep(60)
        assert books.seconds() == [5, 10, 15, 20, 25, 30]
        assert scheduler.lateness.worst < 10
        nursery.cancel_scope.cancel()


async def test_a_long_outage_of_the_store_is_judged_by_each_jobs_policy(autojump_clock: MockClock) -> None:
    books, scheduler = life()
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        for job_id, missed in enumerate(MissedPolicy):
            scheduler.put(planned(5, 60, job_id=job_id, missed=missed))
        books.away = True
        await trio.sleep(32)
        books.away = False
        await trio.sleep(60)
        assert [books.seconds(n) for n in range(3)] == [
            [30, 35, 40, 45, 50, 55, 60],
            [5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60],
            [35, 40, 45, 50, 55, 60],
        ]
        assert scheduler.skipped == 5 + 6
        assert len(books.skipped_to) == 1  # the store, too, learns how far a job is that only skipped
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("answer", [Fired.INACTIVE, Fired.FENCED])
async def test_what_the_store_refuses_is_not_tried_again(autojump_clock: MockClock, answer: Fired) -> None:
    books, scheduler = life()
    books.answer[7] = answer
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        scheduler.put(planned(5, 100))
        scheduler.put(planned(5, 100, job_id=8))
        await trio.sleep(50)
        assert scheduler.jobs() == [8]
        del books.answer[7]
        scheduler.put(planned(5, 100, next_due=START + 55))
        await trio.sleep(12)
        assert books.seconds() == [55, 60]
        nursery.cancel_scope.cancel()


async def test_a_task_that_is_there_already_does_not_hold_the_job_up(autojump_clock: MockClock) -> None:
    books, scheduler = life()
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        scheduler.put(planned(5, 20))
        await trio.sleep(12)
        scheduler.put(planned(5, 20))
        await trio.sleep(20)
        assert books.seconds() == [5, 10, 15, 20]
        assert scheduler.fired == 4
        nursery.cancel_scope.cancel()


async def test_a_job_without_a_due_second_left_is_reported_spent(autojump_clock: MockClock) -> None:
    books, scheduler = life(start=START + 500)
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        scheduler.put(planned(job_id=1, next_due=None))
        scheduler.put(planned(job_id=2, missed=SKIP))
        await trio.sleep(1)
        assert sorted(books.spent) == [1, 2]
        assert not books.tasks
        assert len(scheduler) == 0
        nursery.cancel_scope.cancel()


async def test_catching_up_does_not_hold_up_jobs_that_are_on_time(autojump_clock: MockClock) -> None:
    backlog = 8000
    books, scheduler = life(start=START + backlog)
    books.slow = 0.05
    async with trio.open_nursery() as nursery:
        for job_id in range(100, 110):
            scheduler.put(planned(1, backlog, job_id=job_id, missed=RUN_ALL))
        for job_id in range(50):
            scheduler.put(planned(1, backlog + 20, job_id=job_id, next_due=START + backlog + 1))
        await nursery.start(scheduler.run)
        await trio.sleep(10.1)
        caught_up = [len(books.seconds(job_id)) for job_id in range(100, 110)]
        assert all(len(books.seconds(job_id)) == 10 for job_id in range(50))
        assert max(caught_up) - min(caught_up) <= 64
        assert sum(caught_up) > 10 / 0.05 * 200
        await trio.sleep(20)
        assert [len(books.seconds(job_id)) for job_id in range(100, 110)] == [backlog] * 10
        assert all(len(books.seconds(job_id)) == 20 for job_id in range(50))
        assert max(at - second for job, second, at in books.tasks.values() if job < 50) < 0.11  # two transactions
        assert scheduler.lateness.worst < 0.11
        assert max(books.batches) <= 256
        nursery.cancel_scope.cancel()


async def test_after_a_long_silence_of_many_jobs_those_on_time_go_first(autojump_clock: MockClock) -> None:
    books, scheduler = life(start=START + 5000)
    books.slow = 0.01
    async with trio.open_nursery() as nursery:
        for job_id in range(100, 20_100):
            scheduler.put(planned(1000, 10**6, job_id=job_id))
        for job_id in range(50):
            scheduler.put(planned(1000, 10**6, job_id=job_id, next_due=START + 5000))
        await nursery.start(scheduler.run)
        await trio.sleep(10)
        assert len(books.tasks) == 20_050
        assert max(at for job, _, at in books.tasks.values() if job < 50) - START - 5000 < 0.1
        nursery.cancel_scope.cancel()


class Stepped(TrioClock):
    """A wall clock that somebody puts forward or back."""

    shift = 0.0

    def now(self) -> float:
        return super().now() + self.shift

    async def sleep_until(self, t: float) -> None:
        await trio.sleep(min(max(0.0, t - self.now()), 1.0))  # as the system's clock: looks again every second


async def test_a_wall_clock_that_is_put_forward_or_back_repeats_nothing_and_loses_nothing(autojump_clock: MockClock) -> None:
    clock = Stepped(START)
    books = Books(clock)
    scheduler = TimeScheduler(clock, books, lookahead=0)
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        scheduler.put(planned(10, 300))
        await trio.sleep(35)
        clock.shift = -20.0
        await trio.sleep(30)  # at 45
        assert books.seconds() == [10, 20, 30, 40]
        clock.shift += 9
        await trio.sleep(2)  # at 56
        assert books.seconds() == [10, 20, 30, 40, 50]
        clock.shift += 100
        await trio.sleep(5)  # at 161: missed is missed
        assert books.seconds() == [10, 20, 30, 40, 50, 150, 160]
        assert len(books.tasks) == 7
        nursery.cancel_scope.cancel()


async def test_jobs_put_again_and_again_take_no_more_room_than_one(autojump_clock: MockClock) -> None:
    books, scheduler = life()
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        for n in range(50_000):
            scheduler.put(planned(10 + n % 3, 1000, job_id=n % 10))
        assert len(scheduler._heap) < 3000
        for n in range(10):
            scheduler.remove(n)
        await trio.sleep(100)
        assert not books.tasks
        assert len(scheduler) == 0
        nursery.cancel_scope.cancel()


async def test_a_job_that_waits_takes_less_than_a_kilobyte(autojump_clock: MockClock) -> None:
    n = 20_000
    _, scheduler = life(lookahead=5)
    gc.collect()
    tracemalloc.start()
    for i in range(n):
        job_id = int.from_bytes(codec.keccak(i.to_bytes(4, "big")))
        scheduler.put(replace(planned(3600 + i, 10**7, job_id=job_id), trace_id=f"tgrx-{i:036}"))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / n < 1000


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    jobs=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 120), st.sampled_from(MissedPolicy)), min_size=1, max_size=4),
    lives=st.lists(st.tuples(st.floats(min_value=0.01, max_value=40), st.floats(min_value=0.01, max_value=40)), max_size=5),
)
def test_restarts_fire_nothing_twice_and_miss_only_what_the_policy_says(
    jobs: list[tuple[int, int, MissedPolicy]], lives: list[tuple[float, float]]
) -> None:
    """What a process knew is gone with it: the next one begins where the store's rows are."""

    async def scenario() -> None:
        clock = TrioClock(START)
        books = Books(clock)
        next_due: dict[int, int | None] = {i: START + jobs[i][0] if jobs[i][0] <= jobs[i][1] else None for i in range(len(jobs))}

        async def fire(firings: Sequence[Firing], /) -> Sequence[Fired]:
            answers = await books(firings)
            next_due.update({firing.job_id: firing.next_due for firing in firings})
            return answers

        async def live(for_s: float) -> None:
            scheduler = TimeScheduler(clock, fire, lookahead=5)
            for i, (interval, frame, missed) in enumerate(jobs):
                scheduler.put(planned(interval, frame, next_due[i], job_id=i, missed=missed))
            with trio.move_on_after(for_s):
                await scheduler.run()

        ends: list[float] = []
        starts: list[float] = []
        for up, down in [*lives, (200.0, 0.0)]:
            starts.append(clock.now())
            await live(up)
            ends.append(clock.now())
            await trio.sleep(down)
        downs = list(zip(ends, starts[1:], strict=False))
        for i, (interval, frame, missed) in enumerate(jobs):
            seconds = list(range(START + interval, START + frame + 1, interval))
            fired = [START + s for s in books.seconds(i)]
            assert fired == sorted(set(fired))
            assert set(fired) <= set(seconds)
            lost = set(seconds) - set(fired)
            if missed is RUN_ALL:
                assert not lost
            for second in lost:  # it fell due while nothing ran, and was late at the next start
                assert any(gone - 5 <= second + 5 and second <= back for gone, back in downs)
                if missed is RUN_ONCE:
                    assert any(second < later for later in fired)
            if seconds and missed is RUN_ONCE:
                assert seconds[-1] in fired

    trio.run(scenario, clock=MockClock(autojump_threshold=0))


async def test_a_schedule_that_nobody_can_follow_takes_no_other_job_down(autojump_clock: MockClock) -> None:
    books, scheduler = life()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Guard(), "time scheduler", scheduler.run)
        for job_id in (1, 2, 4):
            scheduler.put(planned(job_id=job_id))
        scheduler.put(replace(planned(job_id=3), created_at=None))  # type: ignore[arg-type]
        await trio.sleep(45)
        assert [books.seconds(job_id) for job_id in (1, 2, 3, 4)] == [[10, 20, 30, 40], [10, 20, 30, 40], [], [10, 20, 30, 40]]
        nursery.cancel_scope.cancel()


async def test_a_defect_while_firings_are_written_loses_none_of_them(autojump_clock: MockClock) -> None:
    books, scheduler = life()
    del books.answer  # reading it is the defect
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Guard(), "time scheduler", scheduler.run)
        for job_id in (1, 2):
            scheduler.put(planned(job_id=job_id))
        await trio.sleep(12)
        books.answer = {}
        await trio.sleep(20)
        assert [books.seconds(job_id)[:2] for job_id in (1, 2)] == [[10, 20], [10, 20]]
        nursery.cancel_scope.cancel()
