"""Direct requests over one stream each: one frame there, one frame back, bounded in size, number and time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog
import trio
from libp2p.abc import INetStream
from libp2p.host.basic_host import BasicHost
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID

from consensus.errors import Ignore, Invalid, Reject, Transient
from p2p.framing import BrokenFrame, EndOfStream, FrameReader, frame, read_exact_frame
from p2p.limits import Rate, RateLimiter
from p2p.network import Counters, Exchange, PeerId

Q = TypeVar("Q")
A = TypeVar("A")

MULTISTREAM = b"/multistream/1.0.0\n"
LINE_BYTES = 256  # a protocol name and its newline
PROPOSALS = 8  # protocols a peer may propose on one stream before it is closed
STREAMS_PER_PEER = 24  # gossip, identify and a few exchanges at once
HANDLERS_AT_ONCE = 128

log = structlog.get_logger()

StreamHandler = Callable[[INetStream], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Seconds: `negotiate` to agree on a protocol, `read` to receive a whole request, `handle` until it is answered, `write`
    until the peer has taken the answer, which fills memory as long as it does not.

    `per_peer` is what one peer may open: a vote for each of a burst of tasks, and far below what would keep us busy.
    """

    negotiate: float = 5.0
    read: float = 10.0
    handle: float = 30.0
    write: float = 15.0
    per_peer: Rate = field(default_factory=lambda: Rate(per_second=100.0, burst=512))


class Streams:
    """Both ends of every stream of a host: accepts what comes in, opens what the port's `request` needs.

    `blame` is called with a peer that sent what no honest peer sends.
    """

    def __init__(
        self,
        host: BasicHost,
        *,
        counters: Counters,
        blame: Callable[[PeerId, str, str], None],
        refused: Callable[[PeerId], bool],
        limits: StreamLimits,
    ) -> None:
        self._host = host
        self._counters = counters
        self._blame = blame
        self._refused = refused
        self._limits = limits
        self._open: dict[ID, int] = {}
        self._opened: RateLimiter[ID] = RateLimiter(limits.per_peer)
        self._handlers = trio.Semaphore(HANDLERS_AT_ONCE)
        self._local: dict[str, tuple[Exchange[Any, Any], Callable[[Any, PeerId], Awaitable[Any]]]] = {}

    async def accept(self, stream: INetStream) -> None:
        """Serves one inbound stream to its end. In upstream an exception that leaves a stream's handler ends the whole host."""
        peer = stream.muxed_conn.peer_id
        if (
            self._open.get(peer, 0) >= STREAMS_PER_PEER
            or self._refused(peer.to_base58())
            or not self._opened.allow(peer, trio.current_time())
        ):
            self._counters.refused_streams += 1
            await _quietly(stream.reset)
            return
        self._open[peer] = self._open.get(peer, 0) + 1
        try:
            handler = None
            with trio.move_on_after(self._limits.negotiate):
                handler = await self._negotiate(stream)
            if handler is None:
                await stream.reset()
            else:
                await handler(stream)
        except Exception as error:  # noqa: BLE001 - the guard around every stream
            log.debug("stream_failed", peer=peer.to_base58(), error=repr(error))
            await _quietly(stream.reset)
        finally:
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]

    async def _negotiate(self, stream: INetStream) -> StreamHandler | None:
        """multistream-select, the answering side. Upstream's own believes any length and raises on bytes that are not UTF-8."""
        await stream.write(frame(MULTISTREAM))
        if await read_exact_frame(stream.read, LINE_BYTES) != MULTISTREAM:
            return None
        for _ in range(PROPOSALS):
            line = await read_exact_frame(stream.read, LINE_BYTES)
            protocol = line.removesuffix(b"\n").decode("utf-8", "replace")
            handler = self._host.multiselect.handlers.get(protocol)  # type: ignore[call-overload]
            if handler is not None:
                await stream.write(frame(line))
                stream.set_protocol(protocol)  # type: ignore[arg-type]
                return handler  # type: ignore[no-any-return]
            await stream.write(frame(b"na\n"))
        return None

    async def open(self, peer: ID, protocol: str, first: bytes) -> tuple[INetStream, FrameReader]:
        """A new stream with the protocol's name and the first frame in one write: one round trip, where upstream takes three."""
        stream = await self._host.get_network().new_stream(peer)
        try:
            name = protocol.encode() + b"\n"
            await stream.write(frame(MULTISTREAM) + frame(name) + frame(first))
            reader = FrameReader(stream.read)
            if await reader.next(LINE_BYTES) != MULTISTREAM or await reader.next(LINE_BYTES) != name:
                raise Transient("NOT_SERVED", f"{peer.to_base58()} does not speak {protocol}")
        except BaseException:
            with trio.CancelScope(shield=True):
                await _quietly(stream.reset)
            raise
        return stream, reader

    async def request(self, peer: ID, exchange: Exchange[Q, A], message: Q) -> A:
        data = exchange.encode_request(message)
        if len(data) > exchange.max_request_bytes:
            raise Invalid(
                exchange.protocol, f"request of {len(data)} bytes, at most {exchange.max_request_bytes}", code="TOO_LARGE"
            )
        name = peer.to_base58()
        if peer == self._host.get_id():
            return await self._ask_myself(exchange, data)
        answer = None
        try:
            stream, reader = await self.open(peer, exchange.protocol, data)
            try:
                answer = await reader.next(exchange.max_answer_bytes)
            finally:
                with trio.CancelScope(shield=True):
                    await _quietly(stream.reset if answer is None else stream.close)
        except Transient:
            raise
        except BrokenFrame as error:
            self._blame(name, "BROKEN_ANSWER", f"{exchange.protocol}: {error}")
            raise Transient("PEER_HUNG_UP", f"{name} on {exchange.protocol}: {error}") from error
        except (EndOfStream, StreamError) as error:
            raise Transient("PEER_HUNG_UP", f"{name} on {exchange.protocol}") from error
        except Exception as error:
            raise Transient("PEER_UNREACHABLE", f"{name} on {exchange.protocol}: {error!r}") from error
        try:
            return exchange.decode_answer(answer)
        except Reject as error:
            self._blame(name, error.code, f"{exchange.protocol}: {error}")
            raise

    @asynccontextmanager
    async def serve(self, exchange: Exchange[Q, A], handler: Callable[[Q, PeerId], Awaitable[A]]) -> AsyncIterator[None]:
        if exchange.protocol in self._local:
            raise ValueError(f"already serving {exchange.protocol}")

        running: set[trio.CancelScope] = set()

        async def answer_stream(stream: INetStream) -> None:
            with trio.CancelScope() as scope:
                running.add(scope)
                try:
                    await self._answer(stream, exchange, handler)
                finally:
                    running.discard(scope)
            if scope.cancelled_caught:
                await _quietly(stream.reset)

        self._local[exchange.protocol] = (exchange, handler)
        self._host.set_stream_handler(exchange.protocol, answer_stream)  # type: ignore[arg-type]
        try:
            yield
        finally:
            del self._local[exchange.protocol]
            self._host.remove_stream_handler(exchange.protocol)  # type: ignore[arg-type]
            for scope in running:
                scope.cancel()

    async def _answer(self, stream: INetStream, exchange: Exchange[Q, A], handler: Callable[[Q, PeerId], Awaitable[A]]) -> None:
        source = stream.muxed_conn.peer_id.to_base58()
        data = reply = None
        try:
            with trio.move_on_after(self._limits.read):
                data = await FrameReader(stream.read).next(exchange.max_request_bytes)
            if data is not None:
                with trio.move_on_after(self._limits.handle):
                    async with self._handlers:
                        reply = exchange.encode_answer(await handler(exchange.decode_request(data), source))
        except (BrokenFrame, Reject) as error:
            self._blame(source, error.code if isinstance(error, Reject) else "BROKEN_REQUEST", f"{exchange.protocol}: {error}")
        except Ignore as error:
            self._counters.ignore(error.code)
        except (EndOfStream, StreamError):
            pass
        except Exception as error:  # noqa: BLE001 - the guard: a handler that breaks closes its stream and nothing else
            log.warning("handler_failed", protocol=exchange.protocol, source=source, error=repr(error))
        if reply is None or len(reply) > exchange.max_answer_bytes:
            await stream.reset()
            return
        with trio.move_on_after(self._limits.write) as scope:
            await stream.write(frame(reply))
            await stream.close()
        if scope.cancelled_caught:
            await _quietly(stream.reset)

    async def _ask_myself(self, exchange: Exchange[Q, A], data: bytes) -> A:
        served = self._local.get(exchange.protocol)
        if served is None:
            raise Transient("NOT_SERVED", f"this peer does not serve {exchange.protocol}")
        there, handler = served
        try:
            reply = await handler(there.decode_request(data), self._host.get_id().to_base58())
        except (Reject, Ignore) as error:
            raise Transient("PEER_HUNG_UP", f"this peer on {exchange.protocol}: {error}") from error
        return exchange.decode_answer(there.encode_answer(reply))


async def _quietly(close: Callable[[], Awaitable[None]]) -> None:
    try:
        await close()
    except Exception as error:  # noqa: BLE001 - it is being closed because it broke
        log.debug("stream_close_failed", error=repr(error))
