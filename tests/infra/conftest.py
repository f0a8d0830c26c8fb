"""A real chain (anvil, found through PATH) for the tests of this folder that want one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.anvil import running_anvil


@pytest.fixture(scope="module")
def anvil() -> Iterator[str]:
    """The URL of an anvil of this module's own, mining each transaction at once."""
    with running_anvil() as url:
        yield url
