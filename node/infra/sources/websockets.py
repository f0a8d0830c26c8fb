"""One WebSocket of a stranger's: its messages, in limits, until it ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NoReturn

import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, HandshakeError, WebSocketConnection, wrap_client_stream
from wsproto.utilities import ProtocolError

from consensus.errors import Failed, Transient, first_of
from node.infra.fetch import UNREACHABLE, UNUSABLE, Fetcher

_HANDSHAKE_S = 10.0
_PING_S, _PONG_S = 30.0, 10.0
_BYTES_PER_S = 128 * 1024  # what frames cost to take apart is bounded by it: an honest feed of prices stays far below
_BURST = 1024 * 1024


async def listen(fetcher: Fetcher, url: str, max_message: int, take: Callable[[str | bytes], Awaitable[None]]) -> NoReturn:
    """Connects and hands over each message, of at most `max_message` bytes, until the connection ends.

    Raises `Transient` (SOURCE_UNREACHABLE) when it does, `Failed` (SOURCE_REFUSED, SOURCE_UNUSABLE) when there is no use in it.
    """
    target, stream = await fetcher.connect(url)
    metered = _Metered(stream, max_message)
    try:
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(_HANDSHAKE_S) as patience:
                connection = await wrap_client_stream(
                    nursery,
                    metered,  # type: ignore[arg-type]  # any stream does
                    target.authority,
                    target.path,
                    max_message_size=max_message,
                )
            if patience.cancelled_caught:
                raise Transient(UNREACHABLE, f"{target.place} does not answer as a WebSocket")
            nursery.start_soon(_keep_alive, connection, target.place)
            while True:
                message = await connection.get_message()
                metered.message_ended()
                await take(message)
    except BaseExceptionGroup as group:
        cancelled, others = group.split(trio.Cancelled)
        if others is None:
            raise
        error = first_of(others)
        if isinstance(error, Transient | Failed):
            meant: Transient | Failed = error
        elif isinstance(error, ConnectionRejected):
            meant = Failed(UNUSABLE, f"{target.place} answers {error.status_code} and no WebSocket")
        elif isinstance(error, ConnectionClosed | HandshakeError | ProtocolError | OSError | trio.BrokenResourceError):
            meant = Transient(UNREACHABLE, f"{target.place} closed the connection")
        else:
            raise
        if cancelled is not None:
            raise cancelled from None
        raise meant from None
    finally:
        await trio.aclose_forcefully(stream)
    raise AssertionError("unreachable: messages come until an error does")


async def _keep_alive(connection: WebSocketConnection, place: str) -> None:
    """Tells a silent connection from a dead one."""
    while True:
        await trio.sleep(_PING_S)
        with trio.move_on_after(_PONG_S) as patience:
            await connection.ping()
        if patience.cancelled_caught:
            raise Transient(UNREACHABLE, f"{place} does not answer a ping")


class _Metered(trio.abc.Stream):
    """Ends a connection that floods: bytes come at a bounded rate, and no message takes more than twice its size."""

    def __init__(self, stream: trio.abc.Stream, max_message: int) -> None:
        self._stream = stream
        self._left = float(_BURST)
        self._filled_at = trio.current_time()
        self._most = 2 * max_message + 16 * 1024  # frames have heads, and the handshake is before the first message
        self._since_message = 0

    def message_ended(self) -> None:
        self._since_message = 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        received = await self._stream.receive_some(max_bytes)
        now = trio.current_time()
        self._left = min(_BURST, self._left + (now - self._filled_at) * _BYTES_PER_S) - len(received)
        self._filled_at = now
        self._since_message += len(received)
        if self._left < 0:
            raise Failed(UNUSABLE, f"sends more than {_BYTES_PER_S // 1024} KiB a second")
        if self._since_message > self._most:
            raise Failed(UNUSABLE, "sends much and no message")
        return received

    async def send_all(self, data: bytes | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()
