"""What a script asks for is tried before it costs anything: refused with the hub's reason, and given gas enough."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from consensus import ecdsa
from consensus.errors import Failed, Transient
from consensus.messages import Authorisation
from node.infra.chain import Mined
from node.infra.contracts import encode_execute
from node.infra.evm import open_chain
from node.infra.evm_reads import hex_of, int_of
from node.infra.evm_wallet import EvmPrepared, EvmWallet, execution_gas, price_limit
from node.infra.secret import Secret
from node.infra.transactions import Outbox
from tests.chain.anvil_world import CHAIN_ID, AnvilWorld
from tests.chain.deeds import CALL, due_job, execute
from tests.chain.worlds import DISPATCHER, INTERVAL, authorise


def scripted(world: AnvilWorld, job_id: int, second: int, not_before: int = 0) -> tuple[Authorisation, bytes]:
    """An authorisation that leaves the arguments to a script."""
    draft, _ = authorise(world.chain, job_id, second, world.keepers[0].address, world.target, call=CALL)
    fields = {f: getattr(draft, f) for f in draft.__struct_fields__} | {"call_hash": bytes(32), "not_before": not_before}
    authorisation = Authorisation(**fields)
    return authorisation, ecdsa.sign(DISPATCHER, world.chain.domain.hub_digest(authorisation.struct_hash()))


async def spent(world: AnvilWorld) -> int:
    return 10**24 - int_of(await world.rpc.call("eth_getBalance", [hex_of(world.keepers[0].address), "latest"]))


async def test_a_scripts_call_that_the_hub_would_refuse_costs_nothing(on_anvil: AnvilWorld) -> None:
    job_id, second = await due_job(on_anvil)
    await on_anvil.delete_job(job_id)
    wallet = on_anvil.wallet(on_anvil.keepers[0])
    authorisation, signature = scripted(on_anvil, job_id, second)
    before = await spent(on_anvil)
    with pytest.raises(Failed) as refused:
        await wallet.prepare_execution(authorisation, signature, on_anvil.target, CALL, 0)
    assert (refused.value.code, refused.value.detail) == ("HUB_REFUSED", "JobInactive")
    assert await spent(on_anvil) == before


async def test_one_that_was_sent_before_is_not_tried_again(on_anvil: AnvilWorld) -> None:
    job_id, second = await due_job(on_anvil)
    wallet = on_anvil.wallet(on_anvil.keepers[0])
    authorisation, signature = scripted(on_anvil, job_id, second)
    prepared = await wallet.prepare_execution(authorisation, signature, on_anvil.target, CALL, 0)
    sent = await wallet.send(prepared)
    assert (await wallet.mined(sent)).success
    again = await wallet.prepare_execution(authorisation, signature, on_anvil.target, CALL, 0)  # else TaskAlreadyExecuted
    assert await wallet.send(again) == sent


async def test_ahead_of_its_second_it_is_tried_at_its_second(on_anvil: AnvilWorld) -> None:
    job_id = await on_anvil.create_job()
    job = await on_anvil.chain.job(job_id)
    assert job is not None
    second = job.created_at + 5 * INTERVAL
    wallet = on_anvil.wallet(on_anvil.keepers[0])
    authorisation, signature = scripted(on_anvil, job_id, second, not_before=second)
    prepared = await wallet.prepare_execution(authorisation, signature, on_anvil.target, CALL, 0)
    assert isinstance(prepared, EvmPrepared)
    data = encode_execute(authorisation, signature, on_anvil.target, CALL, 0)
    assert prepared.transaction.payload.gas >= execution_gas(authorisation.gas_limit, data)
    off_schedule, signature = scripted(on_anvil, job_id, second + 1, not_before=second + 1)
    with pytest.raises(Failed) as refused:
        await wallet.prepare_execution(off_schedule, signature, on_anvil.target, CALL, 0)
    assert refused.value.detail == "OffSchedule"


async def test_a_revert_is_told_once_it_is_as_deep_as_the_chain_wants_it(on_anvil: AnvilWorld) -> None:
    """In a reorganisation it might yet succeed."""
    job_id, second = await due_job(on_anvil)
    assert (await execute(on_anvil, job_id, second)).success
    keeper, deep = on_anvil.keepers[0], await open_chain(on_anvil.settings(confirmations=3), on_anvil.line)
    wallet = EvmWallet(deep, Outbox(on_anvil.line, Secret(keeper.secret), CHAIN_ID, on_anvil.logs[keeper.address]))
    authorisation, signature = authorise(deep, job_id, second, keeper.address, on_anvil.target, call=CALL, attempt=2)
    tx_hash = await wallet.send(await wallet.prepare_execution(authorisation, signature, on_anvil.target, CALL, 0))
    told: list[Mined] = []

    async def wait() -> None:
        told.append(await wallet.mined(tx_hash))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        for _ in range(3):
            on_anvil.line.calls.clear()
            while on_anvil.line.calls.count("eth_blockNumber") < 2:  # it has looked at the head, and waits on
                await trio.testing.wait_all_tasks_blocked()
            assert not told
            await on_anvil.pass_seconds(1)
    [mined] = told
    assert (mined.success, mined.reason) == (False, "TaskAlreadyExecuted")
    assert (await deep.head()).number == mined.block_number + 3


async def test_a_price_at_which_the_hub_would_refuse_is_not_offered(on_anvil: AnvilWorld) -> None:
    job_id, second = await due_job(on_anvil)
    authorisation, signature = scripted(on_anvil, job_id, second)
    most = price_limit(on_anvil.evm.tariff, authorisation.level, authorisation.max_fee)
    wallet = on_anvil.wallet(on_anvil.keepers[0])
    await on_anvil.rpc.call("anvil_setNextBlockBaseFeePerGas", [hex(most * 11 // 10)])
    await on_anvil.pass_seconds(1)
    before = await spent(on_anvil)
    prepared = await wallet.prepare_execution(authorisation, signature, on_anvil.target, CALL, 0)
    with pytest.raises(Transient) as refused:
        await wallet.send(prepared)
    assert refused.value.code == "GAS_TOO_DEAR"
    assert await spent(on_anvil) == before
    await on_anvil.rpc.call("anvil_setNextBlockBaseFeePerGas", [hex(most * 99 // 100)])
    await on_anvil.pass_seconds(1)
    wallet = on_anvil.wallet(on_anvil.keepers[0])
    prepared = await wallet.prepare_execution(authorisation, signature, on_anvil.target, CALL, 0)
    mined = await wallet.mined(await wallet.send(prepared))
    assert mined.success, mined.reason
