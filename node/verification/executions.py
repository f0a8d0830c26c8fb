"""The attester's step: re-checks an execution against the chain it reads itself, and believes nothing it is told."""

from __future__ import annotations

from dataclasses import dataclass

from consensus import runs
from consensus.errors import Failed, Transient
from consensus.fees import resource_fee
from consensus.messages import Execution, JobSpec
from node.executor import call_of, unauthorised
from node.infra.chain import Chain, ExecutionRecord
from node.infra.compute import Compute
from node.infra.contracts import decode_execute
from node.journal import Opinion
from node.packages import describes
from node.recheck import CONTRADICTIONS, Recheck, due_at, registered, supported, timed
from node.scripts import Call, Scripts
from node.verification.opinions import YES, cannot_tell, no
from node.verification.reruns import rerun


@dataclass(frozen=True, slots=True)
class Means:
    """What an attester checks with: its own chain, readings, and sandbox."""

    chain: Chain
    compute: Compute
    recheck: Recheck
    scripts: Scripts


async def verify(execution: Execution, record: ExecutionRecord, means: Means) -> Opinion:
    """This keeper's verdict on one execution, each `no` with the contradiction found. Cheap checks come first.

    The package's signature and the dispatcher's were checked when it arrived (`consensus.rules.check_execution`).
    """
    authorisation = execution.task.authorisation
    spec = execution.task.job()
    if not describes(execution, record):
        return cannot_tell("WRONG_RECORD")
    if record.level != authorisation.level:
        return no("WRONG_RECORD")
    try:
        supported(spec)
        if timed(spec):
            await means.recheck.look(execution.task, spec)
        if record.timestamp < due_at(execution.task, spec):
            return no("NOT_DUE")
        claims = await _claims(execution, spec, means)
        if claims == YES:
            claims = await _against_chain(execution, record, means.chain)
        if claims != YES:
            return claims
        log = None if timed(spec) else await means.recheck.look(execution.task, spec)  # it asks other chains, and the world
    except Failed as error:
        return no(error.code) if error.code in CONTRADICTIONS else cannot_tell(error.code)
    except Transient as error:
        return cannot_tell(error.code)
    if spec.definition not in runs.SCRIPTED:
        return YES
    return await rerun(execution.task, spec, execution.run, "", log, means.scripts)  # last: it is the dearest


async def _claims(execution: Execution, spec: JobSpec, means: Means) -> Opinion:
    """Whether call, target, run and fee go together, by what the package itself says."""
    task, run = execution.task, execution.run
    scripted = spec.definition in runs.SCRIPTED
    if (task.pinned_block > 0) != scripted:
        return no("WRONG_RECORD")
    if (run is not None) != scripted:
        return no("WRONG_SCRIPT")
    if execution.resource_fee != resource_fee(spec.priority, run.usage if run else None):
        return no("WRONG_FEE")
    if run is None:
        try:
            meant = Call(task.authorisation.target, await call_of(spec, means.compute))
        except Failed as error:
            return no(error.code)
    else:
        action = await means.compute(means.scripts.action_of, spec, run.output)
        if not isinstance(action, Call):
            return no("WRONG_OUTPUT")
        meant = action
    if execution.call != meant.data:
        return no("WRONG_CALL")
    if execution.target != meant.target:
        return no("WRONG_TARGET")
    code = unauthorised(task, spec, meant)
    return no(code) if code else YES


async def _against_chain(execution: Execution, record: ExecutionRecord, chain: Chain) -> Opinion:
    authorisation = execution.task.authorisation
    if (opinion := await against_registry(execution.task.job(), chain)) != YES:
        return opinion
    transaction = await chain.transaction(execution.transaction)
    if transaction is None or transaction.block_number is None:
        return cannot_tell("TRANSACTION_NOT_FOUND")
    if (transaction.sender, transaction.to) != (record.performer, chain.domain.hub):
        return no("WRONG_RECORD")
    try:
        asked = decode_execute(transaction.input)
    except Failed as error:
        return no(error.code)
    if asked.authorisation != authorisation:  # another job's, another task's, or an older one
        return no("WRONG_RECORD")
    if transaction.block_number != record.block_number:  # a reorganisation, or endpoints that do not agree on the branch
        return cannot_tell("TRANSACTION_NOT_FOUND")
    if not transaction.success:  # a copy that the hub refused says nothing about what it executed
        return no("WRONG_RECORD")
    if asked.call != execution.call:
        return no("WRONG_CALL")
    if asked.target != execution.target:
        return no("WRONG_TARGET")
    if asked.resource_fee != execution.resource_fee:  # what the hub was told to charge, not what the package says
        return no("WRONG_FEE")
    return YES


async def against_registry(spec: JobSpec, chain: Chain) -> Opinion:
    """Whether the JobSpec is of the job that is registered. Raises `Transient`."""
    job = await chain.job(spec.job_id)
    if job is None:
        return cannot_tell("RECORD_NOT_FOUND")
    said = (spec.owner, spec.definition, spec.created_at, spec.time_frame)
    if said != (job.owner, job.definition, job.created_at, job.time_frame):
        return no("WRONG_RECORD")
    if job.target != spec.target:
        return no("WRONG_TARGET")
    return YES if registered(spec, job) else no("NOT_DUE")
