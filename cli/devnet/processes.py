"""The devnet's child processes: started each in a group of its own, known to be ready by a file, and gone in seconds."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

import cli
from cli.devnet.chain import tied_to_this_process
from consensus.errors import Failed

TERM_S = 5.0
"""From SIGTERM to SIGKILL: a Ctrl-C has to leave nothing within 10 s."""
TAIL_LINES = 15
"""Of a crashed child's log, on the terminal."""
_READY_POLL_S = 0.05


@dataclass
class Child:
    """One running program and its log."""

    name: str
    argv: tuple[str, ...]
    log: Path
    process: subprocess.Popen[bytes]
    exited: trio.Event = field(default_factory=trio.Event)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def command(self) -> str:
        """What a person types to start it again."""
        return shlex.join(self.argv)

    def ending(self) -> str:
        """How it ended, in words."""
        code = self.process.returncode
        if code is None:
            return "is running"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"

    def tail(self) -> str:
        """The last lines of its log."""
        with suppress(OSError):
            return "\n".join(self.log.read_text("utf-8", errors="replace").splitlines()[-TAIL_LINES:])
        return ""


def python_module(module: str, *arguments: str) -> tuple[str, ...]:
    """The command line of one of this project's programs, whether it is installed or run from its source."""
    return (sys.executable, "-m", module, *arguments)


class Processes:
    """Starts children and says when one has ended."""

    def __init__(self, nursery: trio.Nursery, logs: Path) -> None:
        self._nursery = nursery
        self._logs = logs
        self._ended_in, self.ended = trio.open_memory_channel[Child](64)  # more children than a machine carries
        self.children: list[Child] = []

    def start(self, name: str, argv: Sequence[str]) -> Child:
        """Starts a program at once; its output goes to `logs/<name>.log`."""
        log = self._logs / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                tied_to_this_process(list(argv)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,  # a Ctrl-C on the terminal reaches the devnet alone, which ends its children in order
            )
        child = Child(name, tuple(argv), log, process)
        self.children.append(child)
        self._nursery.start_soon(self._watch, child)
        return child

    async def _watch(self, child: Child) -> None:
        handle = os.pidfd_open(child.pid)
        try:
            with trio.CancelScope(shield=True):  # `stop`, which runs when all else is cancelled, waits for this
                await trio.lowlevel.wait_readable(handle)
        finally:
            os.close(handle)
        child.process.wait()
        child.exited.set()
        with suppress(trio.WouldBlock):
            self._ended_in.send_nowait(child)

    async def ready(self, child: Child, file: Path, timeout: float) -> Mapping[str, Any]:
        """Waits for the file that a child writes, whole, when it is ready. Raises `Failed` (`NOT_READY`) with its log's tail."""
        with trio.move_on_after(timeout):
            while not child.exited.is_set():
                if (content := _content(file)) is not None:
                    return content
                await trio.sleep(_READY_POLL_S)
        ending = child.ending() if child.exited.is_set() else f"was not ready within {timeout:g} s"
        raise Failed("NOT_READY", f"{child.name} {ending}; the end of {child.log}:\n{child.tail()}")

    async def output(self, argv: Sequence[str], timeout: float) -> str:
        """Runs a program to its end and returns what it printed. Raises `Failed` (`COMMAND_FAILED`)."""
        with trio.move_on_after(timeout):
            done = await trio.run_process(argv, capture_stdout=True, capture_stderr=True, env=_environment(), check=False)
            if done.returncode == 0:
                return done.stdout.decode().strip()
            raise Failed("COMMAND_FAILED", f"{shlex.join(argv)}: {done.stderr.decode(errors='replace').strip()}")
        raise Failed("COMMAND_FAILED", f"{shlex.join(argv)} did not end within {timeout:g} s")

    async def stop(self) -> None:
        """SIGTERM to all at once, SIGKILL to whoever is left after `TERM_S`; returns when none runs."""
        _signal_all(self.children, signal.SIGTERM)
        with trio.move_on_after(TERM_S):
            for child in self.children:
                await child.exited.wait()
        _signal_all(self.children, signal.SIGKILL)
        for child in self.children:
            await child.exited.wait()


def _content(file: Path) -> Mapping[str, Any] | None:
    with suppress(FileNotFoundError):
        content: Mapping[str, Any] = json.loads(file.read_text("utf-8"))
        return content
    return None


def _signal_all(children: Sequence[Child], number: signal.Signals) -> None:
    for child in children:
        if not child.exited.is_set():
            with suppress(ProcessLookupError):
                os.killpg(child.pid, number)


def _environment() -> dict[str, str]:
    """The children are configured by their files alone, and find this project where this process found it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRIGGERX_")}
    root = str(Path(cli.__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [environment.get("PYTHONPATH")])])
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


@asynccontextmanager
async def open_processes(logs: Path) -> AsyncIterator[Processes]:
    """Children live as long as this context, their output in the folder `logs`; leaving takes at most a little over `TERM_S`."""
    async with trio.open_nursery() as nursery:
        processes = Processes(nursery, logs)
        try:
            yield processes
        finally:
            with trio.CancelScope(shield=True):
                await processes.stop()
