"""What the hub charges on a real chain is the formula on what was used, and never more than was quoted."""

from __future__ import annotations

import pytest

from consensus.committee import SIZE_BY_LEVEL
from consensus.fees import BASE_FEE, quote, resource_fee
from consensus.messages import Usage
from node.infra.chain import TaskExecuted
from node.infra.evm_reads import hex_of, int_of
from tests.chain.anvil_world import AnvilWorld
from tests.chain.conftest import anvil as anvil
from tests.chain.conftest import on_anvil as on_anvil
from tests.chain.deeds import CALL, due_job, execute

STEP = 10**6  # execution_record.FEE_STEP
USED = Usage(cpu_ms=730, wall_ms=1_500, peak_kib=90_000, transferred=12_345)


@pytest.mark.parametrize(("priority", "usage"), [(3, None), (1, USED)])
async def test_the_fee_charged_is_the_formulas_and_within_the_quote(
    on_anvil: AnvilWorld, priority: int, usage: Usage | None
) -> None:
    world, tariff = on_anvil, on_anvil.evm.tariff
    inner = await world.evm.estimate_call(world.target, CALL)
    quoted = quote(await world.evm.quote(0, inner), priority, scripted=usage is not None, before=usage)
    claimed = resource_fee(priority, usage)
    job_id, second = await due_job(world)
    mined = await execute(world, job_id, second, resource_fee=claimed)
    [event] = [e for e in await world.chain.events(mined.block_number, mined.block_number) if isinstance(e, TaskExecuted)]
    receipt = await world.rpc.call("eth_getTransactionReceipt", [hex_of(mined.tx_hash)])
    block = await world.rpc.call("eth_getBlockByNumber", [hex(mined.block_number), False])
    base, paid = int_of(block["baseFeePerGas"]), int_of(receipt["effectiveGasPrice"])
    price = tariff.price(base, paid - base)

    # everything but the gas that the hub measured, which no receipt tells: what is left must be whole gas at that price
    fixed = tariff.fee(0, 0, len(CALL), price, 0) + claimed
    measured, rest = divmod(event.fee - fixed, price)
    assert event.success
    assert rest < STEP
    assert inner < measured < mined.gas_used
    used = measured + tariff.overhead_gas + tariff.data_gas * len(CALL)
    assert mined.gas_used <= used <= 1.4 * mined.gas_used + tariff.overhead_gas  # the performer's own costs are covered
    share = (tariff.validation_gas + tariff.validation_seat_gas * SIZE_BY_LEVEL[0]) * price
    record = await world.chain.execution(event.task_id)
    assert record is not None
    assert (record.validation_share, record.fee) == (share, event.fee)

    assert event.fee <= quoted.total
    assert quoted.base == BASE_FEE[priority]
    assert quoted.script >= claimed - BASE_FEE[priority]
