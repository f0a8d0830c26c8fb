"""The fixture over the shared devnets, for the conftest of each folder that tests on them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.components import require
from tests.devnet.running import RunningDevnet, end_shared, shared_devnet

on_anvil = pytest.mark.parametrize("devnet", ["anvil"], indirect=True)
"""For tests to which the kind of chain makes no difference."""


@pytest.fixture(scope="session", params=["anvil", "embedded"])
def devnet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDevnet]:
    """A devnet of each kind of chain, five keepers, no demo job."""
    if request.param == "anvil":
        require("anvil")
    yield shared_devnet(request.param, tmp_path_factory.mktemp(request.param) / "net")
    end_shared([request.param])
