"""One anvil for each test process; each test starts from the same snapshot of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.anvil import running_anvil
from tests.contracts.evm import Chain
from tests.contracts.world import World, found


@pytest.fixture(scope="session")
def chain() -> Iterator[Chain]:
    """An anvil at the Prague fork, mining each transaction at once."""
    with running_anvil("--hardfork", "prague", "--auto-impersonate", "--gas-limit", "60000000") as url:
        yield Chain(url)


@dataclass
class _Stage:
    """Two deployments on one chain, kept as one snapshot: reverting costs milliseconds, building them seconds."""

    chain: Chain
    bare: World
    staffed: World
    snapshot: str

    def rewind(self) -> None:
        assert self.chain.rpc("evm_revert", self.snapshot)
        self.snapshot = self.chain.rpc("evm_snapshot")


@pytest.fixture(scope="session")
def stage(chain: Chain) -> _Stage:
    bare, staffed = found(chain), found(chain)
    for i in range(1, 11):
        staffed.register(i)
    staffed.advance()
    staffed.deposit(10**20)
    return _Stage(chain, bare, staffed, chain.rpc("evm_snapshot"))


@pytest.fixture
def bare(stage: _Stage) -> World:
    """The contracts without operators."""
    stage.rewind()
    return stage.bare


@pytest.fixture
def world(stage: _Stage) -> World:
    """Ten operators, ids 1 to 10, seated from the next block on; a user with 100 ether deposited."""
    stage.rewind()
    return stage.staffed
