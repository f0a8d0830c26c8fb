"""Taking jobs on, changing and ending them: what was posted, checked against the chain, becomes what keepers agree on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import structlog
import trio
from msgspec import structs

from consensus import schedules
from consensus.errors import Failed, Invalid, Transient
from consensus.triggers import Cron, Interval, Moments, OnCondition, OnEvent
from coordinator.definitions.conditions import sources_of
from coordinator.definitions.posted import (
    Call,
    Posted,
    agrees,
    as_posted,
    at,
    call_of,
    ended,
    first_due,
    linked,
    one_owner,
    same_job,
    spec_of,
)
from coordinator.fees import SCRIPTED_GAS, Fees
from coordinator.store.port import Store
from coordinator.store.records import Job, JobStatus, MissedPolicy, Target, User
from node.infra.chain import Chain
from node.infra.chain import Job as ChainJob
from node.infra.clock import Clock
from node.infra.compute import Compute
from node.infra.fetch import UNREACHABLE

log = structlog.get_logger(__name__)

T = TypeVar("T")

MAX_LINKED = 32
"""Jobs in one array: each costs reads of the chain, and waits for the one before it."""

_LOOK_UP_S = 20.0  # for all hosts that a job names: many slow ones must not hold a request
_REGISTRY_POLL_S = (0.1, 0.2, 0.4, 0.8, 1.5)  # our RPC may be a block behind the client's, which has its receipt

Changed = Callable[[int], Awaitable[None]]
"""Told of every job that is new or has changed, after the store knows (`coordinator.ownership`)."""


class CheckUrl(Protocol):
    """Whether a URL that a user names may be asked (`node.infra.fetch.Fetcher.check`); schemes are http(s) unless given.

    Raises `Failed` when not, `Transient` when its host cannot be found now.
    """

    async def __call__(self, url: str, /, *schemes: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Taken:
    """The answer to posted jobs: what is stored, in their order, their owner, and the owner's deposit in wei."""

    jobs: tuple[Job, ...]
    user: User
    balance: int


class Jobs:
    """Creates, changes and ends jobs. After each change, `changed` is called with the job's id."""

    def __init__(
        self,
        store: Store,
        fees: Fees,
        clock: Clock,
        compute: Compute,
        *,
        changed: Changed,
        check_url: CheckUrl,
    ) -> None:
        self._store = store
        self.fees = fees
        self._clock = clock
        self._compute = compute
        self._changed = changed
        self._check_url = check_url

    # creating

    async def create(self, posted: Sequence[Posted], *, key_owner: str, trace_id: str) -> Taken:
        """Stores the jobs, all or none, and begins to watch the first: each later one waits for the one before it.

        The same jobs posted again are answered the same. Raises `Invalid`; of several jobs, the field says which.
        """
        one_owner(posted)
        posted = [self._settled(each) for each in posted]
        # off the event loop, since an ABI may be long
        calls = [await _of_element(i, posted, self._compute(call_of, each)) for i, each in enumerate(posted)]
        known = [job for each in posted if (job := await self._store.job(each.id)) is not None]
        if not known:
            known = await self._take_on(posted, calls, key_owner, trace_id)
        jobs = as_posted(posted, calls, {job.id: job for job in known}, key_owner)
        user = await self._store.user(jobs[0].owner)
        assert user is not None  # add_jobs makes the owner's row
        return Taken(tuple(jobs), user, await self.fees.chain(posted[0].chain_id, "target_chain_id").balance(jobs[0].owner))

    async def _take_on(self, posted: Sequence[Posted], calls: Sequence[Call], key_owner: str, trace_id: str) -> list[Job]:
        made = linked(
            [await _of_element(i, posted, self._make(each, calls[i], key_owner, trace_id)) for i, each in enumerate(posted)]
        )
        stored = list(await self._store.add_jobs(made))
        for job in stored:
            await self._changed(job.id)
        for place, job in enumerate(stored):
            again = await self.fees.chain(job.target.chain_id, "target_chain_id").job(job.id)
            if again is not None and not again.active:  # deleted before the monitor could know whose event that was
                stored[place] = await self.delete(job)
        return stored

    def _settled(self, posted: Posted) -> Posted:
        """With the chain's own confirmations for an event that names none."""
        if not isinstance(posted.trigger, OnEvent) or posted.confirmed:
            return posted
        chain = self.fees.chain(posted.trigger.chain_id, "trigger_chain_id")
        return replace(posted, trigger=structs.replace(posted.trigger, confirmations=chain.confirmations))

    async def _reachable(self, posted: Posted) -> None:
        """What the job names can be reached from here. Raises `Invalid`."""
        if posted.script_url.startswith(("http:", "https:")):
            await self._allowed("dynamic_arguments_script_url", [posted.script_url], away=True)
        match posted.trigger:
            case OnEvent() as event:
                self.fees.chain(event.chain_id, "trigger_chain_id")
            case OnCondition() as condition:
                found = sources_of(condition)
                for chain_id in found.chains:
                    self.fees.chain(chain_id, "value_source_url")
                await self._allowed("value_source_url", found.urls)

    async def _allowed(self, field: str, urls: Iterable[str], *, away: bool = False) -> None:
        """Raises `Invalid` for hosts that are never asked, and unless they may be `away` for those that are not found."""
        try:
            with trio.fail_after(_LOOK_UP_S):
                for url in urls:
                    schemes = ("ws", "wss") if url.lower().startswith("ws") else ("http", "https")
                    await self._check_url(url, *schemes)
        except (Failed, Transient) as error:
            if away and isinstance(error, Transient):
                return
            raise Invalid(field, error.detail or error.code, "name a public host", code=error.code) from None
        except trio.TooSlowError:
            detail = f"its hosts are not found within {_LOOK_UP_S:g} s"
            raise Invalid(field, detail, "name hosts that resolve quickly", code=UNREACHABLE) from None

    async def _make(self, posted: Posted, call: Call, key_owner: str, trace_id: str) -> Job:
        """The job, agreed with the chain."""
        chain = self.fees.chain(posted.chain_id, "target_chain_id")
        registered = await self._registered(posted, chain)
        await self._reachable(posted)
        now = int(self._clock.now())
        life = {"created_at": registered.created_at, "time_frame": registered.time_frame}
        # the first of all: what has passed since is the scheduler's to judge, by the job's policy
        next_due = first_due(posted.trigger, registered.created_at, **life)
        if posted.missed is MissedPolicy.SKIP:
            first_due(posted.trigger, max(now, registered.created_at), **life)
        return Job(
            id=posted.id,
            owner=posted.owner,
            key_owner=key_owner,
            title=posted.title,
            definition=posted.definition,
            trigger=posted.trigger,
            target=await self._target(posted, call),
            spec=spec_of(posted, call, registered.created_at, registered.time_frame),
            created_at=registered.created_at,
            time_frame=registered.time_frame,
            next_due=next_due,
            posted_at=now,
            updated_at=now,
            priority=posted.priority,
            security=posted.security,
            custom=posted.custom,
            recurring=posted.recurring,
            timezone=posted.timezone,
            is_imua=posted.is_imua,
            created_chain_id=posted.created_chain_id,
            cost_prediction=posted.cost_prediction,
            max_fee=posted.max_fee,
            is_safe=posted.is_safe,
            safe_name=posted.safe_name,
            safe_address=posted.safe_address,
            trace_id=trace_id,
            missed=posted.missed,
            starts_at=registered.created_at,
        )

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
        agrees(posted, registered)
        return registered

    async def _target(self, posted: Posted, call: Call) -> Target:
        return Target(
            chain_id=posted.chain_id,
            contract=posted.contract,
            function=posted.function,
            signature=call.signature,
            abi=posted.abi,
            arg_type=posted.arg_type,
            arguments=posted.arguments,
            script_url=posted.script_url,
            language=posted.language,
            call=call.data,
            gas_limit=await self._gas_limit(posted, call),
        )

    async def _gas_limit(self, posted: Posted, call: Call) -> int:
        """What its owner says, or of a call that can be tried what that takes."""
        if posted.gas_limit:
            return posted.gas_limit
        return await self.fees.gas_limit(posted.chain_id, posted.contract, call.data) if call.data else SCRIPTED_GAS

    # changing

    async def update(self, job: Job, posted: Posted) -> Job:
        """The job as `posted`, which is `job` with what its owner changed. A new schedule counts from now. Raises `Invalid`."""
        if job.ended or job.spent:
            raise ended(job)
        same_job(job, posted)
        call = await self._compute(call_of, posted)
        self.fees.chain(posted.chain_id, "target_chain_id")
        await self._reachable(posted)
        now = int(self._clock.now())
        next_due = job.next_due
        if posted.trigger != job.trigger:
            next_due = first_due(posted.trigger, max(now, job.created_at), created_at=job.created_at, time_frame=job.time_frame)
        changed = replace(
            job,
            title=posted.title,
            trigger=posted.trigger,
            target=await self._target(posted, call),
            spec=spec_of(posted, call, job.created_at, job.time_frame),
            next_due=next_due,
            updated_at=now,
            priority=posted.priority,
            security=posted.security,
            timezone=posted.timezone,
            missed=posted.missed,
            custom=posted.custom,
            is_imua=posted.is_imua,
            cost_prediction=posted.cost_prediction,
            max_fee=posted.max_fee,
        )
        stored = await self._store.update_job(changed)
        if stored is None:
            raise ended(job)
        await self._changed(job.id)
        return stored

    async def pause(self, job: Job) -> Job:
        """The job fires no more until it is resumed; at once. Raises `Invalid` when it has ended."""
        return await self._moved(job, await self._store.pause_job(job.id, int(self._clock.now())))

    async def resume(self, job: Job) -> Job:
        """The job fires again; at once. Raises `Invalid` when it has ended.

        What was due while it was paused was missed, and its policy says what becomes of it: `skip` goes on from now.
        """
        now, next_due = int(self._clock.now()), job.next_due
        match job.trigger:
            case (Interval() | Cron() | Moments()) as schedule if job.missed is MissedPolicy.SKIP and next_due is not None:
                next_due = schedules.next_due(
                    schedule, max(now, next_due - 1), created_at=job.created_at, time_frame=job.time_frame
                )
        return await self._moved(job, await self._store.resume_job(job.id, next_due, now))

    async def _moved(self, job: Job, moved: Job | None) -> Job:
        moved = moved or job
        if moved.ended:
            raise ended(moved)
        await self._changed(job.id)
        return moved

    async def delete(self, job: Job) -> Job:
        """The job fires no more, at once. What was dispatched before may still execute."""
        deleted = await self._store.end_job(job.id, JobStatus.DELETED, int(self._clock.now())) or job
        await self._changed(job.id)  # not before: a job that the store could not end must fire on
        return deleted


async def _of_element(place: int, posted: Sequence[Posted], work: Awaitable[T]) -> T:
    """What `work` returns; an error of one job among several says which."""
    try:
        return await work
    except Invalid as error:
        raise Invalid(at(place, posted, error.field), error.problem, error.remedy, code=error.code) from None
