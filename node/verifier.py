"""The attester's step: re-checks an execution against the chain it reads itself, and believes nothing it is told."""

from __future__ import annotations

from consensus import codec
from consensus.codec import keccak, words
from consensus.errors import Failed, Transient
from consensus.messages import Execution, Verdict
from node.executor import call_of
from node.infra.chain import Chain, ExecutionRecord
from node.infra.compute import Compute
from node.infra.contracts import decode_execute
from node.journal import Opinion
from node.recheck import CONTRADICTIONS, Recheck, due_at, registered, timed

YES = Opinion(Verdict.YES, "")


def _no(reason: str) -> Opinion:
    return Opinion(Verdict.NO, reason)


def _cannot_tell(reason: str) -> Opinion:
    return Opinion(Verdict.CANNOT_TELL, reason)


def execution_digest(execution: Execution, record: ExecutionRecord) -> bytes:
    """What the hub must have recorded if it executed this package: the EXECUTION struct hash of Hub.vy."""
    authorisation = execution.task.authorisation
    return keccak(
        words(
            codec.EXECUTION_TYPEHASH,
            authorisation.task_id,
            authorisation.job_id,
            authorisation.trigger_id,
            authorisation.attempt,
            authorisation.performer,
            authorisation.spec,
            authorisation.target,
            keccak(execution.call),
            record.success,
            record.fee,
            record.block_number,
            record.timestamp,
        )
    )


def describes(execution: Execution, record: ExecutionRecord) -> bool:
    """Whether the package is of the execution that the hub recorded.

    One that is not says nothing about it: a task has several attempts, and whoever was given an earlier one can publish a
    well-signed package of it at any time. A `no` for that would let him have the executing keeper's work rejected.
    """
    return record.performer == execution.task.authorisation.performer and execution_digest(execution, record) == record.digest


async def verify(execution: Execution, record: ExecutionRecord, chain: Chain, compute: Compute, recheck: Recheck) -> Opinion:
    """This keeper's verdict on one execution, each `no` with the contradiction found. Cheap checks come first.

    The package's signature and the dispatcher's were checked when it arrived (`consensus.rules.check_execution`).
    """
    authorisation = execution.task.authorisation
    spec = execution.task.job()
    if not describes(execution, record):
        return _cannot_tell("WRONG_RECORD")
    if record.level != authorisation.level:
        return _no("WRONG_RECORD")
    if execution.resource_fee != 0:  # a static call uses no resources but gas
        return _no("WRONG_FEE")
    if timed(spec) and (fired := await _fired(execution, recheck)) != YES:
        return fired
    if record.timestamp < due_at(execution.task, spec):
        return _no("NOT_DUE")
    try:
        call = await call_of(spec, compute)
    except Failed as error:
        return _cannot_tell(error.code) if error.code == "UNSUPPORTED_JOB" else _no(error.code)
    if call != execution.call:
        return _no("WRONG_CALL")
    if spec.target != authorisation.target:
        return _no("WRONG_TARGET")
    try:
        opinion = await _against_chain(execution, record, chain)
    except Transient as error:
        return _cannot_tell(error.code)
    if opinion == YES and not timed(spec):  # last: it asks other chains, and the world
        return await _fired(execution, recheck)
    return opinion


async def _fired(execution: Execution, recheck: Recheck) -> Opinion:
    try:
        await recheck.look(execution.task, execution.task.job())
    except Failed as error:
        return _no(error.code) if error.code in CONTRADICTIONS else _cannot_tell(error.code)
    except Transient as error:
        return _cannot_tell(error.code)
    return YES


async def _against_chain(execution: Execution, record: ExecutionRecord, chain: Chain) -> Opinion:
    authorisation = execution.task.authorisation
    spec = execution.task.job()
    job = await chain.job(authorisation.job_id)
    if job is None:
        return _cannot_tell("RECORD_NOT_FOUND")
    if (job.owner, job.definition, job.created_at, job.time_frame) != (
        spec.owner,
        spec.definition,
        spec.created_at,
        spec.time_frame,
    ):
        return _no("WRONG_RECORD")
    if job.target != spec.target:
        return _no("WRONG_TARGET")
    if not registered(spec, job):
        return _no("NOT_DUE")
    transaction = await chain.transaction(execution.transaction)
    if transaction is None or transaction.block_number is None:
        return _cannot_tell("TRANSACTION_NOT_FOUND")
    if transaction.block_number != record.block_number:  # a reorganisation, or endpoints that do not agree on the branch
        return _cannot_tell("TRANSACTION_NOT_FOUND")
    if (transaction.sender, transaction.to) != (record.performer, chain.domain.hub):
        return _no("WRONG_RECORD")
    if not transaction.success:  # a copy that the hub refused says nothing about what it executed
        return _no("WRONG_RECORD")
    try:
        asked = decode_execute(transaction.input)
    except Failed as error:
        return _no(error.code)
    if asked.authorisation != authorisation:
        return _no("WRONG_RECORD")
    if asked.call != execution.call:
        return _no("WRONG_CALL")
    if asked.resource_fee != execution.resource_fee:  # what the hub was told to charge, not what the package says
        return _no("WRONG_FEE")
    return YES
