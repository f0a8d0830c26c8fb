"""Real chains: one without EIP-1559, two at once with one key, and a second program that sends from the same account."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import repeat

import pytest
import trio

from consensus.errors import Transient
from node.infra.gas_price import GWEI, FeeLimits
from node.infra.rpc import Rpc, RpcError, open_rpc
from node.infra.secret import Secret
from node.infra.sqlite import MEMORY, open_database
from node.infra.transaction_log import SENT_MIGRATIONS, SqliteTransactionLog
from node.infra.transactions import Outbox
from tests.anvil import running_anvil
from tests.infra.test_transactions import KEY, send

AT_ONCE = FeeLimits(most=10_000 * GWEI, bump_after=0.0)


@asynccontextmanager
async def opened(url: str, chain_id: int, limits: FeeLimits | None = None) -> AsyncIterator[tuple[Outbox, Rpc]]:
    async with (
        open_rpc([url], expect_chain_id=chain_id) as rpc,
        open_database(MEMORY, SENT_MIGRATIONS, durable=True) as db,
    ):
        yield Outbox(rpc, Secret(KEY), chain_id, SqliteTransactionLog(db), limits), rpc


async def transaction(rpc: Rpc, tx_hash: bytes) -> dict[str, str]:
    found: dict[str, str] = await rpc.call("eth_getTransactionByHash", ["0x" + tx_hash.hex()])
    return found


async def test_on_a_chain_before_eip_1559_they_are_legacy_transactions_and_replaced_by_such():
    with running_anvil("--hardfork", "berlin") as url:
        async with opened(url, 31337, AT_ONCE) as (box, rpc):
            assert "baseFeePerGas" not in await rpc.call("eth_getBlockByNumber", ["latest", False])
            first = await box.receipt(await send(box, "a"), [0.01])
            assert first.status
            found = await transaction(rpc, first.tx_hash)
            assert (found["type"], "maxFeePerGas" in found) == ("0x0", False)
            await rpc.call("evm_setAutomine", [False])
            waiting = await send(box, "b")
            price = int((await transaction(rpc, waiting))["gasPrice"], 16)
            await rpc.call("anvil_setMinGasPrice", [hex(3 * price)])
            box._market.forget()
            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(box.receipt, waiting, repeat(0.01))
                    while (following := await box.sent("b")) in (waiting, None) or not await transaction(rpc, following):
                        pass
                    await rpc.call("evm_mine")
                mined = await box.receipt(waiting, repeat(0.01))
            assert mined.tx_hash == following
            found = await transaction(rpc, mined.tx_hash)
            assert (int(found["nonce"], 16), found["type"]) == (1, "0x0")
            assert int(found["gasPrice"], 16) == 3 * price


async def test_one_key_sends_on_two_chains_at_once_and_each_has_its_own_nonces():
    with running_anvil() as first, running_anvil("--chain-id", "4242") as second:
        async with opened(first, 31337) as (here, rpc_here), opened(second, 4242) as (there, rpc_there):
            assert here.address == there.address
            hashes: dict[tuple[int, int], bytes] = {}

            async def send_all(box: Outbox, chain_id: int, count: int) -> None:
                for number in range(count):
                    hashes[chain_id, number] = (await box.receipt(await send(box, str(number)), [0.01])).tx_hash

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_all, here, 31337, 5)
                nursery.start_soon(send_all, there, 4242, 3)
            assert len(set(hashes.values())) == 8
            for rpc, chain_id, count in ((rpc_here, 31337, 5), (rpc_there, 4242, 3)):
                assert int(await rpc.call("eth_getTransactionCount", ["0x" + here.address.hex(), "latest"]), 16) == count
                for number in range(count):
                    found = await transaction(rpc, hashes[chain_id, number])
                    assert (int(found["nonce"], 16), int(found["chainId"], 16)) == (number, chain_id)
            # what was signed for the one is worth nothing on the other
            [sent] = [sent for sent in await here._log.since(0) if sent.nonce == 3]
            with pytest.raises(RpcError):
                await rpc_there.call("eth_sendRawTransaction", ["0x" + sent.raw.hex()])


async def test_two_programs_with_one_key_neither_lose_a_transaction_nor_send_one_twice():
    with running_anvil() as url:
        async with opened(url, 31337) as (one, rpc), opened(url, 31337) as (other, _):
            mined: dict[str, bytes] = {}

            async def send_all(box: Outbox, name: str) -> None:
                for number in range(10):
                    key = f"{name}{number}"
                    while key not in mined:
                        try:
                            tx_hash = await send(box, key)
                        except Transient as error:
                            assert error.code == "NONCE_CONTENDED"  # noqa: PT017  (the other program was faster, each time)
                            continue
                        mined[key] = (await box.receipt(tx_hash, [0.01])).tx_hash

            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send_all, one, "one")
                    nursery.start_soon(send_all, other, "other")
            assert int(await rpc.call("eth_getTransactionCount", ["0x" + one.address.hex(), "latest"]), 16) == len(mined) == 20
            payloads = [(await transaction(rpc, tx_hash))["input"] for tx_hash in mined.values()]
            assert len(set(payloads)) == 20
