"""A real chain (anvil, found through PATH) for the tests of this folder that want one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def anvil() -> Iterator[str]:
    """The URL of an anvil of this module's own, mining each transaction at once."""
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
        yield f"http://{found[1]}"
    finally:
        process.terminate()
        process.wait(10)
    drain.wait(10)
