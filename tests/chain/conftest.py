"""Every chain that the port suite runs against."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator

import pytest

from node.infra.rpc import open_rpc
from tests.chain.anvil_world import CHAIN_ID, AnvilWorld, Prepared, anvil_world
from tests.chain.worlds import MemoryWorld, World


@pytest.fixture(scope="session")
def anvil() -> Iterator[Prepared]:
    """An anvil of this test process's own, mining each transaction at once."""
    binary = shutil.which("anvil")
    if binary is None:
        if os.environ.get("CI") == "true":
            pytest.fail("anvil is not on PATH, and CI must not skip the tests against a real chain")
        pytest.skip("anvil is not on PATH")
    process = subprocess.Popen([binary, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"Listening on (\S+)", line):
                break
        else:
            pytest.fail("anvil ended before it listened")
        # anvil logs every request: an unread pipe would fill and stop it.
        drain = subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.DEVNULL)
        process.stdout.close()
        yield Prepared(f"http://{found[1]}")
    finally:
        process.terminate()
        process.wait(10)
    drain.wait(10)


@pytest.fixture
async def on_anvil(anvil: Prepared) -> AsyncIterator[AnvilWorld]:
    async with open_rpc([anvil.url], expect_chain_id=CHAIN_ID) as rpc, anvil_world(rpc, anvil) as opened:
        yield opened


@pytest.fixture(params=["memory", "anvil"])
def adapter(request: pytest.FixtureRequest) -> Prepared | None:
    """The anvil to run on, or None for the in-process chain."""
    return request.getfixturevalue("anvil") if request.param == "anvil" else None


@pytest.fixture
async def world(adapter: Prepared | None) -> AsyncIterator[World]:
    if adapter is None:
        yield MemoryWorld()
        return
    async with open_rpc([adapter.url], expect_chain_id=CHAIN_ID) as rpc, anvil_world(rpc, adapter) as opened:
        yield opened
