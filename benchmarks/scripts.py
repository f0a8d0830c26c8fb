"""What it takes to have a script's bytes, checked against its CID: from one's own disk, from a peer, from a gateway.

`python -m benchmarks scripts` prints it, `measure()` gives the numbers. Two peers over libp2p and a gateway on loopback: no line
between them, so it is what the software itself takes.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import trio
import typer

from benchmarks.task_stages import quantile
from consensus.cid import cid_of
from node.infra.compute import Threads
from node.infra.settings import FetchSettings
from node.sandbox.port import MAX_SOURCE_BYTES
from node.scripts.library import Library, open_library
from node.scripts.source import Source
from p2p.blobs import BlobLimits, Blobs, serve_blobs
from p2p.block_store import open_blocks
from p2p.host import HostConfig, Libp2pNetwork, open_network
from p2p.limits import Rate

SIZES = {"4 KiB": 4096, "1 MiB": MAX_SOURCE_BYTES}
STORE_BYTES = 1024 * 1024 * 1024
PLENTY = Rate(per_second=1e6, burst=1_000_000)
UNLIMITED = BlobLimits(requests=PLENTY, units=PLENTY, units_in_all=PLENTY)
LOOPBACK = "/ip4/127.0.0.1/tcp/0"


@dataclass(frozen=True, slots=True)
class Figures:
    """Milliseconds of each fetch, sorted."""

    disk: list[float]
    peer: list[float]
    gateway: list[float]


async def measure(size: int, count: int) -> Figures:
    """`count` scripts of `size` bytes, each new, from a gateway, from a peer, and again from disk."""
    with tempfile.TemporaryDirectory() as folder:
        async with _two(Path(folder)) as (here, there), _gateway() as (place, files):
            fetch = FetchSettings(allow=(place,))
            async with open_library(here, fetch, (), Threads()) as library:
                peer, disk, gateway = [], [], []
                for _ in range(count):
                    script = os.urandom(size // 2).hex().encode()
                    source = Source(await there.put(script))
                    peer.append(await _timed(library, source))
                    disk.append(await _timed(library, source))
                for _ in range(count):
                    script = os.urandom(size // 2).hex().encode()
                    name = str(cid_of(script))
                    files[name] = script
                    gateway.append(await _timed(library, Source(name, f"http://{place}/ipfs/{name}")))
                    del files[name]
    return Figures(sorted(disk), sorted(peer), sorted(gateway))


async def _timed(library: Library, source: Source) -> float:
    began = time.perf_counter()
    await library.get(source)
    return (time.perf_counter() - began) * 1000


@asynccontextmanager
async def _two(folder: Path) -> AsyncIterator[tuple[Blobs, Blobs]]:
    async with open_network(HostConfig(folder / "one", listen=(LOOPBACK,))) as one, _joined(folder / "two", one) as two:
        stores = [await open_blocks(folder / name, STORE_BYTES) for name in ("here", "there")]
        async with serve_blobs(stores[0], one, limits=UNLIMITED) as here, serve_blobs(stores[1], two, limits=UNLIMITED) as there:
            await _until(lambda: bool(one.connected()))
            yield here, there


@asynccontextmanager
async def _joined(key: Path, to: Libp2pNetwork) -> AsyncIterator[Libp2pNetwork]:
    async with open_network(HostConfig(key, listen=(LOOPBACK,), bootstrap=to.addresses)) as network:
        yield network


@asynccontextmanager
async def _gateway() -> AsyncIterator[tuple[str, dict[str, bytes]]]:
    """The least that answers requests for `/ipfs/CID`: its place and the files it has."""
    files: dict[str, bytes] = {}

    async def serve(stream: trio.SocketStream) -> None:
        received = b""
        while more := await stream.receive_some(65536):
            received += more
            while b"\r\n\r\n" in received:
                head, _, received = received.partition(b"\r\n\r\n")
                body = files[head.split(b" ")[1].decode().rpartition("/")[2]]
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield f"127.0.0.1:{listener.socket.getsockname()[1]}", files
        nursery.cancel_scope.cancel()


async def _until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not holds():  # noqa: ASYNC110 - a network tells nobody when it has joined
            await trio.sleep(0.02)


def main(count: Annotated[int, typer.Option(min=100, help="Scripts fetched in each way.")] = 200) -> None:
    """Fetching a script by its CID."""
    for name, size in SIZES.items():
        figures = trio.run(measure, size, count)
        for way, times in (("own disk", figures.disk), ("peer", figures.peer), ("gateway", figures.gateway)):
            print(f"{name} from {way}: p50 {quantile(times, 0.5):.2f} ms, p99 {quantile(times, 0.99):.2f} ms")


if __name__ == "__main__":
    typer.run(main)
