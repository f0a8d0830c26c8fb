"""The kernel's own limits and accounts of a group of processes, in cgroups of version 1 or 2, where this node may make some."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from consensus.errors import Misconfigured
from node.sandbox.port import Limits

CONTROLLERS: Final = ("memory", "pids", "cpu", "cpuacct")
"""cpuacct only counts; version 2 does that for every group."""
ROOT: Final = Path("/sys/fs/cgroup")

_PREFIX = "triggerx-sandbox"
_NUMBERS = itertools.count(1)  # one process may have several sandboxes
_PERIOD_US = 100_000  # over which CPU time is shared out: the kernel's default
_REMOVED_S = 1.0  # a group stays busy for moments after its last process is gone


@dataclass(frozen=True, slots=True)
class Accounts:
    """What a group used: None where nobody counted. `killed`: whether the kernel killed a process of it for want of memory."""

    cpu_us: int | None
    peak: int | None
    """Bytes."""
    killed: bool


class Group:
    """The processes of one run."""

    def __init__(self, version: Literal[1, 2], folders: Mapping[str, Path]) -> None:
        self._version = version
        self._folders = folders

    @property
    def limits_memory(self) -> bool:
        return "memory" in self._folders

    def add(self, pid: int) -> None:
        """Takes the process in, with all that it will start. Raises OSError."""
        for folder in set(self._folders.values()):
            (folder / "cgroup.procs").write_text(str(pid))

    def killed(self) -> bool:
        """Whether the kernel killed a process of it for want of memory."""
        name = "memory.oom_control" if self._version == 1 else "memory.events"
        return _table(self._folders.get("memory"), name).get("oom_kill", 0) > 0

    def held(self) -> int:
        """Bytes of memory now, without cached files."""
        memory = self._folders.get("memory")
        name, prefix = ("memory.usage_in_bytes", "total_") if self._version == 1 else ("memory.current", "")
        return _without_files(_number(memory, name), _table(memory, "memory.stat"), prefix) or 0

    def accounts(self) -> Accounts:
        memory, cpu = self._folders.get("memory"), self._folders.get("cpuacct")
        if self._version == 1:
            used = _number(cpu, "cpuacct.usage")
            return Accounts(
                cpu_us=None if used is None else used // 1000,
                peak=_without_files(_number(memory, "memory.max_usage_in_bytes"), _table(memory, "memory.stat"), "total_"),
                killed=self.killed(),
            )
        return Accounts(
            cpu_us=_table(cpu, "cpu.stat").get("usage_usec"),
            peak=_without_files(_number(memory, "memory.peak"), _table(memory, "memory.stat"), ""),
            killed=self.killed(),
        )

    def remove(self) -> bool:
        """Whether it is gone; all its processes must be. Blocks for a second at most."""
        until = time.monotonic() + _REMOVED_S
        left = [folder for folder in set(self._folders.values()) if not _remove(folder, until)]
        return not left


class Cgroups:
    """Where groups are made: of each controller a folder that can be written to."""

    def __init__(self, version: Literal[1, 2], parents: Mapping[str, Path]) -> None:
        self.version = version
        self._parents = parents

    @property
    def controllers(self) -> frozenset[str]:
        return frozenset(self._parents)

    def sweep(self) -> None:
        """Removes what nodes that were killed left behind."""
        for parent in set(self._parents.values()):
            for folder in parent.glob(f"{_PREFIX}-*-*"):
                owner = folder.name.removeprefix(f"{_PREFIX}-").partition("-")[0]
                if owner.isdigit() and not Path(f"/proc/{owner}").exists():
                    _remove(folder, 0.0)

    def make(self, limits: Limits) -> Group:
        """An empty group with these limits. Raises OSError. Blocks for about a millisecond."""
        name = f"{_PREFIX}-{os.getpid()}-{next(_NUMBERS)}"
        folders: dict[str, Path] = {controller: parent / name for controller, parent in self._parents.items()}
        made: dict[str, Path] = {}
        try:
            for controller, folder in folders.items():
                if folder not in made.values():
                    folder.mkdir()
                made[controller] = folder
            self._limit(folders, limits)
        except OSError:
            Group(self.version, made).remove()
            raise
        return Group(self.version, folders)

    def _limit(self, folders: Mapping[str, Path], limits: Limits) -> None:
        quota = max(1000, round(limits.cpus * _PERIOD_US))
        if memory := folders.get("memory"):
            if self.version == 1:
                (memory / "memory.limit_in_bytes").write_text(str(limits.memory))
                _if_there(memory / "memory.memsw.limit_in_bytes", limits.memory)
                _if_there(memory / "memory.swappiness", 0)
                _if_there(
                    memory / "memory.kmem.tcp.limit_in_bytes", limits.memory
                )  # counted apart, and not at all unless limited
            else:
                (memory / "memory.max").write_text(str(limits.memory))
                _if_there(memory / "memory.swap.max", 0)
                _if_there(memory / "memory.oom.group", 1)
        if pids := folders.get("pids"):
            (pids / "pids.max").write_text(str(limits.pids + 1))  # and the first process, which only waits
        if cpu := folders.get("cpu"):
            if self.version == 1:
                (cpu / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
                (cpu / "cpu.cfs_quota_us").write_text(str(quota))
            else:
                (cpu / "cpu.max").write_text(f"{quota} {_PERIOD_US}")


def find_cgroups(own: Path | None = None, *, root: Path = ROOT, process: Path = Path("/proc/self")) -> Cgroups | None:
    """Where this process may make groups; None where it may not, or where no controller is. Blocks.

    `own` is a delegated group of version 2, the operator's. Raises `Misconfigured` when that cannot be used.
    """
    if own is not None:
        try:
            return Cgroups(2, _delegated(own))
        except OSError as error:
            raise Misconfigured(
                "sandbox.cgroup", f"{own} cannot be used ({error}): delegate an empty group to this user"
            ) from None
    places: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in (process / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            places.update(dict.fromkeys(controllers.split(","), path))
    if (root / "cgroup.controllers").exists():
        with contextlib.suppress(OSError):
            return Cgroups(2, _own(root / places.get("", "/").lstrip("/")))
        return None
    parents: dict[str, Path] = {}
    for controller in CONTROLLERS:
        # In a container the path is the host's, and the container sees its own group as the root.
        for folder in (root / controller / places.get(controller, "/").lstrip("/"), root / controller):
            if _can_make(folder):
                parents[controller] = folder
                break
    return Cgroups(1, parents) if parents else None


def _own(group: Path) -> dict[str, Path]:
    """Makes this process' own group a parent: it must hold nobody else, and this process moves into a child."""
    if not os.access(group, os.W_OK | os.X_OK):
        raise PermissionError(f"{group} belongs to somebody else")
    inside = (group / "cgroup.procs").read_text().split()
    if inside not in ([], [str(os.getpid())]):
        raise PermissionError(f"{group} has other processes")
    if inside:
        child = group / "node"
        child.mkdir(exist_ok=True)
        (child / "cgroup.procs").write_text(str(os.getpid()))
    return _delegated(group)


def _delegated(group: Path) -> dict[str, Path]:
    has = (group / "cgroup.controllers").read_text().split()
    wanted = [each for each in ("memory", "pids", "cpu") if each in has]
    if not wanted:
        raise PermissionError("it has no controller")
    (group / "cgroup.subtree_control").write_text(" ".join(f"+{each}" for each in wanted))
    if not os.access(group, os.W_OK | os.X_OK):
        raise PermissionError("no group can be made in it")
    return dict.fromkeys([*wanted, "cpuacct"], group)


def _can_make(folder: Path) -> bool:
    probe = folder / f"{_PREFIX}-{os.getpid()}-probe"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError:
        return False
    return True


def _remove(folder: Path, until: float) -> bool:
    while True:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.002)
        else:
            return True


def _if_there(file: Path, value: int) -> None:
    with contextlib.suppress(OSError):  # kernels without swap, or older ones, have no such file
        file.write_text(str(value))


def _number(folder: Path | None, name: str) -> int | None:
    if folder is None:
        return None
    try:
        return int((folder / name).read_text())
    except (OSError, ValueError):
        return None


def _table(folder: Path | None, name: str) -> dict[str, int]:
    if folder is None:
        return {}
    try:
        text = (folder / name).read_text()
    except OSError:
        return {}
    return {key: int(value) for key, value in re.findall(r"^(\S+) (\d+)$", text, re.MULTILINE)}


def _without_files(peak: int | None, now: Mapping[str, int], prefix: str) -> int | None:
    """The peak without the cached files of the host: whoever reads them first would pay for them. /tmp is memory and counts."""
    if peak is None:
        return None
    files = now.get(f"{prefix}cache", now.get("file", 0)) - now.get(f"{prefix}shmem", 0)
    return max(peak - max(files, 0), 0)
