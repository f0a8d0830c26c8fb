"""What performers publish, each attended in a task of its own: how many at once, how many of one performer, and each once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog
import trio

from consensus import rules
from consensus.errors import Failed, Ignore, Reject, Transient
from consensus.messages import Execution, NotExecuted, PackageReference, Task
from node.duties import Attender, Package
from node.infra.clock import Clock
from node.infra.observe import Registry
from node.packages import Packages
from node.performer import Guard, attempt_of
from node.run_duties import RunAttender
from node.tracker import Tracker
from p2p.network import PeerId, Received

_log = structlog.get_logger(__name__)

ATTENDED_AT_ONCE = 256  # each waits most of its life, so memory is the bound, not the processor
ATTENDED_OF_ONE = 64  # packages of one performer: those without a record wait a minute for it, and leave the others room

_Key = tuple[str, int, int]
"""What it is (`execution` or `run`), task id and attempt."""
_Attend = Callable[..., Awaitable[str | None]]


def _key_of(task: Task) -> _Key:
    return ("execution", *attempt_of(task))


class Attending:
    """The attester's edges. `own` is this keeper's operator address: it does not attend itself."""

    def __init__(
        self,
        own: bytes,
        attenders: Mapping[int, Attender],
        run_attenders: Mapping[int, RunAttender],
        packages: Packages,
        registry: Registry,
        tracker: Tracker,
        clock: Clock,
        guard: Guard,
    ) -> None:
        self._own = own
        self._attenders = attenders
        self._run_attenders = run_attenders
        self._packages = packages
        self._registry = registry
        self._tracker = tracker
        self._clock = clock
        self._guard = guard
        self._attending: dict[_Key, tuple[bytes, Package | None]] = {}
        self._fetching: set[tuple[PeerId, PackageReference]] = set()
        self._room = trio.Semaphore(ATTENDED_AT_ONCE)

    @property
    def idle(self) -> bool:
        """Whether nothing is being attended."""
        return not self._attending and not self._fetching

    async def executions(self, work: trio.Nursery, received: trio.MemoryReceiveChannel[Received[Execution]]) -> None:
        """What is left out here is published again while it matters."""
        async for each in received:
            package = self._registered(each.message)
            if package is not None:
                await self._start(work, _key_of(package.execution.task), each.message.task, self._attend, package)

    def _registered(self, execution: Execution, cid: str = "") -> Package | None:
        """A package that is to be attended from now on; None when it is not, or one of its attempt is already."""
        key, performer = _key_of(execution.task), execution.task.authorisation.performer
        if key in self._attending:
            _, attended = self._attending[key]
            if attended is not None:
                attended.replace(execution, cid)
            return None
        if not self._takes(performer):
            return None
        package = Package(execution, cid)
        self._attending[key] = performer, package
        return package

    async def references(self, work: trio.Nursery, received: trio.MemoryReceiveChannel[Received[PackageReference]]) -> None:
        """Packages too large for gossip: fetched once the hub's record says that their publisher has executed the task."""
        async for each in received:
            reference, source = each.message, each.source
            performer = self._registry.operator_of(reference.chain_id, source)
            _, attended = self._attending.get(("execution", int(reference.task_id), reference.attempt), (b"", None))
            if attended is not None and attended.cid == reference.cid:  # published again, for others
                continue
            if performer is not None and (source, reference) not in self._fetching and self._takes(performer):
                self._fetching.add((source, reference))
                await self._room.acquire()
                task_id = int(reference.task_id)
                work.start_soon(self._guard, self._room, task_id, self._fetch_and_attend, reference, source, performer)

    async def _fetch_and_attend(self, reference: PackageReference, source: PeerId, performer: bytes) -> None:
        """Both in one place of the room: whoever waited for a second one while holding the first might wait for ever."""
        execution = await self._fetch(reference, source, performer)
        package = self._registered(execution, reference.cid) if execution is not None else None
        if package is not None:
            task = package.execution.task
            await self._once(_key_of(task), task, self._attend, package)

    async def _fetch(self, reference: PackageReference, source: PeerId, performer: bytes) -> Execution | None:
        task_id = int(reference.task_id)
        try:
            if await self._attenders[reference.chain_id].performer(task_id) != performer:
                return None
            execution = await self._packages.fetch(reference, source)
            rules.check_execution(execution, source, self._registry, self._clock.now())
        except (Failed, Ignore, Reject, Transient) as error:  # a lie costs its peer the attestation; the reference comes again
            self._tracker.step(task_id, "unfetched", fetch_error=error.code, fetch_detail=error.detail)
            _log.warning("package not fetched", task_id=str(task_id), peer=source, code=error.code, detail=error.detail)
            return None
        finally:
            self._fetching.discard((source, reference))
        self._tracker.step(task_id, "fetched", package=reference.cid)
        return execution

    async def runs(self, work: trio.Nursery, received: trio.MemoryReceiveChannel[Received[NotExecuted]]) -> None:
        async for each in received:
            said = each.message
            key, performer = ("run", *attempt_of(said.task)), said.task.authorisation.performer
            if key not in self._attending and self._takes(performer):
                self._attending[key] = performer, None
                await self._start(work, key, said.task, self._attend_run, said)

    def _takes(self, performer: bytes) -> bool:
        if performer == self._own:
            return False
        fetching = sum(self._registry.operator_of(r.chain_id, source) == performer for source, r in self._fetching)
        if fetching + sum(other == performer for other, _ in self._attending.values()) >= ATTENDED_OF_ONE:
            _log.warning("too many packages of one performer", performer="0x" + performer.hex())
            return False
        return True

    async def _start(self, work: trio.Nursery, key: _Key, task: Task, attend: _Attend, what: Any) -> None:
        await self._room.acquire()
        work.start_soon(self._guard, self._room, task.task_id, self._once, key, task, attend, what)

    async def _once(self, key: _Key, task: Task, attend: _Attend, what: Any) -> None:
        """Package in; this keeper's vote and, in its turn, a certificate out."""
        try:
            due = task.authorisation.not_before
            self._tracker.step(task.task_id, "received", trace_id=task.trace_id, role="attester", due=due)
            outcome = await attend(what)
            if outcome is not None:
                self._tracker.end(task.task_id, outcome)
        finally:
            del self._attending[key]

    async def _attend(self, package: Package) -> str | None:
        return await self._attenders[package.execution.task.chain_id].attend(package)

    async def _attend_run(self, said: NotExecuted) -> str | None:
        return await self._run_attenders[said.task.chain_id].attend(said)
