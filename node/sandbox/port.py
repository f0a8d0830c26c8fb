"""What a sandbox is to the keeper: one program in, what it printed and used out, and nothing left behind.

Adapters: `embedded` (bubblewrap) and `docker` (a Docker engine). Both pass the suite in tests/sandbox.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from consensus.messages import MAX_OUTPUT_BYTES, Usage

MAX_SOURCE_BYTES = 1024 * 1024
"""A script's size at most (1 MiB)."""


class Language(StrEnum):
    """What a script may be written in; the values are what jobs are posted with."""

    GO = "go"
    PYTHON = "py"
    JAVASCRIPT = "js"
    TYPESCRIPT = "ts"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may take. Seconds, bytes, and processes with their threads."""

    cpus: float = 1.0
    wall_s: float = 20.0
    memory: int = 512 * 1024 * 1024
    pids: int = 64
    files: int = 16 * 1024 * 1024
    """Bytes of files in /tmp, the only place that can be written; they count towards memory."""
    stdout: int = MAX_OUTPUT_BYTES
    stderr: int = 16 * 1024
    """More than this on stderr is cut off; more than `stdout` on stdout ends the run."""
    transferred: int = 8 * 1024 * 1024
    """Bytes to and from declared hosts."""


@dataclass(frozen=True, slots=True)
class Program:
    """A checked script and what it is given: `stdin` bytes, `environment` beside the sandbox's own, and the hosts (`name` or
    `name:port`) that it may reach, through a filtering proxy and no other way."""

    language: Language
    source: bytes = field(repr=False)
    stdin: bytes = b""
    environment: Mapping[str, str] = field(default_factory=dict)
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """A program that ended by itself within its limits. `exit_code` is negative for a signal."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    usage: Usage


class Stopped(Exception):
    """A run that broke a limit: `code` is SCRIPT_TIMEOUT, SCRIPT_MEMORY or SCRIPT_OUTPUT; `detail` says which limit, and quotes
    what the program printed last (at most 512 characters)."""

    def __init__(self, code: str, detail: str, usage: Usage) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail
        self.usage = usage


class Sandbox(Protocol):
    """Runs programs, several at once up to a bound of its own, each in a fresh place that is gone afterwards."""

    @property
    def name(self) -> str:
        """`docker` or `embedded`: what check-ins say."""
        ...

    @property
    def languages(self) -> frozenset[Language]:
        """What it can run here."""
        ...

    async def run(self, program: Program, limits: Limits) -> Finished:
        """Runs the program to its end. Raises `Stopped` when it broke a limit, `Transient` SANDBOX_UNAVAILABLE when the fault
        is this keeper's. Cancelling kills it and all it started."""
        ...

    async def check(self, language: Language, source: bytes) -> str:
        """What is wrong with the syntax, '' when nothing is; compiles at most, never runs. Raises `Transient`."""
        ...
