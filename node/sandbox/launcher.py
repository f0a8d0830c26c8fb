"""Runs inside a container as its first process, of the standard library alone: waits for one program, runs it, reports, ends.

Spoken over stdin and stdout: four bytes of length, a JSON object of that length, then the bytes that the object announces.
First it says which of the files named on its command line the image has; then it gets a request, and answers with a report.
The program runs as the same user, and must neither write on this process's stdout nor read its memory: nobody but root may
look into a process that is not dumpable.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import selectors
import signal
import struct
import sys
import time
from typing import Any

_PR_SET_DUMPABLE = 4
_PIECE = 65_536
_MEMORY_S = 0.05
_CGROUP = "/sys/fs/cgroup"


def read_exactly(fd: int, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        piece = os.read(fd, min(size - len(received), 1 << 20))
        if not piece:
            os._exit(0)  # nobody is there any more
        received += piece
    return bytes(received)


def send(fd: int, head: dict[str, Any], *bodies: bytes) -> None:
    text = json.dumps(head).encode()
    data = memoryview(b"".join([struct.pack(">I", len(text)), text, *bodies]))
    while data:
        data = data[os.write(fd, data) :]


def numbers(path: str) -> dict[str, int]:
    """A file of the cgroup: lines of a name and a number, or one number, which has the name ''. Empty without the file."""
    found = {}
    with contextlib.suppress(OSError, ValueError), open(f"{_CGROUP}/{path}") as file:
        for line in file:
            name, _, number = line.strip().rpartition(" ")
            found[name] = int(number)
    return found


def cpu_us() -> int:
    """CPU time of this container so far, in microseconds."""
    if usage := numbers("cpu.stat").get("usage_usec"):
        return usage
    if usage := numbers("cpuacct/cpuacct.usage").get(""):
        return usage // 1000
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round((used.ru_utime + used.ru_stime) * 1e6)


def peak_bytes() -> int:
    """The most memory that this container took at a time, without the cached files of the image: who reads them first would
    pay for them."""
    own = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return most_bytes("memory.peak", "memory/memory.max_usage_in_bytes", own)


def held_bytes() -> int:
    """The same now. Looked at meanwhile: a program could hide what it took behind files that it reads last."""
    return most_bytes("memory.current", "memory/memory.usage_in_bytes", 0)


def most_bytes(second: str, first: str, otherwise: int) -> int:
    """What a file of the cgroup says, of version 2 or 1, without cached files."""
    for peak, stat, files, shared in (
        (second, "memory.stat", "file", "shmem"),
        (first, "memory/memory.stat", "total_cache", "total_shmem"),
    ):
        if most := numbers(peak).get(""):
            now = numbers(stat)
            return max(most - max(now.get(files, 0) - now.get(shared, 0), 0), 0)
    return otherwise


def killed_for_memory() -> int:
    """How many of this container's processes the kernel killed for want of memory."""
    return (numbers("memory.events") or numbers("memory/memory.oom_control")).get("oom_kill", 0)


class Child:
    """The program: its process and our ends of its pipes."""

    def __init__(self, argv: list[str], environment: dict[str, str], dumpable: Any) -> None:
        stdin, self.stdin = os.pipe()
        self.stdout, stdout = os.pipe()
        self.stderr, stderr = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                for each in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
                    signal.signal(each, signal.SIG_DFL)
                for number, fd in enumerate((stdin, stdout, stderr)):
                    os.dup2(fd, number)
                dumpable(1)
                with open("/proc/self/oom_score_adj", "w") as file:  # rather it than us: we are to report
                    file.write("1000")
                os.execve(argv[0], argv, environment)  # noqa: S606
            except OSError as error:
                os.write(2, f"{argv[0]}: {error}".encode())
            finally:
                os._exit(127)
        for fd in (stdin, stdout, stderr):
            os.close(fd)


def kill_all() -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)  # everything in this container but its first process


def reaped(pid: int) -> int | None:
    """Buries the dead; the wait status of `pid` when it is among them."""
    found = None
    while True:
        try:
            each, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if each == 0:
            return found
        if each == pid:
            found = status


def attend(child: Child, stdin: bytes, request: dict[str, Any]) -> tuple[str, int | None, bytes, bytes, int]:
    """How the program ended ("exit", "time", "output" or "memory"), its wait status, what it printed, as far as it may, and the
    most memory that was seen, in bytes."""
    woken, wake = os.pipe()
    for fd in (woken, wake, child.stdin, child.stdout, child.stderr):
        os.set_blocking(fd, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    selector = selectors.DefaultSelector()
    selector.register(woken, selectors.EVENT_READ)
    printed = {child.stdout: bytearray(), child.stderr: bytearray()}
    most = {child.stdout: request["stdout"], child.stderr: request["stderr"]}
    for fd in printed:
        selector.register(fd, selectors.EVENT_READ)
    rest = memoryview(stdin)
    if rest:
        selector.register(child.stdin, selectors.EVENT_WRITE)
    else:
        os.close(child.stdin)
    deadline = time.monotonic() + request["wall_s"]
    end, status = "", reaped(child.pid)
    most_held, look_at = 0, 0.0
    while not end and status is None:
        left = deadline - time.monotonic()
        if time.monotonic() >= look_at:
            most_held, look_at = max(most_held, held_bytes()), time.monotonic() + _MEMORY_S
        if left <= 0:
            end = "time"
            break
        for key, _ in selector.select(min(left, _MEMORY_S)):
            fd = key.fd
            if fd == woken:
                with contextlib.suppress(BlockingIOError):
                    os.read(woken, 4096)
                status = reaped(child.pid)
            elif fd == child.stdin:
                try:
                    rest = rest[os.write(fd, rest[:_PIECE]) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError:
                    rest = rest[:0]
                if not rest:
                    selector.unregister(fd)
                    os.close(fd)
            elif not take(fd, printed[fd], most[fd]):
                selector.unregister(fd)
            if len(printed[child.stdout]) > request["stdout"]:
                end = "output"
        if not end and killed_for_memory():  # one of its processes, and the others may wait for it for ever
            end = "memory"
    kill_all()
    if status is None:
        _, status = os.waitpid(child.pid, 0)
    reaped(child.pid)
    for fd, kept in printed.items():  # what is still in the pipes; nobody is left to write more
        while len(kept) <= most[fd] and take(fd, kept, most[fd]):
            pass
    if not end and len(printed[child.stdout]) > request["stdout"]:
        end = "output"
    stdout, stderr = (bytes(printed[fd][: most[fd]]) for fd in (child.stdout, child.stderr))
    return end or "exit", status, stdout, stderr, most_held


def take(fd: int, kept: bytearray, most: int) -> bool:
    """Reads what is there; beyond `most` + 1 bytes it is thrown away. False at the end, or when there is nothing now."""
    try:
        piece = os.read(fd, _PIECE)
    except BlockingIOError:
        return False
    kept += piece[: max(most + 1 - len(kept), 0)]
    return bool(piece)


def main() -> None:
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def dumpable(value: int) -> None:
        prctl(_PR_SET_DUMPABLE, value, 0, 0, 0)

    dumpable(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Python's own handler would let the program end us
    # The program gets other pipes; these are inherited by nobody.
    ins, outs = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    send(outs, {"has": [name for name in sys.argv[1:] if os.access(name, os.R_OK)]})

    request = json.loads(read_exactly(ins, *struct.unpack(">I", read_exactly(ins, 4))))
    stdin = read_exactly(ins, request["stdin"])
    cpu, began = cpu_us(), time.monotonic()
    child = Child(request["argv"], request["environment"], dumpable)
    end, status, stdout, stderr, held = attend(child, stdin, request)
    report = {
        "end": end,
        "exit": os.waitstatus_to_exitcode(status or 0),
        "wall_ms": round((time.monotonic() - began) * 1000),
        "cpu_ms": (cpu_us() - cpu) // 1000,
        "peak": max(peak_bytes(), held),
        "oom": killed_for_memory(),
    }
    send(outs, report | {"stdout": len(stdout), "stderr": len(stderr)}, stdout, stderr)
    read_exactly(ins, 1)  # until nobody is there: a container that ended by itself would be reported twice


if __name__ == "__main__":
    main()
