"""Gives each task to one keeper after another until one executes it: signed, stored, published, acknowledged, or given up.

Every attempt's authorisation is valid until its deadline whatever the coordinator thinks of it, so the next one begins
after it: two performers never race. All waiting is for news in the store, so that a restart resumes where it was.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
import trio

from consensus import ecdsa, rules
from consensus.codec import keccak
from consensus.errors import Ignore
from consensus.lifecycle import REASONS, TaskState
from consensus.messages import Acknowledgement, Authorisation, Refusal, Uint256, spec_digest
from consensus.messages import Task as TaskMessage
from consensus.rules import Facts
from coordinator.guard import Guard
from coordinator.keepers import Candidate, Keepers, choose
from coordinator.signals import Signals, first_of
from coordinator.store.port import Store
from coordinator.store.records import Attempt, Job, Task, TaskChange
from node.infra.chain import Chain
from node.infra.clock import Clock
from node.infra.secret import Secret
from p2p.network import Network, PeerId
from p2p.topics import ANSWERS, TASKS, Answer, Taken

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

log = structlog.get_logger(__name__)

S = TaskState
UNEXECUTED = frozenset({S.CREATED, S.DISPATCHED, S.ACKNOWLEDGED, S.EXECUTING})
"""States in which a task still needs a keeper."""

_IN_FLIGHT = 4096  # each waits most of its life in a few kilobytes; beyond this the rest wait their turn in the store
_QUEUE = 1024  # tasks of one batch of the scheduler, and room
_KEEPER_PATIENCE_S = 130.0  # two check-ins of a minute, and room
_KEEPER_POLL_S = 1.0
_DEFECTS = 4  # of ours that one task may meet before it ends with that reason
_CONFIRM_POLL_S = 1.0
_WITNESSES = 2  # keepers who must call a task hopeless before it is: one alone could be lying


@dataclass(frozen=True, slots=True)
class DispatchPolicy:
    """Seconds. `retries` are the pauses before each further attempt; `window` is how long an authorisation is valid;
    `settle` how long after a deadline a quiet chain may still surprise us."""

    ack_timeout: float = 30.0
    retries: tuple[float, ...] = (1.0, 2.0, 4.0)
    window: float = 60.0
    settle: float = 15.0


class Dispatcher:
    """`take` a task and it ends executed or failed; `run` does the work."""

    def __init__(
        self,
        store: Store,
        network: Network,
        chains: Mapping[int, Chain],
        facts: Facts,
        keepers: Keepers,
        key: Secret[bytes],
        signals: Signals,
        guard: Guard,
        clock: Clock,
        policy: DispatchPolicy,
    ) -> None:
        self._store = store
        self._network = network
        self._chains = chains
        self._facts = facts
        self._keepers = keepers
        self._key = key
        self._signals = signals
        self._guard = guard
        self._clock = clock
        self._policy = policy
        self._send, self._receive = trio.open_memory_channel[int](_QUEUE)
        self._driven: set[int] = set()
        self._load: Counter[bytes] = Counter()
        self._turn: dict[bytes, int] = {}

    async def take(self, task_id: int) -> None:
        """A task that is in the store. Waits while too many are under way."""
        await self._send.send(task_id)

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Drives tasks until cancelled, those first that a former run left; ready when answers are heard."""
        room = trio.CapacityLimiter(_IN_FLIGHT)
        async with self._network.serve(ANSWERS, self._answer), trio.open_nursery() as nursery:
            task_status.started()
            unfinished = [t.id for t in await self._store.open_tasks() if t.state in UNEXECUTED]
            if unfinished:
                log.info("tasks_resumed", tasks=len(unfinished))
            for task_id in unfinished:
                await self._start(task_id, nursery, room)
            async for task_id in self._receive:
                await self._start(task_id, nursery, room)

    async def _start(self, task_id: int, nursery: trio.Nursery, room: trio.CapacityLimiter) -> None:
        if task_id in self._driven:
            return
        await room.acquire_on_behalf_of(task_id)
        self._driven.add(task_id)
        nursery.start_soon(self._driven_task, task_id, room)

    async def _driven_task(self, task_id: int, room: trio.CapacityLimiter) -> None:
        try:
            if not await self._guard("dispatch", self._drive, task_id, defects=_DEFECTS, task_id=str(task_id)):
                await self._guard("dispatch", self._fail_defective, task_id, defects=_DEFECTS, task_id=str(task_id))
        finally:
            self._driven.discard(task_id)
            self._signals.forget(task_id)
            room.release_on_behalf_of(task_id)

    async def _drive(self, task_id: int) -> None:
        """One task from wherever it is to executed or failed."""
        while True:
            task = await self._store.task(task_id)
            if task is None or task.state not in UNEXECUTED:
                return
            attempts = await self._store.attempts(task_id)
            if attempts and attempts[-1].ended_ms is None:
                await self._follow(task, attempts[-1], last=len(attempts) > len(self._policy.retries))
            else:
                await self._next(task, attempts)

    async def _fail_defective(self, task_id: int) -> None:
        task = await self._store.task(task_id)
        if task is not None:
            await self._fail(task, "INTERNAL")

    # --- the next attempt

    async def _next(self, task: Task, attempts: Sequence[Attempt]) -> None:
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
            keeper = await self._keeper(task, frozenset(a.performer for a in attempts))
            if keeper is None:
                await self._fail(task, "NO_KEEPER")
            else:
                await self._assign(task, job, chain, attempts, keeper)

    async def _keeper(self, task: Task, tried: frozenset[bytes]) -> Candidate | None:
        """Waits for one to come online, as long as two check-ins take."""
        until = max(task.trigger_id, self._clock.now()) + _KEEPER_PATIENCE_S
        while True:
            came = self._signals.of(("keepers", task.chain_id))
            keeper = choose(self._keepers.online(task.chain_id), tried, self._load, self._turn)
            if keeper is not None or self._clock.now() >= until:
                return keeper
            with trio.move_on_after(_KEEPER_POLL_S):  # a connection alone is no signal
                await came.wait()

    async def _assign(self, task: Task, job: Job, chain: Chain, attempts: Sequence[Attempt], keeper: Candidate) -> None:
        max_fee = await chain.quote(job.security, job.target.gas_limit)
        balance = await chain.balance(job.owner)
        if balance < max_fee:
            await self._fail(task, "INSUFFICIENT_BALANCE", f"{balance} wei deposited, up to {max_fee} are needed")
            return
        authorisation = self._authorisation(task, job, attempts, keeper, max_fee)
        signature = ecdsa.sign(self._key.reveal(), chain.domain.hub_digest(authorisation.struct_hash()))
        message = TaskMessage(task.chain_id, authorisation, signature, job.spec, task.trace_id).encode()
        attempt = Attempt(
            task_id=task.id,
            number=authorisation.attempt,
            performer=keeper.address,
            peer_id=keeper.peer_id,
            not_before=authorisation.not_before,
            deadline=authorisation.deadline,
            message=message,
            created_ms=self._now_ms(),
        )
        step = TaskChange(
            task.id, (S.DISPATCHED,), attempt=attempt.number, predicted_cost=max_fee, stages={"dispatched": attempt.created_ms}
        )
        self._turn[keeper.address] = max(self._turn.values(), default=0) + 1
        await self._store.add_attempt(attempt, step, self._now_s())

    def _authorisation(self, task: Task, job: Job, attempts: Sequence[Attempt], keeper: Candidate, max_fee: int) -> Authorisation:
        opens = max(task.trigger_id, self._now_s(), *(a.deadline + 1 for a in attempts))
        return Authorisation(
            job_id=Uint256(job.id),
            trigger_id=Uint256(task.trigger_id),
            attempt=len(attempts) + 1,
            performer=keeper.address,
            spec=spec_digest(job.spec),
            target=job.target.contract,
            selector=job.target.call[:4],
            call_hash=keccak(job.target.call),
            gas_limit=job.target.gas_limit,
            level=job.security,
            max_fee=Uint256(max_fee),
            not_before=opens,
            deadline=opens + math.ceil(self._policy.window),
        )

    # --- an attempt under way

    async def _follow(self, task: Task, attempt: Attempt, *, last: bool) -> None:
        """Publishes, and returns when the attempt has ended or the task has gone on without it."""
        self._load[attempt.performer] += 1
        try:
            if attempt.acknowledged_ms is None and await self._acknowledged(task, attempt):
                return
            attempt = await self._current(attempt)
            if attempt.ended_ms is not None:
                return
            code = "NO_EXECUTION" if attempt.acknowledged_ms is not None else "NO_ACKNOWLEDGEMENT"
            if code == "NO_EXECUTION" or last:  # the last one must not be called failed while somebody may still execute it
                if await self._went_on(task.id, attempt, attempt.deadline):
                    return
                if not await self._nothing_executed(task, attempt):
                    return
            await self._store.end_attempt(task.id, attempt.number, code, REASONS[code].text, self._now_ms())
            log.warning("attempt_ended", task_id=str(task.id), attempt=attempt.number, code=code, keeper=_hex(attempt.performer))
        finally:
            self._load[attempt.performer] -= 1

    async def _acknowledged(self, task: Task, attempt: Attempt) -> bool:
        """Publishes until the keeper answers or its time is up. True when the task went on or the attempt ended meanwhile."""
        message = TaskMessage.decode(attempt.message)
        until = min(self._clock.now() + self._policy.ack_timeout, float(attempt.deadline))
        pause = self._policy.ack_timeout / 3  # twice more for a mesh that was not yet formed, or a keeper that restarts
        while (now := self._clock.now()) < until:
            await self._network.publish(TASKS, message)
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
            if self._clock.now() >= until:
                return False
            await first_of(news.wait, lambda: self._clock.sleep_until(until))

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

    async def _fail(self, task: Task, code: str, detail: str = "") -> None:
        step = TaskChange(
            task.id, (S.FAILED,), reason=code, detail=detail or REASONS[code].text, stages={"failed": self._now_ms()}
        )
        if await self._store.change(step, self._now_s()):
            log.warning("task_failed", task_id=str(task.id), job_id=str(task.job_id), code=code, detail=step.detail)

    # --- what keepers answer

    async def _answer(self, answer: Answer, peer: PeerId) -> Taken:
        """Acknowledgements and refusals. Raises `Reject` for a signature that is not the performer's."""
        said = answer.acknowledgement or answer.refused()
        assert said is not None  # an Answer is one of the two
        attempt = next((a for a in await self._store.attempts(said.task_id) if a.number == said.attempt), None)
        if attempt is None:
            return Taken("UNKNOWN_TASK")
        if isinstance(said, Refusal):
            return await self._refused(said, attempt, peer)
        return await self._acknowledge(said, attempt)

    async def _acknowledge(self, said: Acknowledgement, attempt: Attempt) -> Taken:
        authorisation = TaskMessage.decode(attempt.message).authorisation
        try:
            rules.check_acknowledgement(said, authorisation, self._facts)
        except Ignore as error:
            return Taken(error.code)
        if await self._store.acknowledge(attempt.task_id, attempt.number, self._now_ms()) is None:
            return Taken("OTHER_ATTEMPT")
        self._signals.notify(attempt.task_id)
        return Taken()

    async def _refused(self, said: Refusal, attempt: Attempt, peer: PeerId) -> Taken:
        if self._facts.operator_of(said.chain_id, peer) != attempt.performer:
            return Taken("WRONG_PERFORMER")
        known = said.code in REASONS
        code = said.code if known else "INTERNAL"
        detail = said.detail if known else f"{said.code}: {said.detail}"
        if await self._store.end_attempt(attempt.task_id, attempt.number, code, detail, self._now_ms()):
            log.warning("attempt_refused", task_id=str(attempt.task_id), attempt=attempt.number, code=code, detail=detail[:200])
            self._signals.notify(attempt.task_id)
        return Taken()

    def _now_ms(self) -> int:
        return self._clock.now_ns() // 1_000_000

    def _now_s(self) -> int:
        return int(self._clock.now())


def _hopeless(attempts: Sequence[Attempt]) -> bool:
    """Whether enough different keepers have refused for a cause that another keeper shares."""
    refusals = {a.performer for a in attempts if a.code in REASONS and not REASONS[a.code].transient}
    return len(refusals) >= _WITNESSES


def _hex(address: bytes) -> str:
    return "0x" + address.hex()
