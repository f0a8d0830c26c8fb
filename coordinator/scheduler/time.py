"""Fires time jobs: each due second once, a little ahead, whatever happened to the process in between."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Final

import structlog
import trio

from consensus import codec, schedules
from consensus.errors import Transient
from consensus.runs import SCRIPTED
from consensus.triggers import Cron, Interval, Moments
from coordinator.scheduler.lateness import Lateness
from coordinator.scheduler.port import Fire
from coordinator.store.records import SHARDS, Fired, Firing, MissedPolicy, Planned, Task
from node.infra.clock import Clock

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

log = structlog.get_logger(__name__)

MISSED_AFTER_S: Final = 10.0
"""A second this late was missed, not delayed: what becomes of it and of all that are late with it is the job's policy."""
_BATCH = 256  # firings of one transaction: bounds how long the store is held
_CATCHING_UP = 64  # of these at most, as long as other jobs are on time
_SORTED_OUT = 4096  # entries looked at for one batch, a few milliseconds: after an outage everything is late at once
_COUNTED = 4_000  # due seconds of crontab lines counted for one batch, some 50 ms: a day of a minutely one is a thousand of them
_SPREAD_S = 1.0  # jobs are due at whole seconds: spread over the one before, each has its moment and the store no bursts
_SPREAD_STEPS = 1024
_GRAIN_S = 1e-6  # times of this size are a quarter of a microsecond apart: a moment that has come must not round to the future
_STORE_RETRY_S = 1.0
_SLACK = 1024  # stale entries that are not worth a sweep of the heap


@dataclass(frozen=True, slots=True)
class Step:
    """What a job's schedule asks for now: seconds to fire in order, how many were given up, and the next due second."""

    due: tuple[int, ...]
    skipped: int
    next_due: int | None


def step(planned: Planned, now: float, lookahead: float, limit: int = _BATCH) -> Step:
    """From the job's next due second up to `now + lookahead`, at most `limit` of them; the rest is the next step's.

    When the first of them was missed, all that are late by now are judged by the job's policy: `run_all` fires them, `run_once`
    fires the last of them, `skip` none. Seconds at or before `starts_at` are no one's.
    """
    trigger = planned.trigger
    assert isinstance(trigger, Interval | Cron | Moments)
    created_at, time_frame = planned.created_at, planned.time_frame

    def after(second: int) -> int | None:
        return schedules.next_due(trigger, second, created_at=created_at, time_frame=time_frame)

    second, skipped = planned.next_due, 0
    if second is not None and (
        second <= planned.starts_at or not schedules.is_due(trigger, second, created_at=created_at, time_frame=time_frame)
    ):  # watched from later on, or its schedule was changed while a step of the old one was being written
        second = after(max(planned.starts_at, second - 1))
    if second is not None and second < now - MISSED_AFTER_S and planned.missed is not MissedPolicy.RUN_ALL:
        last = schedules.last_due(trigger, int(now), created_at=created_at, time_frame=time_frame)
        assert last is not None  # `second` itself is due
        skipped = schedules.count_due(trigger, second, last, created_at=created_at, time_frame=time_frame)
        if planned.missed is MissedPolicy.RUN_ONCE:
            second, skipped = last, skipped - 1
        else:
            second = after(last)
    due: list[int] = []
    while second is not None and second <= now + lookahead and len(due) < limit:
        due.append(second)
        second = after(second)
    return Step(tuple(due), skipped, second)


_Entry = tuple[float, int, Planned, float]
"""When the job needs attention, a number that settles ties, the job, and since when (it may have come late)."""


@dataclass(frozen=True, slots=True)
class _Turn:
    """A job's part in a batch. `on_time` says that nothing of it was missed."""

    entry: _Entry
    step: Step
    firings: tuple[Firing, ...]
    on_time: bool


class TimeScheduler:
    """A heap of jobs by the moment they need attention (`coordinator.scheduler.port.Scheduler`).

    A job's moment is `lookahead` before its due second, `script_lead` more for a script's, and up to a second more, by its id.
    What was missed waits in a queue of its own, from which each batch takes a part: catching up holds nobody else up, and is not
    held up itself. `fired` counts new tasks,
    `skipped` due seconds given up by policy; `lateness` is of everything that was not missed.
    """

    def __init__(self, clock: Clock, fire: Fire, *, lookahead: float, script_lead: float = 0) -> None:
        self._clock = clock
        self._fire = fire
        self._lookahead = lookahead
        self._script_lead = script_lead
        self._watched: dict[int, Planned] = {}
        self._heap: list[_Entry] = []
        self._missed: deque[_Entry] = deque()
        self._numbers = count()
        self._resting = trio.CancelScope()
        self.lateness = Lateness()
        self.fired = 0
        self.skipped = 0

    def put(self, planned: Planned) -> None:
        """A job that is new here or has changed; takes effect at once. What it knew of the job before is replaced."""
        if self._watched.get(planned.job_id) is not planned:
            self._watch(planned, self._clock.now())

    def remove(self, job_id: int) -> None:
        """The job fires no more here; nothing happens when it is not known."""
        if self._watched.pop(job_id, None) is not None:
            self._sweep()

    def jobs(self) -> Sequence[int]:
        """Ids of the jobs it watches."""
        return list(self._watched)

    def __len__(self) -> int:
        return len(self._watched)

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fires until cancelled. While the store is away, everything waits."""
        task_status.started()
        while True:
            turns = self._turns(self._clock.now())
            if turns:
                await self._take(turns)
            elif self._missed or (self._heap and self._heap[0][0] <= self._clock.now()):
                await trio.lowlevel.checkpoint()  # only stale entries so far
            else:
                await self._rest()

    async def _rest(self) -> None:
        with trio.CancelScope() as self._resting:
            if self._heap:
                await self._clock.sleep_until(self._heap[0][0])
            else:
                await trio.sleep_forever()

    def _ahead(self, planned: Planned) -> float:
        spread = min(_SPREAD_S, self._lookahead) * (planned.job_id // SHARDS % _SPREAD_STEPS) / _SPREAD_STEPS
        return self._lookahead + spread + (self._script_lead if planned.definition in SCRIPTED else 0)

    def _watch(self, planned: Planned, since: float) -> None:
        """The entry that the job had is stale from here on: an entry counts while its job is the very one that is watched."""
        self._watched[planned.job_id] = planned
        moment = planned.next_due - self._ahead(planned) if planned.next_due is not None else since
        entry = (moment, next(self._numbers), planned, since)
        heapq.heappush(self._heap, entry)
        if self._heap[0] is entry:
            self._resting.cancel()
        self._sweep()

    def _sweep(self) -> None:
        """Memory is bounded by the jobs that are watched, however often they change."""
        if len(self._heap) + len(self._missed) > 2 * len(self._watched) + _SLACK:
            self._heap = [entry for entry in self._heap if self._counts(entry)]
            self._missed = deque(entry for entry in self._missed if self._counts(entry))
            heapq.heapify(self._heap)

    def _counts(self, entry: _Entry) -> bool:
        return self._watched.get(entry[2].job_id) is entry[2]

    def _turns(self, now: float) -> list[_Turn]:
        """The next batch: jobs whose moment has come, and then some that were missed."""
        turns: list[_Turn] = []
        try:
            self._fill(turns, now)
        except BaseException:  # a schedule that nobody can follow is dropped; the others' turns are not
            self._put_back(turns)
            raise
        return turns

    def _fill(self, turns: list[_Turn], now: float) -> None:
        room = _BATCH
        for _ in range(_SORTED_OUT):
            if not self._heap or self._heap[0][0] > now or room <= (_CATCHING_UP if self._missed else 0):
                break
            entry = heapq.heappop(self._heap)
            if not self._counts(entry):
                continue
            if entry[2].next_due is not None and entry[2].next_due < now - MISSED_AFTER_S:
                self._missed.append(entry)
                continue
            turns.append(turn := self._turn(entry, now, room, on_time=True))
            room -= max(1, len(turn.firings))
        counted = 0
        while self._missed and room > 0 and counted < _COUNTED:
            entry = self._missed.popleft()
            if self._counts(entry):
                turns.append(turn := self._turn(entry, now, min(room, _CATCHING_UP), on_time=False))
                room -= max(1, len(turn.firings))
                counted += turn.step.skipped if isinstance(entry[2].trigger, Cron) else 0

    def _put_back(self, turns: Sequence[_Turn]) -> None:
        """As it was; whether it is missed by then, the policy says then."""
        for turn in turns:
            heapq.heappush(self._heap, turn.entry)

    def _turn(self, entry: _Entry, now: float, limit: int, *, on_time: bool) -> _Turn:
        """The job's schedule moves with each firing, so that a crash between two batches repeats nothing."""
        planned = entry[2]
        taken = step(planned, now, self._ahead(planned) + _GRAIN_S, limit)
        following = [*taken.due[1:], taken.next_due] if taken.due else []
        firings = [
            Firing(planned.job_id, self._task(planned, second), next_due=after, spent=after is None, revision=planned.revision)
            for second, after in zip(taken.due, following, strict=True)
        ]
        if not firings and (taken.next_due is None or taken.next_due != planned.next_due):  # over, or moved on without a task
            after = taken.next_due
            firings = [Firing(planned.job_id, None, next_due=after, spent=after is None, revision=planned.revision)]
        return _Turn(entry, taken, tuple(firings), on_time)

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
            scheduled_at=second,
            priority=planned.priority,
            stages={"due": second * 1000, "created": created_ms},
        )

    async def _take(self, turns: Sequence[_Turn]) -> None:
        firings = [firing for turn in turns for firing in turn.firings]
        try:
            await trio.lowlevel.checkpoint()
            answers = iter(await self._fire(firings) if firings else ())
        except Transient as error:
            log.warning("store_unavailable", code=error.code, detail=error.detail, waiting=len(firings))
            self._put_back(turns)
            await trio.sleep(_STORE_RETRY_S)
            return
        except BaseException:
            self._put_back(turns)  # whoever begins `run` anew finds them
            raise
        now = self._clock.now()
        for turn in turns:
            self._settle(turn, [next(answers) for _ in turn.firings], now)

    def _settle(self, turn: _Turn, answers: Sequence[Fired], now: float) -> None:
        _, _, planned, since = turn.entry
        ahead = self._ahead(planned)
        for second, answer in zip(turn.step.due, answers, strict=False):
            if answer is Fired.NEW:
                self.fired += 1
                if turn.on_time:
                    self.lateness.add(max(0.0, now - max(second - ahead, since)))  # 0 when the clock was put back
        if Fired.INACTIVE in answers or Fired.FENCED in answers:
            if self._watched.get(planned.job_id) is planned:
                del self._watched[planned.job_id]
            return
        if turn.step.skipped:
            self.skipped += turn.step.skipped
            log.warning("due_seconds_missed", job_id=str(planned.job_id), missed=turn.step.skipped, policy=planned.missed.value)
        if self._watched.get(planned.job_id) is not planned:
            return  # removed, or put anew, while the store was at work
        if turn.step.next_due is None:
            del self._watched[planned.job_id]
        else:
            self._watch(replace(planned, next_due=turn.step.next_due), since)
