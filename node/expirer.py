"""Ends what no committee certified: after all rounds anyone may have the fee refunded, and the operators take turns."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import structlog
import trio

from consensus import committee
from consensus.errors import Failed, Transient
from node.infra.chain import ChainEvent, ExecutionStatus, Head, TaskExecuted
from node.infra.clock import Clock
from node.infra.observe import Observer
from node.submitter import Submitter

_log = structlog.get_logger(__name__)

_KEPT = 16_384  # executions whose end is awaited, each some minutes: fifty a second; the oldest of more are left to others
_TRIES = 5
_RETRY_S = 2.0
_SENDING_S = 60.0  # for the refund to be mined: the next operator's turn does not wait for ours


class Expirer:
    """Sees to it that every execution on one chain ends, whether or not its performer ever published a package."""

    def __init__(self, observer: Observer, submitter: Submitter, clock: Clock, address: bytes, rank_interval: float) -> None:
        self._observer = observer
        self._submitter = submitter
        self._clock = clock
        self._address = address
        self._rank_interval = rank_interval
        self._due: deque[tuple[float, int]] = deque(maxlen=_KEPT)
        self._added = trio.Event()

    async def follow(self, head: Head, events: Sequence[ChainEvent]) -> None:
        """For `Observer.run`: notes what was executed."""
        for event in events:
            if isinstance(event, TaskExecuted):
                self.add(event.task_id, head.timestamp)

    def add(self, task_id: int, executed_at: float) -> None:
        """Expires the task when all its rounds have passed, unless it is settled by then. `executed_at` is in UTC seconds."""
        self._due.append((executed_at + (committee.MAX_ROUNDS + 1) * self._observer.chain.round_seconds, task_id))
        self._added.set()

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            while not self._due:
                self._added = trio.Event()
                await self._added.wait()
            due, task_id = self._due.popleft()
            await self._clock.sleep_until(due + self._turn())
            if self._observer.outcome(task_id) is None:
                await self._expire(task_id)

    def _turn(self) -> float:
        """Seconds after the last round until it is this operator's turn: by id, the first of them one interval after."""
        keeper = self._observer.keeper(self._address)
        place = (keeper.id if keeper else 0) % max(1, len(self._observer.keepers))
        return (place + 1) * self._rank_interval

    async def _expire(self, task_id: int) -> None:
        for _ in range(_TRIES):
            try:
                record = await self._observer.chain.execution(task_id)
                if record is None or record.status is not ExecutionStatus.PENDING:
                    return
                with trio.move_on_after(_SENDING_S):
                    await self._submitter.expire(task_id)
                return
            except Transient as error:
                _log.warning("cannot expire yet", task_id=str(task_id), code=error.code, detail=error.detail)
                await trio.sleep(_RETRY_S)
            except Failed as error:
                _log.warning("expiry refused", task_id=str(task_id), code=error.code, detail=error.detail)
                return
