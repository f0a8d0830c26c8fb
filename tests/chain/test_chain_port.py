"""What every `Chain` and `Wallet` must do, whatever is behind them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from consensus import bls, ecdsa
from consensus.codec import keccak, pin_hash
from consensus.errors import Failed, Transient
from consensus.messages import Verdict
from node.infra.chain import (
    MAX_CHARGES,
    ExecutionStatus,
    Mined,
    Policy,
    RunCharge,
    RunCharged,
    RunSkipped,
    TaskExecuted,
    TaskExpired,
    TaskValidated,
)
from tests.chain.deeds import CALL, due_job, execute, executed, refusal, send, submit
from tests.chain.worlds import (
    COORDINATOR,
    DEPOSIT,
    DISPATCHER,
    INTERVAL,
    KEEPERS,
    OWNER,
    ROUND_SECONDS,
    Actor,
    World,
    actors,
    authorise,
    certify,
    committee_of,
)

# --- reads -----------------------------------------------------------------------------------------------------------


async def test_a_job_reads_as_it_was_created(world: World) -> None:
    job_id = await world.create_job(interval=30, time_frame=600)
    job = await world.chain.job(job_id)
    head = await world.chain.head()
    assert job is not None
    assert (job.id, job.owner, job.target) == (job_id, ecdsa.address_of(OWNER), world.target)
    assert (job.definition, job.interval, job.time_frame, job.recurring, job.active) == (1, 30, 600, True, True)
    assert job.created_at == head.timestamp
    assert await world.chain.job(job_id + 1) is None


async def test_a_deleted_job_is_inactive_and_executes_no_more(world: World) -> None:
    job_id, second = await due_job(world)
    await world.delete_job(job_id)
    job = await world.chain.job(job_id)
    assert job is not None
    assert not job.active
    assert await refusal(lambda: execute(world, job_id, second)) == "JobInactive"


async def test_a_balance_falls_by_the_fee_of_an_execution(world: World) -> None:
    owner = ecdsa.address_of(OWNER)
    assert await world.chain.balance(owner) == DEPOSIT
    assert await world.chain.balance(bytes(20)) == 0
    record = await executed(world)
    assert record.fee > 0
    assert await world.chain.balance(owner) == DEPOSIT - record.fee


async def test_a_quote_covers_the_fee(world: World) -> None:
    quote = await world.chain.quote(0, 200_000)
    assert await world.chain.quote(1, 200_000) > quote
    record = await executed(world)
    assert record.fee <= quote < DEPOSIT


async def test_dispatchers_are_those_the_hub_lists_now(world: World) -> None:
    assert await world.chain.dispatchers() == {ecdsa.address_of(DISPATCHER)}
    await world.unlist_dispatcher()
    assert await world.chain.dispatchers() == frozenset()


async def test_keepers_read_as_registered(world: World) -> None:
    found = await world.chain.keepers()
    assert [(k.id, k.address, k.key, k.peer_id) for k in found] == [
        (i, k.address, k.key, k.peer_id) for i, k in enumerate(world.keepers, 1)
    ]
    assert all(k.active for k in found)
    [newcomer] = actors(1, "newcomer")
    await world.register(newcomer)
    assert [k.address for k in await world.chain.keepers()][KEEPERS:] == [newcomer.address]


async def test_an_epoch_covers_the_blocks_from_its_first_to_the_next_ones(world: World) -> None:
    chain = world.chain
    await world.pass_seconds(1)
    now = (await chain.head()).number
    first = await chain.epoch_at(now)
    assert first is not None
    assert (first.number, first.until_block) == (1, None)
    assert [o.address for o in first.operators] == [k.address for k in world.keepers]
    assert [o.key for o in first.operators] == [k.key for k in world.keepers]
    assert first.seats == tuple(range(KEEPERS))
    assert await chain.epoch_at(first.from_block - 1) is None

    [newcomer] = actors(1, "newcomer")
    await world.register(newcomer)
    await world.pass_seconds(3600)
    wallet = world.wallet(world.keepers[0])
    assert (await send(wallet, await wallet.prepare_epoch())).success
    await world.pass_seconds(1)
    second = await chain.epoch_at((await chain.head()).number)
    first = await chain.epoch_at(now)
    assert first is not None
    assert second is not None
    assert (first.number, second.number) == (1, 2)
    assert first.until_block == second.from_block - 1
    assert second.operators[-1].address == newcomer.address


async def test_an_epoch_without_changes_is_refused(world: World) -> None:
    await world.pass_seconds(3600)
    wallet = world.wallet(world.keepers[0])

    async def advance() -> Mined:
        return await send(wallet, await wallet.prepare_epoch())

    assert await refusal(advance) == "NothingChanged"


async def test_blocks_read_as_they_are_and_none_ahead(world: World) -> None:
    head = await world.chain.head()
    assert await world.chain.block(head.number) == head
    assert await world.chain.block(head.number + 1000) is None
    await world.pass_seconds(5)
    later = await world.chain.head()
    assert later.number == head.number + 1
    assert later.timestamp >= head.timestamp + 5


async def test_a_call_is_estimated(world: World) -> None:
    assert 20_000 < await world.chain.estimate_call(world.target, CALL) < 200_000


# --- executing -------------------------------------------------------------------------------------------------------


async def test_an_execution_is_recorded_and_calls_the_target_once(world: World) -> None:
    job_id, second = await due_job(world)
    mined = await execute(world, job_id, second)
    assert mined.success
    [event] = [e for e in await world.chain.events(mined.block_number, mined.block_number) if isinstance(e, TaskExecuted)]
    record = await world.chain.execution(event.task_id)
    block = await world.chain.block(mined.block_number)
    assert record is not None
    assert block is not None
    performer = world.keepers[0]
    assert (record.job_id, record.number, record.performer, record.performer_id) == (job_id, 1, performer.address, 1)
    assert (record.block_number, record.timestamp) == (mined.block_number, block.timestamp)
    assert (record.status, record.success, record.level) == (ExecutionStatus.PENDING, True, 0)
    assert (event.job_id, event.trigger_id, event.attempt, event.number) == (job_id, second, 1, 1)
    assert (event.performer, event.performer_id, event.success) == (performer.address, 1, True)
    assert (event.fee, event.digest) == (record.fee, record.digest)
    assert (event.place.block_hash, event.place.tx_hash) == (block.hash, mined.tx_hash)
    assert await world.calls() == 1
    assert await world.chain.execution(event.task_id ^ 1) is None


async def test_a_transaction_reads_with_its_sender_and_calldata(world: World) -> None:
    job_id, second = await due_job(world)
    mined = await execute(world, job_id, second)
    found = await world.chain.transaction(mined.tx_hash)
    assert found is not None
    assert (found.sender, found.to, found.block_number) == (
        world.keepers[0].address,
        world.chain.domain.hub,
        mined.block_number,
    )
    assert CALL in found.input
    assert await world.chain.transaction(bytes(32)) is None


async def test_a_transaction_that_failed_reads_as_failed(world: World) -> None:
    """Otherwise a performer could name a harmless copy, refused by the hub, of what it really sent."""
    job_id, second = await due_job(world)
    prepared = []
    for attempt, by in enumerate(world.keepers[:2], 1):
        asked = authorise(world.chain, job_id, second, by.address, world.target, call=CALL, attempt=attempt)
        wallet = world.wallet(by)
        prepared.append((wallet, await wallet.prepare_execution(*asked, world.target, CALL, 0)))
    mined = [await send(wallet, transaction) for wallet, transaction in prepared]
    found = [await world.chain.transaction(m.tx_hash) for m in mined]
    assert [t.success for t in found if t] == [m.success for m in mined] == [True, False]


async def test_a_firing_executes_once_whoever_tries_again(world: World) -> None:
    job_id, second = await due_job(world)
    assert (await execute(world, job_id, second)).success
    assert await refusal(lambda: execute(world, job_id, second, attempt=2)) == "TaskAlreadyExecuted"
    again = await refusal(lambda: execute(world, job_id, second, by=world.keepers[1], attempt=3))
    assert again == "TaskAlreadyExecuted"
    assert await world.calls() == 1


async def test_a_second_off_the_schedule_is_refused(world: World) -> None:
    job_id, second = await due_job(world)
    assert await refusal(lambda: execute(world, job_id, second - 1)) == "OffSchedule"
    assert await refusal(lambda: execute(world, job_id, second + 3600)) == "OffSchedule"
    assert await refusal(lambda: execute(world, job_id, second + 10 * INTERVAL)) == "TooEarly"
    assert await world.calls() == 0


async def test_an_authorisation_of_a_stranger_is_refused(world: World) -> None:
    job_id, second = await due_job(world)
    await world.unlist_dispatcher()
    assert await refusal(lambda: execute(world, job_id, second)) == "NotDispatcher"


async def test_what_a_restarted_keeper_prepares_again_is_not_sent_again(world: World) -> None:
    job_id, second = await due_job(world)
    first = await execute(world, job_id, second)
    key = f"execute:{(await world.chain.events(first.block_number, first.block_number))[0].task_id}:1"  # type: ignore[union-attr]
    assert await world.wallet(world.keepers[0]).sent(key) == first.tx_hash
    assert await world.wallet(world.keepers[1]).sent(key) is None
    again = await execute(world, job_id, second)
    assert again == first
    assert await world.calls() == 1


# --- certifying ------------------------------------------------------------------------------------------------------


async def test_a_certificate_settles_the_record(world: World) -> None:
    record = await executed(world)
    mined = await submit(world, lambda: certify(world, record))
    assert mined.success, mined.reason
    after = await world.chain.execution(record.task_id)
    assert after == replace(record, status=ExecutionStatus.CERTIFIED)
    [event] = await world.chain.events(mined.block_number, mined.block_number)
    assert isinstance(event, TaskValidated)
    drawn = await committee_of(world.chain, record)
    assert (event.task_id, event.number, event.performer_id, event.submitter_id) == (record.task_id, 1, 1, 2)
    assert event.attester_ids == tuple(m.id for m in drawn.members)
    assert (event.accepted, event.round) == (True, 0)


async def test_a_certificate_of_a_later_round_is_accepted_when_it_has_opened(world: World) -> None:
    record = await executed(world)
    assert await refusal(lambda: submit(world, lambda: certify(world, record, round_=2))) == "RoundNotOpen"
    await world.pass_seconds(2 * ROUND_SECONDS)
    assert (await submit(world, lambda: certify(world, record, round_=2), by=world.keepers[2])).success


async def test_a_rejection_refunds_the_owner(world: World) -> None:
    record = await executed(world)
    mined = await submit(world, lambda: certify(world, record, signers=2, verdict=Verdict.NO))
    assert mined.success, mined.reason
    after = await world.chain.execution(record.task_id)
    assert after is not None
    assert after.status is ExecutionStatus.REJECTED
    assert await world.chain.balance(ecdsa.address_of(OWNER)) == DEPOSIT


async def test_too_few_signers_are_refused(world: World) -> None:
    record = await executed(world)
    needed = (await committee_of(world.chain, record)).yes_quorum
    assert await refusal(lambda: submit(world, lambda: certify(world, record, signers=needed - 1))) == "TooFewSigners"
    by = world.keepers[2]
    assert (await submit(world, lambda: certify(world, record, signers=needed), by=by)).success


async def test_a_signature_of_others_is_refused(world: World) -> None:
    record = await executed(world)

    async def forged() -> object:
        return replace(await certify(world, record), signature=bls.sign(5, b"something else"))

    assert await refusal(lambda: submit(world, forged)) == "InvalidSignature"


async def test_a_certified_task_is_certified_once(world: World) -> None:
    record = await executed(world)
    assert (await submit(world, lambda: certify(world, record))).success
    assert await refusal(lambda: submit(world, lambda: certify(world, record), by=world.keepers[2])) == "AlreadyCertified"


async def test_a_certificate_for_an_unknown_task_is_refused_before_it_costs_gas(world: World) -> None:
    record = await executed(world)
    certificate = replace(await certify(world, record), task_id=5)
    with pytest.raises(Failed) as refused:
        await world.wallet(world.keepers[1]).prepare_certificate(certificate)
    assert (refused.value.code, refused.value.detail) == ("HUB_REFUSED", "UnknownExecution")


async def test_a_task_without_a_certificate_expires_and_is_refunded(world: World) -> None:
    record = await executed(world)
    wallet = world.wallet(world.keepers[3])
    await world.pass_seconds(4 * ROUND_SECONDS)
    mined = await send(wallet, await wallet.prepare_expiry(record.task_id))
    assert mined.success, mined.reason
    after = await world.chain.execution(record.task_id)
    assert after is not None
    assert after.status is ExecutionStatus.EXPIRED
    assert await world.chain.balance(ecdsa.address_of(OWNER)) == DEPOSIT
    [event] = await world.chain.events(mined.block_number, mined.block_number)
    assert isinstance(event, TaskExpired)
    assert (event.task_id, event.number) == (record.task_id, record.number)


async def test_reads_fail_as_transient_while_the_node_is_away(world: World) -> None:
    job_id, second = await due_job(world)
    authorisation, signature = authorise(world.chain, job_id, second, world.keepers[0].address, world.target, call=CALL)
    wallet = world.wallet(world.keepers[0])
    prepared = await wallet.prepare_execution(authorisation, signature, world.target, CALL, 0)
    world.cut()
    with pytest.raises(Transient):
        await wallet.send(prepared)
    world.mend()
    assert (await send(wallet, prepared)).success
    assert await world.calls() == 1
    assert keccak(CALL) == authorisation.call_hash


# --- what owners pin ---------------------------------------------------------------------------------------------------


async def test_a_job_is_not_pinned_until_its_owner_does(world: World) -> None:
    job_id = await world.create_job()
    assert await world.chain.policy(job_id) is None
    policy = Policy(keccak(b"pinned"), 10**16, 0, 3)
    await world.pin(job_id, policy)
    assert await world.chain.policy(job_id) == policy
    await world.pin(job_id, Policy(bytes(32), 0, 0, 0))  # all of it left open, but the level
    assert await world.chain.policy(job_id) == Policy(bytes(32), 0, 0, 0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"spec_hash": bytes(32), "max_fee": 0, "gas_limit": 0}, ""),
        ({"spec_hash": b"x" * 32}, "PolicySpec"),
        ({"max_fee": DEPOSIT // 100 - 1}, "PolicyFee"),
        ({"gas_limit": 200_001}, "PolicyGas"),
        ({"gas_limit": 199_999}, "PolicyGas"),
        ({"level": 1}, "PolicyLevel"),
    ],
)
async def test_a_pin_says_beforehand_what_the_hub_says(world: World, changes: dict[str, Any], reason: str) -> None:
    job_id, second = await due_job(world)
    a, _ = authorise(world.chain, job_id, second, world.keepers[0].address, world.target, call=CALL)
    spec_hash = pin_hash(a.target, a.selector, a.call_hash, a.spec)
    policy = replace(Policy(spec_hash, int(a.max_fee), a.gas_limit, a.level), **changes)
    await world.pin(job_id, policy)
    assert policy.refusal(a) == reason
    if reason:
        assert await refusal(lambda: execute(world, job_id, second)) == reason
    else:
        assert (await execute(world, job_id, second)).success


# --- runs without a transaction ----------------------------------------------------------------------------------------


FEE = 10**13


async def scripted(world: World) -> tuple[int, int]:
    """A job with a script, and its first second, which has come."""
    job_id = await world.create_job(definition=2)
    await world.pass_seconds(INTERVAL)
    job = await world.chain.job(job_id)
    assert job is not None
    return job_id, job.created_at + INTERVAL


async def charge(world: World, *charges: RunCharge, by: Actor = COORDINATOR) -> Mined:
    wallet = world.wallet(by)
    return await send(wallet, await wallet.prepare_run_charges(charges))


async def test_a_run_is_charged_once_and_its_task_never_executes(world: World) -> None:
    job_id, second = await scripted(world)
    asked = RunCharge(job_id, second, 2, FEE)
    mined = await charge(world, asked)
    assert mined.success
    [event] = await world.chain.events(mined.block_number, mined.block_number)
    assert event == RunCharged(event.place, asked.task_id, job_id, 2, FEE)
    assert await world.chain.balance(ecdsa.address_of(OWNER)) == DEPOSIT - FEE
    record = await world.chain.execution(asked.task_id)
    assert record is not None
    assert (record.status, record.performer_id, record.performer) == (ExecutionStatus.NOT_EXECUTED, 2, world.keepers[1].address)
    assert (record.job_id, record.fee, record.number, record.success) == (0, 0, 0, False)
    assert await refusal(lambda: execute(world, job_id, second)) == "TaskAlreadyExecuted"
    again = await charge(world, replace(asked, performer_id=3))
    [event] = await world.chain.events(again.block_number, again.block_number)
    assert event == RunSkipped(event.place, asked.task_id, job_id, "AlreadyCharged")


async def test_a_charge_that_cannot_be_is_skipped_and_says_why(world: World) -> None:
    job_id, second = await scripted(world)
    static, due = await due_job(world)
    assert (await execute(world, job_id, second + INTERVAL)).success
    deleted, gone = await scripted(world)
    await world.delete_job(deleted)
    batch = {
        RunCharge(static, due, 1, FEE): "NoScript",
        RunCharge(job_id, second + INTERVAL, 1, FEE): "TaskAlreadyExecuted",
        RunCharge(job_id, second + 1, 1, FEE): "OffSchedule",
        RunCharge(job_id, second + 360 * INTERVAL, 1, FEE): "OffSchedule",
        RunCharge(job_id, second + 300 * INTERVAL, 1, FEE): "TooEarly",
        RunCharge(deleted, gone, 1, FEE): "JobInactive",
        RunCharge(1, second, 1, FEE): "UnknownJob",
        RunCharge(job_id, second, KEEPERS + 1, FEE): "UnknownPerformer",
        RunCharge(job_id, second, KEEPERS, FEE): "",
    }
    balance = await world.chain.balance(ecdsa.address_of(OWNER))
    mined = await charge(world, *batch)
    events = await world.chain.events(mined.block_number, mined.block_number)
    assert [e.task_id for e in events if isinstance(e, RunSkipped | RunCharged)] == [c.task_id for c in batch]
    assert [e.reason if isinstance(e, RunSkipped) else "" for e in events] == list(batch.values())
    assert await world.chain.balance(ecdsa.address_of(OWNER)) == balance - FEE


async def test_nobody_but_a_dispatcher_charges_runs(world: World) -> None:
    job_id, second = await scripted(world)
    assert await refusal(lambda: charge(world, RunCharge(job_id, second, 1, FEE), by=world.keepers[0])) == "NotDispatcher"


async def test_a_batch_of_charges_is_sent_once(world: World) -> None:
    job_id, second = await scripted(world)
    asked = [RunCharge(job_id, second, 1, FEE)]
    wallet = world.wallet(COORDINATOR)
    prepared = await wallet.prepare_run_charges(asked)
    first = await send(wallet, prepared)
    restarted = world.wallet(COORDINATOR)
    assert await restarted.sent(prepared.key) == first.tx_hash
    assert (await send(restarted, await restarted.prepare_run_charges(asked))).tx_hash == first.tx_hash


async def test_a_full_batch_of_charges_has_gas_enough(world: World) -> None:
    jobs = [await world.create_job(interval=1, definition=4) for _ in range(MAX_CHARGES)]
    mined = await charge(world, *(RunCharge(job_id, 1, 1 + i % KEEPERS, FEE) for i, job_id in enumerate(jobs)))
    assert mined.success
    events = await world.chain.events(mined.block_number, mined.block_number)
    assert [type(e) for e in events] == [RunCharged] * MAX_CHARGES


@pytest.mark.parametrize("fees", [[], [0], [10**15 + 1], [FEE] * 65])
async def test_a_batch_that_the_hub_refuses_is_not_even_prepared(world: World, fees: list[int]) -> None:
    with pytest.raises(ValueError, match=r"charges|wei"):
        await world.wallet(COORDINATOR).prepare_run_charges([RunCharge(1, i, 1, fee) for i, fee in enumerate(fees)])
