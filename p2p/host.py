"""The mesh over py-libp2p: TCP, Noise and Yamux, one ed25519 identity, gossip and direct streams behind one port."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import structlog
import trio
from libp2p.abc import INetConn, INetStream, INetwork, INotifee
from libp2p.host.basic_host import BasicHost
from libp2p.peer.id import ID
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from consensus.errors import Misconfigured, Transient
from p2p.background import background_tasks
from p2p.gossip import Gossip
from p2p.identity import load_identity
from p2p.inbox import Gate, open_gate
from p2p.limits import WHOLE_LIE, Standing
from p2p.network import Counters, Exchange, PeerId, Received, Rule, Topic
from p2p.peers import PEERS, Peers, parse_bootstrap
from p2p.router import GossipConfig
from p2p.streams import StreamLimits, Streams
from p2p.upstream import build_host, close_all, dial, quiet

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

M = TypeVar("M")
Q = TypeVar("Q")
A = TypeVar("A")

log = structlog.get_logger()

CLOSE_SECONDS = 0.4  # goodbyes to every peer at once; whoever does not take his in time finds out by himself


def nobody(_peer: PeerId) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class HostConfig:
    """One peer. `listen`, `announce` and `bootstrap` are multiaddrs; bootstrap addresses end in /p2p/<peer id>.

    `announce` replaces the listening addresses in what others are told (NAT, containers). `target_peers` is how many
    connections the peer seeks by itself, `max_peers` and `max_strangers` what it accepts: strangers are all but the
    bootstrap peers and those for whom `open_network`'s `known` says true, and can never take the others' places.
    """

    identity: Path
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0",)
    announce: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    target_peers: int = 32
    max_peers: int = 128
    max_strangers: int = 64
    gossip: GossipConfig = field(default_factory=GossipConfig)
    streams: StreamLimits = field(default_factory=StreamLimits)


@asynccontextmanager
async def open_network(
    config: HostConfig, *, gate: Gate = open_gate, known: Callable[[PeerId], bool] = nobody
) -> AsyncIterator[Libp2pNetwork]:
    """A listening peer that seeks the others by itself. Ready when entered; gone well below a second after it is left.

    `gate` says who may publish where, `known` whose connections are not to be refused for a stranger's.
    Raises `Misconfigured` naming `identity`, `listen`, `announce` or `bootstrap`.
    """
    quiet()
    key = load_identity(config.identity)
    bootstrap = parse_bootstrap(config.bootstrap)
    listen = [_parse(address, "mesh.listen") for address in config.listen]
    for address in listen:
        _claim(address)
    host = build_host(
        key,
        max_connections=config.max_peers + config.max_strangers,
        announce=[_parse(address, "mesh.announce") for address in config.announce] or None,
    )
    async with background_tasks() as nursery:
        network = Libp2pNetwork(host, config, gate=gate, known=known, bootstrap=bootstrap, nursery=nursery)
        stopping = trio.Event()
        problem = await nursery.start(network._run, listen, stopping)
        if problem is not None:
            raise problem
        try:
            yield network
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_SECONDS):
                await close_all(host)
            stopping.set()
            with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_SECONDS):
                await network._stopped.wait()


class Libp2pNetwork:
    """Implements `p2p.network.Network` and `p2p.peers.Links`. Made by `open_network`."""

    def __init__(
        self,
        host: BasicHost,
        config: HostConfig,
        *,
        gate: Gate,
        known: Callable[[PeerId], bool],
        bootstrap: dict[PeerId, list[str]],
        nursery: trio.Nursery,
    ) -> None:
        self._host = host
        self._config = config
        self._known = known
        self._bootstrap = bootstrap
        self._nursery = nursery
        self._peer_id = host.get_id().to_base58()
        self._addresses: tuple[str, ...] = ()
        self._counters = Counters()
        self._standing: Standing[PeerId] = Standing()
        self._changed = trio.Event()
        self._stopped = trio.Event()
        self._streams = Streams(host, counters=self._counters, blame=self._blame, refused=self.refused, limits=config.streams)
        self._gossip = Gossip(
            host,
            config.gossip,
            gate=gate,
            standing=self._standing,
            counters=self._counters,
            nursery=nursery,
            blamed=self._cut_off,
        )
        self._peers = Peers(self, bootstrap, target=config.target_peers)

    async def _run(
        self,
        listen: list[Multiaddr],
        stopping: trio.Event,
        *,
        task_status: TaskStatus[Misconfigured | None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Everything of upstream's lives in here, so that its exception groups do not wrap the caller's exceptions."""
        try:
            network = self._host.get_network()
            network.set_stream_handler(self._streams.accept)
            network.register_notifee(_Doorman(self))
            async with self._host.run(listen), trio.open_nursery() as nursery:
                if len(self._host.get_transport_addrs()) < len(listen):
                    task_status.started(Misconfigured("mesh.listen", f"cannot listen on {', '.join(map(str, listen))}"))
                    return
                self._addresses = tuple(str(address) for address in self._host.get_addrs())
                async with background_trio_service(self._gossip.mesh), background_trio_service(self._gossip):
                    await self._gossip.wait_until_ready()
                    async with self._streams.serve(PEERS, self._peers.answer):
                        nursery.start_soon(self._peers.run)
                        task_status.started(None)
                        await stopping.wait()
                        nursery.cancel_scope.cancel()
        finally:
            self._stopped.set()

    # -- p2p.network.Network

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._addresses

    @property
    def counters(self) -> Counters:
        self._counters.peers = len(self.connected())
        return self._counters

    def subscribe(
        self, topic: Topic[M], rule: Rule[M], *, capacity: int
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[Received[M]]]:
        return self._gossip.subscribe_to(topic, rule, capacity=capacity)

    async def publish(self, topic: Topic[M], message: M) -> None:
        await self._gossip.publish_to(topic, message)

    async def request(self, peer: PeerId, exchange: Exchange[Q, A], message: Q) -> A:
        target = _id(peer)
        if peer != self._peer_id and peer not in self.connected():
            await self._reach(peer)
        return await self._streams.request(target, exchange, message)

    def serve(self, exchange: Exchange[Q, A], handler: Callable[[Q, PeerId], Awaitable[A]]) -> AbstractAsyncContextManager[None]:
        return self._streams.serve(exchange, handler)

    def connected(self) -> frozenset[PeerId]:
        return frozenset(
            peer.to_base58()
            for peer, connections in self._host.get_network().connections.items()
            if not all(connection.is_closed for connection in connections)
        )

    def topic_peers(self, topic: Topic[M]) -> frozenset[PeerId]:
        return frozenset(peer.to_base58() for peer in self._gossip.peer_topics.get(topic.name, ()))

    # -- p2p.peers.Links

    def refused(self, peer: PeerId) -> bool:
        return self._standing.refused(peer, trio.current_time())

    def remote_ip(self, peer: PeerId) -> str | None:
        for connection in self._host.get_network().get_connections(_id(peer)):
            remote = connection.muxed_conn.get_remote_address()  # type: ignore[attr-defined]
            if remote is not None:
                return str(remote[0])
        return None

    async def changed(self) -> None:
        await self._changed.wait()
        self._changed = trio.Event()

    async def dial(self, peer: PeerId, address: str) -> None:
        try:
            await dial(self._host, _id(peer), Multiaddr(address))
        except Exception as error:
            raise Transient("PEER_UNREACHABLE", f"{address}: {error!r}") from error

    async def _reach(self, peer: PeerId) -> None:
        if self.refused(peer):
            raise Transient("PEER_CUT_OFF", peer)
        for address in self._peers.addresses_of(peer):
            with suppress(Transient):
                await self.dial(peer, address)
                return
        raise Transient("PEER_UNREACHABLE", peer)

    # -- who may stay

    async def _admit(self, connection: INetConn) -> None:
        peer = connection.muxed_conn.peer_id.to_base58()
        self._changed.set()
        if self.refused(peer) or (self._stranger(peer) and self._strangers() > self._config.max_strangers):
            log.debug("connection_refused", peer=peer, lied=self.refused(peer))
            self._nursery.start_soon(connection.close)

    def _stranger(self, peer: PeerId) -> bool:
        return peer not in self._bootstrap and not self._known(peer)

    def _strangers(self) -> int:
        return sum(self._stranger(peer) for peer in self.connected())

    def _blame(self, peer: PeerId, code: str, detail: str) -> None:
        self._counters.reject(code)
        log.info("peer_blamed", peer=peer, code=code, detail=detail)
        if peer != self._peer_id and self._standing.blame(peer, WHOLE_LIE, trio.current_time()):
            self._cut_off(peer)

    def _cut_off(self, peer: PeerId) -> None:
        self._counters.cut_off += 1
        log.warning("peer_cut_off", peer=peer)
        for connection in self._host.get_network().get_connections(_id(peer)):
            self._nursery.start_soon(connection.close)


class _Doorman(INotifee):
    """Hears of every connection."""

    def __init__(self, network: Libp2pNetwork) -> None:
        self._network = network

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        await self._network._admit(conn)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        self._network._changed.set()

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None: ...

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None: ...

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None: ...

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None: ...


def _parse(address: str, key: str) -> Multiaddr:
    try:
        return Multiaddr(address)
    except Exception as error:
        raise Misconfigured(key, f"{address!r} is not a multiaddr: {error}") from error


def _id(peer: PeerId) -> ID:
    try:
        return ID.from_base58(peer)
    except Exception as error:
        raise Transient("PEER_UNREACHABLE", f"{peer!r} is not a peer id") from error


def _claim(address: Multiaddr) -> None:
    """Raises `Misconfigured` when the port is taken. Upstream sets SO_REUSEPORT: two nodes would share it."""
    names = [protocol.name for protocol in address.protocols()]
    if names not in (["ip4", "tcp"], ["ip6", "tcp"]):
        raise Misconfigured("mesh.listen", f"{address} is not /ip4/<address>/tcp/<port> or /ip6/<address>/tcp/<port>")
    ip, port = address.value_for_protocol(names[0]), int(address.value_for_protocol("tcp") or 0)
    family = socket.AF_INET6 if names[0] == "ip6" else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections in TIME_WAIT do not take a port
            probe.bind((ip, port))
            probe.listen(1)
    except OSError as error:
        reason = (
            "the port is in use; choose another, or stop what listens there"
            if error.errno == errno.EADDRINUSE
            else error.strerror or str(error)
        )
        raise Misconfigured("mesh.listen", f"cannot listen on {address}: {reason}") from error
