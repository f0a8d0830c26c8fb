"""What became of each task, by the contracts' events and nobody's word; written with the checkpoint it was read at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
import trio

from consensus.committee import MAX_ROUNDS
from consensus.errors import Transient
from consensus.lifecycle import REASONS, TaskState
from coordinator.signals import Signals
from coordinator.store.port import Store
from coordinator.store.records import Task, TaskChange
from node.infra.chain import (
    Chain,
    ChainEvent,
    ExecutionStatus,
    Head,
    JobDeleted,
    RegistryChanged,
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


def change_of(event: ChainEvent, executed_at: int | None, now_ms: int) -> TaskChange | None:
    """What an event means for its task; None when it is not about one. `executed_at` is the time of the event's block."""
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
            )
        case TaskExpired():
            return not_attested(event.task_id, now_ms)
    return None


def not_attested(task_id: int, now_ms: int) -> TaskChange:
    """No committee reached a quorum."""
    text = REASONS["NO_QUORUM"].text
    return TaskChange(task_id, (S.NOT_ATTESTED,), reason="NO_QUORUM", detail=text, stages={"not_attested": now_ms})


class Monitor:
    """Follows one chain from the store's checkpoint."""

    def __init__(
        self,
        store: Store,
        chain: Chain,
        observer: Observer,
        signals: Signals,
        clock: Clock,
        job_deleted: Callable[[int], None],
    ) -> None:
        self._store = store
        self._chain = chain
        self._observer = observer
        self._signals = signals
        self._clock = clock
        self._job_deleted = job_deleted
        self._awaiting: dict[int, int] = {}
        self.head: Head | None = None
        """Last head whose events are in the store."""

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follows until cancelled; ready when the registry has been read. Raises `Transient` only before that."""
        await self._observer.refresh()
        chain_id = self._chain.domain.chain_id
        checkpoint = await self._store.checkpoint(chain_id)
        if checkpoint is None:
            head = await self._chain.head()
            checkpoint = max(0, head.number - self._chain.confirmations)
            await self._store.record(chain_id, checkpoint, [], [], int(self._clock.now()))
        self._awaiting = {
            t.id: t.executed_at or t.created_at_ms // 1000
            for t in await self._store.open_tasks()
            if t.state in _AWAITING and t.chain_id == chain_id
        }
        task_status.started()
        # What a reorganisation changed while nobody looked is told again: known effects change nothing.
        async with trio.open_nursery() as nursery, self._chain.follow(max(1, checkpoint + 1 - REWIND_BLOCKS)) as feed:
            nursery.start_soon(self._watch_rounds)
            stale = False
            read: tuple[Head, Sequence[ChainEvent]] | None = None  # not in the store yet: the feed tells nothing twice
            while True:
                try:
                    if read is None:
                        read = await feed.next()
                        stale = stale or any(isinstance(e, RegistryChanged) for e in read[1])
                    await self._record(*read)
                    read = None
                    if stale:
                        await self._observer.refresh()
                        stale = False
                        self._signals.notify(("keepers", chain_id))
                except Transient as error:
                    log.warning("chain_or_store_unavailable", code=error.code, detail=error.detail, chain=chain_id)
                    await trio.sleep(_RETRY_S)

    async def _record(self, head: Head, events: Sequence[ChainEvent]) -> None:
        times = await self._block_times(head, events)
        now_ms = self._clock.now_ns() // 1_000_000
        changes = [c for e in events if (c := change_of(e, times.get(e.place.block_number), now_ms)) is not None]
        deleted = [e.job_id for e in events if isinstance(e, JobDeleted)]
        changed = await self._store.record(self._chain.domain.chain_id, head.number, changes, deleted, int(self._clock.now()))
        self.head = self._observer.head = head
        for job_id in deleted:
            self._job_deleted(job_id)
        for task in changed:
            self._tell(task)

    async def _block_times(self, head: Head, events: Sequence[ChainEvent]) -> dict[int, int]:
        times = {head.number: head.timestamp}
        for event in events:
            number = event.place.block_number
            if isinstance(event, TaskExecuted) and number not in times and (block := await self._chain.block(number)):
                times[number] = block.timestamp
        return times

    def _tell(self, task: Task) -> None:
        if task.state in _AWAITING:
            self._awaiting[task.id] = task.executed_at or int(self._clock.now())
        else:
            self._awaiting.pop(task.id, None)
        self._signals.notify(task.id)
        if task.ended:
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

    async def _watch_rounds(self) -> None:
        """Calls a task not attested when its rounds are over and nobody has told the contract so."""
        span = (MAX_ROUNDS + _GRACE_ROUNDS) * self._chain.round_seconds
        while True:
            await trio.sleep(self._chain.round_seconds)
            now = max(self._clock.now() - self._chain.round_seconds, self.head.timestamp if self.head else 0)
            for task_id in [t for t, executed_at in self._awaiting.items() if executed_at + span < now]:
                try:
                    await self._give_up(task_id)
                except Transient as error:
                    log.warning("chain_or_store_unavailable", code=error.code, detail=error.detail)

    async def _give_up(self, task_id: int) -> None:
        record = await self._chain.execution(task_id)
        if record is not None and record.status in (ExecutionStatus.CERTIFIED, ExecutionStatus.REJECTED):
            return  # its event is on the way
        step = not_attested(task_id, self._clock.now_ns() // 1_000_000)
        if record is None:
            step = replace(step, reason="REORGANISED", detail=REASONS["REORGANISED"].text)
        task = await self._store.change(step, int(self._clock.now()))
        self._awaiting.pop(task_id, None)
        if task is not None:
            self._tell(task)
