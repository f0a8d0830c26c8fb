"""The coordinator on one page: which parts it is made of, what each is given, and in which order they live and end."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import trio
from eth_utils.address import to_checksum_address

from coordinator.api.access import Sources
from coordinator.api.server import api_app
from coordinator.dispatcher import Dispatcher, DispatchPolicy
from coordinator.guard import Guard
from coordinator.jobs import Jobs
from coordinator.keepers import Keepers
from coordinator.metrics import CoordinatorMetrics
from coordinator.monitor import Monitor
from coordinator.scheduler.time import TimeScheduler
from coordinator.signals import Signals
from coordinator.store.port import Store
from coordinator.store.sqlite import open_store
from node.infra.chain import Chain
from node.infra.clock import Clock, SystemClock
from node.infra.compute import Compute, Threads
from node.infra.http import open_server
from node.infra.keystore import load_operator, read_password
from node.infra.observe import Observer, Registry
from node.infra.reach import host_config, reach_chain
from node.infra.secret import Secret
from coordinator.settings import CoordinatorSettings
from p2p.host import open_network
from p2p.network import Network

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

_log = structlog.get_logger(__name__)

VERSION = version("triggerx-node")
STORE_FILE = "coordinator.sqlite"
HEAD_BYTES = 256 * 1024
"""Of a request's head: clients send a contract's whole ABI in the query of `GET /api/fees`."""

OnReady = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Parts:
    """Everything a coordinator is made of; `run_coordinator` builds the real ones, the simulation its own."""

    store: Store
    network: Network
    observers: Mapping[int, Observer]
    registry: Registry
    dispatcher_key: Secret[bytes]
    clock: Clock
    compute: Compute
    policy: DispatchPolicy = field(default_factory=DispatchPolicy)
    lookahead: float = 5.0


class Coordinator:
    """The parts connected. `run` is ready when every chain is followed and every unfinished task is under way again."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.guard, self.signals = Guard(), Signals()
        chains: dict[int, Chain] = {chain_id: observer.chain for chain_id, observer in parts.observers.items()}
        self.keepers = Keepers(parts.store, parts.network, parts.registry, self.signals, parts.clock)
        self.dispatcher = Dispatcher(
            parts.store,
            parts.network,
            chains,
            parts.registry,
            self.keepers,
            parts.dispatcher_key,
            self.signals,
            self.guard,
            parts.clock,
            parts.policy,
        )
        self.scheduler = TimeScheduler(parts.store, parts.clock, self.dispatcher.take, lookahead=parts.lookahead)
        self.monitors = [
            Monitor(parts.store, observer.chain, observer, self.signals, parts.clock, self.scheduler.remove)
            for observer in parts.observers.values()
        ]
        self.jobs = Jobs(
            parts.store, chains, parts.clock, parts.compute, planned=self.scheduler.add, deleted=self.scheduler.remove
        )
        self.compute = parts.compute
        self.chain_ids = tuple(chains)
        self.ready = False

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Works until cancelled. Each part is begun anew when it fails; none takes another down."""
        async with trio.open_nursery() as nursery:
            steps = [("monitor", m.run) for m in self.monitors]
            steps += [("keepers", self.keepers.run), ("dispatcher", self.dispatcher.run), ("scheduler", self.scheduler.run)]
            for name, step in steps:
                began = trio.Event()
                nursery.start_soon(self.guard, name, _beginning(step, began))
                await began.wait()
            self.ready = True
            task_status.started()

    def status(self) -> dict[str, Any]:
        """FIELD's GET /status, and the mesh as this peer sees it."""
        seen = self.keepers.all()
        online = [k for k in seen if self.keepers.is_online(k)]
        return {
            "total_keepers": len({k.address for k in seen}),
            "active_keepers": len({k.address for k in online}),
            "active_keeper_list": [
                {
                    "keeper_address": to_checksum_address(k.address),
                    "peer_id": k.peer_id,
                    "chain_id": str(k.chain_id),
                    "version": k.version,
                    "uptime": k.uptime_s,
                    "last_checked_in": k.last_seen,
                }
                for k in online
            ],
            "version": VERSION,
            "peer_id": self._parts.network.peer_id,
            "peers": sorted(self._parts.network.connected()),
            "jobs_scheduled": len(self.scheduler),
        }

    def missing(self) -> list[str]:
        """What it still lacks to do its work: empty means ready."""
        return [
            *([] if self.ready else ["chain: not followed yet"]),
            *([] if self._parts.network.connected() else ["mesh: no peer connected"]),
        ]


def _beginning(step: Callable[..., Any], began: trio.Event) -> Callable[[], Any]:
    """`step` with its readiness as an event: the guard that runs it may have to begin it several times."""

    class Status:
        def started(self, value: object = None) -> None:
            began.set()

    async def run() -> None:
        await step(task_status=Status())

    return run


async def run_coordinator(settings: CoordinatorSettings, on_ready: OnReady) -> None:
    """Runs the program until cancelled. Raises `Misconfigured`."""
    metrics = CoordinatorMetrics(VERSION)
    key = await load_operator(
        settings.dispatcher.keystore,
        read_password(settings.dispatcher.password_file, key="dispatcher.password_file"),
        key="dispatcher.keystore",
    )
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(settings.data_dir / STORE_FILE))
        observers = {c.id: Observer((await stack.enter_async_context(reach_chain(c))).chain) for c in settings.chains}
        registry = Registry(observers)
        network = await stack.enter_async_context(
            open_network(host_config(settings.mesh), gate=registry.may_publish, known=registry.is_known)
        )
        coordinator = Coordinator(
            Parts(
                store=store,
                network=network,
                observers=observers,
                registry=registry,
                dispatcher_key=key,
                clock=clock,
                compute=Threads(),
                policy=DispatchPolicy(
                    ack_timeout=settings.dispatch.ack_timeout_s,
                    retries=settings.dispatch.retries,
                    window=settings.dispatch.attempt_window_s,
                ),
                lookahead=settings.scheduler.lookahead_s,
            )
        )

        sources = Sources(
            store=store,
            jobs=coordinator.jobs,
            clock=clock,
            compute=coordinator.compute,
            explorers={c.id: c.explorer for c in settings.chains},
            missing=coordinator.missing,
            status=coordinator.status,
            metrics=lambda: metrics.render(coordinator, store, network.counters),
            observe=metrics.observe_request,
        )
        nursery = await stack.enter_async_context(trio.open_nursery())
        await nursery.start(coordinator.run)
        url = await stack.enter_async_context(
            open_server(
                api_app(sources),
                settings.api.host,
                settings.api.port,
                body_limit=settings.api.body_limit,
                head_limit=HEAD_BYTES,
                key="api.port",
            )
        )
        on_ready(
            {
                "pid": os.getpid(),
                "peer_id": network.peer_id,
                "addresses": list(network.addresses),
                "api_url": url,
                "status_url": url,
            }
        )
        await trio.sleep_forever()


def store_path(settings: CoordinatorSettings) -> Path:
    """Where the store lies."""
    return settings.data_dir / STORE_FILE
