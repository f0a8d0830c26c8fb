"""Limits without cgroups: looks at a run's processes every few milliseconds, and says when together they took too much."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from node.sandbox.port import Limits

INTERVAL_S: Final = 0.02
MAX_ENTRIES: Final = 16_384
"""Files in /tmp: each takes memory of the kernel's that is counted nowhere else."""

_ALONE = 2  # the shell that waits and the program: they share nothing that counts
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Seen:
    """The most that was seen so far: bytes of memory, and why the run has to end."""

    peak: int = 0
    cpu_s: float = 0.0
    code: str = ""
    detail: str = ""


async def watch(pid: int, limits: Limits, seen: Seen) -> None:
    """Returns when a limit is broken, which `seen` then names; `pid` is the first process of the run's namespace."""
    while not seen.code:
        look(pid, limits, seen)
        await trio.sleep(INTERVAL_S)


def look(pid: int, limits: Limits, seen: Seen) -> None:
    """One look at all processes: about 50 us each."""
    memory, threads, cpu_s = 0, 0, 0.0
    processes = list(tree(pid, limits.pids * 4))
    for each in processes:
        with contextlib.suppress(OSError, ValueError, IndexError):  # it is gone
            folder = Path("/proc", str(each))
            memory += _proportional(folder) if len(processes) > _ALONE else _own(folder)
            memory += _kib((folder / "status").read_bytes(), b"VmPTE:")  # tables alone may be gigabytes
            words = (folder / "stat").read_bytes().rpartition(b")")[2].split()
            threads += int(words[17])
            cpu_s += sum(int(word) for word in words[11:15]) * _TICK_S
    files, entries = _in_tmp(pid, limits.files)
    memory += files
    seen.peak = max(seen.peak, memory)
    seen.cpu_s = max(seen.cpu_s, cpu_s)
    if memory > limits.memory:
        seen.code, seen.detail = "SCRIPT_MEMORY", f"took more than {limits.memory >> 20} MiB of memory"
    elif threads > limits.pids + 2:
        seen.code, seen.detail = "SCRIPT_MEMORY", f"started more than {limits.pids} processes and threads"
    elif entries > MAX_ENTRIES:
        seen.code, seen.detail = "SCRIPT_MEMORY", f"made more than {MAX_ENTRIES} files"
    elif seen.cpu_s > limits.cpus * limits.wall_s:
        seen.code, seen.detail = "SCRIPT_TIMEOUT", f"took more than {limits.cpus * limits.wall_s:g} s of CPU time"


def _own(folder: Path) -> int:
    """Bytes that a process has for itself. What is shared are files: the host's, mapped by all alike, or those of /tmp, counted
    there. Other memory to be shared the filter of system calls refuses."""
    pages = (folder / "statm").read_bytes().split()
    return (int(pages[1]) - int(pages[2])) * _PAGE


def _proportional(folder: Path) -> int:
    """The same, where forked processes share pages and each counts its part: dearer, and not always allowed."""
    try:
        text = (folder / "smaps_rollup").read_bytes()
    except OSError:
        return _own(folder)
    return _kib(text, b"Pss_Anon:", b"Pss_Shmem:") if b"Pss_Anon:" in text else _own(folder)


def _kib(text: bytes, *names: bytes) -> int:
    """Bytes, of the lines with these names, which say KiB."""
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(names)) * 1024


def tree(pid: int, most: int) -> Iterator[int]:
    """The process and its descendants, at most so many: who loses its parent becomes a child of the first."""
    waiting, given = [pid], 0
    while waiting and given < most:
        each = waiting.pop()
        yield each
        given += 1
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{each}/task"):
                waiting += map(int, Path(f"/proc/{each}/task/{thread}/children").read_bytes().split())


def _in_tmp(pid: int, size: int) -> tuple[int, int]:
    """Bytes and entries in the sandbox's /tmp, which has this size; zeros where this user may not look."""
    try:
        found = os.statvfs(f"/proc/{pid}/root/tmp")
    except OSError:
        return 0, 0
    if abs(found.f_blocks * found.f_frsize - size) > _PAGE:
        return 0, 0  # the process is not in its own root yet
    return (found.f_blocks - found.f_bfree) * found.f_frsize, found.f_files - found.f_ffree
