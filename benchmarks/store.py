"""What the store on disk takes: jobs added and loaded, seconds fired, tasks changed, and bytes a job, each commit synced.

`python -m benchmarks store` prints it, `measure()` gives the numbers.
"""

from __future__ import annotations

import gc
import hashlib
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import trio
import typer

from consensus import codec
from consensus.lifecycle import TaskState
from consensus.triggers import Interval
from coordinator.store.records import SHARDS, Fired, Firing, Job, Planned, Target, Task, TaskChange
from coordinator.store.sqlite import SqliteStore, open_store

BATCH = 256
PAGE = 1000
CHANGES = 2000
START = 1_700_000_000
FENCES = dict.fromkeys(range(SHARDS), 1)


@dataclass(frozen=True, slots=True)
class Figures:
    """Rates a second; `batch_ms` are p50 and longest of a transaction of `BATCH` firings; memory is the process's growth."""

    jobs: int
    added: float
    bytes_on_disk: float
    loaded: float
    bytes_in_memory: float
    first_fired: float
    fired: float
    batch_ms: tuple[float, float]
    changed: float
    idle_expiry_ms: float


def job_of(number: int) -> Job:
    """Ids as keccaks are: spread evenly."""
    digest = hashlib.sha256(str(number).encode()).digest()
    owner = (number % 1000 + 1).to_bytes(20, "big")
    target = Target(1, bytes(20), "ping", "ping(uint256)", '[{"type":"function"}]', 1, '["5"]', "", "", bytes(36), 100_000)
    interval = 10 + number % 50
    return Job(
        id=int.from_bytes(digest, "big"),
        owner=owner,
        key_owner="bench",
        title=f"job {number}",
        definition=1,
        trigger=Interval(interval),
        target=target,
        spec=bytes(300),
        created_at=START,
        time_frame=10**6,
        next_due=START + interval,
        posted_at=START,
        updated_at=START,
        starts_at=START,
        trace_id=f"tgrx-{digest[:16].hex()}",
    )


def firing_of(planned: Planned, second: int) -> Firing:
    task = Task(
        id=codec.task_id(planned.job_id, second),
        job_id=planned.job_id,
        chain_id=planned.chain_id,
        trigger_id=second,
        definition=1,
        created_at_ms=second * 1000,
        trace_id=planned.trace_id,
        scheduled_at=second,
        stages={"due": second * 1000, "created": second * 1000},
    )
    return Firing(planned.job_id, task, second + 10)


async def measure(path: Path, jobs: int, batches: int) -> Figures:
    """Fills a new store at `path` with so many jobs, and fires `batches` twice: jobs that never fired, then the same again."""
    async with open_store(path) as store:
        for shard in FENCES:
            await store.claim_shard(shard, 1, START)
        began = time.perf_counter()
        for first in range(0, jobs, PAGE):
            await store.add_jobs([job_of(i) for i in range(first, min(jobs, first + PAGE))])
        added = jobs / (time.perf_counter() - began)
        gc.collect()
        before, began = _memory(), time.perf_counter()
        planned = await _load(store)
        loaded = jobs / (time.perf_counter() - began)
        gc.collect()
        memory = (_memory() - before) / jobs
        assert len(planned) == jobs
        chosen = random.Random(1).sample(planned, min(jobs, BATCH * batches))
        first_times = await _fire(store, chosen, START + 10)
        times = await _fire(store, chosen, START + 20)
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for task in (await store.recent_tasks(CHANGES))[:CHANGES]:
                nursery.start_soon(store.change, TaskChange(task.id, (TaskState.EXECUTED,), cost=5, executed_at=START), START)
        changed = min(CHANGES, 2 * len(chosen)) / (time.perf_counter() - began)
        began = time.perf_counter()
        for shard in FENCES:
            await store.expire_jobs(shard, START, 100)
        expiry = time.perf_counter() - began
    return Figures(
        jobs,
        added,
        path.stat().st_size / jobs,  # noqa: ASYNC240 - nothing else runs
        loaded,
        memory,
        len(chosen) / sum(first_times),
        len(chosen) / sum(times),
        (sorted(times)[len(times) // 2] * 1000, max(times) * 1000),
        changed,
        expiry * 1000,
    )


async def _load(store: SqliteStore) -> list[Planned]:
    planned: list[Planned] = []
    for shard in FENCES:
        after = None
        while page := await store.planned(shard, after, PAGE):
            planned += page
            after = page[-1].job_id
    return planned


async def _fire(store: SqliteStore, chosen: list[Planned], second: int) -> list[float]:
    times = []
    for first in range(0, len(chosen), BATCH):
        firings = [firing_of(planned, second) for planned in chosen[first : first + BATCH]]
        began = time.perf_counter()
        answers = await store.fire(firings, second, FENCES)
        times.append(time.perf_counter() - began)
        assert answers == [Fired.NEW] * len(firings)
    return times


def _memory() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def main(
    jobs: Annotated[int, typer.Option(min=1, help="Active jobs in the store.")] = 100_000,
    batches: Annotated[int, typer.Option(min=1, help=f"Transactions of {BATCH} firings each.")] = 100,
) -> None:
    """Rates of the store on disk, each commit synced, and what a job takes."""
    with tempfile.TemporaryDirectory() as folder:
        figures = trio.run(measure, Path(folder) / "store.db", jobs, batches)
    middle, longest = figures.batch_ms
    print(f"{figures.jobs} jobs: {figures.added:.0f} added/s, {figures.bytes_on_disk:.0f} bytes each on disk")
    print(f"{figures.loaded:.0f} loaded/s, {figures.bytes_in_memory:.0f} bytes each in memory")
    print(f"{figures.first_fired:.0f} firings/s of jobs that never fired, {figures.fired:.0f}/s of those that have;")
    print(f"  {BATCH} in a transaction, synced: p50 {middle:.1f} ms, longest {longest:.1f} ms")
    print(f"{figures.changed:.0f} task changes/s, asked at once")
    print(f"{SHARDS} shards asked for expired jobs, of which there are none: {figures.idle_expiry_ms:.1f} ms")


if __name__ == "__main__":
    typer.run(main)
