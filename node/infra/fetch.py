"""Requests to URLs that strangers name, so that none reaches into the network this runs in (SSRF), waits, or fills memory.

The guard stands where connections are opened: a name is resolved there, every address it has must be one of the public
internet, and the connection goes to the very address that was looked at, while certificate and Host header stay the name's.
So a name that changes its address between check and use (DNS rebinding) gains nothing. Proxies of the environment are not used.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urljoin

import httpcore
import trio

from consensus.errors import Failed, Transient
from node.infra.addresses import RefusedUrl, Target, name_refusal, parse_url, port_refusal, refusal
from node.infra.connections import CONNECT_S, Connections
from node.infra.retry import full_jitter
from node.infra.settings import FetchSettings

REFUSED = "SOURCE_REFUSED"
UNREACHABLE = "SOURCE_UNREACHABLE"
UNUSABLE = "SOURCE_UNUSABLE"

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a name, as text. Raises OSError when it has none."""

Stream = trio.SocketStream | trio.SSLStream

_MAX_REDIRECTS = 3
_MAX_ADDRESSES = 4  # tried one after the other
_PER_HOST = 4
"""Requests to one host at a time: a slow one holds no more."""
_FIRST_REST_S, _LONGEST_REST_S = 1.0, 60.0
_LONGEST_ASKED_REST_S = 300.0  # Retry-After is obeyed up to this
_REMEMBERED = 4096  # hosts and URLs that failed: the longest unseen are forgotten
_MOST_ANSWERED = 65_536  # URLs that are remembered to have been answered
_RESOLVING = 16  # threads for names that are found quickly, and as many for all others
_SLOW_S, _SLOW_FOR_S = 1.0, 600.0
_FREE_PIECES, _LEAST_PIECE = 512, 64  # chunks of a byte cost a hundred times what the byte does
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = [("User-Agent", "triggerx"), ("Accept", "application/json, */*"), ("Accept-Encoding", "identity")]


class Fetcher:
    """Made by `open_fetcher`. Raises `Failed` with code SOURCE_REFUSED (never asked) or SOURCE_UNUSABLE (the answer is no use),
    and `Transient` with code SOURCE_UNREACHABLE; a host or URL that failed is left alone for a while, doubling up to a minute."""

    def __init__(self, settings: FetchSettings, resolver: Resolver | None, context: ssl.SSLContext) -> None:
        self._settings = settings
        self._resolver = resolver or Names()
        self._context = context
        self._allow = frozenset(entry.lower() for entry in settings.allow)
        self._rests = Rests()
        self._slots: dict[str, _Slots] = {}
        self._answered: OrderedDict[str, None] = OrderedDict()  # URLs that were, the last time
        self._connections = Connections(self.addresses, context)

    async def aclose(self) -> None:
        """Closes the connections that are kept."""
        await self._connections.aclose()

    async def check(self, url: str, *schemes: str) -> None:
        """Whether `url` may be asked, by syntax and by all addresses its name has now. Schemes are http and https unless given.

        For the moment a job is created; `get` and `connect` look again.
        """
        target = self._parsed(url, *(schemes or ("http", "https")))
        with _patience(self._settings.timeout_s):
            try:
                await self.addresses(target.host, target.port)
            except OSError as error:
                raise Transient(UNREACHABLE, f"{target.host} does not resolve ({error})") from None

    async def get(self, url: str) -> bytes:
        """The body of a 2xx answer, after at most three redirects, each checked as the first URL was."""
        target = self._parsed(url, "http", "https")
        turn = _Turn(known=url in self._answered)
        self._rests.refuse(target.place, url, *turn.asked_too_much(target))
        try:
            with _patience(self._settings.timeout_s):
                body = await self._follow(target, turn)
        except Transient as error:
            self._answered.pop(url, None)
            if isinstance(error, _HostFailed):
                self._rests.failed(error.blame, error.pause)
            if not turn.waiting and not (isinstance(error, _HostFailed) and error.unreachable):
                self._rests.failed(url, error.pause if isinstance(error, _HostFailed) else 0.0)
            raise
        self._rests.recovered(target.place, url, _busy(target))
        self._answered.pop(url, None)
        self._answered[url] = None
        while len(self._answered) > _MOST_ANSWERED:
            self._answered.popitem(last=False)
        return body

    async def connect(self, url: str) -> tuple[Target, Stream]:
        """A connection to the host of a ws(s) URL, encrypted and verified for wss, with nothing said on it yet."""
        target = self._parsed(url, "ws", "wss")
        self._rests.refuse(target.place)
        try:
            with _patience(self._settings.timeout_s):
                stream = await self._dial(target)
        except Transient:
            self._rests.failed(target.place)
            raise
        self._rests.recovered(target.place)
        return target, stream

    async def addresses(self, host: str, port: int) -> list[str]:
        """Where a connection to `host` may go. Raises `Failed` when any of its addresses is refused, OSError when it has none."""
        allowed = host in self._allow or f"{host}:{port}" in self._allow or f"[{host}]:{port}" in self._allow
        literal = _literal(host)
        if literal is None and not allowed and (why := name_refusal(host)):
            raise Failed(REFUSED, why)
        if not allowed and (why := port_refusal(port)):
            raise Failed(REFUSED, why)
        found = [literal] if literal is not None else [ip_address(each) for each in await self._resolver(host, port)]
        if not found:
            raise OSError("no address")
        if not allowed:
            for address in found:
                if why := refusal(address):
                    raise Failed(REFUSED, why if literal is not None else f"{host}: {why}")
        return [str(address) for address in found[:_MAX_ADDRESSES]]

    def _parsed(self, url: str, *schemes: str) -> Target:
        try:
            return parse_url(url, *schemes)
        except RefusedUrl as error:
            raise Failed(REFUSED, str(error)) from None

    async def _follow(self, target: Target, turn: _Turn) -> bytes:
        for _ in range(_MAX_REDIRECTS + 1):
            turn.waiting = True
            async with self._slot(target.place):  # also where it is redirected to: nobody is asked more by way of another
                turn.waiting = False
                answer = await self._exchange(target)
            if isinstance(answer, bytes):
                return answer
            if target.secure and not answer.secure:
                raise Failed(REFUSED, "a redirect from https to http")
            target = answer
            turn.waiting = True  # that host's rest is no fault of this URL
            self._rests.refuse(target.place, *turn.asked_too_much(target))
        turn.waiting = False
        raise Failed(UNUSABLE, f"more than {_MAX_REDIRECTS} redirects")

    async def _exchange(self, target: Target) -> bytes | Target:
        """One request: the body, or where it is redirected to."""
        try:
            async with self._connections.get(target, [("Host", target.authority), *_HEADERS]) as response:
                headers = {name.lower(): value for name, value in response.headers}
                if response.status in _REDIRECTS:
                    return self._redirected(target, headers.get(b"location"))
                _check_status(target, response.status, headers.get(b"retry-after", b""))
                if headers.get(b"content-encoding", b"identity").strip().lower() not in (b"identity", b""):
                    raise Failed(UNUSABLE, "a compressed answer, though none was asked for")
                return await self._body(response.aiter_stream())
        except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
            raise _HostFailed(target.place, f"{target.place} cannot be connected to ({_why(error)})") from None
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
            raise Transient(UNREACHABLE, f"{target.place} broke off ({_why(error)})") from None

    def _redirected(self, target: Target, location: bytes | None) -> Target:
        if location is None:
            raise Failed(UNUSABLE, "a redirect that leads nowhere")
        text = location.decode("latin-1")
        try:
            return parse_url(urljoin(target.url, text), "http", "https")
        except ValueError as error:  # RefusedUrl is one; urljoin raises others
            raise Failed(REFUSED, f"a redirect to another url: {error}") from None

    async def _body(self, chunks: AsyncIterator[bytes]) -> bytes:
        body, pieces = bytearray(), 0
        async for chunk in chunks:
            body += chunk
            pieces += 1
            if pieces > _FREE_PIECES + len(body) // _LEAST_PIECE:
                raise Failed(UNUSABLE, "an answer in crumbs")
            if len(body) > self._settings.max_bytes:
                raise Failed(UNUSABLE, f"an answer of more than {self._settings.max_bytes} bytes")
        return bytes(body)

    async def _dial(self, target: Target) -> Stream:
        why = ""
        for address in await self._resolved(target.host, target.port):
            try:
                with trio.fail_after(CONNECT_S):
                    stream = await trio.open_tcp_stream(address, target.port)
                break
            except (OSError, trio.TooSlowError) as error:
                why = str(error)
        else:
            raise Transient(UNREACHABLE, f"{target.place} cannot be connected to ({why})")
        if not target.secure:
            return stream
        secured = trio.SSLStream(stream, self._context, server_hostname=target.host, https_compatible=True)
        try:
            await secured.do_handshake()
        except trio.BrokenResourceError as error:
            await trio.aclose_forcefully(stream)
            raise Transient(UNREACHABLE, f"{target.place} breaks TLS ({error.__cause__})") from None
        except trio.Cancelled:
            await trio.aclose_forcefully(stream)
            raise
        return secured

    async def _resolved(self, host: str, port: int) -> list[str]:
        try:
            return await self.addresses(host, port)
        except OSError as error:
            raise Transient(UNREACHABLE, f"{host} does not resolve ({error})") from None

    @asynccontextmanager
    async def _slot(self, place: str) -> AsyncIterator[None]:
        slots = self._slots.setdefault(place, _Slots())
        slots.users += 1
        try:
            async with slots.limiter:
                yield
        finally:
            slots.users -= 1
            if not slots.users:
                self._slots.pop(place, None)


class Rests:
    """Who failed, and until when nobody is asked for it: pauses double with each failure in a row. Bounded."""

    def __init__(self, most: int = _REMEMBERED) -> None:
        self._until: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._most = most

    def __len__(self) -> int:
        return len(self._until)

    def refuse(self, *keys: str) -> None:
        """Raises `Transient` while one of them rests."""
        for key in keys:
            until, _ = self._until.get(key, (0.0, 0.0))
            if (left := until - trio.current_time()) > 0:
                raise Transient(UNREACHABLE, f"failed before: asked again in {left:.0f} s")

    def failed(self, key: str, at_least: float = 0.0) -> None:
        _, last = self._until.pop(key, (0.0, 0.0))
        pause = min(2 * last, _LONGEST_REST_S) if last else _FIRST_REST_S
        self._until[key] = trio.current_time() + max(full_jitter(pause), at_least), pause
        while len(self._until) > self._most:
            self._until.popitem(last=False)

    def recovered(self, *keys: str) -> None:
        for key in keys:
            self._until.pop(key, None)


class _HostFailed(Transient):
    """The host is to rest, not only the one URL: it cannot be reached, or says itself that it is asked too much."""

    def __init__(self, blame: str, detail: str, pause: float = 0.0, *, unreachable: bool = True) -> None:
        super().__init__(UNREACHABLE, detail)
        self.blame = blame
        self.pause = pause
        self.unreachable = unreachable


@dataclass(slots=True)
class _Turn:
    """One request's way: whether its URL was `known` to be answered, and whether it waits for others."""

    known: bool
    waiting: bool = True

    def asked_too_much(self, target: Target) -> Sequence[str]:
        """A host that is asked too much rests for all URLs but those that it answered the last time: a path that says 503 to
        everybody must not stop what others watch there."""
        return () if self.known else (_busy(target),)


def _busy(target: Target) -> str:
    return f"busy {target.place}"


class _Slots:
    """The requests to one host; kept while there are any."""

    def __init__(self) -> None:
        self.limiter = trio.CapacityLimiter(_PER_HOST)
        self.users = 0


class Names:
    """The system's resolver, in threads of its own. A look-up that takes long holds its thread until the system gives it up, so
    names that have been found quickly have threads that no other name gets; one that was slow is not among them for a while."""

    def __init__(self, look_up: Callable[[str, int], Sequence[str]] | None = None) -> None:
        self._look_up = look_up or _look_up
        self._quick: OrderedDict[str, None] = OrderedDict()
        self._slow: OrderedDict[str, float] = OrderedDict()
        self._threads: dict[bool, trio.CapacityLimiter] = {}

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        threads = self._threads.setdefault(host in self._quick, trio.CapacityLimiter(_RESOLVING))
        took = _SLOW_S
        try:
            found, took = await trio.to_thread.run_sync(self._timed, host, port, abandon_on_cancel=True, limiter=threads)  # type: ignore[call-arg]
        finally:
            self._remember(host, slow=took >= _SLOW_S)
        if isinstance(found, OSError):
            raise found
        return list(dict.fromkeys(found))

    def _remember(self, host: str, *, slow: bool) -> None:
        now = trio.current_time()
        if slow:
            self._quick.pop(host, None)
            self._slow[host] = now + _SLOW_FOR_S
        elif self._slow.get(host, now) <= now:
            self._slow.pop(host, None)
            self._quick[host] = None
        for names in (self._quick, self._slow):
            while len(names) > _REMEMBERED:
                names.popitem(last=False)

    def _timed(self, host: str, port: int) -> tuple[Sequence[str] | OSError, float]:
        began = time.perf_counter()
        try:
            found: Sequence[str] | OSError = self._look_up(host, port)
        except OSError as error:
            found = error
        return found, time.perf_counter() - began


@asynccontextmanager
async def open_fetcher(
    settings: FetchSettings, *, resolver: Resolver | None = None, ssl_context: ssl.SSLContext | None = None
) -> AsyncIterator[Fetcher]:
    """Dials nothing by itself. `resolver` and `ssl_context` are the system's and the usual authorities' unless given."""
    fetcher = Fetcher(settings, resolver, ssl_context or httpcore.default_ssl_context())
    try:
        yield fetcher
    finally:
        await fetcher.aclose()


def _look_up(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(str(error)) from None
    return [str(address[0]) for *_, address in found]


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _check_status(target: Target, status: int, retry_after: bytes) -> None:
    if 200 <= status < 300:
        return
    if status in (429, 503):
        pause = min(float(retry_after), _LONGEST_ASKED_REST_S) if retry_after.isdigit() and len(retry_after) < 9 else 0.0
        raise _HostFailed(_busy(target), f"{target.place} answers {status}: it is asked too much", pause, unreachable=False)
    if status >= 500 or status == 408:
        raise Transient(UNREACHABLE, f"{target.place} answers {status}")
    raise Failed(UNUSABLE, f"{target.place} answers {status}")


def _why(error: Exception) -> str:
    return str(error)[:200] or type(error).__name__


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise Transient(UNREACHABLE, f"no answer within {seconds:g} s") from None
