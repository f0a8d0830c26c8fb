"""A node that lags says too low a nonce, refuses what others took, or names a price that nobody asks: no gas, no nonce and no
patience is lost on it."""

from __future__ import annotations

from itertools import repeat

import pytest
import trio

from consensus.errors import Failed, Transient
from node.infra.gas_price import GWEI, FeeLimits
from node.infra.rpc import RpcError, Unreachable
from node.infra.secret import Secret
from node.infra.sqlite import MEMORY, open_database
from node.infra.transaction_bytes import read
from node.infra.transaction_log import SENT_MIGRATIONS, SqliteTransactionLog
from node.infra.transactions import Outbox
from tests.infra.fake_node import FakeNode, nonce_of
from tests.infra.test_transactions import KEY, outbox, send


class LaggingNode(FakeNode):
    """Says a lower nonce than it has, and refuses transactions below it with `refusal` when there is one."""

    says: int | None = None
    refusal = ""
    arrived = 0

    async def eth_getTransactionCount(self, address: str, tag: str) -> str:
        return hex(self.says) if self.says is not None else await super().eth_getTransactionCount(address, tag)

    async def eth_sendRawTransaction(self, text: str) -> str:
        self.arrived += 1
        raw = bytes.fromhex(text[2:])
        if self.refusal and self.says is not None and raw in self.received:
            raise RpcError(-32000, self.refusal)
        return await super().eth_sendRawTransaction(text)


@pytest.fixture
async def sent_log():
    async with open_database(MEMORY, SENT_MIGRATIONS, durable=True) as db:
        yield SqliteTransactionLog(db)


async def wait_for(box: Outbox, tx_hash: bytes, seconds: float) -> None:
    """Looks for a receipt four times a second."""
    with trio.move_on_after(seconds):
        await box.receipt(tx_hash, repeat(0.25))


async def test_a_nonce_that_is_said_too_low_is_not_answered_with_all_transactions_again_and_again(sent_log, autojump_clock):
    node = LaggingNode()
    box = outbox(node, sent_log)
    for number in range(50):
        await send(box, str(number))
    node.instant = False
    waiting = await send(box, "waiting")
    node.says, node.arrived = 0, 0
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(wait_for, box, waiting, 300)
    rebroadcast = 10 * 300 * 4 // 20  # each waiter its own
    assert node.arrived < rebroadcast + 10 * 51
    assert node.nonces == list(range(51))


async def test_of_a_nonce_said_far_too_low_little_is_sent_again(sent_log, autojump_clock):
    node = LaggingNode()
    box = outbox(node, sent_log)
    for number in range(300):
        await send(box, str(number))
    node.instant = False
    waiting = await send(box, "waiting")
    node.says, node.arrived = 0, 0
    await wait_for(box, waiting, 6)
    assert node.arrived <= 1 + 64  # itself, and one look's
    node.instant = True
    await send(box, "next")
    assert node.nonces == list(range(302))


@pytest.mark.parametrize("refusal", ["insufficient funds for gas * price + value", "max fee per gas less than block base fee"])
async def test_a_refusal_by_a_node_that_lags_frees_no_nonce_that_is_taken(sent_log, autojump_clock, refusal):
    node = LaggingNode()
    box = outbox(node, sent_log)
    former = await send(box, "a")
    node.instant = False
    waiting = await send(box, "b")
    node.says, node.refusal = 0, refusal
    await wait_for(box, waiting, 60)
    assert await box.sent("a") == former
    node.says = None
    await send(box, "c")
    assert node.nonces == [0, 1, 2]


async def test_a_transaction_that_was_taken_back_and_is_refused_for_good_holds_up_no_others(sent_log, autojump_clock):
    node = LaggingNode(instant=False)
    box = outbox(node, sent_log)
    waiting = await send(box, "a")
    second = await send(box, "b")
    node.pool.clear()  # the node crashed, and has become strict
    node.says, node.refusal = 0, "oversized data"
    await wait_for(box, waiting, 60)
    node.says, node.instant, node.refusal = None, True, ""
    receipt = await box.receipt(await send(box, "c"), repeat(0.25))
    assert receipt.status
    assert nonce_of(node.received[-1]) == 0
    await send(box, "d")
    assert (await box.receipt(second, repeat(0.25))).status  # the one behind it has kept its place
    assert [nonce_of(raw) for raw in node.received[-3:]] == [0, 1, 2]


async def test_what_was_given_up_is_not_sent_with_another_nonce(sent_log, autojump_clock):
    node = LaggingNode(instant=False)
    box = outbox(node, sent_log)
    waiting = await send(box, "a")
    node.pool.clear()
    node.says, node.refusal = 0, "oversized data"
    await wait_for(box, waiting, 60)
    node.says, node.instant, node.refusal = None, True, ""
    await send(box, "b")
    assert await box.sent("a") == waiting
    arrived = len(node.received)
    with pytest.raises(Transient):
        await send(box, "a")
    await trio.sleep(11)
    with pytest.raises(Failed) as caught:
        await send(box, "a")
    assert caught.value.code == "NONCE_TAKEN"
    assert len(node.received) == arrived


async def test_what_was_given_up_leaves_after_all_where_nobody_took_its_place(sent_log, autojump_clock):
    node = LaggingNode(instant=False)
    box = outbox(node, sent_log)
    waiting = await send(box, "a")
    node.pool.clear()
    node.says, node.refusal = 0, "oversized data"
    await wait_for(box, waiting, 60)
    node.says, node.instant, node.refusal = None, True, ""
    assert await send(box, "a") == waiting
    await send(box, "b")
    assert set(node.mined) == {waiting, await box.sent("b")}


async def test_a_node_that_goes_away_while_it_is_told_again_is_told_soon_after(sent_log, autojump_clock):
    node = LaggingNode(instant=False)
    box = outbox(node, sent_log)
    hashes = [await send(box, str(number)) for number in range(5)]
    node.pool.clear()  # the node crashed
    came = trio.Event()

    async def crash_again(text: str) -> str:
        node.eth_sendRawTransaction = back  # type: ignore[method-assign]
        came.set()
        raise Unreachable("gone again")

    back = node.eth_sendRawTransaction
    node.eth_sendRawTransaction = crash_again  # type: ignore[method-assign]
    node.says = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for, box, hashes[0], 60)
        await came.wait()
        began = trio.current_time()
        while len(node.pool) < 5:  # noqa: ASYNC110  (virtual time)
            await trio.sleep(0.1)
        assert trio.current_time() - began < 6  # a look, not a pause for liars
        nursery.cancel_scope.cancel()


async def test_a_suggested_tip_is_paid_up_to_a_limit_and_nothing_is_replaced_for_more(sent_log, autojump_clock):
    class Greedy(FakeNode):
        async def eth_gasPrice(self) -> str:
            return hex(GWEI + 1_000 * GWEI)

    node = Greedy(instant=False)
    box = Outbox(node, Secret(KEY), 31337, sent_log, FeeLimits(most=500 * GWEI, bump_after=15.0, tip=3 * GWEI))
    await wait_for(box, await send(box, "a"), 300)
    offers = [read(raw)[1] for raw in dict.fromkeys(node.received)]
    assert [(offer.most, offer.tip) for offer in offers] == [(5 * GWEI, 3 * GWEI)]
