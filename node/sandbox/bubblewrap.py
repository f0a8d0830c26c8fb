"""One command in a fresh place made by bubblewrap: its limits, what it prints, what it used, and that nothing of it is left.

The namespace's first process is a shell that waits for the command. When it ends, however it ends, the kernel kills every
process of the namespace before the end is reported: no child outlives a run. bubblewrap dies with the thread that started it,
so one thread, which lives as long as this process, starts them all.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog
import trio

from consensus.errors import Transient
from consensus.messages import Usage
from node.sandbox.cgroups import Accounts, Cgroups, Group
from node.sandbox.port import Limits
from node.sandbox.watch import Seen, watch

SETUP_S: Final = 20.0
"""What bubblewrap takes at most until the command can start; milliseconds, unless the machine is overloaded."""
QUOTED: Final = 512
"""Characters of what a program printed that a reason quotes."""

_KILLED_S = 10.0
_GROUP_S = 0.05
_DROPPING_S = 0.001  # for each piece that nobody wants: 64 MB a second, and the loop has time for others
_PIECE = 65_536
_UNHEAPED = 128 * 1024 * 1024  # of a process' private memory that is stacks and the like, and mostly not used
# In a subshell: the command must not be the first process, which ignores signals. What the shell says itself is nobody's.
# It says that it is there, and waits for a word on stdin, which a node that was killed meanwhile will not give. The word must not
# come earlier: only just before it becomes this shell does the process ask the kernel to be killed with its parent.
_FIRST = """echo; read -r word && [ "$word" = go ] || exit 125
ulimit -c 0 && ulimit -t "$1" && ulimit -f "$2" && ulimit -l 64 && ulimit -n 256 && ulimit -d "$3" || exit 125
exec 3>&2 2>/dev/null
ulimit -p "$4" || ulimit -u "$4" || exit 125
shift 4
(exec "$@" 2>&3 3>&-)
exit $?"""
_ISOLATED: Final = (
    *("--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session", "--as-pid-1"),
    *("--cap-drop", "ALL", "--uid", "1000", "--gid", "1000", "--hostname", "sandbox", "--clearenv"),
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Command:
    """What is to run. `mounts` are bubblewrap's options; `files`: path inside -> content, read-only."""

    argv: Sequence[str]
    mounts: Sequence[str] = field(repr=False)
    files: Mapping[str, bytes] = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)
    stdin: bytes = field(repr=False)
    limits: Limits


@dataclass(frozen=True, slots=True)
class Ended:
    """How it ended: `code` and `detail` are those of the limit that it broke, '' when it ended by itself."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    usage: Usage
    code: str = ""
    detail: str = ""


@dataclass(slots=True)
class Bubblewrap:
    """How commands are started here. `user` is the user and group id to become first; None when this process is not root:
    bubblewrap started by root would leave its programs the rights of root over whatever is root's."""

    program: Path
    filter: bytes = field(repr=False)
    """Of system calls, as `seccomp.bpf` writes it."""
    cgroups: Cgroups | None
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "sandbox"))

    async def execute(self, command: Command, user: int | None) -> Ended:
        """Raises `Transient` SANDBOX_UNAVAILABLE when the command could not be started. Cancelling kills it."""
        group: Group | None = None
        try:
            if self.cgroups is not None:
                group = await trio.to_thread.run_sync(self.cgroups.make, command.limits)
            async with self._started(command, user) as started:
                await _attend(started, command, group)
        except OSError as error:
            raise Transient("SANDBOX_UNAVAILABLE", f"the sandbox could not be made: {error}") from error
        finally:
            accounts = group.accounts() if group is not None else Accounts(None, None, False)
            if group is not None:
                with trio.CancelScope(shield=True):
                    if not await trio.to_thread.run_sync(group.remove):
                        log.warning("sandbox_group_left")
        return _ended(started, accounts, command.limits)

    @asynccontextmanager
    async def _started(self, command: Command, user: int | None) -> AsyncIterator[_Started]:
        """bubblewrap, at work or waiting for its word. Afterwards it and everything in it is gone."""
        started = await trio.to_thread.run_sync(lambda: self.thread.submit(_spawn, self, command, user).result())
        try:
            # Not to be cancelled: only the namespace's first process can be killed with all the others.
            with trio.move_on_after(SETUP_S) as setup:
                setup.shield = True
                await started.ready()
            started.learn_first()
            yield started
        finally:
            started.kill()
            with trio.move_on_after(_KILLED_S) as waiting:
                waiting.shield = True
                await started.wait()
            if waiting.cancelled_caught:
                log.error("sandbox_process_left", pid=started.process.pid)
            await started.close()


class _Started:
    """A bubblewrap process, our ends of its pipes, and what came out of them."""

    def __init__(self, process: subprocess.Popen[bytes], stdin: int, stdout: int, stderr: int, told: int):
        self._handle = os.pidfd_open(process.pid)  # first: it may fail, and the pipes are not ours until it has not
        self.process = process
        self.stdin, self.stdout = trio.lowlevel.FdStream(stdin), trio.lowlevel.FdStream(stdout)
        self.stderr = trio.lowlevel.FdStream(stderr)
        self.told = told
        self.printed, self.complained = bytearray(), bytearray()
        self.seen = Seen()
        self.wall_s = 0.0
        self.begun = False
        """Whether the command came as far as being started."""
        self.used: resource.struct_rusage | None = None
        self.exit_code = 0
        self.first: int | None = None
        """Process id of the namespace's first process."""
        self._first_handle: int | None = None

    async def ready(self) -> None:
        """Waits until the first process says that the command can start, or ends before."""
        self.begun = bool(await self.stdout.receive_some(1))

    def learn_first(self) -> None:
        """Finds the first process, if there is one. Raises OSError."""
        text = os.pread(self.told, 4096, 0)
        if b"}" in text:
            first = int(json.loads(text)["child-pid"])
            with contextlib.suppress(ProcessLookupError):
                self._first_handle = os.pidfd_open(first)
                self.first = first

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._first_handle or self._handle, signal.SIGKILL)

    async def wait(self) -> None:
        """Until bubblewrap has ended, and with it the namespace."""
        if self.used is not None:
            return
        await trio.lowlevel.wait_readable(self._handle)
        _, status, self.used = os.wait4(self.process.pid, os.WNOHANG)  # noqa: ASYNC222 - it has ended
        self.exit_code = self.process.returncode = os.waitstatus_to_exitcode(status)

    async def close(self) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            with trio.CancelScope(shield=True):
                await stream.aclose()
        for fd in (self.told, self._handle, self._first_handle):
            if fd is not None:
                os.close(fd)


def _spawn(bubblewrap: Bubblewrap, command: Command, user: int | None) -> _Started:
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:

        def pipe() -> tuple[int, int]:
            return os.pipe2(os.O_CLOEXEC)

        def held(fd: int, by: contextlib.ExitStack) -> int:
            by.callback(os.close, fd)
            return fd

        def content(data: bytes) -> int:
            fd = held(os.memfd_create("sandbox"), theirs)
            with open(fd, "wb", closefd=False) as file:
                file.write(data)
            os.lseek(fd, 0, os.SEEK_SET)
            return fd

        stdin, feed = pipe()
        out, stdout = pipe()
        err, stderr = pipe()
        # No pipe: bubblewrap would end by writing to it when we are gone, and its child would wait for a word from it for ever.
        told = os.memfd_create("sandbox")
        for fd in (feed, out, err, told):
            held(fd, ours)
        for fd in (stdin, stdout, stderr):
            held(fd, theirs)
        options = [*_ISOLATED, *command.mounts]
        for name, value in command.environment.items():
            options += ["--setenv", name, value]
        shared = [told, content(bubblewrap.filter)]
        options += ["--info-fd", str(told), "--seccomp", str(shared[-1])]
        for path, data in command.files.items():
            shared.append(content(data))
            options += ["--perms", "0555", "--ro-bind-data", str(shared[-1]), path]
        options += ["--remount-ro", "/", "--chdir", "/tmp"]  # noqa: S108 - the sandbox's own
        if any("\0" in each for each in options):
            raise ValueError("an option that holds a NUL would be two")
        shared.append(content(b"".join(each.encode("utf-8", "surrogatepass") + b"\0" for each in options)))
        limits = _rlimits(command.limits, bubblewrap.cgroups is not None and "memory" in bubblewrap.cgroups.controllers)
        process = subprocess.Popen(
            [bubblewrap.program, "--args", str(shared[-1]), "--", "/bin/sh", "-c", _FIRST, "sh", *limits, *command.argv],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            pass_fds=shared,
            cwd="/",
            env={},
            **({} if user is None else {"user": user, "group": user, "extra_groups": []}),  # type: ignore[call-overload]
        )
        started = _Started(process, feed, out, err, told)
        ours.pop_all()
    return started


async def _attend(started: _Started, command: Command, group: Group | None) -> None:
    """Lets the command run, to its end or to that of its limits."""
    limits, seen = command.limits, started.seen
    if started.first is None or not started.begun:
        started.begun = False
        started.kill()
        with trio.move_on_after(_KILLED_S):
            await _take(started.stderr, started.complained, limits.stderr)
        return
    _place(started.first, group)
    began = time.monotonic()
    with trio.move_on_after(limits.wall_s) as stop:
        async with trio.open_nursery() as beside:
            if group is None or not group.limits_memory:
                beside.start_soon(_watch, started.first, limits, seen, stop)
            else:
                beside.start_soon(_watch_group, group, limits, seen, stop)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_feed, started.stdin, b"go\n" + command.stdin)
                nursery.start_soon(_take_all, started, limits, stop)
                nursery.start_soon(_take, started.stderr, started.complained, limits.stderr)
                await started.wait()
            beside.cancel_scope.cancel()
    started.wall_s = time.monotonic() - began
    if stop.cancelled_caught and not seen.code:
        seen.code, seen.detail = "SCRIPT_TIMEOUT", f"ran longer than {limits.wall_s:g} s"


def _rlimits(limits: Limits, by_group: bool) -> list[str]:
    """What `_FIRST` sets: seconds of CPU, blocks of 512 bytes of a file, KiB of memory, processes. Setting them from out here
    would take a right (CAP_SYS_RESOURCE) that the node may not have."""
    data = "unlimited" if by_group else str((limits.memory + _UNHEAPED) // 1024)
    return [str(int(limits.cpus * limits.wall_s) + 2), str(limits.files // 512), data, str(limits.pids + 1)]


def _place(first: int, group: Group | None) -> None:
    """Before the command starts: the first process is in its group, which all others inherit."""
    if group is not None:
        group.add(first)
    with contextlib.suppress(OSError):
        Path(f"/proc/{first}/oom_score_adj").write_text("1000")  # when the whole machine runs out: rather it than us


async def _watch(first: int, limits: Limits, seen: Seen, stop: trio.CancelScope) -> None:
    await watch(first, limits, seen)
    stop.cancel()


async def _watch_group(group: Group, limits: Limits, seen: Seen, stop: trio.CancelScope) -> None:
    """A run ends when the kernel has killed one of its processes: the others may not even know."""
    while not group.killed():
        # The kernel's peak has cached files in it, and what of them is left at the end need not be what was there at the peak:
        # a program could hide what it took behind files that it reads last.
        seen.peak = max(seen.peak, group.held())
        await trio.sleep(_GROUP_S)
    seen.code, seen.detail = "SCRIPT_MEMORY", _too_much(limits)
    stop.cancel()


def _too_much(limits: Limits) -> str:
    return f"took more than {limits.memory >> 20} MiB of memory"


async def _feed(stream: trio.lowlevel.FdStream, data: bytes) -> None:
    async with stream:
        try:
            await stream.send_all(data)
        except trio.BrokenResourceError:
            return  # it does not read, or not to the end: its affair


async def _take_all(started: _Started, limits: Limits, stop: trio.CancelScope) -> None:
    await _take(started.stdout, started.printed, limits.stdout, beyond=False)
    if len(started.printed) > limits.stdout:
        started.seen.code, started.seen.detail = "SCRIPT_OUTPUT", f"printed more than {limits.stdout} bytes on stdout"
        stop.cancel()


async def _take(stream: trio.lowlevel.FdStream, kept: bytearray, most: int, *, beyond: bool = True) -> None:
    """Keeps `most` bytes of it; then reads on and keeps nothing, or, unless `beyond`, stops with one byte more."""
    while piece := await stream.receive_some(_PIECE):
        if len(kept) >= most and beyond:
            await trio.sleep(_DROPPING_S)
        kept += piece[: most - len(kept) + (not beyond)]
        if not beyond and len(kept) > most:
            return


def _ended(started: _Started, accounts: Accounts, limits: Limits) -> Ended:
    seen, used = started.seen, started.used
    stdout, stderr = bytes(started.printed[: limits.stdout]), bytes(started.complained)
    if not started.begun:
        why = stderr.decode("utf-8", "replace").strip()[-QUOTED:]
        raise Transient("SANDBOX_UNAVAILABLE", f"bubblewrap made no sandbox: {why or 'without a word'}")
    cpu_us = accounts.cpu_us
    if cpu_us is None:
        # Of processes that are killed with their namespace only the watcher knows.
        cpu_us = round(max(seen.cpu_s, used.ru_utime + used.ru_stime if used is not None else 0.0) * 1e6)
    peak = max(accounts.peak or 0, seen.peak)
    usage = Usage(cpu_ms=cpu_us // 1000, wall_ms=round(started.wall_s * 1000), peak_kib=peak // 1024, transferred=0)
    code, detail = seen.code, seen.detail
    if code in ("", "SCRIPT_TIMEOUT") and accounts.killed:
        code, detail = "SCRIPT_MEMORY", _too_much(limits)
    exit_code = started.exit_code
    if not code and exit_code == 128 + signal.SIGXCPU:
        code, detail = "SCRIPT_TIMEOUT", f"took more than {limits.cpus * limits.wall_s:g} s of CPU time"
    # The shell says 128 + n for signal n; a program that exits with such a code by itself looks the same.
    return Ended(-(exit_code - 128) if 128 < exit_code <= 192 else exit_code, stdout, stderr, usage, code, detail)
