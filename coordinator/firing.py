"""Where firings become tasks: written to the store under the shards' fences, then handed to the queue (`scheduler.port.Fire`)."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import structlog
import trio

from consensus.errors import Transient
from coordinator.store.port import Store
from coordinator.store.records import Fired, Firing, shard_of
from node.infra.clock import Clock

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

log = structlog.get_logger(__name__)

_WAITING = 10_000  # tasks on their way to a queue that is slow; what is beyond is brought to it by the dispatcher's sweep
_BATCH = 256
_STORE_RETRY_S = 1.0

Push = Callable[[Sequence[tuple[int, int]]], Awaitable[None]]
"""Brings tasks (id, priority) to the queue. Raises `Transient` when it cannot."""


class FiringDesk:
    """Called by the schedulers; `run` does what firing must not wait for. `fired` counts what became of firings.

    `fences` are the shards held now, `fenced(shard, token)` is told of those that have been claimed since, `reread(job_id)`
    of jobs whose scheduler knows less than the store, `changed(job_id)` of jobs that begin.
    """

    def __init__(
        self,
        store: Store,
        push: Push,
        clock: Clock,
        fences: Mapping[int, int],
        *,
        fenced: Callable[[int, int], None],
        reread: Callable[[int], None],
        changed: Callable[[int], Awaitable[None]],
    ) -> None:
        self._store = store
        self._push = push
        self._clock = clock
        self._fences = fences
        self._fenced = fenced
        self._reread = reread
        self._changed = changed
        self._waiting: deque[tuple[int, int]] = deque()
        self._spent: dict[int, None] = {}
        self._work = trio.Event()
        self._under_way = 0
        self._idle = trio.Event()
        self.fired: Counter[Fired] = Counter()
        self.overflowed = 0
        """Tasks that found no room on the way to the queue: they come to it later."""

    async def __call__(self, firings: Sequence[Firing], /) -> Sequence[Fired]:
        if not firings:
            return []
        fences = dict(self._fences)
        self._under_way += 1
        try:
            answers = await self._store.fire(firings, int(self._clock.now()), fences)
        finally:
            self._under_way -= 1
            if self._under_way == 0:
                self._idle.set()
                self._idle = trio.Event()
        for firing, answer in zip(firings, answers, strict=True):
            self._settle(firing, answer, fences)
        if self._waiting or self._spent:
            self._work.set()
            self._work = trio.Event()
        return answers

    def _settle(self, firing: Firing, answer: Fired, fences: Mapping[int, int]) -> None:
        self.fired[answer] += 1
        shard = shard_of(firing.job_id)
        if answer is Fired.NEW and firing.task is not None:
            if len(self._waiting) < _WAITING:
                self._waiting.append((firing.task.id, firing.task.priority))
            else:
                self.overflowed += 1
        elif answer is Fired.KNOWN and firing.edge is not None:
            self._reread(firing.job_id)  # another's write, or our own that was answered too late: the edge moved on
        elif answer is Fired.INACTIVE:
            self._reread(firing.job_id)  # it ended or changed elsewhere, and the word of that may have been lost
        elif answer is Fired.FENCED and shard in fences:
            self._fenced(shard, fences[shard])
        if firing.spent and answer in (Fired.NEW, Fired.KNOWN):
            self._spent[firing.job_id] = None

    async def settled(self) -> None:
        """Returns when no firing is on its way to the store."""
        while self._under_way:
            await self._idle.wait()
        await trio.lowlevel.checkpoint()

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Brings new tasks to the queue and spent jobs to their end, until cancelled."""
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._complete_all)
            while True:
                while not self._waiting:
                    await self._work.wait()
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                try:
                    await self._push(batch)
                except Transient as error:  # they are in the store: the dispatcher's sweep brings them later
                    log.warning("tasks_not_queued", code=error.code, tasks=len(batch))

    async def _complete_all(self) -> None:
        while True:
            while not self._spent:
                await self._work.wait()
            job_id = next(iter(self._spent))
            try:
                await self._complete(job_id)
            except Transient as error:
                log.warning("job_not_completed", job_id=str(job_id), code=error.code)
                await trio.sleep(_STORE_RETRY_S)
            else:
                self._spent.pop(job_id, None)

    async def _complete(self, job_id: int) -> None:
        """A job that fires no more ends now, or with its last task; what was waiting for it begins."""
        if await self._store.complete_job(job_id, int(self._clock.now())) is None:
            return
        if (following := await self._store.linked_to(job_id)) is not None:
            await self._changed(following.id)
