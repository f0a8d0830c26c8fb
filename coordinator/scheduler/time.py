"""Fires time jobs: each due second once, a little ahead, whatever happened to the process in between."""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from consensus import codec, schedules
from consensus.errors import Transient
from consensus.lifecycle import TaskState
from coordinator.signals import first_of
from coordinator.store.port import Store
from coordinator.store.records import Firing, Planned, Task
from node.infra.clock import Clock

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

log = structlog.get_logger(__name__)

MISSED_AFTER_S = 10.0
"""A second this late was missed, not delayed: of all that are late only the last is then run (`run_once`)."""
_PAGE = 1000
_BATCH = 256  # firings of one transaction: bounds how long the store is held
_STORE_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Step:
    """What a job's schedule asks for now: seconds to fire in order, how many were missed, and the next due second."""

    due: tuple[int, ...]
    skipped: int
    next_due: int | None


def step(planned: Planned, now: float, lookahead: float) -> Step:
    """From the job's next due second up to `now + lookahead`."""
    first, skipped = planned.next_due, 0
    if first < now - MISSED_AFTER_S:
        last = schedules.last_due(planned.trigger, int(now), created_at=planned.created_at, time_frame=planned.time_frame)
        if last is not None and last > first:
            skipped = (last - first) // planned.trigger.interval
            first = last
    due: list[int] = []
    following: int | None = first
    while following is not None and following <= now + lookahead:
        due.append(following)
        following = schedules.next_due(planned.trigger, following, created_at=planned.created_at, time_frame=planned.time_frame)
    return Step(tuple(due), skipped, following)


class TimeScheduler:
    """A heap of active jobs by the moment they need attention. The store decides: a second that has its task gets no other."""

    def __init__(self, store: Store, clock: Clock, fire: Callable[[int], Awaitable[None]], *, lookahead: float) -> None:
        self._store = store
        self._clock = clock
        self._fire = fire
        self._lookahead = lookahead
        self._planned: dict[int, Planned] = {}
        self._heap: list[tuple[float, int]] = []
        self._changed = trio.Event()
        self.fired = 0
        self.skipped = 0

    def __len__(self) -> int:
        return len(self._planned)

    def add(self, planned: Planned) -> None:
        """A job that is in the store; takes effect at once."""
        self._planned[planned.job_id] = planned
        heapq.heappush(self._heap, (planned.next_due - self._lookahead, planned.job_id))
        self._changed.set()

    def remove(self, job_id: int) -> None:
        """The job fires no more."""
        self._planned.pop(job_id, None)  # its entry in the heap is passed over when it comes up

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fires until cancelled; ready when every active job is loaded."""
        await self._load()
        task_status.started()
        for task in await self._store.open_tasks():
            if task.state is TaskState.CREATED:  # stored by a run that ended before it could hand the task over
                await self._fire(task.id)
        while True:
            self._changed = trio.Event()
            batch = self._ready()
            if batch:
                await self._advance(batch)
            elif self._heap:
                moment = self._heap[0][0]
                await first_of(self._changed.wait, partial(self._clock.sleep_until, moment))
            else:
                await self._changed.wait()

    async def _load(self) -> None:
        self._planned.clear()
        self._heap.clear()
        after: int | None = None
        while page := await self._store.planned(after, _PAGE):
            for planned in page:
                if planned.job_id not in self._planned:
                    self.add(planned)
            after = page[-1].job_id

    def _ready(self) -> list[Planned]:
        now = self._clock.now()
        batch: dict[int, Planned] = {}
        while self._heap and self._heap[0][0] <= now and len(batch) < _BATCH:
            moment, job_id = heapq.heappop(self._heap)
            planned = self._planned.get(job_id)
            if planned is not None and planned.next_due - self._lookahead <= moment:
                batch[job_id] = planned
        return list(batch.values())

    async def _advance(self, batch: list[Planned]) -> None:
        now = self._clock.now()
        steps = {planned.job_id: step(planned, now, self._lookahead) for planned in batch}
        firings = [firing for planned in batch for firing in self._firings(planned, steps[planned.job_id])]
        try:
            fresh = await self._store.fire(firings, int(now))
        except Transient as error:
            log.warning("store_unavailable", code=error.code, detail=error.detail)
            await trio.sleep(_STORE_RETRY_S)
            for planned in batch:
                if self._planned.get(planned.job_id) is planned:  # not deleted meanwhile
                    self.add(planned)
            return
        for planned in batch:
            self._plan(planned, steps[planned.job_id])
        for firing, new in zip(firings, fresh, strict=True):
            if new and firing.task is not None:
                self.fired += 1
                await self._fire(firing.task.id)
        for planned in batch:
            if steps[planned.job_id].next_due is None:  # completes it, unless tasks are open: then the last of them does
                await self._store.complete_job(planned.job_id, int(now))

    def _plan(self, planned: Planned, taken: Step) -> None:
        if taken.skipped:
            self.skipped += taken.skipped
            log.warning("due_seconds_missed", job_id=str(planned.job_id), missed=taken.skipped, policy="run_once")
        if self._planned.get(planned.job_id) is not planned:
            return  # deleted, or posted anew, while the store was at work
        if taken.next_due is not None:
            self.add(replace(planned, next_due=taken.next_due))
            return
        self.remove(planned.job_id)

    def _firings(self, planned: Planned, taken: Step) -> list[Firing]:
        """One for each due second; the job's schedule moves with each, so that a crash between repeats nothing."""
        following = [*taken.due[1:], taken.next_due]
        return [
            Firing(planned.job_id, self._task(planned, second), after) for second, after in zip(taken.due, following, strict=True)
        ]

    def _task(self, planned: Planned, second: int) -> Task:
        created_ms = self._clock.now_ns() // 1_000_000
        return Task(
            id=codec.task_id(planned.job_id, second),
            job_id=planned.job_id,
            chain_id=planned.chain_id,
            trigger_id=second,
            definition=planned.definition,
            created_at_ms=created_ms,
            trace_id=planned.trace_id,
            stages={"due": second * 1000, "created": created_ms},
        )
