"""What a process knows of its chain: nothing is missed while it starts, and what a reorganisation took back is not believed."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from consensus import bls
from consensus.codec import keccak
from consensus.errors import Transient
from node.infra.chain import Keeper, TaskExpired
from node.infra.chain_memory import Ledger, MemoryChain
from node.infra.clock import TrioClock
from node.infra.observe import Observer


class Slow(MemoryChain):
    """Reads of the registry take a while; somebody registers meanwhile."""

    meanwhile = False

    async def dispatchers(self) -> frozenset[bytes]:
        if not self.meanwhile:
            self.meanwhile = True
            self.ledger.register(b"\x01" * 20, bls.public_key(bls.secret_from_seed(keccak(b"x"))), "peer")
        return await super().dispatchers()


async def test_who_registers_while_the_registry_is_read_is_known(autojump_clock: MockClock) -> None:
    chain = Slow(TrioClock(), latency=0.01)
    observer = Observer(chain)
    async with trio.open_nursery() as nursery:
        await nursery.start(observer.run)
        await trio.sleep(1)
        assert [type(k) for k in observer.keepers] == [Keeper]
        nursery.cancel_scope.cancel()


def _expire(ledger: Ledger, task_id: int) -> None:
    ledger.transact(lambda _state, at: [TaskExpired(place=at.place(), task_id=task_id, number=1)])


async def test_a_settlement_that_was_reorganised_away_is_forgotten(autojump_clock: MockClock) -> None:
    ledger = Ledger(TrioClock())
    observer = Observer(MemoryChain(ledger.clock, ledger=ledger))
    async with trio.open_nursery() as nursery:
        await nursery.start(observer.run)
        _expire(ledger, 1)
        _expire(ledger, 2)
        assert await observer.wait_settled(2) == "NO_QUORUM"
        ledger.reorg(1, keep=False)
        await observer.wait_rewound(0)
        assert (observer.outcome(1), observer.outcome(2)) == ("NO_QUORUM", None)
        _expire(ledger, 2)
        assert await observer.wait_settled(2) == "NO_QUORUM"
        nursery.cancel_scope.cancel()


async def test_those_who_lose_patience_leave_nothing_behind(autojump_clock: MockClock) -> None:
    observer = Observer(MemoryChain(TrioClock()))
    async with trio.open_nursery() as nursery:

        async def wait(seconds: float) -> None:
            with trio.move_on_after(seconds):
                await observer.wait_settled(7)

        nursery.start_soon(wait, 1)
        nursery.start_soon(wait, 2)
        await trio.sleep(1.5)
        assert len(observer._waiting) == 1
    assert not observer._waiting


class Failing(MemoryChain):
    """Once told to, the next read of the registry fails."""

    fails = False

    async def keepers(self) -> tuple[Keeper, ...]:
        if self.fails:
            self.fails = False
            raise Transient("RPC_UNREACHABLE")
        return await super().keepers()


async def test_events_that_come_with_a_change_of_the_registry_outlive_a_failed_read_of_it(autojump_clock: MockClock) -> None:
    ledger = Ledger(TrioClock())
    chain = Failing(ledger.clock, ledger=ledger, latency=0.5)
    observer = Observer(chain)
    async with trio.open_nursery() as nursery:
        await nursery.start(observer.run)
        chain.fails = True
        ledger.register(b"\x01" * 20, bls.public_key(bls.secret_from_seed(keccak(b"x"))), "peer")
        _expire(ledger, 1)
        with trio.fail_after(60):
            assert await observer.wait_settled(1) == "NO_QUORUM"
        await trio.sleep(5)
        assert [k.peer_id for k in observer.keepers] == ["peer"]
        assert not chain.fails
        nursery.cancel_scope.cancel()
