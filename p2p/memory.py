"""A whole network in one process: the same port, with links that delay, drop and break on command, and room for hostile peers."""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog
import trio

from consensus.errors import Ignore, Invalid, Reject, Transient
from p2p.background import background_tasks
from p2p.inbox import Gate, Inbox, Verdict, encoded, open_gate
from p2p.limits import WHOLE_LIE, Standing
from p2p.network import Counters, Exchange, PeerId, Received, Rule, Topic

M = TypeVar("M")
Q = TypeVar("Q")
A = TypeVar("A")

Latency = Callable[[PeerId, PeerId], float]
"""Seconds from one peer to another."""

Loss = Callable[[PeerId, PeerId, str], bool]
"""Is the message from one peer to another on the topic of that name lost? Asked once a message and receiver."""

WAITING_FRAMES = 1024  # as in the real outbox: what a slow link holds before it drops
HANDLERS_AT_ONCE = 32

log = structlog.get_logger()


def no_latency(_source: PeerId, _target: PeerId) -> float:
    return 0.0


def no_loss(_source: PeerId, _target: PeerId, _topic: str) -> bool:
    return False


@dataclass(order=True, slots=True)
class _Envelope:
    due: float
    number: int
    source: PeerId = field(compare=False)
    data: bytes = field(compare=False)


class _Mailbox:
    """Messages on their way to one subscription, handed out when due, the earliest sent first."""

    def __init__(self) -> None:
        self._heap: list[_Envelope] = []
        self._changed = trio.Event()

    def post(self, envelope: _Envelope) -> bool:
        if len(self._heap) >= WAITING_FRAMES:
            return False
        heapq.heappush(self._heap, envelope)
        self._changed.set()
        return True

    async def next(self) -> _Envelope:
        while True:
            if self._heap and self._heap[0].due <= trio.current_time():
                return heapq.heappop(self._heap)
            self._changed = trio.Event()
            with trio.move_on_at(self._heap[0].due) if self._heap else trio.CancelScope():
                await self._changed.wait()


@dataclass(slots=True)
class _Call:
    """One request on its way to a handler, and the place where its answer appears."""

    data: bytes
    source: PeerId
    done: trio.Event = field(default_factory=trio.Event)
    answer: bytes | None = None


@dataclass(slots=True)
class _Served:
    calls: trio.MemorySendChannel[_Call]
    max_request_bytes: int


class MemoryMesh:
    """Peers that join see each other at once, until they are cut off.

    `latency` and `loss` are asked per message; give functions of their arguments to stay deterministic. Works under
    a virtual clock: nothing but the latencies takes time.
    """

    def __init__(self, *, latency: Latency = no_latency, loss: Loss = no_loss) -> None:
        self.latency = latency
        self.loss = loss
        self._peers: dict[PeerId, MemoryNetwork] = {}
        self._cut_peers: set[PeerId] = set()
        self._cut_links: set[frozenset[PeerId]] = set()
        self._sent = 0

    def join(self, peer_id: PeerId, *, gate: Gate = open_gate) -> MemoryNetwork:
        """A new peer. A peer that joined before comes back with nothing: its old network is dead from here on."""
        network = self._peers[peer_id] = MemoryNetwork(self, peer_id, gate)
        return network

    def leave(self, peer_id: PeerId) -> None:
        """The peer is gone, as after SIGKILL."""
        self._peers.pop(peer_id, None)

    def cut(self, peer_id: PeerId) -> None:
        """Nothing reaches the peer and nothing leaves it, until `restore`."""
        self._cut_peers.add(peer_id)

    def restore(self, peer_id: PeerId) -> None:
        self._cut_peers.discard(peer_id)

    def cut_link(self, one: PeerId, other: PeerId) -> None:
        """The two do not hear each other, in either direction. What a third would pass on is lost too."""
        self._cut_links.add(frozenset((one, other)))

    def restore_link(self, one: PeerId, other: PeerId) -> None:
        self._cut_links.discard(frozenset((one, other)))

    def inject(self, source: PeerId, topic: str, data: bytes, *, to: PeerId | None = None) -> None:
        """Gossips raw bytes as a hostile peer would, properly signed by `source`, to everybody or to one."""
        for peer_id, network in tuple(self._peers.items()):
            if peer_id == source or (to is not None and peer_id != to) or not self._linked(source, peer_id):
                continue
            if self.loss(source, peer_id, topic):
                continue
            self._sent += 1
            due = trio.current_time() + self.latency(source, peer_id)
            network._post(topic, _Envelope(due, self._sent, source, data))

    async def inject_request(self, source: PeerId, to: PeerId, protocol: str, data: bytes) -> bytes:
        """Asks with raw bytes as a hostile peer would. Raises `Transient` when the other side hangs up."""
        if to not in self._peers or not self._linked(source, to):
            raise Transient("PEER_UNREACHABLE", to)
        await trio.sleep(self.latency(source, to))
        answer = await self._peers[to]._answer(protocol, data, source)
        await trio.sleep(self.latency(to, source))
        if answer is None or to not in self._peers or not self._linked(source, to):
            raise Transient("PEER_HUNG_UP", f"{to} on {protocol}")
        return answer

    def _linked(self, one: PeerId, other: PeerId) -> bool:
        return not ({one, other} & self._cut_peers) and frozenset((one, other)) not in self._cut_links

    def _alive(self, network: MemoryNetwork) -> bool:
        return self._peers.get(network.peer_id) is network

    def _neighbours(self, peer_id: PeerId) -> dict[PeerId, MemoryNetwork]:
        return {other: net for other, net in self._peers.items() if other != peer_id and self._linked(peer_id, other)}


class MemoryNetwork:
    """One peer of a `MemoryMesh`; implements `p2p.network.Network`."""

    def __init__(self, mesh: MemoryMesh, peer_id: PeerId, gate: Gate) -> None:
        self._mesh = mesh
        self._peer_id = peer_id
        self._gate = gate
        self._counters = Counters()
        self._standing: Standing[PeerId] = Standing()
        self._mailboxes: dict[str, _Mailbox] = {}
        self._served: dict[str, _Served] = {}

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        return (f"/memory/{self._peer_id}/p2p/{self._peer_id}",)

    @property
    def counters(self) -> Counters:
        self._counters.peers = len(self.connected())
        return self._counters

    @asynccontextmanager
    async def subscribe(
        self, topic: Topic[M], rule: Rule[M], *, capacity: int
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Received[M]]]:
        if topic.name in self._mailboxes:
            raise ValueError(f"already subscribed to {topic.name}")
        inbox = Inbox(topic, rule, capacity=capacity, gate=self._gate, counters=self._counters)
        mailbox = self._mailboxes[topic.name] = _Mailbox()
        async with background_tasks() as nursery:
            nursery.start_soon(self._receive, mailbox, inbox, nursery)
            try:
                yield inbox.receive
            finally:
                del self._mailboxes[topic.name]
                inbox.close()

    async def publish(self, topic: Topic[M], message: M) -> None:
        data = encoded(topic, message)
        await trio.lowlevel.checkpoint()
        if self._mesh._alive(self):
            self._counters.published += 1
            self._mesh.inject(self._peer_id, topic.name, data)

    async def request(self, peer: PeerId, exchange: Exchange[Q, A], message: Q) -> A:
        data = exchange.encode_request(message)
        if len(data) > exchange.max_request_bytes:
            raise Invalid(exchange.protocol, f"request of {len(data)} bytes", code="TOO_LARGE")
        if peer == self._peer_id:
            answer = await self._answer(exchange.protocol, data, peer)
            if answer is None:
                raise Transient("PEER_HUNG_UP", f"{peer} on {exchange.protocol}")
        else:
            answer = await self._mesh.inject_request(self._peer_id, peer, exchange.protocol, data)
        if len(answer) > exchange.max_answer_bytes:
            self._blame(peer)
            raise Transient("PEER_HUNG_UP", f"{peer} on {exchange.protocol}: oversized answer")
        try:
            return exchange.decode_answer(answer)
        except Reject as error:
            self._counters.reject(error.code)
            if peer != self._peer_id:
                self._blame(peer)
            raise

    @asynccontextmanager
    async def serve(self, exchange: Exchange[Q, A], handler: Callable[[Q, PeerId], Awaitable[A]]) -> AsyncIterator[None]:
        if exchange.protocol in self._served:
            raise ValueError(f"already serving {exchange.protocol}")
        send, receive = trio.open_memory_channel[_Call](HANDLERS_AT_ONCE)
        self._served[exchange.protocol] = _Served(send, exchange.max_request_bytes)
        async with background_tasks() as nursery:
            nursery.start_soon(self._answer_calls, exchange, handler, receive, nursery)
            try:
                yield
            finally:
                del self._served[exchange.protocol]
                with suppress(trio.WouldBlock):
                    while True:  # not yet taken up: whoever waits sees a closed stream
                        receive.receive_nowait().done.set()
                receive.close()

    def connected(self) -> frozenset[PeerId]:
        if not self._mesh._alive(self):
            return frozenset()
        return frozenset(self._mesh._neighbours(self._peer_id))

    def topic_peers(self, topic: Topic[Any]) -> frozenset[PeerId]:
        if not self._mesh._alive(self):
            return frozenset()
        return frozenset(peer for peer, net in self._mesh._neighbours(self._peer_id).items() if topic.name in net._mailboxes)

    def _post(self, topic: str, envelope: _Envelope) -> None:
        mailbox = self._mailboxes.get(topic)
        if mailbox is not None and not mailbox.post(envelope):
            self._counters.unsent += 1

    async def _receive(self, mailbox: _Mailbox, inbox: Inbox[M], nursery: trio.Nursery) -> None:
        while True:
            envelope = await mailbox.next()
            if not self._mesh._alive(self) or not self._mesh._linked(envelope.source, self._peer_id):
                continue  # cut while the message was under way
            if self._standing.refused(envelope.source, trio.current_time()):
                self._counters.ignore("CUT_OFF")
                continue
            try:
                inbox.check_gate(envelope.source)
                inbox.check_size(envelope.data)
            except Ignore as error:
                self._counters.ignore(error.code)
            except Reject as error:
                self._counters.reject(error.code)
                self._blame(envelope.source)
            else:
                nursery.start_soon(self._judge, inbox, envelope)

    async def _judge(self, inbox: Inbox[M], envelope: _Envelope) -> None:
        if await inbox.judge(envelope.data, envelope.source) is Verdict.REJECT:
            self._blame(envelope.source)

    def _blame(self, peer: PeerId) -> None:
        if self._standing.blame(peer, WHOLE_LIE, trio.current_time()):
            self._counters.cut_off += 1
            log.warning("peer_cut_off", peer=peer)

    async def _answer(self, protocol: str, data: bytes, source: PeerId) -> bytes | None:
        """The answer's bytes, or None where a real peer would close the stream."""
        served = self._served.get(protocol)
        if served is None or len(data) > served.max_request_bytes or self._standing.refused(source, trio.current_time()):
            return None
        call = _Call(data, source)
        try:
            await served.calls.send(call)
        except trio.BrokenResourceError:
            return None
        await call.done.wait()
        return call.answer

    async def _answer_calls(
        self,
        exchange: Exchange[Q, A],
        handler: Callable[[Q, PeerId], Awaitable[A]],
        calls: trio.MemoryReceiveChannel[_Call],
        nursery: trio.Nursery,
    ) -> None:
        async def answer(call: _Call) -> None:
            try:
                reply = exchange.encode_answer(await handler(exchange.decode_request(call.data), call.source))
                if len(reply) <= exchange.max_answer_bytes:
                    call.answer = reply
            except Reject as error:
                self._counters.reject(error.code)
                self._blame(call.source)
            except Ignore as error:
                self._counters.ignore(error.code)
            except Exception as error:  # noqa: BLE001 - the guard: a handler that breaks closes its stream and nothing else
                log.warning("handler_failed", protocol=exchange.protocol, source=call.source, error=repr(error))
            finally:
                call.done.set()

        with suppress(trio.ClosedResourceError):  # closed under us: no longer served
            async for call in calls:
                nursery.start_soon(answer, call)
