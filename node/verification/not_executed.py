"""The attester's step for tasks that ended without a transaction: the script run again, and the chain's word on the task."""

from __future__ import annotations

from consensus.errors import Failed, Transient
from consensus.fees import resource_fee
from consensus.messages import NotExecuted
from node.infra.chain import ExecutionStatus
from node.journal import Opinion
from node.recheck import CONTRADICTIONS, supported
from node.verification.executions import Means, against_registry
from node.verification.opinions import YES, cannot_tell, no
from node.verification.reruns import rerun


async def verify_run(said: NotExecuted, means: Means) -> Opinion:
    """This keeper's verdict on one run that asked for no transaction. Cheap checks come first.

    Signatures, reason and type of job were checked when it arrived (`consensus.rules.check_not_executed`).
    """
    task, job = said.task, said.task.job()
    if said.fee != resource_fee(job.priority, said.run.usage if said.run else None):
        return no("WRONG_FEE")
    try:
        supported(job)
        record = await means.chain.execution(task.task_id)
        if record is not None and record.status is not ExecutionStatus.NOT_EXECUTED:
            return no("ALREADY_EXECUTED")
        opinion = await against_registry(job, means.chain)
        if opinion != YES:
            return opinion
        log = await means.recheck.look(task, job)  # nobody pays for runs of what did not fire
    except Failed as error:
        return no(error.code) if error.code in CONTRADICTIONS else cannot_tell(error.code)
    except Transient as error:
        return cannot_tell(error.code)
    return await rerun(task, job, said.run, said.code, log, means.scripts)
