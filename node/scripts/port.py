"""What keepers make of a job's script: its inputs, its run, and the call (or none) that its output means."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from consensus.messages import JobSpec, Run, Task
from node.infra.chain import Log


@dataclass(frozen=True, slots=True)
class Call:
    """The output means this call: a 20-byte target and its calldata."""

    target: bytes
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class NoCall:
    """No transaction follows: a reason of `consensus.lifecycle` (SCRIPT_DECLINED or another SCRIPT_ code that is the script's own
    doing) and its words."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to. `run` is None only where nothing could be run by the script's own fault."""

    action: Call | NoCall
    run: Run | None
    networked: bool = False
    """Whether the script declares hosts: then another keeper may honestly see another output."""
    tolerance: tuple[int, int] = (0, 1)
    """How far numbers of a networked script's outputs may lie apart, as numerator and denominator of a fraction."""


class Scripts(Protocol):
    """Runs scripts of jobs. A task's script runs once however often it is asked for (cached by task and JobSpec)."""

    async def run(self, job: JobSpec, task: Task, log: Log | None = None) -> Outcome:
        """`log` is the event's, as this keeper read it. Raises `Transient` (SCRIPT_UNREACHABLE, SCRIPT_MISMATCH,
        SANDBOX_UNAVAILABLE) when this keeper cannot tell."""
        ...

    def action_of(self, job: JobSpec, output: bytes) -> Call | NoCall:
        """What an output means, without running anything: for comparing another keeper's. CPU work of microseconds."""
        ...
