"""The program on one page: what its configuration names is opened, in this order, and ends in the other."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import trio

from coordinator import scoring
from coordinator.alerts import open_alerts
from coordinator.api.access import Sources
from coordinator.api.server import api_app
from coordinator.attempts import DispatchPolicy
from coordinator.coordinator import VERSION as VERSION
from coordinator.coordinator import Coordinator as Coordinator
from coordinator.metrics import CoordinatorMetrics
from coordinator.parts import Parts
from coordinator.pins import Pins
from coordinator.settings import CoordinatorSettings
from coordinator.store.sqlite import open_store
from coordinator.streams.connect import open_streams
from node.arguments import encode_call
from node.infra.clock import SystemClock
from node.infra.compute import Threads
from node.infra.content import open_content
from node.infra.fetch import open_fetcher
from node.infra.http import open_server
from node.infra.keystore import load_operator, read_password
from node.infra.observe import Observer, Registry
from node.infra.reach import host_config, reach_account
from node.infra.sources import Sources as SourceReads
from p2p.host import open_network

STORE_FILE = "coordinator.sqlite"
HEAD_BYTES = 256 * 1024
"""Of a request's head: clients send a contract's whole ABI in the query of `GET /api/fees`."""

OnReady = Callable[[dict[str, Any]], None]


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
        accounts = {c.id: await stack.enter_async_context(reach_account(c, settings.data_dir, key)) for c in settings.chains}
        observers = {chain_id: Observer(account.chain) for chain_id, account in accounts.items()}
        registry = Registry(observers)
        network = await stack.enter_async_context(
            open_network(host_config(settings.mesh), gate=registry.may_publish, known=registry.is_known)
        )
        instance = network.peer_id
        streams = await stack.enter_async_context(open_streams(settings.redis, settings.data_dir, instance))
        content = await stack.enter_async_context(
            open_content(settings.content, settings.data_dir, network, known=registry.is_known, shared=True)
        )
        fetcher = await stack.enter_async_context(open_fetcher(settings.fetch))
        alerts = await stack.enter_async_context(open_alerts(settings.alerts, store, clock, streams))
        compute = Threads()
        coordinator = Coordinator(
            Parts(
                store=store,
                streams=streams,
                instance=instance,
                network=network,
                observers=observers,
                registry=registry,
                dispatcher_key=key,
                content=content,
                wallets={chain_id: account.wallet for chain_id, account in accounts.items()},
                clock=clock,
                compute=compute,
                sources=SourceReads(
                    fetcher,
                    {chain_id: observer.chain for chain_id, observer in observers.items()},
                    encode_call,
                    compute=compute,
                    timeout_s=settings.fetch.timeout_s,
                    max_message=settings.fetch.max_bytes,
                ),
                alerts=alerts,
                alert_settings=settings.alerts,
                check_url=fetcher.check,
                on_published=metrics.observe_published,
                poll_interval=settings.conditions.poll_interval_s,
                policy=DispatchPolicy(
                    ack_timeout=settings.dispatch.ack_timeout_s,
                    retries=settings.dispatch.retries,
                    window=settings.dispatch.attempt_window_s,
                ),
                keeper_policy=scoring.Policy(
                    min_version=settings.keepers.min_version,
                    whitelist=frozenset(settings.keepers.whitelist),
                    tasks_each=settings.keepers.tasks_each,
                    ack_timeout_s=settings.dispatch.ack_timeout_s,
                ),
                lookahead=settings.scheduler.lookahead_s,
                script_lead=settings.scheduler.script_lead_s,
                lease=settings.shards.lease_s,
                offline_after=settings.alerts.keeper_offline_s,
                charge_batch=settings.charges.batch,
                charge_interval=settings.charges.interval_s,
                least_funds=settings.charges.least_funds_wei,
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
            keepers=coordinator.keepers,
            parts=coordinator.part_watch.states,
            content=content,
        )
        nursery = await stack.enter_async_context(trio.open_nursery())
        await nursery.start(coordinator.run)
        nursery.start_soon(coordinator.guard, "pins", Pins(store, content.blobs).run)
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
