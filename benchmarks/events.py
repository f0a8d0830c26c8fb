"""From a block to the firing of its event jobs: latency, and RPC calls a block, with 1, 1,000 and 10,000 jobs on anvil."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Annotated, Any

import trio
import typer

from cli.devnet.chain import ChainOptions, open_chain
from consensus.events import OnEvent, checked, declared
from coordinator.scheduler.event import EventScheduler
from coordinator.store.records import Edge, Fired, Firing, MissedPolicy, Planned
from node.infra.clock import SystemClock
from node.infra.contracts import Function
from node.infra.evm import EvmChain, Tariff
from node.infra.evm_reads import Reader, bytes_of, hex_of, int_of
from node.infra.rpc import Rpc, open_rpc
from node.infra.settings import ChainSettings, ContractSettings

EVENT = declared("Pinged(uint256 value,uint256 count)").text
PING = Function("ping", ("uint256",))
CHAIN_ID = 31337
GAP_SECONDS = 0.02  # a block at a time: latency, not throughput
LIMIT_SECONDS = 60.0


class CountingRpc:
    """Counts requests on their way to the node; one batch is one, and each call in it is counted beside."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc
        self.requests = 0
        self.calls = 0

    async def call(self, method: str, params: Sequence[Any] = ()) -> Any:
        self.requests += 1
        self.calls += 1
        return await self._rpc.call(method, params)

    async def batch(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        self.requests += 1
        self.calls += len(calls)
        return await self._rpc.batch(calls)


class Desk:
    """Takes firings and notes when; the store is another benchmark's."""

    def __init__(self) -> None:
        self.fired: list[float] = []
        self.caught_up = 0
        self.news = trio.Event()

    async def fire(self, firings: Sequence[Firing], /) -> Sequence[Fired]:
        await trio.lowlevel.checkpoint()
        self.fired += [time.perf_counter()] * len(firings)
        self._tell()
        return [Fired.NEW] * len(firings)

    async def checkpoint(self, name: str) -> int | None:
        await trio.lowlevel.checkpoint()
        return None

    async def save_checkpoints(self, blocks: Mapping[str, int]) -> None:
        await trio.lowlevel.checkpoint()

    async def mark_caught_up(self, job_ids: Sequence[int]) -> None:
        await trio.lowlevel.checkpoint()
        self.caught_up += len(job_ids)
        self._tell()

    async def cancel(self, task_id: int) -> None:
        raise NotImplementedError("anvil reorganises nothing by itself")

    def _tell(self) -> None:
        news, self.news = self.news, trio.Event()
        news.set()


@dataclass(frozen=True, slots=True)
class Result:
    """Of one number of jobs. Latencies in ms; requests and calls of all blocks together."""

    jobs: int
    contracts: int
    latencies: list[float] = field(default_factory=list)
    requests: float = 0
    calls: float = 0
    cpu_ms: float = 0

    def quantile(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def jobs_on(demo: bytes, count: int, created_at: int) -> list[Planned]:
    """Every other one on the contract that emits, each for a value of its own; the others on contracts of their own."""
    jobs = []
    for i in range(count):
        contract = demo if i % 2 == 0 else b"\xc0" * 16 + i.to_bytes(4, "big")
        trigger = OnEvent(CHAIN_ID, contract, EVENT, checked(EVENT, [("value", str(i))]))
        jobs.append(
            Planned(
                job_id=i,
                chain_id=CHAIN_ID,
                definition=3,
                trigger=trigger,
                created_at=created_at,
                time_frame=10**6,
                starts_at=0,
                next_due=None,
                recurring=True,
                missed=MissedPolicy.RUN_ONCE,
                priority=3,
                edge=Edge(),
                caught_up=False,
                trace_id="",
            )
        )
    return jobs


async def measure(counts: Sequence[int], blocks: int) -> list[Result]:
    """One anvil for all; each number of jobs with a scheduler of its own, told of heads by WebSocket."""
    async with open_chain(ChainOptions(engine="anvil")) as site:
        assert site.ws_url is not None
        async with open_rpc([site.rpc_url], expect_chain_id=CHAIN_ID) as rpc:
            account = (
                hex_of(site.accounts[0].address) if isinstance(site.accounts[0].address, bytes) else site.accounts[0].address
            )
            artifact = json.loads(files("consensus.contracts").joinpath("artifacts", "Demo.json").read_text())
            deployed = await _sent(rpc, {"from": account, "data": artifact["bytecode"], "gas": hex(3_000_000)})
            demo = bytes_of(deployed["contractAddress"])
            await rpc.call("anvil_setBlockTimestampInterval", [1])
            return [await _measure(site.rpc_url, site.ws_url, rpc, account, demo, count, blocks) for count in counts]


async def _sent(rpc: Rpc, request: dict[str, Any]) -> dict[str, Any]:
    tx = await rpc.call("eth_sendTransaction", [request])
    receipt: dict[str, Any] | None = None
    while receipt is None:  # the pool answers before the block is mined
        receipt = await rpc.call("eth_getTransactionReceipt", [tx])
    return receipt


async def _measure(url: str, ws: str, rpc: Rpc, account: str, demo: bytes, count: int, blocks: int) -> Result:
    nobody = {name: bytes([i]) * 20 for i, name in enumerate(ContractSettings.model_fields, 1) if name != "since_block"}
    contracts = ContractSettings.model_validate(nobody)
    settings = ChainSettings(id=CHAIN_ID, name="anvil", rpc=(url,), ws=ws, contracts=contracts)
    desk = Desk()
    async with open_rpc([url], expect_chain_id=CHAIN_ID) as own, trio.open_nursery() as nursery:
        counting = CountingRpc(own)
        chain = EvmChain(settings, Reader(counting), Tariff(0, 0, 0, 0, 0, 0, 12))
        await nursery.start(chain.pulse.run, chain.head)
        scheduler = EventScheduler({CHAIN_ID: chain}, SystemClock(), desk.fire, desk, desk.cancel)
        created_at = int_of((await rpc.call("eth_getBlockByNumber", ["latest", False]))["timestamp"])
        for job in jobs_on(demo, count, created_at):
            scheduler.put(job)
        await nursery.start(scheduler.run)
        with trio.fail_after(LIMIT_SECONDS):
            while desk.caught_up < count or not chain.pulse.connected:
                await desk.news.wait()
        await rpc.call("evm_setAutomine", [False])
        result = Result(
            count, len({j.trigger.contract for j in jobs_on(demo, count, created_at) if isinstance(j.trigger, OnEvent)})
        )
        requests, calls, cpu = counting.requests, counting.calls, time.process_time()
        for block in range(blocks):
            value = block * 2 % max(1, count - count % 2) if count > 1 else 0
            call = {"from": account, "to": hex_of(demo), "data": hex_of(PING.encode(value)), "gas": hex(200_000)}
            await rpc.call("eth_sendTransaction", [call])
            began = time.perf_counter()
            await rpc.call("evm_mine", [])
            with trio.fail_after(LIMIT_SECONDS):
                while len(desk.fired) <= block:
                    await desk.news.wait()
            result.latencies.append((desk.fired[block] - began) * 1000)
            await trio.sleep(GAP_SECONDS)
        await rpc.call("evm_setAutomine", [True])
        nursery.cancel_scope.cancel()
    return Result(
        result.jobs,
        result.contracts,
        result.latencies,
        (counting.requests - requests) / blocks,
        (counting.calls - calls) / blocks,
        (time.process_time() - cpu) / blocks * 1000,
    )


def main(
    blocks: Annotated[int, typer.Option(min=10, help="Blocks with a matching log, for each number of jobs.")] = 200,
    jobs: Annotated[list[int] | None, typer.Option(min=1, help="Numbers of jobs; several times for several.")] = None,
) -> None:
    """Events: from a block to the firing of its jobs."""
    print(
        f"\nFrom the call that mines a block to the firing, ms; {blocks} blocks with one matching log each; heads by WebSocket\n"
    )
    print("| jobs | contracts | p50 | p99 | max | requests a block | calls in them | CPU ms a block |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for r in trio.run(measure, jobs or [1, 1_000, 10_000], blocks):
        figures = f"{r.quantile(0.5):.1f} | {r.quantile(0.99):.1f} | {max(r.latencies):.1f}"
        print(f"| {r.jobs:,} | {r.contracts:,} | {figures} | {r.requests:.1f} | {r.calls:.1f} | {r.cpu_ms:.1f} |")
    print("\nGoals: 50 ms p99 at 10,000 jobs; requests a block the same whatever the number of jobs.")
