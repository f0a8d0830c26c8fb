"""What keepers do on any chain of the port suite: execute, submit, and what the contracts say to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from consensus.errors import Failed
from node.infra.chain import ExecutionRecord, Mined, Prepared, TaskExecuted, Wallet
from tests.chain.worlds import INTERVAL, PING, Actor, World, authorise

CALL = PING.encode(7)


async def send(wallet: Wallet, prepared: Prepared) -> Mined:
    with trio.fail_after(10):
        return await wallet.mined(await wallet.send(prepared))


async def refusal(deed: Callable[[], Awaitable[Mined]]) -> str:
    """The contract's reason, whether it was found before sending or in the receipt."""
    try:
        mined = await deed()
    except Failed as error:
        if error.code != "HUB_REFUSED":
            raise
        return error.detail
    assert not mined.success
    return mined.reason


async def execute(
    world: World, job_id: int, trigger_id: int, *, by: Actor | None = None, attempt: int = 1, resource_fee: int = 0
) -> Mined:
    performer = by or world.keepers[0]
    authorisation, signature = authorise(
        world.chain, job_id, trigger_id, performer.address, world.target, call=CALL, attempt=attempt
    )
    wallet = world.wallet(performer)
    return await send(wallet, await wallet.prepare_execution(authorisation, signature, world.target, CALL, resource_fee))


async def submit(world: World, certificate_of: Callable[[], Awaitable[object]], by: Actor | None = None) -> Mined:
    wallet = world.wallet(by or world.keepers[1])
    certificate = await certificate_of()
    return await send(wallet, await wallet.prepare_certificate(certificate))  # type: ignore[arg-type]


async def due_job(world: World) -> tuple[int, int]:
    """A job whose first second has come, and that second."""
    job_id = await world.create_job()
    await world.pass_seconds(INTERVAL)
    job = await world.chain.job(job_id)
    assert job is not None
    return job_id, job.created_at + INTERVAL


async def executed(world: World) -> ExecutionRecord:
    """A recorded execution with a block on top, so that its committee is known to the contract."""
    job_id, second = await due_job(world)
    mined = await execute(world, job_id, second)
    assert mined.success
    await world.pass_seconds(1)
    [event] = [e for e in await world.chain.events(mined.block_number, mined.block_number) if isinstance(e, TaskExecuted)]
    record = await world.chain.execution(event.task_id)
    assert record is not None
    return record
