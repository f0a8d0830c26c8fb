"""Whether a task's trigger fired, by this keeper's own reading: for the performer before it takes the task, and for attesters.

Nothing is believed because the task says it: the observation only tells where to look. Of a condition's edges and hysteresis a
keeper sees only the moment at which it looks: it checks that the comparison holds (hysteresis counted as it does while it
holds), not how often it has begun to.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol, TypeVar

import trio

from consensus import events, schedules
from consensus.conditions import OnCondition, Source, StaticSource, leaves, still_holds
from consensus.errors import Failed, Transient
from consensus.events import OnEvent
from consensus.messages import JobSpec, Task
from consensus.schedules import Cron, Interval, Moments
from consensus.triggers import LogSeen, names
from node.infra.chain import Chain, Log, Receipt
from node.infra.chain import Job as RegisteredJob
from node.infra.compute import Compute
from node.infra.sources import Value

CONTRADICTIONS = frozenset({"NOT_DUE", "EVENT_MISMATCH", "CONDITION_NOT_MET"})
"""Codes of a `Failed` that show the trigger did not fire. All else leaves it open: another keeper may see more."""

S = TypeVar("S")

_TIMED = (Interval, Cron, Moments)
_KINDS = {
    **dict.fromkeys((1, 2, 7), _TIMED),
    **dict.fromkeys((3, 4), (OnEvent,)),
    **dict.fromkeys((5, 6), (OnCondition,)),
}
"""Trigger kinds by task definition."""
_EVENT_PATIENCE_S = 5.0  # the coordinator's RPC may be some blocks ahead of this keeper's
_CONDITION_PATIENCE_S = 5.0  # a source may hiccup; longer, and it is no longer the moment that fired
_LOOK_AGAIN_S = 0.5
_READ_AGAIN_S = 3.0  # attesters look again each second: a source is not asked as often for one task
_SEEN = 4096  # firings whose log's block is remembered
_READ = 1024  # tasks whose condition was read and is remembered


class Reader(Protocol):
    """Reads sources. (`node.infra.sources.Sources`)"""

    async def read_each(self, sources: Sequence[Source]) -> Mapping[Source, Value]:
        """Values of sources of one place. Raises nothing."""
        ...

    @staticmethod
    def place(source: Source) -> str: ...


def supported(job: JobSpec) -> None:
    """Raises `Failed` for a job whose trigger is of another kind than its type."""
    if not isinstance(job.trigger, _KINDS[job.definition]):
        raise Failed("NOT_DUE", f"the trigger is none of task definition {job.definition}")


def timed(job: JobSpec) -> bool:
    """Whether a schedule fires it: then its trigger id is a second, and re-checked without asking anybody."""
    return isinstance(job.trigger, _TIMED)


def due_at(task: Task, job: JobSpec) -> int:
    """The second (UTC) before which the task must not execute: only a schedule's trigger id is one."""
    authorisation = task.authorisation
    return max(authorisation.not_before, int(authorisation.trigger_id)) if timed(job) else authorisation.not_before


def registered(job: JobSpec, on_chain: RegisteredJob) -> bool:
    """Whether the JobSpec's timing is the one registered: the interval, and none for everything else.

    Whether an event or condition job may fire more than once is in the registry alone, and the hub enforces it.
    """
    return on_chain.interval == (job.trigger.interval if isinstance(job.trigger, Interval) else 0)


class Recheck:
    """`chains` are those this keeper serves; an event may be on another one than the job's target."""

    def __init__(self, chains: Mapping[int, Chain], reader: Reader, compute: Compute) -> None:
        self._chains = chains
        self._reader = reader
        self._compute = compute
        self._blocks: OrderedDict[tuple[int, bytes], bytes] = OrderedDict()
        self._read: OrderedDict[tuple[int, bytes], tuple[float, Failed | Transient | None]] = OrderedDict()

    async def look(self, task: Task, job: JobSpec) -> Log | None:
        """One look, as an attester takes it: returns when the trigger fired, with the log that fired it where one did.

        Raises `Failed` with one of `CONTRADICTIONS` when it did not, other `Failed` and `Transient` when that cannot be told.
        """
        trigger, trigger_id = job.trigger, int(task.authorisation.trigger_id)
        if not names(trigger, trigger_id, task.observation):
            raise Failed("NOT_DUE", "the observation is not of the firing that the trigger id names")
        match trigger:
            case OnEvent():
                assert isinstance(task.observation, LogSeen)  # names() has seen to it
                log = await self._event(job, trigger, task.observation)
                self._remember(_key(task), log.block_hash)
                return log
            case OnCondition():
                await self._condition_now_and_then(_key(task), trigger)
            case _:
                if not schedules.is_due(trigger, trigger_id, created_at=job.created_at, time_frame=job.time_frame):
                    raise Failed("NOT_DUE", "the second is not one of the job's")
        return None

    async def wait(self, task: Task, job: JobSpec) -> Log | None:
        """Looks as a performer does before it takes a task on: for a while, until the trigger is seen to have fired."""
        match job.trigger:
            case OnEvent():
                return await _patiently(lambda: self.look(task, job), _EVENT_PATIENCE_S, "EVENT_NOT_FOUND")
            case OnCondition() as condition:
                await _patiently(lambda: self._condition(condition), _CONDITION_PATIENCE_S, "SOURCE_UNREACHABLE")
                return None
            case _:
                return await self.look(task, job)

    async def still(self, task: Task, job: JobSpec) -> None:
        """Before money is spent: a log may have been reorganised away since it was seen. Raises as `look` does."""
        if not isinstance(job.trigger, OnEvent):
            return
        try:
            if not await self._where_it_was(task, job.trigger):
                await self.look(task, job)
        except (Failed, Transient) as error:
            if error.code in ("EVENT_NOT_FOUND", "EVENT_MISMATCH"):  # it may come back, until the deadline
                raise Transient("EVENT_REORGANISED", error.detail) from None
            raise

    # events

    async def _event(self, job: JobSpec, trigger: OnEvent, seen: LogSeen) -> Log:
        chain = self._chains.get(trigger.chain_id)
        if chain is None:
            raise Transient("EVENT_NOT_FOUND", f"this keeper does not serve chain {trigger.chain_id}")
        receipt = await chain.receipt(seen.transaction)
        if receipt is None:
            raise Transient("EVENT_NOT_FOUND", "the transaction is not mined, or not known")
        lies = (await chain.head()).number - receipt.block_number
        if lies < trigger.confirmations:
            raise Transient("EVENT_NOT_FOUND", f"{max(0, lies)} of {trigger.confirmations} blocks lie on the log's")
        block = await chain.block(receipt.block_number)
        if block is None or block.hash != receipt.block_hash:
            raise Transient("EVENT_NOT_FOUND", "the log's block is not on the chain that this keeper's RPC follows")
        try:
            if not job.created_at < block.timestamp <= job.created_at + job.time_frame:
                raise Failed("EVENT_MISMATCH", "the log's block is not of the job's life")
            log = _log_of(receipt, seen.position)
            if log is None or not await self._compute(events.matches, trigger, log.address, log.topics, log.data):
                raise Failed("EVENT_MISMATCH", "the log is not one that the job asks for" if log else "there is no such log")
        except Failed as error:
            # What lies less deep than this chain's confirmations may be another log tomorrow: no contradiction yet.
            if lies < chain.confirmations:
                raise Transient("EVENT_NOT_FOUND", error.detail) from None
            raise
        return log

    def _remember(self, key: tuple[int, bytes], block_hash: bytes) -> None:
        self._blocks.pop(key, None)
        self._blocks[key] = block_hash
        while len(self._blocks) > _SEEN:
            self._blocks.popitem(last=False)

    async def _where_it_was(self, task: Task, trigger: OnEvent) -> bool:
        """Whether the log lies in the very block in which it was checked: then there is nothing to check anew."""
        chain, seen = self._chains.get(trigger.chain_id), task.observation
        if chain is None or not isinstance(seen, LogSeen):
            return False
        checked, receipt = self._blocks.get(_key(task)), await chain.receipt(seen.transaction)
        return checked is not None and receipt is not None and receipt.block_hash == checked

    # conditions

    async def _condition_now_and_then(self, key: tuple[int, bytes], trigger: OnCondition) -> None:
        """Reads no more often than every few seconds for one task; that it was seen to hold once is enough."""
        at, before = self._read.get(key, (float("-inf"), None))
        if trio.current_time() - at >= _READ_AGAIN_S and (before is not None or at == float("-inf")):
            try:
                await self._condition(trigger)
                before = None
            except (Failed, Transient) as error:
                before = error
            self._read.pop(key, None)
            self._read[key] = (trio.current_time(), before)
            while len(self._read) > _READ:
                self._read.popitem(last=False)
        if before is not None:
            raise _anew(before)

    async def _condition(self, trigger: OnCondition) -> None:
        """Reads every source once, and what shares a request together."""
        wanted = [leaf.source for leaf in leaves(trigger.root)]
        places: dict[str, list[Source]] = {}
        for source in dict.fromkeys(wanted):
            places.setdefault(self._reader.place(source), []).append(source)
        found: dict[Source, Value] = {}

        async def read(sources: Sequence[Source]) -> None:
            found.update(await self._reader.read_each(sources))

        async with trio.open_nursery() as nursery:
            for sources in places.values():
                nursery.start_soon(read, sources)
        values = [found[source] for source in wanted]
        problems = [value for value in values if isinstance(value, Failed | Transient)]
        known = [None if isinstance(value, Failed | Transient) else value for value in values]
        truth = still_holds(trigger.root, known)
        if truth is None:
            raise _anew(problems[0])
        if not truth:
            never = all(isinstance(source, StaticSource) for source in wanted)
            raise (Failed if never else Transient)("CONDITION_NOT_MET", "" if problems else ", ".join(map(str, known))[:200])


def _key(task: Task) -> tuple[int, bytes]:
    """A firing, and the JobSpec by which it was checked."""
    return task.task_id, task.authorisation.spec


def _anew(error: Failed | Transient) -> Failed | Transient:
    """The same, with a traceback of its own."""
    return (Failed if isinstance(error, Failed) else Transient)(error.code, error.detail)


def _log_of(receipt: Receipt, position: int) -> Log | None:
    return receipt.logs[position] if receipt.success and position < len(receipt.logs) else None


async def _patiently(look: Callable[[], Awaitable[S]], patience: float, code: str) -> S:
    """Looks again while it cannot be told; then raises what the last look did."""
    last: Transient = Transient(code, f"no answer in {patience:g} s")
    with trio.move_on_after(patience):
        while True:
            try:
                return await look()
            except Transient as error:
                last = error
                await trio.sleep(_LOOK_AGAIN_S)
    raise last
