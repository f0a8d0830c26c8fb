"""The pulse of a chain over WebSocket: heads told, sockets that drop, fall silent, lie, or serve another chain."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

from consensus.errors import Transient
from node.infra import evm_heads
from node.infra.chain import Head
from node.infra.evm_heads import SILENT_POLLS, Pulse
from node.infra.reach import reach_chain
from tests.chain.anvil_world import CHAIN_ID, AnvilWorld

POLL_S = 0.02
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455


class Node:
    """A WebSocket endpoint as a node has it, with a test's levers."""

    def __init__(self) -> None:
        self.chain_id = CHAIN_ID
        self.subscribes = True
        self.hangs_up = False  # once it has answered
        self.number = 10
        self.sockets: set[WebSocketConnection] = set()
        self.opened = 0
        self.opening: list[WebSocketRequest] = []
        self.url = ""

    async def head(self) -> Head:
        return Head(self.number, self.number.to_bytes(32, "big"), self.number)

    async def serve(self, request: WebSocketRequest) -> None:
        self.opening.append(request)
        socket = await request.accept()
        try:
            while True:
                asked = json.loads(await socket.get_message())
                answer: object = hex(self.chain_id)
                if asked["method"] == "eth_subscribe":
                    assert asked["params"] == ["newHeads"]
                    answer = "0x1" if self.subscribes else None
                await socket.send_message(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": answer}))
                if asked["method"] == "eth_subscribe":
                    self.sockets.add(socket)
                    self.opened += 1
                    if self.hangs_up:
                        await socket.aclose()
        except ConnectionClosed:
            self.sockets.discard(socket)

    async def tell(self, text: str | None = None) -> None:
        self.number += 1
        message = {"jsonrpc": "2.0", "method": "eth_subscription", "params": {"result": {"number": hex(self.number)}}}
        for socket in self.sockets:
            await socket.send_message(text if text is not None else json.dumps(message))

    async def drop(self) -> None:
        for socket in list(self.sockets):
            await socket.aclose()


@asynccontextmanager
async def pulsing(node: Node, poll_s: float = 60) -> AsyncIterator[Pulse]:
    """A pulse over the node's socket, connected. With a poll interval so long, only the socket beats."""
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve_websocket, node.serve, "127.0.0.1", 0, None, handler_nursery=nursery))
        node.url = f"ws://127.0.0.1:{server.port}"
        pulse = Pulse(poll_s, node.url, CHAIN_ID)
        await nursery.start(pulse.run, node.head)
        yield pulse
        nursery.cancel_scope.cancel()


async def until(pulse: Pulse, condition: Callable[[], bool]) -> None:
    """Looks again after each beat."""
    with trio.fail_after(10):
        heads = pulse.heads()
        while not condition():
            await heads.wait()


async def beats_for(pulse: Pulse, deed: Callable[[], Awaitable[None]]) -> None:
    heads = pulse.heads()
    await deed()
    with trio.fail_after(10):
        await heads.wait()


async def test_every_waiter_hears_each_head_over_one_connection() -> None:
    node = Node()
    async with pulsing(node) as pulse:
        await until(pulse, lambda: pulse.connected)
        waiters = [pulse.heads() for _ in range(5)]
        for _ in range(3):
            await node.tell()
            with trio.fail_after(10):
                for waiter in waiters:
                    await waiter.wait()
        assert node.opened == 1


async def test_a_head_between_two_waits_is_not_missed() -> None:
    node = Node()
    async with pulsing(node) as pulse:
        await until(pulse, lambda: pulse.connected)
        late, early = pulse.heads(), pulse.heads()
        await node.tell()
        with trio.fail_after(10):
            await early.wait()
            await late.wait()  # though it waits only now
        with trio.move_on_after(0.05) as nothing:
            await late.wait()
        assert nothing.cancelled_caught


async def test_a_dropped_socket_is_opened_again_and_beats_for_what_it_missed() -> None:
    node = Node()
    async with pulsing(node) as pulse:
        await until(pulse, lambda: pulse.connected)
        await node.drop()
        await until(pulse, lambda: node.opened == 2 and pulse.connected)
        await beats_for(pulse, node.tell)


async def test_while_the_socket_is_away_the_clock_beats() -> None:
    node = Node()
    node.subscribes = False
    async with pulsing(node, POLL_S) as pulse:
        heads = pulse.heads()
        with trio.fail_after(10):
            for _ in range(5):
                await heads.wait()
        assert not pulse.connected


@pytest.mark.parametrize("what", ["another chain", "no subscription"])
async def test_an_endpoint_that_is_of_no_use_is_not_believed(what: str) -> None:
    node = Node()
    node.chain_id, node.subscribes = (5, True) if what == "another chain" else (CHAIN_ID, False)
    async with pulsing(node, POLL_S) as pulse:
        await until(pulse, lambda: len(node.opening) == 2)
        assert not pulse.connected
        node.chain_id, node.subscribes = CHAIN_ID, True
        await until(pulse, lambda: pulse.connected)


async def test_a_silent_socket_is_noticed_by_looking_and_given_up_when_there_are_heads() -> None:
    node = Node()
    async with pulsing(node, POLL_S) as pulse:
        await until(pulse, lambda: pulse.connected)
        await until(pulse, lambda: pulse.beats >= 2)  # the first look
        node.number += 1  # and nobody is told
        await beats_for(pulse, trio.lowlevel.checkpoint)
        node.number += 1
        await until(pulse, lambda: node.opened == 2)


async def test_a_chain_without_new_blocks_is_looked_at_seldom_and_does_not_beat() -> None:
    node = Node()
    looks = 0
    quiet = trio.Event()

    async def head() -> Head:
        nonlocal looks
        looks += 1
        if looks == 5:
            quiet.set()
        return await Node.head(node)

    node.head = head  # type: ignore[method-assign]
    async with pulsing(node, POLL_S) as pulse:
        await until(pulse, lambda: pulse.connected)
        began = trio.current_time()
        with trio.fail_after(10):
            await quiet.wait()
        assert trio.current_time() - began > 4 * SILENT_POLLS * POLL_S * 0.9
        assert node.opened == 1
        assert pulse.beats <= 4


async def test_a_told_head_beats_twice_for_the_endpoint_that_is_asked_may_be_behind_the_one_that_tells() -> None:
    node = Node()
    async with pulsing(node, 0.5) as pulse:
        await until(pulse, lambda: pulse.connected)
        await beats_for(pulse, node.tell)
        await beats_for(pulse, trio.lowlevel.checkpoint)
        assert node.opened == 1


async def test_when_nobody_can_look_either_the_waiters_are_woken_to_find_out() -> None:
    node = Node()

    async def away() -> Head:
        raise Transient("RPC_UNREACHABLE")

    node.head = away  # type: ignore[method-assign]
    async with pulsing(node, POLL_S) as pulse:
        await until(pulse, lambda: pulse.connected)
        await beats_for(pulse, trio.lowlevel.checkpoint)


@pytest.mark.parametrize(
    "text", ["{", "[]", "7", "[" * 5000, '"' + "x" * 100_000 + '"', '{"params": 5}', '{"params": {"result": {}}}']
)
async def test_whatever_a_socket_tells_the_pulse_goes_on(text: str) -> None:
    node = Node()
    async with pulsing(node) as pulse:
        await until(pulse, lambda: pulse.connected)
        await beats_for(pulse, partial(node.tell, text))
        await until(pulse, lambda: pulse.connected and bool(node.sockets))
        await beats_for(pulse, node.tell)


async def answers_nonsense(chance: random.Random, opened: list[bytes], stream: trio.SocketStream) -> None:
    """A server that speaks something else, or the protocol for a while."""
    async with stream:
        asked = bytes(await stream.receive_some(4096))
        key = re.search(rb"Sec-WebSocket-Key: (.*)\r\n", asked, re.IGNORECASE)
        accept = base64.b64encode(hashlib.sha1((key[1].strip() if key else b"") + GUID).digest())
        upgrade = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
        begun = upgrade + accept + b"\r\n\r\n"
        answers = [
            chance.randbytes(200),
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            upgrade + b"bad\r\n\r\n",
            begun + chance.randbytes(300),
            begun + b"\x81\x7f" + (2**62).to_bytes(8, "big") + b"x" * 1000,
            begun + b"\x89\x05pingx\x8a\x03abc\x88\x02\x03\xe8",
            begun + b"\x81\x03\xff\xfe\xfd",
            begun + b"\x88\x01\x03",
        ]
        opened.append(asked)
        await stream.send_all(answers[len(opened) % len(answers)])


async def test_a_server_that_speaks_no_websocket_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evm_heads, "_CONNECT_S", 0.2)
    monkeypatch.setattr(evm_heads, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(evm_heads, "_LONGEST_PAUSE_S", 0.002)
    chance, opened = random.Random(3), list[bytes]()
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, partial(answers_nonsense, chance, opened), 0)
        pulse = Pulse(POLL_S, f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}", CHAIN_ID)
        await nursery.start(pulse.run, Node().head)
        await until(pulse, lambda: len(opened) > 24)  # each of them three times
        nursery.cancel_scope.cancel()


async def test_credentials_travel_in_a_header_and_not_in_the_url() -> None:
    node = Node()
    async with pulsing(node) as pulse:
        await until(pulse, lambda: pulse.connected)
        await node.drop()
        pulse._url = node.url.replace("ws://", "ws://user:pass%21@")
        other = Pulse(60, pulse._url, CHAIN_ID)
        async with trio.open_nursery() as nursery:
            await nursery.start(other.run, node.head)
            await until(other, lambda: other.connected)
            nursery.cancel_scope.cancel()
    assert (b"authorization", b"Basic dXNlcjpwYXNzIQ==") in node.opening[-1].headers


async def test_anvil_tells_its_heads(on_anvil: AnvilWorld) -> None:
    url = on_anvil.url
    settings = on_anvil.settings().model_copy(
        update={"rpc": (url,), "ws": url.replace("http", "ws", 1), "poll_interval_ms": 60_000}
    )
    async with reach_chain(settings) as (chain, _):
        await until(chain.pulse, lambda: chain.pulse.connected)
        async with chain.follow((await chain.head()).number + 1) as feed, chain.heads() as heads:
            for _ in range(3):
                await on_anvil.pass_seconds(1)
                with trio.fail_after(10):
                    await heads.wait()
                    await feed.next()


async def test_what_goes_wrong_while_a_chain_is_used_reaches_the_caller_as_it_was(on_anvil: AnvilWorld) -> None:
    url = on_anvil.url
    settings = on_anvil.settings().model_copy(update={"rpc": (url,), "ws": url.replace("http", "ws", 1)})
    with pytest.raises(ZeroDivisionError):
        async with reach_chain(settings):
            _ = 1 / 0


async def test_a_socket_that_greets_and_hangs_up_is_dialled_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    enough = trio.Event()

    def paused(pause: float) -> float:
        pauses.append(pause)
        if len(pauses) == 5:
            enough.set()
        return 0

    monkeypatch.setattr(evm_heads, "full_jitter", paused)
    node = Node()
    node.hangs_up = True
    async with pulsing(node):
        with trio.fail_after(10):
            await enough.wait()
    assert node.opened >= 5
    assert pauses[:5] == [0.5, 1, 2, 4, 8]
