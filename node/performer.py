"""The performer's duty: takes a task on, answers its publisher, executes once, publishes the package, sees the task end.

A task whose script asks for no transaction ends in its word of that, published until a committee has confirmed it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import structlog
import trio

from consensus import committee, runs
from consensus.errors import Failed, Reject, Transient
from consensus.lifecycle import SCRIPT_FAULTS
from consensus.messages import Acknowledgement, Execution, Refusal, Task, Uint256
from node.decisions import Decision
from node.executor import Executor, Ready, transient
from node.infra.clock import Clock
from node.infra.observe import COURSES, Observer, outcome_of
from node.journal import Journal
from node.packages import Packages
from node.run_certificates import RunCertificates
from node.signer import Signer
from node.tracker import Tracker
from p2p.network import Network, PeerId
from p2p.topics import ANSWERS, NOT_EXECUTED, Answer

_log = structlog.get_logger(__name__)

_AT_ONCE = 256  # attempts; each waits most of its life, so memory is the bound, not the processor
_ENDED_KEPT = 1024  # ended attempts that are answered without a look at disk or chain
_ANSWERS_AT_ONCE = 256
_ANSWERS_OF_ONE = 8  # publishers of one attempt: its coordinator, and whoever else repeats it
_ANSWER_S = 5.0
_RETRY_S = 0.5
_LOOK_S = 2.0
_REPUBLISH_S = 10.0  # a package that nobody had is published again until the chain has settled the task

Attempt = tuple[int, int]
"""Task id and attempt."""

Guard = Callable[..., Awaitable[None]]
"""`guard(room, task_id, step, *arguments)`: runs a step, whatever it raises, and gives its room back."""


def attempt_of(task: Task) -> Attempt:
    return (task.task_id, task.authorisation.attempt)


class Performer:
    """Performs tasks on all chains, each in a task of its own."""

    def __init__(
        self,
        observers: Mapping[int, Observer],
        executors: Mapping[int, Executor],
        network: Network,
        packages: Packages,
        certificates: RunCertificates,
        signer: Signer,
        journal: Journal,
        tracker: Tracker,
        clock: Clock,
        guard: Guard,
    ) -> None:
        self._observers = observers
        self._executors = executors
        self._network = network
        self._packages = packages
        self._certificates = certificates
        self._signer = signer
        self._journal = journal
        self._tracker = tracker
        self._clock = clock
        self._guard = guard
        self._performing: dict[Attempt, bool] = {}  # whether it is on disk yet
        self._ended: OrderedDict[Attempt, Failed | Transient | None] = OrderedDict()
        self._answering: set[tuple[Attempt, PeerId]] = set()
        self._room = trio.Semaphore(_AT_ONCE)

    async def start(self, work: trio.Nursery, task: Task, publisher: PeerId, decided: Decision | None = None) -> None:
        """Performs the task in `work`, once however often it comes; waits while too many are under way.

        `decided` is what a former run of this program has journalled.
        """
        attempt = attempt_of(task)
        if task.chain_id not in self._executors:  # accepted once, and no longer configured
            _log.warning("no longer on this chain", task_id=str(task.task_id), chain_id=task.chain_id)
        elif attempt in self._ended or self._performing.get(attempt):  # its publisher has not had our answer
            self._answer_soon(work, task, publisher)
        elif attempt not in self._performing:  # else not on disk yet: nothing is acknowledged before
            self._performing[attempt] = False
            await self._room.acquire()
            work.start_soon(self._guard, self._room, task.task_id, self._perform, work, task, publisher, decided)

    async def _perform(self, work: trio.Nursery, task: Task, publisher: PeerId, decided: Decision | None) -> None:
        """Task in; acknowledgement, transaction and package out."""
        attempt = attempt_of(task)
        self._tracker.step(task.task_id, "received", trace_id=task.trace_id, role="performer", due=task.authorisation.not_before)
        error: Failed | Transient | None = None
        try:
            outcome = await self._perform_once(work, task, publisher, decided)
        except (Failed, Transient) as refusal:
            error, outcome = refusal, refusal.code
        finally:
            del self._performing[attempt]
        self._ended[attempt] = error
        while len(self._ended) > _ENDED_KEPT:
            self._ended.popitem(last=False)
        self._tracker.end(task.task_id, outcome, **({"detail": error.detail} if error is not None else {}))
        if error is not None:
            self._answer_soon(work, task, publisher)
        await self._journal.close_task(*attempt, outcome)

    async def _perform_once(self, work: trio.Nursery, task: Task, publisher: PeerId, decided: Decision | None) -> str:
        """How the task ended. Raises `Failed` or `Transient` with the reason it did not."""
        executor = self._executors[task.chain_id]
        former = await self._journal.outcome(*attempt_of(task)) if decided is None else ""
        if former:  # before a restart, and somebody publishes it again
            return self._ended_before(former)
        tx_hash = await executor.sent_before(task)
        ready: Ready | None = None
        if decided is None:
            decided = await self._decide(task, executor, sent=tx_hash is not None)
            ready = await executor.prepare(task, decided) if decided.calls and tx_hash is None else None
        await self._journal.accept(task, publisher, decided)
        self._performing[attempt_of(task)] = True
        self._answer_soon(work, task, publisher)
        self._tracker.step(task.task_id, "accepted")
        if not decided.calls:
            return await self._report(task, decided)
        if ready is not None:
            tx_hash = await self._until_deadline(task, executor.send, ready)
        elif tx_hash is None:
            tx_hash = await self._until_deadline(task, partial(executor.resume, task), decided)
        elif self._clock.now() <= task.authorisation.deadline:
            await self._until_deadline(task, partial(executor.send_again, task), decided)
        self._tracker.step(task.task_id, "sent", execution_tx="0x" + tx_hash.hex())
        return await self._publish_and_confirm(task, decided, tx_hash, executor)

    @staticmethod
    def _ended_before(outcome: str) -> str:
        """What is answered once more: a task that ran its course is acknowledged, another refused with its reason."""
        if outcome in SCRIPT_FAULTS or outcome in COURSES:
            return outcome
        raise Failed(outcome, "this attempt has ended before")

    async def _decide(self, task: Task, executor: Executor, *, sent: bool) -> Decision:
        if sent:  # by a release that journalled no decisions, and knew static jobs only
            return await executor.static(task, task.job())
        if await self._journal.reported(task.task_id):  # in an earlier attempt: no transaction ever follows from this keeper
            raise Failed("RUN_REPORTED", "an earlier attempt's script asked for no transaction")
        return await executor.decide(task)

    async def _until_deadline(self, task: Task, send: Callable[[Any], Awaitable[bytes]], what: Ready | Decision) -> bytes:
        while True:
            try:
                return await send(what)
            except Transient as error:
                if self._clock.now() + _RETRY_S >= task.authorisation.deadline:  # this reason says more than a passed deadline
                    # It may have left all the same: then its package is wanted.
                    sent = await self._executors[task.chain_id].sent_before(task)
                    if sent is None:
                        raise
                    return sent
                _log.warning("cannot send yet", code=error.code, detail=error.detail)
                await trio.sleep(_RETRY_S)

    async def _publish_and_confirm(self, task: Task, decided: Decision, tx_hash: bytes, executor: Executor) -> str:
        observer = self._observers[task.chain_id]
        all_rounds = (committee.MAX_ROUNDS + 2) * observer.chain.round_seconds
        package = self._package(task, decided, tx_hash)
        cid = await self._publish(package)
        self._tracker.step(task.task_id, "published", **({"package": cid} if cid else {}))
        with trio.move_on_after(max(0.0, task.authorisation.deadline - self._clock.now()) + all_rounds) as patience:
            mined = await executor.mined(tx_hash)
        if patience.cancelled_caught:
            raise Failed("NOT_SETTLED", "the transaction was not mined")
        self._tracker.step(task.task_id, "mined", execution_tx="0x" + mined.tx_hash.hex())
        if mined.tx_hash != tx_hash:  # it was stuck, and another with the same nonce took its place
            package = self._package(task, decided, mined.tx_hash)
            cid = await self._publish(package)
            self._tracker.step(task.task_id, "replaced", **({"package": cid} if cid else {}))
        with trio.move_on_after(all_rounds):
            while True:
                # Before waiting: a former run may have sent it, and all be over since.
                with suppress(Transient):
                    record = await observer.chain.execution(task.task_id)
                    if record is not None and (outcome := outcome_of(record)) is not None:
                        return outcome
                    if record is None and self._clock.now() <= task.authorisation.deadline:  # a reorganisation lost it
                        await executor.send_again(task, decided)
                with trio.move_on_after(_REPUBLISH_S):
                    return await observer.wait_settled(task.task_id)
                with trio.move_on_after(_LOOK_S):  # which version is on the chain after a reorganisation
                    mined = await executor.mined(package.transaction)
                    if mined.tx_hash != package.transaction:
                        package, cid = self._package(task, decided, mined.tx_hash), ""
                cid = await self._publish(package, cid)
        raise Failed("NOT_SETTLED", "neither certified nor expired in the time of all rounds")

    def _package(self, task: Task, decided: Decision, tx_hash: bytes) -> Execution:
        domain, fee, run = self._observers[task.chain_id].chain.domain, decided.fee, decided.run
        return self._signer.execution(task, domain, tx_hash, decided.target, decided.call, fee, run)

    async def _publish(self, package: Execution, cid: str = "") -> str:
        """The package's CID, '' where it is not kept; what could not go out now goes out with the next try."""
        try:
            return await self._packages.publish(package, cid)
        except Transient as error:
            _log.warning("package not published", task_id=str(package.task.task_id), code=error.code, detail=error.detail)
            return cid

    async def _report(self, task: Task, decided: Decision) -> str:
        """Publishes that no transaction follows until a committee has confirmed it; the script's reason, then."""
        domain = self._observers[task.chain_id].chain.domain
        said = self._signer.not_executed(task, domain, decided.code, decided.detail, decided.run, decided.fee)
        self._tracker.step(task.task_id, "reported", reason=decided.code, detail=decided.detail)
        digest = said.digest()
        while self._clock.now() < runs.opens(task, runs.ROUNDS):
            await self._network.publish(NOT_EXECUTED, said)
            with trio.move_on_after(min(_REPUBLISH_S, max(0.0, runs.opens(task, runs.ROUNDS) - self._clock.now()))):
                await self._certificates.wait(digest)
                return decided.code
        raise Failed("NO_QUORUM", f"{decided.code} was not confirmed in the time of all rounds")

    # answers to whoever published the task

    def _answer_soon(self, work: trio.Nursery, task: Task, publisher: PeerId) -> None:
        """Anyone may publish a task again, and need not take our answers: that must not cost much."""
        key = (attempt_of(task), publisher)
        of_this = sum(attempt == key[0] for attempt, _ in self._answering)
        if key not in self._answering and of_this < _ANSWERS_OF_ONE and len(self._answering) < _ANSWERS_AT_ONCE:
            self._answering.add(key)
            work.start_soon(self._answer, task, publisher)

    async def _answer(self, task: Task, publisher: PeerId) -> None:
        """Tells the publisher, again and again until it has it or the task is over: a coordinator may be restarting."""
        attempt = attempt_of(task)
        try:
            while self._clock.now() < task.authorisation.deadline:
                error = self._ended.get(attempt)
                try:
                    with trio.fail_after(_ANSWER_S):
                        answer = self._acknowledge(task) if error is None else self._refuse(task, error)
                        await self._network.request(publisher, ANSWERS, answer)
                except Reject as lie:
                    _log.warning("not answered properly", peer=publisher, code=lie.code)
                    return
                except (Transient, trio.TooSlowError):
                    await trio.sleep(_RETRY_S)
                else:
                    if error is None:
                        self._tracker.step(task.task_id, "acknowledged")
                    if self._ended.get(attempt) is error:
                        return
        finally:
            self._answering.discard((attempt, publisher))

    def _acknowledge(self, task: Task) -> Answer:
        domain = self._observers[task.chain_id].domain
        acknowledgement: Acknowledgement = self._signer.acknowledgement(task, domain, int(self._clock.now()))
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
