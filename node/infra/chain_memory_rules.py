"""The contracts' rules in Python: each refusal with the contract's reason string, then the effects, then the events.

Amounts follow the hub's formula with rough gas figures; everything else is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from consensus import bls, committee, ecdsa
from consensus.codec import EXECUTION_TYPEHASH, Domain, keccak, words
from consensus.committee import Committee, Epoch, Operator
from consensus.messages import MAX_CALL_BYTES, Authorisation, Verdict
from node.infra.chain import (
    Certificate,
    ChainEvent,
    ExecutionRecord,
    ExecutionStatus,
    Job,
    JobDeleted,
    RegistryChanged,
    RunCharge,
    RunCharged,
    RunSkipped,
    TaskExecuted,
    TaskExpired,
    TaskValidated,
)
from node.infra.chain_memory_state import Context, Executed, Reverted, Rule, State, TargetCall
from node.infra.contracts import ExecuteCall, certificate_root

GAS_PRICE = 10**9
INNER_GAS = 80_000
"""Of execute's own, the target's call included."""
OVERHEAD_GAS = 90_000
DATA_GAS = 16
VALIDATION_GAS = 215_000
VALIDATION_SEAT_GAS = 5_000
ATTESTER_UNIT = 10**12
SERVICE_FEE = 10**13
LAST_PRECOMPILE = 0xFFFF
HISTORY_BLOCKS = 8191
"""Block hashes that the chain still knows (EIP-2935)."""
TIMED = frozenset({1, 2, 7})
"""Job types whose trigger id is the second that is due."""
CHARGE_LATE = 86_400
"""Seconds after a job's end in which its runs are still charged."""
SCRIPTED = frozenset({2, 4, 6, 7})
"""Job types with a script."""


def _need(condition: bool, reason: str) -> None:
    if not condition:
        raise Reverted(reason)


# --- Hub ---------------------------------------------------------------------------------------------------------------


def execute(call: ExecuteCall) -> Rule:
    """`Hub.execute`, its checks in the contract's order."""

    def rule(state: State, at: Context) -> list[ChainEvent]:
        a, task_id = call.authorisation, call.authorisation.task_id
        _need(at.sender == a.performer, "NotPerformer")
        _need(len(call.call) <= MAX_CALL_BYTES, "DataTooLarge")
        _need(at.timestamp >= a.not_before, "TooEarly")
        _need(at.timestamp <= a.deadline, "TooLate")
        _need(task_id not in state.executed and task_id not in state.charged, "TaskAlreadyExecuted")
        job = state.jobs.get(a.job_id)
        reason = _not_fired(state, at, job, a.trigger_id)
        if job is None or reason:
            raise Reverted(reason)
        _check_call(at, job, call)
        _check_policy(state, a)
        signer = ecdsa.recover(at.domain.hub_digest(a.struct_hash()), call.signature)
        if signer is None:
            raise Reverted("BadAuthorisation")
        _need(signer in state.dispatchers, "NotDispatcher")
        registered = state.keepers.get(a.performer)
        if registered is None or not registered.keeper.active:
            raise Reverted("UnknownPerformer")
        size = committee.SIZE_BY_LEVEL[a.level]
        share = validation_share(a.level)
        _need(a.max_fee >= share + ATTESTER_UNIT * size, "InsufficientFeeCap")
        balance = state.balances.get(job.owner, 0)
        _need(balance >= a.max_fee, "InsufficientBalance")

        success = call.target not in state.failing
        fee = (INNER_GAS + OVERHEAD_GAS + DATA_GAS * len(call.call)) * GAS_PRICE + share
        if success:
            fee += ATTESTER_UNIT * size + SERVICE_FEE + call.resource_fee
        fee = min(fee, a.max_fee)
        digest = execution_digest(call, success=success, fee=fee, block_number=at.number, timestamp=at.timestamp)
        record = ExecutionRecord(
            task_id=task_id,
            job_id=int(a.job_id),
            number=len(state.executed) + 1,
            performer=a.performer,
            performer_id=registered.keeper.id,
            block_number=at.number,
            timestamp=at.timestamp,
            level=a.level,
            status=ExecutionStatus.PENDING,
            success=success,
            fee=fee,
            digest=digest,
            validation_share=share,
            attester_share=ATTESTER_UNIT if success else 0,
        )
        state.balances[job.owner] = balance - fee
        state.executed[task_id] = Executed(record, job.owner, share, ATTESTER_UNIT if success else 0)
        state.ran |= {job.id}
        state.calls.append(TargetCall(call.target, call.call, job.id, job.owner, a.performer, at.number, at.timestamp, success))
        return [
            TaskExecuted(
                place=at.place(),
                task_id=task_id,
                job_id=job.id,
                trigger_id=int(a.trigger_id),
                attempt=a.attempt,
                number=record.number,
                performer=a.performer,
                performer_id=record.performer_id,
                success=success,
                fee=fee,
                digest=digest,
            )
        ]

    return rule


def validation_share(level: int) -> int:
    """Wei of an execution's fee that its certificate's submitter gets."""
    return GAS_PRICE * (VALIDATION_GAS + VALIDATION_SEAT_GAS * committee.SIZE_BY_LEVEL[level])


def _not_fired(state: State, at: Context, job: Job | None, trigger_id: int, late: int = 0) -> str:
    """Why this cannot be a firing of the job now; empty when it can."""
    if job is None:
        return "UnknownJob"
    end = job.created_at + job.time_frame
    timed = job.definition in TIMED
    off = not job.created_at < trigger_id <= end or (job.interval and (trigger_id - job.created_at) % job.interval)
    reasons = {
        "JobInactive": not job.active,
        "OffSchedule": timed and off,
        "TooEarly": timed and trigger_id > at.timestamp,
        "JobExpired": not timed and at.timestamp > end + late,
        "AlreadyRan": not timed and not job.recurring and job.id in state.ran,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def charge_runs(charges: Sequence[RunCharge]) -> Rule:
    """`Hub.chargeRuns`."""

    def rule(state: State, at: Context) -> list[ChainEvent]:
        _need(at.sender in state.dispatchers, "NotDispatcher")
        return [_charge(state, at, charge) for charge in charges]

    return rule


def _charge(state: State, at: Context, charge: RunCharge) -> ChainEvent:
    job = state.jobs.get(charge.job_id)
    performer = next((r.keeper for r in state.keepers.values() if r.keeper.id == charge.performer_id), None)
    reason = _not_charged(state, at, job, charge)
    if job is None or performer is None or reason:
        return RunSkipped(at.place(), charge.task_id, charge.job_id, reason)
    state.balances[job.owner] -= charge.fee
    state.credits[performer.address] = state.credits.get(performer.address, 0) + charge.fee
    if job.id in state.policies:
        state.run_allowances[job.id] -= charge.fee
    state.charged[charge.task_id] = ExecutionRecord(
        task_id=charge.task_id,
        job_id=0,  # the hub keeps no more than that it was charged, and to whose favour
        number=0,
        performer=performer.address,
        performer_id=performer.id,
        block_number=at.number,
        timestamp=at.timestamp,
        level=0,
        status=ExecutionStatus.NOT_EXECUTED,
        success=False,
        fee=0,
        digest=bytes(32),
        validation_share=0,
        attester_share=0,
    )
    return RunCharged(at.place(), charge.task_id, charge.job_id, charge.performer_id, charge.fee)


def _not_charged(state: State, at: Context, job: Job | None, charge: RunCharge) -> str:
    policy = state.policies.get(charge.job_id)
    unfired = _not_fired(state, at, job, charge.trigger_id, CHARGE_LATE)
    reasons = {
        "AlreadyCharged": charge.task_id in state.charged,
        "TaskAlreadyExecuted": charge.task_id in state.executed,
        unfired: bool(unfired),
        "NoScript": job is not None and job.definition not in SCRIPTED,
        "PolicyFee": policy is not None and 0 < policy.max_fee < charge.fee,
        "RunAllowance": policy is not None and state.run_allowances.get(charge.job_id, 0) < charge.fee,
        "UnknownPerformer": all(r.keeper.id != charge.performer_id for r in state.keepers.values()),
        "InsufficientBalance": job is not None and state.balances.get(job.owner, 0) < charge.fee,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _check_call(at: Context, job: Job, call: ExecuteCall) -> None:
    a, domain = call.authorisation, at.domain
    _need(job.target in (bytes(20), a.target), "WrongTarget")
    _need(a.target in (bytes(20), call.target), "WrongTarget")
    ours = (domain.hub, domain.attestation_center, domain.keeper_registry, at.job_registry)
    _need(call.target not in ours and int.from_bytes(call.target, "big") > LAST_PRECOMPILE, "ProtocolTarget")
    _need(a.selector in (bytes(4), call.call[:4].ljust(4, b"\0")), "WrongSelector")
    _need(a.call_hash in (bytes(32), keccak(call.call)), "WrongCalldata")


def _check_policy(state: State, a: Authorisation) -> None:
    policy = state.policies.get(a.job_id)
    if policy is not None and (reason := policy.refusal(a)):
        raise Reverted(reason)


def execution_digest(call: ExecuteCall, *, success: bool, fee: int, block_number: int, timestamp: int) -> bytes:
    """What attesters vote on: keccak of the Execution struct as Hub.vy encodes it."""
    a = call.authorisation
    fields = (a.task_id, a.job_id, a.trigger_id, a.attempt, a.performer, a.spec, call.target, keccak(call.call))
    return keccak(words(EXECUTION_TYPEHASH, *fields, success, fee, block_number, timestamp))


# --- AttestationCenter -------------------------------------------------------------------------------------------------


def submit(certificate: Certificate) -> Rule:
    """`AttestationCenter.submitTaskValidation`, for the tree of one."""

    def rule(state: State, at: Context) -> list[ChainEvent]:
        epoch = state.epoch_of(certificate.block_number)
        if epoch is None or epoch.number != certificate.epoch or epoch.number < state.epochs[-1].number - 1:
            raise Reverted("WrongEpoch")
        _need(at.sender in epoch.by_address, "NotActiveOperator")
        executed = _unsettled(state, certificate.task_id)
        record = executed.record
        _need(certificate.block_number == record.block_number, "WrongBlock")
        open_rounds = (at.timestamp - record.timestamp) // at.round_seconds
        _need(certificate.round <= min(open_rounds, committee.MAX_ROUNDS - 1), "RoundNotOpen")
        _need(certificate.execution == record.digest, "WrongRoot")
        _need(len(epoch.operators) > 1, "NoCommittee")
        seed = at.block_hash(record.block_number)
        if seed is None or not 0 < at.number - record.block_number <= HISTORY_BLOCKS:
            raise Reverted("BlockHashUnknown")
        drawn = committee.of_task(epoch, seed, certificate.round, record.level, record.performer)
        _check_signers(at.domain, certificate, epoch, drawn)

        accepted = certificate.verdict is Verdict.YES
        _settle(state, executed, ExecutionStatus.CERTIFIED if accepted else ExecutionStatus.REJECTED)
        if accepted:
            _pay(state, executed, at.sender, certificate.signers)
        position = epoch.by_address
        return [
            TaskValidated(
                place=at.place(),
                task_id=record.task_id,
                number=record.number,
                performer_id=record.performer_id,
                submitter_id=epoch.operators[position[at.sender]].id,
                attester_ids=tuple(epoch.operators[position[s]].id for s in certificate.signers),
                root=certificate_root(certificate),
                accepted=accepted,
                round=certificate.round,
            )
        ]

    return rule


def _check_signers(domain: Domain, certificate: Certificate, epoch: Epoch, drawn: Committee) -> None:
    signers = certificate.signers
    needed = drawn.yes_quorum if certificate.verdict is Verdict.YES else drawn.no_quorum
    _need(len(signers) >= needed, "TooFewSigners")
    _need(len(set(signers)) == len(signers), "DuplicateSigner")
    _need(all(s in epoch.by_address for s in signers), "NotRegistered")
    ranks = [drawn.rank(s) for s in signers]
    _need(None not in ranks, "NotInCommittee")
    _need(ranks == sorted(r for r in ranks if r is not None), "OutOfOrder")
    keys = [epoch.operators[epoch.by_address[s]].key for s in signers]
    said = (certificate_root(certificate), certificate.block_number, certificate.epoch, certificate.round)
    _need(bls.fast_aggregate_verify(keys, domain.attestation_digest(*said), certificate.signature), "InvalidSignature")


def expire(task_id: int) -> Rule:
    """`AttestationCenter.expire`: three rounds and one more have passed without a certificate."""

    def rule(state: State, at: Context) -> list[ChainEvent]:
        executed = _unsettled(state, task_id)
        _need(at.timestamp >= executed.record.timestamp + (committee.MAX_ROUNDS + 1) * at.round_seconds, "RoundsOpen")
        _settle(state, executed, ExecutionStatus.EXPIRED)
        return [TaskExpired(place=at.place(), task_id=task_id, number=executed.record.number)]

    return rule


def _unsettled(state: State, task_id: int) -> Executed:
    executed = state.executed.get(task_id)
    if executed is None:
        raise Reverted("AlreadyCertified" if task_id in state.charged else "UnknownExecution")
    _need(executed.record.status is ExecutionStatus.PENDING, "AlreadyCertified")
    return executed


def _settle(state: State, executed: Executed, status: ExecutionStatus) -> None:
    record = executed.record
    state.executed[record.task_id] = replace(executed, record=replace(record, status=status))
    if status is not ExecutionStatus.CERTIFIED:
        state.balances[executed.owner] = state.balances.get(executed.owner, 0) + record.fee


def _pay(state: State, executed: Executed, submitter: bytes, signers: tuple[bytes, ...]) -> None:
    rest = executed.record.fee
    shares = [(submitter, executed.validation_share), *((s, executed.unit) for s in signers)]
    for address, share in shares:
        paid = min(share, rest)
        state.credits[address] = state.credits.get(address, 0) + paid
        rest -= paid
    state.credits[executed.record.performer] = state.credits.get(executed.record.performer, 0) + rest


# --- registries --------------------------------------------------------------------------------------------------------


def create_job(job: Callable[[int, bytes, int], Job], nonce: int) -> Rule:
    """`JobRegistry.createJob`, the `nonce`th of the registry; `job` builds it from its id, owner and creation time."""

    def rule(state: State, at: Context) -> list[ChainEvent]:
        job_id = job_id_of(at.domain.chain_id, at.job_registry, nonce)
        state.jobs[job_id] = job(job_id, at.sender, at.timestamp)
        return []

    return rule


def job_id_of(chain_id: int, registry: bytes, nonce: int) -> int:
    """JobRegistry.vy's ids, unique across chains."""
    return int.from_bytes(keccak(words(chain_id, registry, nonce)), "big")


def delete_job(job_id: int) -> Rule:
    """`JobRegistry.deleteJob`."""

    def rule(state: State, at: Context) -> list[ChainEvent]:
        job = state.jobs.get(job_id)
        if job is None:
            raise Reverted("UnknownJob")
        _need(job.owner == at.sender, "NotJobOwner")
        _need(job.active, "JobInactive")
        state.jobs[job_id] = replace(job, active=False)
        return [JobDeleted(place=at.place(), job_id=job_id)]

    return rule


def change_registry(change: Callable[[State], None]) -> Rule:
    """Whatever makes keepers re-read the registry: registrations, exits, dispatchers."""

    def rule(state: State, at: Context) -> list[ChainEvent]:
        change(state)
        return [RegistryChanged(place=at.place())]

    return rule


def advance_epoch(*, forced: bool = False) -> Rule:
    """`KeeperRegistry.advanceEpoch`. `forced` ignores the epoch's length and whether anything changed (for tests)."""

    def rule(state: State, at: Context) -> list[ChainEvent]:
        waiting = tuple(r for r in state.keepers.values() if r.keeper.active)
        if not forced:
            _need(waiting != state.seated, "NothingChanged")
            _need(not state.epochs or at.timestamp >= state.epoch_at + at.epoch_seconds, "TooEarly")
        seats = tuple(position for position, r in enumerate(waiting) for _ in range(r.seats))
        operators = tuple(Operator(r.keeper.id, r.keeper.address, r.keeper.key) for r in waiting)
        epoch = Epoch(len(state.epochs) + 1, at.number + 1, None, operators, seats[: committee.MAX_SEATS])
        closed = tuple(replace(e, until_block=at.number) if e.until_block is None else e for e in state.epochs)
        state.epochs, state.seated, state.epoch_at = (*closed, epoch), waiting, at.timestamp
        return [RegistryChanged(place=at.place())]

    return rule
