"""Every chain that the port suite runs against."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.chain.worlds import MemoryWorld, World


@pytest.fixture(params=["memory"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    yield MemoryWorld()
