"""The servers that streams run on in tests: one in memory, the embedded one, and a real redis-server; each can be killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import redis
import trio

from consensus.errors import Transient
from coordinator.streams.embedded import EmbeddedServer, open_embedded
from coordinator.streams.memory import MemoryServer, MemoryStreams
from coordinator.streams.port import Streams
from coordinator.streams.redis import open_redis
from node.infra.aio import open_asyncio_thread
from tests.components import require

PREFIX = "tests"


class Server(Protocol):
    def open(self, instance: str) -> AbstractAsyncContextManager[Streams]: ...

    async def flush(self) -> None:
        """It forgets everything."""
        ...

    async def kill(self) -> None:
        """As SIGKILL does."""
        ...

    async def start(self) -> None:
        """After `kill`; returns when it answers."""
        ...


class InMemory:
    def __init__(self) -> None:
        self.server = MemoryServer()

    @asynccontextmanager
    async def open(self, instance: str) -> AsyncIterator[Streams]:
        yield MemoryStreams(self.server, instance)

    async def flush(self) -> None:
        self.server.lose()

    async def kill(self) -> None:
        self.server.take_down()

    async def start(self) -> None:
        self.server.bring_back()


class Embedded:
    def __init__(self, server: EmbeddedServer) -> None:
        self.server = server

    @asynccontextmanager
    async def open(self, instance: str) -> AsyncIterator[Streams]:
        async with open_asyncio_thread() as aio, open_redis(aio, f"unix://{self.server.socket}", PREFIX, instance) as streams:
            yield streams

    async def flush(self) -> None:
        with redis.Redis(unix_socket_path=str(self.server.socket)) as client:
            client.flushall()

    async def kill(self) -> None:
        assert self.server.pid is not None
        os.kill(self.server.pid, signal.SIGKILL)

    async def start(self) -> None:
        async with self.open("looks") as streams:
            await answers(streams)


class Real:
    """A redis-server of its own, on a free port of this machine."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None
        self.options: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @asynccontextmanager
    async def open(self, instance: str) -> AsyncIterator[Streams]:
        async with open_asyncio_thread() as aio, open_redis(aio, self.url, PREFIX, instance) as streams:
            yield streams

    async def flush(self) -> None:
        with redis.Redis(port=self.port) as client:
            client.flushall()

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    async def start(self) -> None:
        options = [
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "yes",
            "--dir",
            str(self._folder),
        ]
        self.process = subprocess.Popen([self._program, *options, *self.options], stdout=subprocess.DEVNULL)  # noqa: ASYNC220
        with trio.fail_after(20):
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                        return
                await trio.sleep(0.01)

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)


@asynccontextmanager
async def running(kind: str, folder: Path) -> AsyncIterator[Server]:
    """A server of the kind memory, embedded or redis, with its data in `folder`."""
    if kind == "memory":
        yield InMemory()
    elif kind == "embedded":
        async with open_embedded(folder) as server:
            yield Embedded(server)
    else:
        real = Real(require("redis-server"), folder)
        try:
            await real.start()
            yield real
        finally:
            real.end()


async def answers(streams: Streams) -> None:
    """Returns when the server does."""
    with trio.fail_after(20):
        while True:
            try:
                await streams.ping()
            except Transient:
                await trio.sleep(0.01)
            else:
                return
