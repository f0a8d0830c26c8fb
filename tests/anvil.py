"""An anvil process for tests: started on a free port, drained, ended."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.components import require


@contextmanager
def running_anvil(*options: str) -> Iterator[str]:
    """The URL of an anvil that mines each transaction at once. Without anvil the test skips, or fails where CI=true."""
    command = [str(require("anvil")), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    drain = None
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
        if drain is not None:
            drain.wait(10)
