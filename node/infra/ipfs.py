"""An IPFS daemon that the operator runs (Kubo or a kin of it), by its HTTP API: the one file that knows ipfshttpclient.

Its URL may well be a loopback address: it is the operator's own, and no user names it. What it answers is checked all the same.
"""

from __future__ import annotations

import ipaddress
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import ipfshttpclient  # type: ignore[import-untyped]
import msgspec
import requests
import structlog
import trio
import urllib3

from consensus.cid import MAX_BLOCK_BYTES, Cid, matches
from consensus.errors import Failed, Transient
from consensus.unixfs import TOO_LARGE
from p2p.blobs import MISMATCH, NOT_FOUND

T = TypeVar("T")

log = structlog.get_logger(__name__)

UNREACHABLE = "IPFS_UNREACHABLE"
warnings.filterwarnings("ignore", message="The 'strict' parameter", category=FutureWarning)  # ipfshttpclient's, at each call
_AT_ONCE = 4  # the client blocks a thread each; what one file needs comes one block after another
_PIECE = 16 * 1024  # between two looks at the clock and at the size
_CONNECT_S = 5.0
_ANSWER_BYTES = 64 * 1024  # of what is a line of JSON
_ADD = {"cid-version": "1", "raw-leaves": "true", "chunker": "size-262144", "pin": "true", "quieter": "true"}
"""`consensus.cid.DEFAULT`, said in full: a daemon's own configuration may change what `add` does."""


class _Added(msgspec.Struct):
    """The answer to `add`, of which only the CID matters."""

    hash: str = msgspec.field(name="Hash")


class IpfsDaemon:
    """The daemon at `url` (`http://127.0.0.1:5001`); each call takes at most `timeout_s` seconds.

    Every method raises `Transient` IPFS_UNREACHABLE when the daemon is away, slow, or answers nonsense.
    """

    def __init__(self, url: str, *, timeout_s: float = 20.0) -> None:
        parts = urlsplit(url)
        self._shown = f"{parts.scheme}://{parts.hostname}:{_port(url)}"
        self._timeout = timeout_s
        # Not `connect()`, which refuses daemons newer than itself, and would dial here.
        self._client = ipfshttpclient.Client(
            _multiaddr(url),
            parts.path.strip("/") or "api/v0",
            auth=(unquote(parts.username), unquote(parts.password or "")) if parts.username else None,
            timeout=(min(_CONNECT_S, timeout_s), timeout_s),
        )
        self._threads = trio.CapacityLimiter(_AT_ONCE)

    async def add(self, data: bytes) -> str:
        """Adds the file, pinned; its CID, which is `consensus.cid.cid_of`'s. Raises `Transient`."""
        said = await self._call(partial(self._read, "add", _ANSWER_BYTES, list(_ADD.items()), data))
        try:
            cid = msgspec.json.decode(said or b"", type=_Added).hash
        except (msgspec.DecodeError, UnicodeDecodeError):
            cid = ""
        if not matches(cid, data):
            raise Transient(UNREACHABLE, f"{self._shown} names the file {cid[:64]!r}, which is not its CID")
        return cid

    async def pin(self, cid: str) -> None:
        """Has the daemon fetch the file from wherever it finds it, and keep it. Raises `Transient`."""
        if await self._call(partial(self._read, "pin/add", _ANSWER_BYTES, [("arg", str(Cid.parse(cid)))])) is None:
            raise Transient(UNREACHABLE, f"{self._shown} cannot pin {cid}")

    async def cat(self, cid: str, *, max_bytes: int) -> bytes:
        """The file. Raises `Failed` CONTENT_TOO_LARGE, `Transient` CONTENT_NOT_FOUND or CONTENT_MISMATCH.

        Checked against the layouts that Kubo makes by its defaults; a file laid out otherwise is fetched by its blocks.
        """
        named = str(Cid.parse(cid))
        data = await self._call(partial(self._read, "cat", max_bytes, [("arg", named), ("length", str(max_bytes + 1))]))
        if data is None:
            raise Transient(NOT_FOUND, f"{self._shown} has no file {cid}")
        if not matches(cid, data):
            raise Transient(MISMATCH, f"{self._shown} sent other bytes for {cid}")
        return data

    async def block(self, cid: Cid) -> bytes | None:
        """The bytes that the daemon has or finds for a block, unchecked; None where it finds none. Raises `Transient`."""
        try:
            return await self._call(partial(self._read, "block/get", MAX_BLOCK_BYTES, [("arg", str(cid))]))
        except Failed:
            return None  # no block of a file is so large

    async def source(self, cid: Cid) -> bytes | None:
        """`block` for `p2p.blobs`: a daemon that is away has nothing."""
        try:
            return await self.block(cid)
        except Transient as error:
            log.warning("ipfs_daemon_away", code=error.code, detail=error.detail)
            return None

    def _read(self, path: str, max_bytes: int, options: list[tuple[str, str]], file: bytes | None = None) -> bytes | None:
        """In a thread: the answer's bytes as far as `max_bytes`, or None for the daemon's word that it cannot.

        By the client's inner request, since the public ones read the whole answer, however long, before they return.
        """
        until = time.monotonic() + self._timeout
        asked = [*options, ("timeout", f"{max(1, int(self._timeout))}s")]
        data, headers = ipfshttpclient.multipart.stream_bytes(file, chunk_size=_PIECE) if file is not None else (None, None)
        try:
            closing, pieces = self._client._client._request(
                "POST", path, asked, auth=None, data=data, headers=headers, timeout=None, chunk_size=_PIECE
            )
        except ipfshttpclient.exceptions.ErrorResponse:
            return None
        try:
            found = bytearray()
            for piece in pieces:
                found += piece
                if len(found) > max_bytes:
                    raise Failed(TOO_LARGE, f"more than {max_bytes} bytes")
                if time.monotonic() > until:
                    raise Transient(UNREACHABLE, f"{self._shown} took more than {self._timeout:g} s")
            return bytes(found)
        finally:
            for each in closing:
                each.close()

    async def _call(self, work: Callable[[], T]) -> T:
        """The blocking client in a thread. A call given up leaves its thread to end by the client's own timeout."""
        try:
            with trio.fail_after(self._timeout):
                # The stubs that libp2p brings along know only the old name of `abandon_on_cancel`.
                return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._threads)  # type: ignore[call-arg]
        except trio.TooSlowError:
            raise Transient(UNREACHABLE, f"{self._shown} took more than {self._timeout:g} s") from None
        except (ipfshttpclient.exceptions.Error, requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise Transient(UNREACHABLE, f"{self._shown}: {_first_line(error)}") from error


def _first_line(error: Any) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def _multiaddr(url: str) -> str:
    """`http://127.0.0.1:5001` as the client wants it."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        kind = f"ip{ipaddress.ip_address(host).version}"
    except ValueError:
        kind = "dns"
    return f"/{kind}/{host}/tcp/{_port(url)}/{parts.scheme}"
