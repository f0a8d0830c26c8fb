"""Drives one task: an attempt is signed, stored, published, acknowledged and executed, or the next keeper has its turn.

Every attempt's authorisation is valid until its deadline whatever the coordinator thinks of it, so the next one begins
after it: two performers never race. All waiting is for news in the store, so that a restart, or another coordinator,
resumes where it was; the bytes that are published are the stored ones.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from consensus import runs
from consensus.errors import Failed
from consensus.lifecycle import PERFORMER_FAULTS, REASONS, UNEXECUTED, TaskState
from consensus.messages import Task as TaskMessage
from coordinator.authorising import Authoriser
from coordinator.definitions.posted import DYNAMIC
from coordinator.line import Held, Line
from coordinator.news import Teller
from coordinator.runs import ran
from coordinator.scoring import Need, Standing
from coordinator.signals import Signals, first_of
from coordinator.store.port import Store
from coordinator.store.records import Attempt, Task, TaskChange
from node.infra.chain import Chain
from node.infra.clock import Clock
from p2p.network import Network
from p2p.topics import TASKS

log = structlog.get_logger(__name__)

S = TaskState
_CONFIRM_POLL_S = 1.0
_ALONE_LOOK_S = 10.0
_SHARED_LOOK_S = 1.0  # another coordinator's news come through the store only
_LOOKS = 500  # of all tasks together a second, so that thousands in hand do not keep the store busy
_NOT_SAID = frozenset({"NO_ACKNOWLEDGEMENT", "NO_EXECUTION", "NO_QUORUM", "REORGANISED"})  # ends that no keeper's word brought
_CERTIFICATE_S = 15.0  # for a certificate of the last second to come
_WITNESSES = 2  # keepers who must call a task hopeless before it is: one alone could be lying


@dataclass(frozen=True, slots=True)
class DispatchPolicy:
    """Seconds. `retries` are the pauses before each further attempt; `window` is how long an authorisation is valid;
    `settle` how long after a deadline a quiet chain may still surprise us."""

    ack_timeout: float = 30.0
    retries: tuple[float, ...] = (1.0, 2.0, 4.0)
    window: float = 60.0
    settle: float = 15.0


class Attempts:
    """`drive` brings one task from wherever it is to executed or failed."""

    def __init__(
        self,
        store: Store,
        network: Network,
        chains: Mapping[int, Chain],
        line: Line,
        authorise: Authoriser,
        signals: Signals,
        teller: Teller,
        clock: Clock,
        policy: DispatchPolicy,
        *,
        ended: Callable[[int], Awaitable[None]],
        alone: Callable[[], bool] = lambda: True,
        on_published: Callable[[Task, float], None] = lambda task, at: None,
    ) -> None:
        """`ended` is told the job of each task that ended here, `on_published` of each task's first publication (UTC seconds)."""
        self._store = store
        self._network = network
        self._chains = chains
        self._line = line
        self._authorise = authorise
        self._signals = signals
        self._teller = teller
        self._clock = clock
        self._policy = policy
        self._ended = ended
        self._alone = alone
        self._on_published = on_published
        self._waiting = 0

    async def drive(self, task_id: int) -> None:
        """Returns once the task has executed or ended. Raises `Transient` when store or chain are away: call again."""
        held: Held | None = None
        try:
            while True:
                task = await self._store.task(task_id)
                if task is None or task.state not in UNEXECUTED:
                    if task is not None and task.ended:
                        await self._ended(task.job_id)
                    return
                held = held or Held(self._line, task.chain_id)
                attempts = await self._store.attempts(task_id)
                if attempts and attempts[-1].ended_ms is None:
                    held.take(attempts[-1].performer)
                    await self._follow(task, attempts[-1], last=len(attempts) > len(self._policy.retries))
                    ended = await self._current(attempts[-1])
                    if ended.ended_ms is not None and ended.code not in _NOT_SAID:
                        held.rest(ended.deadline)
                    held.drop()
                else:
                    held.drop()
                    await self._next(task, attempts, held)
        finally:
            if held is not None:
                held.drop()

    async def fail(self, task_id: int, code: str, detail: str = "") -> bool:
        """The task ends with this reason, unless it has executed or ended. No further attempt is made; an authorisation
        that is out already may still execute, once."""
        task = await self._store.task(task_id)
        if task is None or task.state not in UNEXECUTED:
            return False
        failed = await self._fail(task, code, detail)
        await self._ended(task.job_id)
        return failed

    # --- the next attempt

    async def _next(self, task: Task, attempts: Sequence[Attempt], held: Held) -> None:
        job = await self._store.job(task.job_id)
        chain = self._chains.get(task.chain_id)
        if job is None or not job.active:
            await self._fail(task, "JOB_INACTIVE")
        elif chain is None:
            await self._fail(task, "UNSUPPORTED_JOB", f"chain {task.chain_id} is not configured here")
        elif len(attempts) > len(self._policy.retries) or _hopeless(attempts):
            await self._fail(task, attempts[-1].code, attempts[-1].detail)
        else:
            if attempts:
                ended = (attempts[-1].ended_ms or 0) / 1000
                await self._clock.sleep_until(ended + self._policy.retries[len(attempts) - 1])
            need = Need(job.definition, sandbox=job.definition in DYNAMIC, tried=frozenset(a.performer for a in attempts))
            keeper = await self._line.place(task.chain_id, need, task.priority, task.scheduled_at)
            if isinstance(keeper, str):
                await self._fail(task, keeper)
            else:
                held.given(keeper.address)
                await self._assign(task, chain, attempts, keeper)

    async def _assign(self, task: Task, chain: Chain, attempts: Sequence[Attempt], keeper: Standing) -> None:
        current, job = await self._store.task(task.id), await self._store.job(task.job_id)  # it may have waited long
        if current is None or current.state not in UNEXECUTED:
            return
        if job is None or not job.active:
            await self._fail(task, "JOB_INACTIVE")
            return
        try:
            attempt, max_fee = await self._authorise(task, job, chain, attempts, keeper)
        except Failed as error:
            await self._fail(task, error.code, error.detail)
            return
        stages = {"dispatched": attempt.created_ms}
        step = TaskChange(task.id, (S.DISPATCHED,), attempt=attempt.number, predicted_cost=max_fee, stages=stages)
        after = await self._store.add_attempt(attempt, step, self._now_s())
        if after is not None:
            self._teller.tell("retry" if attempts else "dispatched", after)

    # --- an attempt under way

    async def _follow(self, task: Task, attempt: Attempt, *, last: bool) -> None:
        """Publishes, and returns when the attempt has ended or the task has gone on without it."""
        taken_back = task.state is S.EXECUTING  # it did execute, and a reorganisation took it back: its keeper sends again
        if attempt.acknowledged_ms is None and not taken_back and await self._acknowledged(task, attempt):
            await self._experienced(task, attempt)
            return
        current = await self._current(attempt)
        if current.ended_ms is None:
            code = "NO_EXECUTION" if current.acknowledged_ms is not None else "NO_ACKNOWLEDGEMENT"
            code = "REORGANISED" if taken_back else code
            # Silence is enough to ask the next keeper, whose window opens after this one's. The last attempt must not be
            # called failed while somebody may still execute it.
            if (code == "NO_ACKNOWLEDGEMENT" and not last) or not await self._executed_by_deadline(task, current):
                if not await self._reported(task.id, attempt):
                    await self._end(task, current, code)
                elif not await self._went_on(task.id, attempt, _rounds_end(attempt)):
                    await self._end(task, current, "NO_QUORUM")
        await self._experienced(task, attempt)

    async def _executed_by_deadline(self, task: Task, attempt: Attempt) -> bool:
        """Whether the task went on, or the attempt ended, by its deadline or what the chain shows thereafter."""
        return await self._went_on(task.id, attempt, attempt.deadline) or not await self._nothing_executed(task, attempt)

    async def _reported(self, task_id: int, attempt: Attempt) -> bool:
        """Whether its keeper said that the script asks for no transaction, which a committee may confirm until its rounds end."""
        task = await self._store.task(task_id)
        return task is not None and ran(attempt.number) in task.stages

    async def _end(self, task: Task, attempt: Attempt, code: str) -> None:
        fault = code in PERFORMER_FAULTS
        await self._store.end_attempt(task.id, attempt.number, code, REASONS[code].text, self._now_ms(), fault=fault)
        log.warning(
            "attempt_ended", task_id=str(task.id), attempt=attempt.number, code=code, keeper="0x" + attempt.performer.hex()
        )

    async def _experienced(self, task: Task, attempt: Attempt) -> None:
        """What this attempt says of its keeper."""
        current, after = await self._current(attempt), await self._store.task(task.id)
        if current.ended_ms is not None:
            if current.code in PERFORMER_FAULTS:
                self._line.ended(task.chain_id, attempt.performer, executed=False)
        elif after is not None and after.executed_at is not None and after.performer == attempt.performer:
            self._line.ended(task.chain_id, attempt.performer, executed=True)
            await self._disproved(task, attempt)
        elif after is not None and after.state is S.NOT_EXECUTED and after.performer == attempt.performer:
            self._line.ended(task.chain_id, attempt.performer, executed=True)  # it did what there was to do
        if current.acknowledged_ms is not None and current.published_ms is not None:
            seconds = max(0, current.acknowledged_ms - current.published_ms) / 1000
            self._line.acknowledged(task.chain_id, attempt.performer, seconds)

    async def _disproved(self, task: Task, executed: Attempt) -> None:
        """Who refused for a cause that is nobody's fault was wrong when another then executed: it counts like a fault, or
        refusing everything would be a way to keep the best score."""
        for former in await self._store.attempts(task.id):
            said = former.code == "NO_QUORUM"  # that there was nothing to execute, and no committee found so
            blameless = said or (former.code and former.code not in PERFORMER_FAULTS | _NOT_SAID)
            if former.number < executed.number and blameless and former.performer != executed.performer:
                self._line.ended(task.chain_id, former.performer, executed=False)

    async def _acknowledged(self, task: Task, attempt: Attempt) -> bool:
        """Publishes until the keeper answers or its time is up. True when the task went on or the attempt ended meanwhile."""
        message = TaskMessage.decode(attempt.message)
        until = min(self._clock.now() + self._policy.ack_timeout, float(attempt.deadline))
        pause = self._policy.ack_timeout / 3  # twice more for a mesh that was not yet formed, or a keeper that restarts
        while (now := self._clock.now()) < until:
            await self._network.publish(TASKS, message)
            if attempt.number == 1 and attempt.published_ms is None:
                self._on_published(task, now)
            await self._store.mark_published(task.id, attempt.number, self._now_ms())
            if await self._went_on(task.id, attempt, min(now + pause, until), acknowledged=True):
                current = await self._current(attempt)
                return current.ended_ms is not None or current.acknowledged_ms is None
        return False

    async def _went_on(self, task_id: int, attempt: Attempt, until: float, *, acknowledged: bool = False) -> bool:
        """Waits for news until then. True when the task executed or ended, the attempt ended, or (if asked) was acknowledged."""
        while True:
            news = self._signals.of(task_id)
            task, current = await self._store.task(task_id), await self._current(attempt)
            if task is None or task.state not in UNEXECUTED or current.ended_ms is not None:
                return True
            if acknowledged and current.acknowledged_ms is not None:
                return True
            now = self._clock.now()
            if now >= until:
                return False
            look = min(until, now + (_ALONE_LOOK_S if self._alone() else max(_SHARED_LOOK_S, self._waiting / _LOOKS)))
            self._waiting += 1
            try:
                await first_of(news.wait, partial(self._clock.sleep_until, look))
            finally:
                self._waiting -= 1

    async def _nothing_executed(self, task: Task, attempt: Attempt) -> bool:
        """After the deadline: whether the chain says, or its silence means, that this attempt has executed nothing."""
        chain = self._chains[task.chain_id]
        while True:
            head = await chain.head()  # before the record: what is not there after a head past the deadline never will be
            executed = await chain.execution(task.id) is not None
            over = head.timestamp > attempt.deadline or self._clock.now() >= attempt.deadline + self._policy.settle
            if over and not executed:
                return True
            if await self._went_on(task.id, attempt, self._clock.now() + _CONFIRM_POLL_S):
                return False

    async def _current(self, attempt: Attempt) -> Attempt:
        return next(a for a in await self._store.attempts(attempt.task_id) if a.number == attempt.number)

    async def _fail(self, task: Task, code: str, detail: str = "") -> bool:
        step = TaskChange(
            task.id, (S.FAILED,), reason=code, detail=detail or REASONS[code].text, stages={"failed": self._now_ms()}
        )
        after = await self._store.change(step, self._now_s())
        if after is None:
            return False
        log.warning("task_failed", task_id=str(task.id), job_id=str(task.job_id), code=code, detail=step.detail)
        self._teller.tell("failed", after)
        self._signals.notify(task.id)
        return True

    def _now_ms(self) -> int:
        return self._clock.now_ns() // 1_000_000

    def _now_s(self) -> int:
        return int(self._clock.now())


def _rounds_end(attempt: Attempt) -> float:
    """When nobody can certify its run any more, and the last certificate has had its way."""
    return runs.opens(TaskMessage.decode(attempt.message), runs.ROUNDS) + _CERTIFICATE_S


def _hopeless(attempts: Sequence[Attempt]) -> bool:
    """Whether enough different keepers have refused for a cause that another keeper shares."""
    refusals = {a.performer for a in attempts if a.code in REASONS and not REASONS[a.code].transient}
    return len(refusals) >= _WITNESSES
