"""The keeper's edges: what arrives from the mesh, which step it goes to, and what leaves again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog
import trio

from consensus import rules
from consensus.errors import Ignore, Reject, Transient, TriggerXError, first_of
from consensus.messages import CheckIn, Execution, Task, Vote
from node.aggregator import Aggregator
from node.duties import Attender, DutySettings
from node.executor import Executor
from node.expirer import Expirer
from node.infra.chain import Chain, Wallet
from node.infra.clock import Clock
from node.infra.compute import Compute
from node.infra.observe import Observer, Registry
from node.journal import Accepted, Journal
from node.performer import Attempt, Performer, attempt_of
from node.recheck import Reader, Recheck
from node.signer import Signer
from node.submitter import Submitter
from node.tracker import Tracker
from p2p.network import Network, PeerId, Received
from p2p.topics import CHECK_INS, EXECUTIONS, TASKS, VOTES, Taken

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

_log = structlog.get_logger(__name__)

_TASKS_WAITING = 256  # a minute of the mesh's measured top rate of a few tasks a second
_EXECUTIONS_WAITING = 256
_ATTENDED_AT_ONCE = 256  # each waits most of its life, so memory is the bound, not the processor
_ATTENDED_OF_ONE = 64  # packages of one performer: those without a record wait a minute for it, and leave the others room
_EXCHANGE_S = 5.0
_RETRY_S = 0.5


def _defects(error: Exception) -> bool:
    """Whether there is more in a group than errors with a name."""
    return isinstance(error, ExceptionGroup) and error.split(TriggerXError)[1] is not None


@dataclass(frozen=True)
class Served:
    """One chain this keeper works on."""

    observer: Observer
    wallet: Wallet

    @property
    def chain(self) -> Chain:
        return self.observer.chain


@dataclass(frozen=True)
class Parts:
    """Everything a keeper is made of; `app` builds the real ones, the simulation its own."""

    network: Network
    chains: Mapping[int, Served]
    registry: Registry
    signer: Signer
    journal: Journal
    tracker: Tracker
    clock: Clock
    compute: Compute
    sources: Reader
    version: str
    sandbox: str = ""
    post_check_in: Callable[[CheckIn, PeerId], Awaitable[None]] | None = None
    """Sends a check-in another way than by gossip; tries once and raises nothing."""
    checkin_interval: float = 60.0
    duties: DutySettings = field(default_factory=DutySettings)


class Keeper:
    """One keeper at work. `run` is ready when it hears every topic and answers every exchange."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.registry = parts.registry
        self.running = False
        """Whether it hears every topic and follows every chain."""
        self._aggregator = Aggregator(parts.compute)
        self._recheck = Recheck(
            {chain_id: served.chain for chain_id, served in parts.chains.items()}, parts.sources, parts.compute
        )
        self._performer = Performer(
            observers={chain_id: served.observer for chain_id, served in parts.chains.items()},
            executors={
                chain_id: Executor(served.chain, served.wallet, parts.clock, parts.compute, self._recheck)
                for chain_id, served in parts.chains.items()
            },
            network=parts.network,
            signer=parts.signer,
            journal=parts.journal,
            tracker=parts.tracker,
            clock=parts.clock,
            guard=self._guard,
        )
        self._submitters = {
            chain_id: Submitter(served.chain, served.wallet, parts.tracker) for chain_id, served in parts.chains.items()
        }
        self._expirers = {
            chain_id: Expirer(
                served.observer, self._submitters[chain_id], parts.clock, parts.signer.address, parts.duties.rank_interval
            )
            for chain_id, served in parts.chains.items()
        }
        self._attenders = {chain_id: self._attender(chain_id, served) for chain_id, served in parts.chains.items()}
        self._attending: dict[Attempt, bytes] = {}  # by whom it was performed
        self._room_to_attend = trio.Semaphore(_ATTENDED_AT_ONCE)

    def _attender(self, chain_id: int, served: Served) -> Attender:
        p = self._parts
        return Attender(
            observer=served.observer,
            signer=p.signer,
            journal=p.journal,
            aggregator=self._aggregator,
            submitter=self._submitters[chain_id],
            expirer=self._expirers[chain_id],
            tracker=p.tracker,
            clock=p.clock,
            compute=p.compute,
            recheck=self._recheck,
            send_vote=self._send_vote,
            settings=p.duties,
        )

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Works until cancelled."""
        p = self._parts
        async with trio.open_nursery() as following:
            # Before anything is heard: without the chain's lists every honest message would look like a stranger's.
            for chain_id, served in p.chains.items():
                await following.start(served.observer.run, self._expirers[chain_id].follow)
                following.start_soon(self._expirers[chain_id].run)
            async with (
                p.network.serve(VOTES, self._on_vote),
                p.network.subscribe(TASKS, self._task_rule, capacity=_TASKS_WAITING) as tasks,
                p.network.subscribe(EXECUTIONS, self._execution_rule, capacity=_EXECUTIONS_WAITING) as executions,
                trio.open_nursery() as work,
            ):
                work.start_soon(self._each_task, work, await p.journal.open_tasks(), tasks)
                work.start_soon(self._each_execution, work, executions)
                posts, to_post = trio.open_memory_channel[CheckIn](len(p.chains))  # one round of them
                work.start_soon(self._check_in, posts)
                work.start_soon(self._post_check_ins, to_post)
                self.running = True
                task_status.started()

    # rules: what the mesh may forward

    async def _task_rule(self, task: Task, source: PeerId) -> None:
        rules.check_task(task, self.registry, self._parts.clock.now())

    async def _execution_rule(self, execution: Execution, source: PeerId) -> None:
        rules.check_execution(execution, source, self.registry, self._parts.clock.now())

    # edges: message -> step

    async def _each_task(
        self, work: trio.Nursery, accepted: list[Accepted], tasks: trio.MemoryReceiveChannel[Received[Task]]
    ) -> None:
        """One task of its own for each of ours; what a former run had accepted comes first."""
        for task, publisher in accepted:
            await self._performer.start(work, task, publisher)
        async for received in tasks:
            if received.message.authorisation.performer == self._parts.signer.address:
                await self._performer.start(work, received.message, received.source)

    async def _each_execution(self, work: trio.Nursery, executions: trio.MemoryReceiveChannel[Received[Execution]]) -> None:
        """One task of its own for each package of others. What is left out here is published again while it matters."""
        async for received in executions:
            task = received.message.task
            attempt, performer = attempt_of(task), task.authorisation.performer
            if performer == self._parts.signer.address or attempt in self._attending:
                continue
            if sum(other == performer for other in self._attending.values()) >= _ATTENDED_OF_ONE:
                _log.warning("too many packages of one performer", performer="0x" + performer.hex())
                continue
            self._attending[attempt] = performer
            await self._room_to_attend.acquire()
            work.start_soon(self._guard, self._room_to_attend, task.task_id, self._attend, received.message)

    async def _guard(self, room: trio.Semaphore, task_id: int, step: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """The one broad `except` of the keeper: a defect in one task's step must not stop the others."""
        try:
            await step(*arguments)
        except Exception as error:  # noqa: BLE001  the guard
            named = first_of(error)
            if isinstance(named, TriggerXError) and not _defects(error):
                self._parts.tracker.end(task_id, named.code, detail=named.detail)
            else:
                _log.exception("a step failed", code="INTERNAL", task_id=str(task_id), step=step.__name__)
                self._parts.tracker.end(task_id, "INTERNAL")
        finally:
            room.release()

    # attesting

    async def _attend(self, execution: Execution) -> None:
        """Package in; this keeper's vote and, in its turn, a certificate out."""
        p, task = self._parts, execution.task
        try:
            p.tracker.step(task.task_id, "received", trace_id=task.trace_id, role="attester", due=task.authorisation.not_before)
            outcome = await self._attenders[task.chain_id].attend(execution)
            if outcome is not None:
                p.tracker.end(task.task_id, outcome)
        finally:
            del self._attending[attempt_of(task)]

    async def _on_vote(self, vote: Vote, source: PeerId) -> Taken:
        try:
            operator = rules.check_vote(vote, source, self.registry)
            self._aggregator.take(vote, operator)
        except Ignore as error:
            return Taken(error.code)
        except Reject as error:
            # No lie: the voter may see another branch of the chain, on which another block drew the committee.
            _log.info("vote not taken", code=error.code, peer=source)
            return Taken(error.code)
        return Taken()

    async def _send_vote(self, vote: Vote, operator: bytes) -> None:
        p = self._parts
        if operator == p.signer.address:
            try:
                self._aggregator.take(vote, operator)
            except (Ignore, Reject) as error:
                _log.debug("own vote not counted", code=error.code)
            return
        peer = self.registry.peer_of(vote.chain_id, operator)
        if peer is None:
            return
        while True:  # the round's end cancels
            try:
                with trio.fail_after(_EXCHANGE_S):
                    await p.network.request(peer, VOTES, vote)
                return
            except Reject as error:  # its lie costs it our vote, and us nothing
                _log.warning("vote not answered properly", peer=peer, code=error.code)
                return
            except (Transient, trio.TooSlowError):
                await trio.sleep(_RETRY_S)

    async def _check_in(self, posts: trio.MemorySendChannel[CheckIn]) -> None:
        p = self._parts
        while True:
            for served in p.chains.values():
                now = int(p.clock.now())
                check_in: CheckIn = p.signer.check_in(served.chain.domain, p.network.peer_id, p.version, p.sandbox, now)
                with suppress(trio.WouldBlock):  # the last ones are still on their way: gossip does not wait for them
                    posts.send_nowait(check_in)
                await p.network.publish(CHECK_INS, check_in)
            await trio.sleep(p.checkin_interval)

    async def _post_check_ins(self, check_ins: trio.MemoryReceiveChannel[CheckIn]) -> None:
        p = self._parts
        async for check_in in check_ins:
            if p.post_check_in is not None:
                await p.post_check_in(check_in, p.network.peer_id)
