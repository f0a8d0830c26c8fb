"""Go's standard library, compiled once per version of Go and kept: scripts are compiled against it without a build cache.

Compiler and linker are called as `go build` would call them. That needs nothing writable, takes a third of a second, and leaves
the tool that would fetch modules out of the sandbox.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

import trio

from consensus.errors import Transient
from node.sandbox.bubblewrap import QUOTED, Command, Ended
from node.sandbox.languages import ENVIRONMENT
from node.sandbox.places import Found, mounts
from node.sandbox.port import Limits

INSIDE: Final = "/opt/go-library"
"""Where it lies in a sandbox."""

_COMPILING = Limits(
    cpus=float(os.cpu_count() or 1), wall_s=900.0, memory=2 * 1024**3, pids=512, files=1024**3, stdout=65_536, stderr=16_384
)
_COMPILE = """
export GOCACHE=/work/cache GOPATH=/work/path GOENV=off GOPROXY=off GOTOOLCHAIN=local GOTELEMETRY=off CGO_ENABLED=0
exec "$1" list -trimpath -export -f '{{if .Export}}{{.ImportPath}} {{.Export}}{{end}}' std > /work/list
"""


def folder_of(go_root: Path, cache: Path) -> Path:
    """Where the library for this Go is kept, once it is there: another for each version and build of Go. Blocks."""
    version = (go_root / "VERSION").read_text()
    mark = hashlib.sha256(f"{go_root}\n{version}\n{(go_root / 'bin/go').stat().st_mtime_ns}".encode()).hexdigest()[:8]
    return cache / f"{version.split()[0]}-{mark}"


def with_library(found: Found, folder: Path) -> Found:
    """The toolchains with Go among them; `folder` is a finished library."""
    root = Path(found.go).parent.parent
    assert found.go_root is not None
    kind = next(each.name for each in sorted((found.go_root / "pkg/tool").glob("*_*")))
    tools = root / "pkg/tool" / kind
    added = replace(
        found.tools, go_compile=str(tools / "compile"), go_link=str(tools / "link"), go_importcfg=f"{INSIDE}/importcfg"
    )
    return replace(found, tools=added, binds={**found.binds, INSIDE: folder})


async def make_library(
    folder: Path, found: Found, own_files: Path, execute: Callable[[Command], Awaitable[Ended]], user: int | None
) -> None:
    """Compiles the library to `folder`, unless another process has meanwhile: only one at a time does. A minute of two cores.

    Raises `Transient` SANDBOX_UNAVAILABLE, OSError.
    """
    with ExitStack() as stack:
        await trio.to_thread.run_sync(lambda: folder.parent.mkdir(parents=True, exist_ok=True))
        lock = stack.enter_context((folder.parent / "lock").open("w"))
        while not _locked(lock.fileno()):  # noqa: ASYNC110 - another process holds it
            await trio.sleep(0.2)
        if await trio.to_thread.run_sync(folder.exists):
            return
        work = stack.enter_context(tempfile.TemporaryDirectory(prefix="triggerx-go-", dir=folder.parent))
        made, inside = await trio.to_thread.run_sync(_workplace, Path(work), user)
        options = [*mounts(found, own_files, _COMPILING.files, ()), "--bind", str(inside), "/work"]
        command = Command(["/bin/sh", "-c", _COMPILE, "go", found.go], options, {}, ENVIRONMENT, b"", _COMPILING)
        ended = await execute(command)
        if ended.exit_code or ended.code:
            words = ended.detail or ended.stderr.decode("utf-8", "replace").strip()[-QUOTED:]
            raise Transient("SANDBOX_UNAVAILABLE", f"Go's standard library does not compile: {words}")
        await trio.to_thread.run_sync(_collect, inside, made)
        made.rename(folder)


def _workplace(work: Path, user: int | None) -> tuple[Path, Path]:
    """A folder for the result, and one that only `user` may write to: nobody else has a hand in what is compiled."""
    made, inside = work / "made", work / "inside"
    made.mkdir(mode=0o755)
    inside.mkdir(mode=0o700)
    if user is not None:
        os.chown(inside, user, user)
    work.chmod(0o755)
    return made, inside


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _collect(inside: Path, made: Path) -> None:
    """The archives that `go list` named, and the two lists of them."""
    public, everything = [], []
    for line in (inside / "list").read_text().splitlines():
        if not line.strip():
            continue
        package, _, file = line.partition(" ")
        archive = made / f"{package}.a"
        archive.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(inside / Path(file).relative_to("/work"), archive)
        archive.chmod(0o644)
        entry = f"packagefile {package}={INSIDE}/{package}.a\n"
        everything.append(entry)
        if "internal" not in package.split("/") and not package.startswith("vendor/"):
            public.append(entry)
    (made / "importcfg").write_text("".join(public))
    (made / "importcfg.link").write_text("".join(everything))
