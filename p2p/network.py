"""The mesh as the rest of the program sees it: typed topics, direct requests, and who is connected."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import trio

M = TypeVar("M")
Q = TypeVar("Q")
A = TypeVar("A")
M_contra = TypeVar("M_contra", contravariant=True)

PeerId = str
"""A libp2p peer id in its usual text form (base58btc, `12D3Koo...` for ed25519)."""


@dataclass(frozen=True, slots=True)
class Topic(Generic[M]):
    """A gossip topic and the one message type it carries.

    `decode` raises `consensus.errors.Reject` for anything that is not exactly one valid message;
    `max_bytes` bounds the encoded message and is checked before `decode` sees it.
    """

    name: str
    encode: Callable[[M], bytes]
    decode: Callable[[bytes], M]
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Exchange(Generic[Q, A]):
    """A direct request and its answer over one stream. Frames are uvarint length + payload, as in js-libp2p's length-prefixed."""

    protocol: str
    encode_request: Callable[[Q], bytes]
    decode_request: Callable[[bytes], Q]
    encode_answer: Callable[[A], bytes]
    decode_answer: Callable[[bytes], A]
    max_request_bytes: int
    max_answer_bytes: int


@dataclass(frozen=True, slots=True)
class Received(Generic[M]):
    """A message that passed its rule, with the peer that signed and first published it (never the forwarder)."""

    message: M
    source: PeerId


@dataclass(slots=True)
class Counters:
    """What the mesh did since it opened. `rejected` and `ignored` count by error code, `peers` is the number connected now."""

    published: int = 0
    delivered: int = 0
    duplicates: int = 0
    dropped: int = 0
    """Accepted, but the reader was behind."""
    unsent: int = 0
    """Frames for a peer that reads too slowly."""
    refused_streams: int = 0
    cut_off: int = 0
    peers: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)

    def reject(self, code: str) -> None:
        self.rejected[code] = self.rejected.get(code, 0) + 1

    def ignore(self, code: str) -> None:
        self.ignored[code] = self.ignored.get(code, 0) + 1


class Rule(Protocol[M_contra]):
    """Judges a decoded message of a peer: returns to accept, raises `Reject` or `Ignore`. Other exceptions count as Ignore."""

    async def __call__(self, message: M_contra, source: PeerId, /) -> None: ...


class Network(Protocol):
    """One peer's place in the mesh. Adapters: `p2p.host` (libp2p) and `p2p.memory` (a whole network in one process)."""

    @property
    def peer_id(self) -> PeerId: ...

    @property
    def addresses(self) -> tuple[str, ...]:
        """The multiaddrs this peer listens on, each ending in /p2p/<peer id>. Empty when it listens nowhere."""
        ...

    def subscribe(
        self, topic: Topic[M], rule: Rule[M], *, capacity: int
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[Received[M]]]:
        """Joins the topic until the context ends. Messages that pass `rule` arrive once each, own ones included never.

        At most `capacity` accepted messages wait; when the reader falls behind, the newest are dropped and counted.
        """
        ...

    async def publish(self, topic: Topic[M], message: M) -> None:
        """Signs and gossips. Returns when the message is queued to the mesh; raises `Invalid` over the topic's size."""
        ...

    async def request(self, peer: PeerId, exchange: Exchange[Q, A], message: Q) -> A:
        """Asks one peer over a direct stream. Raises `Transient` when it cannot be reached or hangs up, `Reject` when the
        answer is malformed. The caller sets the deadline."""
        ...

    def serve(self, exchange: Exchange[Q, A], handler: Callable[[Q, PeerId], Awaitable[A]]) -> AbstractAsyncContextManager[None]:
        """Answers `exchange` until the context ends. The handler's `PeerId` is the authenticated remote; its `Reject` or `Ignore`
        closes the stream."""
        ...

    @property
    def counters(self) -> Counters:
        """What the mesh did since it opened, for metrics. Live: read it, never write it."""
        ...

    def connected(self) -> frozenset[PeerId]: ...

    def topic_peers(self, topic: Topic[M]) -> frozenset[PeerId]:
        """Peers known to subscribe to the topic."""
        ...
