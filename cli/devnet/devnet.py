"""A whole network on one machine: chain, contracts, bootstrap peer, keepers, coordinator, each program a process of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import trio

from cli.account import Sender
from cli.devnet import configs
from cli.devnet.chain import Chain, ChainOptions, Engine, open_chain
from cli.devnet.folder import LOGS, ReadyFile, open_folder, ready_file
from cli.devnet.jobs import Platform
from cli.devnet.processes import Child, Processes, open_processes, python_module
from cli.devnet.roster import KeeperPlan, Roster, plan_roster
from cli.devnet.watch import Place
from cli.registration import advance_epoch, register
from consensus.codec import Domain
from consensus.errors import Failed, Misconfigured
from coordinator.settings import CoordinatorSettings
from node.infra.deploy import Deployment, DeploySettings, deploy
from node.infra.rpc import Rpc, open_rpc
from node.infra.settings import NodeSettings

ROUND_S = 20
EPOCH_S = 80  # four rounds, the least that the contracts' deployment takes
MIN_STAKE = 10**18
SEAT_STAKE = 10**18
UNIT = 10**12
"""Wei an attestation earns."""

COORDINATOR = "coordinator"
CHILD_READY_S = 60.0  # seven Python programs start at once on two cores
MESH_S = 60.0
_LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class DevnetOptions:
    """How to start a devnet. `folder` is emptied; `ready_file` appears when everything is ready.

    Several coordinators share one store, and the Redis at `redis_url`; `fetch_allow` are private hosts that conditions may name.
    """

    folder: Path = Path(".devnet")
    ready_file: Path = Path(".devnet/devnet.json")
    keepers: int = 5
    engine: Engine = "auto"
    coordinators: int = 1
    redis_url: str | None = None
    fetch_allow: tuple[str, ...] = ()
    confirmations: int = 0
    """Blocks on top of an event's before anybody acts on it."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program that is up: its process, its configuration file, and what it said of itself."""

    child: Child
    config: Path
    said: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Devnet:
    """A running devnet."""

    chain: Chain
    platform: Platform
    deployment: Deployment
    places: tuple[Place, ...]
    roster: Roster
    ready_file: Path
    rpc: Rpc
    client: httpx.AsyncClient
    processes: Processes
    programs: Mapping[str, Program]
    """By name: `bootstrap`, `coordinator`, `coordinator-2`, `keeper-1`, ..."""

    def sender(self, private_key: str) -> Sender:
        """An account of this chain."""
        return Sender(self.rpc, private_key, self.chain.chain_id)


Say = Callable[[str], None]
OpenChain = Callable[[ChainOptions], AbstractAsyncContextManager[Chain]]


@asynccontextmanager
async def open_devnet(options: DevnetOptions, say: Say, start_chain: OpenChain = open_chain) -> AsyncIterator[Devnet]:
    """Yields when the mesh is formed and the ready file is written; leaves no process. `say` hears each step in words.

    Raises `Failed` when something did not start (with the end of its log), `Misconfigured` for a folder that is not ours.
    """
    if options.coordinators > 1 and options.redis_url is None:
        raise Misconfigured("--redis", "several coordinators need a Redis that they share: give its URL")
    with open_folder(options.folder) as folder, ready_file(options.ready_file) as file:
        roster_size = options.keepers
        chain_options = ChainOptions(engine=options.engine, accounts=Roster.accounts_needed(roster_size))
        async with start_chain(chain_options) as chain, open_processes(folder / LOGS) as processes:
            say(f"chain: {chain.kind} at {chain.rpc_url}, pid {chain.pid}")
            async with (
                open_rpc([chain.rpc_url], expect_chain_id=chain.chain_id) as rpc,
                httpx.AsyncClient(trust_env=False) as client,
            ):
                yield await _assemble(_Site(options, folder, file, chain, processes, rpc, client, say))


@dataclass(frozen=True, slots=True)
class _Site:
    """What the steps of assembling a devnet share."""

    options: DevnetOptions
    folder: Path
    file: ReadyFile
    chain: Chain
    processes: Processes
    rpc: Rpc
    client: httpx.AsyncClient
    say: Say

    def sender(self, private_key: str) -> Sender:
        return Sender(self.rpc, private_key, self.chain.chain_id)

    async def program(self, name: str, module: str, document: Mapping[str, Any]) -> Program:
        """Writes the configuration, starts the program, waits until it is ready, and pins the ports it took."""
        model = CoordinatorSettings if module == "cli.coordinator" else NodeSettings
        folder = self.folder / name
        folder.mkdir(mode=0o700, exist_ok=True)
        config, ready = folder / "config.toml", folder / "ready.json"
        configs.write(config, document, model)
        arguments = ("start", "--config", str(config), "--ready-file", str(ready))
        child = self.processes.start(name, python_module(module, *arguments))
        said = await self.processes.ready(child, ready, CHILD_READY_S)
        configs.write(config, configs.pinned(document, said), model)
        return Program(child, config, said)


async def _assemble(site: _Site) -> Devnet:
    site.say("deploying contracts, writing keys, starting the bootstrap peer")
    bootstrap: Program | None = None
    deployment: Deployment | None = None
    roster: Roster | None = None

    async def start_bootstrap() -> None:
        nonlocal bootstrap
        bootstrap = await site.program("bootstrap", "cli.node", configs.bootstrap_config())

    async def prepare_chain() -> None:
        nonlocal deployment, roster
        roster = await plan_roster(site.folder, site.chain.accounts, site.options.keepers)
        deployment = await _deploy(site, roster)
        await _register(site, roster, deployment)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start_bootstrap)
        nursery.start_soon(prepare_chain)
    assert bootstrap is not None
    assert deployment is not None
    assert roster is not None

    several = f"{site.options.coordinators} coordinators" if site.options.coordinators > 1 else "the coordinator"
    site.say(f"starting {len(roster.keepers)} keepers and {several}")
    address = str(bootstrap.said["addresses"][0])
    table = configs.chain_table(
        deployment,
        "devnet",
        site.chain.rpc_url,
        site.chain.ws_url,
        poll_ms=configs.POLL_MS,
        confirmations=site.options.confirmations,
    )
    started: dict[str, Program] = {}
    names = [COORDINATOR, *(f"{COORDINATOR}-{number}" for number in range(2, site.options.coordinators + 1))]
    conditions = {"fetch": {"allow": list(site.options.fetch_allow)}} if site.options.fetch_allow else {}

    async def start(name: str, module: str, document: Mapping[str, Any]) -> None:
        started[name] = await site.program(name, module, document)

    async with trio.open_nursery() as nursery:
        for name in names:
            document = configs.coordinator_config(
                table, address, keys=f"../{COORDINATOR}", store=f"../{COORDINATOR}/data", redis_url=site.options.redis_url
            )
            nursery.start_soon(start, name, "cli.coordinator", {**document, **conditions})
        for keeper in roster.keepers:
            nursery.start_soon(start, keeper.name, "cli.node", {**configs.keeper_config(table, address), **conditions})

    site.say("waiting for the mesh")
    await _mesh_formed(site, roster, started)
    api_key = await _api_key(site, started[COORDINATOR].config)
    content = _ready_content(site, deployment, roster, bootstrap, started, api_key)
    site.file.write(content)
    site.say(f"ready: {site.file.path}")
    platform = Platform(
        coordinator_url=content["coordinator_url"],
        api_key=api_key,
        chain_id=site.chain.chain_id,
        job_registry=deployment.job_registry,
        gas_registry=deployment.gas_registry,
    )
    places = tuple(Place(k.name, k.account.address, started[k.name].said["status_url"]) for k in roster.keepers)
    programs = {"bootstrap": bootstrap, **started}
    return Devnet(
        site.chain, platform, deployment, places, roster, site.file.path, site.rpc, site.client, site.processes, programs
    )


async def _deploy(site: _Site, roster: Roster) -> Deployment:
    settings = DeploySettings(
        owner=roster.owner.address,
        dispatchers=(roster.dispatcher.address,),
        epoch_seconds=EPOCH_S,
        round_seconds=ROUND_S,
        min_stake=MIN_STAKE,
        seat_stake=SEAT_STAKE,
        unbonding_seconds=EPOCH_S,
        unit=UNIT,
        demo=True,
    )
    return await deploy(site.rpc, roster.owner.private_key, settings)


async def _register(site: _Site, roster: Roster, deployment: Deployment) -> None:
    """Every keeper registers itself; then the first epoch seats them all."""
    registry = deployment.keeper_registry
    domain = Domain(
        chain_id=deployment.chain_id,
        hub=bytes.fromhex(deployment.hub[2:]),
        attestation_center=bytes.fromhex(deployment.attestation_center[2:]),
        keeper_registry=bytes.fromhex(registry[2:]),
    )

    async def one(keeper: KeeperPlan) -> None:
        sender = site.sender(keeper.account.private_key)
        await register(sender, registry, domain, keeper.bls_secret, keeper.peer_id, keeper.account.address, MIN_STAKE)

    async with trio.open_nursery() as nursery:
        for keeper in roster.keepers:
            nursery.start_soon(one, keeper)
    await advance_epoch(site.sender(roster.owner.private_key), registry)


async def _mesh_formed(site: _Site, roster: Roster, started: Mapping[str, Program]) -> None:
    """Returns when every program calls itself ready, everybody is connected to all others, and every keeper has checked in."""
    everybody = {str(each.said["peer_id"]) for each in started.values()}
    lacking = "nobody answered"
    with trio.move_on_after(MESH_S):
        while True:
            lacking = await _lacking(site.client, started, everybody)
            if not lacking:
                return
            await trio.sleep(_LOOK_S)
    raise Failed("MESH_NOT_FORMED", f"within {MESH_S:.0f} s: {lacking}; logs are in {site.folder / LOGS}")


async def _lacking(client: httpx.AsyncClient, started: Mapping[str, Program], everybody: set[str]) -> str:
    """What still keeps the network from working, in words; empty when nothing does."""
    for name, each in started.items():
        url = each.said["status_url"]
        if each.child.exited.is_set():
            raise Failed("NOT_READY", f"{name} {each.child.ending()}; the end of {each.child.log}:\n{each.child.tail()}")
        try:
            ready = await client.get(f"{url}/readyz")
            status = (await client.get(f"{url}/status")).json()
        except (httpx.HTTPError, ValueError) as error:
            return f"{name} does not answer ({error!r})"
        if ready.status_code != 200:
            return f"{name} is not ready: {ready.text[:200]}"
        missing = everybody - {str(each.said["peer_id"])} - set(status["peers"])
        if missing:
            return f"{name} does not see {len(missing)} of its {len(everybody) - 1} peers"
        keepers = sum(not each.startswith(COORDINATOR) for each in started)
        if name.startswith(COORDINATOR) and status["active_keepers"] < keepers:
            return f"{status['active_keepers']} of {keepers} keepers have checked in"
    return ""


async def _api_key(site: _Site, config: Path) -> str:
    command = python_module("cli.coordinator", "keys", "create", "--config", str(config), "--owner", "devnet")
    return await site.processes.output(command, CHILD_READY_S)


def _ready_content(
    site: _Site,
    deployment: Deployment,
    roster: Roster,
    bootstrap: Program,
    started: Mapping[str, Program],
    api_key: str,
) -> dict[str, Any]:
    coordinator = started[COORDINATOR]
    return {
        "coordinator_url": coordinator.said["api_url"],
        "api_key": api_key,
        "rpc_url": site.chain.rpc_url,
        "ws_url": site.chain.ws_url,
        "chain_id": site.chain.chain_id,
        "contracts": {
            "job_registry": deployment.job_registry,
            "gas_registry": deployment.gas_registry,
            "hub": deployment.hub,
            "attestation_center": deployment.attestation_center,
            "keeper_registry": deployment.keeper_registry,
            "demo": deployment.demo,
            "safe_factory": deployment.safe_factory,
            "safe_module": deployment.safe_module,
            "multisend_call_only": deployment.multisend_call_only,
        },
        "sdk": configs.sdk_addresses(deployment, site.chain.rpc_url),
        "accounts": [asdict(account) for account in roster.users],
        "bootstrap": bootstrap.said["addresses"][0],
        "keepers": [_keeper_content(keeper, started[keeper.name]) for keeper in roster.keepers],
        "coordinator_pid": coordinator.child.pid,
        "chain_pid": site.chain.pid,
        # Beyond what a client needs: what a test needs that kills processes and starts them again.
        "chain": site.chain.kind,
        "dir": str(site.folder),
        "bootstrap_pid": bootstrap.child.pid,
        "coordinator_config": str(coordinator.config),
        "coordinator_status_url": coordinator.said["status_url"],
    }


def _keeper_content(keeper: KeeperPlan, started: Program) -> dict[str, Any]:
    return {
        "address": keeper.account.address,
        "peer_id": started.said["peer_id"],
        "multiaddr": started.said["addresses"][0],
        "status_url": started.said["status_url"],
        "pid": started.child.pid,
        "name": keeper.name,
        "config": str(started.config),
    }
