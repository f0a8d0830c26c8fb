"""Transactions that the chain left behind: replaced by themselves at a higher price, within a limit, and still sent once."""

from __future__ import annotations

from itertools import repeat

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from consensus.errors import Failed, Transient
from node.infra.gas_price import FeeLimits
from node.infra.rpc import Unreachable
from node.infra.secret import Secret
from node.infra.sqlite import MEMORY, open_database
from node.infra.transaction_bytes import read
from node.infra.transaction_log import SENT_MIGRATIONS, SENT_TABLE, SqliteTransactionLog
from node.infra.transactions import Outbox
from tests.infra.fake_node import FakeNode, hash_of, nonce_of
from tests.infra.test_transactions import KEY, send

LIMITS = FeeLimits(most=100 * 10**9, bump_after=15.0)


@pytest.fixture
async def sent_log():
    async with open_database(MEMORY, SENT_MIGRATIONS, durable=True) as db:
        yield SqliteTransactionLog(db)


def outbox(node: FakeNode, sent_log: SqliteTransactionLog, limits: FeeLimits = LIMITS) -> Outbox:
    return Outbox(node, Secret(KEY), 31337, sent_log, limits)


async def left_behind(node: FakeNode, box: Outbox, key: str = "a", base_fee: int = 9 * 10**9) -> bytes:
    """A transaction in the pool that the base fee has outgrown."""
    node.instant = False
    tx_hash = await send(box, key)
    node.base_fee, node.instant = base_fee, True
    return tx_hash


async def test_what_offers_too_little_is_replaced_under_its_nonce_and_is_the_same_but_for_the_price(sent_log, autojump_clock):
    node = FakeNode()
    box = outbox(node, sent_log)
    former = await left_behind(node, box)
    began = trio.current_time()
    receipt = await box.receipt(former, repeat(0.5))
    assert 15 <= trio.current_time() - began <= 21  # the patience, and one look
    first, second = node.received
    assert (nonce_of(first), nonce_of(second)) == (0, 0)
    (payload, offer), (again, raised) = read(first), read(second)
    assert payload == again
    assert (offer.most, raised.most, raised.tip) == (2 * 10**9 + 7, 18 * 10**9 + 7, 8)
    assert receipt.tx_hash.hex() == hash_of(second)[2:]
    assert receipt.tx_hash != former
    assert await box.sent("a") == receipt.tx_hash


async def test_each_hash_of_a_replaced_transaction_stands_for_all(sent_log, autojump_clock):
    node = FakeNode()
    box = outbox(node, sent_log)
    former = await left_behind(node, box)
    mined = (await box.receipt(former, repeat(0.5))).tx_hash
    later = outbox(node, sent_log)  # after a restart
    assert (await later.receipt(former, repeat(0.5))).tx_hash == mined
    assert (await later.receipt(mined, repeat(0.5))).tx_hash == mined
    assert await send(later, "a") == mined
    assert len(node.mined) == 1


async def test_the_version_that_was_replaced_may_be_the_one_that_is_mined(sent_log, autojump_clock):
    node = FakeNode()
    box = outbox(node, sent_log)
    former = await left_behind(node, box)

    async def mined_elsewhere(text: str) -> str:
        if bytes.fromhex(text[2:]) in node.received:
            return hash_of(node.received[0])
        node.base_fee = 1
        node.mine()
        raise Unreachable("the answer was lost")

    node.eth_sendRawTransaction = mined_elsewhere  # type: ignore[method-assign]
    assert (await box.receipt(former, repeat(0.5))).tx_hash == former
    assert len(await sent_log.versions(former)) == 2
    del node.eth_sendRawTransaction  # type: ignore[method-assign]
    later = outbox(node, sent_log)
    assert await send(later, "a") == former
    assert len(node.mined) == 1


async def test_what_still_offers_enough_is_left_alone(sent_log, autojump_clock):
    node = FakeNode(instant=False)
    box = outbox(node, sent_log)
    tx_hash = await send(box, "a")
    node.base_fee = 15 * 10**8  # risen by half: half of what was allowed for
    with trio.move_on_after(300):
        await box.receipt(tx_hash, repeat(0.5))
    assert len(set(node.received)) == 1
    assert len(await sent_log.versions(tx_hash)) == 1


async def test_one_that_nobody_waits_for_does_not_hold_up_those_behind_it(sent_log, autojump_clock):
    node = FakeNode()
    box = outbox(node, sent_log)
    await left_behind(node, box, "forsaken")
    await trio.sleep(30)
    behind = await send(box, "b")
    assert (await box.receipt(behind, repeat(0.5))).tx_hash == behind
    assert [nonce_of(raw) for raw in node.received] == [0, 1, 0]


async def test_after_a_restart_it_is_replaced_as_well(sent_log, autojump_clock):
    node = FakeNode()
    former = await left_behind(node, outbox(node, sent_log))
    box = outbox(node, sent_log)
    assert await send(box, "a") == former
    mined = await box.receipt(former, repeat(0.5))
    assert mined.tx_hash == await box.sent("a") != former


async def test_what_a_strict_node_dropped_for_its_price_comes_back_at_a_higher_one(sent_log, autojump_clock):
    node = FakeNode()
    node.strict = True
    box = outbox(node, sent_log)
    former = await left_behind(node, box)
    node.pool.clear()
    receipt = await box.receipt(former, repeat(0.5))
    assert receipt.tx_hash == await box.sent("a") != former
    assert node.nonces == [0, 0]


async def test_sent_again_after_a_restart_to_a_node_that_wants_more_it_offers_more(sent_log, autojump_clock):
    node = FakeNode()
    node.strict = True
    former = await left_behind(node, outbox(node, sent_log))
    node.pool.clear()
    box = outbox(node, sent_log)
    raised = await send(box, "a")
    assert raised != former
    assert (await box.receipt(former, repeat(0.5))).tx_hash == raised
    assert len(node.mined) == 1


async def test_it_is_replaced_again_and_again_while_the_price_rises(sent_log, autojump_clock):
    node = FakeNode()
    box = outbox(node, sent_log)
    tx_hash = await left_behind(node, box)
    node.instant = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(box.receipt, tx_hash, repeat(0.5))
        await trio.sleep(30)
        assert len(node.received) == 2
        node.base_fee = 30 * 10**9
        await trio.sleep(30)
        assert len(node.received) == 3
        node.mine()
    assert len(await sent_log.versions(tx_hash)) == 3
    assert len(node.mined) == 1


async def test_no_offer_goes_over_the_limit_and_a_chain_that_gets_cheaper_takes_the_old_one(sent_log, autojump_clock):
    node = FakeNode()
    box = outbox(node, sent_log, FeeLimits(most=22 * 10**8, bump_after=15.0))
    tx_hash = await left_behind(node, box)
    with capture_logs() as logs, trio.move_on_after(100):
        await box.receipt(tx_hash, repeat(0.5))
    assert "fee_limit_reached" in {entry["event"] for entry in logs}
    assert len(node.received) == 1
    node.base_fee = 10**9
    node.mine()
    assert (await box.receipt(tx_hash, repeat(0.5))).tx_hash == tx_hash


async def test_while_gas_costs_more_than_the_limit_nothing_new_is_sent(sent_log):
    node = FakeNode(base_fee=101 * 10**9)
    box = outbox(node, sent_log)
    with pytest.raises(Transient) as caught:
        await send(box, "a")
    assert caught.value.code == "GAS_TOO_DEAR"
    assert node.received == []
    assert await box.sent("a") is None


async def test_an_offer_to_a_dear_chain_stops_at_the_limit(sent_log):
    node = FakeNode(base_fee=80 * 10**9)
    await send(outbox(node, sent_log), "a")
    assert read(node.received[0])[1].most == LIMITS.most


async def test_a_chain_without_base_fee_has_its_price_raised(sent_log, autojump_clock):
    node = FakeNode(base_fee=None)
    box = outbox(node, sent_log)
    node.instant = False
    former = await send(box, "a")

    async def dearer() -> str:
        return hex(40)

    node.eth_gasPrice = dearer  # type: ignore[method-assign]
    node.instant = True
    mined = await box.receipt(former, repeat(0.5))
    assert mined.tx_hash != former
    assert [read(raw)[1].most for raw in node.received] == [7, 40]


@pytest.mark.parametrize("fault", ["hang", "hang after", "answer lost"])
async def test_a_crash_while_it_is_replaced_leaves_one_transaction(sent_log, autojump_clock, fault):
    node = FakeNode()
    box = outbox(node, sent_log)
    former = await left_behind(node, box)
    node.faults = [fault]
    with trio.move_on_after(60) as crash:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.receipt, former, repeat(1))  # replaced before it is told again
            await node.entered.wait() if fault != "answer lost" else await trio.sleep(19)
            crash.cancel()
    assert len(await sent_log.versions(former)) == 2
    later = outbox(node, sent_log)
    again = await send(later, "a")
    assert (await later.receipt(former, repeat(0.5))).tx_hash == (await later.receipt(again, repeat(0.5))).tx_hash
    await send(later, "b")
    assert [nonce_of(raw) for raw in node.received][-1] == 1
    assert len(node.mined) == 2


async def test_a_replacement_that_the_account_cannot_pay_for_leaves_the_former_one_in_its_place(sent_log, autojump_clock):
    node = FakeNode()
    box = outbox(node, sent_log)
    former = await left_behind(node, box)
    node.faults = ["insufficient funds for gas * price + value"] * 20
    with trio.move_on_after(60):
        await box.receipt(former, repeat(0.5))
    assert await box.sent("a") == former
    node.faults = []
    assert (await box.receipt(former, repeat(0.5))).tx_hash == await box.sent("a")


async def test_a_nonce_that_another_program_used_ends_the_wait(sent_log, autojump_clock):
    node = FakeNode(instant=False)
    box = outbox(node, sent_log)
    ours = await send(box, "a")
    node.pool.clear()
    node.counts["0x" + box.address.hex()] = 1  # mined with the same key, from elsewhere
    began = trio.current_time()
    with pytest.raises(Failed) as caught:
        await box.receipt(ours, repeat(0.5))
    assert caught.value.code == "NONCE_TAKEN"
    assert trio.current_time() - began > 30  # an index may lag behind the count
    node.instant = True
    await send(box, "b")
    assert node.nonces == [0, 1]


async def test_a_refusal_after_a_lost_answer_is_not_the_last_word(sent_log):
    """One endpoint may have got it before another refused."""
    node = FakeNode()
    box = outbox(node, sent_log)
    node.faults, node.doubtful = ["max fee per gas less than block base fee"], True
    with pytest.raises(Transient) as caught:
        await send(box, "a")
    assert caught.value.code == "RPC_UNREACHABLE"
    recorded = await box.sent("a")
    assert recorded is not None
    await send(box, "b")
    assert node.nonces == [0, 1]
    assert await send(box, "a") == recorded


async def test_a_chain_that_was_started_anew_does_not_get_the_old_ones_transactions(sent_log):
    node = FakeNode()
    node.genesis = "0x01"
    await send(outbox(node, sent_log), "a")
    anew = FakeNode()
    anew.genesis = "0x02"
    box = outbox(anew, sent_log)
    await send(box, "b")
    assert [read(raw)[0].data for raw in anew.received] == [b"b"]
    await send(box, "a")
    assert anew.nonces == [0, 1]


async def test_a_disk_that_does_not_record_lets_nothing_leave(sent_log):
    class FullDisk:
        def __getattr__(self, name: str):
            return getattr(sent_log, name)

        async def record(self, *_: object) -> None:
            raise Transient("DISK_FULL")

    node = FakeNode()
    box = Outbox(node, Secret(KEY), 31337, FullDisk(), LIMITS)
    for _ in range(2):
        with pytest.raises(Transient) as caught:
            await send(box, "a")
        assert caught.value.code == "DISK_FULL"
    assert node.received == []


async def test_records_of_the_release_before_are_read(tmp_path):
    path = tmp_path / "sent.sqlite"
    async with open_database(path, (SENT_TABLE,), durable=True) as db:
        await db.write(lambda c: c.execute("INSERT INTO sent VALUES ('a', x'02', x'0d', 3)").close())
    async with open_database(path, SENT_MIGRATIONS, durable=True) as db:
        sent_log = SqliteTransactionLog(db)
        [found] = await sent_log.since(0)
        assert (found.key, found.raw, found.tx_hash, found.nonce, found.given_up) == ("a", b"\x02", b"\x0d", 3, False)
        assert await sent_log.versions(b"\x0d") == [found]


steps = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.sampled_from(["", "", "unreachable", "answer lost", "doubtful", "restart", "forget", "mine", "dear", "cheap", "wait"]),
    ),
    max_size=16,
)


@settings(max_examples=80, deadline=None)
@given(steps=steps, instant=st.booleans(), strict=st.booleans())
def test_whatever_fails_and_whatever_gas_costs_each_key_is_mined_once_and_no_nonce_is_skipped(steps, instant, strict):
    async def run() -> None:
        node = FakeNode(instant=instant)
        node.strict = strict
        async with open_database(MEMORY, SENT_MIGRATIONS, durable=True) as db:
            sent_log = SqliteTransactionLog(db)
            box = outbox(node, sent_log)
            for key, event in steps:
                match event:
                    case "restart":
                        box = outbox(node, sent_log)
                    case "forget":
                        node.pool.clear()
                        box = outbox(node, sent_log)
                    case "mine":
                        node.mine()
                    case "dear":
                        node.base_fee = min((node.base_fee or 0) * 8, LIMITS.most * 2)
                    case "cheap":
                        node.base_fee = 10**9
                    case "wait":
                        tx_hash = await box.sent(key)
                        if tx_hash is not None:
                            with trio.move_on_after(40):
                                await box.receipt(tx_hash, repeat(1))
                    case "doubtful":
                        node.doubtful, node.faults = True, ["max fee per gas less than block base fee"]
                    case fault:
                        node.faults = [fault] if fault else []
                try:
                    await send(box, key)
                except Transient as error:
                    assert error.code in ("RPC_UNREACHABLE", "GAS_TOO_DEAR")  # noqa: PT017  (others fail the test)
                node.faults, node.doubtful = [], False
            node.base_fee = 1
            await trio.sleep(100)  # what was said of the price is old by now
            for key in "abcd":
                await send(box, key)
            node.mine()
            raws = {bytes.fromhex(hash_of(raw)[2:]): raw for raw in node.received}
            mined = [raws[tx_hash] for tx_hash in node.mined]
            assert sorted(read(raw)[0].data for raw in mined) == [b"a", b"b", b"c", b"d"]
            assert [nonce_of(raw) for raw in mined] == [0, 1, 2, 3]

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_after_a_restart_whoever_only_waits_looks_after_what_waits(sent_log, autojump_clock):
    node = FakeNode()
    former = await left_behind(node, outbox(node, sent_log))
    mined = await outbox(node, sent_log).receipt(former, repeat(0.5))
    assert mined.tx_hash != former


async def test_what_is_worth_less_than_the_limit_is_offered_no_more_than_that_after_a_restart_either(sent_log, autojump_clock):
    node = FakeNode(instant=False)
    box = outbox(node, sent_log)
    tx_hash = await box.send(await box.prepare("a", b"\x11" * 20, b"", gas=50_000, most=4 * 10**9))
    node.base_fee = 9 * 10**9
    later = outbox(node, sent_log)
    with trio.move_on_after(200):
        await later.receipt(tx_hash, repeat(0.5))
    assert [read(raw)[1].most for raw in dict.fromkeys(node.received)] == [2 * 10**9 + 7, 4 * 10**9]
    with pytest.raises(Transient) as caught:
        await later.send(await later.prepare("b", b"\x11" * 20, b"", gas=50_000, most=2 * 10**9))
    assert caught.value.code == "GAS_TOO_DEAR"


async def test_a_replacement_that_was_cut_off_before_it_left_leaves_later(sent_log, autojump_clock):
    node = FakeNode()
    box = outbox(node, sent_log)
    former = await left_behind(node, box)
    node.faults = ["hang"]
    with trio.move_on_after(60) as cut:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.receipt, former, repeat(1))
            await node.entered.wait()
            cut.cancel()
    assert len(await sent_log.versions(former)) == 2
    with trio.fail_after(60):
        assert (await box.receipt(former, repeat(0.5))).tx_hash == await box.sent("a") != former
    assert len(await sent_log.versions(former)) == 2
