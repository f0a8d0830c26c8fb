"""Takes tasks from the queue and has each driven until it has executed or ended; holds its place in the queue until then.

The queue says who drives what; the store says what there is to drive. An entry that nobody keeps is taken over by
whoever is alive. A task that is driven twice comes to no harm: every step is a compare-and-set, and the bytes are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import structlog
import trio

from consensus.errors import Transient
from consensus.lifecycle import TaskState
from coordinator.answers import Answers
from coordinator.attempts import Attempts
from coordinator.guard import Guard
from coordinator.signals import Signals
from coordinator.store.port import Store
from coordinator.store.records import TaskChange
from coordinator.streams.port import Entry, Streams
from node.infra.clock import Clock
from p2p.network import Network
from p2p.topics import ANSWERS

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

log = structlog.get_logger(__name__)

S = TaskState

KEEP_S = 3.0
"""How often the entries held are kept; a third of `ORPHANED_S`."""
ORPHANED_S = 10.0
"""An entry that its coordinator has not kept for so long is taken over."""
_IN_FLIGHT = 4096  # each waits most of its life in a few kilobytes; beyond this the rest wait their turn in the queue
_TAKE = 256  # a look at the queue: few enough that what comes with a higher priority is soon seen
_RETRY_S = 1.0
_RESUME_S = 10.0  # a task this old that is not driven here was perhaps lost on its way to the queue
_RESUME_AGAIN_S = 60.0  # whoever drives it elsewhere is not asked about it more often
_DEFECTS = 4  # of ours that one task may meet before it ends with that reason
_FINISHED_KEPT = 10_000  # entries to be taken off a queue that is away; beyond this they come back as orphans, and end at once


class Dispatcher:
    """`run` does the work. `held_shards` tells whose lost tasks are ours to bring back to the queue."""

    def __init__(
        self,
        store: Store,
        streams: Streams,
        network: Network,
        attempts: Attempts,
        answers: Answers,
        signals: Signals,
        guard: Guard,
        clock: Clock,
        *,
        held_shards: Callable[[], Collection[int]],
        alone: Callable[[], bool] = lambda: True,
    ) -> None:
        self._store = store
        self._streams = streams
        self._network = network
        self._attempts = attempts
        self._answers = answers
        self._signals = signals
        self._guard = guard
        self._clock = clock
        self._held_shards = held_shards
        self._alone = alone
        self._nursery: trio.Nursery | None = None
        self._driven: dict[int, Entry | None] = {}
        self._left: dict[int, Entry | None] = {}
        self._finished: list[Entry] = []
        self._news = trio.Event()  # room in flight, or an entry finished
        self._resumed: dict[int, float] = {}
        self._away = False
        self.backlog = 0
        """Entries that nobody had taken when the queue was last asked."""

    def __len__(self) -> int:
        """Tasks driven here."""
        return len(self._driven)

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Drives tasks until cancelled; ready when answers are heard."""
        async with self._network.serve(ANSWERS, self._answers), trio.open_nursery() as nursery:
            self._nursery = nursery
            for task_id, entry in self._left.items():  # of a run that a defect ended
                self._start(task_id, entry)
            task_status.started()
            try:
                nursery.start_soon(self._keep)
                nursery.start_soon(self._finish)
                nursery.start_soon(self._resume_lost)
                nursery.start_soon(self._take_over)
                await self._take()
            finally:
                self._nursery = None
                self._left, self._driven = self._driven, {}

    def hand(self, tasks: Sequence[tuple[int, int]]) -> None:
        """Drives tasks (id, priority) that are in the store past a queue that is away."""
        for task_id, _ in tasks:
            if self._nursery is not None and task_id not in self._driven and len(self._driven) < _IN_FLIGHT:
                self._start(task_id, None)

    def _start(self, task_id: int, entry: Entry | None) -> None:
        assert self._nursery is not None  # only while `run` is under way
        self._driven[task_id] = entry
        self._nursery.start_soon(self._driven_task, task_id)

    def _drive(self, entry: Entry) -> None:
        """The entry's task is driven, unless it is already: then one place in the queue is enough."""
        held = self._driven.get(entry.task_id)
        if entry.task_id not in self._driven:
            self._start(entry.task_id, entry)
        elif held is None:
            self._driven[entry.task_id] = entry
        elif held.id != entry.id:
            self._done(entry)

    async def cancel(self, task_id: int, code: str) -> bool:
        """What fired the task is gone (a log that a reorganisation took back): unless it has executed, it fails with `code`
        and gets no further attempt. An authorisation that is out already may still execute, at most once. False when it
        was too late. Raises `Transient`."""
        return await self._attempts.fail(task_id, code)

    async def revive(self, task_id: int) -> bool:
        """What fired the task is there again: one that `cancel` ended is dispatched after all. Raises `Transient`."""
        task = await self._store.task(task_id)
        if task is None or task.state is not S.FAILED or task.reason != "EVENT_REORGANISED":
            return False
        after = await self._store.change(TaskChange(task_id, (S.CREATED,)), int(self._clock.now()))
        if after is None:
            return False
        await self.push([(after.id, after.priority)])
        return True

    async def push(self, tasks: Sequence[tuple[int, int]]) -> None:
        """Tasks (id, priority) that need a keeper come to the queue; while it is away they are driven here."""
        try:
            await self._streams.push(tasks)
        except Transient as error:
            log.warning("queue_unavailable", code=error.code, detail=error.detail)
            self.hand(tasks)

    async def hand_over(self) -> None:
        """At a graceful end, once `run` is over: what was held goes back to the queue at once. Raises `Transient`."""
        held = [entry for entry in self._left.values() if entry is not None]
        await self._streams.done([*held, *self._finished])  # first: what is in the queue it does not take twice
        await self._streams.push([(entry.task_id, entry.priority) for entry in held])

    # --- the queue

    async def _take(self) -> None:
        while True:
            while len(self._driven) >= _IN_FLIGHT:
                await self._wait()
            try:
                entries = await self._streams.take(min(_TAKE, _IN_FLIGHT - len(self._driven)))
            except Transient as error:
                log.warning("queue_unavailable", code=error.code, detail=error.detail)
                self._away = True
                await trio.sleep(_RETRY_S)
                continue
            for entry in entries:
                self._drive(entry)

    async def _take_over(self) -> None:
        while True:
            await trio.sleep(KEEP_S)
            room = _IN_FLIGHT - len(self._driven)
            if room <= 0:
                continue
            try:
                entries = await self._streams.orphans(ORPHANED_S, min(_TAKE, room))
            except Transient as error:
                log.debug("queue_unavailable", code=error.code)  # `_take` says so
                continue
            if entries:
                log.info("tasks_taken_over", tasks=len(entries))
            for entry in entries:
                self._drive(entry)

    async def _keep(self) -> None:
        while True:
            await trio.sleep(KEEP_S)
            held = [entry for entry in self._driven.values() if entry is not None]
            try:
                if held:
                    await self._streams.keep(held)
                self.backlog = await self._streams.backlog()
            except Transient as error:
                log.debug("queue_unavailable", code=error.code)

    async def _finish(self) -> None:
        while True:
            while not self._finished:
                await self._wait()
            batch = self._finished[:_TAKE]
            try:
                await self._streams.done(batch)
            except Transient:
                await trio.sleep(_RETRY_S)
            else:
                del self._finished[: len(batch)]

    def _done(self, entry: Entry) -> None:
        if len(self._finished) < _FINISHED_KEPT:
            self._finished.append(entry)
        self._tell()

    async def _wait(self) -> None:
        await self._news.wait()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def _resume_lost(self) -> None:
        """Open tasks of our shards that are in no queue come to it: those of a shard that is new here, those whose way to
        it was lost, and all when the queue has lost what it held. What is in the queue, taken or not, it does not take twice.
        Who is alone need not ask whether another has them in hand, and drives them at once.
        """
        known: frozenset[int] = frozenset()
        look = self._clock.now()
        while True:
            now, held = self._clock.now(), frozenset(self._held_shards())
            if self._away:
                known, self._away = frozenset(), False
                self._resumed.clear()
            try:
                await self._resume(sorted(held - known), older_than=0)
                known = held
                if now >= look:
                    await self._resume(sorted(held), older_than=_RESUME_S)
                    look = now + _RESUME_S
            except Transient as error:
                log.warning("tasks_not_resumed", code=error.code, detail=error.detail)
                self._away = True
            await trio.sleep(_RETRY_S)

    async def _resume(self, shards: list[int], *, older_than: float) -> None:
        if not shards:
            return
        now = self._clock.now()
        self._resumed = {task_id: at for task_id, at in self._resumed.items() if now - at < _RESUME_AGAIN_S}
        found = await self._store.unexecuted(shards, int((now - older_than) * 1000))
        lost = [task for task in found if task[0] not in self._driven and task[0] not in self._resumed]
        if lost:
            log.info("tasks_resumed", tasks=len(lost), shards=len(shards))
            if self._alone():
                self.hand(lost)
            await self._streams.push([task for task in lost if task[0] not in self._driven])
            self._resumed.update((task_id, now) for task_id, _ in lost)

    # --- one task

    async def _driven_task(self, task_id: int) -> None:
        facts = {"task_id": str(task_id)}
        if not await self._guard("dispatch", self._attempts.drive, task_id, defects=_DEFECTS, **facts):
            await self._guard("dispatch", self._attempts.fail, task_id, "INTERNAL", defects=_DEFECTS, **facts)
        self._signals.forget(task_id)
        entry = self._driven.pop(task_id)
        if entry is not None:
            self._done(entry)
        self._tell()
