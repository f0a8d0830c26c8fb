"""Runs without a transaction: charged once, by a dispatcher, within bounds, and a pinned job only as far as its owner allowed."""

from __future__ import annotations

from typing import Any

import pytest

from consensus.codec import word
from tests.contracts.evm import Contract, Receipt, create, reason_of
from tests.contracts.world import DISPATCHER, ETHER, OWNER, SPEC, STRANGER, USER, World, account

COORDINATOR = DISPATCHER.public_key.to_canonical_address()
FEE = 10**13


@pytest.fixture
def job(world: World) -> int:
    world.chain.fund(COORDINATOR)
    return world.create_job(kind=2, data=word(10) + word(b"url"))


def charge(world: World, *charges: tuple[int, int, int, int], sender: bytes = COORDINATOR) -> Receipt:
    return world.hub.send("chargeRuns", charges, sender=sender)


def skipped(world: World, *given: int) -> str:
    """Why one charge takes nothing."""
    before = world.gas.view("getBalance", USER)
    receipt = charge(world, given)
    assert world.hub.events(receipt, "RunCharged") == []
    assert world.gas.view("getBalance", USER) == before
    [event] = world.hub.events(receipt, "RunSkipped")
    assert (event["taskId"], event["jobId"]) == (world.hub.view("taskId", given[0], given[1]), given[0])
    return str(event["reason"])


def test_a_run_is_charged_to_the_owner_in_favour_of_who_ran_it(world: World, job: int):
    second = world.due(job)
    before = world.gas.view("getBalance", USER)
    receipt = charge(world, (job, second, 3, FEE))
    task = world.hub.view("taskId", job, second)
    assert world.hub.events(receipt, "RunCharged") == [{"taskId": task, "jobId": job, "performerId": 3, "fee": FEE}]
    assert world.gas.view("getBalance", USER) == before - FEE
    assert world.hub.view("runEarnings", 3) == FEE
    record = world.hub.view("execution", task)
    assert (record["status"], record["performerId"], record["performer"]) == (5, 3, account(3))
    assert (record["blockNumber"], record["timestamp"]) == (receipt.block, world.chain.now())
    assert (record["fee"], record["taskNumber"], record["success"], record["digest"]) == (0, 0, False, bytes(32))
    held = world.chain.balance(account(3))
    world.hub.send("claim", 3, [], sender=STRANGER)
    assert world.chain.balance(account(3)) == held + FEE
    assert world.hub.refusal("claim", 3, [task], sender=STRANGER) == "NothingToClaim"


def test_a_task_is_charged_once_ever(world: World, job: int):
    second = world.due(job)
    receipt = charge(world, (job, second, 3, FEE), (job, second, 4, FEE))
    assert [e["reason"] for e in world.hub.events(receipt, "RunSkipped")] == ["AlreadyCharged"]
    assert skipped(world, job, second, 3, FEE) == "AlreadyCharged"
    assert world.hub.view("runEarnings", 4) == 0


def test_what_was_charged_never_executes(world: World, job: int):
    second = world.due(job)
    charge(world, (job, second, 1, FEE))
    assert world.refused(job, second) == "TaskAlreadyExecuted"
    assert world.center.refusal("expire", world.hub.view("taskId", job, second), sender=STRANGER) == "AlreadyCertified"


def test_what_executed_is_never_charged(world: World, job: int):
    task = world.execute(job)
    assert skipped(world, job, int(task.authorisation.trigger_id), 1, FEE) == "TaskAlreadyExecuted"
    world.submit(world.certificate(task))
    assert skipped(world, job, int(task.authorisation.trigger_id), 1, FEE) == "TaskAlreadyExecuted"


def test_only_a_listed_dispatcher_charges(world: World, job: int):
    one = [(job, world.due(job), 1, FEE)]
    for sender in (STRANGER, OWNER, USER, account(1)):
        assert world.hub.refusal("chargeRuns", one, sender=sender) == "NotDispatcher"
    world.hub.send("setDispatcher", COORDINATOR, False, sender=OWNER)
    assert world.hub.refusal("chargeRuns", one, sender=COORDINATOR) == "NotDispatcher"


@pytest.mark.parametrize(("fee", "reason"), [(0, "ZeroFee"), (10**15 + 1, "RunFeeTooHigh"), (2**256 - 1, "RunFeeTooHigh")])
def test_a_fee_out_of_bounds_refuses_the_batch(world: World, job: int, fee: int, reason: str):
    second = world.due(job)
    assert world.hub.refusal("chargeRuns", [(job, second, 1, FEE), (job, second, 1, fee)], sender=COORDINATOR) == reason


def test_the_highest_fee_is_charged(world: World, job: int):
    charge(world, (job, world.due(job), 1, world.hub.view("MAX_RUN_FEE")))
    assert world.hub.view("runEarnings", 1) == 10**15


def test_an_owner_without_balance_holds_up_nobody(world: World, job: int):
    poor = world.create_job(kind=2, data=word(10) + word(b"url"), owner=STRANGER)
    world.deposit(FEE, STRANGER)
    second = world.due(poor)
    receipt = charge(
        world,
        (poor, second, 1, FEE + 1),
        (poor, second, 1, FEE),
        (poor, world.due(poor, 2), 1, FEE),
        (job, world.due(job), 1, FEE),
    )
    assert [e["reason"] for e in world.hub.events(receipt, "RunSkipped")] == ["InsufficientBalance"] * 2
    assert [e["jobId"] for e in world.hub.events(receipt, "RunCharged")] == [poor, job]
    assert world.gas.view("getBalance", STRANGER) == 0
    assert world.hub.view("runEarnings", 1) == 2 * FEE


def test_only_firings_of_the_job_are_charged(world: World, job: int):
    created = world.jobs.view("job", job)["createdAt"]
    second = world.due(job)
    for trigger in (created, second + 1, created + 3600 + 10, 0, 2**256 - 1):
        assert skipped(world, job, trigger, 1, FEE) == "OffSchedule"
    assert skipped(world, job, created + 3600, 1, FEE) == "TooEarly"
    assert skipped(world, 12345, second, 1, FEE) == "UnknownJob"
    world.jobs.send("deleteJob", job, sender=USER)
    assert skipped(world, job, second, 1, FEE) == "JobInactive"


@pytest.mark.parametrize("kind", [4, 6])
def test_runs_of_event_and_condition_jobs_are_charged_while_they_live(world: World, job: int, kind: int):
    other = world.create_job(kind=kind, time_frame=100)
    charge(world, (other, 2**255 + 1, 1, FEE))
    assert world.hub.view("runEarnings", 1) == FEE
    once = world.create_job(kind=kind, data=word(0))
    world.execute(once, trigger_id=1)
    assert skipped(world, once, 2, 1, FEE) == "AlreadyRan"
    world.chain.warp(101)
    charge(world, (other, 2**255 + 2, 1, FEE))  # what ran in its last minutes waits for others to share a transaction
    world.chain.warp(86_400)
    assert skipped(world, other, 2**255 + 3, 1, FEE) == "JobExpired"


@pytest.mark.parametrize("kind", [1, 3, 5])
def test_a_job_without_a_script_has_no_runs(world: World, job: int, kind: int):
    static = world.create_job(kind=kind)
    assert skipped(world, static, world.due(static), 1, FEE) == "NoScript"


@pytest.mark.parametrize("performer", [0, 11, 2**24, 2**24 + 1, 2**255])
def test_nobody_but_an_operator_earns_by_runs(world: World, job: int, performer: int):
    assert skipped(world, job, world.due(job), performer, FEE) == "UnknownPerformer"


def test_a_pinned_job_is_charged_nothing_that_its_owner_did_not_allow(world: World, job: int):
    second = world.due(job)
    world.hub.send("setJobPolicy", job, SPEC, 0, 0, 0, sender=USER)
    assert skipped(world, job, second, 1, 1) == "RunAllowance"
    receipt = world.hub.send("setRunAllowance", job, 3 * FEE, sender=USER)
    assert world.hub.events(receipt, "RunAllowanceSet") == [{"jobId": job, "allowance": 3 * FEE}]
    charge(world, (job, second, 1, 2 * FEE))
    assert world.hub.view("runAllowance", job) == FEE
    second = world.due(job, 2)
    assert skipped(world, job, second, 1, FEE + 1) == "RunAllowance"
    charge(world, (job, second, 1, FEE))
    assert skipped(world, job, world.due(job, 3), 1, 1) == "RunAllowance"
    assert world.hub.view("runEarnings", 1) == 3 * FEE


def test_a_pinned_highest_fee_bounds_runs_too(world: World, job: int):
    world.hub.send("setJobPolicy", job, bytes(32), FEE, 0, 0, sender=USER)
    world.hub.send("setRunAllowance", job, ETHER, sender=USER)
    assert skipped(world, job, world.due(job), 1, FEE + 1) == "PolicyFee"
    charge(world, (job, world.due(job), 1, FEE))


def test_only_the_owner_allows_runs(world: World, job: int):
    assert world.hub.refusal("setRunAllowance", job, 1, sender=COORDINATOR) == "NotJobOwner"
    assert world.hub.refusal("setRunAllowance", 12345, 1, sender=USER) == "UnknownJob"


def test_a_full_batch_fits_a_block(world: World, job: int):
    world.due(job, 65)
    receipt = charge(world, *((job, world.due(job, i), 1 + i % 10, FEE) for i in range(1, 65)))
    assert len(world.hub.events(receipt, "RunCharged")) == 64
    assert receipt.gas < 5_000_000
    too_many = [(job, world.due(job, 65), 1, FEE)] * 65
    world.hub.refusal("chargeRuns", too_many, sender=COORDINATOR)


def test_a_target_cannot_charge_while_it_runs(world: World, job: int):
    puppet: Contract = create(world.chain, "Puppet", USER)
    world.hub.send("setDispatcher", puppet.address, True, sender=OWNER)
    call: list[Any] = [(job, world.due(job), 1, FEE)]
    puppet.send("arm", world.hub.address, world.hub.encode("chargeRuns", call), sender=USER)
    target = world.create_job(target=puppet.address)
    world.execute(target, call=puppet.encode("poke"), target=puppet.address, gas_limit=500_000)
    assert puppet.view("ok") is False
    assert reason_of("0x" + puppet.view("answer").hex()) == "Reentered"
