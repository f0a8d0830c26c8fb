"""A task's states as one table, and every named reason a task can end with."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class TaskState(StrEnum):
    """Where a task is. The first eight are the way to success, in order; the others end it."""

    CREATED = "created"
    DISPATCHED = "dispatched"
    ACKNOWLEDGED = "acknowledged"
    EXECUTING = "executing"
    EXECUTED = "executed"
    ATTESTED = "attested"
    CERTIFIED = "certified"
    COMPLETED = "completed"
    FAILED = "failed"
    REJECTED = "rejected"
    NOT_EXECUTED = "not_executed"
    NOT_ATTESTED = "not_attested"
    EXPIRED = "expired"


S = TaskState

# A state may be skipped forwards, since each is learnt from another source and any of them can be missed. Three ways lead
# back, each to a state that nothing else leads to from there, so that no writer who is behind takes one by mistake:
# a further attempt on another keeper (`dispatched`); an execution that a reorganisation took back (`executed` to
# `executing`); and a task that failed with its log, when the log is on the chain again (`failed` to `created`). What the
# chain says overrules a `failed` that was only the coordinator's opinion; the coordinator has none of what has executed. It
# overrules a `not_executed` too: a committee on one attempt's run says nothing of another attempt, whose keeper may execute.
TRANSITIONS: dict[TaskState, frozenset[TaskState]] = {
    S.CREATED: frozenset(
        {S.DISPATCHED, S.ACKNOWLEDGED, S.EXECUTING, S.EXECUTED, S.ATTESTED, S.CERTIFIED, S.REJECTED, S.FAILED, S.EXPIRED}
    ),
    S.DISPATCHED: frozenset(
        {S.DISPATCHED, S.ACKNOWLEDGED, S.EXECUTING, S.EXECUTED, S.CERTIFIED, S.REJECTED, S.FAILED, S.NOT_EXECUTED, S.EXPIRED}
    ),
    S.ACKNOWLEDGED: frozenset(
        {S.DISPATCHED, S.EXECUTING, S.EXECUTED, S.CERTIFIED, S.REJECTED, S.FAILED, S.NOT_EXECUTED, S.EXPIRED}
    ),
    S.EXECUTING: frozenset({S.DISPATCHED, S.EXECUTED, S.CERTIFIED, S.REJECTED, S.FAILED, S.NOT_EXECUTED, S.EXPIRED}),
    S.EXECUTED: frozenset({S.ATTESTED, S.CERTIFIED, S.REJECTED, S.NOT_ATTESTED, S.EXECUTING}),
    S.ATTESTED: frozenset({S.CERTIFIED, S.REJECTED, S.NOT_ATTESTED, S.EXECUTING}),
    S.CERTIFIED: frozenset({S.COMPLETED, S.FAILED}),
    S.COMPLETED: frozenset(),
    S.FAILED: frozenset({S.CREATED, S.EXECUTED, S.CERTIFIED, S.REJECTED, S.NOT_EXECUTED}),
    S.REJECTED: frozenset(),
    S.NOT_EXECUTED: frozenset({S.EXECUTED, S.CERTIFIED, S.REJECTED}),
    S.NOT_ATTESTED: frozenset({S.CERTIFIED, S.REJECTED}),
    S.EXPIRED: frozenset({S.EXECUTED}),
}

UNEXECUTED = frozenset({S.CREATED, S.DISPATCHED, S.ACKNOWLEDGED, S.EXECUTING})
"""States in which a task still needs a keeper."""
FINAL = frozenset({S.COMPLETED, S.FAILED, S.REJECTED, S.NOT_EXECUTED, S.NOT_ATTESTED, S.EXPIRED})


def may_follow(current: TaskState, following: TaskState) -> bool:
    """Whether the table lets a task go from `current` to `following`."""
    return following in TRANSITIONS[current]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a task, an attempt or a vote ended as it did. `transient`: another keeper may fare better."""

    code: str
    text: str
    transient: bool = False


REASONS: dict[str, Reason] = {
    r.code: r
    for r in (
        Reason("NO_ACKNOWLEDGEMENT", "no keeper acknowledged the task in time", transient=True),
        Reason("NO_EXECUTION", "the keeper acknowledged the task but executed nothing before its deadline", transient=True),
        Reason("NO_KEEPER", "no suitable keeper is online", transient=True),
        Reason("NO_QUORUM", "the committee reached no quorum in three rounds"),
        Reason("REFUSED_BY_COMMITTEE", "the committee rejected the execution; the fee is refunded"),
        Reason("INNER_CALL_FAILED", "the target's function reverted; only gas is charged"),
        Reason("HUB_REFUSED", "the hub contract refused the execution"),
        Reason("ALREADY_EXECUTED", "this firing was executed before"),
        Reason("DEADLINE_PASSED", "the authorisation's deadline passed before it could execute", transient=True),
        Reason("RPC_UNREACHABLE", "no RPC of the chain answered", transient=True),
        Reason("RPC_ERROR", "the chain's RPC answered with an error", transient=True),
        Reason("TRANSACTION_REFUSED", "the chain's node refused the keeper's transaction", transient=True),
        Reason("NONCE_TAKEN", "another transaction of the keeper's account took this one's place", transient=True),
        Reason("NONCE_CONTENDED", "somebody else sends transactions from the keeper's account", transient=True),
        Reason("GAS_TOO_DEAR", "the chain asks for more than the keeper pays for gas", transient=True),
        Reason("DATABASE_BUSY", "the keeper's disk did not take the record in time", transient=True),
        Reason("DATABASE_IO", "the keeper's disk failed", transient=True),
        Reason("DISK_FULL", "the keeper's disk is full", transient=True),
        Reason("CENTER_REFUSED", "the AttestationCenter refused the certificate"),
        Reason("NOT_SETTLED", "executed, but neither certified nor expired in the time of all rounds"),
        Reason("REORGANISED", "the block that executed the task is no longer on the chain", transient=True),
        Reason("EVENT_REORGANISED", "the log that fired the task is no longer on the chain"),
        Reason("EVENT_NOT_FOUND", "the keeper's RPC does not know the log that fired the task", transient=True),
        Reason("EVENT_MISMATCH", "the log is not one that the job asks for"),
        Reason("CONDITION_NOT_MET", "the condition does not hold by the keeper's own reading", transient=True),
        Reason("SOURCE_UNREACHABLE", "a source of the condition did not answer", transient=True),
        Reason("SOURCE_REFUSED", "a source's URL leads where users' URLs may not"),
        Reason("SOURCE_UNUSABLE", "a source answered, but with no number where one was asked for"),
        Reason("KEEPERS_BUSY", "every suitable keeper had as many tasks as it may have", transient=True),
        Reason("CALL_REVERTS", "the job's call reverts already when it is tried"),
        Reason("MALFORMED_CALL", "a transaction's input is no call of the hub"),
        Reason("INSUFFICIENT_FUNDS", "the keeper's account cannot pay for the transaction", transient=True),
        Reason("INSUFFICIENT_BALANCE", "the job owner's deposit does not cover the fee"),
        Reason("FEE_ABOVE_CAP", "an execution may cost more today than the job's owner allows"),
        Reason("JOB_INACTIVE", "the job was deleted or paused, or has expired"),
        Reason("NOT_DUE", "the trigger had not fired at the time the task names"),
        Reason("WRONG_CALL", "the call is not the one the job means"),
        Reason("WRONG_TARGET", "the call's target is not the job's"),
        Reason("WRONG_PERFORMER", "another keeper than the authorised one executed"),
        Reason("WRONG_RECORD", "the package contradicts the hub's record"),
        Reason("WRONG_FEE", "the resource fee claimed is not the formula's"),
        Reason("RECORD_NOT_FOUND", "the hub has no record of this task yet", transient=True),
        Reason("TRANSACTION_NOT_FOUND", "the attester's RPC does not know the transaction yet", transient=True),
        Reason("SCRIPT_DECLINED", "the script decided not to execute"),
        Reason("SCRIPT_FAILED", "the script ended with an error"),
        Reason("SCRIPT_TIMEOUT", "the script ran longer than it may"),
        Reason("SCRIPT_MEMORY", "the script took more memory than it may"),
        Reason("SCRIPT_OUTPUT", "what the script printed is not what its type of job asks for"),
        Reason("SCRIPT_INVALID", "the script cannot be run: its size, language or syntax"),
        Reason("SCRIPT_UNREACHABLE", "nobody had the script's bytes", transient=True),
        Reason("SCRIPT_MISMATCH", "the bytes found are not those that the script's CID names", transient=True),
        Reason("SANDBOX_UNAVAILABLE", "the keeper has no sandbox that can run the script", transient=True),
        Reason("WRONG_SCRIPT", "the package's script is not the job's"),
        Reason("WRONG_OUTPUT", "running the script again gave another output"),
        Reason("OUTPUT_DIFFERS", "the script reads the network, and printed something else for this keeper"),
        Reason("RUN_REPORTED", "this keeper has reported that the task's script asks for no transaction", transient=True),
        Reason("OTHER_OUTCOME", "the attester has confirmed another outcome of the task"),
        Reason("CONTENT_NOT_FOUND", "nobody had the bytes of this CID", transient=True),
        Reason("CONTENT_MISMATCH", "somebody sent bytes that the CID does not name, and nobody the right ones", transient=True),
        Reason("CONTENT_TOO_LARGE", "the CID names more bytes than may be asked for"),
        Reason("CONTENT_INVALID", "no CID of a file"),
        Reason("UNSUPPORTED_JOB", "this version cannot execute this type of job"),
        Reason("INTERNAL", "a defect of this software; the log has the details", transient=True),
    )
}

SCRIPT_FAULTS = frozenset(
    {"SCRIPT_DECLINED", "SCRIPT_FAILED", "SCRIPT_TIMEOUT", "SCRIPT_MEMORY", "SCRIPT_OUTPUT", "SCRIPT_INVALID"}
)
"""What a script brings about by itself: whoever runs it gets the same, and the task ends without a transaction."""

PERFORMER_FAULTS = frozenset(
    {
        "NO_ACKNOWLEDGEMENT",
        "NO_EXECUTION",
        "DEADLINE_PASSED",
        "RPC_UNREACHABLE",
        "RPC_ERROR",
        "TRANSACTION_REFUSED",
        "NONCE_TAKEN",
        "NONCE_CONTENDED",
        "GAS_TOO_DEAR",
        "DATABASE_BUSY",
        "DATABASE_IO",
        "DISK_FULL",
        "INSUFFICIENT_FUNDS",
        "INTERNAL",
    }
)
"""Causes of an attempt's end that lie with the keeper that had it, and count against it."""
