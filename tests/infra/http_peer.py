"""A small HTTP server on trio whose answers a test writes: a list of requests seen, and a function from request to answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import h11
import trio


@dataclass(frozen=True)
class Answer:
    body: bytes
    status: int = 200
    hang_up: bool = False
    """Close the connection instead of answering."""
    close_after: bool = False


@dataclass
class Peer:
    url: str
    headers: list[dict[str, str]] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)
    connections: int = 0

    @property
    def methods(self) -> list[str]:
        return [request["method"] for request in self.requests if isinstance(request, dict)]


def rpc_answer(results: dict[str, Any]) -> Callable[[Any], Answer]:
    """Answers each method with its result, or its error where the result is a dict with an `error`."""

    def one(request: Any) -> dict[str, Any]:
        result = results.get(request["method"], {"error": {"code": -32601, "message": "method not found"}})
        base = {"jsonrpc": "2.0", "id": request["id"]}
        return base | result if isinstance(result, dict) and "error" in result else base | {"result": result}

    def answer(request: Any) -> Answer:
        body = [one(item) for item in reversed(request)] if isinstance(request, list) else one(request)
        return Answer(json.dumps(body).encode())

    return answer


@asynccontextmanager
async def open_peer(answer: Callable[[Any], Answer | Awaitable[Answer]]) -> AsyncIterator[Peer]:
    peer = Peer("")

    async def serve(stream: trio.SocketStream) -> None:
        peer.connections += 1
        connection, body = h11.Connection(h11.SERVER), b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                try:
                    connection.receive_data(await stream.receive_some(65536))
                except trio.BrokenResourceError:
                    return
            elif isinstance(event, h11.Request):
                peer.headers.append({key.decode(): value.decode() for key, value in event.headers})
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                request, body = json.loads(body), b""
                peer.requests.append(request)
                reply = answer(request)
                if isinstance(reply, Awaitable):
                    reply = await reply
                if reply.hang_up:
                    return
                head = h11.Response(status_code=reply.status, headers=[("content-length", str(len(reply.body)))])
                wire = [connection.send(event) or b"" for event in (head, h11.Data(data=reply.body), h11.EndOfMessage())]
                try:
                    await stream.send_all(b"".join(wire))
                except trio.BrokenResourceError:
                    return
                if reply.close_after:
                    return
                connection.start_next_cycle()
            else:
                return

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        peer.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        yield peer
        nursery.cancel_scope.cancel()
