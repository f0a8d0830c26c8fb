"""Transactions: one for each key whatever fails when, nonces without gaps, and nothing said about the key that signs."""

from __future__ import annotations

import traceback
from itertools import repeat

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from consensus.errors import Failed, Transient
from node.infra.retry import doubling
from node.infra.rpc import Unreachable, open_rpc
from node.infra.secret import Secret
from node.infra.sqlite import MEMORY, open_database
from node.infra.transaction_log import SENT_MIGRATIONS, SqliteTransactionLog
from node.infra.transactions import Outbox
from tests.infra.fake_node import FakeNode, fields_of

KEY = bytes.fromhex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80")  # anvil's first account
TO = b"\x11" * 20


@pytest.fixture
async def sent_log():
    async with open_database(MEMORY, SENT_MIGRATIONS, durable=True) as db:
        yield SqliteTransactionLog(db)


def outbox(node: FakeNode, sent_log: SqliteTransactionLog) -> Outbox:
    return Outbox(node, Secret(KEY), 31337, sent_log)


async def send(box: Outbox, key: str) -> bytes:
    return await box.send(await box.prepare(key, TO, key.encode(), gas=50_000))


async def test_between_decision_and_chain_there_is_one_call(sent_log):
    node = FakeNode()
    box = outbox(node, sent_log)
    prepared = await box.prepare("a", TO, b"\x01", gas=50_000, value=3)
    node.calls.clear()
    tx_hash = await box.send(prepared)
    assert node.calls == ["eth_sendRawTransaction"]
    receipt = await box.receipt(tx_hash, repeat(100))
    assert node.calls == ["eth_sendRawTransaction", "eth_getTransactionReceipt"]
    assert (receipt.tx_hash, receipt.status, receipt.gas_used, receipt.block_number) == (tx_hash, True, 21000, 1)
    assert receipt.logs[0].topics == (b"\x0b" * 32,)
    fields = fields_of(node.received[0])
    assert (bytes.fromhex(fields["to"][2:]) if isinstance(fields["to"], str) else fields["to"], fields["value"]) == (TO, 3)
    assert (fields["maxFeePerGas"], fields["maxPriorityFeePerGas"], fields["chainId"]) == (2 * 10**9 + 7, 7, 31337)


async def test_a_chain_without_base_fee_gets_legacy_transactions(sent_log):
    node = FakeNode(base_fee=None)
    await send(outbox(node, sent_log), "a")
    fields = fields_of(node.received[0])
    assert fields["gasPrice"] == 7
    assert fields["v"] in (31337 * 2 + 35, 31337 * 2 + 36)


async def test_fees_are_fetched_once_a_block_and_again_when_old(sent_log, autojump_clock):
    node = FakeNode()
    box = outbox(node, sent_log)
    await send(box, "a")
    await send(box, "b")
    assert node.calls.count("batch") == 1
    await trio.sleep(10)
    node.base_fee = 5 * 10**9
    prepared = await box.prepare("c", TO, b"", gas=50_000)
    assert node.calls.count("batch") == 2
    await trio.sleep(30)
    await box.send(prepared)
    assert node.calls.count("batch") == 2
    assert fields_of(node.received[-1])["maxFeePerGas"] == 10**10 + 7


async def test_one_key_is_one_transaction(sent_log):
    node = FakeNode()
    box = outbox(node, sent_log)
    assert await send(box, "a") == await send(box, "a") == await box.sent("a")
    assert await send(box, "b") != await send(box, "a")
    assert node.nonces == [0, 1]
    assert await box.sent("never") is None


@pytest.mark.parametrize("instant", [True, False])
async def test_after_a_restart_the_same_bytes_leave_again(sent_log, instant):
    node = FakeNode(instant=instant)
    first = await send(outbox(node, sent_log), "a")
    node.pool.clear()  # had it only been recorded, or had the node forgotten it
    assert await send(outbox(node, sent_log), "a") == first
    assert len(set(node.received)) == 1


async def test_one_recorded_before_a_crash_goes_first_and_leaves_no_gap(sent_log):
    node = FakeNode()
    with trio.CancelScope() as crash:
        node.faults = ["hang"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, outbox(node, sent_log), "a")
            await node.entered.wait()
            crash.cancel()
    assert node.received == []
    box = outbox(node, sent_log)
    await send(box, "b")
    assert node.nonces == [0, 1]
    assert await send(box, "a") == await box.sent("a")
    assert node.nonces == [0, 1]


async def test_several_that_the_node_forgot_go_first_in_order(sent_log):
    node = FakeNode(instant=False)
    box = outbox(node, sent_log)
    for key in ("a", "b", "c"):
        await send(box, key)
    node.pool.clear()
    node.received.clear()
    await send(outbox(node, sent_log), "d")
    assert node.nonces == [0, 1, 2, 3]


async def test_records_of_a_chain_that_was_started_anew_do_not_block_it(sent_log):
    await sent_log.record("old", b"\x02old", b"\x0d" * 32, 7)
    node = FakeNode()
    await send(outbox(node, sent_log), "a")
    assert node.nonces == [0]


async def test_a_send_that_reached_nobody_gives_its_nonce_back(sent_log):
    node = FakeNode()
    box = outbox(node, sent_log)
    node.faults = ["unreachable"]
    with pytest.raises(Unreachable):
        await send(box, "a")
    assert await box.sent("a") is None
    await send(box, "b")
    await send(box, "a")
    assert node.nonces == [0, 1]


async def test_a_lost_answer_is_not_a_second_transaction(sent_log):
    node = FakeNode()
    box = outbox(node, sent_log)
    node.faults = ["answer lost"]
    with pytest.raises(Unreachable):
        await send(box, "a")
    await send(box, "b")
    assert await send(box, "a") == await box.sent("a")
    assert node.nonces == [0, 1]


@pytest.mark.parametrize("fault", ["hang", "hang after"])
async def test_a_cancelled_send_is_settled_before_the_next(sent_log, fault):
    node = FakeNode()
    box = outbox(node, sent_log)
    node.faults = [fault]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, box, "a")
        await node.entered.wait()
        nursery.cancel_scope.cancel()
    await send(box, "b")
    await send(box, "a")
    assert node.nonces == [0, 1]
    assert len(node.mined) == 2


@pytest.mark.parametrize("instant", [True, False])
async def test_already_known_is_success(sent_log, instant):
    node = FakeNode(instant=instant)
    box = outbox(node, sent_log)
    node.faults = ["", "already known"]
    first = await send(box, "a")
    assert await send(box, "a") == first
    assert len(node.received) == 1


async def test_nonce_too_low_is_resynchronised(sent_log):
    node = FakeNode()
    box, rival = outbox(node, sent_log), Outbox(node, Secret(KEY), 31337, sent_log)
    await send(box, "a")
    await send(rival, "rival")
    tx_hash = await send(box, "b")
    assert node.nonces == [0, 1, 2]
    assert await box.sent("b") == tx_hash


async def test_an_occupied_nonce_is_resynchronised(sent_log):
    node = FakeNode(instant=False)
    box, rival = outbox(node, sent_log), Outbox(node, Secret(KEY), 31337, sent_log)
    await send(box, "a")
    await send(rival, "rival")
    await send(box, "b")
    assert node.nonces == [0, 1, 2]


async def test_a_nonce_that_went_elsewhere_is_named_once_no_lag_can_explain_it(sent_log, autojump_clock):
    node = FakeNode()
    box = outbox(node, sent_log)
    await sent_log.record("a", b"\x02a", b"\x0d" * 32, 0)
    node.counts["0x" + box.address.hex()] = 1
    node.faults = ["nonce too low"] * 2
    with pytest.raises(Transient) as doubt:
        await send(box, "a")
    assert doubt.value.code == "NONCE_CONTENDED"
    await trio.sleep(11)
    with pytest.raises(Failed) as caught:
        await send(box, "a")
    assert caught.value.code == "NONCE_TAKEN"


async def test_stale_fees_are_fetched_again(sent_log):
    node = FakeNode()
    box = outbox(node, sent_log)
    prepared = await box.prepare("a", TO, b"", gas=50_000)
    node.base_fee = 9 * 10**9
    node.faults = ["max fee per gas less than block base fee: address 0x, maxFeePerGas: 1, baseFee: 2"]
    await box.send(prepared)
    assert fields_of(node.received[0])["maxFeePerGas"] == 18 * 10**9 + 7
    assert node.nonces == [0]


@pytest.mark.parametrize(
    ("says", "code"),
    [
        ("insufficient funds for gas * price + value: balance 0, tx cost 7, overshot 7", "INSUFFICIENT_FUNDS"),
        ("intrinsic gas too low", "TRANSACTION_REFUSED"),
        ("exceeds block gas limit", "TRANSACTION_REFUSED"),
    ],
)
async def test_a_refusal_is_named_and_leaves_no_trace(sent_log, says, code):
    node = FakeNode()
    box = outbox(node, sent_log)
    node.faults = [says]
    with pytest.raises(Failed) as caught:
        await send(box, "a")
    assert (caught.value.code, caught.value.detail) == (code, says)
    assert await box.sent("a") is None
    await send(box, "b")
    assert node.nonces == [0]


async def test_an_account_that_others_use_all_the_time_is_transient(sent_log):
    node = FakeNode()
    node.faults = ["nonce too low"] * 4
    with pytest.raises(Transient) as caught:
        await send(outbox(node, sent_log), "a")
    assert caught.value.code == "NONCE_CONTENDED"


async def test_concurrent_sends_each_get_their_own_nonce(sent_log):
    node = FakeNode(instant=False)
    box = outbox(node, sent_log)
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(send, box, str(number))
    assert node.nonces == list(range(20))


async def test_the_receipt_is_looked_for_at_the_callers_pace(sent_log, autojump_clock):
    node = FakeNode(instant=False)
    box = outbox(node, sent_log)
    tx_hash = await send(box, "a")
    begin = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def mine() -> None:
            await trio.sleep(6.5)
            node.mine()

        nursery.start_soon(mine)
        receipt = await box.receipt(tx_hash, [1, 2, 4])  # at 0, 1, 3, 7
    assert receipt.status
    assert trio.current_time() - begin == 7
    assert node.calls.count("eth_getTransactionReceipt") == 4


async def test_waiting_for_a_receipt_survives_unreachable_nodes_and_lost_transactions(sent_log, autojump_clock):
    node = FakeNode(instant=False)
    box = outbox(node, sent_log)
    tx_hash = await send(box, "a")
    node.pool.clear()  # the node that took it went down with it
    original, failures = node.eth_getTransactionReceipt, [Transient("RPC_UNREACHABLE")] * 3

    async def flaky(tx: str):
        if failures:
            raise failures.pop()
        node.mine()
        return await original(tx)

    node.eth_getTransactionReceipt = flaky
    with trio.fail_after(1000):
        receipt = await box.receipt(tx_hash, doubling(0.1, 2))
    assert receipt.tx_hash == tx_hash
    assert node.received[0] == node.received[1]


async def test_the_key_is_never_shown(sent_log):
    node = FakeNode()
    box = outbox(node, sent_log)
    node.faults = ["intrinsic gas too low"]
    with capture_logs() as logs:
        try:
            await send(box, "a")
        except Failed as error:
            text = "".join(traceback.format_exception(error))
    shown = f"{text} {logs} {box!r} {vars(box)!r} {Secret(KEY)} {Secret(KEY):>8}"
    assert KEY.hex() not in shown
    assert repr(KEY)[2:-1] not in shown
    assert str(int.from_bytes(KEY, "big")) not in shown


steps = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(["", "", "unreachable", "answer lost", "restart", "forget", "mine"])),
    max_size=14,
)


@settings(max_examples=60, deadline=None)
@given(steps=steps, instant=st.booleans())
def test_whatever_fails_each_key_is_one_transaction_and_no_nonce_is_skipped(steps, instant):
    async def run() -> None:
        node = FakeNode(instant=instant)
        async with open_database(MEMORY, SENT_MIGRATIONS, durable=True) as db:
            sent_log = SqliteTransactionLog(db)
            box, hashes = outbox(node, sent_log), {}
            for key, event in steps:
                if event == "restart":
                    box = outbox(node, sent_log)
                elif event == "forget":
                    node.pool.clear()
                    box = outbox(node, sent_log)
                elif event == "mine":
                    node.mine()
                else:
                    node.faults = [event] if event else []
                try:
                    tx_hash = await send(box, key)
                    assert hashes.setdefault(key, tx_hash) == tx_hash
                except Unreachable:
                    pass
                node.faults = []
            for key in "abcd":
                await send(box, key)
            node.mine()
            assert {bytes(tx) for tx in node.mined} == {await box.sent(key) for key in "abcd"}
            assert len(node.mined) == 4

    trio.run(run)


async def test_on_a_real_chain(anvil, tmp_path):
    async with (
        open_rpc([anvil], expect_chain_id=31337) as rpc,
        open_database(tmp_path / "sent.sqlite", SENT_MIGRATIONS, durable=True) as db,
    ):
        sent_log = SqliteTransactionLog(db)
        box = Outbox(rpc, Secret(KEY), 31337, sent_log)
        # deploys a contract of one byte, STOP
        deployed = await box.receipt(
            await box.send(await box.prepare("d", None, bytes.fromhex("60016000f3"), gas=100_000)), [0.01]
        )
        assert deployed.status
        first = await box.send(await box.prepare("a", TO, b"", gas=21_000, value=1))
        receipt = await box.receipt(first, doubling(0.01, 1))
        assert (receipt.tx_hash, receipt.status, receipt.gas_used) == (first, True, 21_000)
        assert receipt.effective_gas_price > 0
        # mined already: another outbox, as after a restart
        again = Outbox(rpc, Secret(KEY), 31337, sent_log)
        assert await again.send(await again.prepare("a", TO, b"", gas=21_000, value=1)) == first
        # still pending
        await rpc.call("evm_setAutomine", [False])
        second = await again.send(await again.prepare("b", TO, b"", gas=21_000))
        third = Outbox(rpc, Secret(KEY), 31337, sent_log)
        assert await third.send(await third.prepare("b", TO, b"", gas=21_000)) == second
        await third.send(await third.prepare("c", TO, b"", gas=21_000))
        await rpc.call("evm_mine")
        await rpc.call("evm_setAutomine", [True])
        assert (await third.receipt(second, [0.01])).status
        assert int(await rpc.call("eth_getTransactionCount", ["0x" + box.address.hex(), "latest"]), 16) == 4
        # a nonce that somebody else took
        await rpc.call("anvil_setNonce", ["0x" + box.address.hex(), "0x9"])
        assert (await third.receipt(await third.send(await third.prepare("e", TO, b"", gas=21_000)), [0.01])).status
        # reverts are mined, with their status
        bad = await third.send(await third.prepare("f", None, bytes.fromhex("60006000fd"), gas=100_000))
        assert not (await third.receipt(bad, [0.01])).status
        with pytest.raises(Failed) as caught:
            await third.send(await third.prepare("g", TO, b"", gas=20_000))
        assert caught.value.code == "TRANSACTION_REFUSED"
        with pytest.raises(Failed) as caught:
            await third.send(await third.prepare("h", TO, b"", gas=21_000, value=10**30))
        assert caught.value.code == "INSUFFICIENT_FUNDS"


async def test_what_nobody_waits_for_is_not_remembered_for_ever(sent_log):
    box = outbox(FakeNode(), sent_log)
    for index in range(300):
        await send(box, str(index))
    assert len(box._line.in_flight) == 256


async def test_the_log_of_what_was_sent_does_not_fill_the_disk(sent_log):
    for nonce in (0, 1, 300, 10_239, 10_240, 10_241):
        await sent_log.record(f"key {nonce}", b"raw", nonce.to_bytes(32, "big"), nonce)
    assert [sent.nonce for sent in await sent_log.since(0)] == [300, 10_239, 10_240, 10_241]
