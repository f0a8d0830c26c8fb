"""How many conditions one core watches: jobs evaluated, and distinct URLs read, beside bare httpcore in the same run."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import resource
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, NoReturn

import httpcore
import trio
import trio.testing
import typer

from consensus.conditions import AllOf, ApiSource, Comparison, Node, OnCondition, Source
from coordinator.scheduler.condition import ConditionScheduler
from coordinator.store.records import Edge, Fired, Firing, Gap, MissedPolicy, Planned
from node.arguments import encode_call
from node.infra.clock import TrioClock
from node.infra.fetch import open_fetcher
from node.infra.settings import FetchSettings
from node.infra.sources import Heard, Sources, Value

INTERVAL_S = 5.0
PORTS = 16  # hosts, as far as the fetcher is concerned: it sends four requests at a time to each
_AT_A_TIME = 4
_BODY = b'{"data":{"prices":[{"usd":"2500.10"},{"usd":"0.50"}]}}'
ROUTE = "data.prices[0].usd"


class _InMemory:
    """Sources that answer at once, each time another value: what is measured is the scheduler."""

    def __init__(self, high: bool) -> None:
        self._round = 0
        self._high = high

    async def read_each(self, sources: Sequence[Source]) -> Mapping[Source, Value]:
        await trio.lowlevel.checkpoint()
        self._round += 1
        return dict.fromkeys(sources, Decimal(self._round % 2 if self._high else self._round % 7) / 10)

    async def follow(self, url: str, hear: Callable[[Heard], Awaitable[None]]) -> NoReturn:
        raise AssertionError("none is followed")

    place = staticmethod(Sources.place)
    host_of = staticmethod(Sources.host_of)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Of one run: CPU seconds for everything the scheduler did, and bytes each job took."""

    evaluations: int
    requests: int
    fired: int
    cpu_s: float
    bytes_a_job: float


def planned(job_id: int, root: Node) -> Planned:
    return Planned(
        job_id=job_id,
        chain_id=1,
        definition=5,
        trigger=OnCondition(root),
        created_at=0,
        time_frame=2**40,
        starts_at=1_700_000_000,
        next_due=None,
        recurring=True,
        missed=MissedPolicy.RUN_ONCE,
        priority=3,
        edge=Edge(),
        caught_up=True,
        trace_id="",
    )


def source(url: int) -> ApiSource:
    return ApiSource(f"https://h{url % 1000}.example/{url}", ROUTE)


async def evaluate(jobs: int, urls: int, rounds: int, *, leaves: int = 1, firing: bool = False) -> Evaluated:
    """Under a virtual clock, so that nothing but work is measured."""

    async def fire(firings: Sequence[Firing], /) -> Sequence[Fired]:
        await trio.lowlevel.checkpoint()
        return [Fired.NEW] * len(firings)

    async def no_gap(gap: Gap) -> None:
        await trio.lowlevel.checkpoint()

    scheduler = ConditionScheduler(_InMemory(firing), TrioClock(), fire, no_gap, interval=INTERVAL_S)
    limit = "0.05" if firing else "1"
    gc.collect()
    before = resident()
    for job_id in range(jobs):
        parts = tuple(Comparison(source((job_id + leaf) % urls), "greater_than", limit) for leaf in range(leaves))
        scheduler.put(planned(job_id, parts[0] if leaves == 1 else AllOf(parts)))
    gc.collect()
    taken = resident() - before
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        await trio.sleep(INTERVAL_S)  # the first look at everything
        evaluations, requests, fired, began = (
            scheduler.evaluated,
            scheduler.readings.requests,
            scheduler.fired,
            time.process_time(),
        )
        await trio.sleep(rounds * INTERVAL_S)
        spent = time.process_time() - began
        nursery.cancel_scope.cancel()
    return Evaluated(
        scheduler.evaluated - evaluations,
        scheduler.readings.requests - requests,
        scheduler.fired - fired,
        spent,
        taken / jobs,
    )


def resident() -> int:
    """Bytes of this process in memory."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(statm.read_text().split()[1]) * resource.getpagesize()


# requests


def serve(told: Connection) -> None:
    """A process of its own: answers every request with the same few bytes, on `PORTS` ports."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(_BODY) + _BODY

    class Server(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport = transport
            self.seen = b""

        def data_received(self, data: bytes) -> None:
            self.seen += data
            *heads, self.seen = self.seen.split(b"\r\n\r\n")
            self.transport.write(answer * len(heads))

    async def run() -> None:
        loop = asyncio.get_running_loop()
        servers = [await loop.create_server(Server, "127.0.0.1", 0) for _ in range(PORTS)]
        told.send([server.sockets[0].getsockname()[1] for server in servers])
        await asyncio.Event().wait()

    asyncio.run(run())


@dataclass(frozen=True, slots=True)
class Requested:
    wall_s: float
    cpu_s: float


async def in_parallel(ports: Sequence[int], requests: int, one: Callable[[str], Awaitable[object]]) -> Requested:
    """Each URL another one, four at a time at each port."""

    async def worker(port: int, first: int) -> None:
        for n in range(first, requests // len(ports), _AT_A_TIME):
            await one(f"http://127.0.0.1:{port}/{n}")

    began, cpu = time.perf_counter(), time.process_time()
    async with trio.open_nursery() as nursery:
        for port in ports:
            for first in range(_AT_A_TIME):
                nursery.start_soon(worker, port, first)
    return Requested(time.perf_counter() - began, time.process_time() - cpu)


async def bare(ports: Sequence[int], requests: int) -> Requested:
    async with httpcore.AsyncConnectionPool(max_connections=256, max_keepalive_connections=64) as pool:

        async def one(url: str) -> None:
            answer = await pool.request("GET", url)
            assert answer.content == _BODY

        await in_parallel(ports, PORTS * _AT_A_TIME, one)  # connections are up
        return await in_parallel(ports, requests, one)


async def guarded(ports: Sequence[int], requests: int) -> Requested:
    async with open_fetcher(FetchSettings(allow=("127.0.0.1",))) as fetcher:
        sources = Sources(fetcher, {}, encode_call)

        async def one(url: str) -> None:
            assert await sources.read(ApiSource(url, ROUTE)) == Decimal("2500.10")

        await in_parallel(ports, PORTS * _AT_A_TIME, one)
        return await in_parallel(ports, requests, one)


def main(
    jobs: Annotated[int, typer.Option(min=1000, help="Jobs of the largest run.")] = 100_000,
    rounds: Annotated[int, typer.Option(min=1, help="Looks at every source.")] = 4,
    requests: Annotated[int, typer.Option(min=1000, help="HTTP requests of each reader.")] = 8_000,
) -> None:
    """Conditions watched per core."""
    context = multiprocessing.get_context("spawn")
    print(f"\nEvaluation: every source has another value at each look; {rounds} looks, virtual time, one process\n")
    print("| jobs | distinct URLs | comparisons a job | evaluations per CPU second | edges per CPU second | bytes a job |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for count, urls, leaves, firing in (
        (jobs, 1, 1, False),
        (jobs, jobs // 100, 1, False),
        (jobs, jobs // 100, 3, False),
        (jobs // 10, jobs // 10, 1, False),
        (jobs // 10, 1, 1, True),
    ):
        with ProcessPoolExecutor(1, mp_context=context) as one:  # a process of its own: memory that was freed is not counted
            result = one.submit(alone, count, urls, rounds, leaves, firing).result()
        edges = f"{result.fired / result.cpu_s:,.0f}" if firing else ""
        row = f"{count:,} | {urls:,} | {leaves} | {result.evaluations / result.cpu_s:,.0f} | {edges} | {result.bytes_a_job:,.0f}"
        print(f"| {row} |", flush=True)

    here, there = context.Pipe()
    server = context.Process(target=serve, args=(there,), daemon=True)
    server.start()
    try:
        ports = here.recv()
        print(f"\nRequests: {requests:,} distinct URLs at {PORTS} local ports, {_AT_A_TIME} at a time each\n")
        print("| reader | URLs per second | CPU ms a URL | URLs per core at one look every 5 s |")
        print("| --- | ---: | ---: | ---: |")
        for name, measure in (("httpcore's pool alone", bare), ("guarded, routed, exact", guarded)):
            found = trio.run(measure, ports, requests)
            each = found.cpu_s / requests
            print(f"| {name} | {requests / found.wall_s:,.0f} | {each * 1000:.2f} | {INTERVAL_S / each:,.0f} |", flush=True)
    finally:
        server.terminate()
        server.join()


def alone(count: int, urls: int, rounds: int, leaves: int, firing: bool) -> Evaluated:
    """One run of `evaluate`, for a process of its own."""
    measured = partial(evaluate, count, urls, rounds, leaves=leaves, firing=firing)
    return trio.run(measured, clock=trio.testing.MockClock(autojump_threshold=0))
