"""An ASGI app served on trio with Hypercorn's protocols: ready is a value, leaving is quick, requests have limits.

The accept loop is our own where Hypercorn's would let a client hold what it likes: it bounds the connections, survives
an error of one, and on leaving closes those that do not end by themselves (Hypercorn shields its sends, so that a
client that does not read would keep the process alive).
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, LifespanState
from quart_trio import QuartTrio

from consensus.errors import Misconfigured

log = structlog.get_logger(__name__)

_GRACE_S = 0.8  # requests under way get this long to end; a supervisor expects us gone within a second
_IDLE_S = 15.0  # a kept connection without a request; also bounds how slowly a request's head may come in
_BODY_S = 15  # for a body to arrive: a slow sender must not hold a handler
HEAD_BYTES = 16 * 1024
_BACKLOG = 128


@asynccontextmanager
async def open_server(
    app: QuartTrio,
    host: str,
    port: int,
    *,
    body_limit: int = 64 * 1024,
    head_limit: int = HEAD_BYTES,
    max_connections: int = 256,
    key: str = "status.port",
) -> AsyncIterator[str]:
    """Serves `app` until the context ends and yields its base URL, `http://host:port`; port 0 takes a free one.

    Requests: heads up to `head_limit` bytes, bodies up to `body_limit` bytes (413 beyond), `max_connections` at a time
    (further ones are closed unanswered). Raises `Misconfigured` naming `key` when the address cannot be bound. On leaving,
    requests under way have most of a second to end.
    """
    listener = _bind(host, port, key)
    bound_port = listener.getsockname()[1]
    app.config["MAX_CONTENT_LENGTH"] = body_limit
    app.config["BODY_TIMEOUT"] = _BODY_S
    server = _Server(app, _config(body_limit, head_limit), max_connections)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run, trio.SocketListener(trio.socket.from_stdlib_socket(listener)))
            try:
                yield f"http://{f'[{host}]' if ':' in host else host}:{bound_port}"
            finally:
                server.leaving.set()
    except BaseExceptionGroup as group:
        # The nursery is this function's own affair: what went wrong inside the caller's block reaches it as it was.
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from group.exceptions[0].__cause__
        raise
    finally:
        listener.close()


class _Server:
    def __init__(self, app: QuartTrio, config: Config, max_connections: int) -> None:
        self.leaving = trio.Event()
        self._app = ASGIWrapper(_sending_whole(app))
        self._config = config
        self._context = WorkerContext(None)
        self._max_connections = max_connections
        self._open: set[trio.SocketStream] = set()
        self._all_closed = trio.Event()

    async def run(self, listener: trio.SocketListener, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        state: LifespanState = {}
        lifespan = Lifespan(self._app, self._config, state)
        async with trio.open_nursery() as nursery:
            await nursery.start(lifespan.handle_lifespan)
            await lifespan.wait_for_startup()
            accepting = trio.CancelScope()

            async def accept() -> None:
                with accepting:
                    await trio.serve_listeners(partial(self._connection, state), [listener], handler_nursery=nursery)

            nursery.start_soon(accept)
            task_status.started()
            try:
                await self.leaving.wait()
                accepting.cancel()
                await self._context.terminated.set()  # closes the idle connections
                if self._open:
                    with trio.move_on_after(_GRACE_S):
                        await self._all_closed.wait()
                await lifespan.wait_for_shutdown()
            finally:
                for stream in self._open:
                    stream.socket.close()
                nursery.cancel_scope.cancel()

    async def _connection(self, state: LifespanState, stream: trio.SocketStream) -> None:
        if len(self._open) >= self._max_connections:
            await stream.aclose()
            return
        self._open.add(stream)
        try:
            with trio.CancelScope() as life:
                ended = _EndingStream(stream, life)
                await TCPServer(self._app, self._config, self._context, ConnectionState(state.copy()), ended)  # type: ignore[arg-type]
        except Exception:
            log.exception("http_connection_failed")  # one client's bytes must not end the server
        finally:
            self._open.discard(stream)
            if not self._open and self.leaving.is_set():
                self._all_closed.set()


class _EndingStream:
    """Ends what serves a connection together with the connection: Hypercorn's reader may wait on for a handler that has gone."""

    def __init__(self, stream: trio.SocketStream, life: trio.CancelScope) -> None:
        self.socket = stream.socket
        self.send_all = stream.send_all
        self.receive_some = stream.receive_some
        self.send_eof = stream.send_eof
        self._stream, self._life = stream, life

    async def aclose(self) -> None:
        self._life.cancel()
        await self._stream.aclose()


Send = Callable[[Any], Awaitable[None]]


def _sending_whole(app: QuartTrio) -> Callable[[Any, Any, Send], Awaitable[None]]:
    """Shields each send from cancellation.

    Hypercorn tells the app of the end of a response while it is still recycling the connection, inside the app's own
    last send; quart-trio then cancels that send, and the connection would be neither reused nor closed, ever.
    """

    async def served(scope: Any, receive: Any, send: Send) -> None:
        async def send_whole(message: Any) -> None:
            with trio.CancelScope(shield=True):
                await send(message)

        await app(scope, receive, send_whole)

    return served


def _config(body_limit: int, head_limit: int) -> Config:
    config = Config()
    config.keep_alive_timeout = _IDLE_S
    config.h11_max_incomplete_size = head_limit
    config.h2_max_header_list_size = head_limit
    config.websocket_max_message_size = body_limit
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    return config


def _bind(host: str, port: int, key: str) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise Misconfigured(key, f"{host} is no address to listen on ({error.strerror})") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise Misconfigured(key, f"{host}:{port} is in use: stop what listens there or choose another port") from error
        raise Misconfigured(key, f"cannot listen on {host}:{port} ({error.strerror}): choose another address") from error
    return listener
