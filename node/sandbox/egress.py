"""The one way out of a sandbox: an HTTP proxy on a unix socket that connects to the hosts a script declares, and nowhere else.

A sandbox has no network. The folder of an `Egress` is mounted into it at `MOUNTED`, read-only; `relay.py` in it carries
connections from 127.0.0.1 to the proxy's socket, and the environment names that address as the proxy. Names are resolved out
here, by the guard of `node.infra.fetch`: it refuses whatever is no address of the public internet, and the connection goes to
the address that was looked at. Both adapters use it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import Final

import structlog
import trio

from consensus.errors import Failed
from node.infra.addresses import MAX_URL, RefusedUrl, Target, parse_url
from node.infra.connections import CONNECT_S, Addresses
from node.sandbox.beside import beside
from node.sandbox.port import Limits

MAX_HOSTS: Final = 8
MOUNTED: Final = "/run/triggerx"
"""Where an egress' folder lies inside the sandbox."""
PORT: Final = 3128
"""Of the relay, on the sandbox's own 127.0.0.1."""

_SOCKET, _RELAY, _PRELOAD = "egress", "relay.py", "proxy.cjs"
_HERE = Path(__file__).parent
_PROXY = f"http://127.0.0.1:{PORT}"
_AT_ONCE = 16  # connections of one run under way
_IN_ALL = 256  # of one run: each may cost a look-up
_HEAD_BYTES = 16 * 1024
_HEAD_S = 5.0
_PIECE = 65_536
_DEFAULT_PORTS: Final = (80, 443)
_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"te", b"upgrade"})

log = structlog.get_logger(__name__)

ENVIRONMENT: Final = MappingProxyType(
    {
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), _PROXY),
        "NODE_OPTIONS": f"--require={MOUNTED}/{_PRELOAD}",
    }
)
"""What a program with hosts finds in its environment beside the sandbox's own."""


def places(hosts: Sequence[str]) -> frozenset[tuple[str, int]]:
    """The hosts and ports that declarations (`host` or `host:port`) mean; without a port 80 and 443.

    Raises `Failed` SCRIPT_INVALID for what is no such declaration, and for more than `MAX_HOSTS`.
    """
    if len(hosts) > MAX_HOSTS:
        raise Failed("SCRIPT_INVALID", f"a script declares at most {MAX_HOSTS} hosts")
    found: set[tuple[str, int]] = set()
    for entry in hosts:
        try:
            target = parse_url(f"http://{entry}", "http")
        except RefusedUrl as error:
            raise Failed("SCRIPT_INVALID", f"`allow {entry[:100]}`: {error}") from None
        if target.path != "/" or any(each in entry for each in "/?#"):
            raise Failed("SCRIPT_INVALID", f"`allow {entry[:100]}`: a host, and then perhaps a port")
        own_port = entry.rpartition(":")[2].isdigit() and not entry.endswith("]")
        found.update((target.host, port) for port in ((target.port,) if own_port else _DEFAULT_PORTS))
    return frozenset(found)


def wrapped(command: Sequence[str], python: str = "python3") -> list[str]:
    """The command that runs `command` inside a sandbox with the relay beside it."""
    return [python, "-I", "-S", f"{MOUNTED}/{_RELAY}", f"{MOUNTED}/{_SOCKET}", str(PORT), *command]


class Egress:
    """Made by `open_egress`: the open proxy of one run."""

    def __init__(self, allowed: frozenset[tuple[str, int]], limit: int, addresses: Addresses, folder: Path) -> None:
        self.folder = folder
        """To be mounted at `MOUNTED`, read-only."""
        self.transferred = 0
        """Bytes to and from hosts so far."""
        self._allowed = allowed
        self._limit = limit
        self._addresses = addresses
        self._full = trio.Event()

    @property
    def socket_path(self) -> Path:
        return self.folder / _SOCKET

    @property
    def exhausted(self) -> bool:
        """Whether the limit of bytes is used up: every connection has been cut, and no other is made."""
        return self._full.is_set()

    async def serve(self, listener: trio.socket.SocketType) -> None:
        """Until cancelled."""
        room = trio.Semaphore(_AT_ONCE)
        async with trio.open_nursery() as nursery:
            for _ in range(_IN_ALL):
                await room.acquire()
                sock, _ = await listener.accept()
                nursery.start_soon(self._connection, trio.SocketStream(sock), room)
            listener.close()

    async def _connection(self, client: trio.SocketStream, room: trio.Semaphore) -> None:
        try:
            async with client:
                try:
                    await self._serve_one(client)
                except _Refused as refused:
                    log.debug("egress_refused", why=refused.why)
                    await client.send_all(refused.answer())
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the script hung up
        finally:
            room.release()

    async def _serve_one(self, client: trio.SocketStream) -> None:
        head, rest = await _read_head(client)
        request = _parse(head)
        if (request.target.host, request.target.port) not in self._allowed:
            raise _Refused(HTTPStatus.FORBIDDEN, f"{request.target.place} is not declared: add `triggerx: allow` with its name")
        if self.exhausted:
            raise _Refused(HTTPStatus.FORBIDDEN, f"more than {self._limit} bytes to and from hosts")
        server = await self._dial(request.target)
        async with server:
            if request.forward:
                if self._counted(len(request.forward)):
                    await server.send_all(request.forward)
            else:
                await client.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._cut, scope)
                    async with trio.open_nursery() as ways:
                        ways.start_soon(self._carry, client, server, rest)
                        ways.start_soon(self._carry, server, client, b"")
                    scope.cancel()

    async def _cut(self, scope: trio.CancelScope) -> None:
        await self._full.wait()
        scope.cancel()

    async def _dial(self, target: Target) -> trio.SocketStream:
        try:
            addresses = await self._addresses(target.host, target.port)
        except Failed as refused:
            raise _Refused(HTTPStatus.FORBIDDEN, refused.detail) from None
        except OSError as error:
            raise _Refused(HTTPStatus.BAD_GATEWAY, f"{target.host} does not resolve ({error})") from None
        why = ""
        for address in addresses:
            try:
                with trio.fail_after(CONNECT_S):
                    return await trio.open_tcp_stream(address, target.port)
            except (OSError, trio.TooSlowError) as error:
                why = str(error) or "no answer"
        raise _Refused(HTTPStatus.BAD_GATEWAY, f"{target.place} cannot be connected to ({why})")

    async def _carry(self, source: trio.SocketStream, sink: trio.SocketStream, first: bytes) -> None:
        data = first or await self._piece(source)
        while data and self._counted(len(data)):
            try:
                await sink.send_all(data)
            except trio.BrokenResourceError:
                return
            data = await self._piece(source)
        try:
            await sink.send_eof()
        except trio.BrokenResourceError:
            return

    async def _piece(self, source: trio.SocketStream) -> bytes:
        try:
            return bytes(await source.receive_some(_PIECE))
        except trio.BrokenResourceError:
            return b""

    def _counted(self, size: int) -> bool:
        """Whether these bytes are within the limit."""
        if self.transferred + size > self._limit:
            self._full.set()
            return False
        self.transferred += size
        return True


@asynccontextmanager
async def open_egress(
    hosts: Sequence[str], limits: Limits, *, addresses: Addresses, folder: Path | None = None
) -> AsyncIterator[Egress]:
    """The proxy for one run. `addresses` is the guard, `Fetcher.addresses`; `folder`, which must be there, is filled and emptied;
    without it a new one is made and removed. Raises `Failed` SCRIPT_INVALID for hosts that are none, OSError for a folder that
    cannot be written to."""
    allowed = places(hosts)
    own = None if folder is not None else Path(tempfile.mkdtemp(prefix="triggerx-"))
    where = folder or own
    assert where is not None
    try:
        with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM) as listener:
            descriptor = _furnished(where)
            try:
                # A socket's path has 107 bytes at most, a folder's may have more: it is bound by way of its folder.
                await listener.bind(f"/proc/self/fd/{descriptor}/{_SOCKET}")
            finally:
                os.close(descriptor)
            os.chmod(where / _SOCKET, 0o666)  # noqa: S103 - the sandbox's user is another than ours
            listener.listen(_AT_ONCE)
            egress = Egress(allowed, limits.transferred, addresses, where)
            async with beside(partial(egress.serve, listener)):
                yield egress
    finally:
        for name in (_SOCKET, _RELAY, _PRELOAD):
            (where / name).unlink(missing_ok=True)
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)


def _furnished(folder: Path) -> int:
    """An open descriptor of the folder, with all in it but the socket."""
    folder.chmod(0o755)
    for name in (_RELAY, _PRELOAD):
        file = folder / name
        file.write_bytes((_HERE / name).read_bytes())
        file.chmod(0o644)
    (folder / _SOCKET).unlink(missing_ok=True)
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)


@dataclass(frozen=True, slots=True)
class _Request:
    """Where to, and what is sent there first: nothing for CONNECT."""

    target: Target
    forward: bytes


class _Refused(Exception):
    """Answered to the script, which may print it."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why

    def answer(self) -> bytes:
        body = f"{self.why}\n".encode()
        # In the status line as well: clients show that of a refused CONNECT, and not its body.
        reason = "".join(letter for letter in self.why if " " <= letter <= "~")[:200]
        head = f"HTTP/1.1 {self.status.value} {reason}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
        return head.encode() + b"Connection: close\r\n\r\n" + body


async def _read_head(client: trio.SocketStream) -> tuple[bytes, bytes]:
    """The head of the request without its empty line, and what came after it."""
    received = bytearray()
    with trio.move_on_after(_HEAD_S):
        while (end := received.find(b"\r\n\r\n")) < 0:
            if len(received) > _HEAD_BYTES:
                raise _Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a request's head has at most {_HEAD_BYTES} bytes")
            if not (piece := await client.receive_some(4096)):
                raise trio.BrokenResourceError
            received += piece
        return bytes(received[:end]), bytes(received[end + 4 :])
    raise _Refused(HTTPStatus.REQUEST_TIMEOUT, "the request did not come")


def _parse(head: bytes) -> _Request:
    first, *lines = head.split(b"\r\n")
    words = first.split(b" ")
    try:
        method, where, version = (word.decode("ascii") for word in words)
    except ValueError:
        raise _Refused(HTTPStatus.BAD_REQUEST, "no request of HTTP") from None
    if version not in ("HTTP/1.1", "HTTP/1.0") or not method.isalpha() or len(where) > MAX_URL:
        raise _Refused(HTTPStatus.BAD_REQUEST, "no request of HTTP 1.1")
    try:
        if method == "CONNECT":
            if not where.rpartition(":")[2].isdigit() or any(each in where for each in "/?#"):
                raise _Refused(HTTPStatus.BAD_REQUEST, "CONNECT names a host and a port")
            return _Request(parse_url(f"http://{where}", "http"), b"")
        target = parse_url(where, "http")
    except RefusedUrl as error:
        raise _Refused(HTTPStatus.BAD_REQUEST, str(error)) from None
    # One request a connection: the next one might be for another host.
    kept = [line for line in lines if line.partition(b":")[0].strip().lower() not in _HOP_BY_HOP | {b"host"}]
    own = [f"{method} {target.path} HTTP/1.1".encode(), f"Host: {target.authority}".encode(), b"Connection: close"]
    return _Request(target, b"\r\n".join([*own, *kept]) + b"\r\n\r\n")
