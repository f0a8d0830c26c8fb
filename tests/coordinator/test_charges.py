"""Runs without a transaction on their way to the hub: together, once, by one coordinator, and none holds up the others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from trio.testing import MockClock

from consensus import ecdsa
from consensus.errors import Transient
from consensus.messages import Uint256
from coordinator.charges import Charges
from coordinator.store.memory import MemoryStore
from coordinator.store.records import RunCharge as Waiting
from node.infra.chain import MAX_RUN_FEE, Mined, RunCharge
from node.infra.chain_memory import Ledger, MemoryChain
from node.infra.clock import TrioClock
from tests.consensus import samples

CHAIN = 31337


class Store(MemoryStore):
    """Holds what a test says is waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Waiting] = []

    async def run_charges(self, chain_id: int, limit: int) -> Sequence[Waiting]:
        await trio.lowlevel.checkpoint()
        return self.waiting[:limit]

    def add(self, trigger_id: int, at: float, *, fee: int = 1000) -> None:
        task = samples.script_task(trigger_id=Uint256(trigger_id), not_before=int(at), deadline=int(at) + 30)
        certificate = samples.run_certificate(samples.not_executed(task, fee=fee))
        self.waiting.append(Waiting(task.task_id, CHAIN, certificate.encode(), int(at)))


@dataclass(frozen=True)
class Batch:
    key: str
    charges: tuple[RunCharge, ...]


@dataclass
class Wallet:
    """Remembers what it was given. `poison` are triggers whose batch reverts."""

    sent: list[Batch] = field(default_factory=list)
    poison: frozenset[int] = frozenset()
    away: bool = False
    address: bytes = bytes(20)

    async def prepare_run_charges(self, charges: Sequence[RunCharge], *, again: int = 0) -> Batch:
        await trio.lowlevel.checkpoint()
        return Batch(f"{sorted(c.trigger_id for c in charges)}:{again}", tuple(charges))

    async def send(self, batch: Batch) -> bytes:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise Transient("RPC_UNREACHABLE", "cut")
        self.sent.append(batch)
        return bytes(32)

    async def mined(self, tx_hash: bytes) -> Mined:
        await trio.sleep(1)
        bad = any(c.trigger_id in self.poison for c in self.sent[-1].charges)
        return Mined(tx_hash, 1, not bad, 1, "RunFeeTooHigh" if bad else "")


@dataclass
class Desk:
    store: Store
    wallet: Wallet
    clock: TrioClock
    mine: bool = True

    def triggers(self) -> list[list[int]]:
        return [[c.trigger_id for c in batch.charges] for batch in self.wallet.sent]


@asynccontextmanager
async def charging(*, batch: int = 4) -> AsyncIterator[Desk]:
    clock = TrioClock()
    ledger = Ledger(clock)
    ledger.register(ecdsa.address_of(samples.PERFORMER), bytes(48), "keeper")
    desk = Desk(Store(), Wallet(), clock)
    charges = Charges(
        desk.store,
        MemoryChain(clock, ledger=ledger),
        desk.wallet,  # type: ignore[arg-type]
        clock,
        mine=lambda: desk.mine,
        batch=batch,
        interval=600,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(charges.run)
        yield desk
        nursery.cancel_scope.cancel()


async def test_runs_wait_for_company_but_not_for_ever(autojump_clock: MockClock) -> None:
    async with charging() as desk:
        now = desk.clock.now()
        desk.store.add(1, now)
        await trio.sleep(500)
        assert desk.triggers() == []
        await trio.sleep(120)
        assert desk.triggers() == [[1]]
        desk.store.waiting.clear()
        for number in range(9):
            desk.store.add(10 + number, desk.clock.now())
        await trio.sleep(60)
        assert desk.triggers()[1:] == [[10, 11, 12, 13], [14, 15, 16, 17]]


async def test_only_the_one_whose_turn_it_is_charges(autojump_clock: MockClock) -> None:
    async with charging() as desk:
        desk.mine = False
        desk.store.add(1, desk.clock.now())
        await trio.sleep(2000)
        assert desk.triggers() == []
        desk.mine = True
        await trio.sleep(10)
        assert desk.triggers() == [[1]]


async def test_what_was_sent_is_not_sent_again_while_its_booking_is_under_way(autojump_clock: MockClock) -> None:
    async with charging() as desk:
        for number in range(4):
            desk.store.add(number, desk.clock.now())
        await trio.sleep(300)
        assert desk.triggers() == [[0, 1, 2, 3]]
        await trio.sleep(1000)
        assert desk.triggers() == [[0, 1, 2, 3]] * 2
        assert len({batch.key for batch in desk.wallet.sent}) == 2


async def test_a_batch_that_reverts_is_divided_until_the_one_to_blame_is_alone(autojump_clock: MockClock) -> None:
    async with charging() as desk:
        desk.wallet.poison = frozenset({2})
        for number in range(4):
            desk.store.add(number, desk.clock.now())
        await trio.sleep(700)
        assert desk.triggers()[:2] == [[0, 1, 2, 3], [0, 1]]
        assert {t for batch in desk.triggers() if 2 not in batch for t in batch} == {0, 1, 3}


async def test_a_chain_that_is_away_loses_nothing(autojump_clock: MockClock) -> None:
    async with charging() as desk:
        desk.wallet.away = True
        for number in range(4):
            desk.store.add(number, desk.clock.now())
        await trio.sleep(100)
        desk.wallet.away = False
        await trio.sleep(10)
        assert desk.triggers() == [[0, 1, 2, 3]]


async def test_no_run_is_charged_more_than_the_hub_takes_or_before_its_second(autojump_clock: MockClock) -> None:
    async with charging(batch=2) as desk:
        now = desk.clock.now()
        desk.store.add(1, now, fee=10**17)
        desk.store.add(2, now + 100)
        await trio.sleep(90)
        assert desk.triggers() == []
        await trio.sleep(60)
        assert desk.triggers() == [[1, 2]]
        assert [c.fee for c in desk.wallet.sent[0].charges] == [MAX_RUN_FEE, 1000]
