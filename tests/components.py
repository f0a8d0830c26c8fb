"""The one rule for programs that tests take from outside: absent means skip with a plain reason, or failure where CI=true."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parent.parent
NODE_MODULES = _ROOT / "tests" / "js" / "node_modules"


def _on_path(name: str) -> Path | None:
    found = shutil.which(name)
    return Path(found) if found else None


def _anvil() -> Path | None:
    # npm's launcher would outlive a killed child, so the package that holds the binary itself is what is installed.
    binary = NODE_MODULES / "@foundry-rs/anvil-linux-amd64/bin/anvil"
    runs_here = platform.system() == "Linux" and platform.machine() == "x86_64"
    return _on_path("anvil") or (binary if runs_here and binary.is_file() else None)


def _dockerd() -> Path | None:
    return _on_path("dockerd") if os.geteuid() == 0 else None


def _esbuild() -> Path | None:
    # What npm puts on PATH may be a script; the program itself is wanted.
    machine = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), "")
    own = NODE_MODULES / f"@esbuild/linux-{machine}/bin/esbuild"
    for program in (own, _on_path("esbuild")):
        if program is not None and program.is_file() and program.read_bytes()[:4] == b"\x7fELF":
            return program
    return None


def _go() -> Path | None:
    own = Path("/usr/local/go/bin/go")
    return _on_path("go") or (own if own.is_file() else None)


def _npm_package(name: str) -> Path | None:
    folder = NODE_MODULES / name
    return folder if (folder / "package.json").is_file() else None


def _ipfs() -> Path | None:
    binary = _ROOT / "tests" / "kubo" / "build" / "ipfs"
    return binary if binary.is_file() else _on_path("ipfs")


# Component -> where it is, and the line that brings it.
COMPONENTS: dict[str, tuple[Callable[[], Path | None], str]] = {
    "anvil": (_anvil, "`make test` gets it from npm on x86-64 Linux; elsewhere install Foundry"),
    "ipfs": (_ipfs, "`make test` builds Kubo where Go 1.25 or newer is present; or install Kubo"),
    "redis-server": (lambda: _on_path("redis-server"), "`apt-get install redis-server`, or your system's own package"),
    "dockerd": (_dockerd, "`apt-get install docker.io`; only root may start one"),
    "esbuild": (_esbuild, "`make test` gets it where npm is present"),
    "go": (_go, "`apt-get install golang-go`, or a newer one from go.dev"),
    "node": (lambda: _on_path("node"), "install Node.js 20.19 or newer"),
    "sdk-triggerx": (lambda: _npm_package("sdk-triggerx"), "`make test` gets it where npm is present"),
    "ethers": (lambda: _npm_package("ethers"), "`make test` gets it where npm is present"),
}


def find(name: str) -> Path | None:
    """Where the component `name` is (a program, or the folder of an npm package), or None."""
    look, _ = COMPONENTS[name]
    return look()


def require(name: str) -> Path:
    """Where the component `name` is; without it the calling test (or module) skips, or fails where CI=true.

    Scripts run by "node" find the npm packages with `NODE_PATH` set to `NODE_MODULES`, or by lying below `tests/js`.
    """
    found = find(name)
    if found is not None:
        return found
    reason = f"{name} is not on this machine: {COMPONENTS[name][1]}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason, allow_module_level=True)
