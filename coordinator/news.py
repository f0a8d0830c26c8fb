"""Tells the streams what became of tasks: dispatched, completed, failed, retry. Best effort; the store is the truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog
import trio

from consensus.errors import Transient
from consensus.lifecycle import TaskState
from coordinator.store.records import Task
from coordinator.streams.port import Streams, TaskNews
from node.infra.clock import Clock

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

log = structlog.get_logger(__name__)

_WAITING = 4096  # news of a busy second, in a few hundred kilobytes; what comes beyond them is dropped
_BATCH = 256


def kind_of(task: Task) -> str:
    """The stream for a task that has ended: a script that decided against it did what it is there for."""
    worked = task.state is TaskState.COMPLETED or task.reason == "SCRIPT_DECLINED"
    return "completed" if worked else "failed"


class Teller:
    """`tell` never waits; `run` sends what was told, in order. `on_ended` hears of each task that ended, here and now."""

    def __init__(self, streams: Streams, clock: Clock, on_ended: Callable[[Task], None] = lambda task: None) -> None:
        self._streams = streams
        self._clock = clock
        self._on_ended = on_ended
        self._send, self._receive = trio.open_memory_channel[TaskNews](_WAITING)
        self.dropped = 0
        """News that nobody was told: the streams were away, or too slow."""

    def tell(self, kind: str, task: Task) -> None:
        if task.ended:
            self._on_ended(task)
        news = TaskNews(
            kind=kind,
            task_id=task.id,
            job_id=task.job_id,
            state=task.state.value,
            reason=task.reason,
            attempt=task.attempt,
            at_ms=self._clock.now_ns() // 1_000_000,
        )
        try:
            self._send.send_nowait(news)
        except trio.WouldBlock:
            self.dropped += 1

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sends until cancelled."""
        task_status.started()
        while True:
            batch = [await self._receive.receive()]
            while len(batch) < _BATCH:
                try:
                    batch.append(self._receive.receive_nowait())
                except trio.WouldBlock:
                    break
            try:
                await self._streams.tell(batch)
            except Transient as error:
                self.dropped += len(batch)
                log.debug("news_dropped", code=error.code, news=len(batch))
