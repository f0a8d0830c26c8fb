"""A storm: a devnet with two coordinators under a mix of jobs, its processes killed at random; then the audit."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import structlog
import trio

from cli.devnet.devnet import Devnet, DevnetOptions, open_devnet
from cli.devnet.jobs import post
from consensus import events
from consensus.codec import task_id
from consensus.errors import TriggerXError
from node.infra.clock import SystemClock
from node.infra.contracts import Function
from node.infra.evm import EvmChain, open_chain
from node.infra.settings import ChainSettings, ContractSettings
from tests.chaos import mix as mixes
from tests.chaos.auditor import Audit, Due, audit
from tests.chaos.kept import Kept
from tests.chaos.mix import Mix, Plan
from tests.chaos.victims import Coordinator, DurableAnvil, Server, Victim, redis

log = structlog.get_logger(__name__)

PING = Function("ping", ("uint256",))
POST_EACH_S = 0.3  # fee, deposit, creation and the API's own look at the chain, several at a time
POSTERS = 5
PINGER, FIRST_POSTER = 0, 1
PING_EVERY_S = 4.0
HELD_S = 12.0  # that a condition holds, and that it does not, at the least: two polls and a takeover
DRAIN_S = 240.0
_LOOK_S = 0.5
FAILURES = ("failed", "rejected", "not_executed", "not_attested", "expired")


@dataclass(frozen=True, slots=True)
class Options:
    """`seed` decides jobs and kills; `seconds` is how long processes are killed; `folder` takes all files."""

    folder: Path
    seed: int = 1
    seconds: int = 60
    jobs: int = 40
    keepers: int = 4


@dataclass(slots=True)
class Result:
    """How it went."""

    audit: Audit
    kills: Counter[str]
    jobs: int

    def lines(self, options: Options) -> list[str]:
        killed = ", ".join(f"{name} {count}" for name, count in sorted(self.kills.items()))
        return [f"seed {options.seed}: {self.jobs} jobs, {options.seconds} s; killed: {killed}", *self.audit.lines()]


@dataclass
class Source:
    """What condition jobs read: one value a group, raised and lowered by the storm."""

    url: str = ""
    values: dict[int, int] = field(default_factory=dict)
    raised: dict[int, list[float]] = field(default_factory=dict)
    """When each group was raised, UTC seconds."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Source]:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._answer, listeners)
            yield self
            nursery.cancel_scope.cancel()

    async def _answer(self, stream: trio.SocketStream) -> None:
        try:
            async with stream:
                head = b""
                while b"\r\n\r\n" not in head:
                    chunk = await stream.receive_some(4096)
                    if not chunk:
                        return
                    head += chunk
                group = int(head.split(b" ", 2)[1].strip(b"/"))
                body = json.dumps({"readings": [{"value": str(self.values.get(group, 0))}]}).encode()
                await stream.send_all(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
                    % (len(body), body)
                )
        except trio.BrokenResourceError:
            return  # whoever asked was killed


@dataclass(frozen=True, slots=True)
class Posted:
    """A job that is posted."""

    id: int
    plan: Plan
    created_at: int
    ends_at: int


class Storm:
    """One run. Whatever it does to the network it does as its users, or with SIGKILL."""

    def __init__(self, options: Options, devnet: Devnet, chain: EvmChain, source: Source, anvil: DurableAnvil) -> None:
        self._options = options
        self._devnet = devnet
        self._chain = chain
        self._source = source
        self._anvil = anvil
        self._rng = random.Random(options.seed)
        self._clock = SystemClock()
        self._kept = Kept(devnet, chain)
        self.kills: Counter[str] = Counter()

    async def run(self, victims: list[Victim], say: Callable[[str], None]) -> Result:
        o = self._options
        begin = int(self._clock.now() + 10 + POST_EACH_S * o.jobs)
        end = begin + o.seconds
        mix = mixes.draw(self._rng, o.jobs, begin, end)
        say(f"posting {o.jobs} jobs")
        posted = await self._post(mix, end)
        await self._anvil.tick()
        say(f"killing for {o.seconds} s")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._kept.follow)
            nursery.start_soon(self._ping, mix)
            for group in mix.groups:
                nursery.start_soon(self._move, group, posted)
            await self._kill_until(victims, max(begin, self._clock.now()) + o.seconds)
            nursery.cancel_scope.cancel()
        say("waiting for what is due")
        return Result(await self._drained(posted), self.kills, len(posted))

    async def _post(self, mix: Mix, end: int) -> list[Posted]:
        posted: list[Posted] = []
        waiting = list(mix.plans)

        async def poster(account: int) -> None:
            d = self._devnet
            owner = d.sender(d.roster.users[account].private_key)
            while waiting:
                plan = waiting.pop(0)
                now = int(self._clock.now())
                assert d.deployment.demo is not None
                job = plan.job(d.deployment.demo, d.chain.chain_id, self._source.url, now, end)
                job_id = int(await post(d.client, d.platform, owner, job))
                registered = await self._chain.job(job_id)
                assert registered is not None
                created_at = registered.created_at
                posted.append(Posted(job_id, plan, created_at, min(end, created_at + registered.time_frame)))

        async with trio.open_nursery() as nursery:
            for account in range(FIRST_POSTER, FIRST_POSTER + POSTERS):
                nursery.start_soon(poster, account)
        return posted

    # what happens meanwhile

    async def _ping(self, mix: Mix) -> None:
        """Emits the events that event jobs watch for. Which of them the chain keeps is read from it afterwards."""
        d = self._devnet
        sender = d.sender(d.roster.users[PINGER].private_key)
        assert d.deployment.demo is not None
        while mix.watched:
            await trio.sleep(self._rng.uniform(0.5, 1.5) * PING_EVERY_S)
            try:
                await sender.send(d.deployment.demo, PING.encode(self._rng.choice(mix.watched)))
            except TriggerXError as error:
                log.info("ping not sent", code=error.code)  # the chain is down

    async def _move(self, group: int, posted: list[Posted]) -> None:
        """Raises the group's value, and lowers it when every job's task of the edge has ended, since keepers look for
        themselves; raises it again when every job is armed."""
        jobs = [p for p in posted if p.plan.kind == "condition" and p.plan.group == group]
        while True:
            await trio.sleep(HELD_S)
            self._source.values[group] = self._rng.randint(101, 10**6)
            self._source.raised.setdefault(group, []).append(self._clock.now())
            await trio.sleep(HELD_S)
            edges = len(self._source.raised[group])
            while not all([await self._ended(job.id, edges) for job in jobs]):  # noqa: ASYNC110  (in other processes)
                await trio.sleep(_LOOK_S)
            self._source.values[group] = self._rng.randint(-100, 100)
            while not all([await self._armed(job.id) for job in jobs]):  # noqa: ASYNC110
                await trio.sleep(_LOOK_S)

    async def _ended(self, job_id: int, edge: int) -> bool:
        return (await self._task(job_id, edge)).get("task_status") in ("completed", *FAILURES)

    async def _armed(self, job_id: int) -> bool:
        job = await self._get(f"/api/jobs/id/{job_id}")
        return bool(job.get("condition_job_data", {}).get("armed", False))

    async def _task(self, job_id: int, trigger_id: int) -> dict[str, Any]:
        found: dict[str, Any] = await self._get(f"/api/tasks/id/{task_id(job_id, trigger_id)}")
        return found

    async def _get(self, path: str) -> Any:
        """From whichever coordinator answers; empty when none does."""
        d = self._devnet
        for name, program in d.programs.items():
            if not name.startswith("coordinator"):
                continue
            try:
                answer = await d.client.get(program.said["api_url"] + path, headers={"X-API-KEY": d.platform.api_key}, timeout=5)
            except httpx.HTTPError:
                continue
            if answer.status_code == 200:
                return answer.json()
        return {}

    async def _kill_until(self, victims: list[Victim], end: float) -> None:
        """One or two at a time; each comes back after some seconds."""
        while self._clock.now() < end:
            await trio.sleep(self._rng.uniform(0.5, 4.0))
            chosen = self._rng.sample(victims, k=1 if self._rng.random() < 0.75 else 2)
            async with trio.open_nursery() as nursery:
                for victim in chosen:
                    self.kills[victim.name] += 1
                    nursery.start_soon(self._kill, victim, self._rng.uniform(0.2, 4.0))

    async def _kill(self, victim: Victim, gone: float) -> None:
        log.info("killing", victim=victim.name, seconds=round(gone, 1))
        await victim.kill()
        await trio.sleep(gone)
        await victim.start()
        log.info("back", victim=victim.name)

    # afterwards

    async def _drained(self, posted: list[Posted]) -> Audit:
        """The audit, as soon as everything due has executed or says why not."""
        with trio.move_on_after(DRAIN_S):
            while True:
                found = await self._audit(posted)
                if found.clean or not found.lost:
                    return found
                await trio.sleep(_LOOK_S)
        return await self._audit(posted)

    async def _audit(self, posted: list[Posted]) -> Audit:
        await self._kept.read()
        executed = self._kept.executed
        due = [d for job in posted for d in self._due(job)]
        done = {(e.job_id, e.trigger_id) for e in executed}
        missing = [d for d in due if d.key not in done]
        return audit(due, executed, await self._reasons(missing))

    def _due(self, job: Posted) -> list[Due]:
        plan, kept = job.plan, self._kept
        if plan.kind == "condition":
            raised = self._source.raised.get(plan.group, [])
            return [Due(job.id, edge, plan.kind, at) for edge, at in enumerate(raised, start=1)]
        if plan.kind == "event":
            # The storm's pings emit one log each: it is the first of its receipt.
            return [
                Due(job.id, events.firing_id(self._devnet.chain.chain_id, ping.transaction, 0), plan.kind, ping.at)
                for ping in kept.pings
                if ping.value == plan.watched and ping.at > job.created_at and ping.block <= kept.head - mixes.CONFIRMATIONS
            ]
        return [Due(job.id, second, plan.kind, second) for second in plan.seconds(job.created_at, job.ends_at)]

    async def _reasons(self, missing: list[Due]) -> dict[tuple[int, int], str]:
        found = {}
        for due in missing:
            task = await self._task(due.job_id, due.trigger_id)
            if task.get("task_status") in FAILURES:
                found[due.key] = f"{task['task_status']}: {task['task_error']}"
        return found


async def run(options: Options, say: Callable[[str], None]) -> Result:
    """Sets the network up, runs the storm, and leaves no process."""
    options.folder.mkdir(parents=True, exist_ok=True)
    anvil = DurableAnvil(options.folder / "chain")
    server, redis_url = redis(options.folder / "redis")
    await server.start()
    source = Source()
    try:
        async with source.open():
            host = source.url.removeprefix("http://")
            devnet_options = DevnetOptions(
                folder=options.folder / "net",
                ready_file=options.folder / "net" / "devnet.json",
                keepers=options.keepers,
                coordinators=2,
                redis_url=redis_url,
                fetch_allow=(host,),
                confirmations=mixes.CONFIRMATIONS,
            )
            async with open_devnet(devnet_options, say, anvil.open) as devnet:
                chain = await open_chain(_settings(devnet), devnet.rpc)
                storm = Storm(options, devnet, chain, source, anvil)
                victims: list[Victim] = [Coordinator(name, devnet) for name in ("coordinator", "coordinator-2")]
                return await storm.run([*victims, server, _chain_of(anvil)], say)
    finally:
        with trio.CancelScope(shield=True):
            await server.kill()


def _chain_of(anvil: DurableAnvil) -> Server:
    assert anvil.server is not None
    return anvil.server


def _settings(devnet: Devnet) -> ChainSettings:
    d = devnet.deployment
    names = ("hub", "attestation_center", "keeper_registry", "job_registry", "gas_registry")
    contracts = ContractSettings(**{name: bytes.fromhex(getattr(d, name)[2:]) for name in names})
    return ChainSettings(id=devnet.chain.chain_id, name="devnet", rpc=(devnet.chain.rpc_url,), contracts=contracts)
