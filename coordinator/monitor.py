"""What became of each task, by the contracts' events and nobody's word; written with the checkpoint it was read at."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
import trio

from consensus.committee import MAX_ROUNDS
from consensus.errors import Transient
from consensus.lifecycle import REASONS, TaskState
from consensus.runs import SCRIPTED
from coordinator.news import Teller, kind_of
from coordinator.signals import Signals
from coordinator.store.port import Store
from coordinator.store.records import Task, TaskChange
from node.infra.chain import (
    Chain,
    ChainEvent,
    EventFeed,
    ExecutionRecord,
    ExecutionStatus,
    Head,
    JobDeleted,
    RegistryChanged,
    RunCharged,
    RunSkipped,
    TaskExecuted,
    TaskExpired,
    TaskValidated,
)
from node.infra.chain_feed import REWIND_BLOCKS
from node.infra.clock import Clock
from node.infra.observe import Observer

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

log = structlog.get_logger(__name__)

S = TaskState
_GRACE_ROUNDS = 2  # after the last round: one until anybody may expire the task, one for somebody to do it
_AWAITING = (S.EXECUTED, S.ATTESTED)
_RETRY_S = 1.0
_LATER = frozenset({"TooEarly", "InsufficientBalance", "RunAllowance"})  # why a run is not charged now, and may be later
_CHARGE_PATIENCE_S = 86_400  # for its owner to make a deposit


def change_of(
    event: ChainEvent, executed_at: int | None, now_ms: int, operators: Mapping[int, bytes], record: ExecutionRecord | None = None
) -> TaskChange | None:
    """What an event means for its task; None when it is not about one.

    `executed_at` is the time of the event's block, `operators` are addresses by id, `record` the hub's of a certified task.
    """
    match event:
        case TaskExecuted():
            return TaskChange(
                event.task_id,
                (S.EXECUTED,),
                stages={"executed": now_ms},
                number=event.number,
                cost=event.fee,
                executed_at=executed_at,
                execution_tx=event.place.tx_hash,
                performer=event.performer,
                performer_id=event.performer_id,
                successful=event.success,
            )
        case TaskValidated():
            reason = "" if event.accepted else "REFUSED_BY_COMMITTEE"
            return TaskChange(
                event.task_id,
                (S.CERTIFIED,) if event.accepted else (S.REJECTED,),
                reason=reason,
                detail=REASONS[reason].text if reason else "",
                accepted=event.accepted,
                stages={"certified" if event.accepted else "rejected": now_ms},
                number=event.number,
                performer_id=event.performer_id,
                attester_ids=event.attester_ids,
                proof=event.root,
                submission_tx=event.place.tx_hash,
                attesters=tuple(operators[i] for i in event.attester_ids if i in operators),
                rewards=rewards_of(event, record, operators) if record is not None and event.accepted else {},
            )
        case TaskExpired():
            return not_attested(event.task_id, now_ms)
        case RunCharged():
            return TaskChange(event.task_id, (), {"charged": now_ms}, cost=event.fee)
        case RunSkipped(reason=reason) if reason != "AlreadyCharged":
            return TaskChange(event.task_id, (), {"not_charged": now_ms}, cost=0)
    return None


def rewards_of(event: TaskValidated, record: ExecutionRecord, operators: Mapping[int, bytes]) -> dict[bytes, int]:
    """Wei that a certificate earned each operator, by the hub's rules (`Hub._owed`): the submitter its share, each attester
    one unit, the performer what is left of the fee."""
    shares = [(event.submitter_id, record.validation_share), *((i, record.attester_share) for i in event.attester_ids)]
    shares.append((event.performer_id, record.fee - sum(wei for _, wei in shares)))
    rewards: dict[bytes, int] = {}
    for operator_id, wei in shares:
        if operator_id in operators and wei > 0:
            address = operators[operator_id]
            rewards[address] = rewards.get(address, 0) + wei
    return rewards


def taken_back(task_id: int, now_ms: int) -> TaskChange:
    """A reorganisation took the execution back: its keeper is at it again, and after it another."""
    return TaskChange(task_id, (S.EXECUTING,), stages={"reorganised": now_ms})


def not_attested(task_id: int, now_ms: int) -> TaskChange:
    """No committee reached a quorum."""
    text = REASONS["NO_QUORUM"].text
    return TaskChange(task_id, (S.NOT_ATTESTED,), reason="NO_QUORUM", detail=text, stages={"not_attested": now_ms})


class Monitor:
    """Follows one chain from the store's checkpoint. Several coordinators may follow it: each effect is written once, by
    whoever is first, and every one of them signals it to its own parts."""

    def __init__(
        self,
        store: Store,
        chain: Chain,
        observer: Observer,
        signals: Signals,
        teller: Teller,
        clock: Clock,
        *,
        ended: Callable[[int], Awaitable[None]],
        dispatch: Callable[[Sequence[tuple[int, int]]], Awaitable[None]],
        settle: Callable[[int], Awaitable[None]],
    ) -> None:
        """`ended` is told the job of each task that ended, and jobs deleted on chain (`coordinator.endings`); `dispatch` tasks
        (id, priority) that need a keeper again; `settle` those with a script that the chain has moved (`coordinator.runs`)."""
        self._store = store
        self._chain = chain
        self._observer = observer
        self._signals = signals
        self._teller = teller
        self._clock = clock
        self._ended = ended
        self._dispatch = dispatch
        self._settle = settle
        self._operators: dict[int, bytes] = {}
        self._awaiting: dict[int, int] = {}
        self._lost: set[int] = set()
        self._rewound = trio.Event()
        self.head: Head | None = None
        """Last head whose events are in the store."""

    @property
    def chain_id(self) -> int:
        return self._chain.domain.chain_id

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follows until cancelled; ready when the registry has been read. Raises `Transient` only before that."""
        await self._observer.refresh()
        await self._read_operators()
        name = f"hub:{self.chain_id}"
        checkpoint = await self._store.checkpoint(name)
        if checkpoint is None:
            head = await self._chain.head()
            checkpoint = max(0, head.number - self._chain.confirmations)
            await self._store.save_checkpoints({name: checkpoint})
        self._awaiting = {
            t.id: t.executed_at or t.created_at_ms // 1000
            for t in await self._store.open_tasks()
            if t.state in _AWAITING and t.chain_id == self.chain_id
        }
        task_status.started()
        # What a reorganisation changed while nobody looked is told again: known effects change nothing.
        async with trio.open_nursery() as nursery, self._chain.follow(max(1, checkpoint + 1 - REWIND_BLOCKS)) as feed:
            nursery.start_soon(self._watch_rounds)
            nursery.start_soon(self._look_back)
            await self._follow(feed)

    async def _follow(self, feed: EventFeed) -> None:
        stale = False
        read: tuple[Head, Sequence[ChainEvent]] | None = None  # not in the store yet: the feed tells nothing twice
        while True:
            try:
                if read is None:
                    read = await feed.next()
                    stale = stale or any(isinstance(e, RegistryChanged) for e in read[1])
                    if feed.rewound is not None:
                        self._rewound.set()
                if stale:
                    await self._read_operators()  # before what they are named in
                await self._record(*read)
                read = None
                if stale:
                    await self._observer.refresh()
                    stale = False
                    self._signals.notify(("keepers", self.chain_id))
            except Transient as error:
                log.warning("chain_or_store_unavailable", code=error.code, detail=error.detail, chain=self.chain_id)
                await trio.sleep(_RETRY_S)

    async def _read_operators(self) -> None:
        """Addresses by id, of keepers that have left too: they may have attested before."""
        self._operators = {keeper.id: keeper.address for keeper in await self._chain.keepers()}

    async def _record(self, head: Head, events: Sequence[ChainEvent]) -> None:
        times = await self._block_times(head, events)
        now_ms = self._clock.now_ns() // 1_000_000
        changes = []
        for event in events:
            record = None
            if isinstance(event, TaskValidated) and event.accepted:
                record = await self._chain.execution(event.task_id)
            change = change_of(event, times.get(event.place.block_number), now_ms, self._operators, record)
            if change is not None and isinstance(event, RunCharged | RunSkipped):
                change = await self._of_run(event, change)
            if change is not None:
                changes.append(change)
        deleted = [e.job_id for e in events if isinstance(e, JobDeleted)]
        changed = await self._store.record(self.chain_id, head.number, changes, deleted, int(self._clock.now()))
        self.head = self._observer.head = head
        moved = {change.task_id for change in changes if change.path}
        for task in changed:
            if task.id in moved:
                self._tell(task)
            if task.definition in SCRIPTED:
                await self._settle(task.id)
        for change in changes:  # another coordinator may have been first: our own parts wait for this news all the same
            self._signals.notify(change.task_id)
            self._note(change)
        jobs = {c.task_id: None for c in changes if c.path != (S.EXECUTED,)}
        settled = [found.job_id for task_id in jobs if (found := await self._store.task(task_id)) is not None]
        for job_id in dict.fromkeys([*settled, *deleted]):
            await self._ended(job_id)

    async def _block_times(self, head: Head, events: Sequence[ChainEvent]) -> dict[int, int]:
        times = {head.number: head.timestamp}
        for event in events:
            number = event.place.block_number
            if isinstance(event, TaskExecuted) and number not in times and (block := await self._chain.block(number)):
                times[number] = block.timestamp
        return times

    async def _of_run(self, event: RunCharged | RunSkipped, change: TaskChange) -> TaskChange | None:
        """The charge of a run without a transaction, with who attested it; None when the task is no such run, by our store."""
        task = await self._store.task(event.task_id)
        if task is None or task.state is not S.NOT_EXECUTED:
            log.warning("charge_of_an_unknown_run", task_id=str(event.task_id), job_id=str(event.job_id))
            return None
        if isinstance(event, RunSkipped):
            log.warning("run_not_charged", task_id=str(event.task_id), job_id=str(event.job_id), reason=event.reason)
            waits_since = task.stages.get("not_executed", 0) / 1000
            if event.reason in _LATER and self._clock.now() - waits_since < _CHARGE_PATIENCE_S:
                return None  # it stays among those that wait
        attesters = tuple(self._operators[i] for i in task.attester_ids if i in self._operators)
        rewards = {task.performer: event.fee} if isinstance(event, RunCharged) and task.performer is not None else {}
        return replace(change, attesters=attesters, rewards=rewards)

    def _note(self, change: TaskChange) -> None:
        """Which tasks are awaited, by the events alone."""
        if not change.path:
            return
        if change.path == (S.EXECUTED,):
            self._awaiting.setdefault(change.task_id, change.executed_at or int(self._clock.now()))
        else:
            self._awaiting.pop(change.task_id, None)
        self._lost.discard(change.task_id)

    def _tell(self, task: Task) -> None:
        self._signals.notify(task.id)
        if not task.ended:
            return
        self._teller.tell(kind_of(task), task)
        log.info(
            "task_ended",
            task_id=str(task.id),
            job_id=str(task.job_id),
            state=task.state.value,
            reason=task.reason,
            number=task.number,
            attempt=task.attempt,
            trace_id=task.trace_id,
            stages=dict(task.stages),
        )

    # --- what the chain took back, and what it never settled

    async def _look_back(self) -> None:
        """At the start, and after each reorganisation: executions that are no longer on the chain are at their keepers again.

        A question to the chain for each task that waits for its certificate; the events that follow do not wait for it.
        """
        while True:
            self._rewound = trio.Event()
            try:
                for task_id in list(self._awaiting):
                    if await self._chain.execution(task_id) is None:
                        await self._take_back(task_id)
            except Transient as error:
                log.warning("chain_or_store_unavailable", code=error.code, detail=error.detail, chain=self.chain_id)
                await trio.sleep(_RETRY_S)
            else:
                await self._rewound.wait()

    async def _take_back(self, task_id: int) -> None:
        self._awaiting.pop(task_id, None)
        task = await self._store.task(task_id)
        if task is None or task.state not in _AWAITING:
            return
        after = await self._store.change(taken_back(task_id, self._clock.now_ns() // 1_000_000), int(self._clock.now()))
        if after is not None:
            log.warning("execution_reorganised", task_id=str(task_id), job_id=str(task.job_id), attempt=task.attempt)
            self._lost.add(task_id)
            await self._dispatch([(task_id, task.priority)])

    async def _find_again(self, task_id: int) -> None:
        """What one RPC said was gone, and another had delivered all along: no event will say so again."""
        record = await self._chain.execution(task_id)
        if record is None or self.head is None or record.block_number > self.head.number:
            return
        if record.status is ExecutionStatus.NOT_EXECUTED:  # its run was charged
            self._lost.discard(task_id)
            return
        now = int(self._clock.now())
        change = TaskChange(
            task_id,
            (S.EXECUTED,),
            number=record.number,
            cost=record.fee,
            executed_at=record.timestamp,
            performer=record.performer,
            performer_id=record.performer_id,
            successful=record.success,
        )
        if await self._store.change(change, now) is not None:
            self._signals.notify(task_id)
            self._awaiting[task_id] = record.timestamp
        self._lost.discard(task_id)

    async def _watch_rounds(self) -> None:
        """Calls a task not attested when its rounds are over and nobody has told the contract so."""
        span = (MAX_ROUNDS + _GRACE_ROUNDS) * self._chain.round_seconds
        while True:
            await trio.sleep(self._chain.round_seconds)
            now = max(self._clock.now() - self._chain.round_seconds, self.head.timestamp if self.head else 0)
            overdue = [t for t, executed_at in self._awaiting.items() if executed_at + span < now]
            try:
                for task_id in overdue:
                    await self._give_up(task_id)
                for task_id in list(self._lost):
                    await self._find_again(task_id)
            except Transient as error:
                log.warning("chain_or_store_unavailable", code=error.code, detail=error.detail)

    async def _give_up(self, task_id: int) -> None:
        record = await self._chain.execution(task_id)
        if record is None:
            await self._take_back(task_id)
            return
        if record.status in (ExecutionStatus.CERTIFIED, ExecutionStatus.REJECTED):
            return  # its event is on the way
        task = await self._store.change(not_attested(task_id, self._clock.now_ns() // 1_000_000), int(self._clock.now()))
        self._awaiting.pop(task_id, None)
        if task is not None:
            self._tell(task)
            await self._ended(task.job_id)
