"""Content by CID: putting a file, having it from one's own store and from a peer, beside writing and reading a bare file.

`python -m benchmarks content` prints it, `measure()` gives the numbers. Peers are two libp2p hosts on loopback in one process;
the file beside is written and synced as the block store does it, without hash, name and folder.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import trio
import typer

from p2p.blobs import BlobLimits, Blobs, serve_blobs
from p2p.block_store import MemoryBlocks, open_blocks
from p2p.host import HostConfig, Libp2pNetwork, open_network
from p2p.limits import Rate

SIZES = (2 * 1024, 64 * 1024, 1024 * 1024)
LOOPBACK = "/ip4/127.0.0.1/tcp/0"
UNLIMITED = Rate(per_second=1e9, burst=10**9)
STORE_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds of one step, sorted."""

    values: tuple[float, ...]

    def at(self, share: float) -> float:
        return self.values[min(len(self.values) - 1, int(len(self.values) * share))]

    def __str__(self) -> str:
        return f"p50 {self.at(0.5):8.2f}  p99 {self.at(0.99):8.2f}"


async def measure(size: int, rounds: int) -> dict[str, Times]:
    """Each step `rounds` times, with other bytes each time."""
    files = [number.to_bytes(4, "big") + os.urandom(size - 4) for number in range(rounds)]
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        networks: list[Libp2pNetwork] = []
        for index in range(2):
            bootstrap = networks[0].addresses if networks else ()
            config = HostConfig(folder / f"key-{index}", listen=(LOOPBACK,), bootstrap=bootstrap)
            networks.append(await stack.enter_async_context(open_network(config)))
        store = await open_blocks(folder / "blocks", STORE_BYTES)
        limits = BlobLimits(requests=UNLIMITED, units=UNLIMITED, units_in_all=UNLIMITED)
        here = await stack.enter_async_context(serve_blobs(store, networks[0], limits=limits))
        with trio.fail_after(20):
            while not networks[1].connected():  # noqa: ASYNC110 - the port has no event for it
                await trio.sleep(0.01)
        cids: list[str] = []

        async def put(data: bytes) -> None:
            cids.append(await here.put(data))

        async def from_store(data: bytes) -> None:
            assert await here.get(cids[files.index(data)], max_bytes=size) == data

        async def from_peer(data: bytes) -> None:
            there = Blobs(MemoryBlocks(), networks[1])
            assert await there.get(cids[files.index(data)], max_bytes=size, peers=[networks[0].peer_id]) == data

        async def bare_write(data: bytes) -> None:
            await trio.to_thread.run_sync(_write, folder / "file", data)

        async def bare_read(data: bytes) -> None:
            await trio.to_thread.run_sync((folder / "file").read_bytes)

        steps: dict[str, Callable[[bytes], Awaitable[None]]] = {
            "write a file, synced": bare_write,
            "read it": bare_read,
            "put": put,
            "get, own store": from_store,
            "get, from a peer": from_peer,
        }
        return {name: await _timed(step, files) for name, step in steps.items()}


async def _timed(step: Callable[[bytes], Awaitable[None]], files: list[bytes]) -> Times:
    times = []
    for data in files:
        began = time.perf_counter()
        await step(data)
        times.append((time.perf_counter() - began) * 1000)
    return Times(tuple(sorted(times)))


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def main(rounds: Annotated[int, typer.Option(min=1, help="Files of each size.")] = 200) -> None:
    """Milliseconds to put a file, and to have it again."""
    for size in SIZES:
        print(f"{size // 1024} KiB, {rounds} files, ms:")
        for name, times in trio.run(measure, size, rounds).items():
            print(f"  {name:22} {times}")


if __name__ == "__main__":
    typer.run(main)
