"""One anvil for each test process; each test starts from the same snapshot of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.contracts.evm import Chain
from tests.contracts.world import World, found


@pytest.fixture(scope="session")
def chain() -> Iterator[Chain]:
    """An anvil at the Prague fork, mining each transaction at once."""
    binary = shutil.which("anvil")
    if binary is None:
        if os.environ.get("CI") == "true":
            pytest.fail("anvil is not on PATH, and CI must not skip the tests of the contracts")
        pytest.skip("anvil is not on PATH: the contracts are tested against a real EVM")
    command = [binary, "--port", "0", "--hardfork", "prague", "--auto-impersonate", "--gas-limit", "60000000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    drain = None
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if listening := re.search(r"Listening on (\S+)", line):
                break
        else:
            pytest.fail("anvil ended before it listened")
        # anvil logs every request: an unread pipe would fill and stop it.
        drain = subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.DEVNULL)
        process.stdout.close()
        yield Chain(f"http://{listening[1]}")
    finally:
        process.terminate()
        process.wait(10)
        if drain is not None:
            drain.wait(10)


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
