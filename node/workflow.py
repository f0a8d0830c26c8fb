"""The keeper's edges: what arrives from the mesh, which step it goes to, and what leaves again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog
import trio

from consensus import committee, rules
from consensus.errors import Failed, Ignore, Reject, Transient, TriggerXError, first_of
from consensus.messages import Acknowledgement, CheckIn, Execution, Refusal, Task, Uint256, Vote
from node.aggregator import Aggregator
from node.duties import Attender, DutySettings
from node.executor import Executor, Ready, transient
from node.expirer import Expirer
from node.infra.chain import Chain, Wallet
from node.infra.clock import Clock
from node.infra.compute import Compute
from node.infra.observe import Observer, Registry, outcome_of
from node.journal import Accepted, Journal
from node.signer import Signer
from node.submitter import Submitter
from node.tracker import Tracker
from p2p.network import Network, PeerId, Received
from p2p.topics import ANSWERS, CHECK_INS, EXECUTIONS, TASKS, VOTES, Answer, Taken

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

_log = structlog.get_logger(__name__)

_TASKS_WAITING = 256  # a minute of the mesh's measured top rate of a few tasks a second
_EXECUTIONS_WAITING = 256
_PERFORMED_AT_ONCE = 256  # each waits most of its life, so memory is the bound, not the processor
_ATTENDED_AT_ONCE = 256
_ATTENDED_OF_ONE = 64  # packages of one performer: those without a record wait a minute for it, and leave the others room
_ENDED_KEPT = 1024  # ended attempts that are answered without a look at disk or chain
_ANSWERS_AT_ONCE = 256
_ANSWERS_OF_ONE = 8  # publishers of one attempt: its coordinator, and whoever else repeats it
_ANSWER_RETRY_S = 0.5
_EXCHANGE_S = 5.0
_REPUBLISH_S = 10.0  # a package that nobody had is published again until the chain has settled the task

_Attempt = tuple[int, int]
"""Task id and attempt."""


def _attempt(task: Task) -> _Attempt:
    return (task.task_id, task.authorisation.attempt)


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
        self._performing: dict[_Attempt, bool] = {}  # whether it is on disk yet
        self._ended: OrderedDict[_Attempt, Failed | Transient | None] = OrderedDict()
        self._answering: set[tuple[_Attempt, PeerId]] = set()
        self._attending: dict[_Attempt, bytes] = {}  # by whom it was performed
        self._room_to_perform = trio.Semaphore(_PERFORMED_AT_ONCE)
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
                work.start_soon(self._check_in)
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
            await self._start_performing(work, task, publisher)
        async for received in tasks:
            if received.message.authorisation.performer == self._parts.signer.address:
                await self._start_performing(work, received.message, received.source)

    async def _start_performing(self, work: trio.Nursery, task: Task, publisher: PeerId) -> None:
        attempt = _attempt(task)
        if task.chain_id not in self._executors:  # accepted once, and no longer configured
            _log.warning("no longer on this chain", task_id=str(task.task_id), chain_id=task.chain_id)
        elif attempt in self._ended:  # published again: its publisher has not had our answer
            self._answer_soon(work, task, publisher, self._ended[attempt])
        elif attempt in self._performing:
            if self._performing[attempt]:  # else it will be published once more; nothing is acknowledged before it is on disk
                self._answer_soon(work, task, publisher, None)
        else:
            self._performing[attempt] = False
            await self._room_to_perform.acquire()
            work.start_soon(self._guard, self._room_to_perform, task.task_id, self._perform, work, task, publisher)

    async def _each_execution(self, work: trio.Nursery, executions: trio.MemoryReceiveChannel[Received[Execution]]) -> None:
        """One task of its own for each package of others. What is left out here is published again while it matters."""
        async for received in executions:
            task = received.message.task
            attempt, performer = _attempt(task), task.authorisation.performer
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

    # performing

    async def _perform(self, work: trio.Nursery, task: Task, publisher: PeerId) -> None:
        """Task in; acknowledgement, transaction and package out."""
        p, attempt = self._parts, _attempt(task)
        p.tracker.step(task.task_id, "received", trace_id=task.trace_id, role="performer", due=task.authorisation.trigger_id)
        error: Failed | Transient | None = None
        try:
            outcome = await self._perform_once(work, task, publisher)
            p.tracker.end(task.task_id, outcome)
        except (Failed, Transient) as refusal:
            error, outcome = refusal, refusal.code
            p.tracker.end(task.task_id, error.code, detail=error.detail)
            self._answer_soon(work, task, publisher, error)
        finally:
            del self._performing[attempt]
        self._ended[attempt] = error
        while len(self._ended) > _ENDED_KEPT:
            self._ended.popitem(last=False)
        await p.journal.close_task(*attempt, outcome)

    async def _perform_once(self, work: trio.Nursery, task: Task, publisher: PeerId) -> str:
        """How the task ended on chain. Raises `Failed` or `Transient` with the reason it did not."""
        p, executor = self._parts, self._executors[task.chain_id]
        tx_hash = await executor.sent_before(task)
        ready = await executor.prepare(task) if tx_hash is None else None
        await p.journal.accept(task, publisher)
        self._performing[_attempt(task)] = True
        self._answer_soon(work, task, publisher, None)
        p.tracker.step(task.task_id, "accepted")
        if ready is not None:
            tx_hash = await self._until_deadline(task, executor.send, ready)
        elif p.clock.now() <= task.authorisation.deadline:
            await self._until_deadline(task, executor.send_again, task)
        assert tx_hash is not None  # one of the two has it
        p.tracker.step(task.task_id, "sent", execution_tx="0x" + tx_hash.hex())
        return await self._publish_and_confirm(task, tx_hash, executor)

    async def _until_deadline(self, task: Task, send: Callable[[Any], Awaitable[bytes]], what: Ready | Task) -> bytes:
        while True:
            try:
                return await send(what)
            except Transient as error:
                if self._parts.clock.now() >= task.authorisation.deadline:
                    # It may have left all the same: then its package is wanted.
                    sent = await self._executors[task.chain_id].sent_before(task)
                    if sent is None:
                        raise
                    return sent
                _log.warning("cannot send yet", code=error.code, detail=error.detail)
                await trio.sleep(_ANSWER_RETRY_S)

    async def _publish_and_confirm(self, task: Task, tx_hash: bytes, executor: Executor) -> str:
        p = self._parts
        served = p.chains[task.chain_id]
        all_rounds = (committee.MAX_ROUNDS + 2) * served.chain.round_seconds
        execution = p.signer.execution(task, served.chain.domain, tx_hash, await executor.call(task), 0)
        await p.network.publish(EXECUTIONS, execution)
        p.tracker.step(task.task_id, "published")
        with trio.move_on_after(max(0.0, task.authorisation.deadline - p.clock.now()) + all_rounds) as patience:
            await executor.mined(tx_hash)
        if patience.cancelled_caught:
            raise Failed("NOT_SETTLED", "the transaction was not mined")
        p.tracker.step(task.task_id, "mined")
        with trio.move_on_after(all_rounds):
            while True:
                # Before waiting: a former run may have sent it, and all be over since.
                if (outcome := await self._outcome(served.chain, task.task_id)) is not None:
                    return outcome
                with trio.move_on_after(_REPUBLISH_S):
                    return await served.observer.wait_settled(task.task_id)
                await p.network.publish(EXECUTIONS, execution)
        raise Failed("NOT_SETTLED", "neither certified nor expired in the time of all rounds")

    async def _outcome(self, chain: Chain, task_id: int) -> str | None:
        try:
            record = await chain.execution(task_id)
        except Transient:
            return None
        return outcome_of(record) if record is not None else None

    # answers to whoever published the task

    def _answer_soon(self, work: trio.Nursery, task: Task, publisher: PeerId, error: Failed | Transient | None) -> None:
        """Acknowledges, or refuses with `error`. Anyone may publish a task again, and need not take our answers."""
        key = (_attempt(task), publisher)
        of_this = sum(attempt == key[0] for attempt, _ in self._answering)
        if key not in self._answering and of_this < _ANSWERS_OF_ONE and len(self._answering) < _ANSWERS_AT_ONCE:
            self._answering.add(key)
            work.start_soon(self._answer_once, task, publisher, error)

    async def _answer_once(self, task: Task, publisher: PeerId, error: Failed | Transient | None) -> None:
        try:
            answer = self._acknowledge(task) if error is None else self._refuse(task, error)
            await self._answer(task, publisher, answer)
        finally:
            self._answering.discard((_attempt(task), publisher))

    def _acknowledge(self, task: Task) -> Answer:
        domain = self._parts.chains[task.chain_id].chain.domain
        acknowledgement: Acknowledgement = self._parts.signer.acknowledgement(task, domain, int(self._parts.clock.now()))
        return Answer(acknowledgement=acknowledgement)

    def _refuse(self, task: Task, error: Failed | Transient) -> Answer:
        refusal = Refusal(
            chain_id=task.chain_id,
            task_id=Uint256(task.task_id),
            attempt=task.authorisation.attempt,
            code=error.code[:64],
            detail=error.detail[:512],
            transient=transient(error),
        )
        return Answer(refusal=refusal.encode())

    async def _answer(self, task: Task, publisher: PeerId, answer: Answer) -> None:
        """Tells the publisher, again and again until it has it or the task is over: a coordinator may be restarting."""
        while self._parts.clock.now() < task.authorisation.deadline:
            try:
                with trio.fail_after(_EXCHANGE_S):
                    await self._parts.network.request(publisher, ANSWERS, answer)
                if answer.acknowledgement is not None:
                    self._parts.tracker.step(task.task_id, "acknowledged")
                return
            except Reject as error:
                _log.warning("not answered properly", peer=publisher, code=error.code)
                return
            except (Transient, trio.TooSlowError):
                await trio.sleep(_ANSWER_RETRY_S)

    # attesting

    async def _attend(self, execution: Execution) -> None:
        """Package in; this keeper's vote and, in its turn, a certificate out."""
        p, task = self._parts, execution.task
        try:
            p.tracker.step(task.task_id, "received", trace_id=task.trace_id, role="attester", due=task.authorisation.trigger_id)
            outcome = await self._attenders[task.chain_id].attend(execution)
            if outcome is not None:
                p.tracker.end(task.task_id, outcome)
        finally:
            del self._attending[_attempt(task)]

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
                await trio.sleep(_ANSWER_RETRY_S)

    async def _check_in(self) -> None:
        p = self._parts
        while True:
            for served in p.chains.values():
                now = int(p.clock.now())
                check_in: CheckIn = p.signer.check_in(served.chain.domain, p.network.peer_id, p.version, now)
                await p.network.publish(CHECK_INS, check_in)
            await trio.sleep(p.checkin_interval)
