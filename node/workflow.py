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
from consensus.messages import CheckIn, Execution, NotExecuted, PackageReference, RunCertificate, Task, Vote
from node.aggregator import Aggregator
from node.attending import Attending
from node.duties import Attender, DutySettings
from node.executor import Executor
from node.expirer import Expirer
from node.infra.chain import Chain, Wallet
from node.infra.clock import Clock
from node.infra.compute import Compute
from node.infra.observe import Observer, Registry
from node.journal import Accepted, Journal
from node.packages import NoContent, Packages
from node.performer import Performer
from node.recheck import Reader, Recheck
from node.run_certificates import RunCertificates
from node.run_duties import RunAttender
from node.scripts import Scripts
from node.scripts.unavailable import NoScripts
from node.seat import Seat
from node.signer import Signer
from node.submitter import Submitter
from node.tracker import Tracker
from node.verification.executions import Means
from p2p.content import Content
from p2p.network import Network, PeerId, Received
from p2p.topics import CHECK_INS, EXECUTIONS, NOT_EXECUTED, PACKAGES, RUN_CERTIFICATES, TASKS, VOTES, Taken

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

_log = structlog.get_logger(__name__)

_TASKS_WAITING = 256  # a minute of the mesh's measured top rate of a few tasks a second
_EXECUTIONS_WAITING = 256
_RUNS_WAITING = 64  # of up to 136 KiB
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
    scripts: Scripts = field(default_factory=NoScripts)
    content: Content = field(default_factory=NoContent)
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
        chains = {chain_id: served.chain for chain_id, served in parts.chains.items()}
        self._recheck = Recheck(chains, parts.sources, parts.compute)
        self._certificates = RunCertificates(chains, parts.registry, parts.clock, parts.compute)
        packages = Packages(parts.network, parts.content)
        self._performer = Performer(
            observers={chain_id: served.observer for chain_id, served in parts.chains.items()},
            executors={
                chain_id: Executor(served.chain, served.wallet, parts.clock, parts.compute, self._recheck, parts.scripts)
                for chain_id, served in parts.chains.items()
            },
            network=parts.network,
            packages=packages,
            certificates=self._certificates,
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
        self._attending = Attending(
            own=parts.signer.address,
            attenders={chain_id: self._attender(chain_id, served) for chain_id, served in parts.chains.items()},
            run_attenders={chain_id: self._run_attender(served) for chain_id, served in parts.chains.items()},
            packages=packages,
            registry=parts.registry,
            tracker=parts.tracker,
            clock=parts.clock,
            guard=self._guard,
        )

    def _attender(self, chain_id: int, served: Served) -> Attender:
        p = self._parts
        return Attender(
            observer=served.observer,
            seat=self._seat(),
            journal=p.journal,
            submitter=self._submitters[chain_id],
            expirer=self._expirers[chain_id],
            tracker=p.tracker,
            clock=p.clock,
            means=self._means(served),
            settings=p.duties,
        )

    def _run_attender(self, served: Served) -> RunAttender:
        p = self._parts
        return RunAttender(
            chain=served.chain,
            seat=self._seat(),
            journal=p.journal,
            certificates=self._certificates,
            tracker=p.tracker,
            clock=p.clock,
            means=self._means(served),
            publish=self._spread,
        )

    def _seat(self) -> Seat:
        p = self._parts
        return Seat(p.signer, self._aggregator, p.tracker, p.clock, self._send_vote, p.duties.rank_interval)

    def _means(self, served: Served) -> Means:
        return Means(served.chain, self._parts.compute, self._recheck, self._parts.scripts)

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
                p.network.subscribe(PACKAGES, self._reference_rule, capacity=_EXECUTIONS_WAITING) as references,
                p.network.subscribe(NOT_EXECUTED, self._run_rule, capacity=_RUNS_WAITING) as not_executed,
                p.network.subscribe(RUN_CERTIFICATES, self._certificates.check, capacity=_RUNS_WAITING) as certificates,
                trio.open_nursery() as work,
            ):
                work.start_soon(self._each_task, work, await p.journal.open_tasks(), tasks)
                work.start_soon(self._attending.executions, work, executions)
                work.start_soon(self._attending.references, work, references)
                work.start_soon(self._attending.runs, work, not_executed)
                work.start_soon(self._each_certificate, certificates)
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

    async def _reference_rule(self, reference: PackageReference, source: PeerId) -> None:
        rules.check_reference(reference, source, self.registry)

    async def _run_rule(self, said: NotExecuted, source: PeerId) -> None:
        rules.check_not_executed(said, source, self.registry, self._parts.clock.now())

    # edges: message -> step

    async def _each_task(
        self, work: trio.Nursery, accepted: list[Accepted], tasks: trio.MemoryReceiveChannel[Received[Task]]
    ) -> None:
        """One task of its own for each of ours; what a former run had accepted comes first."""
        for task, publisher, decision in accepted:
            await self._performer.start(work, task, publisher, decision)
        async for received in tasks:
            if received.message.authorisation.performer == self._parts.signer.address:
                await self._performer.start(work, received.message, received.source)

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

    async def _each_certificate(self, certificates: trio.MemoryReceiveChannel[Received[RunCertificate]]) -> None:
        async for received in certificates:
            self._certificates.take(received.message)

    async def _spread(self, certificate: RunCertificate) -> None:
        await self._parts.network.publish(RUN_CERTIFICATES, certificate)

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
