"""What only the EVM adapter has: gas limits without estimates, round trips, ranges of logs, epochs from code."""

from __future__ import annotations

import pytest
import trio
from eth_abi.abi import encode as abi_encode

from consensus import ecdsa
from consensus.errors import Failed, Misconfigured
from consensus.messages import Authorisation, Uint256
from node.infra import contracts
from node.infra.chain import ExecutionRecord, Mined
from node.infra.evm import open_chain
from node.infra.evm_reads import hex_of, int_of
from node.infra.evm_wallet import CERTIFICATE_GAS, CERTIFICATE_SIGNER_GAS, EXPIRY_GAS
from tests.chain.anvil_world import AnvilWorld
from tests.chain.worlds import DISPATCHER, INTERVAL, OWNER, PING, ROUND_SECONDS, actors, authorise, certify, committee_of

BURNER = b"\xbb" * 20
BURN_ALL = "0x5b5f56"  # JUMPDEST PUSH0 JUMP: runs until its gas is gone


async def job_of(world: AnvilWorld, target: bytes) -> tuple[int, int]:
    """A job on any target, and its first due second, which has come."""
    owner = ecdsa.address_of(OWNER)
    arguments = ("burn", 1, 3600, target, abi_encode(["uint256"], [INTERVAL]))
    receipt = await world.send(owner, world.deployment.job_registry, contracts.CREATE_JOB, *arguments)
    job_id = int_of(receipt["logs"][0]["topics"][1])
    await world.pass_seconds(INTERVAL)
    job = await world.chain.job(job_id)
    assert job is not None
    return job_id, job.created_at + INTERVAL


async def execute(world: AnvilWorld, target: bytes, call: bytes, gas_limit: int, level: int = 0) -> tuple[Mined, ExecutionRecord]:
    job_id, second = await job_of(world, target)
    performer = world.keepers[0]
    draft, _ = authorise(world.chain, job_id, second, performer.address, target, call=call, level=level)
    changed = {f: getattr(draft, f) for f in draft.__struct_fields__} | {"gas_limit": gas_limit, "max_fee": Uint256(10**17)}
    authorisation = Authorisation(**changed)
    signature = ecdsa.sign(DISPATCHER, world.chain.domain.hub_digest(authorisation.struct_hash()))
    wallet = world.wallet(performer)
    prepared = await wallet.prepare_execution(authorisation, signature, authorisation.target, call, 0)
    mined = await wallet.mined(await wallet.send(prepared))
    assert mined.success, mined.reason
    record = await world.chain.execution(authorisation.task_id)
    assert record is not None
    return mined, record


@pytest.mark.parametrize("gas_limit", [1, 30_000, 1_000_000, 10_000_000])
@pytest.mark.parametrize("size", [4, 16 * 1024])
async def test_a_target_that_burns_its_whole_limit_is_recorded(on_anvil: AnvilWorld, gas_limit: int, size: int) -> None:
    await on_anvil.rpc.call("anvil_setCode", [hex_of(BURNER), BURN_ALL])
    mined, record = await execute(on_anvil, BURNER, b"\xff" * size, gas_limit)
    assert not record.success
    assert mined.gas_used > gas_limit


async def test_a_quote_bounds_what_a_burning_target_costs(on_anvil: AnvilWorld) -> None:
    await on_anvil.rpc.call("anvil_setCode", [hex_of(BURNER), BURN_ALL])
    quote = await on_anvil.chain.quote(0, 1_000_000)
    _, record = await execute(on_anvil, BURNER, b"\xff" * 1024, 1_000_000)
    assert record.fee < quote < 4 * record.fee


@pytest.mark.parametrize(("level", "members"), [(0, 5), (1, 13)])
async def test_a_certificate_has_gas_enough_and_not_far_too_much(on_anvil: AnvilWorld, level: int, members: int) -> None:
    newcomers = actors(9, "newcomer")
    for newcomer in newcomers:
        await on_anvil.register(newcomer)
    on_anvil.keepers = [*on_anvil.keepers, *newcomers]
    await on_anvil.pass_seconds(3600)
    await on_anvil.send(on_anvil.keepers[0].address, on_anvil.deployment.keeper_registry, contracts.ADVANCE_EPOCH)
    _, record = await execute(on_anvil, on_anvil.target, PING.encode(1), 200_000, level=level)
    await on_anvil.pass_seconds(1)
    drawn = await committee_of(on_anvil.chain, record)
    assert len(drawn.members) == members
    wallet = on_anvil.wallet(on_anvil.keepers[1])
    mined = await wallet.mined(await wallet.send(await wallet.prepare_certificate(await certify(on_anvil, record))))
    assert mined.success, mined.reason
    limit = CERTIFICATE_GAS + CERTIFICATE_SIGNER_GAS * members
    assert limit / 3 < mined.gas_used < limit * 4 / 5


async def test_an_expiry_has_gas_enough(on_anvil: AnvilWorld) -> None:
    _, record = await execute(on_anvil, on_anvil.target, PING.encode(1), 200_000)
    await on_anvil.pass_seconds(4 * ROUND_SECONDS)
    wallet = on_anvil.wallet(on_anvil.keepers[1])
    mined = await wallet.mined(await wallet.send(await wallet.prepare_expiry(record.task_id)))
    assert mined.success, mined.reason
    assert EXPIRY_GAS / 3 < mined.gas_used < EXPIRY_GAS * 4 / 5


async def test_sending_a_prepared_execution_is_one_round_trip(on_anvil: AnvilWorld) -> None:
    job_id, second = await job_of(on_anvil, on_anvil.target)
    performer = on_anvil.keepers[0]
    call = PING.encode(1)
    authorisation, signature = authorise(on_anvil.chain, job_id, second, performer.address, on_anvil.target, call=call)
    wallet = on_anvil.wallet(performer)
    prepared = await wallet.prepare_execution(authorisation, signature, authorisation.target, call, 0)
    on_anvil.line.calls.clear()
    tx_hash = await wallet.send(prepared)
    assert on_anvil.line.calls == ["eth_sendRawTransaction"]
    with trio.fail_after(10):
        assert (await wallet.mined(tx_hash)).success


async def test_a_committee_costs_one_read_once_its_epoch_is_followed(on_anvil: AnvilWorld) -> None:
    chain = on_anvil.chain
    start = (await chain.head()).number + 1
    assert await chain.epoch_at(start - 1) is not None
    async with chain.follow(start) as feed:
        await on_anvil.pass_seconds(1)
        head, _ = await feed.next()
        on_anvil.line.calls.clear()
        assert await chain.epoch_at(head.number) is not None
        assert await chain.epoch_at(head.number + 1) is not None
        assert on_anvil.line.calls == []


async def test_an_epoch_that_a_feed_saw_begin_is_read_anew(on_anvil: AnvilWorld) -> None:
    chain = on_anvil.chain
    start = (await chain.head()).number + 1
    assert await chain.epoch_at(start - 1) is not None
    async with chain.follow(start) as feed:
        await on_anvil.register(actors(1, "newcomer")[0])
        await on_anvil.pass_seconds(3600)
        await on_anvil.send(on_anvil.keepers[0].address, on_anvil.deployment.keeper_registry, contracts.ADVANCE_EPOCH)
        await on_anvil.pass_seconds(1)
        head = (await feed.next())[0]
        while head.number < (await chain.head()).number:
            head = (await feed.next())[0]
        first, second = await chain.epoch_at(head.number - 1), await chain.epoch_at(head.number)
    assert first is not None
    assert second is not None
    assert (first.number, first.until_block, second.number) == (1, head.number - 1, 2)


async def test_a_call_that_reverts_says_why(on_anvil: AnvilWorld) -> None:
    with pytest.raises(Failed) as refused:
        await on_anvil.chain.estimate_call(on_anvil.target, contracts.Function("fail", ()).encode())
    assert (refused.value.code, refused.value.detail) == ("CALL_REVERTS", "DemoFailed")


async def test_an_estimate_is_enough_for_the_call_itself(on_anvil: AnvilWorld) -> None:
    gas = await on_anvil.chain.estimate_call(on_anvil.target, PING.encode(1))
    _, record = await execute(on_anvil, on_anvil.target, PING.encode(1), gas)
    assert record.success


async def test_events_wait_for_their_confirmations(on_anvil: AnvilWorld) -> None:
    deep = await open_chain(on_anvil.settings(confirmations=2), on_anvil.line)
    start = (await deep.head()).number + 1
    await on_anvil.delete_job((await job_of(on_anvil, on_anvil.target))[0])
    deleted = (await deep.head()).number
    async with deep.follow(start) as feed:
        head, events = await feed.next()
        assert (head.number, list(events)) == (deleted - 2, [])
        await on_anvil.pass_seconds(1)
        await on_anvil.pass_seconds(1)
        while head.number < deleted:
            head, events = await feed.next()
    assert len(events) == 1
    assert head.number == deleted


async def test_contracts_that_are_not_the_hubs_are_the_operators_to_mend(on_anvil: AnvilWorld) -> None:
    settings = on_anvil.settings()
    for field, wrong in [("hub", BURNER), ("job_registry", on_anvil.target), ("attestation_center", BURNER)]:
        mistaken = settings.model_copy(update={"contracts": settings.contracts.model_copy(update={field: wrong})})
        with pytest.raises(Misconfigured) as refused:
            await open_chain(mistaken, on_anvil.line)
        assert refused.value.key == f"chain.contracts.{field}"
