"""Connections to strangers' web servers: opened only where a guard says, kept for the next request, bounded.

Why not httpcore's pool: it looks at every connection for every request, and lets requests that meet at one connection try
again and again: with 64 of them under way some waited ten seconds that were answered in ten milliseconds.
"""

from __future__ import annotations

import ssl
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpcore
import trio

from node.infra.addresses import Target

CONNECT_S = 3.0
_MOST = 256  # requests under way
_MOST_IDLE = 64
_IDLE_S = 30.0
_CLOSE_S = 1.0
_HEAD_BYTES = 128 * 1024  # what a server may send before its answer begins: interim answers cost work and have no end

Addresses = Callable[[str, int], Awaitable[Sequence[str]]]
"""Where a connection to a host and port may go. Raises OSError when nowhere now, anything else when never."""


class Connections:
    """Requests over kept connections. Raises httpcore's exceptions, and what `addresses` does but OSError."""

    def __init__(self, addresses: Addresses, context: ssl.SSLContext) -> None:
        self._addresses = addresses
        self._context = context
        self._limiter = trio.CapacityLimiter(_MOST)
        self._idle: OrderedDict[_Connection, tuple[float, tuple[str, str]]] = OrderedDict()
        self._by_place: dict[tuple[str, str], list[_Connection]] = {}

    @asynccontextmanager
    async def get(self, target: Target, headers: Sequence[tuple[str, str]]) -> AsyncIterator[httpcore.Response]:
        """The response's head; its body is read inside."""
        url = httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
        place = (target.scheme, target.place)
        async with self._limiter:
            connection = await self._taken(place, url)
            connection.network.left = _HEAD_BYTES
            try:
                response = await connection.http.handle_async_request(httpcore.Request("GET", url, headers=headers))
                connection.network.left = None  # the body is whoever reads it's to bound
                try:
                    yield response
                finally:
                    with trio.CancelScope(deadline=trio.current_time() + _CLOSE_S, shield=True):
                        await response.aclose()
            finally:
                if connection.http.is_idle() and not connection.http.is_closed():
                    self._idle[connection] = (trio.current_time(), place)
                    self._by_place.setdefault(place, []).append(connection)
                else:
                    await _close(connection)
                await self._close_old()

    async def aclose(self) -> None:
        """Closes those that are kept."""
        while self._idle:
            await _close(self._pop(next(iter(self._idle))))

    async def _taken(self, place: tuple[str, str], url: httpcore.URL) -> _Connection:
        while kept := self._by_place.get(place):
            connection = self._pop(kept[-1])
            if not connection.http.has_expired():  # nor closed by the other side
                return connection
            await _close(connection)
        network = Guarded(self._addresses)
        return _Connection(
            httpcore.AsyncHTTPConnection(
                url.origin, ssl_context=self._context, keepalive_expiry=_IDLE_S, network_backend=network
            ),
            network,
        )

    def _pop(self, connection: _Connection) -> _Connection:
        _, place = self._idle.pop(connection)
        self._by_place[place].remove(connection)
        if not self._by_place[place]:
            del self._by_place[place]
        return connection

    async def _close_old(self) -> None:
        now = trio.current_time()
        while self._idle:
            oldest = next(iter(self._idle))
            if len(self._idle) <= _MOST_IDLE and self._idle[oldest][0] > now - _IDLE_S:
                return
            await _close(self._pop(oldest))


class Guarded(httpcore.AsyncNetworkBackend):
    """Opens connections, only to addresses that were looked at. `left` is how many bytes they may still bring, None for any."""

    def __init__(self, addresses: Addresses) -> None:
        self.left: int | None = None
        self._addresses = addresses
        self._network = httpcore.TrioBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await self._addresses(host, port)
        except OSError as error:
            raise httpcore.ConnectError(f"does not resolve: {error}") from None
        failure: Exception = httpcore.ConnectError("no address")
        for address in addresses:
            try:
                stream = await self._network.connect_tcp(address, port, CONNECT_S, local_address, socket_options)
                return _Counted(stream, self)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


class _Counted(httpcore.AsyncNetworkStream):
    """Ends what brings more than may come."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, network: Guarded) -> None:
        self._stream = stream
        self._network = network

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        received = await self._stream.read(max_bytes, timeout)
        if self._network.left is not None:
            self._network.left -= len(received)
            if self._network.left < 0:
                raise httpcore.RemoteProtocolError("too much before the answer")
        return received

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return _Counted(await self._stream.start_tls(ssl_context, server_hostname, timeout), self._network)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


@dataclass(frozen=True, slots=True, eq=False)
class _Connection:
    """One, and what its bytes come through."""

    http: httpcore.AsyncHTTPConnection
    network: Guarded


async def _close(connection: _Connection) -> None:
    with trio.CancelScope(deadline=trio.current_time() + _CLOSE_S, shield=True):
        await connection.http.aclose()
