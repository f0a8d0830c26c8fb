"""What of the host a sandboxed program may see: its toolchains and libraries, and which of it the sandbox's user can reach."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from node.sandbox.languages import Tools

_ELF = b"\x7fELF"
_NPM_NAMES: Final = {"x86_64": "linux-x64", "aarch64": "linux-arm64"}
_ETC: Final = (
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/ca-certificates",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust/extracted",
)
"""Where libraries are, and which certificates to believe; nothing else of /etc."""

FILES: Final[Mapping[str, str]] = {
    "passwd": "script:x:1000:1000:script:/tmp:/bin/false\n",
    "group": "script:x:1000:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
"""Files of /etc that are the sandbox's own."""

_GO_ROOT: Final = ("VERSION", "go.env", "lib", "pkg", "src")

_DEVICES: Final = ("null", "full", "random", "urandom")  # /dev/zero, mapped, is memory that no process is charged for


@dataclass(slots=True)
class Found:
    """Toolchains on this host. `binds`: place inside -> folder or file of the host, beside /usr and its like. `why`: of languages
    and programs that are there and cannot be used, the reason."""

    tools: Tools
    binds: dict[str, Path] = field(default_factory=dict)
    go_root: Path | None = None
    """Of the host, when its compiler can be used; `go` is that program's path inside."""
    go: str = ""
    why: dict[str, str] = field(default_factory=dict)


def reachable(path: Path, dropped: bool) -> bool:
    """Whether the sandbox's user may read it. `dropped`: that user is another than this process'."""
    if not dropped:
        return os.access(path, os.R_OK)
    try:
        return all(folder.stat().st_mode & 0o001 for folder in path.resolve().parents) and bool(path.stat().st_mode & 0o004)
    except OSError:
        return False


def find_toolchains(dropped: bool, esbuild: Path | None) -> Found:
    """What there is on PATH and in the usual places, but for Go's compiled library. Blocks."""
    found = Found(Tools())
    python = _first("/usr/bin/python3", "/usr/local/bin/python3") or Path(sys.base_prefix, "bin/python3")
    node = shutil.which("node")
    go = shutil.which("go") or _first("/usr/local/go/bin/go", "/usr/lib/go/bin/go")
    native = _esbuild(esbuild)
    # The Go programs that `go` runs lie in its root, and `go` itself may be a link to there.
    go_root = Path(go).resolve().parent.parent if go else None
    found.tools = Tools(
        python=_inside(found, "python", python, dropped, _library_of(python)),
        node=_inside(found, "node", Path(node), dropped, ()) if node else None,
        esbuild=_program(found, "esbuild", native, dropped) if native else None,
    )
    if go_root is not None:
        tools = go_root / "pkg/tool" / f"linux_{ {'x86_64': 'amd64', 'aarch64': 'arm64'}.get(platform.machine(), '?') }"
        if not (tools / "compile").is_file():
            found.why["go"] = f"{go_root} has no compiler"
        elif inside := _inside(found, "go", go_root / "bin/go", dropped, _GO_ROOT):
            found.go_root, found.go = go_root, inside
    return found


def mounts(found: Found, own_files: Path, files_size: int, hidden: Sequence[Path]) -> list[str]:
    """bubblewrap's options for everything but the script: a read-only root with the host's programs, an own /proc and /dev, and
    `files_size` bytes of /tmp. `own_files` is a folder with `FILES`; `hidden` are folders that are empty inside."""
    options = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        place = Path("/", name)
        if place.is_symlink():
            options += ["--symlink", os.readlink(place), str(place)]
        elif place.is_dir():
            options += ["--ro-bind", str(place), str(place)]
    for file in _ETC:
        options += ["--ro-bind-try", file, file]
    for name in FILES:
        options += ["--ro-bind", str(own_files / name), f"/etc/{name}"]
    for inside, outside in found.binds.items():
        options += ["--ro-bind", str(outside), inside]
    shown = {"/": Path("/")} | found.binds
    for folder in [*_packages(found), *(each.resolve() for each in hidden)]:
        for inside, outside in shown.items():
            if not folder.is_dir() or not folder.is_relative_to(outside.resolve()):
                continue
            place = Path(inside, folder.relative_to(outside.resolve()))
            if inside != "/" or any(place.is_relative_to(each) for each in ("/usr", "/bin", "/lib", "/etc/ssl")):
                options += ["--tmpfs", str(place), "--remount-ro", str(place)]
    options += ["--proc", "/proc", "--tmpfs", "/dev"]
    for device in _DEVICES:
        options += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        options += ["--symlink", f"/proc/self/fd/{number}", f"/dev/{name}"]
    options += ["--symlink", "/proc/self/fd", "/dev/fd", "--remount-ro", "/dev"]
    return [*options, "--perms", "0700", "--size", str(files_size), "--tmpfs", "/tmp"]  # noqa: S108 - the sandbox's own


def copied(file: Path, to: Path, dropped: bool) -> Path:
    """The file itself where the sandbox's user can reach it, otherwise a copy in the folder `to`."""
    if reachable(file, dropped):
        return file
    copy = to / file.name
    shutil.copyfile(file, copy)
    copy.chmod(0o755)
    return copy


def _packages(found: Found) -> list[Path]:
    """Folders of installed packages: scripts have the standard library alone, or they would run here and nowhere else."""
    libraries = [*Path("/usr/lib").glob("python3*"), *Path("/usr/local/lib").glob("python3*")]
    libraries += [outside.resolve() for outside in found.binds.values()]
    return [
        folder for each in sorted(libraries) for name in ("dist-packages", "site-packages") if (folder := each / name).is_dir()
    ]


def _inside(found: Found, name: str, program: Path, dropped: bool, needs: Sequence[str]) -> str | None:
    """The program's path inside: as on the host when it lies in /usr, otherwise below /opt, with what it `needs` of the folder
    that it is installed in, and no more: that folder may be somebody's home."""
    real = program.resolve()
    if not real.is_file():
        return None
    if real.is_relative_to("/usr"):
        return str(real)
    prefix = real.parent.parent
    if not reachable(real, dropped):
        found.why[name] = f"{real} cannot be reached by the sandbox's user: install it below /usr"
        return None
    for part in (str(real.relative_to(prefix)), *needs):
        if (prefix / part).exists():
            found.binds[f"/opt/{name}/{part}"] = prefix / part
    return f"/opt/{name}/{real.relative_to(prefix)}"


def _library_of(python: Path) -> list[str]:
    """What a Python needs beside its program, where it is installed: its standard library, and itself as a library."""
    prefix = python.resolve().parent.parent
    shared = (str(each.relative_to(prefix)) for each in sorted(prefix.glob("lib/libpython3*.so*")))
    return [f"lib/python{sys.version_info.major}.{sys.version_info.minor}", *shared]


def _program(found: Found, name: str, program: Path, dropped: bool) -> str | None:
    """The same for a program that is one file; what cannot be reached is copied later, when there is a place for it."""
    if program.is_relative_to("/usr") and reachable(program, dropped):
        return str(program)
    found.binds[f"/opt/{name}"] = program
    return f"/opt/{name}"


def _esbuild(given: Path | None) -> Path | None:
    """The program itself: what npm puts on PATH may be a script that starts it."""
    on_path = given or shutil.which("esbuild")
    if on_path is None:
        return None
    start = Path(on_path).resolve()
    name = f"@esbuild/{_NPM_NAMES.get(platform.machine(), '?')}/bin/esbuild"
    beside = [folder / name for parent in start.parents for folder in (parent, parent / "node_modules")]
    for candidate in (start, *beside):
        try:
            with candidate.open("rb") as file:
                if file.read(4) == _ELF:
                    return candidate
        except OSError:
            continue
    return None


def _first(*paths: str) -> Path | None:
    return next((Path(path) for path in paths if Path(path).exists()), None)
