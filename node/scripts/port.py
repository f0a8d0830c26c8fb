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
    doing) and its words, at most 512 printable characters."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to. `run` is None only where nothing could be run by the script's own fault (SCRIPT_INVALID)."""

    action: Call | NoCall
    run: Run | None
    networked: bool = False
    """Whether the script declares hosts: then another keeper may honestly see another output."""
    tolerance: tuple[int, int] = (0, 1)
    """How far numbers of a networked script's outputs may lie apart, as numerator and denominator of a fraction."""


class Scripts(Protocol):
    """Runs scripts of jobs. A task's script runs once however often it is asked for (cached by JobSpec and inputs)."""

    async def run(self, job: JobSpec, task: Task, log: Log | None = None) -> Outcome:
        """`log` is the event's, as this keeper read it; jobs with event triggers need it. Raises `Transient`
        (SCRIPT_UNREACHABLE, SCRIPT_MISMATCH, SANDBOX_UNAVAILABLE, EVENT_NOT_FOUND) when this keeper cannot tell, `Failed`
        WRONG_RECORD for a task whose storage is no JSON object."""
        ...

    async def judge(
        self, job: JobSpec, task: Task, claimed: Run | None, code: str = "", log: Log | None = None
    ) -> tuple[Outcome, str | None]:
        """This keeper's own outcome (run now unless it was), and why another keeper's run contradicts it, None when it does not.

        `claimed` is what the other's package carries, `code` the reason of its `NotExecuted`, '' where it claims a call. The
        reason is WRONG_SCRIPT or WRONG_OUTPUT (a vote `no`) or OUTPUT_DIFFERS (cannot tell): see
        `node.scripts.comparison.compare`. Before it is WRONG_OUTPUT the script is run a second time: one that does not even
        print the same twice for this keeper proves nothing against another. That the call sent is the output's, and what the
        run may cost, is not looked at. Raises as `run` does.
        """
        ...

    def action_of(self, job: JobSpec, output: bytes) -> Call | NoCall:
        """What an output means, without running anything: for comparing another keeper's. CPU work of milliseconds."""
        ...
