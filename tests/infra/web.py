"""A web server on trio for tests of what strangers' URLs may do: answers by path, byte by byte where a test wants that."""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import trio

Reply = bytes | Callable[[trio.abc.Stream], Awaitable[None]]


def reply(body: bytes = b"", status: int = 200, *headers: str) -> bytes:
    """A whole HTTP/1.1 response."""
    lines = [f"HTTP/1.1 {status} x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def redirect(location: str, status: int = 302) -> bytes:
    return reply(b"", status, f"Location: {location}")


@dataclass
class Web:
    """`replies` by path with query; a path that is not there is 404. `asked` counts requests by path, `heads` are theirs."""

    port: int
    replies: dict[str, Reply] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    heads: list[bytes] = field(default_factory=list)
    connections: int = 0

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.place}"


async def _serve(web: Web, context: ssl.SSLContext | None, stream: trio.abc.Stream) -> None:
    web.connections += 1
    if context is not None:
        stream = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
    received = b""
    try:
        while True:
            while b"\r\n\r\n" not in received:
                more = await stream.receive_some(65536)
                if not more:
                    return
                received += more
            head, _, received = received.partition(b"\r\n\r\n")
            web.heads.append(head)
            path = head.split(b" ")[1].decode()
            web.asked[path] += 1
            answer = web.replies.get(path, reply(b"", 404))
            if not isinstance(answer, bytes):
                await answer(stream)
                return
            await stream.send_all(answer)
    except (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError):
        return


@asynccontextmanager
async def open_web(context: ssl.SSLContext | None = None) -> AsyncIterator[Web]:
    async with trio.open_nursery() as nursery:
        web = Web(0)
        [listener] = await nursery.start(partial(trio.serve_tcp, partial(_serve, web, context), 0, host="127.0.0.1"))
        web.port = listener.socket.getsockname()[1]
        yield web
        nursery.cancel_scope.cancel()
