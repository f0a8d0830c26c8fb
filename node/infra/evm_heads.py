"""New heads of one EVM chain: one WebSocket subscription for the whole process, and looking by the clock while it is away."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import msgspec
import structlog
import trio
from trio_websocket import ConnectionClosed, HandshakeError, WebSocketConnection, open_websocket_url

from consensus.errors import Transient, first_of
from node.infra.chain import Head
from node.infra.nesting import check_nesting
from node.infra.retry import doubling, full_jitter

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

log = structlog.get_logger(__name__)

_MAX_MESSAGE = 64 * 1024  # bytes; a head with a full bloom filter is under 2 kB
_CONNECT_S = 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
SILENT_POLLS = 5
"""Poll intervals without a head after which a connected socket is not believed: the head is then looked at."""


class _GaveUp(Exception):
    """The socket is of no use (any more); the text says why and holds nothing of the URL."""


class Pulse:
    """The beat of one chain, for any number of waiters. Without `url`, or while `run` does not, every waiter polls by itself."""

    def __init__(self, poll_s: float, url: str | None = None, chain_id: int = 0) -> None:
        self._poll_s = poll_s
        self._url = url
        self._chain_id = chain_id
        self._running = False
        self._changed = trio.Event()
        self._last: int | None = None  # the newest head that the socket told, or that was there when it opened
        self._doubted: int | None = None  # a head that it has not told so far
        self._echo = False  # the last beat was a told head: the endpoint that is asked for it may be behind
        self.beats = 0
        self.connected = False
        """Whether heads are told by the socket now."""

    def heads(self) -> PolledHeads | PulsedHeads:
        """A waiter of its own: what beats from now on is not missed."""
        return PulsedHeads(self) if self._url else PolledHeads(self._poll_s)

    async def run(self, head: Callable[[], Awaitable[Head]], *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keeps the subscription until cancelled. `head` reads the head by another way than the socket."""
        self._running = True
        task_status.started()
        try:
            if self._url is not None:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._poll_while_away)
                    await self._keep(self._url, head)
        finally:
            self._running = False
            self._beat()

    async def next_beat(self) -> None:
        """Waits for one more beat."""
        if not self._running:
            with trio.move_on_after(self._poll_s):  # nobody beats: look by the clock
                await self._changed.wait()
            self.beats += 1
        else:
            await self._changed.wait()

    def _beat(self) -> None:
        self.beats += 1
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def _poll_while_away(self) -> None:
        while True:
            await trio.sleep(self._poll_s)
            if not self.connected:
                self._beat()

    async def _keep(self, url: str, head: Callable[[], Awaitable[Head]]) -> None:
        pauses, told = iter(doubling(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)), False
        while True:
            try:
                await self._listen(url, head)
            except _GaveUp as error:
                if self.connected and self._last is not None:  # it was of use: one that only greets is not dialled at once again
                    pauses, told = iter(doubling(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)), False
                self.connected = False
                if not told:
                    log.warning("head_subscription_lost", chain=self._chain_id, host=urlsplit(url).hostname, why=str(error))
                    told = True
            self._beat()
            await trio.sleep(full_jitter(next(pauses)))

    async def _listen(self, url: str, head: Callable[[], Awaitable[Head]]) -> None:
        """Beats with every head that the socket tells. Raises `_GaveUp` when it ends or is deaf."""
        bare, headers = _credentials(url)
        try:
            async with open_websocket_url(
                bare,
                extra_headers=headers,
                max_message_size=_MAX_MESSAGE,
                connect_timeout=_CONNECT_S,
                disconnect_timeout=1,
            ) as socket:
                with trio.move_on_after(_CONNECT_S) as answering:
                    await self._subscribe(socket)
                if answering.cancelled_caught:
                    raise _GaveUp("no answer to eth_subscribe")
                self._last, self._doubted, self._echo = None, None, False
                self.connected = True
                log.info("head_subscription_open", chain=self._chain_id)
                self._beat()  # for what came while it was away
                while True:
                    await self._hear(socket, head)
        except _GaveUp:
            raise
        except (ConnectionClosed, HandshakeError, OSError, ssl.SSLError, ValueError, trio.BrokenResourceError) as error:
            raise _GaveUp(type(error).__name__) from error
        except Exception as error:
            # trio-websocket lets out what the libraries below it raise when a server answers nonsense, in groups at that.
            raise _GaveUp(f"no WebSocket protocol ({type(first_of(error)).__name__})") from error

    async def _subscribe(self, socket: WebSocketConnection) -> None:
        served = await _ask(socket, 1, "eth_chainId", [])
        if not isinstance(served, str) or int(served, 16) != self._chain_id:
            raise _GaveUp("it serves another chain")
        if not isinstance(await _ask(socket, 2, "eth_subscribe", ["newHeads"]), str):
            raise _GaveUp("it has no subscriptions")

    async def _hear(self, socket: WebSocketConnection, head: Callable[[], Awaitable[Head]]) -> None:
        message: dict[str, Any] | None = None
        with trio.move_on_after(self._poll_s * (1 if self._echo else SILENT_POLLS)):
            message = _decoded(await socket.get_message())
        if message is not None:
            told = message.get("params")
            block = told.get("result") if isinstance(told, dict) else None
            number = block.get("number") if isinstance(block, dict) else None
            if isinstance(number, str):
                self._last, self._doubted = int(number, 16), None
            self._echo = True
            self._beat()
            return
        if self._echo:
            self._echo = False
            self._beat()
            return
        try:
            seen = (await head()).number
        except Transient:
            self._beat()  # whoever waits finds out by itself
            return
        if self._last is not None and seen <= self._last:
            return
        self._beat()
        if self._last is None:
            self._last = seen
            return
        if self._doubted is not None:  # twice: one may have been on its way
            raise _GaveUp("it tells no heads though there are new ones")
        self._doubted = seen


class PolledHeads:
    """Looks by the clock."""

    def __init__(self, poll_s: float) -> None:
        self._poll_s = poll_s

    async def wait(self) -> None:
        await trio.sleep(self._poll_s)


class PulsedHeads:
    """Waits for the shared pulse; a beat since the last return returns at once."""

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self._seen = pulse.beats

    async def wait(self) -> None:
        await trio.lowlevel.checkpoint()
        while self._seen == self._pulse.beats:
            await self._pulse.next_beat()
        self._seen = self._pulse.beats


def _credentials(url: str) -> tuple[str, list[tuple[bytes, bytes]]]:
    """The URL without user and password, and the header that carries them."""
    parts = urlsplit(url)
    if parts.username is None:
        return url, []
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return bare, [(b"Authorization", b"Basic " + base64.b64encode(pair.encode()))]


async def _ask(socket: WebSocketConnection, number: int, method: str, params: list[Any]) -> Any:
    """The result of one call; what else comes before it is passed over."""
    await socket.send_message(msgspec.json.encode({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).decode())
    while True:
        message = _decoded(await socket.get_message())
        if message.get("id") == number:
            return message.get("result")


def _decoded(message: str | bytes) -> dict[str, Any]:
    try:
        check_nesting(message)
        found = msgspec.json.decode(message)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        raise _GaveUp("it tells what is no JSON") from None
    if not isinstance(found, dict):
        raise _GaveUp("it tells what is no JSON-RPC")
    return found
