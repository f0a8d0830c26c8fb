"""Taking a job on: what was posted, checked against the chain, becomes the JobSpec that keepers agree on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog
import trio

from consensus import schedules
from consensus.errors import Failed, Invalid
from consensus.messages import MAX_SPEC_BYTES, JobSpec, Uint256
from consensus.triggers import Interval
from coordinator.store.port import Store
from coordinator.store.records import Job, JobStatus, Planned, Target, User
from node.arguments import canonical_arguments, encode_call, resolve_function
from node.infra.chain import Chain
from node.infra.chain import Job as ChainJob
from node.infra.clock import Clock
from node.infra.compute import Compute

log = structlog.get_logger(__name__)

_REGISTRY_POLL_S = (0.1, 0.2, 0.4, 0.8, 1.5)  # our RPC may be a block behind the client's, which has its receipt
_GAS_MARGIN = 1.3  # a call's gas changes with its contract's storage between posting and each execution
_LEAST_GAS = 50_000  # a first write to fresh storage, whatever the estimate said of a warm one
_MOST_GAS = 10_000_000  # a third of a block of Ethereum; the hub must get it forwarded in full
UNTRIED_GAS = 500_000
"""Inner gas of a call that cannot be tried now: its arguments are not known yet, or it reverts until its time has come."""


@dataclass(frozen=True, slots=True)
class Posted:
    """A job as a user posted it, fields already of their types. `arguments` is JSON text, addresses 20 bytes."""

    id: int
    owner: bytes
    title: str
    definition: int
    time_frame: int
    interval: int
    chain_id: int
    created_chain_id: int
    contract: bytes
    function: str
    abi: str
    arg_type: int
    arguments: str
    priority: int
    security: int
    custom: bool
    timezone: str
    is_imua: bool
    is_safe: bool
    safe_name: str
    safe_address: str
    cost_prediction: str
    language: str


@dataclass(frozen=True, slots=True)
class Taken:
    """The answer to a posted job: what is stored, and its owner."""

    job: Job
    user: User
    balance: int


class Jobs:
    """Creates, deletes and prices jobs. `planned` and `deleted` tell the scheduler."""

    def __init__(
        self,
        store: Store,
        chains: Mapping[int, Chain],
        clock: Clock,
        compute: Compute,
        *,
        planned: Callable[[Planned], None],
        deleted: Callable[[int], None],
    ) -> None:
        self._store = store
        self._chains = chains
        self._clock = clock
        self._compute = compute
        self._planned = planned
        self._deleted = deleted

    def chain(self, chain_id: int, field: str) -> Chain:
        """The chain with this id. Raises `Invalid` for `field`."""
        chain = self._chains.get(chain_id)
        if chain is None:
            known = ", ".join(map(str, sorted(self._chains)))
            raise Invalid(field, f"chain {chain_id} is not served here", f"one of {known}", code="UNKNOWN_CHAIN")
        return chain

    async def create(self, posted: Posted, *, key_owner: str, trace_id: str) -> Taken:
        """Stores the job and begins to schedule it; the same job posted again answers the same. Raises `Invalid`."""
        chain = self.chain(posted.chain_id, "target_chain_id")
        call = await self._call(posted)
        known = await self._store.job(posted.id)
        if known is None:
            registered = await self._registered(posted, chain)
            job = await self._job(posted, registered, chain, call, key_owner, trace_id)
            known = await self._store.add_job(job)
            if known == job and job.planned is not None:
                self._planned(job.planned)
            again = await chain.job(posted.id)
            if again is not None and not again.active:  # deleted before the monitor could know whose event that was
                known = await self.delete(known)
        if known.key_owner != key_owner:
            raise Invalid("job_id", "this job was posted with another API key", "post each job once", code="JOB_EXISTS")
        if known.spec != _spec(posted, call, known.created_at, known.time_frame):
            raise Invalid("job_id", "this job was posted before, and differently", "create a new job", code="JOB_EXISTS")
        if known.status is JobStatus.DELETED:  # taken, it would never run
            raise Invalid("job_id", "this job was deleted", "create a new one", code="JOB_INACTIVE")
        user = await self._store.user(known.owner)
        assert user is not None  # add_job makes the owner's row
        return Taken(known, user, await chain.balance(known.owner))

    async def _call(self, posted: Posted) -> _Call:
        """What is to be called: worked out off the event loop, since an ABI may be long."""
        return await self._compute(_call, posted.function, posted.arguments, posted.abi)

    async def _registered(self, posted: Posted, chain: Chain) -> ChainJob:
        """The job on chain, as soon as our RPC knows it; checked against what was posted."""
        registered = await chain.job(posted.id)
        for pause in _REGISTRY_POLL_S:
            if registered is not None:
                break
            await trio.sleep(pause)
            registered = await chain.job(posted.id)
        if registered is None:
            raise Invalid(
                "job_id", "the JobRegistry does not know this job", "call createJob first, on this chain", code="UNKNOWN_JOB"
            )
        _agrees(posted, registered)
        return registered

    async def _job(self, posted: Posted, registered: ChainJob, chain: Chain, call: _Call, key_owner: str, trace_id: str) -> Job:
        spec = _spec(posted, call, registered.created_at, registered.time_frame)
        if len(spec) > MAX_SPEC_BYTES:
            raise Invalid("arguments", f"the job is {len(spec)} bytes, at most {MAX_SPEC_BYTES}", "pass less data")
        trigger = Interval(posted.interval)
        now = int(self._clock.now())
        return Job(
            id=posted.id,
            owner=posted.owner,
            key_owner=key_owner,
            title=posted.title,
            definition=posted.definition,
            trigger=trigger,
            target=Target(
                chain_id=posted.chain_id,
                contract=posted.contract,
                function=posted.function,
                signature=call.signature,
                abi=posted.abi,
                arg_type=posted.arg_type,
                arguments=posted.arguments,
                script_url="",
                language=posted.language,
                call=call.data,
                gas_limit=await gas_limit(chain, posted.contract, call.data),
            ),
            spec=spec,
            created_at=registered.created_at,
            time_frame=registered.time_frame,
            next_due=schedules.next_due(  # the first of all: what has passed since is the scheduler's to judge
                trigger, registered.created_at, created_at=registered.created_at, time_frame=registered.time_frame
            ),
            posted_at=now,
            updated_at=now,
            priority=posted.priority,
            security=posted.security,
            custom=posted.custom,
            recurring=True,
            timezone=posted.timezone,
            is_imua=posted.is_imua,
            created_chain_id=posted.created_chain_id,
            is_safe=posted.is_safe,
            safe_name=posted.safe_name,
            safe_address=posted.safe_address,
            cost_prediction=posted.cost_prediction,
            trace_id=trace_id,
        )

    async def delete(self, job: Job) -> Job:
        """The job fires no more, at once. What was dispatched before may still execute."""
        ended = await self._store.end_job(job.id, JobStatus.DELETED, int(self._clock.now())) or job
        self._deleted(job.id)  # not before: a job that the store could not end must fire on
        return ended

    async def fee(self, chain_id: int, contract: bytes | None, function: str, abi: str, arguments: str) -> int:
        """Upper bound of one execution's cost in wei; for a call that cannot be tried yet, of a middling one."""
        chain = self.chain(chain_id, "target_chain_id")
        gas = UNTRIED_GAS
        if contract is not None and function:
            if arguments:
                call = await self._compute(_call, function, arguments, abi)
                gas = await gas_limit(chain, contract, call.data)
            else:
                await self._compute(resolve_function, function, abi)
        return await chain.quote(0, gas)


@dataclass(frozen=True, slots=True)
class _Call:
    """A call as understood: canonical signature, canonical arguments as JSON text, and the calldata."""

    signature: str
    arguments: str
    data: bytes


def _call(function: str, arguments: str, abi: str) -> _Call:
    signature = resolve_function(function, abi)
    return _Call(signature, canonical_arguments(signature, arguments, abi), encode_call(signature, arguments, abi))


def _spec(posted: Posted, call: _Call, created_at: int, time_frame: int) -> bytes:
    """The JobSpec's bytes: the same for the same job, however often it is posted."""
    return JobSpec(
        job_id=Uint256(posted.id),
        chain_id=posted.chain_id,
        definition=posted.definition,
        owner=posted.owner,
        created_at=created_at,
        time_frame=time_frame,
        trigger=Interval(posted.interval),
        target=posted.contract,
        function=call.signature,
        arguments=call.arguments,
        level=posted.security,
    ).encode()


async def gas_limit(chain: Chain, contract: bytes, call: bytes) -> int:
    """Gas that the hub must forward for this call, with a margin. Raises `Invalid` when it needs too much."""
    try:
        estimate = await chain.estimate_call(contract, call)
    except Failed as error:
        log.info("call_reverts_now", target="0x" + contract.hex(), code=error.code, detail=error.detail)
        return UNTRIED_GAS
    wanted = max(_LEAST_GAS, int(estimate * _GAS_MARGIN))
    if wanted > _MOST_GAS:
        raise Invalid(
            "target_function", f"the call needs {estimate} gas, at most {int(_MOST_GAS / _GAS_MARGIN)}", "do less in a call"
        )
    return wanted


def _agrees(posted: Posted, registered: ChainJob) -> None:
    """The chain proves whose job it is; a posted job may add to what is registered, never contradict it."""
    if not registered.active:
        raise Invalid("job_id", "this job was deleted on chain", "create a new one", code="JOB_INACTIVE")
    for field, said, is_so in (
        ("user_address", posted.owner, registered.owner),
        ("task_definition_id", posted.definition, registered.definition),
        ("target_contract_address", posted.contract, registered.target),
        ("time_frame", posted.time_frame, registered.time_frame),
        ("time_interval", posted.interval, registered.interval),
    ):
        if said != is_so:
            shown = "0x" + is_so.hex() if isinstance(is_so, bytes) else is_so
            raise Invalid(field, "differs from the job on chain", f"send {shown}", code="CONTRADICTS_CHAIN")
