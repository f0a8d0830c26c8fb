"""What the streams' server takes: from a task's push to its taking by another coordinator, rates under a burst, leases.

`python -m benchmarks streams` prints it for the embedded server, `--url` for a Redis; `measure()` gives the numbers.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import trio
import typer

from coordinator.streams.embedded import open_embedded
from coordinator.streams.port import LEVELS, Streams
from coordinator.streams.redis import open_redis
from node.infra.aio import open_asyncio_thread

TAKE = 256
LEASES = 300
PAUSE_S = 0.005


@dataclass(frozen=True, slots=True)
class Figures:
    """`taken_ms` are p50, p99 and longest of push -> taken, one task each `PAUSE_S`; rates a second; one lease's whole life."""

    taken_ms: tuple[float, float, float]
    pushed: float
    taken: float
    lease_ms: float


@asynccontextmanager
async def _two(url: str) -> AsyncIterator[tuple[Streams, Streams]]:
    prefix = f"bench-{os.getpid()}"
    async with (
        open_asyncio_thread() as here,
        open_asyncio_thread() as there,
        open_redis(here, url, prefix, "one") as one,
        open_redis(there, url, prefix, "two") as two,
    ):
        yield one, two


async def measure(url: str, tasks: int, burst: int) -> Figures:
    """Leaves nothing in the queue behind."""
    async with _two(url) as (one, two):
        times = sorted(await _paced(one, two, tasks))
        began = time.perf_counter()
        await one.push([(number, LEVELS[number % len(LEVELS)]) for number in range(burst)])
        pushed, began = burst / (time.perf_counter() - began), time.perf_counter()
        count = 0
        while count < burst:
            entries = await two.take(TAKE)
            await two.done(entries)
            count += len(entries)
        taken, began = burst / (time.perf_counter() - began), time.perf_counter()
        for _ in range(LEASES):
            token = await one.acquire("bench", 10)
            assert token is not None
            assert await one.renew("bench", token, 10)
            await one.release("bench", token)
        lease = (time.perf_counter() - began) / LEASES
    quantiles = times[len(times) // 2], times[len(times) * 99 // 100], times[-1]
    return Figures((quantiles[0] * 1000, quantiles[1] * 1000, quantiles[2] * 1000), pushed, taken, lease * 1000)


async def _paced(one: Streams, two: Streams, tasks: int) -> list[float]:
    began: dict[int, float] = {}
    times: list[float] = []
    async with trio.open_nursery() as nursery:

        async def push() -> None:
            for number in range(tasks):
                await trio.sleep(PAUSE_S)
                began[number] = time.perf_counter()
                await one.push([(number, 1)])

        nursery.start_soon(push)
        while len(times) < tasks:
            entries = await two.take(TAKE)
            now = time.perf_counter()
            times += [now - began[entry.task_id] for entry in entries]
            await two.done(entries)
    return times


async def _embedded(tasks: int, burst: int) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        async with open_embedded(Path(folder)) as server:
            return await measure(f"unix://{server.socket}", tasks, burst)


def main(
    tasks: Annotated[int, typer.Option(min=100, help="Tasks pushed one by one.")] = 1000,
    burst: Annotated[int, typer.Option(min=1, help="Tasks pushed at once.")] = 20_000,
    url: Annotated[str | None, typer.Option(help="A Redis server; unset, an embedded one.", show_default=False)] = None,
) -> None:
    """Latency and rates of the dispatch queue, and what a lease takes."""
    figures = trio.run(measure, url, tasks, burst) if url else trio.run(_embedded, tasks, burst)
    middle, late, longest = figures.taken_ms
    print(
        f"push -> taken by another coordinator: p50 {middle:.2f} ms, p99 {late:.2f} ms, longest {longest:.2f} ms (goal: p50 3 ms)"
    )
    print(f"a burst of {burst}: {figures.pushed:.0f} pushed/s, {figures.taken:.0f} taken and done/s")
    print(f"a lease acquired, renewed and released: {figures.lease_ms:.2f} ms")


if __name__ == "__main__":
    typer.run(main)
