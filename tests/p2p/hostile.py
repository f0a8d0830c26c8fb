"""A peer that speaks libp2p but keeps none of our rules: it writes what the test says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count

import trio
from libp2p.abc import INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.host.basic_host import BasicHost
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11
from libp2p.pubsub.pb import rpc_pb2
from multiaddr import Multiaddr

from p2p.framing import FrameReader, frame
from p2p.network import Network, PeerId
from p2p.upstream import build_host, dial

_numbers = count(1)


@dataclass
class Hostile:
    """One connection to the victim. `key` signs what `signed` makes."""

    host: BasicHost
    key: KeyPair
    victim: ID
    heard: list[rpc_pb2.RPC]
    """What the victim has sent on its gossip stream."""

    @property
    def peer_id(self) -> PeerId:
        return self.host.get_id().to_base58()

    @property
    def connected(self) -> bool:
        return bool(self.host.get_network().get_connections(self.victim))

    async def gossip_stream(self) -> INetStream:
        return await self.host.new_stream(self.victim, [PROTOCOL_ID_V11])

    async def stream(self) -> INetStream:
        """A stream on which nothing has been agreed yet."""
        return await self.host.get_network().new_stream(self.victim)

    def signed(self, topic: str, data: bytes, seqno: int | None = None) -> rpc_pb2.Message:
        message = rpc_pb2.Message(
            from_id=self.host.get_id().to_bytes(),
            data=data,
            seqno=(next(_numbers) if seqno is None else seqno).to_bytes(8, "big"),
            topicIDs=[topic],
        )
        message.signature = self.key.private_key.sign(b"libp2p-pubsub:" + message.SerializeToString())
        return message


def rpc(*messages: rpc_pb2.Message) -> bytes:
    """The messages as one gossipsub frame."""
    return frame(rpc_pb2.RPC(publish=messages).SerializeToString())


@asynccontextmanager
async def hostile(victim: Network) -> AsyncIterator[Hostile]:
    key = create_new_key_pair()
    host = build_host(key, max_connections=8, announce=None)
    heard: list[rpc_pb2.RPC] = []

    async def listen(stream: INetStream) -> None:
        reader = FrameReader(stream.read)
        with suppress(Exception):  # one that escapes would leave this host's connection half closed
            while True:
                heard.append(rpc_pb2.RPC.FromString(await reader.next(2**20)))

    host.set_stream_handler(PROTOCOL_ID_V11, listen)
    target = ID.from_base58(victim.peer_id)
    async with host.run([]):
        await dial(host, target, Multiaddr(victim.addresses[0]))
        yield Hostile(host, key, target, heard)
        with trio.CancelScope(shield=True), trio.move_on_after(1):
            await host.get_network().close_peer(target)
