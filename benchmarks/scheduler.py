"""Lateness and memory of the time scheduler, with its store and without, beside APScheduler in the same run."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import trio
import typer
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

from consensus import codec, schedules
from consensus.triggers import Interval
from coordinator.firing import FiringDesk
from coordinator.scheduler.lateness import Lateness
from coordinator.scheduler.port import Fire
from coordinator.scheduler.time import TimeScheduler
from coordinator.store.records import SHARDS, Fired, Firing, Job, Planned, Target
from coordinator.store.sqlite import SqliteStore, open_store
from node.infra.clock import SystemClock

LOOKAHEAD_S = 5.0
WARM_UP_S = 3.0
AIM_MS, AIM_BYTES = 5.0, 1024
ABOUT = """
Lateness: the moment a firing is in the store and handed to the queue, minus the moment it should be: {ahead:g} s and the
job's part of a second ahead of its due second. {rate} firings/s, {seconds} s each. The store is SQLite, synced on every
commit; the bare sync of a page takes {sync[0]:.1f} ms here, p99 {sync[1]:.1f}. APScheduler keeps its jobs in memory and writes
nothing; its jobs are spread evenly too.

| jobs | scheduler | p50 ms | p99 ms | max ms | n | p99 to APScheduler's |
| ---: | --- | ---: | ---: | ---: | ---: | ---: |"""


@dataclass(frozen=True)
class Row:
    """Lateness in milliseconds, of `n` firings."""

    jobs: int
    name: str
    p50: float
    p99: float
    worst: float
    n: int


def main(
    jobs: Annotated[str, typer.Option(help="Numbers of active time jobs.")] = "1000,10000,100000",
    rate: Annotated[int, typer.Option(min=1, help="Firings a second; the jobs' interval follows from it.")] = 500,
    seconds: Annotated[int, typer.Option(min=1, help="How long each is measured.")] = 20,
    idle: Annotated[int, typer.Option(min=1000, help="Idle jobs whose memory is measured.")] = 1_000_000,
) -> None:
    """Lateness of the time scheduler beside APScheduler's, and memory of an idle job."""
    print(ABOUT.format(ahead=LOOKAHEAD_S, rate=rate, seconds=seconds, sync=bare_syncs()))
    missed: list[str] = []
    for count in map(int, jobs.split(",")):
        interval = max(1, count // rate)
        ours, bare = (trio.run(part, count, interval, seconds) for part in (with_store, alone))
        theirs = apscheduler(count, interval, seconds)
        for row in (ours, bare, theirs):
            figures = f"{row.p50:.2f} | {row.p99:.2f} | {row.worst:.1f} | {row.n} | {row.p99 / theirs.p99:.2f}"
            print(f"| {row.jobs:,} | {row.name} | {figures} |", flush=True)
        if ours.p99 > AIM_MS:
            missed.append(f"{count:,}")
    outcome = f"missed with {' and '.join(missed)}" if missed else "reached"
    print(f"aim, p99 of {AIM_MS:g} ms with the store: {outcome}; load {load()}")
    few = min(idle, 100_000)  # APScheduler's list makes a million a matter of hours
    many, ours_few, theirs_few = (in_a_process(*what) for what in ((ours_idle, idle), (ours_idle, few), (theirs_idle, few)))
    print(
        f"\nmemory of an idle job (resident): {many:.0f} bytes with {idle:,} (aim {AIM_BYTES}), {ours_few:.0f} with {few:,}; ",
        end="",
    )
    print(f"APScheduler {theirs_few:.0f} with {few:,}, ratio {ours_few / theirs_few:.2f}")


def load() -> str:
    return f"{os.getloadavg()[0]:.2f}"


# lateness


async def with_store(count: int, interval: int, seconds: int) -> Row:
    """Firings are written to SQLite, as in the coordinator; the queue takes them at once."""
    with tempfile.TemporaryDirectory() as folder:
        async with open_store(Path(folder) / "coordinator.db") as store, trio.open_nursery() as nursery:
            fences = dict.fromkeys(range(SHARDS), 1)
            for shard in fences:
                await store.claim_shard(shard, 1, 0)
            for first in range(0, count, 1000):
                await store.add_jobs([job(i, interval) for i in range(first, min(first + 1000, count))])
            desk = FiringDesk(store, nothing, SystemClock(), fences, fenced=unheard, reread=unheard, changed=nothing)
            await nursery.start(desk.run)
            row = await measured("ours, SQLite", desk, await loaded(store), seconds, count)
            nursery.cancel_scope.cancel()
            return row
    raise AssertionError  # the nursery above ends with the measurement


async def alone(count: int, interval: int, seconds: int) -> Row:
    """Firings go nowhere, as APScheduler's."""

    async def fire(firings: Sequence[Firing], /) -> Sequence[Fired]:
        await trio.lowlevel.checkpoint()
        return [Fired.NEW] * len(firings)

    planned = [each for i in range(count) if (each := job(i, interval).planned)]
    return await measured("ours, without a store", fire, planned, seconds, count)


async def measured(name: str, fire: Fire, jobs: Sequence[Planned], seconds: int, count: int) -> Row:
    clock = SystemClock()
    scheduler = TimeScheduler(clock, fire, lookahead=LOOKAHEAD_S)
    soon = int(clock.now() + LOOKAHEAD_S + 3 + count / 50_000)
    for each in jobs:
        life = {"created_at": each.created_at, "time_frame": each.time_frame}
        assert isinstance(each.trigger, Interval)
        scheduler.put(replace(each, next_due=schedules.next_due(each.trigger, soon, **life)))
    gc.collect()
    await clock.sleep_until(soon - LOOKAHEAD_S - 1.5)
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        await trio.sleep(WARM_UP_S)
        scheduler.lateness = lateness = Lateness()
        await trio.sleep(seconds)
        nursery.cancel_scope.cancel()
    return Row(count, name, lateness.quantile(0.5) * 1e3, lateness.quantile(0.99) * 1e3, lateness.worst * 1e3, lateness.count)


async def nothing(*_: object) -> None:
    await trio.lowlevel.checkpoint()


def unheard(*_: object) -> None:
    pass


async def loaded(store: SqliteStore) -> list[Planned]:
    found: list[Planned] = []
    for shard in range(SHARDS):
        after: int | None = None
        while page := await store.planned(shard, after, 1000):
            found += page
            after = page[-1].job_id
    return found


def apscheduler(count: int, interval: int, seconds: int) -> Row:
    """As it comes (threads, jobs in memory), but for the grace time, beyond which it would drop what is late."""
    late: list[float] = []
    due: dict[int, float] = {}

    def run(number: int) -> None:
        now = time.time()
        late.append(now - due[number])
        due[number] += interval

    scheduler = BackgroundScheduler(
        timezone=UTC, job_defaults={"misfire_grace_time": None, "coalesce": False, "max_instances": 100}
    )
    began = time.time()
    first = began + 3 + count / 4000
    for i in range(count):
        due[i] = first + i * interval / count
        at = datetime.fromtimestamp(due[i], UTC)
        due[i] = at.timestamp()
        scheduler.add_job(run, IntervalTrigger(seconds=interval, start_date=at, timezone=UTC), args=[i], next_run_time=at)
    scheduler.start()
    time.sleep(max(0.0, first - time.time()) + WARM_UP_S)
    late.clear()
    time.sleep(seconds)
    values = sorted(late)
    scheduler.shutdown(wait=False)
    p50, p99, worst = (values[max(0, math.ceil(q * len(values)) - 1)] * 1e3 for q in (0.5, 0.99, 1))
    return Row(count, "APScheduler, in memory", p50, p99, worst, len(values))


def bare_syncs() -> tuple[float, float]:
    """Median and 99th percentile in milliseconds of a page's write and sync where the store is: what no store can beat."""
    times = []
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(400):
            file.write(bytes(4096))
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append((time.perf_counter() - began) * 1e3)
    times.sort()
    return times[200], times[396]


def job(number: int, interval: int) -> Job:
    """One of many of the same interval, evenly anchored."""
    created_at = 1_700_000_000 + number % interval
    return Job(
        id=job_id(number),
        owner=bytes(19) + b"\x01",
        key_owner="bench",
        title="bench",
        definition=1,
        trigger=Interval(interval),
        target=Target(1, bytes(20), "ping", "ping()", "[]", 1, "[]", "", "", b"\x01\x02\x03\x04", 100_000),
        spec=b"spec",
        created_at=created_at,
        time_frame=10**9,
        next_due=created_at + interval,
        posted_at=created_at,
        updated_at=created_at,
        starts_at=created_at,
        trace_id=f"tgrx-{number:036}",
    )


def job_id(number: int) -> int:
    return int.from_bytes(codec.keccak(number.to_bytes(8, "big")))


# memory


def in_a_process(measure: Callable[[int], float], count: int) -> float:
    """A fresh one, so that what others left behind is not reused."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, count).result()


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def ours_idle(count: int) -> float:
    """Bytes a job: everything that a job from the store is in memory, in a scheduler that waits for it."""

    async def measure() -> float:
        async def fire(_: Sequence[Firing], /) -> Sequence[Fired]:
            return []

        scheduler = TimeScheduler(SystemClock(), fire, lookahead=LOOKAHEAD_S)
        now = int(time.time())
        before = resident()
        for i in range(count):
            planned = job(i, 86_400 + i).planned
            assert planned is not None
            scheduler.put(replace(planned, next_due=now + 3600 + i))
        return (resident() - before) / len(scheduler)

    return trio.run(measure)


def theirs_idle(count: int) -> float:
    scheduler = BackgroundScheduler(timezone=UTC)
    scheduler.start(paused=True)
    now = datetime.now(UTC)
    before = resident()
    for i in range(count):
        at = now + timedelta(seconds=3600 + i)
        scheduler.add_job(
            print,
            IntervalTrigger(seconds=86_400 + i, start_date=at, timezone=UTC),
            args=[job_id(i)],
            id=str(job_id(i)),
            next_run_time=at,
        )
    used = (resident() - before) / count
    scheduler.shutdown(wait=False)
    return used
