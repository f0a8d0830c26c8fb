"""A Docker engine of the tests' own: its folder, its socket, no network of its own; killed and started as a test likes."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.components import find, require

IMAGE = "triggerx-sandbox"
_DEPLOY = Path(__file__).parents[2] / "deploy" / "sandbox"
_START_S, _STOP_S = 60.0, 30.0


class Engine:
    """A dockerd that this process started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"unix://{folder}/docker.sock"
        self._supervisor = folder / "exec/containerd/containerd.pid"
        self._process: subprocess.Popen[str] | None = None
        self._said: deque[str] = deque(maxlen=30)

    def start(self) -> None:
        """Returns when it listens."""
        command = [str(require("dockerd")), f"--data-root={self.folder}/data", f"--exec-root={self.folder}/exec"]
        command += [f"--pidfile={self.folder}/docker.pid", f"--host={self.url}", "--bridge=none", "--iptables=false"]
        # What it mounts goes with it, however it ends.
        command = ["unshare", "--mount", "--propagation=private", *command]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        listening = threading.Event()

        def follow() -> None:
            assert process.stderr is not None
            for line in process.stderr:
                self._said.append(line)
                if "API listen on" in line:
                    listening.set()
            listening.set()

        threading.Thread(target=follow, daemon=True).start()
        self._process = process
        if not listening.wait(_START_S) or process.poll() is not None:
            self.stop()
            pytest.fail("the Docker engine does not start: " + "".join(self._said), pytrace=False)

    def kill(self) -> None:
        """SIGKILL, as a crash would; what supervises its containers dies with it."""
        assert self._process is not None
        pid = int(self._supervisor.read_text())
        self._process.kill()
        self._process.wait(_STOP_S)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        # Where nobody buries it, the engine would take it for alive.
        self._supervisor.unlink()

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        with suppress(OSError, ValueError):  # one that it did not start itself it would wait for
            os.kill(int(self._supervisor.read_text()), signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_S)
        for each in Path("/proc").glob("[0-9]*/cmdline"):  # what outlived a kill
            with suppress(OSError):
                if str(self.folder).encode() in each.read_bytes() and int(each.parent.name) != os.getpid():
                    os.kill(int(each.parent.name), signal.SIGKILL)

    def docker(self, *words: str, stdin: int | None = None) -> str:
        """What the client prints."""
        done = subprocess.run(["docker", "--host", self.url, *words], stdin=stdin, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def containers(self) -> set[str]:
        """Names of all there are."""
        return set(self.docker("ps", "--all", "--format", "{{.Names}}").split())

    def load(self) -> None:
        """Imports the image."""
        with image().open("rb") as file:
            self.docker("import", "-", IMAGE, stdin=file.fileno())


@contextmanager
def running_engine() -> Iterator[Engine]:
    """An engine with the image in it. Without dockerd the test skips, or fails where CI=true."""
    require("dockerd")
    # A short path: that of a socket has 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="engine-"))
    engine = Engine(folder)
    try:
        engine.start()
        engine.load()
        yield engine
    finally:
        engine.stop()
        shutil.rmtree(folder, ignore_errors=True)


def image() -> Path:
    """The image's root file system as a tar file, from this machine's programs. Made once and kept among the user's cached files,
    by what it is made of."""
    made_of = hashlib.sha256()
    environment = dict(os.environ)
    for name, asked in (("python3", "--version"), ("node", "--version"), ("go", "version"), ("esbuild", "--version")):
        found = _program(name)
        made_of.update(subprocess.run([found, asked], capture_output=True).stdout if found else b"\0")
        made_of.update(str(found).encode())
        environment["PYTHON" if name == "python3" else name.upper()] = str(found or "")
    for script in sorted(_DEPLOY.iterdir()):
        made_of.update(script.read_bytes())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triggerx"
    kept = folder / f"sandbox-{made_of.hexdigest()[:16]}.tar"
    if kept.is_file():
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as making:
        root, tar = Path(making) / "root", Path(making) / "image.tar"
        subprocess.run([_DEPLOY / "build-rootfs", root], env=environment, check=True, timeout=600)
        owner = ["--owner=0", "--group=0", "--numeric-owner"]
        subprocess.run(["tar", "-C", root, *owner, "-cf", tar, "."], check=True, timeout=120)
        tar.replace(kept)
    for other in folder.glob("sandbox-*.tar"):
        if other != kept:
            other.unlink(missing_ok=True)
    return kept


def _program(name: str) -> str | None:
    if name == "esbuild":
        found = find("esbuild")
        return str(found) if found else None
    return shutil.which(name) or (shutil.which(name, path="/usr/local/go/bin") if name == "go" else None)
