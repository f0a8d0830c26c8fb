"""Yamux with its limits kept and without its waste: py-libp2p's connection, our frame loop.

Upstream's loop only warns when a peer sends beyond its window (and keeps every byte), accepts any number of streams, answers
each read with a window update, formats debug lines that nobody reads, and never notices a peer that is silently gone.
"""

from __future__ import annotations

import struct
from contextlib import suppress

import structlog
import trio
from libp2p.abc import ISecureConn
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.trio import TrioTCPStream
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset
from libp2p.stream_muxer.yamux.yamux import (
    DEFAULT_WINDOW_SIZE,
    FLAG_ACK,
    FLAG_FIN,
    FLAG_RST,
    FLAG_SYN,
    GO_AWAY_NORMAL,
    HEADER_SIZE,
    TYPE_DATA,
    TYPE_GO_AWAY,
    TYPE_PING,
    TYPE_WINDOW_UPDATE,
    YAMUX_HEADER_FORMAT,
    Yamux,
    YamuxStream,
)

_HEADER = struct.Struct(YAMUX_HEADER_FORMAT)

INBOUND_STREAMS = 64  # open at once, a connection
FRAME_BYTES = DEFAULT_WINDOW_SIZE  # nobody may send more at once than the window it was given
WRITE_BYTES = 64 * 1024 - HEADER_SIZE - 16  # what fits one Noise packet
CREDIT_BYTES = DEFAULT_WINDOW_SIZE // 2
GOODBYE_SECONDS = 0.1
REPLIES = 1024  # pings and new streams waiting for their answer
WINDOW_SECONDS = 5.0  # a peer that does not read for that long has lost its stream
PING_SECONDS = 10.0
SILENCE_SECONDS = 20.0
"""A ping unanswered for that long ends the connection: TCP takes a quarter of an hour to notice a peer that lost its power."""

log = structlog.get_logger()


class ProtocolError(Exception):
    """The peer broke Yamux's rules: the connection ends."""


class LeanStream(YamuxStream):
    """A stream that takes no lock where it does not wait."""

    def __init__(self, stream_id: int, conn: Yamux, is_initiator: bool) -> None:
        super().__init__(stream_id, conn, is_initiator)
        self.window_opened = trio.Event()
        self._unreleased = 0

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            if self.send_closed or self.closed:
                raise MuxedStreamReset("stream is closed") if self.reset_received else MuxedStreamError("stream is closed")
            size = min(len(view), self.send_window, WRITE_BYTES)
            if size <= 0:
                self.window_opened = trio.Event()
                with trio.move_on_after(WINDOW_SECONDS) as scope:
                    await self.window_opened.wait()
                if scope.cancelled_caught:
                    raise MuxedStreamError("the peer does not read")
                continue
            self.send_window -= size
            await self.conn._write_frame(_HEADER.pack(0, TYPE_DATA, 0, self.stream_id, size) + view[:size])
            view = view[size:]

    async def read(self, n: int | None = -1) -> bytes:
        """At most n bytes, as soon as there are any."""
        while True:
            buffer = self.conn.stream_buffers.get(self.stream_id)
            if buffer:
                size = len(buffer) if n is None or n < 0 else min(n, len(buffer))
                data = bytes(memoryview(buffer)[:size])
                del buffer[:size]
                if self.closed and not buffer:
                    self.conn._finalize_stream_locked(self, fully_closed=True)
                elif not self.recv_closed:
                    await self._release(size)
                return data
            if self.reset_received:
                raise MuxedStreamReset("stream was reset")
            event = self.conn.stream_events.get(self.stream_id)
            if event is None or self.recv_closed or self.closed or self.conn.event_shutting_down.is_set():
                raise MuxedStreamEOF("stream is closed")
            if event.is_set():
                event = self.conn.stream_events[self.stream_id] = trio.Event()
            await event.wait()

    async def _release(self, size: int) -> None:
        """Gives the sender its credit back, half a window at a time."""
        self._unreleased += size
        if self._unreleased >= CREDIT_BYTES:
            increment, self._unreleased = self._unreleased, 0
            self.recv_window += increment
            await self.conn._write_frame(_HEADER.pack(0, TYPE_WINDOW_UPDATE, 0, self.stream_id, increment))


class LeanYamux(Yamux):
    """One connection's streams."""

    def __init__(self, secured_conn: ISecureConn, peer_id: ID, *, is_initiator: bool) -> None:
        super().__init__(secured_conn, peer_id, is_initiator=is_initiator)
        self._inbound = 0
        self._pong = trio.Event()
        self._replies: list[bytes] = []
        self._replied = trio.Event()

    async def handle_incoming(self) -> None:
        """Reads frames until the connection ends, and then ends everything on it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_replies)
            await self._read_frames()
            nursery.cancel_scope.cancel()

    async def _read_frames(self) -> None:
        received = bytearray()
        try:
            while not self.event_shutting_down.is_set():
                received += await self.secured_conn.read()  # one Noise packet
                used = 0
                while len(received) - used >= HEADER_SIZE:
                    _, kind, flags, stream_id, length = _HEADER.unpack_from(received, used)
                    body = length if kind == TYPE_DATA else 0
                    if body > FRAME_BYTES:
                        raise ProtocolError(f"frame of {body} bytes")
                    end = used + HEADER_SIZE + body
                    if len(received) < end:
                        break
                    data = bytes(memoryview(received)[used + HEADER_SIZE : end])
                    used = end
                    if not await self._frame(kind, flags, stream_id, length, data):
                        return
                del received[:used]
        except Exception as error:  # noqa: BLE001 - whatever broke it, this connection is over, and only this one
            log.debug("connection_lost", peer=self.peer_id.to_base58(), error=repr(error))
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await self._cleanup_on_error()

    async def _frame(self, kind: int, flags: int, stream_id: int, length: int, data: bytes) -> bool:
        """Handles one frame; false at the end of the connection."""
        if kind in (TYPE_DATA, TYPE_WINDOW_UPDATE):
            if flags & FLAG_SYN and not await self._open_inbound(stream_id):
                return True
            stream = self.streams.get(stream_id)
            if stream is not None:  # else it was closed here a moment ago
                self._to_stream(stream, flags, 0 if kind == TYPE_DATA else length, data)
        elif kind == TYPE_PING:
            if flags & FLAG_SYN:
                self._reply(TYPE_PING, FLAG_ACK, 0, length)
            else:
                self._pong.set()
        elif kind == TYPE_GO_AWAY:
            return False
        else:
            raise ProtocolError(f"frame type {kind}")
        return True

    async def _open_inbound(self, stream_id: int) -> bool:
        if stream_id == 0 or stream_id % 2 == self.next_stream_id % 2 or stream_id in self.streams:
            raise ProtocolError(f"stream {stream_id} opened out of turn")
        if self._inbound >= INBOUND_STREAMS:
            self._reply(TYPE_WINDOW_UPDATE, FLAG_RST, stream_id, 0)
            return False
        stream = LeanStream(stream_id, self, False)
        self._add(stream)
        self._inbound += 1
        self._reply(TYPE_WINDOW_UPDATE, FLAG_ACK, stream_id, 0)
        await self.new_stream_send_channel.send(stream)
        return True

    def _reply(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        """Leaves a frame for `_send_replies`. The reading task never writes: two peers with full sockets would wait for ever."""
        if len(self._replies) >= REPLIES:
            raise ProtocolError("asks, but does not read the answers")
        self._replies.append(_HEADER.pack(0, kind, flags, stream_id, length))
        self._replied.set()

    async def _send_replies(self) -> None:
        try:
            while True:
                await self._replied.wait()
                self._replied = trio.Event()
                frames, self._replies = b"".join(self._replies), []
                await self._write_frame(frames)
        except Exception as error:  # noqa: BLE001 - as above; the reader will see the same
            log.debug("connection_lost", peer=self.peer_id.to_base58(), error=repr(error))

    def _to_stream(self, stream: YamuxStream, flags: int, credit: int, data: bytes) -> None:
        if credit:
            stream.send_window += credit
        if data:
            stream.recv_window -= len(data)
            if stream.recv_window < 0:
                raise ProtocolError(f"{-stream.recv_window} bytes beyond the window")
            if not stream.recv_closed:
                self.stream_buffers[stream.stream_id] += data
        if flags & FLAG_FIN:
            stream.recv_closed = True
            stream.closed = stream.closed or stream.send_closed
        if flags & FLAG_RST:
            stream.closed = stream.recv_closed = stream.send_closed = stream.reset_received = True
        if isinstance(stream, LeanStream) and (credit or stream.closed):
            stream.window_opened.set()
        if stream.closed:
            self._finalize_stream_locked(stream, fully_closed=True)
        elif data or stream.recv_closed:
            self.stream_events[stream.stream_id].set()

    def _add(self, stream: YamuxStream) -> None:
        self.streams[stream.stream_id] = stream
        self.stream_buffers[stream.stream_id] = bytearray()
        self.stream_events[stream.stream_id] = trio.Event()

    def _finalize_stream_locked(self, stream: YamuxStream, *, fully_closed: bool) -> None:
        """Sync, so nothing can come between: none of the callers needs the lock of its name."""
        event = self.stream_events.get(stream.stream_id)
        known = stream.stream_id in self.streams
        super()._finalize_stream_locked(stream, fully_closed=fully_closed)
        if event is not None and fully_closed:
            event.set()  # upstream forgets whoever waits to read
        if known and stream.stream_id not in self.streams and not stream.is_initiator:
            self._inbound -= 1

    async def open_stream(self) -> YamuxStream:
        await self.stream_backlog_semaphore.acquire()
        if self.event_shutting_down.is_set():
            self.stream_backlog_semaphore.release()
            raise MuxedStreamError("connection is shutting down")
        stream = LeanStream(self.next_stream_id, self, True)
        self.next_stream_id += 2
        stream._owns_backlog_slot = True
        self._add(stream)
        try:
            await self._write_frame(_HEADER.pack(0, TYPE_WINDOW_UPDATE, FLAG_SYN, stream.stream_id, 0))
        except Exception as error:
            stream.closed = stream.send_closed = stream.recv_closed = True
            self._finalize_stream_locked(stream, fully_closed=True)
            raise MuxedStreamError(f"cannot open a stream: {error!r}") from error
        return stream

    async def close(self, error_code: int = GO_AWAY_NORMAL) -> None:
        """Says goodbye if the peer takes it at once. Upstream sleeps for a tenth of a second afterwards, whatever for."""
        if not self.event_shutting_down.is_set():
            self.event_shutting_down.set()
            with trio.move_on_after(GOODBYE_SECONDS), suppress(Exception):
                await self._write_frame(_HEADER.pack(0, TYPE_GO_AWAY, 0, 0, error_code))
        await self._cleanup_on_error()

    async def _cleanup_on_error(self) -> None:
        self._wake_writers()
        await super()._cleanup_on_error()

    def _wake_writers(self) -> None:
        """Upstream's cleanup wakes only those who read."""
        for stream in self.streams.values():
            if isinstance(stream, LeanStream):
                stream.closed = True
                stream.window_opened.set()

    async def _write_frame(self, data: bytes) -> None:
        async with self._write_lock:
            await self.secured_conn.write(data)

    async def _measure_rtt_loop(self) -> None:
        """Asks whether the peer is still there; nobody here needs the round-trip time."""
        while True:
            await trio.sleep(PING_SECONDS)
            self._pong = trio.Event()
            self._ping_id = (self._ping_id + 1) % 2**32
            try:
                with trio.fail_after(SILENCE_SECONDS):
                    await self._write_frame(_HEADER.pack(0, TYPE_PING, FLAG_SYN, 0, self._ping_id))
                    await self._pong.wait()
            except Exception as error:  # noqa: BLE001 - as above
                log.debug("connection_silent", peer=self.peer_id.to_base58(), error=repr(error))
                await self._cleanup_on_error()
                return


class BufferedTCP(ReadWriteCloser):
    """A TCP stream read a chunk at a time. Upstream asks the kernel twice a packet, and for as many bytes as a stranger says."""

    def __init__(self, inner: TrioTCPStream) -> None:
        self._inner = inner
        self._buffer = bytearray()

    async def read(self, n: int | None = None) -> bytes:
        if not self._buffer:
            data = await self._inner.read(64 * 1024)
            if n is None or len(data) <= n:
                return data
            self._buffer += data
        if n is None:
            n = len(self._buffer)
        data = bytes(memoryview(self._buffer)[:n])
        del self._buffer[:n]
        return data

    async def write(self, data: bytes) -> None:
        await self._inner.write(data)

    async def close(self) -> None:
        await self._inner.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._inner.get_remote_address()
