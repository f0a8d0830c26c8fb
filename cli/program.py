"""What every long-running program does at its edge: signals, the ready file, exit codes, and errors without tracebacks."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import structlog
import trio
import typer

from consensus.errors import Misconfigured, TriggerXError, first_of

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

log = structlog.get_logger(__name__)

ReadyFile = Annotated[
    Path | None, typer.Option("--ready-file", help="JSON written when the program does its work.", show_default=False)
]

_RECURSION_LIMIT = 1000  # Python's own; py_ecc raises it to 100,000, which overflows the C stack before it is reached
_GRACE_S = 5  # s, for an orderly end; what is on disk is safe without one


def write_ready(path: Path, facts: dict[str, Any]) -> None:
    """Writes the file whole or not at all: whoever waits for it may read it the moment it exists. Raises `Misconfigured`."""
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        half.write_text(json.dumps(facts, indent=1) + "\n")
        half.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error


def _no_ready(path: Path) -> None:
    """A killed predecessor's file would say "ready" before we are. Raises `Misconfigured` for a place that cannot be used."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> Misconfigured:
    return Misconfigured("--ready-file", f"cannot write {path} ({error.strerror}): choose another place")


def run_until_signal(program: Callable[[Callable[[dict[str, Any]], None]], Awaitable[None]], ready_file: Path | None) -> None:
    """Runs `program` on trio until SIGTERM or SIGINT, then gives it five seconds to end."""

    def on_ready(facts: dict[str, Any]) -> None:
        log.info("ready", **facts)
        if ready_file is not None:
            write_ready(ready_file, facts)

    async def until_signal(scope: trio.CancelScope, *, task_status: TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for _ in signals:
                signal.alarm(_GRACE_S)  # its default action ends the process, whatever still hangs in it
                scope.cancel()
                return

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(until_signal, nursery.cancel_scope)
            nursery.start_soon(program, on_ready)

    if ready_file is not None:
        _no_ready(ready_file)
    sys.setrecursionlimit(_RECURSION_LIMIT)
    gc.collect()
    gc.freeze()  # what is imported stays: a full collection over it would stop the loop for 100 ms
    try:
        trio.run(run)
    finally:
        signal.alarm(0)
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)


def says_what_is_wrong(app: typer.Typer) -> None:
    """Runs the command. An error with a name is one plain line: exit code 2 for the operator's to mend, 1 for any other."""
    try:
        app(standalone_mode=True)
    except (TriggerXError, BaseExceptionGroup) as error:
        cause = first_of(error)
        if not isinstance(cause, TriggerXError):
            raise
        print(f"error: {cause.detail if isinstance(cause, Misconfigured) else cause}", file=sys.stderr)  # noqa: T201
        sys.exit(2 if isinstance(cause, Misconfigured) else 1)
