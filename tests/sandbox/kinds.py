"""Both adapters, opened for a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from node.infra.aio import open_asyncio_thread
from node.infra.connections import Addresses
from node.infra.settings import SandboxSettings
from node.sandbox.docker import DockerSandbox, open_docker
from node.sandbox.embedded import open_embedded
from node.sandbox.port import Sandbox
from tests.components import find
from tests.sandbox.engine import IMAGE, Engine

KINDS = ("docker", "embedded")


async def nowhere(host: str, port: int) -> list[str]:
    """Leads no script anywhere."""
    raise OSError(f"{host} is not to be reached")


@asynccontextmanager
async def on_docker(
    engine: Engine, folder: Path, *, addresses: Addresses = nowhere, warm: int = 1, owner: str = "tests", concurrency: int = 2
) -> AsyncIterator[DockerSandbox]:
    async with (
        open_asyncio_thread() as aio,
        open_docker(
            aio,
            url=engine.url,
            image=IMAGE,
            owner=owner,
            folder=folder,
            addresses=addresses,
            warm=warm,
            concurrency=concurrency,
        ) as sandbox,
    ):
        yield sandbox


@asynccontextmanager
async def open_kind(
    kind: str, engine: Callable[[], Engine], folder: Path, addresses: Addresses = nowhere
) -> AsyncIterator[Sandbox]:
    """`engine` gives the tests' Docker engine, and is asked for it only where that is the kind."""
    if kind == "docker":
        async with on_docker(engine(), folder / "containers", addresses=addresses) as docker:
            yield docker
        return
    async with open_embedded(SandboxSettings(esbuild=find("esbuild")), addresses=addresses) as embedded:
        await embedded.settled()
        yield embedded
