"""A real IPFS daemon for tests: Kubo, built from go.mod beside this file by `make test`; never in touch with other daemons."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.components import require


class Kubo:
    """A daemon of the test's own. `url` is that of its API; `kill` and `start` are what happens to daemons."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._program = str(require("ipfs"))
        self._environment = {**os.environ, "IPFS_PATH": str(folder / "ipfs"), "IPFS_TELEMETRY": "off"}
        self._process: subprocess.Popen[str] | None = None
        self.run("init", "--profile=test", "--empty-repo")
        self.url = ""

    def run(self, *arguments: str, data: bytes | None = None) -> str:
        """What the command prints, as an operator would use it; it asks the daemon, when that runs."""
        command = [self._program, *arguments]
        done = subprocess.run(command, input=data, env=self._environment, capture_output=True, timeout=60, check=True)
        return done.stdout.decode().strip()

    def start(self) -> None:
        """Offline: it finds what it was given, and asks nobody for the rest."""
        command = [self._program, "daemon", "--offline"]
        self._process = subprocess.Popen(
            command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self._process.stdout is not None
        said = []
        for line in self._process.stdout:
            said.append(line)
            if found := re.search(r"API server listening on /ip4/([0-9.]+)/tcp/(\d+)", line):
                self.url = f"http://{found[1]}:{found[2]}"
                self.run("config", "Addresses.API", f"/ip4/{found[1]}/tcp/{found[2]}")  # the same, when it comes back
            if "Daemon is ready" in line:
                return
        pytest.fail(f"the IPFS daemon ended before it was ready: {''.join(said)}")

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(10)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


@contextmanager
def running_kubo(folder: Path) -> Iterator[Kubo]:
    """A daemon that keeps its files below `folder`. Without Kubo the test skips, or fails where CI=true."""
    kubo = Kubo(folder)
    try:
        kubo.start()
        yield kubo
    finally:
        kubo.kill()
