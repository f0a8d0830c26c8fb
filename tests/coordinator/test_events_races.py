"""Event jobs when things happen in between: while a block is read, while the past is searched, while a firing is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio
from trio.testing import MockClock

from coordinator.scheduler.event import RETURN_BLOCKS
from coordinator.store.records import Fired, Firing
from node.infra.chain import Log
from node.infra.chain_memory import MemoryChain
from node.infra.clock import TrioClock
from tests.coordinator.events_world import CONTRACT, Desk, on_event, pinged, planned, scheduling

OTHER = b"\xdd" * 20


class Gate:
    """Holds up whoever comes through while it is shut."""

    def __init__(self) -> None:
        self.arrived = trio.Event()
        self.open = trio.Event()

    async def through(self) -> None:
        self.arrived.set()
        await self.open.wait()


class HeldUpChain(MemoryChain):
    """Answers some queries for logs late, with what was true when they were asked."""

    gate: Gate | None = None
    applies: Callable[[Sequence[bytes]], bool]

    async def logs(
        self, contracts: Sequence[bytes], topics: Sequence[bytes], from_block: int, to_block: int, *, tip: bytes | None = None
    ) -> Sequence[Log]:
        found = await super().logs(contracts, topics, from_block, to_block, tip=tip)
        if self.gate is not None and self.applies(contracts):
            gate, self.gate = self.gate, None
            await gate.through()
        return found


class HeldUpDesk(Desk):
    """Writes a firing, and answers late."""

    gate: Gate | None = None

    async def fire(self, firings: Sequence[Firing], /) -> Sequence[Fired]:
        answers = await super().fire(firings)
        if self.gate is not None and firings:
            gate, self.gate = self.gate, None
            await gate.through()
        return answers


async def test_a_job_that_is_put_in_while_a_block_is_read_gets_that_block_too(autojump_clock: MockClock) -> None:
    clock, desk, gate = TrioClock(), Desk(), Gate()
    chain = HeldUpChain(clock)
    job, late = planned(1, on_event(), clock.now()), planned(2, on_event(contract=OTHER), clock.now())
    async with scheduling(chain, clock, desk, job) as scheduler:
        await trio.sleep(5)
        chain.gate, chain.applies = gate, lambda _: True
        tx = chain.ledger.emit(OTHER, *pinged(1))
        await gate.arrived.wait()
        scheduler.put(late)
        await trio.sleep(5)
        gate.open.set()
        await trio.sleep(5)
    assert desk.fired(2) == {(tx, 0)}


async def test_what_a_search_read_before_a_reorganisation_is_read_again(autojump_clock: MockClock) -> None:
    clock, desk, gate = TrioClock(), Desk(), Gate()
    chain = HeldUpChain(clock)
    job = planned(1, on_event(), clock.now())
    late = planned(2, on_event(contract=OTHER, confirmations=5), clock.now())
    async with scheduling(chain, clock, desk, job) as scheduler:
        await trio.sleep(5)
        chain.ledger.mine(3)
        chain.ledger.emit(OTHER, *pinged(1))  # in the newest block: no other read tells that it is gone
        await trio.sleep(5)
        chain.gate, chain.applies = gate, lambda contracts: list(contracts) == [OTHER]
        scheduler.put(late)
        await gate.arrived.wait()
        chain.ledger.reorg(3, keep=False)
        await trio.sleep(5)
        gate.open.set()
        await trio.sleep(5)
        chain.ledger.mine(20)
        stays = chain.ledger.emit(OTHER, *pinged(1))
        chain.ledger.mine(5)
        await trio.sleep(5)
    assert desk.fired(2) == {(stays, 0)}


async def test_a_log_that_goes_while_its_firing_is_written_cancels_the_task(autojump_clock: MockClock) -> None:
    clock, desk, gate = TrioClock(), HeldUpDesk(), Gate()
    chain = MemoryChain(clock)
    created = clock.now()
    async with scheduling(chain, clock, desk) as scheduler:
        await trio.sleep(5)
        gone = chain.ledger.emit(CONTRACT, *pinged(1))
        await trio.sleep(5)
        desk.gate = gate
        scheduler.put(planned(1, on_event(), created))
        await gate.arrived.wait()
        chain.ledger.reorg(1, keep=False)
        await trio.sleep(5)
        gate.open.set()
        chain.ledger.mine(RETURN_BLOCKS + 1)
        await trio.sleep(5)
    assert desk.fired(1) == {(gone, 0)}
    assert desk.cancelled == [desk.task_of(1, gone)]
