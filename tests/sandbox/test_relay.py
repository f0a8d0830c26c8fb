"""The relay inside a sandbox: what goes in at one end comes out at the other, both ways, for many at once."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from subprocess import PIPE

import pytest
import trio

from node.sandbox import relay

READY = "import sys; print('ready', flush=True); sys.stdin.read()"


async def echo(stream: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):
        async for piece in stream:
            await stream.send_all(piece)
        await stream.send_eof()


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """Of a relay to a socket that says everything again; the command beside it has begun."""
    with tempfile.TemporaryDirectory(prefix="relay-") as folder:  # a short path: that of a socket has 107 bytes at most
        async with open_relay(f"{folder}/s") as number:
            yield number


@asynccontextmanager
async def open_relay(path: str) -> AsyncIterator[int]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        number = int(sock.getsockname()[1])
    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        await listener.bind(path)
        listener.listen(64)
        command = [sys.executable, "-I", "-S", relay.__file__, path, str(number), sys.executable, "-c", READY]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, echo, [trio.SocketListener(listener)])
            run = partial(trio.run_process, command, stdin=PIPE, stdout=PIPE, check=False, start_new_session=True)
            process = await nursery.start(run)
            assert (await process.stdout.receive_some()).startswith(b"ready")
            try:
                yield number
            finally:
                os.killpg(process.pid, signal.SIGKILL)
                nursery.cancel_scope.cancel()


async def said_again(port: int, data: bytes) -> bytes:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    received = bytearray()
    async with stream, trio.open_nursery() as nursery:

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        nursery.start_soon(send)
        async for piece in stream:
            received += piece
    return bytes(received)


@pytest.mark.parametrize("size", [0, 1, 65_536, 5_000_000])
async def test_bytes_come_back_whole(port: int, size: int):
    data = os.urandom(size)
    assert await said_again(port, data) == data


async def test_more_connections_than_at_once_are_all_served(port: int):
    answers = []

    async def one(number: int) -> None:
        answers.append(await said_again(port, b"%d" % number * 1000) == b"%d" % number * 1000)

    async with trio.open_nursery() as nursery:
        for number in range(80):
            nursery.start_soon(one, number)
    assert answers == [True] * 80


async def test_one_that_hangs_up_early_disturbs_nobody(port: int):
    for _ in range(50):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(b"x" * 1000)
        await trio.aclose_forcefully(stream)
    assert await said_again(port, b"hello") == b"hello"


async def test_one_that_reads_nothing_holds_up_nobody_else(port: int):
    lazy = await trio.open_tcp_stream("127.0.0.1", port)
    with trio.move_on_after(0.5):
        await lazy.send_all(b"x" * 50_000_000)
    assert await said_again(port, b"hello" * 1000) == b"hello" * 1000
    await lazy.aclose()
