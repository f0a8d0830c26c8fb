"""The performer's step: checks a task as its own money depends on it, decides its call, waits for its second, executes once."""

from __future__ import annotations

from dataclasses import dataclass

from consensus import runs
from consensus.codec import keccak
from consensus.errors import Failed, Invalid, Transient
from consensus.fees import resource_fee
from consensus.lifecycle import REASONS, SCRIPT_FAULTS
from consensus.messages import JobSpec, Task
from consensus.rules import MAX_AHEAD
from node.arguments import encode_call
from node.decisions import Decision, decision
from node.infra.chain import Chain, Mined, Prepared, Wallet
from node.infra.clock import Clock
from node.infra.compute import Compute
from node.recheck import Recheck, due_at, registered, supported, timed
from node.scripts import Call, NoCall, Scripts

_EARLY_S = 0.002  # a block's whole second must not be the one before: wake this much after the due second begins


_REFUSALS = {
    "TooLate": "DEADLINE_PASSED",
    "TaskAlreadyExecuted": "ALREADY_EXECUTED",
    "JobInactive": "JOB_INACTIVE",
    "InsufficientBalance": "INSUFFICIENT_BALANCE",
}
"""The hub's reasons that have a code of their own; the others are HUB_REFUSED, with the reason as its detail."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A checked task whose transaction is built and priced; all that is left is its second."""

    task: Task
    prepared: Prepared
    at: int


async def call_of(job: JobSpec, compute: Compute) -> bytes:
    """The calldata a static job means. Raises `Failed` when it means none."""
    supported(job)
    try:
        return await compute(encode_call, job.function, job.arguments)
    except Invalid as error:
        raise Failed("WRONG_CALL", error.detail) from error


def unauthorised(task: Task, job: JobSpec, call: Call) -> str:
    """The code of why a call is not the one that a task's authorisation leaves open, '' when it is.

    Where neither job nor authorisation names a target, the script does.
    """
    authorisation = task.authorisation
    if authorisation.target != job.target or (any(job.target) and call.target != job.target):
        return "WRONG_TARGET"
    if (any(authorisation.selector) or job.function) and call.data[:4].ljust(4, b"\0") != authorisation.selector:
        return "WRONG_CALL"
    if (any(authorisation.call_hash) or job.definition not in runs.SCRIPTED) and keccak(call.data) != authorisation.call_hash:
        return "WRONG_CALL"
    return ""


class Executor:
    """Executes tasks on one chain with one wallet."""

    def __init__(self, chain: Chain, wallet: Wallet, clock: Clock, compute: Compute, recheck: Recheck, scripts: Scripts) -> None:
        self._chain = chain
        self._wallet = wallet
        self._recheck = recheck
        self._clock = clock
        self._compute = compute
        self._scripts = scripts

    async def decide(self, task: Task) -> Decision:
        """Checks the task and finds what is to be done; a script runs here. Raises `Failed` or `Transient` with the reason not to
        take the task."""
        job = task.job()
        supported(job)
        scripted = job.definition in runs.SCRIPTED
        if scripted != (task.pinned_block > 0):
            raise Failed("WRONG_RECORD", "a pinned block goes with a script, and none without")
        if due_at(task, job) > self._clock.now() + MAX_AHEAD:
            raise Failed("NOT_DUE", "more than an hour ahead")
        static = None if scripted else await self.static(task, job)  # costs nothing to know: before the chain is asked
        await self._check_chain(task, job)
        log = await self._recheck.wait(task, job)
        if static is not None:
            return static
        outcome = await self._scripts.run(job, task, log)
        fee = resource_fee(job.priority, outcome.run.usage if outcome.run else None)
        if isinstance(outcome.action, NoCall):
            if outcome.action.code not in SCRIPT_FAULTS:
                raise Failed("INTERNAL", f"{outcome.action.code} is not a script's own doing")
        elif code := unauthorised(task, job, outcome.action):
            raise Failed(code, "what the script asks for is not authorised")
        return decision(outcome.action, outcome.run, fee)

    async def static(self, task: Task, job: JobSpec) -> Decision:
        """What a job without a script means, whoever reads it. Raises `Failed`."""
        call = Call(task.authorisation.target, await call_of(job, self._compute))
        if code := unauthorised(task, job, call):
            raise Failed(code, "what is authorised is not what the JobSpec means")
        return decision(call, None, resource_fee(job.priority, None))

    async def prepare(self, task: Task, decided: Decision) -> Ready:
        """Builds and prices the transaction of a decided call. Raises `Failed` or `Transient`."""
        authorisation = task.authorisation
        prepared = await self._wallet.prepare_execution(authorisation, task.signature, decided.target, decided.call, decided.fee)
        return Ready(task, prepared, due_at(task, task.job()))

    async def _check_chain(self, task: Task, spec: JobSpec) -> None:
        """What the hub would refuse, or a committee reject, as things stand: whoever sends such a transaction pays for it."""
        authorisation = task.authorisation
        job = await self._chain.job(authorisation.job_id)
        if job is None:
            raise Transient("RECORD_NOT_FOUND", "this keeper's RPC does not know the job yet")
        if not job.active:
            raise Failed("JOB_INACTIVE")
        said = (spec.owner, spec.definition, spec.created_at, spec.time_frame)
        if said != (job.owner, job.definition, job.created_at, job.time_frame) or not registered(spec, job):
            raise Failed("WRONG_RECORD", "the JobSpec contradicts the registered job")
        if _over(spec, self._clock.now()):
            raise Failed("JOB_INACTIVE", "the job has expired")
        if job.target != authorisation.target:
            raise Failed("WRONG_TARGET", "the authorised target is not the registered job's")
        policy = await self._chain.policy(job.id)
        if policy is not None and (reason := policy.refusal(authorisation)):
            raise Failed("HUB_REFUSED", reason)
        if await self._chain.balance(job.owner) < authorisation.max_fee:
            raise Failed("INSUFFICIENT_BALANCE")
        if await self._chain.execution(task.task_id) is not None:
            raise Failed("ALREADY_EXECUTED")

    async def send_again(self, task: Task, decided: Decision) -> bytes:
        """Sends the recorded bytes of a former run once more: they may never have left. Returns and raises as `send` does.

        Not while the log that fired the task is away: in a reorganisation it may go together with the execution.
        """
        await self._recheck.still(task, task.job())
        return await self._wallet.send((await self.prepare(task, decided)).prepared)

    async def resume(self, task: Task, decided: Decision) -> bytes:
        """Executes what a former run of this program decided and did not send; the chain may have moved since. As `send`."""
        await self._check_chain(task, task.job())
        return await self.send(await self.prepare(task, decided))

    async def send(self, ready: Ready) -> bytes:
        """Waits for the second and sends; the transaction's hash. Raises `Failed`, or `Transient` when no RPC takes it."""
        await self._clock.sleep_until(ready.at + _EARLY_S)
        if self._clock.now() > ready.task.authorisation.deadline:
            raise Failed("DEADLINE_PASSED", "the keeper was not running at the task's second")
        job = ready.task.job()
        if _over(job, self._clock.now()):
            raise Failed("JOB_INACTIVE", "the job has expired")
        await self._recheck.still(ready.task, job)
        return await self._wallet.send(ready.prepared)

    async def mined(self, tx_hash: bytes) -> Mined:
        """The receipt. Raises `Failed` with the hub's reason when it refused: `HUB_REFUSED` or a code of `_REFUSALS`."""
        mined = await self._wallet.mined(tx_hash)
        if not mined.success:
            raise Failed(_REFUSALS.get(mined.reason, "HUB_REFUSED"), mined.reason)
        return mined

    async def sent_before(self, task: Task) -> bytes | None:
        """Hash of the transaction that a former run sent for this attempt."""
        return await self._wallet.sent(f"execute:{task.task_id}:{task.authorisation.attempt}")


def _over(job: JobSpec, now: float) -> bool:
    """Whether the hub executes nothing of the job any more. What was due by a schedule in its life may come late."""
    return not timed(job) and now > job.created_at + job.time_frame


def transient(error: Failed | Transient) -> bool:
    """Whether another keeper may succeed where this one did not."""
    reason = REASONS.get(error.code)
    return isinstance(error, Transient) or (reason is not None and reason.transient)
