"""A script run again: whether what another keeper says of its run can be true, and may cost what it claims."""

from __future__ import annotations

from consensus.errors import Failed, Transient
from consensus.messages import JobSpec, Run, Task
from node.infra.chain import Log
from node.journal import Opinion
from node.sandbox.port import Limits
from node.scripts import Outcome, Scripts
from node.verification.opinions import YES, cannot_tell, no
from node.verification.tolerances import most, most_stopped, near, plausible

LIMITS = Limits()
_STOPPED = frozenset({"SCRIPT_TIMEOUT", "SCRIPT_MEMORY"})
"""Reasons by which a run was cut off at a limit."""


async def rerun(task: Task, job: JobSpec, claimed: Run | None, code: str, log: Log | None, scripts: Scripts) -> Opinion:
    """This keeper's verdict on another's run; `code` is the reason of a `NotExecuted`, '' where a call was made of the output."""
    try:
        own, reason = await scripts.judge(job, task, claimed, code, log)
    except (Failed, Transient) as error:
        return cannot_tell(error.code)
    if reason == "OUTPUT_DIFFERS":
        return no("WRONG_OUTPUT") if _impossible(own, code) else cannot_tell(reason)
    if reason is not None:
        return no(reason)
    if claimed is not None and own.run is not None:
        bound = most_stopped(own.run.usage, LIMITS) if code in _STOPPED else most(own.run.usage)
        if not plausible(claimed.usage, bound):
            return no("WRONG_FEE")
    return YES


def _impossible(own: Outcome, code: str) -> bool:
    """Whether a limit is said to have been broken that no honest keeper's machine can have brought the run near to.

    What reads the network may take any time elsewhere.
    """
    if code not in _STOPPED or own.networked or own.run is None:
        return False
    return not near(code, own.run.usage, LIMITS)
