"""The sandboxes that the suite runs on: bubblewrap, and a real Docker engine that is started once for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sandbox.engine import Engine, running_engine


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[Engine]:
    """Without dockerd the test skips, or fails where CI=true."""
    with running_engine() as engine:
        yield engine
