"""One gossip hop, publish to received by a neighbour: our layer against bare py-libp2p, alternately, in the same process.

`python -m benchmarks.gossip_hop` prints it, `measure()` gives the numbers. Bare means: py-libp2p's own hosts, Pubsub and
GossipSub with the settings without which nearly nothing arrives (spam protection and adaptive gossip off, heartbeat of one
second). Two peers on loopback measure the hop; five show what a delivery costs the machine when everybody forwards.
"""

from __future__ import annotations

import gc
import logging
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio
from libp2p import new_host
from libp2p.abc import IHost, ISubscriptionAPI
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from p2p.host import HostConfig, Libp2pNetwork, open_network
from p2p.network import PeerId, Received, Topic

MESSAGE_BYTES = 2048
HOPS = 300  # a p99 of three values
BURST = 100
GAP_SECONDS = 0.003  # a hop at a time: latency, not throughput
LIMIT_SECONDS = 20.0
LOOPBACK = "/ip4/127.0.0.1/tcp/0"
TOPIC: Topic[bytes] = Topic("/bench/hop", bytes, bytes, max_bytes=4096)

Publish = Callable[[bytes], Awaitable[None]]
Receive = Callable[[], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Mesh:
    """The first peer publishes, the others receive."""

    publish: Publish
    receive: list[Receive]


async def _accept(_message: bytes, _source: PeerId) -> None:
    pass


@asynccontextmanager
async def our_mesh(count: int) -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        networks: list[Libp2pNetwork] = []
        channels: list[trio.MemoryReceiveChannel[Received[bytes]]] = []
        for index in range(count):
            bootstrap = networks[0].addresses if networks else ()
            config = HostConfig(folder / f"key-{index}", listen=(LOOPBACK,), bootstrap=bootstrap)
            networks.append(await stack.enter_async_context(open_network(config)))
            channels.append(await stack.enter_async_context(networks[-1].subscribe(TOPIC, _accept, capacity=BURST + HOPS)))
        await _until(lambda: all(len(network.topic_peers(TOPIC)) == count - 1 for network in networks))

        def receiver(index: int) -> Receive:
            async def receive() -> bytes:
                return (await channels[index].receive()).message

            return receive

        async def publish(data: bytes) -> None:
            await networks[0].publish(TOPIC, data)

        yield Mesh(publish, [receiver(index) for index in range(1, count)])


@asynccontextmanager
async def bare_mesh(count: int) -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as stack:
        hosts: list[IHost] = []
        pubsubs: list[Pubsub] = []
        subscriptions: list[ISubscriptionAPI] = []
        for _ in range(count):
            host = new_host(key_pair=create_new_key_pair(), listen_addrs=[Multiaddr(LOOPBACK)])
            router = GossipSub(
                protocols=[PROTOCOL_ID_V11],
                degree=4,
                degree_low=3,
                degree_high=6,
                heartbeat_interval=1,
                adaptive_gossip_enabled=False,
                spam_protection_enabled=False,
                eclipse_protection_enabled=False,
            )
            pubsub = Pubsub(host, router, strict_signing=True)
            await stack.enter_async_context(host.run([Multiaddr(LOOPBACK)]))
            await stack.enter_async_context(background_trio_service(router))
            await stack.enter_async_context(background_trio_service(pubsub))
            await pubsub.wait_until_ready()
            subscriptions.append(await pubsub.subscribe(TOPIC.name))
            for other in hosts:
                await host.connect(info_from_p2p_addr(other.get_addrs()[0]))
            hosts.append(host)
            pubsubs.append(pubsub)
        await _until(lambda: all(len(pubsub.peer_topics.get(TOPIC.name, ())) == count - 1 for pubsub in pubsubs))
        await _until(lambda: all(pubsub.router.mesh.get(TOPIC.name) for pubsub in pubsubs))

        def receiver(index: int) -> Receive:
            async def receive() -> bytes:
                return bytes((await subscriptions[index].get()).data)

            return receive

        async def publish(data: bytes) -> None:
            await pubsubs[0].publish(TOPIC.name, data)

        yield Mesh(publish, [receiver(index) for index in range(1, count)])


async def _until(happened: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not happened():  # noqa: ASYNC110 - upstream announces it in no other way
            await trio.sleep(0.01)


async def _hops(mesh: Mesh, number: int) -> list[float]:
    """Milliseconds of each hop to the first receiver; a lost message counts as nothing and ends the series."""
    taken: list[float] = []
    for index in range(number):
        payload = index.to_bytes(4, "big").ljust(MESSAGE_BYTES, b".")
        started = time.perf_counter()
        await mesh.publish(payload)
        with trio.move_on_after(2) as scope:
            while await mesh.receive[0]() != payload:
                pass
        if scope.cancelled_caught:
            break
        taken.append((time.perf_counter() - started) * 1000)
        await trio.sleep(GAP_SECONDS)
    return taken


async def _burst(mesh: Mesh, number: int) -> tuple[float, float]:
    """CPU milliseconds a delivery, and the share of deliveries that arrived, when everything is published at once."""
    wanted = number * len(mesh.receive)
    arrived = 0

    async def read(receive: Receive) -> None:
        nonlocal arrived
        for _ in range(number):
            await receive()
            arrived += 1

    started = time.process_time()
    with trio.move_on_after(2):  # what has not come by then never will
        async with trio.open_nursery() as nursery:
            for receive in mesh.receive:
                nursery.start_soon(read, receive)
            for index in range(number):
                await mesh.publish(index.to_bytes(4, "big").rjust(MESSAGE_BYTES, b"."))
    return (time.process_time() - started) * 1000 / max(arrived, 1), arrived / wanted


@contextmanager
def _quiet() -> Iterator[None]:
    """Without debug lines, and without collecting the garbage of everything that was imported in the middle of a hop."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        structlog.reset_defaults()


async def _measure() -> dict[str, float]:
    ours: list[float] = []
    bare: list[float] = []
    async with our_mesh(2) as our, bare_mesh(2) as their:
        for mesh in (our, their):
            await _hops(mesh, 20)
        for _ in range(3):  # alternately, so that whatever else the machine does hits both
            ours += await _hops(our, HOPS // 3)
            bare += await _hops(their, HOPS // 3)
    async with our_mesh(5) as mesh:
        our_cpu, our_share = await _burst(mesh, BURST)
    async with bare_mesh(5) as mesh:
        bare_cpu, bare_share = await _burst(mesh, BURST)
    return {
        "hops": float(min(len(ours), len(bare))),
        "ours_p50_ms": _percentile(ours, 50),
        "ours_p99_ms": _percentile(ours, 99),
        "bare_p50_ms": _percentile(bare, 50),
        "bare_p99_ms": _percentile(bare, 99),
        "ratio_p50": _percentile(ours, 50) / _percentile(bare, 50),
        "ratio_p99": _percentile(ours, 99) / _percentile(bare, 99),
        "ours_cpu_ms_per_delivery": our_cpu,
        "bare_cpu_ms_per_delivery": bare_cpu,
        "ours_burst_delivered": our_share,
        "bare_burst_delivered": bare_share,
    }


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else float("nan")


def measure() -> dict[str, float]:
    """Runs the benchmark, at most about 20 seconds. Milliseconds, ratios (ours / bare) and shares of 1."""

    async def bounded() -> dict[str, float]:
        with trio.fail_after(LIMIT_SECONDS):
            return await _measure()

    with _quiet():
        return trio.run(bounded)


def main() -> None:
    """One gossip hop beside bare py-libp2p's."""
    result = measure()
    print(f"one hop, {MESSAGE_BYTES} bytes, {result['hops']:.0f} messages, loopback")
    print(f"  {'':6}{'p50 ms':>9}{'p99 ms':>9}{'CPU ms a delivery (5 peers)':>30}{f'burst of {BURST} delivered':>26}")
    for name in ("ours", "bare"):
        print(
            f"  {name:6}{result[f'{name}_p50_ms']:9.2f}{result[f'{name}_p99_ms']:9.2f}"
            f"{result[f'{name}_cpu_ms_per_delivery']:30.2f}{result[f'{name}_burst_delivered']:26.0%}"
        )
    print(f"  {'ratio':6}{result['ratio_p50']:9.2f}{result['ratio_p99']:9.2f}")


if __name__ == "__main__":
    main()
