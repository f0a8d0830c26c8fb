"""Sources over HTTP and WebSocket, from real servers: one request for all routes, digits kept, and what is no number named."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from functools import partial
from itertools import pairwise

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, Request, TextMessage

from consensus.conditions import ApiSource, BalanceSource, OracleSource, StaticSource, WebSocketSource
from consensus.errors import Failed, Transient
from node.infra.fetch import open_fetcher
from node.infra.settings import FetchSettings
from node.infra.sources import Heard, Sources, parse_answer
from node.infra.sources.answers import Answer
from node.infra.sources.websockets import Budget, _Connection
from tests.infra.web import Web, open_web, redirect, reply

Handler = Callable[[object], Awaitable[None]]


def no_calls(function: str, arguments: str) -> bytes:
    raise AssertionError("no chain is here")


@asynccontextmanager
async def open_sources(*allow: str, timeout_s: float = 5.0, max_bytes: int = 65_536):
    async with open_fetcher(FetchSettings(allow=allow, timeout_s=timeout_s, max_bytes=max_bytes)) as fetcher:
        yield Sources(fetcher, {}, no_calls, timeout_s=timeout_s, max_message=max_bytes)


@pytest.fixture
async def web():
    async with open_web() as opened:
        yield opened


@pytest.fixture
async def sources(web: Web):
    async with open_sources(web.place) as opened:
        yield opened


# HTTP


@pytest.mark.parametrize(
    ("body", "route", "expected"),
    [
        (b"0.5", "", "0.5"),
        (b" 0.5\n", "", "0.5"),
        (b'"0.5"', "", "0.5"),
        (b"\xef\xbb\xbf7", "", "7"),
        (b"0", "", "0"),
        (b"-12.50", "", "-12.5"),
        (b"1e30", "", "1000000000000000000000000000000"),
        (b"0.30000000000000004", "", "0.30000000000000004"),
        (
            b'{"a":{"b":[{"c":115792089237316195423570985008687907853269984665640564039457584007913129639935}]}}',
            "a.b[0].c",
            str(2**256 - 1),
        ),
        (b'{"data":{"ETH/USD":"2500.10"}}', 'data["ETH/USD"]', "2500.1"),
        (b'{"x":1,"bad":NaN}', "x", "1"),
        (b'{"x":1,"x":2}', "x", "2"),
        (b"[[1,2],[3,4]]", "[1][0]", "3"),
    ],
)
async def test_a_value_comes_with_every_digit(web: Web, sources: Sources, body: bytes, route: str, expected: str):
    web.replies["/"] = reply(body)
    assert await sources.read(ApiSource(f"{web.url}/", route)) == Decimal(expected)


@pytest.mark.parametrize(
    ("body", "route", "says"),
    [
        (b'{"x":null}', "x", "null is no number"),
        (b'{"x":false}', "x", "false is no number"),
        (b'{"x":NaN}', "x", "'NaN' is no number"),
        (b'{"x":-Infinity}', "x", "is no number"),
        (b'{"x":"n/a"}', "x", "'n/a' is no number"),
        (b'{"x":""}', "x", "empty text"),
        (b'{"x":{}}', "x", "an object is no number"),
        (b'{"x":[1]}', "x", "an array is no number"),
        (b'{"x":"0x10"}', "x", "is no number"),
        (b'{"x":1}', "y", "no key 'y' at the top"),
        (b'{"x":[]}', "x[0]", "no place 0"),
        (b"{}", "", "an object is no number"),
        (b"", "", "no JSON"),
        (b"<html>", "", "no JSON"),
        (b"\xff\xfe1\x00", "", "no JSON"),
        (b'{"x":1', "x", "no JSON"),
        (b"[" * 100_000, "", "nested too deeply"),
        (b'{"a":' * 5000, "a", "nested too deeply"),
        (b"9" * 5000, "", "5000 characters"),
        (b"1e999999999", "", "is no number"),
    ],
)
async def test_what_is_no_number_is_named(web: Web, body: bytes, route: str, says: str):
    web.replies["/"] = reply(body)
    async with open_sources(web.place, max_bytes=1_000_000) as sources:
        with pytest.raises(Failed) as raised:
            await sources.read(ApiSource(f"{web.url}/", route))
    assert raised.value.code == "SOURCE_UNUSABLE"
    assert says in raised.value.detail


async def test_many_routes_of_one_url_are_one_request(web: Web, sources: Sources):
    web.replies["/"] = reply(b"[" + b",".join(b"%d" % n for n in range(1000)) + b"]")
    wanted = [ApiSource(f"{web.url}/", f"[{n}]") for n in range(1001)]
    values = await sources.read_each(wanted)
    assert [values[each] for each in wanted[:1000]] == list(range(1000))
    assert isinstance(values[wanted[1000]], Failed)
    assert web.asked["/"] == 1


async def test_a_large_answer_is_taken_apart_off_the_loop(web: Web):
    ran = []

    async def compute(work, /, *args):
        ran.append(work)
        await trio.lowlevel.checkpoint()
        return work(*args)

    web.replies |= {"/large": reply(b"[1" + b" " * 20_000 + b"]"), "/small": reply(b"[1]")}
    async with open_fetcher(FetchSettings(allow=(web.place,))) as fetcher:
        sources = Sources(fetcher, {}, no_calls, compute=compute)
        assert await sources.read(ApiSource(f"{web.url}/small", "[0]")) == 1
        assert ran == []
        assert await sources.read(ApiSource(f"{web.url}/large", "[0]")) == 1
        assert ran == [parse_answer]


async def test_a_source_that_is_away_or_refused_is_told_apart(web: Web, sources: Sources):
    web.replies |= {"/away": reply(b"", 500), "/redirect": redirect("http://169.254.169.254/")}
    for path, kind, code in (
        ("/away", Transient, "SOURCE_UNREACHABLE"),
        ("/redirect", Failed, "SOURCE_REFUSED"),
        ("/nothing", Failed, "SOURCE_UNUSABLE"),
    ):
        with pytest.raises(kind) as raised:
            await sources.read(ApiSource(f"{web.url}{path}"))
        assert raised.value.code == code
    with pytest.raises(Failed) as raised:
        await sources.read(ApiSource("http://10.0.0.1/"))
    assert raised.value.code == "SOURCE_REFUSED"


async def test_static_values_are_what_they_say(sources: Sources):
    assert await sources.read(StaticSource("-0.10")) == Decimal("-0.1")


def test_what_is_read_together_is_of_one_place():
    place = Sources.place
    assert place(ApiSource("https://a.b/c", "x")) == place(ApiSource("https://a.b/c", "y"))
    assert place(ApiSource("https://a.b/c")) != place(ApiSource("https://a.b/d"))
    assert place(BalanceSource(1, b"\1" * 20)) != place(BalanceSource(1, b"\2" * 20))
    assert place(BalanceSource(1, b"\1" * 20)) != place(OracleSource(1, b"\1" * 20))
    assert Sources.host_of(ApiSource("https://A.b/c")) == "a.b:443"
    assert Sources.host_of(WebSocketSource("ws://a.b:8080/c")) == "a.b:8080"
    assert Sources.host_of(BalanceSource(5, b"\1" * 20)) == "chain 5"


@given(st.binary(max_size=200), st.sampled_from(["", "a", "[0]", "a.b[0]"]))
def test_any_answer_is_a_number_or_named(body: bytes, route: str):
    try:
        number = parse_answer(body).number(route)
    except Failed:
        return
    assert number.is_finite()


# WebSockets


@asynccontextmanager
async def open_feed(handle: Callable[..., Awaitable[None]]):
    """A real WebSocket server: `ws://...` and the number of connections it had."""
    connections = []

    async def serve(request: WebSocketRequest) -> None:
        connections.append(request.path)
        connection = await request.accept()
        try:
            await handle(connection)
        except ConnectionClosed:
            return

    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve_websocket, serve, "127.0.0.1", 0, ssl_context=None))
        yield f"127.0.0.1:{server.port}", connections
        nursery.cancel_scope.cancel()


def after_handshake(web: Web, frames: bytes) -> Callable[[trio.abc.Stream], Awaitable[None]]:
    """Accepts, sends these bytes, and is gone."""

    async def serve(stream: trio.abc.Stream) -> None:
        key = next(line.split(b": ")[1] for line in web.heads[-1].split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
        token = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        head = b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + token
        await stream.send_all(head + b"\r\n\r\n" + frames)
        await trio.aclose_forcefully(stream)

    return serve


class Hearing:
    def __init__(self) -> None:
        self.send, self.receive = trio.open_memory_channel[Heard](1000)

    async def __call__(self, heard: Heard) -> None:
        await self.send.send(heard)

    async def value(self, route: str = "") -> Decimal | Failed | Transient:
        with trio.fail_after(10):
            heard = await self.receive.receive()
        return heard if isinstance(heard, Failed | Transient) else heard[-1].number(route)


async def test_the_first_message_with_the_value_is_taken():
    async def handle(connection) -> None:
        for message in ("hello", '{"type":"welcome"}', b'{"p":"0.10"}', '{"p":"0.20"}'):
            await connection.send_message(message)
        await trio.sleep_forever()

    async with open_feed(handle) as (place, connections), open_sources(place) as sources:
        assert await sources.read(WebSocketSource(f"ws://{place}/a?b", "p")) == Decimal("0.1")
        assert connections == ["/a?b"]


async def test_a_websocket_without_the_value_is_given_up():
    async def handle(connection) -> None:
        await connection.send_message('{"q":1}')
        await trio.sleep_forever()

    async with open_feed(handle) as (place, _), open_sources(place, timeout_s=0.3) as sources:
        values = await sources.read_each([WebSocketSource(f"ws://{place}/", route) for route in ("q", "p")])
        assert list(map(type, values.values())) == [Decimal, Failed]
        with pytest.raises(Failed, match="no key 'p'"):
            await sources.read(WebSocketSource(f"ws://{place}/", "p"))


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (reply(b"no", 404), Failed),
        (reply(b"", 403), Failed),
        (b"SSH-2.0\r\n\r\n", Transient),
        (b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: wrong\r\n\r\n", Transient),
        (b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: \xff\r\n\r\n", Transient),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Failed),
        (b"HTTP/1.1 100 Continue\r\n\r\n", Failed),
        (b"\x88\x00" * 9, Transient),
        (b"", Transient),
    ],
)
async def test_what_is_no_websocket_is_named(web: Web, answer: bytes, kind: type[Exception]):
    async def and_gone(stream: trio.abc.Stream) -> None:
        await stream.send_all(answer)
        await trio.aclose_forcefully(stream)

    web.replies["/"] = and_gone
    async with open_sources(web.place) as sources:
        with pytest.raises(kind):
            await sources.read(WebSocketSource(f"ws://{web.place}/"))


async def test_a_websocket_is_followed_over_breaks():
    beat = 0

    async def handle(connection) -> None:
        nonlocal beat
        beat += 1
        await connection.send_message(str(beat))

    async with open_feed(handle) as (place, connections), open_sources(place) as sources:
        hearing = Hearing()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sources.follow, f"ws://{place}/", hearing)
            heard = [await hearing.value() for _ in range(4)]
            nursery.cancel_scope.cancel()
    assert [value for value in heard if isinstance(value, Decimal)] == [1, 2]
    assert all(isinstance(value, Transient) for value in (heard[1], heard[3]))
    assert len(connections) == 2


async def test_a_chatty_feed_is_heard_seldom_and_its_newest_message_counts():
    async def handle(connection) -> None:
        for n in range(500):
            await connection.send_message(f'{{"p":{n}}}')
        await trio.sleep_forever()

    async with open_feed(handle) as (place, _), open_sources(place) as sources:
        hearing, values = Hearing(), []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sources.follow, f"ws://{place}/", hearing)
            while not values or values[-1] != 499:
                values.append(await hearing.value("p"))
            nursery.cancel_scope.cancel()
    assert len(values) < 100
    assert values == sorted(values)


@pytest.mark.parametrize(
    "frames",
    [
        b"\xc1\x00",  # a reserved bit
        b"\x83\x00",  # an opcode that there is none of
        b"\x81\x81\x00\x00\x00\x00\x00",  # masked, as no server does
        b"\x81\x02\xff\xfe",  # no UTF-8
        b"\x80\x00",  # a continuation of nothing
        b"\x89\x7e\x01\x00",  # a ping that is too long
        b"\x81\x7f\xff\xff\xff\xff\xff\xff\xff\xff",  # longer than there is memory
        b"\x88\x01\x03",  # half a code
    ],
)
async def test_frames_against_the_protocol_end_the_connection_and_nothing_else(web: Web, frames: bytes):
    web.replies["/"] = after_handshake(web, frames)
    async with open_sources(web.place) as sources:
        with pytest.raises((Transient, Failed)):
            await sources.read(WebSocketSource(f"ws://{web.place}/"))


async def test_a_message_in_many_parts_is_one():
    async def handle(connection) -> None:
        for part, last in ((b"[1", False), (b"", False), (b"", False), (b"2]", True)):
            await connection._send(BytesMessage(data=part, message_finished=last))
        await trio.sleep_forever()

    async with open_feed(handle) as (place, _), open_sources(place) as sources:
        assert await sources.read(WebSocketSource(f"ws://{place}/", "[0]")) == 12


@pytest.mark.parametrize("size", [2000, 60_000])
async def test_a_message_that_is_too_long_ends_the_connection(size: int):
    async def handle(connection) -> None:
        await connection.send_message('"' + "x" * size + '"')
        await trio.sleep_forever()

    async with open_feed(handle) as (place, _), open_sources(place, max_bytes=1024) as sources:
        with pytest.raises((Transient, Failed)):
            await sources.read(WebSocketSource(f"ws://{place}/"))


async def test_a_feed_that_floods_is_cut_off():
    async def handle(connection) -> None:
        while True:
            await connection.send_message(b"x" * 30_000)

    async with open_feed(handle) as (place, _), open_sources(place) as sources:
        with pytest.raises(Failed, match="KiB a second"):
            await sources.read(WebSocketSource(f"ws://{place}/"))


async def test_a_flood_of_tiny_frames_is_cut_off_too(web: Web):
    web.replies["/"] = after_handshake(web, b"\x8a\x00" * 1_000_000)
    async with open_sources(web.place, timeout_s=30) as sources:
        with pytest.raises(Failed, match="KiB a second"):
            await sources.read(WebSocketSource(f"ws://{web.place}/"))


async def test_many_feeds_that_each_keep_within_their_limit_are_read_by_turns(autojump_clock: MockClock):
    """A crowd of one user's servers, and one that says little: what all may do is bounded, and the quiet one has its turn."""
    budget = Budget(per_second=100_000)
    read = 0
    quiet: list[float] = []

    async def floods() -> None:
        nonlocal read
        while True:
            await budget.turn()
            read += 4096
            budget.spend(4096)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(floods)
        for _ in range(10):
            await budget.turn()
            budget.spend(300)
            quiet.append(trio.current_time())
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert read < 100_000 * (trio.current_time() - quiet[0] + 10)
    assert max(after - before for before, after in pairwise(quiet)) < 100 * 4096 / 100_000 + 1


async def test_a_feed_is_not_read_while_what_all_may_do_is_spent(autojump_clock: MockClock):
    client, server = trio.testing.memory_stream_pair()
    taken: list[str | bytes] = []

    async def take(message: str | bytes) -> None:
        taken.append(message)

    budget = Budget(per_second=1000)
    connection = _Connection(client, "a.example:443", 1024, take, budget)  # type: ignore[arg-type]
    protocol = WSConnection(ConnectionType.SERVER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.open, "a.example", "/")
        while not any(isinstance(event, Request) for event in protocol.events()):
            protocol.receive_data(bytes(await server.receive_some()))
        await server.send_all(protocol.send(AcceptConnection()))
    budget.spend(100_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        await server.send_all(protocol.send(TextMessage("1")))
        await trio.sleep(90)
        assert taken == []
        await trio.sleep(10)
        assert taken == ["1"]
        nursery.cancel_scope.cancel()


async def test_the_connections_of_all_sources_share_one_budget(web: Web):
    web.replies["/"] = after_handshake(web, b"\x81\x011" * 100)
    async with open_sources(web.place) as sources:
        left = sources._budget._left
        assert await sources.read(WebSocketSource(f"ws://{web.place}/")) == 1
        assert sources._budget._left < left


async def test_websockets_into_the_private_network_are_refused(sources: Sources):
    for url in ("ws://127.0.0.1:1/", "ws://169.254.169.254/", "wss://localhost/", "ws://2130706433/"):
        with pytest.raises(Failed) as raised:
            await sources.read(WebSocketSource(url))
        assert raised.value.code == "SOURCE_REFUSED"


def test_an_answer_is_a_value():
    assert Answer({"a": "1"}).number("a") == 1


@given(
    st.binary(max_size=300)
    | st.lists(st.sampled_from([b"\x81\x01", b"1", b"\x01\x00", b"\x80\x00", b"\x89\x00", b"\x8a\x00"])).map(b"".join)
)
async def test_any_bytes_after_the_handshake_end_in_a_named_error(sent: bytes):
    client, server = trio.testing.memory_stream_pair()
    taken: list[str | bytes] = []

    async def take(message: str | bytes) -> None:
        taken.append(message)

    async def serve() -> None:
        protocol = WSConnection(ConnectionType.SERVER)
        while not any(isinstance(event, Request) for event in protocol.events()):
            protocol.receive_data(bytes(await server.receive_some()))
        await server.send_all(protocol.send(AcceptConnection()) + sent)
        await server.send_eof()

    connection = _Connection(client, "a.example:443", 1024, take, Budget())  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with pytest.raises((Transient, Failed)):  # noqa: PT012 - either of them may meet the bytes
            await connection.open("a.example", "/")
            await connection.run()
    assert all(len(message) <= 1024 for message in taken)
