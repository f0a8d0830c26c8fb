"""A keeper network in one process on a virtual clock: the real workflow over the memory mesh and the memory chain."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import NoReturn

import trio

from consensus import bls, ecdsa
from consensus.codec import keccak
from consensus.conditions import OnCondition, Source, StaticSource
from consensus.errors import Failed, Transient
from consensus.events import OnEvent, firing_id
from consensus.messages import Authorisation, JobSpec, Task, Uint256, spec_cid, spec_digest
from consensus.numbers import number
from consensus.runs import SCRIPTED
from consensus.triggers import EdgeSeen, Interval, LogSeen, Observation, Trigger
from node.arguments import encode_call
from node.duties import DutySettings
from node.infra.chain_memory import Ledger, MemoryChain, SentTransactions
from node.infra.clock import TrioClock
from node.infra.compute import inline
from node.infra.observe import Observer, Registry
from node.infra.sources import Heard, Value
from node.infra.sqlite import MEMORY, Database, open_database
from node.journal import MIGRATIONS, Journal
from node.signer import Signer
from node.tracker import Tracker
from node.workflow import Keeper, Parts, Served
from p2p.memory import MemoryMesh
from tests.node.fake_scripts import FakeScripts, Prints, Script

DISPATCHER = keccak(b"dispatcher")
OWNER = keccak(b"owner")[:20]
TARGET = keccak(b"target")[:20]
FUNCTION = "ping(uint256)"
ARGUMENTS = '["1606938044258990275541962092341162602522202993782792835301376"]'  # 2^200


@dataclass
class Resident:
    """What of a keeper survives its process: keys, disk, and the transactions it sent."""

    number: int
    operator: bytes
    bls_secret: int
    database: Database
    sent: SentTransactions = field(default_factory=SentTransactions)
    scope: trio.CancelScope | None = None
    chain: MemoryChain | None = None
    tracker: Tracker | None = None

    @property
    def address(self) -> bytes:
        return ecdsa.address_of(self.operator)

    @property
    def peer_id(self) -> str:
        return f"keeper-{self.number}"


class Readings:
    """What sources say: the same to everybody, until a test changes it. One that is not given does not answer."""

    def __init__(self) -> None:
        self.values: dict[Source, str] = {}
        self.asked = 0

    async def read_each(self, sources: Sequence[Source]) -> Mapping[Source, Value]:
        await trio.sleep(0.01)
        self.asked += 1
        return {source: self._value(source) for source in sources}

    def _value(self, source: Source) -> Decimal | Transient:
        said = source.value if isinstance(source, StaticSource) else self.values.get(source)
        return number(said) if said is not None else Transient("SOURCE_UNREACHABLE", "it does not answer")

    @staticmethod
    def place(source: Source) -> str:
        return repr(source)

    @staticmethod
    def host_of(source: Source) -> str:
        return repr(source)

    async def follow(self, url: str, hear: Callable[[Heard], Awaitable[None]]) -> NoReturn:
        raise NotImplementedError(url)


class SharedContent:
    """Content that everybody has as soon as somebody puts it: bytes by CID, checked as they come."""

    def __init__(self, blocks: dict[str, bytes]) -> None:
        self._blocks = blocks

    async def put(self, data: bytes) -> str:
        cid = spec_cid(hashlib.sha256(data).digest())
        self._blocks[cid] = data
        return cid

    async def get(self, cid: str, *, max_bytes: int, peers: Sequence[str] = ()) -> bytes:
        await trio.sleep(0.01)
        data = self._blocks.get(cid)
        if data is None:
            raise Transient("CONTENT_NOT_FOUND", cid)
        if len(data) > max_bytes:
            raise Failed("CONTENT_TOO_LARGE", cid)
        if spec_cid(hashlib.sha256(data).digest()) != cid:
            raise Transient("CONTENT_MISMATCH", cid)
        return data


class World:
    """Keepers, chain and mesh; tests start and kill keepers and publish tasks as a coordinator would."""

    def __init__(self, clock: TrioClock, nursery: trio.Nursery, block_seconds: float = 0) -> None:
        self.clock = clock
        self.ledger = Ledger(clock, round_seconds=12, block_seconds=block_seconds)
        self.mesh = MemoryMesh(latency=lambda _a, _b: 0.005)
        self.residents: list[Resident] = []
        self.readings = Readings()
        self.scripts: dict[str, Prints | Transient | Script] = {}
        self.content: dict[str, bytes] = {}
        self.publisher = self.mesh.join("coordinator")
        self._nursery = nursery
        self.ledger.list_dispatcher(ecdsa.address_of(DISPATCHER))
        self.ledger.deposit(OWNER, 10**20)

    def settle(self, number: int, database: Database) -> Resident:
        """Registers keeper `number`; it is drawn from the next epoch on."""
        resident = Resident(number, keccak(b"operator %d" % number), bls.secret_from_seed(keccak(b"bls %d" % number)), database)
        self.ledger.register(resident.address, bls.public_key(resident.bls_secret), resident.peer_id)
        self.residents.append(resident)
        return resident

    async def start(
        self,
        resident: Resident,
        keeper_type: Callable[[Parts], Keeper] = Keeper,
        *,
        confirmations: int = 0,
        ahead: float = 0,
        offline: bool = False,
    ) -> None:
        """Starts (or restarts) a keeper's process; returns when it is ready. Its clock is `ahead` seconds of the chain's.

        An `offline` one cannot reach the chain, and is not waited for.
        """
        chain = resident.chain = MemoryChain(self.clock, ledger=self.ledger, latency=0.002, confirmations=confirmations)
        clock = TrioClock(self.clock.now() + ahead)
        resident.tracker = Tracker(lambda: round(clock.now() * 1000))
        observer = Observer(chain)
        registry = Registry({self.ledger.domain.chain_id: observer})
        parts = Parts(
            network=self.mesh.join(resident.peer_id, gate=registry.may_publish),
            chains={self.ledger.domain.chain_id: Served(observer, chain.wallet(resident.address, resident.sent))},
            registry=registry,
            signer=Signer(resident.operator, resident.bls_secret),
            journal=Journal(resident.database),
            tracker=resident.tracker,
            clock=clock,
            compute=inline,
            sources=self.readings,
            scripts=FakeScripts(self.scripts),
            content=SharedContent(self.content),
            sandbox="embedded",
            version="0",
            duties=DutySettings(rank_interval=2.0),
        )
        resident.scope = trio.CancelScope()

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            assert resident.scope is not None
            with resident.scope:
                await keeper_type(parts).run(task_status=task_status)

        if offline:
            chain.go_offline()
            self._nursery.start_soon(partial(run, task_status=trio.TASK_STATUS_IGNORED))
        else:
            await self._nursery.start(run)

    def observer(self) -> Observer:
        """A bystander's, over a connection of its own."""
        return Observer(MemoryChain(self.clock, ledger=self.ledger))

    def kill(self, resident: Resident) -> None:
        """As SIGKILL does: the process ends at once, its peers see it gone."""
        assert resident.scope is not None
        resident.scope.cancel()
        self.mesh.leave(resident.peer_id)

    def create_job(self, *, interval: int = 10, time_frame: int = 3600, level: int = 2) -> JobSpec:
        job_id = self.ledger.create_job(OWNER, target=TARGET, interval=interval, time_frame=time_frame)
        job = self.ledger.state.jobs[job_id]
        return JobSpec(
            job_id=Uint256(job_id),
            chain_id=self.ledger.domain.chain_id,
            definition=1,
            owner=OWNER,
            created_at=job.created_at,
            time_frame=time_frame,
            trigger=Interval(interval),
            target=TARGET,
            function=FUNCTION,
            arguments=ARGUMENTS,
            level=level,
        )

    def create_script_job(
        self, prints: Prints | Script, *, definition: int = 7, trigger: Trigger | None = None, target: bytes = b"", level: int = 2
    ) -> JobSpec:
        """A job whose script prints `prints` for every keeper (a value, or a function of task and log); types 2, 4, 6 and 7."""
        trigger = trigger or Interval(10)
        interval = trigger.interval if isinstance(trigger, Interval) else 0
        named = target or (bytes(20) if definition == 7 else TARGET)
        job_id = self.ledger.create_job(OWNER, target=named, interval=interval, time_frame=3600, definition=definition)
        url = f"ipfs://script-{job_id}"
        self.scripts[url] = prints
        return JobSpec(
            job_id=Uint256(job_id),
            chain_id=self.ledger.domain.chain_id,
            definition=definition,
            owner=OWNER,
            created_at=self.ledger.state.jobs[job_id].created_at,
            time_frame=3600,
            trigger=trigger,
            target=named,
            function="" if definition == 7 else FUNCTION,
            arguments="",
            level=level,
            script_url=url,
            language="py",
        )

    def create_triggered_job(
        self, trigger: OnEvent | OnCondition, *, time_frame: int = 3600, level: int = 2, recurring: bool = True
    ) -> JobSpec:
        """An event or condition job."""
        definition = 3 if isinstance(trigger, OnEvent) else 5
        job_id = self.ledger.create_job(
            OWNER, target=TARGET, interval=0, time_frame=time_frame, definition=definition, recurring=recurring
        )
        return JobSpec(
            job_id=Uint256(job_id),
            chain_id=self.ledger.domain.chain_id,
            definition=definition,
            owner=OWNER,
            created_at=self.ledger.state.jobs[job_id].created_at,
            time_frame=time_frame,
            trigger=trigger,
            target=TARGET,
            function=FUNCTION,
            arguments=ARGUMENTS,
            level=level,
        )

    def event_task(self, spec: JobSpec, tx_hash: bytes, position: int, performer: bytes, *, window: int = 10) -> Task:
        """What a coordinator publishes when it has seen a log; it is not asked whether the log is there."""
        assert isinstance(spec.trigger, OnEvent)
        firing = firing_id(spec.trigger.chain_id, tx_hash, position)
        return self._task(spec, firing, performer, int(self.clock.now()), window, LogSeen(tx_hash, position))

    def condition_task(self, spec: JobSpec, edge: int, performer: bytes, *, window: int = 10) -> Task:
        now = int(self.clock.now())
        return self._task(spec, edge, performer, now, window, EdgeSeen(now))

    def task(
        self,
        spec: JobSpec,
        second: int,
        performer: bytes,
        *,
        attempt: int = 1,
        window: int = 10,
        secret: bytes = DISPATCHER,
        storage: str = "",
    ) -> Task:
        """A time job's."""
        return self._task(spec, second, performer, second, window, None, attempt=attempt, secret=secret, storage=storage)

    def _task(
        self,
        spec: JobSpec,
        trigger_id: int,
        performer: bytes,
        not_before: int,
        window: int,
        observation: Observation,
        *,
        attempt: int = 1,
        secret: bytes = DISPATCHER,
        storage: str = "",
    ) -> Task:
        scripted = spec.definition in SCRIPTED
        call = b"" if scripted else encode_call(spec.function, spec.arguments)
        selector = keccak(spec.function.encode())[:4] if spec.function else bytes(4)
        body = spec.encode()
        authorisation = Authorisation(
            job_id=spec.job_id,
            trigger_id=Uint256(trigger_id),
            attempt=attempt,
            performer=performer,
            spec=spec_digest(body),
            target=spec.target,
            selector=selector,
            call_hash=bytes(32) if scripted else keccak(call),
            gas_limit=100_000,
            level=spec.level,
            max_fee=Uint256(10**17),
            not_before=not_before,
            deadline=not_before + window,
        )
        domain = self.ledger.domain
        signature = ecdsa.sign(secret, domain.hub_digest(authorisation.struct_hash()))
        pinned = self.ledger.head.number if scripted else 0
        inputs = ecdsa.sign(secret, domain.hub_digest(Task.inputs_hash(authorisation, pinned, storage))) if scripted else b""
        return Task(spec.chain_id, authorisation, signature, body, "tgrx-simulation", observation, pinned, storage, inputs)

    def status(self, task: Task) -> int:
        executed = self.ledger.state.executed.get(task.task_id)
        return executed.record.status if executed else 0


@asynccontextmanager
async def open_world(keepers: int, *, block_seconds: float = 0) -> AsyncIterator[World]:
    """A world with `keepers` registered and seated keepers, none of them started. Without `block_seconds` each transaction
    is a block of its own."""
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        world = World(TrioClock(), nursery, block_seconds)
        if block_seconds:
            nursery.start_soon(world.ledger.run)
        for number in range(keepers):
            world.settle(number, await stack.enter_async_context(open_database(MEMORY, MIGRATIONS, durable=False)))
        world.ledger.advance_epoch()
        yield world
        nursery.cancel_scope.cancel()
