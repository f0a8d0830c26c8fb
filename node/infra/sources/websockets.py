"""One WebSocket of a stranger's: its messages, in limits, until it ends.

On wsproto and one task, not on trio-websocket: that lets exceptions of the libraries below it out of its own task when a
server answers nonsense, and keeps what a server sends in parts without a bound.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NoReturn

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import ProtocolError

from consensus.errors import Failed, Transient
from node.infra.fetch import UNREACHABLE, UNUSABLE, Fetcher, Stream

_HANDSHAKE_S = 10.0
_PING_S, _PONG_S = 30.0, 10.0
_CHUNK = 4096  # taken apart at once: bounds how long frames of two bytes keep the loop
_BYTES_PER_S = 128 * 1024  # bounds what a server makes us work: an honest feed of prices stays far below
_BYTES_A_FRAME = 256  # the work of a frame with nothing in it, in bytes of one with much: 512 frames a second
_BURST = 1024 * 1024
_ALL_BYTES_PER_S = 4 * 1024 * 1024  # of all servers together, in the same bytes: a third of a core

Take = Callable[[str | bytes], Awaitable[None]]


class Budget:
    """What all WebSockets together may make this process work. When it is spent they are read by turns, a little at a time:
    many that each stay within their own limit delay one another, and nothing else."""

    def __init__(self, per_second: float = _ALL_BYTES_PER_S) -> None:
        self._per_second = per_second
        self._left = per_second
        self._filled_at = 0.0
        self._turn = trio.Lock()

    def spend(self, cost: float) -> None:
        self._fill()
        self._left -= cost

    async def turn(self) -> None:
        """Returns when there is something left, to one after the other."""
        async with self._turn:
            self._fill()
            while self._left < 0:
                await trio.sleep(max(-self._left / self._per_second, 0.001))
                self._fill()

    def _fill(self) -> None:
        now = trio.current_time()
        self._left = min(self._per_second, self._left + (now - self._filled_at) * self._per_second)
        self._filled_at = now


async def listen(fetcher: Fetcher, url: str, max_message: int, take: Take, budget: Budget) -> NoReturn:
    """Connects and hands over each message, of at most `max_message` bytes, until the connection ends.

    Raises `Transient` (SOURCE_UNREACHABLE) when it does, `Failed` (SOURCE_REFUSED, SOURCE_UNUSABLE) when there is no use in it.
    """
    target, stream = await fetcher.connect(url)
    try:
        connection = _Connection(stream, target.place, max_message, take, budget)
        with trio.move_on_after(_HANDSHAKE_S):
            await connection.open(target.authority, target.path)
        if not connection.accepted:
            raise Transient(UNREACHABLE, f"{target.place} does not answer as a WebSocket")
        await connection.run()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        raise Transient(UNREACHABLE, f"{target.place} broke the connection") from None
    finally:
        await trio.aclose_forcefully(stream)


class _Connection:
    """A client's side: takes frames apart, answers pings, tells a silent connection from a dead one."""

    def __init__(self, stream: Stream, place: str, max_message: int, take: Take, budget: Budget) -> None:
        self.accepted = False
        self._stream = stream
        self._place = place
        self._max_message = max_message
        self._take = take
        self._budget = budget
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._parts: list[str | bytes] = []
        self._size = 0
        self._left = float(_BURST)
        self._filled_at = trio.current_time()

    async def open(self, host: str, path: str) -> None:
        """Returns when the server has accepted; the first messages may then have been taken already."""
        await self._stream.send_all(self._protocol.send(Request(host=host, target=path)))
        while not self.accepted:
            await self._receive()

    async def run(self) -> NoReturn:
        asked = False
        while True:
            await self._budget.turn()
            with trio.move_on_after(_PONG_S if asked else _PING_S) as patience:
                await self._receive()
            if not patience.cancelled_caught:
                asked = False
            elif asked:
                raise Transient(UNREACHABLE, f"{self._place} does not answer a ping")
            else:
                asked = True
                await self._send(Ping())

    async def _receive(self) -> None:
        received = await self._stream.receive_some(_CHUNK)
        if not received:
            raise Transient(UNREACHABLE, f"{self._place} closed the connection")
        try:
            self._protocol.receive_data(bytes(received))
            events = list(self._protocol.events())
        except (ProtocolError, ValueError):  # headers that are no ASCII are the latter
            raise Transient(UNREACHABLE, f"{self._place} does not speak the WebSocket protocol") from None
        now, cost = trio.current_time(), len(received) + _BYTES_A_FRAME * len(events)
        self._left = min(_BURST, self._left + (now - self._filled_at) * _BYTES_PER_S) - cost
        self._filled_at = now
        self._budget.spend(cost)
        if self._left < 0:
            raise Failed(UNUSABLE, f"{self._place} sends more than {_BYTES_PER_S // 1024} KiB a second, or too many frames")
        with trio.CancelScope(shield=True):  # the patience is with the server: what has come is taken whole
            for event in events:
                await self._handle(event)

    async def _handle(self, event: Event) -> None:
        match event:
            case AcceptConnection():
                self.accepted = True
            case RejectConnection(status_code=status):
                raise Failed(UNUSABLE, f"{self._place} answers {status} and no WebSocket")
            case CloseConnection():
                raise Transient(UNREACHABLE, f"{self._place} closed the connection")
            case Ping():
                await self._send(event.response())
            case TextMessage() | BytesMessage():
                await self._part(event)

    async def _part(self, event: TextMessage | BytesMessage) -> None:
        if event.data:  # parts without anything in them are not kept
            self._parts.append(event.data if isinstance(event.data, str) else bytes(event.data))
        self._size += len(event.data)
        if self._size > self._max_message:
            raise Failed(UNUSABLE, f"{self._place} sends messages of more than {self._max_message} bytes")
        if event.message_finished:
            text = isinstance(event, TextMessage)
            message = "".join(map(str, self._parts)) if text else b"".join(p for p in self._parts if isinstance(p, bytes))
            self._parts, self._size = [], 0
            await self._take(message)

    async def _send(self, event: Event) -> None:
        with trio.move_on_after(_PONG_S) as patience:
            await self._stream.send_all(self._protocol.send(event))
        if patience.cancelled_caught:
            raise Transient(UNREACHABLE, f"{self._place} does not read")
