"""The way out of a sandbox: to the hosts that a script declares, at public addresses, so much and no more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.errors import Failed
from node.infra.fetch import open_fetcher
from node.infra.settings import FetchSettings
from node.sandbox.egress import Egress, open_egress, places
from node.sandbox.port import Limits
from tests.infra.web import Web, open_web, reply

NAME = "api.example.com"


class Resolver:
    """Answers with `addresses`, one list after the other, the last for ever."""

    def __init__(self, *addresses: Sequence[str]) -> None:
        self._addresses = list(addresses)
        self.asked = 0
        self.gone = False

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        if self.gone:
            raise OSError("no such name")
        return self._addresses.pop(0) if len(self._addresses) > 1 else self._addresses[0]


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with open_web() as opened:
        opened.replies["/"] = reply(b"hello")
        yield opened


@asynccontextmanager
async def open_way(
    hosts: Sequence[str], allow: Sequence[str] = (), resolver: Resolver | None = None, limits: Limits | None = None
) -> AsyncIterator[Egress]:
    settings = FetchSettings(allow=tuple(allow))
    async with (
        open_fetcher(settings, resolver=resolver or Resolver(["127.0.0.1"])) as fetcher,
        open_egress(hosts, limits or Limits(), addresses=fetcher.addresses) as egress,
    ):
        yield egress


async def said(egress: Egress, request: bytes, *, ended: bool = True) -> bytes:
    """All that comes back. `ended`: the request is said to be all there is."""
    stream = await trio.open_unix_socket(egress.socket_path)
    async with stream:
        await stream.send_all(request)
        if ended:
            await stream.send_eof()
        received = b""
        with suppress(trio.BrokenResourceError):  # cut off with something unread
            async for piece in stream:
                received += piece
        return received


def get(place: str, path: str = "/") -> bytes:
    return f"GET http://{place}{path} HTTP/1.1\r\nHost: {place}\r\nProxy-Connection: keep-alive\r\n\r\n".encode()


def connect(place: str) -> bytes:
    return f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode()


async def test_a_declared_host_is_reached_by_request_and_by_tunnel(web: Web):
    place = f"{NAME}:{web.port}"
    async with open_way([place], [place]) as egress:
        assert (await said(egress, get(place))).endswith(b"\r\n\r\nhello")
        assert b"proxy-connection" not in web.heads[0].lower()
        assert web.heads[0].startswith(b"GET / HTTP/1.1\r\n")
        assert b"Connection: close" in web.heads[0]
        before = egress.transferred
        tunnelled = connect(place) + b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        answer = await said(egress, tunnelled)
        assert answer.startswith(b"HTTP/1.1 200 Connection established\r\n\r\nHTTP/1.1 200 x\r\n")
        assert egress.transferred > before > len("hello")


@pytest.mark.parametrize(
    "request_line",
    [
        connect("other.example.com:443"),
        connect(f"{NAME}:22"),
        connect(f"{NAME}:8443"),
        connect("127.0.0.1:443"),
        connect("[::1]:443"),
        get("other.example.com"),
        get(f"{NAME}:8080"),
        get(f"{NAME}.evil.example"),
    ],
)
async def test_a_host_or_port_that_is_not_declared_is_refused_without_a_look_up(request_line: bytes):
    resolver = Resolver(["93.184.216.34"])
    async with open_way([NAME], resolver=resolver) as egress:
        answer = await said(egress, request_line)
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"is not declared" in answer
        assert egress.transferred == 0
    assert resolver.asked == 0


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "192.168.1.1", "100.64.0.1", "::1", "fd00::1", "fe80::1"]
)
async def test_a_declared_name_that_leads_to_a_private_address_is_refused(address: str):
    async with open_way([NAME], resolver=Resolver([address])) as egress:
        answer = await said(egress, connect(f"{NAME}:443"))
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"no address of the public internet" in answer


@pytest.mark.parametrize("host", ["127.0.0.1", "169.254.169.254", "localhost", "[::1]", "metadata.internal"])
async def test_a_declared_private_address_is_refused(host: str):
    async with open_way([host]) as egress:
        assert (await said(egress, connect(f"{host}:443"))).startswith(b"HTTP/1.1 403 ")


async def test_a_name_that_turns_private_between_two_connections_is_refused_at_the_second(web: Web):
    """DNS rebinding: each connection goes to an address that was looked at for it."""
    resolver = Resolver(["93.184.216.34", "10.0.0.1"], ["127.0.0.1"])
    place = f"{NAME}:{web.port}"
    async with open_way([place], resolver=resolver) as egress:
        for _ in range(2):
            assert (await said(egress, connect(place))).startswith(b"HTTP/1.1 403 ")
    assert resolver.asked == 2
    assert web.connections == 0


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET https://api.example.com/ HTTP/1.1\r\n\r\n",
        b"GET ftp://api.example.com/ HTTP/1.1\r\n\r\n",
        b"GET http://user:pass@api.example.com/ HTTP/1.1\r\n\r\n",
        b"GET http://api.example.com\\@evil.example/ HTTP/1.1\r\n\r\n",
        b"CONNECT api.example.com HTTP/1.1\r\n\r\n",
        b"CONNECT api.example.com:443/x:443 HTTP/1.1\r\n\r\n",
        b"CONNECT api.example.com:99999 HTTP/1.1\r\n\r\n",
        b"CONNECT api.example.com:443\r\n\r\n",
        b"GET  http://api.example.com/ HTTP/1.1\r\n\r\n",
        b"GET http://api.example.com/ HTTP/2\r\n\r\n",
        b"\x16\x03\x01\x02\x00\r\n\r\n",
        b"\r\n\r\n",
    ],
)
async def test_what_is_no_request_to_a_proxy_is_refused(request_head: bytes):
    resolver = Resolver(["127.0.0.1"])
    async with open_way([NAME], [NAME], resolver) as egress:
        assert (await said(egress, request_head)).startswith(b"HTTP/1.1 400 ")
    assert resolver.asked == 0


async def test_a_head_without_end_is_refused():
    async with open_way([NAME]) as egress:
        assert (await said(egress, b"a" * 20 * 1024, ended=False)).startswith(b"HTTP/1.1 431 ")


async def test_a_request_that_does_not_come_is_given_up(autojump_clock: trio.testing.MockClock):
    async with open_way([NAME]) as egress:
        assert (await said(egress, b"GET http://", ended=False)).startswith(b"HTTP/1.1 408 ")


async def test_bytes_beyond_the_limit_cut_every_connection_and_make_no_other(web: Web):
    web.replies["/big"] = reply(b"x" * 200_000)
    place = f"{NAME}:{web.port}"
    async with open_way([place], [place], limits=Limits(transferred=100_000)) as egress:
        waiting = await trio.open_unix_socket(egress.socket_path)
        await waiting.send_all(connect(place))
        assert (await waiting.receive_some()).startswith(b"HTTP/1.1 200 ")
        assert len(await said(egress, get(place, "/big"))) <= 100_000
        assert await waiting.receive_some() == b""
        assert egress.exhausted
        assert egress.transferred <= 100_000
        answer = await said(egress, get(place))
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"more than 100000 bytes" in answer


async def test_bytes_that_a_script_sends_count_as_well(web: Web):
    place = f"{NAME}:{web.port}"

    async def swallow(stream: trio.abc.Stream) -> None:
        async for _ in stream:
            pass

    web.replies["/"] = swallow
    async with open_way([place], [place], limits=Limits(transferred=100_000)) as egress:
        await said(egress, connect(place) + b"GET / HTTP/1.1\r\n\r\n" + b"x" * 200_000)
        assert egress.exhausted


async def test_connections_beyond_sixteen_wait_for_one_to_end(web: Web):
    place = f"{NAME}:{web.port}"
    async with open_way([place], [place]) as egress, trio.open_nursery() as nursery:
        held = []
        for _ in range(16):
            stream = await trio.open_unix_socket(egress.socket_path)
            await stream.send_all(connect(place))
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")
            held.append(stream)
        later = trio.Event()

        async def one_more() -> None:
            assert b"hello" in await said(egress, get(place))
            later.set()

        nursery.start_soon(one_more)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not later.is_set()
        await held[0].aclose()
        await later.wait()
        for stream in held:
            await stream.aclose()


async def test_one_run_makes_no_more_than_so_many_connections():
    async with open_way([NAME]) as egress:
        for _ in range(256):
            assert (await said(egress, connect("x.example:443"))).startswith(b"HTTP/1.1 403 ")
        with pytest.raises(OSError):
            await said(egress, connect("x.example:443"))


async def test_a_host_that_is_away_is_a_bad_gateway(unused_port: int):
    place = f"{NAME}:{unused_port}"
    async with open_way([place], [place]) as egress:
        assert (await said(egress, connect(place))).startswith(b"HTTP/1.1 502 ")


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def test_nothing_is_left_of_a_way_that_is_closed():
    async with open_way([NAME]) as egress:
        folder = egress.folder
        held = await trio.open_unix_socket(egress.socket_path)
    assert not folder.exists()
    with suppress(trio.BrokenResourceError):
        assert await held.receive_some() == b""


async def test_what_happens_inside_comes_out_as_it_is():
    with pytest.raises(KeyError):
        async with open_way([NAME]):
            raise KeyError


async def test_a_folder_with_a_long_path_will_do(tmp_path: Path):
    folder = tmp_path.joinpath(*["a" * 60] * 3)
    folder.mkdir(parents=True)
    async with (
        open_fetcher(FetchSettings()) as fetcher,
        open_egress([NAME], Limits(), addresses=fetcher.addresses, folder=folder) as egress,
    ):
        assert egress.socket_path.is_socket()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        (["api.example.com"], {("api.example.com", 80), ("api.example.com", 443)}),
        (["API.example.com:8080"], {("api.example.com", 8080)}),
        (["api.example.com:80"], {("api.example.com", 80)}),
        (["[2606:4700::1]:443"], {("2606:4700::1", 443)}),
        (["[2606:4700::1]"], {("2606:4700::1", 80), ("2606:4700::1", 443)}),
        ([], set()),
    ],
)
def test_declarations_mean_hosts_and_ports(hosts: list[str], expected: set[tuple[str, int]]):
    assert places(hosts) == expected


@pytest.mark.parametrize("host", ["", "*", "a/b", "http://a.example", "a b", "a:0", "a:70000", "user@a", "a?b", "a#", "1.2.3"])
def test_what_declares_no_host_is_refused(host: str):
    with pytest.raises(Failed, match="SCRIPT_INVALID"):
        places([host])


def test_a_script_declares_at_most_eight_hosts():
    with pytest.raises(Failed, match="at most 8"):
        places([f"a{each}.example" for each in range(9)])


@given(st.text(max_size=60))
def test_whatever_is_declared_means_something_or_is_refused(text: str):
    with suppress(Failed):
        found = places([text])
        assert {port for _, port in found} == {80, 443} or len(found) == 1


@settings(max_examples=25)
@given(st.binary(max_size=300))
def test_no_bytes_bring_the_proxy_down(data: bytes):
    async def send(request: bytes) -> None:
        async with open_way([NAME], resolver=Resolver([])) as egress:
            stream = await trio.open_unix_socket(egress.socket_path)
            async with stream:
                await stream.send_all(request + b"\r\n\r\n")
                await stream.send_eof()
                async for _ in stream:
                    pass
            assert (await said(egress, connect("x.example:443"))).startswith(b"HTTP/1.1 403 ")

    trio.run(partial(send, data))
