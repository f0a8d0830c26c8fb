"""Every chain that the port suite runs against."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from node.infra.rpc import open_rpc
from tests.anvil import running_anvil
from tests.chain.anvil_world import CHAIN_ID, AnvilWorld, Prepared, anvil_world
from tests.chain.worlds import MemoryWorld, World


@pytest.fixture(scope="session")
def anvil() -> Iterator[Prepared]:
    """An anvil of this test process's own, mining each transaction at once."""
    with running_anvil() as url:
        yield Prepared(url)


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
