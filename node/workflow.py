"""The keeper's edges: what arrives from the mesh, which step it goes to, and what leaves again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog
import trio

from consensus import rules
from consensus.errors import Failed, Ignore, Reject, Transient, TriggerXError, first_of
from consensus.messages import Acknowledgement, CheckIn, Execution, Refusal, Task, Uint256, Vote
from node.aggregator import Aggregator
from node.duties import Attender, DutySettings
from node.executor import Executor, Ready, transient
from node.infra.chain import Chain, Wallet
from node.infra.clock import Clock
from node.infra.compute import Compute
from node.infra.observe import Observer, Registry
from node.journal import Journal
from node.signer import Signer
from node.submitter import Submitter
from node.tracker import Tracker
from p2p.network import Network, PeerId
from p2p.topics import ANSWERS, CHECK_INS, EXECUTIONS, TASKS, VOTES, Answer, Taken

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

_log = structlog.get_logger(__name__)

_TASKS_WAITING = 256  # a minute of the mesh's measured top rate of a few tasks a second
_EXECUTIONS_WAITING = 256
_AT_ONCE = 256  # tasks and duties alive at once; each waits most of its life, so memory is the bound, not the processor
_ANSWER_RETRY_S = 0.5
_REPUBLISH_S = 10.0  # a package that nobody had is published again until the chain has settled the task


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
    version: str
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
        self._executors = {
            chain_id: Executor(served.chain, served.wallet, parts.clock, parts.compute)
            for chain_id, served in parts.chains.items()
        }
        self._attenders = {chain_id: self._attender(served) for chain_id, served in parts.chains.items()}
        self._performing: set[tuple[int, int]] = set()
        self._attending: set[int] = set()
        self._room = trio.CapacityLimiter(_AT_ONCE)

    def _attender(self, served: Served) -> Attender:
        p = self._parts
        return Attender(
            observer=served.observer,
            wallet=served.wallet,
            signer=p.signer,
            journal=p.journal,
            aggregator=self._aggregator,
            submitter=Submitter(served.chain, served.wallet, p.tracker),
            tracker=p.tracker,
            clock=p.clock,
            compute=p.compute,
            send_vote=self._send_vote,
            settings=p.duties,
        )

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Works until cancelled."""
        p = self._parts
        async with (
            trio.open_nursery() as nursery,
            p.network.serve(VOTES, self._on_vote),
            p.network.subscribe(TASKS, self._task_rule, capacity=_TASKS_WAITING) as tasks,
            p.network.subscribe(EXECUTIONS, self._execution_rule, capacity=_EXECUTIONS_WAITING) as executions,
        ):
            for served in p.chains.values():
                await nursery.start(served.observer.run)
            for accepted in await p.journal.open_tasks():
                nursery.start_soon(self._guard, self._perform, accepted.task, accepted.publisher)
            nursery.start_soon(self._check_in)
            self.running = True
            task_status.started()
            async with trio.open_nursery() as work:
                work.start_soon(self._each, work, tasks, self._perform)
                work.start_soon(self._each, work, executions, self._attend)

    # rules: what the mesh may forward

    async def _task_rule(self, task: Task, source: PeerId) -> None:
        rules.check_task(task, self.registry, self._parts.clock.now())

    async def _execution_rule(self, execution: Execution, source: PeerId) -> None:
        rules.check_execution(execution, source, self.registry, self._parts.clock.now())

    # edges: message -> step

    async def _each(self, work: trio.Nursery, messages: trio.MemoryReceiveChannel, step: Callable[..., Awaitable[None]]) -> None:  # type: ignore[type-arg]
        async for received in messages:
            work.start_soon(self._guard, step, received.message, received.source)

    async def _guard(self, step: Callable[..., Awaitable[None]], message: Task | Execution, source: PeerId) -> None:
        """The one broad `except` of the keeper: a defect in one task's step must not stop the others."""
        task = message if isinstance(message, Task) else message.task
        async with self._room:
            try:
                await step(message, source)
            except TriggerXError as error:
                self._parts.tracker.end(task.task_id, error.code, detail=error.detail)
            except Exception:  # noqa: BLE001  the guard
                _log.exception("a step failed", code="INTERNAL", task_id=str(task.task_id), step=step.__name__)
                self._parts.tracker.end(task.task_id, "INTERNAL")

    async def _perform(self, task: Task, publisher: PeerId) -> None:
        """Task in; acknowledgement, transaction and package out."""
        key = (task.task_id, task.authorisation.attempt)
        if task.authorisation.performer != self._parts.signer.address:
            return
        if key in self._performing:  # published again: its publisher has not had our answer
            await self._acknowledge(task, publisher)
            return
        self._performing.add(key)
        try:
            await self._perform_once(task, publisher)
        finally:
            self._performing.discard(key)

    async def _perform_once(self, task: Task, publisher: PeerId) -> None:
        p = self._parts
        executor = self._executors[task.chain_id]
        p.tracker.step(task.task_id, "received", trace_id=task.trace_id, role="performer", due=task.authorisation.trigger_id)
        tx_hash = await executor.sent_before(task)
        try:
            ready = await executor.prepare(task) if tx_hash is None else None
            await p.journal.accept(task, publisher)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._acknowledge, task, publisher)
                p.tracker.step(task.task_id, "accepted")
                if ready is not None:
                    tx_hash = await self._send(executor, ready)
                assert tx_hash is not None
                p.tracker.step(task.task_id, "sent", execution_tx="0x" + tx_hash.hex())
                with trio.move_on_after(self._left(task)) as patience:
                    await self._publish_and_confirm(task, tx_hash, executor)
                nursery.cancel_scope.cancel()
            if patience.cancelled_caught:
                raise Failed("NOT_SETTLED", "neither certified nor expired in the time of all rounds")
        except* (Failed, Transient) as group:
            error = first_of(group)
            assert isinstance(error, Failed | Transient)  # all that `except*` lets in
            await p.journal.close_task(task.task_id, task.authorisation.attempt, error.code)
            p.tracker.end(task.task_id, error.code, detail=error.detail)
            await self._refuse(task, publisher, error)

    def _left(self, task: Task) -> float:
        """Seconds that a transaction sent in time may still need to be mined and settled."""
        chain = self._parts.chains[task.chain_id].chain
        return max(0.0, task.authorisation.deadline - self._parts.clock.now()) + 5 * chain.round_seconds

    async def _send(self, executor: Executor, ready: Ready) -> bytes:
        while True:
            try:
                return await executor.send(ready)
            except Transient as error:
                if self._parts.clock.now() >= ready.task.authorisation.deadline:
                    raise
                _log.warning("cannot send yet", code=error.code, detail=error.detail)
                await trio.sleep(_ANSWER_RETRY_S)

    async def _publish_and_confirm(self, task: Task, tx_hash: bytes, executor: Executor) -> None:
        p = self._parts
        served = p.chains[task.chain_id]
        call = await executor.call(task)
        execution = p.signer.execution(task, served.chain.domain, tx_hash, call, 0)
        await p.network.publish(EXECUTIONS, execution)
        p.tracker.step(task.task_id, "published")
        await executor.mined(tx_hash)
        p.tracker.step(task.task_id, "mined")
        await p.journal.close_task(task.task_id, task.authorisation.attempt, "mined")
        while not served.observer.settled(task.task_id):
            with trio.move_on_after(_REPUBLISH_S):
                await served.observer.wait_settled(task.task_id)
                break
            await p.network.publish(EXECUTIONS, execution)
        p.tracker.end(task.task_id, "done")

    async def _acknowledge(self, task: Task, publisher: PeerId) -> None:
        domain = self._parts.chains[task.chain_id].chain.domain
        acknowledgement: Acknowledgement = self._parts.signer.acknowledgement(task, domain, int(self._parts.clock.now()))
        await self._answer(task, publisher, Answer(acknowledgement=acknowledgement))

    async def _refuse(self, task: Task, publisher: PeerId, error: Failed | Transient) -> None:
        refusal = Refusal(
            chain_id=task.chain_id,
            task_id=Uint256(task.task_id),
            attempt=task.authorisation.attempt,
            code=error.code[:64],
            detail=error.detail[:512],
            transient=transient(error),
        )
        with trio.move_on_after(_REPUBLISH_S):
            await self._answer(task, publisher, Answer(refusal=refusal.encode()))

    async def _answer(self, task: Task, publisher: PeerId, answer: Answer) -> None:
        """Tells the publisher, again and again until it has it or the task is over: a coordinator may be restarting."""
        while self._parts.clock.now() < task.authorisation.deadline:
            try:
                with trio.fail_after(5):
                    await self._parts.network.request(publisher, ANSWERS, answer)
                self._parts.tracker.step(task.task_id, "acknowledged")
                return
            except (Transient, trio.TooSlowError):
                await trio.sleep(_ANSWER_RETRY_S)

    async def _attend(self, execution: Execution, source: PeerId) -> None:
        """Package in; this keeper's vote and, in its turn, a certificate out."""
        p = self._parts
        task_id = execution.task.task_id
        if execution.task.authorisation.performer == p.signer.address or task_id in self._attending:
            return
        self._attending.add(task_id)
        try:
            p.tracker.step(
                task_id,
                "received",
                trace_id=execution.task.trace_id,
                role="attester",
                due=execution.task.authorisation.trigger_id,
            )
            outcome = await self._attenders[execution.task.chain_id].attend(execution)
            p.tracker.end(task_id, "done" if outcome == "SETTLED" else outcome)
        finally:
            self._attending.discard(task_id)

    async def _on_vote(self, vote: Vote, source: PeerId) -> Taken:
        try:
            self._aggregator.take(vote, rules.check_vote(vote, source, self.registry))
        except Ignore as error:
            return Taken(error.code)
        except Reject as error:
            _log.warning("vote refused", code=error.code, peer=source)
            raise
        return Taken()

    async def _send_vote(self, vote: Vote, operator: bytes) -> None:
        p = self._parts
        if operator == p.signer.address:
            try:
                self._aggregator.take(vote, operator)
            except Ignore as error:
                _log.debug("own vote not counted again", code=error.code)
            return
        peer = self.registry.peer_of(vote.chain_id, operator)
        if peer is None:
            return
        while True:  # the round's end cancels
            try:
                with trio.fail_after(5):
                    await p.network.request(peer, VOTES, vote)
                return
            except (Transient, trio.TooSlowError):
                await trio.sleep(_ANSWER_RETRY_S)

    async def _check_in(self) -> None:
        p = self._parts
        while True:
            for served in p.chains.values():
                now = int(p.clock.now())
                check_in: CheckIn = p.signer.check_in(served.chain.domain, p.network.peer_id, p.version, now)
                await p.network.publish(CHECK_INS, check_in)
            await trio.sleep(p.checkin_interval)
