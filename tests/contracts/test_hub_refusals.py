"""Every misuse of Hub.execute is refused, each with its own reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from consensus.codec import keccak, pin_hash, word
from consensus.messages import Uint256
from tests.contracts.evm import create
from tests.contracts.world import DISPATCHER, OWNER, SPEC, STRANGER, STRANGER_KEY, USER, World, account

HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
ORDER = 2 * HALF_ORDER + 1


def test_an_authorised_execution_is_recorded(world: World):
    job = world.create_job()
    task = world.execute(job, resource_fee=12_345)
    assert world.demo.view("count") == 1
    assert world.demo.view("lastValue") == 7
    assert world.demo.view("lastCaller") == world.hub.address
    record = world.hub.view("execution", task.id)
    assert record == {
        "taskNumber": 1,
        "jobId": job,
        "owner": USER,
        "performer": account(1),
        "performerId": 1,
        "blockNumber": task.block,
        "timestamp": world.chain.now(),
        "level": 0,
        "status": 1,
        "success": True,
        "fee": task.fee,
        "validationShare": record["validationShare"],
        "digest": task.digest,
    }
    assert world.hub.view("nextTaskNumber") == 2
    assert world.hub.view("taskId", job, task.authorisation.trigger_id) == task.id == task.authorisation.task_id


def test_the_same_firing_executes_once(world: World):
    job = world.create_job()
    world.execute(job)
    assert world.refused(job) == "TaskAlreadyExecuted"
    assert world.refused(job, performer=account(2), attempt=2) == "TaskAlreadyExecuted"


def test_a_failed_call_consumes_the_firing_and_costs_gas_only(world: World):
    job = world.create_job()
    fine = world.execute(job, world.due(job, 1), resource_fee=10**12)
    failed = world.execute(job, world.due(job, 2), call=world.demo.encode("fail"), resource_fee=10**12)
    assert failed.success is False
    assert world.hub.view("execution", failed.id)["success"] is False
    assert failed.fee < fine.fee
    assert world.refused(job, world.due(job, 2), call=world.demo.encode("fail")) == "TaskAlreadyExecuted"


def test_an_unknown_job_is_refused(world: World):
    assert world.refused(12345, 1) == "UnknownJob"


def test_a_deleted_job_is_refused(world: World):
    job = world.create_job()
    second = world.due(job)
    world.jobs.send("deleteJob", job, sender=USER)
    assert world.refused(job, second) == "JobInactive"


@pytest.mark.parametrize("kind", [3, 4, 5, 6])
def test_an_event_or_condition_job_expires(world: World, kind):
    job = world.create_job(kind=kind, time_frame=100)
    created = world.jobs.view("job", job)["createdAt"]
    world.chain.warp_to(created + 90)
    world.execute(job, trigger_id=2**255)
    world.chain.warp_to(created + 101)
    assert world.refused(job, trigger_id=1) == "JobExpired"


def test_the_last_second_of_a_time_job_still_executes_after_its_end(world: World):
    job = world.create_job(time_frame=20)
    last = world.due(job, 2)
    world.chain.warp(50)
    assert world.execute(job, last).success


@pytest.mark.parametrize("kind", [1, 7])
def test_an_interval_job_executes_on_its_schedule_only(world: World, kind):
    job = world.create_job(kind=kind, time_frame=45, data=word(10))
    created = world.jobs.view("job", job)["createdAt"]
    world.chain.warp(100)
    for second in (created, created - 10, created + 11, created + 9, created + 46, created + 50, 0):
        assert world.refused(job, second) == "OffSchedule"
    assert world.execute(job, created + 40).success


@pytest.mark.parametrize("kind", [1, 2])
def test_a_cron_job_executes_at_any_second_of_its_time(world: World, kind):
    job = world.create_job(kind=kind, time_frame=45, data=word(0) + word(b"url"))
    created = world.jobs.view("job", job)["createdAt"]
    world.chain.warp(100)
    assert world.refused(job, created) == "OffSchedule"
    assert world.refused(job, created + 46) == "OffSchedule"
    assert world.execute(job, created + 1).success
    assert world.execute(job, created + 45).success


def test_the_future_is_refused(world: World):
    job = world.create_job()
    now = world.due(job)
    assert world.refused(job, now + 100) == "TooEarly"
    assert world.refused(job, not_before=now + 100) == "TooEarly"


def test_a_late_execution_is_refused(world: World):
    job = world.create_job()
    second = world.due(job)
    late = second + 5
    world.chain.warp_to(late + 1)
    assert world.refused(job, second, deadline=late) == "TooLate"


def test_the_deadline_itself_is_in_time(world: World):
    job = world.create_job()
    second = world.due(job)
    world.chain.rpc("evm_setNextBlockTimestamp", second + 5)
    assert world.execute(job, second, deadline=second + 5, not_before=second + 5).success


@pytest.mark.parametrize("kind", [3, 5])
def test_a_job_that_does_not_recur_runs_once_ever(world: World, kind):
    job = world.create_job(kind=kind, data=word(0))
    world.execute(job, trigger_id=1, call=world.demo.encode("fail"))
    assert world.refused(job, trigger_id=2) == "AlreadyRan"
    recurring = world.create_job(kind=kind, data=word(1))
    world.execute(recurring, trigger_id=1)
    assert world.execute(recurring, trigger_id=2).success


def test_only_the_performer_named_executes(world: World):
    job = world.create_job()
    assert world.refused(job, sender=account(2)) == "NotPerformer"


def test_a_performer_has_to_be_an_operator(world: World):
    job = world.create_job()
    assert world.refused(job, performer=STRANGER) == "UnknownPerformer"
    world.registry.send("exit", sender=account(2))
    assert world.refused(job, performer=account(2)) == "UnknownPerformer"


def test_only_a_listed_dispatcher_authorises(world: World):
    job = world.create_job()
    assert world.refused(job, signer=STRANGER_KEY) == "NotDispatcher"
    stranger = STRANGER_KEY.public_key.to_canonical_address()
    world.hub.send("setDispatcher", stranger, True, sender=OWNER)
    world.hub.send("setDispatcher", DISPATCHER.public_key.to_canonical_address(), False, sender=OWNER)
    assert world.refused(job) == "NotDispatcher"
    assert world.hub.view("isDispatcher", stranger) is True


@pytest.mark.parametrize("bent", [{"chain_id": 1}, {"hub": bytes(range(20))}])
def test_another_chains_or_hubs_authorisation_is_refused(world: World, bent):
    job = world.create_job()
    assert world.refused(job, domain=replace(world.domain, **bent)) == "NotDispatcher"


@pytest.mark.parametrize("place", range(13))
def test_no_signed_field_can_be_altered(world: World, place):
    """Altered fields either miss their own check or make the signature somebody else's."""
    job = world.create_job()
    other = {3: account(2), 4: keccak(b"x"), 5: world.hub.address, 6: b"abcd", 7: bytes(32)}.get(place)
    now = world.due(job)
    changed = {0: world.create_job(), 1: now + 10, 2: 2, 8: 199_999, 9: 1, 10: 10**16, 11: 1, 12: now + 999}.get(place, other)
    world.chain.warp_to(now + 10)
    reason = world.refused(job, now, struct={place: changed}, sender=account(2) if place == 3 else None)
    early = {0: "OffSchedule", 5: "WrongTarget", 6: "WrongSelector"}
    assert reason in {"NotDispatcher", early.get(place)}


def test_a_malformed_signature_is_refused(world: World):
    job = world.create_job()
    a = world.authorise(job, world.due(job), account(1), world.ping(7))
    good = world.signed(a)
    r, s, v = good[:32], int.from_bytes(good[32:64], "big"), good[64]
    malleable = r + (ORDER - s).to_bytes(32, "big") + bytes([55 - v])
    cases = [b"", good[:64], good + b"\0", malleable, good[:64] + bytes([v - 27]), good[:64] + b"\x1d", bytes(64) + b"\x1b"]
    for signature in cases:
        assert world.refused(job, signature=signature, deadline=a.deadline) == "BadAuthorisation"


def test_calldata_beyond_its_limit_is_refused(world: World):
    job = world.create_job()
    assert world.refused(job, call=world.ping(1) + bytes(16_385 - 36)) == "DataTooLarge"
    assert world.execute(job, call=world.ping(1) + bytes(16_384 - 36), gas_limit=300_000, max_fee=Uint256(10**18)).success


def test_the_target_is_the_jobs(world: World):
    job = world.create_job()
    assert world.refused(job, target=world.gas.address) == "WrongTarget"


def test_a_script_jobs_target_is_the_authorisations(world: World):
    job = world.create_job(kind=7, target=bytes(20), data=word(0))
    assert world.execute(job, world.due(job)).success


def test_a_script_decides_the_target_where_nobody_else_did(world: World):
    job = world.create_job(kind=7, target=bytes(20), data=word(0))
    task = world.execute(job, world.due(job), target=bytes(20), to=world.demo.address, call_hash=bytes(32), selector=bytes(4))
    assert task.success
    assert world.demo.view("count") == 1
    assert task.authorisation.target == bytes(20)
    event = world.hub.events(task.receipt, "TaskExecuted")[0]
    assert event["target"] == world.demo.address


def test_nobody_but_the_script_of_a_job_without_target_decides_it(world: World):
    other = create(world.chain, "Puppet", USER).address
    job = world.create_job()
    assert world.refused(job, to=other) == "WrongTarget"
    assert world.refused(job, target=bytes(20), to=world.demo.address) == "WrongTarget"
    assert world.refused(job, target=bytes(20)) == "WrongTarget"
    script = world.create_job(kind=7, target=bytes(20), data=word(0))
    assert world.refused(script, world.due(script), to=other) == "WrongTarget"


def test_a_script_sends_no_call_to_the_protocol(world: World):
    job = world.create_job(kind=7, target=bytes(20), data=word(0))
    ours = [c.address for c in (world.hub, world.center, world.registry, world.jobs, world.gas)]
    for target in [*ours, bytes(20), b"\x05".rjust(20, b"\0"), STRANGER]:
        assert world.refused(job, world.due(job), target=bytes(20), to=target) == "ProtocolTarget"


def test_protocol_contracts_precompiles_and_empty_accounts_are_no_targets(world: World):
    ours = [c.address for c in (world.hub, world.center, world.registry, world.jobs, world.gas)]
    precompiles = [i.to_bytes(20, "big") for i in (1, 5, 0x0F, 0x11, 0x100, 0xFFFF)]
    for target in [*ours, *precompiles, STRANGER]:
        job = world.create_job(target=target)
        assert world.refused(job, target=target) == "ProtocolTarget"


def test_the_selector_is_as_authorised(world: World):
    job = world.create_job()
    fail = world.demo.encode("fail")
    assert world.refused(job, call=fail, authorised=world.ping(7)) == "WrongSelector"
    assert world.refused(job, call=fail, authorised=world.ping(7), call_hash=bytes(32)) == "WrongSelector"


def test_the_calldata_is_as_authorised(world: World):
    job = world.create_job()
    assert world.refused(job, call=world.ping(8), authorised=world.ping(7)) == "WrongCalldata"


def test_a_script_decides_the_calldata_within_its_selector(world: World):
    job = world.create_job()
    assert world.execute(job, world.due(job, 1), call=world.ping(2**200), call_hash=bytes(32)).success
    assert world.demo.view("lastValue") == 2**200
    fail = world.demo.encode("fail")
    assert not world.execute(job, world.due(job, 2), call=fail, call_hash=bytes(32), selector=bytes(4)).success


def test_an_unknown_level_is_refused(world: World):
    assert world.refused(world.create_job(), struct={9: 5}) == "UnknownLevel"


def test_an_owner_pins_what_is_executed(world: World):
    job = world.create_job()
    pin = pin_hash(world.demo.address, world.ping(7)[:4], keccak(world.ping(7)), SPEC)
    world.hub.send("setJobPolicy", job, pin, 10**17, 150_000, 2, sender=USER)
    kept = {"max_fee": Uint256(10**17), "gas_limit": 150_000, "level": 2}
    assert world.refused(job, call=world.ping(8), **kept) == "PolicySpec"
    assert world.refused(job, **{**kept, "spec": keccak(b"other")}) == "PolicySpec"
    assert world.refused(job, **{**kept, "call_hash": bytes(32)}) == "PolicySpec"
    assert world.refused(job, **{**kept, "max_fee": Uint256(10**17 + 1)}) == "PolicyFee"
    assert world.refused(job, **{**kept, "gas_limit": 149_999}) == "PolicyGas"
    assert world.refused(job, **{**kept, "gas_limit": 150_001}) == "PolicyGas"
    assert world.refused(job, **{**kept, "level": 0}) == "PolicyLevel"
    assert world.execute(job, **kept).success


def test_a_pin_may_leave_fields_open(world: World):
    job = world.create_job()
    world.hub.send("setJobPolicy", job, bytes(32), 0, 0, 0, sender=USER)
    assert world.execute(job, gas_limit=123_456).success


def test_only_a_jobs_owner_pins_it(world: World):
    job = world.create_job()
    assert world.hub.refusal("setJobPolicy", job, bytes(32), 0, 0, 0, sender=STRANGER) == "NotJobOwner"
    assert world.hub.refusal("setJobPolicy", job + 1, bytes(32), 0, 0, 0, sender=USER) == "UnknownJob"
    assert world.hub.refusal("setJobPolicy", job, bytes(32), 0, 0, 5, sender=USER) == "UnknownLevel"


def test_the_fee_cap_must_be_covered_and_must_cover_the_certificate(world: World):
    job = world.create_job()
    assert world.refused(job, max_fee=Uint256(10**20 + 1)) == "InsufficientBalance"
    assert world.refused(job, max_fee=Uint256(1000)) == "InsufficientFeeCap"
    assert world.refused(job, max_fee=Uint256(2**72)) == "FeeTooLarge"


def test_a_fee_never_exceeds_its_cap(world: World):
    job = world.create_job()
    cap = 10**15 + 999_999
    assert world.execute(job, max_fee=Uint256(cap), resource_fee=2**255).fee == 10**15


def test_a_performer_with_too_little_gas_is_refused(world: World):
    job = world.create_job()
    assert world.refused(job, gas_limit=1_000_000, gas=1_000_000) == "GasTooLow"
    assert world.refused(job, gas_limit=30_000_000) == "GasTooLow"


def test_task_numbers_end_where_their_field_does(world: World):
    hub = "0x" + world.hub.address.hex()
    for slot in range(12):
        before = world.chain.rpc("eth_getStorageAt", hub, hex(slot), "latest")
        world.chain.rpc("anvil_setStorageAt", hub, f"0x{slot:064x}", f"0x{2**32 - 2:064x}")
        if world.hub.view("nextTaskNumber") == 2**32 - 1:
            break
        world.chain.rpc("anvil_setStorageAt", hub, f"0x{slot:064x}", before)
    job = world.create_job()
    last = world.execute(job, world.due(job, 1))
    record = world.hub.view("execution", last.id)
    assert (record["taskNumber"], record["blockNumber"], record["performerId"]) == (2**32 - 1, last.block, 1)
    assert world.refused(job, world.due(job, 2)) == "TaskNumbersExhausted"


def test_only_the_center_settles(world: World):
    job = world.create_job()
    task = world.execute(job)
    for who in (OWNER, USER, account(1), STRANGER):
        assert world.hub.refusal("settle", task.id, 2, 1, 4, sender=who) == "NotAttestationCenter"


def test_the_owners_powers_are_his_alone(world: World):
    for call in (("setDispatcher", STRANGER, True), ("setServiceFee", 1), ("transferOwnership", STRANGER)):
        assert world.hub.refusal(*call, sender=STRANGER) == "NotOwner"
    assert world.hub.refusal("setDispatcher", bytes(20), True, sender=OWNER) == "ZeroDispatcher"
    assert world.hub.refusal("setServiceFee", 10**16 + 1, sender=OWNER) == "ServiceFeeTooHigh"


def test_ownership_moves_in_two_steps(world: World):
    world.hub.send("transferOwnership", STRANGER, sender=OWNER)
    assert world.hub.view("owner") == OWNER
    assert world.hub.refusal("acceptOwnership", sender=USER) == "NotPendingOwner"
    world.hub.send("acceptOwnership", sender=STRANGER)
    assert world.hub.view("owner") == STRANGER
    assert world.hub.refusal("setServiceFee", 1, sender=OWNER) == "NotOwner"


def test_the_service_fee_is_the_performers_after_success(world: World):
    job = world.create_job()
    before = world.execute(job, world.due(job, 1))
    world.hub.send("setServiceFee", 10**15, sender=OWNER)
    after = world.execute(job, world.due(job, 2))
    failed = world.execute(job, world.due(job, 3), call=world.demo.encode("fail"))
    assert world.hub.view("serviceFee") == 10**15
    assert after.fee - before.fee > 9 * 10**14
    assert failed.fee < after.fee - 9 * 10**14
    assert world.hub.view("nextTaskNumber") == 4
