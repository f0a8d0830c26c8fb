"""What a keeper is given leave to do: an attempt's authorisation, signed, and the message that carries it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from consensus import ecdsa
from consensus.codec import keccak
from consensus.errors import Failed
from consensus.messages import Authorisation, JobSpec, Uint256, spec_digest
from consensus.messages import Task as TaskMessage
from consensus.runs import SCRIPTED
from coordinator.fees import Fees
from coordinator.scoring import Standing
from coordinator.store.port import Store
from coordinator.store.records import Attempt, Called, Job, Task
from node.arguments import selector as selector_of
from node.infra.chain import Chain
from node.infra.clock import Clock
from node.infra.secret import Secret

_TIMED = frozenset({1, 2, 7})  # the hub asks of these that their second was in the job's life, of the others that the block is


class Authoriser:
    """Holds the dispatcher's key. Called for each attempt, it returns the attempt and what that may cost at most, wei.

    `window` is how long an authorisation is valid, seconds.

    Raises `Transient`, or `Failed` with the reason that ends the task: INSUFFICIENT_BALANCE, FEE_ABOVE_CAP, JOB_INACTIVE,
    HUB_REFUSED.
    """

    def __init__(self, store: Store, fees: Fees, key: Secret[bytes], clock: Clock, *, window: float) -> None:
        self._store = store
        self._fees = fees
        self._key = key
        self._clock = clock
        self._window = window

    async def __call__(
        self, task: Task, job: Job, chain: Chain, attempts: Sequence[Attempt], keeper: Standing
    ) -> tuple[Attempt, int]:
        called = await self._store.called(task.id) or job.called  # what fired, though its owner has changed the job since
        spec = JobSpec.decode(called.spec)
        max_fee = await self._bound(job, spec, called.gas_limit, chain)
        opens = max(task.scheduled_at, int(self._clock.now()), *(a.deadline + 1 for a in attempts))
        if job.definition not in _TIMED and opens > job.expires_at:
            raise Failed("JOB_INACTIVE", "the job expired before a keeper could execute it")
        authorisation = self._authorisation(task, job, called, spec, len(attempts) + 1, keeper, max_fee, opens)
        policy = await chain.policy(job.id)
        if policy is not None and (reason := policy.refusal(authorisation)):
            code = "FEE_ABOVE_CAP" if reason == "PolicyFee" else "HUB_REFUSED"
            raise Failed(code, f"{reason}: the job's owner pinned another JobSpec, or less")
        message = await self._message(task, authorisation, called.spec, chain)
        attempt = Attempt(
            task_id=task.id,
            number=authorisation.attempt,
            performer=keeper.address,
            peer_id=keeper.peer_id,
            not_before=authorisation.not_before,
            deadline=authorisation.deadline,
            message=message.encode(),
            created_ms=self._clock.now_ns() // 1_000_000,
        )
        return attempt, max_fee

    async def _bound(self, job: Job, spec: JobSpec, gas: int, chain: Chain) -> int:
        quote = await self._fees.bound(
            spec.chain_id, level=spec.level, gas=gas, priority=spec.priority, script_url=spec.script_url
        )
        if job.max_fee and quote.total > job.max_fee:
            raise Failed("FEE_ABOVE_CAP", f"up to {quote.total} wei today, the job's max_fee is {job.max_fee}")
        balance = await chain.balance(job.owner)
        if balance < quote.total:
            raise Failed("INSUFFICIENT_BALANCE", f"{balance} wei deposited, up to {quote.total} are needed")
        return quote.total

    def _authorisation(
        self, task: Task, job: Job, called: Called, spec: JobSpec, number: int, keeper: Standing, max_fee: int, opens: int
    ) -> Authorisation:
        """Of a call that a script decides, only what it may not choose is authorised: the function, and the target if any."""
        scripted = job.definition in SCRIPTED
        selector = selector_of(spec.function) if spec.function else bytes(4)
        deadline = opens + math.ceil(self._window)
        return Authorisation(
            job_id=Uint256(job.id),
            trigger_id=Uint256(task.trigger_id),
            attempt=number,
            performer=keeper.address,
            spec=spec_digest(called.spec),
            target=spec.target,
            selector=selector if scripted else called.call[:4],
            call_hash=bytes(32) if scripted else keccak(called.call),
            gas_limit=called.gas_limit,
            level=spec.level,
            max_fee=Uint256(max_fee),
            not_before=opens,
            deadline=deadline if job.definition in _TIMED else min(deadline, job.expires_at),
        )

    async def _message(self, task: Task, authorisation: Authorisation, spec: bytes, chain: Chain) -> TaskMessage:
        """A script's inputs are fixed here, once: every keeper that runs it is given the same."""
        pinned, storage, inputs = 0, "", b""
        if task.definition in SCRIPTED:
            pinned = max(1, (await chain.head()).number - chain.confirmations)
            storage = await self._store.storage(task.job_id)
            inputs = self._sign(chain, TaskMessage.inputs_hash(authorisation, pinned, storage))
        signature = self._sign(chain, authorisation.struct_hash())
        parts = (task.chain_id, authorisation, signature, spec, task.trace_id, task.observation)
        return TaskMessage(*parts, pinned, storage, inputs)

    def _sign(self, chain: Chain, struct_hash: bytes) -> bytes:
        return ecdsa.sign(self._key.reveal(), chain.domain.hub_digest(struct_hash))
