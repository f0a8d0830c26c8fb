"""The node on one page: which parts it is made of, what each is given, and in which order they live and end."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog
import trio
from eth_utils.address import to_checksum_address

from node.arguments import encode_call
from node.checkins import open_check_in_post
from node.duties import DutySettings
from node.infra.clock import SystemClock
from node.infra.compute import Threads
from node.infra.content import open_content
from node.infra.fetch import open_fetcher
from node.infra.http import open_server
from node.infra.keystore import load_bls, load_operator, read_password
from node.infra.observe import Observer, Registry
from node.infra.reach import host_config, reach_account
from node.infra.secret import Secret
from node.infra.settings import ChainSettings, KeySettings, NodeSettings
from node.infra.sources import Sources
from node.infra.sqlite import open_database
from node.infra.telemetry import Metrics
from node.journal import MIGRATIONS, Journal
from node.scripts.open import open_scripts
from node.signer import Signer
from node.status import StatusPage, status_app
from node.tracker import Tracker, Trail
from node.workflow import Keeper, Parts, Served
from p2p.host import Libp2pNetwork, open_network

_log = structlog.get_logger(__name__)

VERSION = version("triggerx-node")

OnReady = Callable[[dict[str, Any]], None]
"""Told once, when the node does its work: its pid, peer id, addresses and status URL."""


async def run_node(settings: NodeSettings, on_ready: OnReady) -> None:
    """Runs a keeper or a bootstrap peer until cancelled. Raises `Misconfigured`."""
    if settings.role == "bootstrap":
        await _run_bootstrap(settings, on_ready)
    else:
        await _run_keeper(settings, on_ready)


async def _run_bootstrap(settings: NodeSettings, on_ready: OnReady) -> None:
    """A peer without keys or chain: others meet through it. It joins no topic, since it could judge no message."""
    metrics = Metrics("node", VERSION)
    async with open_network(host_config(settings.mesh)) as network:
        page = StatusPage(
            missing=lambda: [] if network.addresses else ["listening address"],
            describe=lambda: {"role": "bootstrap", **_describe(network)},
            trails=list,
            metrics=lambda: metrics.render(network.counters),
        )
        async with open_server(status_app(page), settings.status.host, settings.status.port) as status_url:
            on_ready(_ready(network, status_url))
            await trio.sleep_forever()


async def _run_keeper(settings: NodeSettings, on_ready: OnReady) -> None:
    assert settings.keys is not None  # NodeSettings refuses a keeper without keys
    metrics = Metrics("node", VERSION)
    clock = SystemClock()
    tracker = Tracker(lambda: clock.now_ns() // 1_000_000, metrics.observe_stage)
    operator, bls_secret = await load_keys(settings.keys)
    signer = Signer(operator.reveal(), bls_secret.reveal())
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(settings.data_dir / "journal.sqlite", MIGRATIONS, durable=True))
        chains = {c.id: await stack.enter_async_context(open_served(c, settings.data_dir, operator)) for c in settings.chains}
        registry = Registry({chain_id: served.observer for chain_id, served in chains.items()})
        network = await stack.enter_async_context(
            open_network(host_config(settings.mesh), gate=registry.may_publish, known=registry.is_known)
        )
        content = await stack.enter_async_context(
            open_content(settings.content, settings.data_dir, network, known=registry.is_known)
        )
        compute = Threads()
        fetcher = await stack.enter_async_context(open_fetcher(settings.fetch))
        ran = await stack.enter_async_context(
            open_scripts(
                settings.sandbox,
                settings.fetch,
                content=content,
                addresses=fetcher.addresses,
                owner=signer.address.hex(),
                folder=settings.data_dir / "sandbox",
                hidden=(settings.data_dir, *_folders_of(settings.keys)),
                compute=compute,
            )
        )
        post = await stack.enter_async_context(open_check_in_post(settings.health_url)) if settings.health_url else None
        keeper = Keeper(
            Parts(
                network=network,
                chains=chains,
                registry=registry,
                signer=signer,
                journal=Journal(database),
                tracker=tracker,
                clock=clock,
                compute=compute,
                content=content,
                scripts=ran.scripts,
                sandbox=ran.sandbox,
                sources=Sources(
                    fetcher,
                    {chain_id: served.chain for chain_id, served in chains.items()},
                    encode_call,
                    compute=compute,
                    timeout_s=settings.fetch.timeout_s,
                    max_message=settings.fetch.max_bytes,
                ),
                version=VERSION,
                post_check_in=post,
                checkin_interval=settings.checkin_interval_s,
                duties=DutySettings(rank_interval=settings.aggregator.rank_interval_s),
            )
        )
        page = StatusPage(
            missing=lambda: [
                *([] if keeper.running else ["chain: not followed yet"]),
                *([] if network.connected() else ["mesh: no peer connected"]),
                *([] if registry.is_known(network.peer_id) else ["registry: this peer id is unknown (see `triggerx register`)"]),
            ],
            describe=lambda: {
                "role": "keeper",
                "operator": to_checksum_address(signer.address),
                "sandbox": ran.sandbox,
                "no_sandbox": ran.reason,
                **_describe(network),
            },
            trails=lambda: [_trail(t) for t in tracker.trails()],
            metrics=lambda: metrics.render(network.counters),
        )
        nursery = await stack.enter_async_context(trio.open_nursery())
        status_url = await stack.enter_async_context(open_server(status_app(page), settings.status.host, settings.status.port))
        await nursery.start(keeper.run)
        on_ready(_ready(network, status_url))
        await trio.sleep_forever()


@asynccontextmanager
async def open_served(settings: ChainSettings, data_dir: Path, operator: Secret[bytes]) -> AsyncIterator[Served]:
    """One chain: its endpoints, its contracts, and the wallet that never sends twice. Waits for an RPC to answer."""
    async with reach_account(settings, data_dir, operator) as (chain, wallet):
        yield Served(Observer(chain), wallet)


async def load_keys(keys: KeySettings) -> tuple[Secret[bytes], Secret[int]]:
    """Operator and BLS secret out of their keystores."""
    password = read_password(keys.password_file)
    return await load_operator(keys.operator, password), await load_bls(keys.bls, password)


def _folders_of(keys: KeySettings) -> tuple[Path, ...]:
    """Where the node's secrets lie."""
    return tuple(dict.fromkeys(each.resolve().parent for each in (keys.operator, keys.bls, keys.password_file)))


def _describe(network: Libp2pNetwork) -> dict[str, Any]:
    return {
        "version": VERSION,
        "peer_id": network.peer_id,
        "addresses": list(network.addresses),
        "peers": sorted(network.connected()),
    }


def _ready(network: Libp2pNetwork, status_url: str) -> dict[str, Any]:
    return {"pid": os.getpid(), "peer_id": network.peer_id, "addresses": list(network.addresses), "status_url": status_url}


def _trail(trail: Trail) -> dict[str, Any]:
    return {
        "task_id": str(trail.task_id),
        "trace_id": trail.trace_id,
        "stages": trail.stages,
        "facts": trail.facts,
        "outcome": trail.outcome,
    }
