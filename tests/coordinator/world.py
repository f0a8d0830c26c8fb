"""Coordinators over the memory mesh and the memory chain on a virtual clock, with keepers that do what a test says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import NoReturn

import trio

from consensus import bls, ecdsa
from consensus.codec import keccak
from consensus.conditions import ApiSource, Source
from consensus.errors import Transient
from consensus.messages import Refusal, Task, Uint256
from consensus.triggers import Cron, Interval
from coordinator import scoring
from coordinator.alerts import Alerts
from coordinator.attempts import DispatchPolicy
from coordinator.coordinator import Coordinator
from coordinator.definitions.posted import Posted
from coordinator.parts import Parts
from coordinator.store.memory import MemoryStore
from coordinator.store.port import Store
from coordinator.store.records import SHARDS, Attempt, Job
from coordinator.store.records import Task as TaskRecord
from coordinator.streams.memory import MemoryServer, MemoryStreams
from node.infra.chain import ChainEvent, ExecutionStatus, TaskExpired, TaskValidated
from node.infra.chain_memory import Ledger, MemoryChain
from node.infra.chain_memory_state import Context, State
from node.infra.clock import TrioClock
from node.infra.compute import inline
from node.infra.observe import Observer, Registry
from node.infra.secret import Secret
from node.infra.sources import Heard, Value
from node.packages import NoContent
from node.signer import Signer
from p2p.content import Content
from p2p.memory import MemoryMesh, MemoryNetwork
from p2p.network import PeerId, Received
from p2p.topics import ANSWERS, CHECK_INS, TASKS, Answer

DISPATCHER = keccak(b"dispatcher")
OWNER = keccak(b"owner")[:20]
TARGET = keccak(b"target")[:20]
KEY_OWNER = "devnet"

Behaviour = Callable[["FakeKeeper", Task, PeerId], Awaitable[None]]


class FakeKeeper:
    """A registered keeper that sees every task and does with its own what `behaviour` says."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.signer = Signer(keccak(b"operator %d" % number), bls.secret_from_seed(keccak(b"bls %d" % number)))
        self.peer_id = f"keeper-{number}"
        self.behaviour: Behaviour = executes
        self.sandbox = "embedded"
        self.heard: list[bytes] = []
        """Wire bytes of every task published, in order, its own or not."""
        self.network: MemoryNetwork = world.mesh.join(self.peer_id)
        self.wallet = MemoryChain(world.clock, ledger=world.ledger).wallet(self.signer.address)

    @property
    def address(self) -> bytes:
        return self.signer.address

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery, self.network.subscribe(TASKS, _any, capacity=256) as tasks:
            task_status.started()
            async for received in tasks:
                self.heard.append(received.message.encode())
                if received.message.authorisation.performer == self.address:
                    nursery.start_soon(self._behave, received)

    async def _behave(self, received: Received[Task]) -> None:
        await self.behaviour(self, received.message, received.source)

    async def check_in(self) -> None:
        now = int(self.world.clock.now())
        message = self.signer.check_in(self.world.ledger.domain, self.peer_id, "0.1.0", self.sandbox, now)
        await self.network.publish(CHECK_INS, message)

    async def answer(self, source: PeerId, answer: Answer) -> None:
        try:
            await self.network.request(source, ANSWERS, answer)
        except Transient:
            return  # the coordinator is gone; a real keeper tries again

    async def acknowledge(self, task: Task, source: PeerId) -> None:
        said = self.signer.acknowledgement(task, self.world.ledger.domain, int(self.world.clock.now()))
        await self.answer(source, Answer(acknowledgement=said))

    async def refuse(self, task: Task, source: PeerId, code: str, *, transient: bool = True) -> None:
        a = task.authorisation
        refusal = Refusal(task.chain_id, Uint256(a.task_id), a.attempt, code, "because", transient)
        await self.answer(source, Answer(refusal=refusal.encode()))

    async def execute(self, task: Task) -> None:
        await self.world.clock.sleep_until(task.authorisation.not_before)
        call = self.world.calls[task.authorisation.job_id]
        prepared = await self.wallet.prepare_execution(task.authorisation, task.signature, task.authorisation.target, call, 0)
        await self.wallet.send(prepared)


async def _any(message: object, source: PeerId) -> None:
    """Accepts: what keepers check is theirs to test."""


async def executes(keeper: FakeKeeper, task: Task, source: PeerId) -> None:
    await keeper.acknowledge(task, source)
    await keeper.execute(task)


async def is_silent(keeper: FakeKeeper, task: Task, source: PeerId) -> None:
    """Hears it, and is never heard of again."""


async def only_acknowledges(keeper: FakeKeeper, task: Task, source: PeerId) -> None:
    await keeper.acknowledge(task, source)


def refuses(code: str, *, transient: bool = True) -> Behaviour:
    async def behave(keeper: FakeKeeper, task: Task, source: PeerId) -> None:
        await keeper.refuse(task, source, code, transient=transient)

    return behave


class FakeSources:
    """URLs and what they answer; one that is not listed does not answer."""

    def __init__(self) -> None:
        self.values: dict[str, Decimal] = {}

    async def read_each(self, sources: Sequence[Source]) -> Mapping[Source, Value]:
        await trio.lowlevel.checkpoint()
        away = Transient("SOURCE_UNREACHABLE", "nobody there")
        return {each: self.values.get(each.url, away) for each in sources if isinstance(each, ApiSource)}

    async def follow(self, url: str, hear: Callable[[Heard], Awaitable[None]]) -> NoReturn:
        raise NotImplementedError(url)

    def place(self, source: Source) -> str:
        return self.host_of(source)

    def host_of(self, source: Source) -> str:
        assert isinstance(source, ApiSource)
        return source.url


@dataclass
class Process:
    """One coordinator's life, from its start to its end."""

    coordinator: Coordinator
    scope: trio.CancelScope
    ended: trio.Event


class World:
    """What survives coordinators' processes (store, streams, chain, mesh, keepers), and the coordinators by name."""

    def __init__(self, nursery: trio.Nursery, store: Store, policy: DispatchPolicy, keeper_policy: scoring.Policy) -> None:
        self.clock = TrioClock()
        self.ledger = Ledger(self.clock, round_seconds=12)
        self.mesh = MemoryMesh(latency=lambda _a, _b: 0.005)
        self.server = MemoryServer()
        self.sources = FakeSources()
        self.store = store
        self.policy = policy
        self.keeper_policy = keeper_policy
        self.lookahead = 5.0
        self.content: Content = NoContent()
        self.keepers: list[FakeKeeper] = []
        self.calls: dict[int, bytes] = {}
        self.processes: dict[str, Process] = {}
        self._nursery = nursery
        self.chain = MemoryChain(self.clock, ledger=self.ledger)
        self.ledger.list_dispatcher(ecdsa.address_of(DISPATCHER))
        self.ledger.deposit(OWNER, 10**20)

    @property
    def coordinator(self) -> Coordinator:
        """The one that was started last."""
        return next(reversed(self.processes.values())).coordinator

    async def add_keepers(self, count: int, behaviour: Behaviour = executes) -> None:
        for _ in range(count):
            keeper = FakeKeeper(self, len(self.keepers) + 1)
            keeper.behaviour = behaviour
            self.ledger.register(keeper.address, keeper.signer.key, keeper.peer_id)
            self.keepers.append(keeper)
            await self._nursery.start(keeper.run)
        self.ledger.advance_epoch()

    async def start(self, name: str = "coordinator") -> Coordinator:
        """A coordinator's process; ready, it has heard every keeper that there is, and has its share of the shards."""
        former = self.processes.pop(name, None)
        if former is not None:
            await former.ended.wait()
        self.server.join(name)
        self.chain = MemoryChain(self.clock, ledger=self.ledger)
        observer = Observer(self.chain)
        chain_id = self.ledger.domain.chain_id
        coordinator = Coordinator(
            Parts(
                store=self.store,
                streams=MemoryStreams(self.server, name),
                instance=name,
                network=self.mesh.join(name),
                sources=self.sources,
                alerts=Alerts(self.store, self.clock),
                observers={chain_id: observer},
                registry=Registry({chain_id: observer}),
                dispatcher_key=Secret(DISPATCHER),
                wallets={chain_id: self.chain.wallet(ecdsa.address_of(DISPATCHER))},
                clock=self.clock,
                compute=inline,
                policy=self.policy,
                keeper_policy=self.keeper_policy,
                content=self.content,
                lookahead=self.lookahead,
                poll_interval=1.0,
            )
        )
        process = self.processes[name] = Process(coordinator, trio.CancelScope(), trio.Event())

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            try:
                with process.scope:
                    await coordinator.run(task_status=task_status)
            finally:
                process.ended.set()

        await self._nursery.start(run)
        await self.hear_keepers()
        return coordinator

    async def shared(self) -> None:
        """Returns once every shard is held by one of the coordinators, evenly."""
        while True:
            held = [set(p.coordinator.ownership.fences) for p in self.processes.values() if not p.ended.is_set()]
            fair = -(-SHARDS // len(held))
            if sum(map(len, held)) == len(set().union(*held)) == SHARDS and max(map(len, held)) <= fair:
                return
            await trio.sleep(0.1)

    async def hear_keepers(self) -> None:
        """Every keeper checks in, and is online when this returns. Check-ins that were known count too."""
        for keeper in self.keepers:
            await keeper.check_in()
        while any(  # noqa: ASYNC110
            p.coordinator.status()["active_keepers"] < len(self.keepers)
            for p in self.processes.values()
            if not p.ended.is_set() and not p.scope.cancel_called
        ):
            await trio.sleep(0.01)

    def kill(self, name: str = "coordinator") -> None:
        """As SIGKILL: nothing runs to its end, nobody is told."""
        self.mesh.leave(name)
        self.server.isolate(name)
        self.processes[name].scope.cancel()

    async def stop(self, name: str = "coordinator") -> None:
        """As SIGTERM: it hands over, and has ended when this returns."""
        self.processes[name].scope.cancel()
        await self.processes[name].ended.wait()
        self.mesh.leave(name)

    def posted(self, job_id: int, **changes: object) -> Posted:
        job = self.ledger.state.jobs[job_id]
        posted = Posted(
            id=job_id,
            owner=job.owner,
            title="a job",
            definition=job.definition,
            time_frame=job.time_frame,
            trigger=Interval(job.interval) if job.interval else Cron("* * * * *", "UTC"),
            chain_id=self.ledger.domain.chain_id,
            created_chain_id=self.ledger.domain.chain_id,
            contract=job.target,
            function="ping(uint256)",
            abi="",
            arg_type=1,
            arguments='["5"]',
            is_imua=True,
            cost_prediction="0.1",
            recurring=job.recurring,
        )
        return replace(posted, **changes)  # type: ignore[arg-type]

    def create(self, *, interval: int = 10, time_frame: int = 10, definition: int = 1, recurring: bool = True) -> int:
        """A job on chain; its id."""
        return self.ledger.create_job(
            OWNER, target=TARGET, interval=interval, time_frame=time_frame, definition=definition, recurring=recurring
        )

    async def take_on(self, *posted: Posted, via: str | None = None) -> list[Job]:
        """Jobs of the chain, posted together: as they are stored."""
        coordinator = self.processes[via].coordinator if via else self.coordinator
        taken = await coordinator.jobs.create(posted, key_owner=KEY_OWNER, trace_id="tgrx-test")
        self.calls.update((job.id, job.target.call) for job in taken.jobs)
        return list(taken.jobs)

    async def post(self, *, interval: int = 10, time_frame: int = 10, via: str | None = None, **changes: object) -> int:
        """A time job on chain and in a coordinator; its id."""
        job_id = self.create(interval=interval, time_frame=time_frame)
        await self.take_on(self.posted(job_id, **changes), via=via)
        return job_id

    async def tasks(self, job_id: int) -> list[TaskRecord]:
        return list(await self.store.tasks_of_job(job_id, 10_000))

    async def until(self, condition: Callable[[list[TaskRecord]], bool], job_id: int) -> list[TaskRecord]:
        """Looks every tenth of a (virtual) second; a test's own deadline is the suite's."""
        with trio.fail_after(2000):
            while not condition(tasks := await self.tasks(job_id)):  # noqa: ASYNC110
                await trio.sleep(0.1)
        return tasks

    async def ended(self, job_id: int, count: int = 1) -> list[TaskRecord]:
        return await self.until(lambda tasks: len(tasks) >= count and all(t.ended for t in tasks), job_id)

    async def attempts(self, task: TaskRecord) -> list[Attempt]:
        return list(await self.store.attempts(task.id))

    def settle(self, task_id: int, *, accepted: bool = True) -> None:
        """The contract certifies or rejects, as if a committee had signed."""

        def rule(state: State, at: Context) -> list[ChainEvent]:
            executed = state.executed[task_id]
            status = ExecutionStatus.CERTIFIED if accepted else ExecutionStatus.REJECTED
            state.executed[task_id] = replace(executed, record=replace(executed.record, status=status))
            number, performer = executed.record.number, executed.record.performer_id
            return [TaskValidated(at.place(), task_id, number, performer, 1, (2, 3), bytes(32), accepted, 0)]

        self.ledger.transact(rule)

    def expire(self, task_id: int) -> None:
        def rule(state: State, at: Context) -> list[ChainEvent]:
            executed = state.executed[task_id]
            state.executed[task_id] = replace(executed, record=replace(executed.record, status=ExecutionStatus.EXPIRED))
            return [TaskExpired(at.place(), task_id, executed.record.number)]

        self.ledger.transact(rule)

    async def certify_all(self, *, accepted: bool = True) -> None:
        """A committee that settles every execution one second after it."""
        while True:
            for task_id, executed in list(self.ledger.state.executed.items()):
                if executed.record.status is ExecutionStatus.PENDING:
                    self.settle(task_id, accepted=accepted)
            await trio.sleep(1)

    def executed_seconds(self, job_id: int) -> list[int]:
        """Trigger ids the chain executed, in order of blocks."""
        found = [e for block in self.ledger.blocks for e in block.events if getattr(e, "trigger_id", None) is not None]
        return [e.trigger_id for e in found if e.job_id == job_id]  # type: ignore[union-attr]


@asynccontextmanager
async def open_world(
    *,
    keepers: int = 3,
    store: Store | None = None,
    policy: DispatchPolicy | None = None,
    keeper_policy: scoring.Policy | None = None,
    coordinators: tuple[str, ...] = ("coordinator",),
) -> AsyncIterator[World]:
    """A world with running coordinators, one unless named."""
    policy = policy or DispatchPolicy(ack_timeout=30, retries=(1, 2, 4), window=60, settle=15)
    async with trio.open_nursery() as nursery:
        world = World(nursery, store or MemoryStore(), policy, keeper_policy or scoring.Policy())
        await world.add_keepers(keepers)
        for name in coordinators:
            await world.start(name)
        if coordinators:
            await world.shared()
        yield world
        nursery.cancel_scope.cancel()
