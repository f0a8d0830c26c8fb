"""What only the in-process chain offers: its levers, ticks, branches and separate connections."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from consensus import ecdsa
from consensus.codec import keccak, pin_hash
from consensus.errors import Failed, Transient
from node.infra.chain import Chain, ChainEvent, TaskExecuted, Wallet
from node.infra.chain_memory import Ledger, MemoryChain, Policy, Reverted
from node.infra.clock import TrioClock
from tests.chain.worlds import DEPOSIT, DISPATCHER, OWNER, PING, actors, authorise

CALL = PING.encode(1)
TARGET = keccak(b"target")[12:]
OWNER_ADDRESS = ecdsa.address_of(OWNER)
KEEPER = actors(1)[0]


def seated(block_seconds: float = 0) -> MemoryChain:
    clock = TrioClock()
    chain = MemoryChain(clock, ledger=Ledger(clock, block_seconds=block_seconds))
    chain.ledger.list_dispatcher(ecdsa.address_of(DISPATCHER))
    for keeper in actors(3):
        chain.ledger.register(keeper.address, keeper.key, keeper.peer_id)
    chain.ledger.advance_epoch()
    chain.ledger.deposit(OWNER_ADDRESS, DEPOSIT)
    return chain


async def send(chain: Chain, wallet: Wallet, job_id: int, second: int) -> bytes:
    authorisation, signature = authorise(chain, job_id, second, KEEPER.address, TARGET, call=CALL)
    return await wallet.send(await wallet.prepare_execution(authorisation, signature, authorisation.target, CALL, 0))


async def due(chain: MemoryChain, interval: int = 10) -> tuple[int, int]:
    job_id = chain.ledger.create_job(OWNER_ADDRESS, target=TARGET, interval=interval, time_frame=3600)
    second = chain.ledger.state.jobs[job_id].created_at + interval
    await chain.ledger.clock.sleep_until(second)
    return job_id, second


async def test_with_ticks_a_transaction_waits_for_its_block(autojump_clock: MockClock) -> None:
    chain = seated(block_seconds=2)
    wallet = chain.wallet(KEEPER.address)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(chain.ledger.run)
        job_id, second = await due(chain, interval=11)
        tx_hash = await send(chain, wallet, job_id, second)
        waiting = await chain.transaction(tx_hash)
        assert waiting is not None
        assert waiting.block_number is None
        mined = await wallet.mined(tx_hash)
        block = await chain.block(mined.block_number)
        assert block is not None
        assert second <= block.timestamp <= second + 2
        nursery.cancel_scope.cancel()


async def test_a_reorganisation_can_bring_the_transactions_back_in_other_blocks(autojump_clock: MockClock) -> None:
    chain = seated()
    job_id, second = await due(chain)
    wallet = chain.wallet(KEEPER.address)
    mined = await wallet.mined(await send(chain, wallet, job_id, second))
    before = await chain.block(mined.block_number)
    chain.ledger.reorg(1)
    after = await chain.block(mined.block_number)
    assert before is not None
    assert after is not None
    assert before.hash != after.hash
    assert await wallet.mined(mined.tx_hash) == mined
    [event] = [e for e in await chain.events(0, 10**6) if isinstance(e, TaskExecuted)]
    assert event.place.block_hash == after.hash
    assert len(chain.ledger.calls) == 1


async def test_a_dropped_transaction_can_be_sent_again_under_its_key(autojump_clock: MockClock) -> None:
    chain = seated()
    job_id, second = await due(chain)
    wallet = chain.wallet(KEEPER.address)
    first = await send(chain, wallet, job_id, second)
    chain.ledger.reorg(1, keep=False)
    assert chain.ledger.calls == []
    assert await send(chain, wallet, job_id, second) == first
    assert (await wallet.mined(first)).success
    assert len(chain.ledger.calls) == 1


async def test_events_wait_for_their_confirmations(autojump_clock: MockClock) -> None:
    chain = seated()
    deep = MemoryChain(chain.ledger.clock, ledger=chain.ledger, confirmations=3)
    start = chain.ledger.head.number + 1
    job_id, second = await due(chain)
    wallet = chain.wallet(KEEPER.address)
    executed = await wallet.mined(await send(chain, wallet, job_id, second))
    found: list[ChainEvent] = []
    async with deep.follow(start) as feed:
        while not found:
            with trio.move_on_after(1) as waited:
                head, events = await feed.next()
                found += events
            if waited.cancelled_caught:
                chain.ledger.mine()
    assert isinstance(found[0], TaskExecuted)
    assert head.number == executed.block_number
    assert chain.ledger.head.number == executed.block_number + 3


async def test_one_keepers_outage_is_not_anothers(autojump_clock: MockClock) -> None:
    chain = seated()
    other = MemoryChain(chain.ledger.clock, ledger=chain.ledger, latency=0.05)
    chain.go_offline()
    with pytest.raises(Transient):
        await chain.head()
    started = trio.current_time()
    assert await other.head() == chain.ledger.head
    assert trio.current_time() - started == pytest.approx(0.05)


async def test_a_failing_target_is_recorded_and_costs_less(autojump_clock: MockClock) -> None:
    chain = seated()
    wallet = chain.wallet(KEEPER.address)
    job_id, second = await due(chain)
    chain.ledger.fail_target(TARGET)
    with pytest.raises(Failed) as reverted:
        await chain.estimate_call(TARGET, CALL)
    assert reverted.value.code == "CALL_REVERTS"
    assert (await wallet.mined(await send(chain, wallet, job_id, second))).success
    chain.ledger.fail_target(TARGET, failing=False)
    await chain.ledger.clock.sleep_until(second + 10)
    assert (await wallet.mined(await send(chain, wallet, job_id, second + 10))).success
    assert [c.success for c in chain.ledger.calls] == [False, True]
    failed, succeeded = [e for e in await chain.events(0, 10**6) if isinstance(e, TaskExecuted)]
    assert (failed.success, succeeded.success) == (False, True)
    assert failed.fee < succeeded.fee


async def test_an_owners_pin_is_respected(autojump_clock: MockClock) -> None:
    chain = seated()
    wallet = chain.wallet(KEEPER.address)
    job_id, second = await due(chain)
    pinned = pin_hash(TARGET, CALL[:4], keccak(CALL), keccak(b"another spec"))
    chain.ledger.set_policy(job_id, Policy(pinned, 0, 0, 0))
    assert (await wallet.mined(await send(chain, wallet, job_id, second))).reason == "PolicySpec"


async def test_money_is_neither_made_nor_lost(autojump_clock: MockClock) -> None:
    chain = seated()
    wallet = chain.wallet(KEEPER.address)
    job_id, second = await due(chain)
    await wallet.mined(await send(chain, wallet, job_id, second))
    state = chain.ledger.state
    locked = sum(e.record.fee for e in state.executed.values())
    assert sum(state.balances.values()) + sum(state.credits.values()) + locked == DEPOSIT


async def test_levers_refuse_what_the_contracts_refuse(autojump_clock: MockClock) -> None:
    chain = seated()
    [again, *_] = actors(3)
    with pytest.raises(Reverted, match="AlreadyRegistered"):
        chain.ledger.register(again.address, again.key, again.peer_id)
    with pytest.raises(Reverted, match="KeyReused"):
        chain.ledger.register(TARGET, again.key, again.peer_id)
    with pytest.raises(Reverted, match="PeerIdTaken"):
        chain.ledger.register(TARGET, actors(9)[8].key, again.peer_id)
    job_id, _ = await due(chain)
    chain.ledger.delete_job(job_id)
    with pytest.raises(Reverted, match="JobInactive"):
        chain.ledger.delete_job(job_id)
