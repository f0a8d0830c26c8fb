"""The sandboxes that the suite runs on: bubblewrap, and a real Docker engine that is started once for all tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio

from consensus.errors import Failed, Misconfigured
from node.infra.aio import open_asyncio_thread
from node.infra.settings import SandboxSettings
from node.sandbox.docker import open_docker
from node.sandbox.embedded import open_embedded
from node.sandbox.port import Language, Limits, Program, Sandbox
from tests.components import find
from tests.sandbox.engine import IMAGE, Engine, running_engine

Open = Callable[[], AbstractAsyncContextManager[Sandbox]]


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[Engine]:
    """Without dockerd the test skips, or fails where CI=true."""
    with running_engine() as engine:
        yield engine


async def declared(host: str, port: int) -> Sequence[str]:
    """The guard of hosts, in these tests: one name leads to this machine, and all others nowhere."""
    await trio.lowlevel.checkpoint()
    if host == "api.example.com":
        return ["127.0.0.1"]
    raise Failed("HOST_REFUSED", f"{host} is no host of these tests")


@asynccontextmanager
async def embedded(*, cgroups: bool, cache: Path | None = None) -> AsyncIterator[Sandbox]:
    try:
        async with open_embedded(
            SandboxSettings(esbuild=find("esbuild"), cache=cache), addresses=declared, cgroups=cgroups
        ) as opened:
            await opened.settled()
            yield opened
    except Misconfigured as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


@asynccontextmanager
async def docker(engine: Engine) -> AsyncIterator[Sandbox]:
    with tempfile.TemporaryDirectory(prefix="containers-") as folder:
        async with (
            open_asyncio_thread() as aio,
            open_docker(
                aio, url=engine.url, image=IMAGE, owner="suite", folder=Path(folder), addresses=declared, warm=0
            ) as opened,
        ):
            yield opened


@pytest.fixture(params=["embedded", "embedded_without_cgroups", "docker"])
def open_sandbox(request: pytest.FixtureRequest) -> Open:
    """Opens one adapter after the other."""
    if request.param == "docker":
        engine: Engine = request.getfixturevalue("docker_engine")
        return lambda: docker(engine)
    return lambda: embedded(cgroups=request.param == "embedded")


@pytest.fixture
async def sandbox(open_sandbox: Open) -> AsyncIterator[Sandbox]:
    """Whatever a test did to it: the next run is as if nothing had been."""
    async with open_sandbox() as opened:
        yield opened
        finished = await opened.run(Program(Language.PYTHON, b"import os; print(os.listdir('/tmp'))"), Limits())
        assert (finished.exit_code, finished.stdout, finished.stderr) == (0, b"[]\n", b"")
