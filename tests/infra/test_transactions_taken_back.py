"""A real chain that takes blocks back: what was lost is sent again in order, and what follows is not stuck behind it."""

from __future__ import annotations

from itertools import repeat

import trio

from node.infra.rpc import open_rpc
from node.infra.secret import Secret
from node.infra.sqlite import MEMORY, open_database
from node.infra.transaction_log import SENT_MIGRATIONS, SqliteTransactionLog
from node.infra.transactions import Outbox
from tests.anvil import running_anvil

KEY = bytes.fromhex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80")  # anvil's first account
TO = b"\x11" * 20


async def test_transactions_that_the_chain_took_back_leave_no_gap_behind_which_others_wait_for_ever():
    with running_anvil() as url:
        async with open_rpc([url], expect_chain_id=31337) as rpc, open_database(MEMORY, SENT_MIGRATIONS, durable=True) as db:
            box = Outbox(rpc, Secret(KEY), 31337, SqliteTransactionLog(db))

            async def send(key: str) -> bytes:
                return await box.send(await box.prepare(key, TO, key.encode(), gas=50_000))

            before = await rpc.call("evm_snapshot")
            lost = [await send("a"), await send("b")]
            assert await rpc.call("evm_revert", [before])
            later = await send("c")  # with a nonce that the chain does not know of any more
            with trio.fail_after(30):
                receipts = [await box.receipt(tx_hash, repeat(0.01)) for tx_hash in (later, *lost)]
            assert all(receipt.status for receipt in receipts)
            assert int(await rpc.call("eth_getTransactionCount", ["0x" + box.address.hex(), "latest"]), 16) == 3
