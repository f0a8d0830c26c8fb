"""The performer's step: checks a task as its own money depends on it, waits for its second, and executes it once."""

from __future__ import annotations

from dataclasses import dataclass

from consensus.codec import keccak
from consensus.errors import Failed, Invalid, Transient
from consensus.lifecycle import REASONS
from consensus.messages import JobSpec, Task
from consensus.rules import MAX_AHEAD
from node.arguments import encode_call
from node.infra.chain import Chain, Mined, Prepared, Wallet
from node.infra.clock import Clock
from node.infra.compute import Compute
from node.recheck import Recheck, due_at, registered, supported, timed

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
    call: bytes
    prepared: Prepared
    at: int


async def call_of(job: JobSpec, compute: Compute) -> bytes:
    """The calldata a static job means. Raises `Failed` for a job this version cannot execute."""
    supported(job)
    try:
        return await compute(encode_call, job.function, job.arguments)
    except Invalid as error:
        raise Failed("WRONG_CALL", error.detail) from error


class Executor:
    """Executes tasks on one chain with one wallet."""

    def __init__(self, chain: Chain, wallet: Wallet, clock: Clock, compute: Compute, recheck: Recheck) -> None:
        self._chain = chain
        self._wallet = wallet
        self._recheck = recheck
        self._clock = clock
        self._compute = compute

    async def prepare(self, task: Task) -> Ready:
        """Everything that can be done before the second is due. Raises `Failed` with the reason not to take the task."""
        authorisation = task.authorisation
        job = task.job()
        call = await call_of(job, self._compute)
        if keccak(call) != authorisation.call_hash or call[:4] != authorisation.selector:
            raise Failed("WRONG_CALL", "the authorised call is not the one the JobSpec means")
        if job.target != authorisation.target:
            raise Failed("WRONG_TARGET", "the authorised target is not the JobSpec's")
        at = due_at(task, job)
        if at > self._clock.now() + MAX_AHEAD:
            raise Failed("NOT_DUE", "more than an hour ahead")
        await self._check_chain(task, job)
        await self._recheck.wait(task, job)
        prepared = await self._wallet.prepare_execution(authorisation, task.signature, authorisation.target, call, 0)
        return Ready(task, call, prepared, at)

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
        if await self._chain.balance(job.owner) < authorisation.max_fee:
            raise Failed("INSUFFICIENT_BALANCE")
        if await self._chain.execution(task.task_id) is not None:
            raise Failed("ALREADY_EXECUTED")

    async def send_again(self, task: Task) -> bytes:
        """Sends the recorded bytes of a former run once more: they may never have left. Returns and raises as `send` does.

        Not while the log that fired the task is away: in a reorganisation it may go together with the execution.
        """
        call = await self.call(task)
        await self._recheck.still(task, task.job())
        asked = task.authorisation
        return await self._wallet.send(await self._wallet.prepare_execution(asked, task.signature, asked.target, call, 0))

    async def call(self, task: Task) -> bytes:
        """The calldata of a task that was checked before."""
        return await call_of(task.job(), self._compute)

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
