"""What every test shares: anvil from npm on PATH, and how many cases the property tests generate."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import settings

from tests import components

# Two busy cores make the wall time of one example meaningless.
settings.register_profile("default", deadline=None)
settings.register_profile("soak", deadline=None, print_blob=True)
settings.load_profile("default")

A_NETWORK_EACH = frozenset(
    {"tests/chaos/test_storm.py", "tests/devnet/test_devnet.py", "tests/devnet/test_kills.py", "tests/sdk/test_sdk.py"}
)
"""Tests that run a whole network of processes: some share one, and two at once are more than two cores carry."""

A_DOCKER_ENGINE = "tests/sandbox/"
"""Where tests share one engine, those whose names or parameters say docker: its start and its image take seconds."""

SOAK_FACTOR = 20  # of the number of cases a property test generates otherwise


def pytest_configure(config: pytest.Config) -> None:
    # Children (`triggerx devnet`) look for anvil on PATH, whether pytest came from make or not.
    anvil = components.find("anvil")
    folders = os.environ.get("PATH", "").split(os.pathsep)
    if anvil is not None and str(anvil.parent) not in folders:
        os.environ["PATH"] = os.pathsep.join([*folders, str(anvil.parent)])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--hypothesis-profile") != "soak":
        return
    for item in items:
        test = getattr(item, "obj", None)
        test = getattr(test, "__func__", test)
        # Hypothesis offers no public way to change what a test's own @settings says.
        if (own := getattr(test, "_hypothesis_internal_use_settings", None)) is not None:
            test._hypothesis_internal_use_settings = settings(own, max_examples=own.max_examples * SOAK_FACTOR)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """All tests that run a network do so on one worker, one after another, and so do those that share a Docker engine; every
    other test runs wherever there is room.

    Not by the mark `xdist_group`: pytest-xdist 3.8 groups nothing under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class OneWorkerForTheDevnet(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith(A_DOCKER_ENGINE) and "docker" in nodeid:
                return "docker"
            return "devnet" if nodeid.partition("::")[0] in A_NETWORK_EACH else nodeid

    return OneWorkerForTheDevnet(config, log)
