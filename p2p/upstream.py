"""What py-libp2p 0.8.1 needs before strangers may connect: every override and patch of its insides, each with its reason.

`tests/p2p/test_upstream.py` fails when an upgrade renames or repairs one of them.
"""

from __future__ import annotations

import logging
from typing import Any

import trio
from libp2p.abc import IMuxedConn, INetConn, INetStream, IRawConnection, ISecureConn
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_key
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.trio import TrioTCPStream
from libp2p.metrics.swarm import SwarmEvent
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection import swarm_connection
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.protocol_muxer.exceptions import MultiselectClientError, MultiselectError
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.transport.exceptions import MuxerUpgradeFailure
from libp2p.transport.tcp.tcp import TCP
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from p2p.muxer import BufferedTCP, LeanYamux

HANDSHAKE_SECONDS = 5
HANDSHAKES_AT_ONCE = 64
CONNECTIONS_PER_PEER = 2  # both sides may dial at the same moment


def quiet() -> None:
    """Upstream reports each refused dial as an error and each closed connection as a warning. We log what matters."""
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    # It logs through the root logger, which prints to stderr when nobody has configured it.
    swarm_connection.logging = logging.getLogger("libp2p.network.connection")  # type: ignore[attr-defined,assignment]


class GuardedSwarm(Swarm):
    """The swarm without its auto-dialler, and with inbound slots that are given back."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._handshakes = trio.CapacityLimiter(HANDSHAKES_AT_ONCE)
        # Dials every address in the peerstore until half the connection limit is used; p2p.peers does that on purpose instead.
        self.auto_connector.maybe_connect = _do_nothing  # type: ignore[method-assign]

    def _schedule_auto_connect(self) -> None:
        pass

    def _schedule_prune(self) -> None:
        """Nothing to prune: connections over the limits are refused when they are made."""

    async def _do_handle_inbound_connection(
        self, read_write_closer: ReadWriteCloser, maddr: Multiaddr, failure_event: SwarmEvent
    ) -> None:
        """Upstream keeps the inbound slot until the swarm ends: after a few hundred connections it refuses everybody for good."""
        assert isinstance(read_write_closer, TrioTCPStream)
        raw = RawConnection(BufferedTCP(read_write_closer), False)
        try:
            self._handshakes.acquire_nowait()
        except trio.WouldBlock:
            await raw.close()
            return
        try:
            muxed = await self.upgrade_inbound_raw_conn(raw, maddr)
        except Exception:  # noqa: BLE001 - a stranger's handshake may fail in any way, and concerns nobody else
            await raw.close()
            return
        finally:
            self._handshakes.release()
        await muxed.event_closed.wait()  # type: ignore[attr-defined]

    async def notify_disconnected(self, conn: INetConn) -> None:
        await self._notify("disconnected", conn)

    async def notify_opened_stream(self, stream: INetStream) -> None:
        """Nobody listens, and upstream opens a nursery with a task a listener to tell them."""

    async def notify_closed_stream(self, stream: INetStream) -> None:
        stream._resource_released = True  # type: ignore[attr-defined]  # else upstream tells it again


async def _do_nothing() -> None:
    pass


class BufferedTransport(TCP):
    """TCP whose outgoing connections read a chunk at a time; `GuardedSwarm` does the same for those that come in."""

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        raw = await super().dial(maddr)
        if isinstance(raw, RawConnection) and isinstance(raw.stream, TrioTCPStream):
            raw.stream = BufferedTCP(raw.stream)
        return raw


class LeanUpgrader(TransportUpgrader):
    """Agrees on Yamux and makes our own: upstream's multistream makes its own class, whatever class was registered."""

    async def upgrade_connection(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        try:
            await self.muxer_multistream.select_transport(conn)
        except (MultiselectError, MultiselectClientError) as error:
            raise MuxerUpgradeFailure("no muxer in common") from error
        return LeanYamux(conn, peer_id, is_initiator=conn.is_initiator)


def build_host(key: KeyPair, *, max_connections: int, announce: list[Multiaddr] | None) -> BasicHost:
    """A host that speaks TCP + Noise + Yamux and nothing else. It listens and dials only once it runs."""
    peer_id = ID.from_pubkey(key.public_key)
    peerstore = PeerStore()
    peerstore.add_key_pair(peer_id, key)
    noise = Noise(key, noise_privkey=new_noise_key().private_key)
    swarm = GuardedSwarm(
        peer_id,
        peerstore,
        LeanUpgrader({TProtocol(NOISE): noise}, {TProtocol(YAMUX): LeanYamux}, negotiate_timeout=HANDSHAKE_SECONDS),
        transports=[BufferedTransport()],
        retry_config=RetryConfig(max_retries=0),  # p2p.peers retries, and knows what it retries for
        connection_config=ConnectionConfig(
            max_connections=max_connections,
            min_connections=0,
            low_watermark=0,
            high_watermark=max_connections,
            max_connections_per_peer=CONNECTIONS_PER_PEER,
            dial_timeout=HANDSHAKE_SECONDS,
            inbound_upgrade_timeout=HANDSHAKE_SECONDS,
            outbound_upgrade_timeout=HANDSHAKE_SECONDS,
            inbound_stream_protocol_negotiation_timeout=HANDSHAKE_SECONDS,
            outbound_stream_protocol_negotiation_timeout=HANDSHAKE_SECONDS,
        ),
    )
    return BasicHost(swarm, announce_addrs=announce, disable_identify_address_discovery=True)


async def dial(host: BasicHost, peer: ID, address: Multiaddr) -> None:
    """One attempt at one address. `connect` tries one address a peer, waits 250 ms and after a failure refuses for 60 s."""
    swarm = host.get_network()
    assert isinstance(swarm, Swarm)
    swarm.unblock_peer(peer)
    with trio.fail_after(HANDSHAKE_SECONDS):  # upstream sets no limit to an outbound Noise handshake
        await swarm.dial_addr(address, peer)


async def close_all(host: BasicHost) -> None:
    """Stops listening and says goodbye to everybody at once. Upstream goes from one to the next and sleeps 0.2 s with each."""
    swarm = host.get_network()
    async with trio.open_nursery() as nursery:
        for listener in swarm.listeners.values():
            nursery.start_soon(listener.close)
        for connection in swarm.get_connections():
            connection.event_closed.set()  # type: ignore[attr-defined]  # nobody needs to hear of it: everything ends now
            nursery.start_soon(connection.muxed_conn.close)
    swarm.connections.clear()
