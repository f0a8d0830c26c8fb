"""A sandbox's stand-in: what each script prints is written down, and what it uses; outputs mean what they mean."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from consensus.errors import Transient
from consensus.messages import JobSpec, Run, Task, Usage
from node.infra.chain import Log
from node.scripts import Call, NoCall, Outcome
from node.scripts.comparison import compare
from node.scripts.outputs import action_of

USAGE = Usage(cpu_ms=100, wall_ms=200, peak_kib=20_000, transferred=0)


@dataclass(frozen=True)
class Prints:
    """What a script does here: `code` ends it without an output that counts."""

    output: bytes = b""
    usage: Usage = USAGE
    code: str = ""
    networked: bool = False
    tolerance: tuple[int, int] = (0, 1)
    takes: float = 0
    """Seconds."""

    def outcome(self, job: JobSpec) -> Outcome:
        digest = hashlib.sha256(job.script_url.encode()).digest()
        action = NoCall(self.code, "it says why") if self.code else action_of(job, self.output)
        return Outcome(action, Run(digest, self.output, self.usage), self.networked, self.tolerance)


Script = Callable[[Task, Log | None], Prints]
"""What a script prints, by what it is given."""


@dataclass
class FakeScripts:
    """`Scripts` for one keeper. `prints` by script URL: a value, or a function of task and log, or an error."""

    prints: dict[str, Prints | Transient | Script] = field(default_factory=dict)
    runs: int = 0

    async def run(self, job: JobSpec, task: Task, log: Log | None = None) -> Outcome:
        self.runs += 1
        said = self.prints.get(job.script_url, Transient("SCRIPT_UNREACHABLE", "nobody has it"))
        if isinstance(said, Transient):
            raise Transient(said.code, said.detail)
        printed = said if isinstance(said, Prints) else said(task, log)
        await trio.sleep(printed.takes)
        return printed.outcome(job)

    async def judge(
        self, job: JobSpec, task: Task, claimed: Run | None, code: str = "", log: Log | None = None
    ) -> tuple[Outcome, str | None]:
        own = await self.run(job, task, log)
        return own, compare(own, claimed, job, code)

    def action_of(self, job: JobSpec, output: bytes) -> Call | NoCall:
        return action_of(job, output)
