"""The gossipsub mesh: who is in it, what is queued for whom. py-libp2p's router, without what costs or harms."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import trio
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID, PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.rpc_queue import RpcQueue

from p2p.framing import frame
from p2p.limits import Rate
from p2p.network import Counters

MAX_RPC_BYTES = 1024 * 1024  # go-libp2p's limit: what any peer may send us in one frame
OUTBOX_FRAMES = 1024  # a burst of 200 messages with their forwards, five times over
OUTBOX_BYTES = 8 * 1024 * 1024
WRITE_BATCH_BYTES = 48 * 1024  # below one Noise packet and one Yamux frame of 64 KiB
CONTROL_ENTRIES = 64
CONTROL_IDS = 256
REPLAY_SECONDS = 2.0
REPLAY_TOPICS = 256  # a connection
FLOOD_TO = 16
"""A message of our own goes straight to this many subscribers, not only along the mesh: one hop is the latency that counts."""


@dataclass(frozen=True, slots=True)
class GossipConfig:
    """Tuning. Rates are messages a second."""

    heartbeat: float = 1.0
    degree: int = 4
    degree_low: int = 3
    degree_high: int = 6
    """A mesh of 4 reaches a hundred peers in four hops and costs a small network a third of gossipsub's usual duplicates."""
    per_source: Rate = field(default_factory=lambda: Rate(per_second=100.0, burst=512))
    """What one signer may publish; more is ignored."""
    per_stream: Rate = field(default_factory=lambda: Rate(per_second=1000.0, burst=4096))
    """What one neighbour may hand us, duplicates included; more makes it wait."""
    rule_timeout: float = 30.0


class Outbox(RpcQueue):
    """Frames on their way to one peer: encoded once for all peers, written in batches, dropped when the peer reads too slowly."""

    def __init__(self, counters: Counters) -> None:
        super().__init__(max_size=OUTBOX_FRAMES, max_message_size=MAX_RPC_BYTES // 2)
        self._urgent: deque[bytes] = deque()
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._wake = trio.Event()
        self._ended = False
        self._counters = counters
        self._replayed: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._urgent) + len(self._frames)

    def push(self, rpc: rpc_pb2.RPC, priority: bool = False) -> bool:
        return self.push_frame(frame(rpc.SerializeToString()), priority=priority)

    def push_frame(self, data: bytes, *, priority: bool = False) -> bool:
        if self._ended or len(self) >= OUTBOX_FRAMES or self._bytes + len(data) > OUTBOX_BYTES:
            self._counters.unsent += 1
            return False
        (self._urgent if priority else self._frames).append(data)
        self._bytes += len(data)
        self._wake.set()
        return True

    def may_replay(self, topic: str, now: float) -> bool:
        if self._replayed.get(topic, -REPLAY_SECONDS) + REPLAY_SECONDS > now or len(self._replayed) >= REPLAY_TOPICS:
            return False
        self._replayed[topic] = now
        return True

    async def take(self) -> bytes | None:
        """The next frames in one piece, urgent ones first, or None once the queue is closed."""
        while not len(self):
            if self._ended:
                return None
            self._wake = trio.Event()
            await self._wake.wait()
        batch: list[bytes] = []
        size = 0
        while len(self):
            queue = self._urgent or self._frames
            if batch and size + len(queue[0]) > WRITE_BATCH_BYTES:
                break
            batch.append(queue.popleft())
            size += len(batch[-1])
        self._bytes -= size
        return batch[0] if len(batch) == 1 else b"".join(batch)

    def close(self) -> None:
        super().close()
        self._ended = True
        self._urgent.clear()
        self._frames.clear()
        self._bytes = 0
        self._wake.set()


class Router(GossipSub):
    """The mesh and its control messages, without scoring, spam guesses and signed address records."""

    def __init__(self, config: GossipConfig) -> None:
        super().__init__(
            # 1.2 and later add an IDONTWANT frame a message and neighbour, which costs more than the small duplicates it saves.
            protocols=[PROTOCOL_ID_V11, PROTOCOL_ID],
            degree=config.degree,
            degree_low=config.degree_low,
            degree_high=config.degree_high,
            heartbeat_initial_delay=0.1,
            heartbeat_interval=config.heartbeat,  # type: ignore[arg-type]  # annotated int, used as trio.sleep's seconds
            time_to_live=60,
            prune_back_off=10,
            unsubscribe_back_off=2,
            adaptive_gossip_enabled=False,  # stretches the heartbeat to 30-60 s
            spam_protection_enabled=False,  # drops above 10 messages a second and forwarder, our own included
            eclipse_protection_enabled=False,  # counts addresses: peers of a devnet share one
        )
        self.scorer = None  # lies are counted by `Standing`, which tells IGNORE from REJECT

    def outbox(self, peer: ID) -> Outbox | None:
        return self.pubsub.peer_queues.get(peer) if self.pubsub is not None else None  # type: ignore[return-value]

    def spread(self, message: rpc_pb2.Message, *, own: bool, skip: Iterable[ID]) -> None:
        """Sends along the mesh; a message of our own straight to more subscribers too. Never blocks."""
        assert self.pubsub is not None
        topic = message.topicIDs[0]
        self.mcache.put(message)
        targets = set(self.mesh.get(topic, ()))
        if own:
            others = self.pubsub.peer_topics.get(topic, set()) - targets
            targets.update(self.select_from_minus(FLOOD_TO - len(targets), others, ()))
        targets.difference_update(skip)
        data = frame(rpc_pb2.RPC(publish=[message]).SerializeToString())
        for peer in targets:
            outbox = self.outbox(peer)
            if outbox is not None:
                outbox.push_frame(data)

    async def publish(self, msg_forwarder: ID, pubsub_msg: rpc_pb2.Message) -> None:
        self.spread(pubsub_msg, own=False, skip=(msg_forwarder, ID(pubsub_msg.from_id)))

    def send_rpc(self, peer_id: ID, rpc: rpc_pb2.RPC, priority: bool = False) -> None:
        outbox = self.outbox(peer_id)
        if outbox is None:
            return
        for part in [rpc] if rpc.ByteSize() <= outbox.max_message_size else outbox.split_rpc(rpc):
            if not outbox.push(part, priority=priority) and part.HasField("control"):
                self._push_control_retry(peer_id, part.control)

    async def emit_control_message(self, control_msg: rpc_pb2.ControlMessage, to_peer: ID) -> None:
        self.send_rpc(to_peer, rpc_pb2.RPC(control=control_msg), priority=True)

    def remove_peer(self, peer_id: ID) -> None:
        super().remove_peer(peer_id)
        for backing_off in self.back_off.values():
            backing_off.pop(peer_id, None)  # upstream remembers every peer that ever pruned us

    async def flush_pending_messages(self, peer_id: ID) -> None:
        """Nothing is ever pending: who subscribes late is served from the message cache."""

    async def send_recent_messages(self, peer_id: ID, topic: str) -> None:
        """Once every few seconds at most: whoever joins and leaves in a circle does not get it all each time."""
        outbox = self.outbox(peer_id)
        if outbox is None or not outbox.may_replay(topic, trio.current_time()):
            return
        for message in filter(None, map(self.mcache.get, self.mcache.window(topic))):
            outbox.push(rpc_pb2.RPC(publish=[message]))

    async def handle_rpc(self, rpc: rpc_pb2.RPC, sender_peer_id: ID) -> None:
        """Only what concerns our topics, and not too much of it: upstream keeps a record a topic that any peer can name."""
        rpc.ClearField("senderRecord")
        control = rpc.control
        for entries in (control.ihave, control.iwant, control.graft, control.prune):
            del entries[CONTROL_ENTRIES:]
        for named in (control.ihave, control.graft, control.prune):
            for index in reversed(range(len(named))):
                if named[index].topicID not in self.mesh:
                    del named[index]
        control.ClearField("idontwant")  # of 1.2, which we do not speak
        for ihave in control.ihave:
            del ihave.messageIDs[CONTROL_IDS:]
        for iwant in control.iwant:
            del iwant.messageIDs[CONTROL_IDS:]
        for prune in control.prune:
            prune.backoff = min(prune.backoff, 60)
            prune.ClearField("peers")
        await super().handle_rpc(rpc, sender_peer_id)
