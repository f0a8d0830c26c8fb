"""Which jobs this coordinator watches: shards held by leases, divided among those alive, taken over when one dies.

A lease says who may begin; the store's fence says who may write. While the streams are away everybody goes on with what he
has: should two hold the same shard, the store takes the writes of the one who claimed it last.
"""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal

import structlog
import trio

from consensus.errors import Misconfigured, Transient
from consensus.triggers import OnCondition, OnEvent, Trigger
from coordinator.guard import Guard
from coordinator.scheduler.port import Scheduler
from coordinator.store.port import Store
from coordinator.store.records import SHARDS, Gap, Planned, shard_of
from coordinator.streams.port import UNREACHABLE, Streams
from node.infra.clock import Clock

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

log = structlog.get_logger(__name__)

Kind = Literal["time", "event", "condition"]
Schedulers = Mapping[Kind, Scheduler]

TOUCH_S: Final = 2.0
"""How often the store is told that shards are watched, and asked for jobs whose life is over."""
GAP_S: Final = 2 * TOUCH_S + 1.0
"""A shard that was not watched for longer has a gap: conditions may have come and gone. Shorter ones a poll would miss too."""

_PAGE = 250  # jobs read at once: some 5 ms in which no job that changed is applied
_MANY = 500  # jobs of a shard
_EXPIRED = 200
_BOUND_LEASES = 5  # after its last coordinator's end another store may take the streams over
_ANNOUNCEMENTS = 100_000  # while the streams are away; an id each
_RETRY_S = 0.5
_SETTLE_S = 1.0  # for the last firings of a shard that is given back; after that its lease is left to run out
_LEAVE_S = 2.5  # for the hand-over at the end, half of what a program has; leases run out by themselves
_RAISES = (10**6, 10**9, 10**12, 10**15)  # of a refused token: by a second, a quarter of an hour, ten days, thirty years


def kind_of(trigger: Trigger) -> Kind:
    """The scheduler that watches for it."""
    if isinstance(trigger, OnEvent):
        return "event"
    return "condition" if isinstance(trigger, OnCondition) else "time"


class Ownership:
    """`run` holds a fair share of the shards. `fences` is live: the shards held now, each with its token.

    `instances` are the coordinators alive as last heard, `takeovers` counts shards got after the first round, `losses` those
    that another has taken; `reachable` says whether the streams answered last.
    """

    def __init__(
        self, store: Store, streams: Streams, clock: Clock, instance: str, *, lease_s: float = 4.0, guard: Guard | None = None
    ) -> None:
        self._store = store
        self._streams = streams
        self._clock = clock
        self._lease_s = lease_s
        self._guard = guard or Guard()
        self._store_is: int | None = None
        self._bound = False
        self._schedulers: Schedulers = {}
        self._lock = trio.Lock()  # what is read from the store under it is newer than all that was put in before
        self._to_load: dict[int, bool] = {}  # shard -> whether its jobs were put in before
        self._loaded: dict[int, int] = {}  # shards all of whose jobs are put in, with the token they were put in under
        self._to_read: dict[int, None] = {}
        self._to_announce: dict[int, None] = {}
        self._work = trio.Event()
        self._patient_until = 0.0
        self._looked: float | None = None
        self._gaps: list[Gap] = []
        self._changes: int | None = None  # number of the last change to a job that has been looked at
        self._applied: dict[int, int | None] = {}  # revisions of jobs put in since, None for those taken out
        self.instance = instance
        self.fences: dict[int, int] = {}
        self.instances: frozenset[str] = frozenset({instance})
        self.reachable = False
        self.takeovers = 0
        self.losses = 0

    @property
    def held(self) -> tuple[int, ...]:
        """Shards held now, in order."""
        return tuple(sorted(self.fences))

    def watched(self) -> dict[int, int]:
        """Of `fences` those whose jobs are all known here: nobody else has had the shard since they were read."""
        return {shard: token for shard, token in self.fences.items() if self._loaded.get(shard) == token}

    def alone(self) -> bool:
        """Whether no other coordinator was alive when last heard, and all shards are held here."""
        return self.instances <= {self.instance} and len(self.fences) == SHARDS

    # jobs that change

    async def job_changed(self, job_id: int) -> None:
        """A job that is new or has changed in the store: applied here at once, announced to the others soon."""
        try:
            await self._apply(job_id)
        except Transient as error:
            log.warning("job_not_applied", job_id=str(job_id), code=error.code)
            self.reread(job_id)
        if len(self._to_announce) < _ANNOUNCEMENTS:
            self._to_announce[job_id] = None
            self._tell()
        else:
            log.error("job_not_announced", job_id=str(job_id))

    def reread(self, job_id: int) -> None:
        """The job is soon put in again as the store has it."""
        self._to_read[job_id] = None
        self._tell()

    def fenced(self, shard: int, token: int) -> None:
        """The store refused `token`: the shard has been claimed since, by another coordinator or here."""
        if self.fences.get(shard) == token:
            self._lose(shard, "fenced")
        elif shard in self.fences:  # claimed anew here while the firing was under way: its scheduler has given it up
            self._take_out(frozenset({shard}))
            self._to_load[shard] = False
            self._tell()

    async def _apply(self, job_id: int) -> None:
        shard = shard_of(job_id)
        if shard not in self.fences:
            return
        async with self._lock:
            planned = await self._store.planned_job(job_id)
            if shard in self.fences:
                self._put(job_id, planned)
                self._applied[job_id] = planned.revision if planned is not None else None

    def _put(self, job_id: int, planned: Planned | None) -> None:
        watched = planned is not None and self._guard.contained(
            "watch a job", self._schedulers[kind_of(planned.trigger)].put, planned, job_id=str(job_id)
        )
        if not watched:  # one that its scheduler cannot take is not watched, and the others are
            for scheduler in self._schedulers.values():
                scheduler.remove(job_id)

    # the work

    async def run(
        self,
        schedulers: Schedulers,
        settled: Callable[[], Awaitable[None]],
        *,
        task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Holds shards until cancelled; ready when the jobs of the first ones are put in, or the streams are away.

        `settled` returns when no firing is on its way to the store. When cancelled it hands over: nothing fires any more, what
        is being written is awaited, and the leases are released.
        """
        self._schedulers = schedulers
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._follow)
                await self._round(settled)
                self.takeovers = 0
                nursery.start_soon(self._rounds, settled)
                nursery.start_soon(self._announce_all)
                nursery.start_soon(self._read_all)
                nursery.start_soon(self._upkeep)
                await nursery.start(self._load_all)
                task_status.started()
        finally:
            with trio.move_on_after(_LEAVE_S) as scope:
                scope.shield = True
                await self._leave(settled)

    async def _rounds(self, settled: Callable[[], Awaitable[None]]) -> None:
        while True:
            await trio.sleep(self._lease_s / 3)
            await self._round(settled)

    async def _round(self, settled: Callable[[], Awaitable[None]]) -> None:
        """Shows that it lives, renews what it holds, gives back what is too much and takes what is free."""
        try:
            await self._bind()
            instances = await self._streams.beat(self.instance, self._lease_s)
            if self.fences and not self.reachable:
                self._be_patient()
            for shard, token in list(self.fences.items()):
                if not await self._streams.renew(_lease(shard), token, self._lease_s) and self.fences.get(shard) == token:
                    await self._regain(shard)
            if instances != self.instances:
                log.info("coordinators", instances=sorted(instances), shards=len(self.fences))
                self.instances = instances
            share = -(-SHARDS // max(1, len(instances)))
            for shard in self.held[share:]:
                await self._give_back(shard, settled)
            if trio.current_time() >= self._patient_until:
                await self._take_free(share)
        except Transient as error:
            if self.reachable or not self.fences:
                log.warning("shards_kept_without_leases", code=error.code, detail=error.detail, shards=len(self.fences))
            self.reachable = False
        else:
            self.reachable = True

    async def _bind(self) -> None:
        """Shards are divided among those who share the store, and nobody else: another's coordinators would hold shards whose
        jobs they do not know. Raises `Misconfigured` when that shows at the start."""
        if self._store_is is None:
            self._store_is = await self._store.identity()
        if await self._streams.bind(self._store_is, _BOUND_LEASES * self._lease_s):
            self._bound = True
            return
        why = "coordinators with another store are at work on this server under this prefix"
        if not self._bound:
            raise Misconfigured("redis.prefix", f"{why}: share their data_dir, or take another prefix")
        log.error("streams_are_of_another_store", why=why)
        raise Transient(UNREACHABLE, why)

    def _be_patient(self) -> None:
        """The server has been away, or has forgotten: the others come for what is theirs before anybody takes it as free."""
        self._patient_until = trio.current_time() + self._lease_s

    async def _take_free(self, share: int) -> None:
        # Each begins elsewhere, so that two who start together do not ask for the same ones.
        first = sum(self.instance.encode()) % SHARDS
        for shard in [*range(first, SHARDS), *range(first)]:
            if len(self.fences) >= share:
                return
            if shard not in self.fences:
                await self._acquire(shard)

    async def _regain(self, shard: int) -> None:
        """The lease ran out, or the server has lost it: ours again, unless another was first."""
        self._be_patient()
        if await self._acquire(shard) is False:
            self._lose(shard, "lease lost")

    async def _acquire(self, shard: int) -> bool | None:
        """Lease and fence; False when another has the lease, None when the store is away. Raises `Transient` for the streams."""
        name, floor = _lease(shard), 0
        for raised in (*_RAISES, None):
            token = await self._streams.acquire(name, self._lease_s, floor=floor)
            if token is None:
                return False
            try:
                if await self._claim(shard, token):
                    return True
            except Transient as error:
                log.warning("shard_not_claimed", shard=shard, code=error.code)
                await self._streams.release(name, token)
                return None
            # The streams' server has lost its tokens, and its time is behind what it was; or another came between.
            log.warning("shard_claim_refused", shard=shard, token=token)
            await self._streams.release(name, token)
            if raised is None:
                break
            floor = token + raised
        return False

    async def _claim(self, shard: int, token: int) -> bool:
        now, new = int(self._clock.now()), shard not in self.fences
        unwatched_since = await self._store.watched_at(shard)
        if not await self._store.claim_shard(shard, token, now):
            return False
        if unwatched_since is not None and now - unwatched_since > GAP_S:
            log.warning("shard_was_unwatched", shard=shard, seconds=now - unwatched_since)
            self._gaps.append(Gap(f"shard:{shard}", unwatched_since, now))
        self.takeovers += new
        self.fences[shard] = token
        self._to_load.setdefault(shard, not new)
        self._tell()
        return True

    async def _give_back(self, shard: int, settled: Callable[[], Awaitable[None]]) -> None:
        token = self.fences[shard]
        self._drop([shard])
        with trio.move_on_after(_SETTLE_S):
            await settled()
            await self._touch([shard])
            await self._streams.release(_lease(shard), token)

    def _lose(self, shard: int, why: str) -> None:
        log.warning("shard_lost", shard=shard, why=why)
        self.losses += 1
        self._drop([shard])

    def _drop(self, shards: Sequence[int]) -> None:
        """Their jobs fire here no more."""
        for shard in shards:
            self.fences.pop(shard, None)
            self._to_load.pop(shard, None)
            self._loaded.pop(shard, None)
        self._take_out(frozenset(shards))

    def _take_out(self, gone: frozenset[int]) -> None:
        for scheduler in self._schedulers.values():
            for job_id in scheduler.jobs():
                if shard_of(job_id) in gone:
                    scheduler.remove(job_id)

    async def _leave(self, settled: Callable[[], Awaitable[None]]) -> None:
        held = dict(self.fences)
        self._drop(list(held))
        await settled()
        await self._touch(list(held))
        try:
            for shard, token in held.items():
                await self._streams.release(_lease(shard), token)
            await self._streams.leave(self.instance)
        except Transient as error:
            log.warning("leases_not_released", code=error.code, detail=error.detail, shards=len(held))

    async def _touch(self, shards: Sequence[int]) -> None:
        try:
            await self._store.touch_shards(shards, int(self._clock.now()))
        except Transient as error:
            log.warning("shards_not_touched", code=error.code)

    # what is read anew

    async def _follow(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Jobs that other coordinators announce; ready when it listens, or cannot. What may have been missed is read anew."""
        waiting = True
        while True:
            try:
                async with self._streams.news() as news:
                    self._to_load.update(dict.fromkeys(self.fences, True))
                    self._tell()
                    if waiting:
                        waiting = False
                        task_status.started()
                    async for job_id in news:
                        self.reread(job_id)
            except Transient as error:
                log.debug("announcements_interrupted", code=error.code, detail=error.detail)
            if waiting:
                waiting = False
                task_status.started()
            await trio.sleep(_RETRY_S)

    async def _load_all(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        waiting = True
        while True:
            while self._to_load:
                shard, before = next(iter(self._to_load.items()))
                token = self.fences.get(shard)
                del self._to_load[shard]
                try:
                    if token is not None:
                        await self._load(shard, token, before=before)
                except Transient as error:
                    log.warning("jobs_not_loaded", shard=shard, code=error.code)
                    if shard in self.fences:
                        self._to_load.setdefault(shard, True)
                    await trio.sleep(_RETRY_S)
            if waiting:
                waiting = False
                task_status.started()
            await self._work.wait()

    async def _load(self, shard: int, token: int, *, before: bool) -> None:
        """Puts in the shard's jobs as the store has them, page by page, and takes out those that are there no more."""
        if self._changes is None:
            self._changes, _ = await self._store.changed_jobs(None)
        seen: set[int] = set()
        after: int | None = None
        while True:
            async with self._lock:
                page = await self._store.planned(shard, after, _PAGE)
                if self.fences.get(shard) != token:
                    return  # lost meanwhile; or claimed anew, and then loaded anew
                for planned in page:
                    self._put(planned.job_id, planned)
                    seen.add(planned.job_id)
            if len(page) < _PAGE:
                break
            after = page[-1].job_id
        if before:
            for scheduler in self._schedulers.values():
                for job_id in scheduler.jobs():
                    if shard_of(job_id) == shard and job_id not in seen:
                        await self._apply(job_id)
        elif len(seen) >= _MANY:
            gc.collect(1)
            gc.freeze()  # jobs stay: a full collection that walks over 20,000 of them stops the loop for 0.3 s
        if self.fences.get(shard) == token:
            self._loaded[shard] = token
        log.info("shard_loaded", shard=shard, jobs=len(seen))

    async def _read_all(self) -> None:
        while True:
            while self._to_read:
                job_id = next(iter(self._to_read))
                del self._to_read[job_id]
                try:
                    await self._apply(job_id)
                except Transient as error:
                    log.warning("job_not_applied", job_id=str(job_id), code=error.code)
                    self._to_read[job_id] = None
                    await trio.sleep(_RETRY_S)
            await self._work.wait()

    async def _announce_all(self) -> None:
        while True:
            while self._to_announce:
                job_id = next(iter(self._to_announce))
                del self._to_announce[job_id]
                try:
                    await self._streams.announce(job_id)
                except Transient:
                    self._to_announce[job_id] = None
                    await trio.sleep(_RETRY_S)
            await self._work.wait()

    async def _upkeep(self) -> None:
        while True:
            now, held = self._clock.now(), self.held
            if self._looked is not None and now - self._looked > GAP_S:  # the machine slept, or the process was stopped
                self._gaps += [Gap(f"shard:{shard}", int(self._looked), int(now)) for shard in held]
            self._looked = now
            try:
                while self._gaps:
                    await self._store.add_gap(self._gaps[0])
                    del self._gaps[0]
                await self._store.touch_shards(held, int(now))
                for shard in held:
                    await self._expire(shard, int(now))
                await self._catch_up()
            except Transient as error:
                log.warning("shards_not_touched", code=error.code)
            await trio.sleep(TOUCH_S)

    async def _catch_up(self) -> None:
        """Changes to jobs that nobody announced: whoever wrote them may have died before, or the announcement was lost."""
        if self._changes is None:
            return
        newest, changed = await self._store.changed_jobs(self._changes)
        if changed is None:
            self._to_load.update(dict.fromkeys(self.fences, True))
        for job_id in changed or ():
            if shard_of(job_id) in self.fences:
                planned = await self._store.planned_job(job_id)
                if self._applied.get(job_id, -1) != (planned.revision if planned is not None else None):
                    self.reread(job_id)
        self._changes, self._applied = newest, {}
        self._tell()

    async def _expire(self, shard: int, now: int) -> None:
        while True:
            expired = await self._store.expire_jobs(shard, now, _EXPIRED)
            for job_id in expired:
                self._put(job_id, None)
                if (following := await self._store.linked_to(job_id)) is not None:
                    await self.job_changed(following.id)
            if len(expired) < _EXPIRED:
                return

    def _tell(self) -> None:
        self._work.set()
        self._work = trio.Event()


def _lease(shard: int) -> str:
    return f"shard:{shard}"
