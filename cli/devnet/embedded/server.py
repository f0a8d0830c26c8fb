"""JSON-RPC 2.0 over HTTP for the embedded chain: the event loop reads and writes, one thread at a time runs the EVM."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any, Final

import msgspec
import structlog
import trio

from cli.devnet.embedded.encoding import Json
from cli.devnet.embedded.errors import INTERNAL_ERROR, INVALID_PARAMS, INVALID_REQUEST, PARSE_ERROR, RpcError
from cli.devnet.embedded.methods import Methods
from node.infra.nesting import check_nesting

log = structlog.get_logger()

MAX_BODY: Final = 1024 * 1024  # the largest contract with its arguments is 100 kB of hex
MAX_BATCH: Final = 1000  # web3.py and ethers send at most 100
# A call 1024 frames deep takes some ten Python frames a level, several of them through C.
EVM_STACK_BYTES: Final = 256 * 1024 * 1024  # address space; only what is touched is memory

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class RpcServer:
    """An ASGI application, and the miner that runs beside it."""

    def __init__(self, methods: Methods) -> None:
        threading.stack_size(EVM_STACK_BYTES)  # for the threads that trio starts from here on
        self._methods = methods
        self._one_at_a_time = trio.CapacityLimiter(1)
        self._work = trio.Event()

    async def mine(self, heartbeat: float | None) -> None:
        """Mine what the pool holds as soon as the EVM is free; with `heartbeat`, an empty block after so many idle seconds."""
        ledger = self._methods.ledger
        while True:
            with trio.move_on_after(heartbeat if heartbeat is not None else float("inf")) as idle:
                await self._work.wait()
            self._work = trio.Event()
            if not ledger.automine:
                continue
            try:
                block = await self._in_evm(partial(ledger.mine, even_empty=idle.cancelled_caught))
            except Exception:  # the guard around mining: py-evm's own faults must not end the chain
                log.exception("mining failed")
                continue
            if block is not None and ledger.pool:
                self._work.set()  # the block was full

    async def _in_evm(self, function: Callable[[], Any]) -> Any:
        return await trio.to_thread.run_sync(function, limiter=self._one_at_a_time)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: POST to any path; everything else is refused."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return  # hypercorn closes a refused websocket
        if scope["method"] != "POST":
            await _respond(send, 405, b"")
            return
        body = await _read_body(receive)
        if body is None:
            await _respond(send, 413, _encode(_error(None, INVALID_REQUEST, f"body is larger than {MAX_BODY} bytes")))
            return
        await _respond(send, 200, await self._in_evm(partial(self._answer, body)))
        if self._methods.ledger.wants_mining:
            self._work.set()

    def _answer(self, body: bytes) -> bytes:
        try:
            check_nesting(body)
            request = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _encode(_error(None, PARSE_ERROR, "Parse error"))
        if not isinstance(request, list):
            return _encode(self._one(request))
        if not request or len(request) > MAX_BATCH:
            return _encode(_error(None, INVALID_REQUEST, f"a batch holds 1 to {MAX_BATCH} requests"))
        return _encode([self._one(each) for each in request])

    def _one(self, request: Json) -> Json:
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            return _error(None, INVALID_REQUEST, "Invalid request")
        request_id, params = request.get("id"), request.get("params", [])
        if isinstance(request_id, (dict, list, bool)):
            return _error(None, INVALID_REQUEST, "Invalid request: id")
        if not isinstance(params, list):
            return _error(request_id, INVALID_PARAMS, "params: list expected")
        try:
            return {"jsonrpc": "2.0", "id": request_id, "result": self._methods.call(request["method"], params)}
        except RpcError as error:
            return _error(request_id, error.code, error.message, error.data)
        except Exception as error:  # the guard around a request: whatever py-evm raises is this request's
            log.exception("request failed", method=request["method"])
            return _error(request_id, INTERNAL_ERROR, f"internal error: {type(error).__name__}")


def _error(request_id: Json, code: int, message: str, data: str | None = None) -> Json:
    error: dict[str, Json] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return {"jsonrpc": "2.0", "id": request_id, "error": error}


def _encode(value: Json) -> bytes:
    return msgspec.json.encode(value)


async def _read_body(receive: Receive) -> bytes | None:
    """The whole body, or None when it is too long."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None  # the client is gone
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY:
            return None
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


async def _respond(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
