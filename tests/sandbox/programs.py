"""Programs as the suite's tests write them, and what is left of them on this machine."""

from __future__ import annotations

import os
import select
import time
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

from node.sandbox.port import Finished, Language, Limits, Program, Sandbox, Stopped

LIMITS = Limits(wall_s=30.0)
"""Where a test is not about time: the machine may be busy."""


def program(source: str, language: Language = Language.PYTHON, **given: Any) -> Program:
    return Program(language, dedent(source).strip().encode(), **given)


async def run(sandbox: Sandbox, source: str, language: Language = Language.PYTHON, **limits: Any) -> Finished:
    """Runs it to its own end."""
    return await sandbox.run(program(source, language), replace(LIMITS, **limits))


async def printed(sandbox: Sandbox, source: str, language: Language = Language.PYTHON, **limits: Any) -> str:
    """What a program that ends well printed."""
    finished = await run(sandbox, source, language, **limits)
    assert finished.exit_code == 0, finished
    return finished.stdout.decode()


async def stopped(sandbox: Sandbox, source: str, language: Language = Language.PYTHON, **limits: Any) -> Stopped:
    """How a program is stopped that breaks a limit."""
    try:
        finished = await run(sandbox, source, language, **limits)
    except Stopped as error:
        return error
    raise AssertionError(f"it was not stopped: {finished}")


def marked(mark: str) -> list[int]:
    """The processes of this machine whose arguments or environment hold the mark."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            for name in ("cmdline", "environ"):
                try:
                    if mark.encode() in (folder / name).read_bytes():
                        found.append(int(folder.name))
                        break
                except OSError:
                    continue
    return found


def gone(mark: str, within_s: float = 30.0) -> bool:
    """Whether no process has the mark, once those have ended that are about to."""
    until = time.monotonic() + within_s
    while found := marked(mark):
        for pid in found:
            try:
                handle = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                waiting = select.poll()
                waiting.register(handle, select.POLLIN)
                waiting.poll(max(until - time.monotonic(), 0) * 1000)
            finally:
                os.close(handle)
        if time.monotonic() > until:
            return marked(mark) == []
    return True
