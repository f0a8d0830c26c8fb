"""Gossip over py-libp2p's gossipsub: signed messages, judged once each by our own rules, forwarded by our own hand.

py-libp2p keeps what it does well: subscriptions, streams, the mesh and its control messages. Everything a message of a peer can
touch is ours, because in 0.8.1 one unparsable key kills the node, duplicates are validated again while the first is still being
validated, a verdict is yes or no, and much of the CPU goes into address records that nobody reads.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

import structlog
import trio
from libp2p.abc import IHost, INetStream
from libp2p.crypto.keys import PublicKey
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX

from consensus.errors import Ignore, Reject
from p2p.framing import BrokenFrame, EndOfStream, FrameReader
from p2p.inbox import Gate, Inbox, Verdict, encoded
from p2p.limits import PASSED_ON, WHOLE_LIE, RateLimiter, Seen, Standing
from p2p.network import Counters, PeerId, Received, Rule, Topic
from p2p.router import MAX_RPC_BYTES, GossipConfig, Outbox, Router

M = TypeVar("M")

log = structlog.get_logger()

JUDGED_AT_ONCE = 256
JUDGED_AT_ONCE_PER_STREAM = 64  # three neighbours with slow messages do not stop the fourth
HANDLED_AT_A_TIME = 16  # some milliseconds when each needs its signature checked
STREAMS_PER_PEER = 4  # one in use, and those of connections that are just dying
TOPICS_PER_PEER = 64
TOPIC_NAME_BYTES = 128
SEEN_SECONDS = 120.0
SEEN_MESSAGES = 65_536
_SIGNING_PREFIX = PUBSUB_SIGNING_PREFIX.encode()


class _SeenIds(Seen[bytes]):
    """The seen set under the names that gossipsub's IHAVE handling uses."""

    def __init__(self) -> None:
        super().__init__(SEEN_SECONDS, SEEN_MESSAGES)

    def has(self, key: bytes) -> bool:
        return key in self


@dataclass(frozen=True, slots=True)
class _Signer:
    peer_id: PeerId
    public_key: PublicKey
    key_field: bytes


@lru_cache(maxsize=4096)
def _signer(from_id: bytes) -> _Signer:
    """The signer whose key its peer id holds (ed25519 and secp256k1 do). Raises on anything else."""
    peer = ID(from_id)
    key = peer.extract_public_key()
    if key is None or ID.from_pubkey(key) != peer:
        raise ValueError("the peer id does not hold its key")
    return _Signer(peer.to_base58(), key, key.serialize())


@dataclass(slots=True)
class _Lane:
    """One neighbour's stream: how much of its traffic is being judged."""

    peer: ID
    name: PeerId
    handled: int = 0
    slots: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(JUDGED_AT_ONCE_PER_STREAM))


class Gossip(Pubsub):
    """Topics, typed: `subscribe_to` and `publish_to` are the port's `subscribe` and `publish`.

    `blamed` is called once with a peer that has just been cut off.
    """

    def __init__(
        self,
        host: IHost,
        config: GossipConfig,
        *,
        gate: Gate,
        standing: Standing[PeerId],
        counters: Counters,
        nursery: trio.Nursery,
        blamed: Callable[[PeerId], None],
    ) -> None:
        self.mesh = Router(config)
        super().__init__(
            host,
            self.mesh,
            strict_signing=True,
            max_subscriptions_per_rpc=TOPICS_PER_PEER,
            max_subscriptions_per_peer=TOPICS_PER_PEER,
            max_inbound_rpc_size=MAX_RPC_BYTES,
        )
        self.seen_messages.stop()  # ends upstream's thread: this one needs none
        self.seen_messages = self._seen = _SeenIds()  # type: ignore[assignment]
        # Upstream counts from the second it started at: a busy node would reuse ids after a restart and be taken for an echo.
        self.counter = time.time_ns()
        self._config = config
        self._gate = gate
        self._standing = standing
        self._counters = counters
        self._nursery = nursery
        self._blamed = blamed
        self._inboxes: dict[str, Inbox[Any]] = {}
        self._in_flight: dict[bytes, set[ID]] = {}
        self._slots = trio.Semaphore(JUDGED_AT_ONCE)
        self._per_source: RateLimiter[PeerId] = RateLimiter(config.per_source)
        self._per_stream: RateLimiter[PeerId] = RateLimiter(config.per_stream)
        self._streams: dict[ID, int] = {}
        self._me = host.get_id()
        self._my_id_bytes = self._me.to_bytes()
        self._my_key = host.get_public_key().serialize()

    # -- the port

    @asynccontextmanager
    async def subscribe_to(
        self, topic: Topic[M], rule: Rule[M], *, capacity: int
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Received[M]]]:
        if topic.name in self._inboxes:
            raise ValueError(f"already subscribed to {topic.name}")
        inbox = Inbox(
            topic,
            rule,
            capacity=capacity,
            gate=self._gate,
            counters=self._counters,
            rule_timeout=self._config.rule_timeout,
        )
        self._inboxes[topic.name] = inbox
        try:
            await self.subscribe(topic.name)
            yield inbox.receive
        finally:
            del self._inboxes[topic.name]
            inbox.close()
            # Sends to queues only, but through checkpoints: neighbours should hear of it when we are cancelled, too.
            with trio.CancelScope(shield=True):
                await self.unsubscribe(topic.name)

    async def publish_to(self, topic: Topic[M], message: M) -> None:
        data = encoded(topic, message)
        await trio.lowlevel.checkpoint()
        self.mesh.spread(self._signed(topic.name, data), own=True, skip=())
        self._counters.published += 1

    def _signed(self, topic: str, data: bytes) -> rpc_pb2.Message:
        message = rpc_pb2.Message(data=data, topicIDs=[topic], from_id=self._my_id_bytes, seqno=self._next_seqno())
        assert self.sign_key is not None
        message.signature = self.sign_key.sign(_SIGNING_PREFIX + message.SerializeToString())
        message.key = self._my_key
        self._seen.add(message.from_id + message.seqno, trio.current_time())
        return message

    # -- from the wire

    async def stream_handler(self, stream: INetStream) -> None:
        """Reads one neighbour's stream to its end. Whatever arrives, only this stream suffers."""
        peer = stream.muxed_conn.peer_id
        if self._streams.get(peer, 0) >= STREAMS_PER_PEER or self._standing.refused(peer.to_base58(), trio.current_time()):
            self._counters.refused_streams += 1
            await stream.reset()
            return
        self._streams[peer] = self._streams.get(peer, 0) + 1
        try:
            await self.continuously_read_stream(stream)
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]
                self._forget_all_subscriptions(peer)
            with trio.CancelScope(shield=True), trio.move_on_after(1), suppress(Exception):
                await stream.close()  # the other side may have ended only its half

    async def continuously_read_stream(self, stream: INetStream) -> None:
        lane = _Lane(stream.muxed_conn.peer_id, stream.muxed_conn.peer_id.to_base58())
        reader = FrameReader(stream.read)
        try:
            while True:
                data = await reader.next(MAX_RPC_BYTES)
                try:
                    rpc = rpc_pb2.RPC.FromString(data)
                except Exception as error:
                    raise BrokenFrame(f"not an RPC: {error!r}") from error
                await self._handle(rpc, lane)
        except (EndOfStream, StreamEOF):
            return
        except BrokenFrame as error:
            self._blame(lane.name, "BROKEN_RPC", str(error))
        except Exception as error:  # noqa: BLE001 - the guard: upstream raises a dozen kinds, and one that escapes ends the node
            log.debug("gossip_stream_lost", peer=lane.name, error=repr(error))
        await stream.reset()
        self._handle_dead_peer(lane.peer)

    async def _handle(self, rpc: rpc_pb2.RPC, lane: _Lane) -> None:
        if len(rpc.subscriptions) > TOPICS_PER_PEER:
            raise BrokenFrame(f"{len(rpc.subscriptions)} subscriptions")
        await self._pace(lane)
        for change in rpc.subscriptions:
            await self._pace(lane)
            if len(change.topicid) <= TOPIC_NAME_BYTES:
                self.handle_subscription(lane.peer, change)
        for message in rpc.publish:
            await self._pace(lane)
            await self._receive(message, lane)
        if rpc.HasField("control"):
            await self.mesh.handle_rpc(rpc, lane.peer)

    async def _pace(self, lane: _Lane) -> None:
        """Lets whoever hands us too much wait, and now and then lets others run."""
        lane.handled += 1
        if lane.handled % HANDLED_AT_A_TIME == 0:
            await trio.lowlevel.checkpoint()
        while wait := self._per_stream.wait_for(lane.name, trio.current_time()):  # noqa: ASYNC110 - tokens come with time alone
            await trio.sleep(wait)

    async def _receive(self, message: rpc_pb2.Message, lane: _Lane) -> None:
        """Cheap before dear: known, well-formed, in standing, allowed, small; then the signature, the rate and the rule."""
        now = trio.current_time()
        message_id = message.from_id + message.seqno
        if message_id in self._seen:
            self._counters.duplicates += 1
            senders = self._in_flight.get(message_id)
            if senders is not None:
                senders.add(lane.peer)
            return
        if len(message.topicIDs) != 1 or len(message.seqno) != 8:
            self._blame(lane.name, "MALFORMED", "not one topic and eight bytes of sequence number")
            return
        inbox = self._inboxes.get(message.topicIDs[0])
        if inbox is None or message.from_id == self._my_id_bytes:
            return
        try:
            signer = _signer(message.from_id)
        except Exception as error:  # noqa: BLE001 - whatever upstream's key parsing raises, it is the sender's
            self._blame(lane.name, "BAD_KEY", repr(error))
            return
        if self._standing.refused(signer.peer_id, now):
            self._counters.ignore("CUT_OFF")
            return
        try:
            inbox.check_gate(signer.peer_id)
            inbox.check_size(message.data)
            _check_signature(message, signer)
        except Ignore as error:
            self._counters.ignore(error.code)
            return
        except Reject as error:
            # The signature is not proven, so the signer is not to blame; whoever passed it on should have looked.
            self._blame(lane.name, error.code, error.detail)
            return
        self._seen.add(message_id, now)
        if not self._per_source.allow(signer.peer_id, now):
            self._counters.ignore("RATE_LIMITED")
            return
        await lane.slots.acquire()
        await self._slots.acquire()
        self._in_flight[message_id] = {lane.peer}
        self._nursery.start_soon(self._judge, inbox, message, message_id, signer.peer_id, lane)

    async def _judge(self, inbox: Inbox[Any], message: rpc_pb2.Message, message_id: bytes, source: PeerId, lane: _Lane) -> None:
        try:
            verdict = await inbox.judge(message.data, source)
        finally:
            lane.slots.release()
            self._slots.release()
            senders = self._in_flight.pop(message_id)
        if verdict is Verdict.ACCEPT:
            self.mesh.spread(message, own=False, skip=(*senders, ID(message.from_id)))
        elif verdict is Verdict.REJECT:
            self._count_lie(source, WHOLE_LIE)
            if source != lane.name:
                self._count_lie(lane.name, PASSED_ON)

    def _blame(self, peer: PeerId, code: str, detail: str) -> None:
        self._counters.reject(code)
        log.info("peer_blamed", peer=peer, code=code, detail=detail)
        self._count_lie(peer, WHOLE_LIE)

    def _count_lie(self, peer: PeerId, weight: float) -> None:
        if self._standing.blame(peer, weight, trio.current_time()):
            self._blamed(peer)

    # -- what upstream would do with signed address records, 32-entry queues and one try

    def get_hello_packet(self) -> rpc_pb2.RPC:
        return rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=topic) for topic in self.topic_ids])

    def _build_announce_rpc(self, topic_id: str, subscribe: bool) -> tuple[rpc_pb2.RPC, rpc_pb2.RPC.SubOpts]:
        change = rpc_pb2.RPC.SubOpts(subscribe=subscribe, topicid=topic_id)
        return rpc_pb2.RPC(subscriptions=[change]), change

    def _forget_all_subscriptions(self, peer_id: ID) -> None:
        """Upstream forgets them when our stream to the peer breaks, but they are as good as the peer's stream to us."""
        if not (self._streams.get(peer_id) and self._peer_is_connected(peer_id)):
            super()._forget_all_subscriptions(peer_id)

    async def _handle_new_peer(self, peer_id: ID) -> None:
        if peer_id in self.peers or self._standing.refused(peer_id.to_base58(), trio.current_time()):
            return
        try:
            stream = await self.host.new_stream(peer_id, self.protocols)
        except Exception as error:
            # The only kind that upstream tries again: a negotiation that a busy machine let time out is not the end.
            raise SwarmException(f"no gossip stream to {peer_id}: {error!r}") from error
        if peer_id in self.peers:  # the other end of a simultaneous dial was faster
            await stream.reset()
            return
        outbox = Outbox(self._counters)
        # Registered before the hello is written: a topic joined meanwhile is announced through the outbox.
        self.router.add_peer(peer_id, stream.get_protocol())
        self.peers[peer_id] = stream
        self.peer_queues[peer_id] = outbox
        outbox.push(self.get_hello_packet(), priority=True)
        self.manager.run_task(self.handle_sending_messages, peer_id, stream, outbox)
        await self._send_recent_messages_to_new_peer(peer_id)

    async def handle_sending_messages(self, peer_id: ID, stream: INetStream, queue: RpcQueue) -> None:
        assert isinstance(queue, Outbox)
        try:
            while (batch := await queue.take()) is not None:
                await stream.write(batch)
        except Exception as error:  # noqa: BLE001 - the guard, as above
            log.debug("gossip_stream_lost", peer=peer_id.to_base58(), error=repr(error))
            self._handle_dead_peer(peer_id)


def _check_signature(message: rpc_pb2.Message, signer: _Signer) -> None:
    """Raises `Reject` unless the signer signed exactly this. The key field is optional, but may not contradict the peer id."""
    if message.key and message.key != signer.key_field:
        raise Reject("BAD_KEY", "the key field is not the signer's")
    signed = rpc_pb2.Message(
        from_id=message.from_id, data=message.data, seqno=message.seqno, topicIDs=message.topicIDs
    ).SerializeToString()
    try:
        genuine = signer.public_key.verify(_SIGNING_PREFIX + signed, message.signature)
    except Exception:  # noqa: BLE001 - upstream raises ValueError, TypeError and others for a signature of the wrong shape
        genuine = False
    if not genuine:
        raise Reject("BAD_SIGNATURE", "")
