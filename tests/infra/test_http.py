"""The HTTP server: ready when it says so, gone within a second, and not to be held or filled."""

from __future__ import annotations

import socket
import time
from contextlib import suppress

import httpx
import pytest
import trio
import trio.lowlevel
from quart import request
from quart_trio import QuartTrio

from consensus.errors import Failed, Misconfigured
from node.infra import http as module
from node.infra.http import open_server


def make_app() -> QuartTrio:
    app = QuartTrio(__name__)
    app.entered = trio.Event()  # type: ignore[attr-defined]

    @app.get("/livez")
    async def livez() -> str:
        return "ok"

    @app.post("/size")
    async def size() -> str:
        return str(len(await request.get_data()))

    @app.get("/slow")
    async def slow() -> str:
        app.entered.set()  # type: ignore[attr-defined]
        await trio.sleep(0.2)
        return "done"

    @app.get("/long")
    async def long() -> bytes:
        return b"x" * 50_000_000

    @app.get("/stuck")
    async def stuck() -> str:
        app.entered.set()  # type: ignore[attr-defined]
        await trio.sleep_forever()
        return ""

    return app


async def test_it_answers_as_soon_as_the_address_is_known():
    async with open_server(make_app(), "127.0.0.1", 0) as url, httpx.AsyncClient() as client:
        assert url.startswith("http://127.0.0.1:")
        answer = await client.get(f"{url}/livez")
        assert (answer.status_code, answer.text) == (200, "ok")
        assert "server" not in answer.headers


async def test_it_is_gone_when_the_context_has_ended():
    async with open_server(make_app(), "127.0.0.1", 0) as url, httpx.AsyncClient() as client:
        await client.get(f"{url}/livez")  # leaves a kept connection behind
        begin = time.monotonic()
    assert time.monotonic() - begin < 1
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(f"{url}/livez")
    async with open_server(make_app(), "127.0.0.1", int(url.rpartition(":")[2])):
        pass  # the port is free again at once


async def test_a_request_under_way_is_finished():
    app, answers = make_app(), []

    async def ask(url: str) -> None:
        async with httpx.AsyncClient() as client:
            answers.append((await client.get(f"{url}/slow")).text)

    async with trio.open_nursery() as nursery, open_server(app, "127.0.0.1", 0) as url:
        nursery.start_soon(ask, url)
        await app.entered.wait()
    assert answers == ["done"]


async def test_a_stuck_request_holds_the_exit_for_a_second_at_most():
    app, errors = make_app(), []

    async def ask(url: str) -> None:
        async with httpx.AsyncClient() as client:
            try:
                await client.get(f"{url}/stuck", timeout=10)
            except httpx.TransportError as error:
                errors.append(error)

    async with trio.open_nursery() as nursery:
        async with open_server(app, "127.0.0.1", 0) as url:
            nursery.start_soon(ask, url)
            await app.entered.wait()
            begin = time.monotonic()
        assert time.monotonic() - begin < 2
    assert len(errors) == 1


async def test_a_busy_port_names_the_key_and_the_remedy():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(Misconfigured, match="in use: stop what listens there or choose another port") as caught:
            async with open_server(make_app(), "127.0.0.1", port, key="api.port"):
                pass
    assert caught.value.key == "api.port"


async def test_an_address_that_is_not_ours_names_the_key():
    with pytest.raises(Misconfigured, match="cannot listen"):
        async with open_server(make_app(), "203.0.113.1", 0):
            pass
    with pytest.raises(Misconfigured, match="no address"):
        async with open_server(make_app(), "nowhere.invalid", 0):
            pass


async def test_an_error_of_the_block_comes_out_as_it_was():
    with pytest.raises(Failed, match="MINE"):
        async with open_server(make_app(), "127.0.0.1", 0):
            raise Failed("MINE")


async def test_cancellation_passes_through():
    with trio.CancelScope() as scope:
        async with open_server(make_app(), "127.0.0.1", 0):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_body_over_the_limit_is_refused():
    async with open_server(make_app(), "127.0.0.1", 0, body_limit=1000) as url, httpx.AsyncClient() as client:
        assert (await client.post(f"{url}/size", content=b"x" * 1000)).text == "1000"
        assert (await client.post(f"{url}/size", content=b"x" * 1001)).status_code == 413

        async def chunks():
            for _ in range(10):
                yield b"x" * 500

        assert (await client.post(f"{url}/size", content=chunks())).status_code == 413


@pytest.mark.parametrize("repetition", range(8))  # it was a race: about half the tries hung
async def test_a_connection_whose_body_was_not_read_is_closed_or_usable(repetition):
    async def chunks():
        for _ in range(10):
            yield b"x" * 500

    async with open_server(make_app(), "127.0.0.1", 0, body_limit=1000) as url, httpx.AsyncClient(timeout=5) as client:
        assert (await client.post(f"{url}/size", content=chunks())).status_code == 413
        with suppress(httpx.RemoteProtocolError):  # closed under the client, which may try again
            assert (await client.get(f"{url}/livez")).text == "ok"
        begin = time.monotonic()
    assert time.monotonic() - begin < 0.5  # nothing is left that the exit would have to wait for


async def test_an_idle_connection_is_closed_in_time(monkeypatch):
    monkeypatch.setattr(module, "_IDLE_S", 0.05)
    async with open_server(make_app(), "127.0.0.1", 0) as url:
        for first in (b"", b"GET /livez HTT", b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"):
            async with await connect(url) as stream:
                await stream.send_all(first)
                with trio.fail_after(5):
                    while await stream.receive_some():
                        pass


async def test_a_client_that_does_not_read_does_not_hold_the_exit():
    app = make_app()
    async with open_server(app, "127.0.0.1", 0) as url:
        stream = await connect(url)
        await stream.send_all(b"GET /long HTTP/1.1\r\nhost: x\r\n\r\n")
        await stream.receive_some(1)
        begin = time.monotonic()
    assert time.monotonic() - begin < 2
    await stream.aclose()


async def test_connections_beyond_the_limit_are_closed_and_the_others_served():
    async with open_server(make_app(), "127.0.0.1", 0, max_connections=2) as url:
        held = [await connect(url) for _ in range(2)]
        for stream in held:
            await stream.send_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b"200" in await stream.receive_some()
        async with await connect(url) as third:
            with trio.fail_after(5):
                assert await third.receive_some() == b""
        for stream in held:
            await stream.aclose()


async def connect(url: str) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))


async def test_a_head_over_the_limit_is_refused():
    async with open_server(make_app(), "127.0.0.1", 0) as url, httpx.AsyncClient() as client:
        try:
            answer = await client.get(f"{url}/livez", headers={"x-long": "x" * 100_000})
        except httpx.TransportError:
            answer = None
        assert answer is None or answer.status_code in (400, 431)
        assert (await client.get(f"{url}/livez")).status_code == 200


async def test_garbage_on_the_wire_does_not_stop_it():
    async with open_server(make_app(), "127.0.0.1", 0) as url, httpx.AsyncClient() as client:
        async with await connect(url) as stream:
            await stream.send_all(b"\x16\x03\x01 not http \r\n\r\n")
            while await stream.receive_some():
                pass
        assert (await client.get(f"{url}/livez")).text == "ok"


@pytest.mark.parametrize(("head", "passes"), [(12_000, True), (60_000, False)])
async def test_a_head_in_pieces_passes_up_to_the_limit(head: int, passes: bool):
    async with open_server(make_app(), "127.0.0.1", 0, head_limit=32 * 1024) as url:
        host, port = url.removeprefix("http://").split(":")
        stream = await trio.open_tcp_stream(host, int(port))
        request = b"GET /livez?abi=" + b"x" * head + b" HTTP/1.1\r\nHost: a\r\n\r\n"
        answer = b""
        with suppress(trio.BrokenResourceError), trio.fail_after(10):
            for start in range(0, len(request), 1500):
                await stream.send_all(request[start : start + 1500])
                await trio.lowlevel.checkpoint()
            answer = await stream.receive_some(4096)
        assert answer.startswith(b"HTTP/1.1 200") is passes  # one that still sends when it is refused may hear nothing
