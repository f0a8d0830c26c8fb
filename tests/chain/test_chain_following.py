"""What every `Chain` tells of its blocks: our contracts' events, any contract's logs, and the pulse of its heads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from consensus.errors import Failed, Transient
from node.infra.chain import (
    ChainEvent,
    EventFeed,
    JobDeleted,
    RegistryChanged,
    TaskExecuted,
    TaskValidated,
)
from node.infra.contracts import Function
from node.infra.evm_logs import MOST_NAMED
from tests.chain.deeds import due_job, execute, executed, submit
from tests.chain.worlds import COUNT, EMITTER, World, actors, certify, word


async def collect(feed: EventFeed, enough: Callable[[list[ChainEvent]], bool]) -> list[ChainEvent]:
    found: list[ChainEvent] = []
    with trio.fail_after(10):
        while not enough(found):
            found += (await feed.next())[1]
    return found


def kinds(events: list[ChainEvent]) -> list[type]:
    return [type(e) for e in events if not isinstance(e, RegistryChanged)]


# --- following -------------------------------------------------------------------------------------------------------


async def test_events_come_in_the_order_of_the_chain(world: World) -> None:
    before = (await world.chain.head()).number
    record = await executed(world)
    await submit(world, lambda: certify(world, record))
    await world.delete_job(record.job_id)
    events = list(await world.chain.events(before + 1, (await world.chain.head()).number))
    assert kinds(events) == [TaskExecuted, TaskValidated, JobDeleted]
    places = [(e.place.block_number, e.place.log_index) for e in events]
    assert places == sorted(places)


async def test_registry_changes_are_events(world: World) -> None:
    before = (await world.chain.head()).number
    await world.register(actors(1, "newcomer")[0])
    await world.unlist_dispatcher()
    events = await world.chain.events(before + 1, (await world.chain.head()).number)
    assert [type(e) for e in events] == [RegistryChanged, RegistryChanged]


async def test_following_back_fills_and_goes_on(world: World) -> None:
    start = (await world.chain.head()).number + 1
    record = await executed(world)
    async with world.chain.follow(start) as feed:
        [first] = [e for e in await collect(feed, lambda found: bool(kinds(found))) if isinstance(e, TaskExecuted)]
        assert first.task_id == record.task_id
        await submit(world, lambda: certify(world, record))
        [second] = await collect(feed, lambda found: bool(kinds(found)))
        assert isinstance(second, TaskValidated)


async def test_an_empty_step_of_the_head_is_reported(world: World) -> None:
    start = (await world.chain.head()).number + 1
    async with world.chain.follow(start) as feed:
        await world.pass_seconds(1)
        with trio.fail_after(10):
            head, events = await feed.next()
    assert (head.number, list(events)) == (start, [])


async def test_nothing_is_lost_while_the_node_is_away(world: World) -> None:
    start = (await world.chain.head()).number + 1
    async with world.chain.follow(start) as feed:
        job_id, second = await due_job(world)
        assert (await execute(world, job_id, second)).success
        world.cut()
        with pytest.raises(Transient):
            await collect(feed, lambda _: False)
        with pytest.raises(Transient):
            await world.chain.head()
        world.mend()
        assert kinds(await collect(feed, lambda found: bool(kinds(found)))) == [TaskExecuted]


async def test_a_reorganisation_is_followed_onto_the_new_branch(world: World) -> None:
    start = (await world.chain.head()).number + 1
    job_id, second = await due_job(world)
    async with world.chain.follow(start) as feed:
        lost = await execute(world, job_id, second)
        await collect(feed, lambda found: bool(kinds(found)))
        await world.reorg(1)
        assert await world.calls() == 0
        by = world.keepers[1]
        mined = await execute(world, job_id, second, by=by)
        assert mined.success
        assert mined.tx_hash != lost.tx_hash
        again = await collect(feed, lambda found: any(isinstance(e, TaskExecuted) and e.performer_id == 2 for e in found))
    assert kinds(again) == [TaskExecuted]


# --- logs of any contract --------------------------------------------------------------------------------------------

A, B, C = word(10), word(11), word(12)


async def test_logs_are_those_of_the_contracts_and_topics_in_the_order_of_the_chain(world: World) -> None:
    start = (await world.chain.head()).number + 1
    first = await world.emit(A, B, b"one")
    await world.emit(C, B, b"other")
    second = await world.emit(A, C, b"")
    head = await world.chain.head()
    logs = await world.chain.logs([EMITTER], [A], start, head.number)
    assert [(log.tx_hash, log.position, log.address, log.topics, log.data) for log in logs] == [
        (first, 0, EMITTER, (A, B), b"one"),
        (second, 0, EMITTER, (A, C), b""),
    ]
    block = await world.chain.block(logs[1].block_number)
    assert block is not None
    assert (logs[1].block_number, logs[1].block_hash) == (head.number, block.hash)
    assert len(await world.chain.logs([], [A, C], start, head.number)) == 3
    assert len(await world.chain.logs([], [], start, head.number, tip=head.hash)) == 3
    assert list(await world.chain.logs([world.target], [A], start, head.number)) == []
    assert list(await world.chain.logs([EMITTER], [A], start, start)) == [logs[0]]


@pytest.mark.parametrize("count", [1, 3])
async def test_a_position_counts_within_the_receipt_however_many_transactions_a_block_has(world: World, count: int) -> None:
    start = (await world.chain.head()).number + 1
    transactions = await world.emit_in_one_block([(A, count), (C, 2), (A, count), (A, count), (C, 1), (A, 1), (A, count)])
    head = await world.chain.head()
    assert head.number == start
    expected = [(transactions[i], at) for i in (0, 2, 3) for at in range(count)]
    expected += [(transactions[5], 0), *((transactions[6], at) for at in range(count))]
    for tip in (None, head.hash):
        logs = await world.chain.logs([EMITTER], [A], start, start, tip=tip)
        assert sorted((log.tx_hash, log.position) for log in logs) == sorted(expected)
    assert len({log.tx_hash for log in await world.chain.logs([EMITTER], [A, C], start - 1, start)}) == 7


async def test_of_more_contracts_than_a_query_names_only_their_logs_come(world: World) -> None:
    start = (await world.chain.head()).number + 1
    tx = await world.emit(A, B, b"")
    await world.emit(C, B, b"")
    others = [i.to_bytes(20, "big") for i in range(1, MOST_NAMED + 2)]
    head = await world.chain.head()
    assert [log.tx_hash for log in await world.chain.logs([*others, EMITTER], [A], start, head.number)] == [tx]
    assert list(await world.chain.logs(others, [A], start, head.number)) == []
    topics = [word(i) for i in range(100, 100 + MOST_NAMED + 2)]
    assert [log.tx_hash for log in await world.chain.logs([EMITTER], [*topics, A], head.number - 1, head.number)] == [tx]


async def test_logs_of_another_branch_than_the_one_meant_are_not_given(world: World) -> None:
    start = (await world.chain.head()).number + 1
    await world.emit(A, B, b"")
    await world.pass_seconds(1)
    before = await world.chain.head()
    await world.reorg(1)
    for first in (start, before.number):
        with pytest.raises(Transient):
            await world.chain.logs([EMITTER], [A], first, before.number, tip=before.hash)
    with pytest.raises(Transient):
        await world.chain.logs([EMITTER], [A], start, before.number + 100, tip=before.hash)


async def test_a_receipt_has_all_logs_in_their_order(world: World) -> None:
    [tx] = await world.emit_in_one_block([(A, 3)])
    receipt = await world.chain.receipt(tx)
    assert receipt is not None
    block = await world.chain.block(receipt.block_number)
    assert block is not None
    assert (receipt.tx_hash, receipt.block_hash, receipt.success) == (tx, block.hash, True)
    assert list(receipt.logs) == list(await world.chain.logs([EMITTER], [A], block.number, block.number))
    assert [log.position for log in receipt.logs] == [0, 1, 2]
    await world.reorg(1)
    assert await world.chain.receipt(tx) is None
    assert await world.chain.receipt(bytes(32)) is None


async def test_a_view_returns_what_the_contract_says_now_and_a_missing_one_reverts(world: World) -> None:
    assert await world.chain.call(world.target, COUNT.encode()) == word(0)
    head = await world.chain.head()
    assert await world.chain.call(world.target, COUNT.encode(), head.number) == word(0)
    with pytest.raises(Failed) as refused:
        await world.chain.call(world.target, Function("fail", ()).encode())
    assert refused.value.code == "CALL_REVERTS"


async def test_a_native_balance_is_read_now_and_at_a_block(world: World) -> None:
    account = b"\xab" * 20
    assert await world.chain.native_balance(account) == 0
    before = (await world.chain.head()).number
    await world.fund(account, 10**19)
    assert await world.chain.native_balance(account) == 10**19
    assert await world.chain.native_balance(account, before) == 0


async def test_the_pulse_beats_for_a_block_since_the_last_beat(world: World) -> None:
    async with world.chain.heads() as heads:
        for _ in range(3):
            await world.pass_seconds(1)
            with trio.fail_after(10):
                await heads.wait()


async def test_the_new_reads_fail_as_transient_while_the_node_is_away(world: World) -> None:
    world.cut()
    for read in (
        lambda: world.chain.logs([EMITTER], [A], 0, 1),
        lambda: world.chain.receipt(bytes(32)),
        lambda: world.chain.call(world.target, COUNT.encode()),
        lambda: world.chain.native_balance(world.target),
    ):
        with pytest.raises(Transient):
            await read()
