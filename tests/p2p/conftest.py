"""Meshes to test against: every port test runs on the memory network and on real libp2p hosts on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from consensus.errors import Reject
from p2p.host import HostConfig, Libp2pNetwork, open_network
from p2p.inbox import Gate, open_gate
from p2p.memory import MemoryMesh
from p2p.network import Exchange, Network, PeerId, Topic

LOOPBACK = "/ip4/127.0.0.1/tcp/0"

OpenMesh = Callable[..., AbstractAsyncContextManager[list[Network]]]


def decode_text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Reject("UNDECODABLE", str(error)) from error


TEXT: Topic[str] = Topic("/test/text", str.encode, decode_text, max_bytes=4096)
OTHER: Topic[str] = Topic("/test/other", str.encode, decode_text, max_bytes=64)
ECHO: Exchange[str, str] = Exchange(
    "/test/1/echo", str.encode, decode_text, str.encode, decode_text, max_request_bytes=1024, max_answer_bytes=2048
)


async def accept(_message: str, _source: PeerId) -> None:
    pass


async def until(happened: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits for what announces itself in no other way, looking often."""
    with trio.fail_after(seconds):
        while not happened():  # noqa: ASYNC110 - the port has no event for a counter or a neighbour's view
            await trio.sleep(0.002)


async def joined(networks: list[Network], topic: Topic[str] = TEXT) -> None:
    """Until everybody knows that everybody else subscribes."""
    await until(lambda: all(len(network.topic_peers(topic)) == len(networks) - 1 for network in networks))


@asynccontextmanager
async def memory_mesh(count: int, *, gate: Gate = open_gate) -> AsyncIterator[list[Network]]:
    mesh = MemoryMesh()
    yield [mesh.join(f"peer-{index}", gate=gate) for index in range(count)]


@asynccontextmanager
async def libp2p_mesh(folder: Path, count: int, *, gate: Gate = open_gate) -> AsyncIterator[list[Libp2pNetwork]]:
    """Peers that know only the first one, fully connected when entered."""
    networks: list[Libp2pNetwork] = []
    async with AsyncExitStack() as stack:
        for index in range(count):
            config = HostConfig(folder / f"key-{index}", listen=(LOOPBACK,), bootstrap=networks[0].addresses if networks else ())
            networks.append(await stack.enter_async_context(open_network(config, gate=gate)))
        await until(lambda: all(len(network.connected()) == count - 1 for network in networks))
        yield networks


@pytest.fixture(params=["memory", "libp2p"])
def open_mesh(request: pytest.FixtureRequest, tmp_path: Path) -> OpenMesh:
    """`async with open_mesh(3) as networks:` gives connected peers."""
    if request.param == "memory":
        return memory_mesh

    def real(count: int, *, gate: Gate = open_gate) -> AbstractAsyncContextManager[Any]:
        return libp2p_mesh(tmp_path, count, gate=gate)

    return real
