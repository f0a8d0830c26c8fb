"""For a keeper that runs no scripts: it leaves their jobs to others."""

from __future__ import annotations

from typing import NoReturn

from consensus.errors import Transient
from consensus.messages import JobSpec, Run, Task
from node.infra.chain import Log
from node.scripts.outputs import action_of
from node.scripts.port import Call, NoCall, Outcome


class NoScripts:
    """`Scripts` without a sandbox: knows what outputs mean, and can neither run nor judge a run."""

    async def run(self, job: JobSpec, task: Task, log: Log | None = None) -> Outcome:
        self._refuse()

    async def judge(
        self, job: JobSpec, task: Task, claimed: Run | None, code: str = "", log: Log | None = None
    ) -> tuple[Outcome, str | None]:
        self._refuse()

    def action_of(self, job: JobSpec, output: bytes) -> Call | NoCall:
        return action_of(job, output)

    @staticmethod
    def _refuse() -> NoReturn:
        raise Transient("SANDBOX_UNAVAILABLE", "this keeper has no sandbox")
