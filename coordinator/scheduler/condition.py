"""Fires condition jobs: once for each transition from not holding to holding, as the store's number of the edge decides."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Final

import structlog
import trio

from consensus import codec
from consensus.conditions import Condition, Move, OnCondition, move
from consensus.errors import Transient
from consensus.triggers import EdgeSeen
from coordinator.scheduler.port import Fire
from coordinator.scheduler.readings import Reading, Readings, SourceReader
from coordinator.store.records import Edge, EdgeStep, Fired, Firing, Gap, MissedPolicy, Planned, Task
from node.infra.clock import Clock

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

log = structlog.get_logger(__name__)

NEW_S: Final = 60.0
"""A job that began longer ago and comes here was watched elsewhere, or by nobody: with the policy `skip` what it is at then is
where it starts from."""
_BATCH = 256  # firings of one transaction: bounds how long the store is held
_AT_ONCE = 200  # jobs evaluated before others have the loop: about a millisecond
_MOST_STEPS = 8  # of one job waiting for the store; while it is away longer, what comes and goes is not kept
_MOST_GAPS = 10_000  # waiting for the store, which keeps no more
_STORE_RETRY_S = 1.0
_EXPIRED_EVERY_S = 60.0


class _Job:
    """A job that is watched. `edge` is what the store will have when the steps that wait have been written."""

    __slots__ = ("baseline", "condition", "edge", "held", "planned", "readings", "spent", "steps")

    def __init__(self, planned: Planned, condition: Condition, readings: tuple[Reading, ...], *, baseline: bool) -> None:
        self.planned = planned
        self.condition = condition
        self.readings = readings
        self.edge = planned.edge
        self.held = condition.begun(not planned.edge.armed)
        self.baseline = baseline
        self.spent = False
        self.steps = 0

    def knows(self, planned: Planned) -> bool:
        """Whether `planned` says nothing new: with steps on their way the store is behind, and that is no news."""
        return (self.steps > 0 or planned.edge == self.edge) and replace(planned, edge=self.planned.edge) == self.planned


@dataclass(frozen=True, slots=True)
class _Step:
    job: _Job
    firing: Firing


class ConditionScheduler:
    """Implements `coordinator.scheduler.port.Scheduler`.

    Sources are read every `interval` seconds (`Readings`); a job is evaluated when one of its values is another one. `fired`
    counts new tasks, `rearmed` conditions that fell back. `add_gap` is the store's: told when a source was not observed.
    """

    def __init__(
        self, sources: SourceReader, clock: Clock, fire: Fire, add_gap: Callable[[Gap], Awaitable[None]], *, interval: float
    ) -> None:
        self._clock = clock
        self._fire = fire
        self._add_gap = add_gap
        self._jobs: dict[int, _Job] = {}
        self._moved: dict[int, None] = {}
        self._steps: deque[_Step] = deque()
        self._gaps: dict[tuple[str, int], Gap] = {}
        self._work = trio.Event()
        self.readings = Readings(sources, clock, interval, moved=self._has_moved, gap=self._has_gap)
        self.fired = 0
        self.rearmed = 0
        self.evaluated = 0

    def put(self, planned: Planned) -> None:
        """A job that is new here or has changed; takes effect at once. What it knew of the job before is replaced."""
        assert isinstance(planned.trigger, OnCondition)
        before = self._jobs.get(planned.job_id)
        if before is not None and before.knows(planned):
            return
        condition = Condition(planned.trigger.root)
        readings = tuple(self.readings.watch(source, planned.job_id) for source in condition.sources)
        skips = before is None and planned.missed is MissedPolicy.SKIP and self._clock.now() - planned.starts_at > NEW_S
        job = self._jobs[planned.job_id] = _Job(planned, condition, readings, baseline=skips)
        if before is not None:
            if before.planned.trigger != planned.trigger:  # its hysteresis is for a condition that held, and this one never did
                job.held = condition.begun(False)
            for reading in set(before.readings).difference(readings):
                self.readings.drop(reading, planned.job_id)
        self._has_moved((planned.job_id,))

    def remove(self, job_id: int) -> None:
        """The job fires no more here; nothing happens when it is not known."""
        job = self._jobs.pop(job_id, None)
        if job is not None:
            for reading in job.readings:
                self.readings.drop(reading, job_id)

    def jobs(self) -> Sequence[int]:
        """Ids of the jobs it watches."""
        return list(self._jobs)

    def __len__(self) -> int:
        return len(self._jobs)

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watches until cancelled. While the store is away, steps wait for it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.readings.run)
            nursery.start_soon(self._evaluate_all)
            nursery.start_soon(self._write_all)
            nursery.start_soon(self._tell_gaps)
            nursery.start_soon(self._let_expire)
            task_status.started()

    # evaluation

    def _has_moved(self, jobs: Iterable[int]) -> None:
        self._moved.update(dict.fromkeys(jobs))
        self._wake()

    async def _evaluate_all(self) -> None:
        while True:
            while not self._moved:
                await self._work.wait()
            for job_id in [job_id for job_id, _ in zip(self._moved, range(_AT_ONCE), strict=False)]:
                del self._moved[job_id]
                if (job := self._jobs.get(job_id)) is not None:
                    self._evaluate(job)
            await trio.lowlevel.checkpoint()

    def _evaluate(self, job: _Job) -> None:
        if job.spent or job.steps >= _MOST_STEPS:  # evaluated again when a step has been written
            return
        now = self._clock.now()
        if int(now) > job.planned.expires_at:  # in its last second it may still fire
            self.remove(job.planned.job_id)  # the shard's holder completes it
            return
        self.evaluated += 1
        values = [reading.value for reading in job.readings]
        seen = job.condition.evaluate(values, job.held)
        job.held = seen.held
        match move(job.edge.armed, seen.truth):
            case Move.FIRE if job.baseline:
                log.info("edge_skipped", job_id=str(job.planned.job_id), policy=job.planned.missed.value)
                self._step(job, None, Edge(job.edge.number, armed=False))
            case Move.FIRE:
                number = job.edge.number + 1
                job.spent = not job.planned.recurring
                self._step(job, self._task(job.planned, number, values, now), Edge(number, armed=False))
            case Move.REARM:
                self._step(job, None, Edge(job.edge.number, armed=True))
        if seen.truth is not None:
            job.baseline = False

    def _step(self, job: _Job, task: Task | None, after: Edge) -> None:
        step = EdgeStep(expected=job.edge.number, after=after)
        job.edge = after
        job.steps += 1
        firing = Firing(job.planned.job_id, task, edge=step, spent=job.spent, revision=job.planned.revision)
        self._steps.append(_Step(job, firing))
        self._wake()

    def _task(self, planned: Planned, number: int, values: Sequence[Decimal | None], now: float) -> Task:
        created_ms = self._clock.now_ns() // 1_000_000
        return Task(
            id=codec.task_id(planned.job_id, number),
            job_id=planned.job_id,
            chain_id=planned.chain_id,
            trigger_id=number,
            definition=planned.definition,
            created_at_ms=created_ms,
            trace_id=planned.trace_id,
            scheduled_at=int(now),
            priority=planned.priority,
            observation=EdgeSeen(int(now), tuple("" if value is None else str(value) for value in values)),
            stages={"created": created_ms},
        )

    # writing

    async def _write_all(self) -> None:
        while True:
            while not self._steps:
                await self._work.wait()
            batch = [self._steps.popleft() for _ in range(min(_BATCH, len(self._steps)))]
            # In order; those of jobs that were removed or put anew meanwhile are nobody's.
            batch = [step for step in batch if self._is_watched(step.job)]
            try:
                answers = await self._fire([step.firing for step in batch]) if batch else ()
            except Transient as error:
                log.warning("store_unavailable", code=error.code, detail=error.detail, waiting=len(batch) + len(self._steps))
                self._steps.extendleft(reversed(batch))
                await trio.sleep(_STORE_RETRY_S)
                continue
            for step, answer in zip(batch, answers, strict=True):
                self._settle(step, answer)
            await trio.lowlevel.checkpoint()

    def _is_watched(self, job: _Job) -> bool:
        return self._jobs.get(job.planned.job_id) is job

    def _settle(self, step: _Step, answer: Fired) -> None:
        """KNOWN is another's step, or our own that was answered too late: whoever wrote firings then puts the job in anew."""
        job, firing = step.job, step.firing
        job.steps -= 1
        if answer is Fired.NEW:
            self.fired += firing.task is not None
            self.rearmed += firing.task is None
        if not self._is_watched(job):
            return
        if answer in (Fired.INACTIVE, Fired.FENCED) or (firing.spent and answer is Fired.NEW):
            self.remove(job.planned.job_id)
            return
        if answer is Fired.KNOWN:
            job.spent = False
        self._has_moved((firing.job_id,))

    # upkeep

    def _has_gap(self, gap: Gap) -> None:
        self._gaps[gap.scope, gap.began] = gap
        if len(self._gaps) > _MOST_GAPS:
            del self._gaps[next(iter(self._gaps))]
        self._wake()

    async def _tell_gaps(self) -> None:
        while True:
            while not self._gaps:
                await self._work.wait()
            key, gap = next(iter(self._gaps.items()))
            try:
                await self._add_gap(gap)
            except Transient as error:
                log.warning("gap_not_told", code=error.code)
                await trio.sleep(_STORE_RETRY_S)
            else:
                if self._gaps.get(key) == gap:
                    del self._gaps[key]

    async def _let_expire(self) -> None:
        """Conditions whose values never change are not evaluated again: their end is found here."""
        while True:
            await trio.sleep(_EXPIRED_EVERY_S)
            now = self._clock.now()
            for place, job_id in enumerate(self.jobs()):
                job = self._jobs.get(job_id)
                if job is not None and int(now) > job.planned.expires_at:
                    self.remove(job_id)
                if place % 1000 == 999:
                    await trio.lowlevel.checkpoint()

    def _wake(self) -> None:
        self._work.set()
        self._work = trio.Event()
