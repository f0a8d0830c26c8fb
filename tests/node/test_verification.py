"""The attester believes nothing: each lie a performer can tell gets the no that names it, or is refused before a vote."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest

from consensus import rules
from consensus.codec import keccak
from consensus.errors import Ignore, Reject
from consensus.fees import BASE_FEE
from consensus.messages import Execution, JobSpec, Run, Uint256, Verdict
from consensus.schedules import Cron, Moments
from node.arguments import encode_call
from node.verification.executions import verify
from node.verification.tolerances import most
from tests.consensus import samples
from tests.consensus.samples import NOW, PEER
from tests.consensus.test_rules import KNOWN
from tests.node.attester import (
    ARGUMENTS,
    CALL,
    CUSTOM,
    DYNAMIC,
    HONEST,
    SPEC,
    TARGET,
    asked,
    consistent,
    decides,
    executed,
    means,
    own_run,
    read,
    recorded,
    scripted,
)
from tests.node.fake_scripts import USAGE, Prints

YES = (Verdict.YES, "")
DECIDED = Prints(decides())
OTHER_CALL = encode_call("ping(uint256)", '["8"]')


async def test_an_honest_execution_gets_a_yes() -> None:
    execution = executed()
    assert await verify(execution, recorded(execution), means(read(execution))) == YES


async def test_honest_executions_of_scripts_get_a_yes() -> None:
    arguments, decision = scripted(), scripted(CUSTOM, DECIDED)
    assert await verify(arguments, recorded(arguments), means(read(arguments), HONEST)) == YES
    assert await verify(decision, recorded(decision), means(read(decision), DECIDED)) == YES


MOMENTS = msgspec.structs.replace(SPEC, trigger=Moments((NOW, NOW + 500)))
CRON = msgspec.structs.replace(SPEC, trigger=Cron("* * * * *", "UTC"), created_at=NOW - 200)
MINUTE = NOW - NOW % 60
SCHEDULED_EVENT = msgspec.structs.replace(SPEC, definition=3)  # a schedule under an event job's type


# one test a lie


async def _verdict(
    execution: Execution,
    *,
    record: dict[str, Any] | None = None,
    job: dict[str, Any] | None = None,
    transaction: dict[str, Any] | None = None,
    own: Prints = HONEST,
) -> tuple[Verdict, str]:
    what = read(execution, job=job, transaction=transaction)
    return await verify(execution, recorded(execution, **(record or {})), means(what, own))


def _no(reason: str) -> tuple[Verdict, str]:
    return Verdict.NO, reason


async def test_wrong_target_that_is_not_the_specs() -> None:
    assert await _verdict(executed(msgspec.structs.replace(SPEC, target=TARGET))) == _no("WRONG_TARGET")


async def test_wrong_target_that_is_not_the_registered_jobs() -> None:
    assert await _verdict(executed(), job={"target": TARGET}) == _no("WRONG_TARGET")


async def test_wrong_target_that_the_script_did_not_print() -> None:
    execution = scripted(CUSTOM, DECIDED, target=b"\x67" * 20)
    assert await _verdict(execution, own=DECIDED) == _no("WRONG_TARGET")


async def test_wrong_target_that_the_hub_was_told() -> None:
    execution = scripted(CUSTOM, DECIDED)
    asked_for = {"input": asked(execution, target=b"\x67" * 20)}
    assert await _verdict(execution, transaction=asked_for, own=DECIDED) == _no("WRONG_TARGET")


def test_wrong_target_beside_the_authorised_one_is_refused_before_a_vote() -> None:
    with pytest.raises(Reject, match="WRONG_TARGET"):
        rules.check_execution(scripted(target=b"\x67" * 20), PEER, KNOWN, NOW)


@pytest.mark.parametrize("call", [keccak(b"pong(uint256)")[:4] + CALL[4:], b""])
async def test_wrong_selector(call: bytes) -> None:
    assert await _verdict(scripted(call=call)) == _no("WRONG_CALL")


async def test_wrong_selector_that_a_dispatcher_authorised() -> None:
    assert await _verdict(scripted(selector=b"\x01\x02\x03\x04")) == _no("WRONG_CALL")


async def test_wrong_argument_of_a_given_call() -> None:
    assert await _verdict(executed(call=OTHER_CALL)) == _no("WRONG_CALL")


async def test_wrong_argument_that_the_script_did_not_print() -> None:
    assert await _verdict(scripted(call=OTHER_CALL)) == _no("WRONG_CALL")


async def test_wrong_argument_that_the_hub_was_told() -> None:
    execution = executed()
    assert await _verdict(execution, transaction={"input": asked(execution, call=CALL + bytes(32))}) == _no("WRONG_CALL")


def test_wrong_argument_beside_the_authorised_calldata_is_refused_before_a_vote() -> None:
    with pytest.raises(Reject, match="WRONG_CALL"):
        rules.check_execution(samples.execution(call=OTHER_CALL), PEER, KNOWN, NOW)


async def test_wrong_sender() -> None:
    assert await _verdict(executed(), transaction={"sender": b"\x01" * 20}) == _no("WRONG_RECORD")


async def test_a_transaction_that_was_not_sent_to_the_hub() -> None:
    assert await _verdict(executed(), transaction={"to": b"\x01" * 20}) == _no("WRONG_RECORD")


@pytest.mark.parametrize(
    "job", [{"owner": b"\x66" * 20}, {"created_at": 1}, {"time_frame": 7}, {"definition": 3}, {"definition": 2}]
)
async def test_wrong_job_that_is_registered_otherwise(job: dict[str, Any]) -> None:
    assert await _verdict(executed(), job=job) == _no("WRONG_RECORD")


def test_wrong_job_is_refused_before_a_vote() -> None:
    """The JobSpec of another job under an authorisation."""
    other = samples.task(samples.authorisation(job_id=Uint256(5)))
    with pytest.raises(Reject, match="SPEC_CONTRADICTS"):
        rules.check_execution(samples.execution(other), PEER, KNOWN, NOW)


async def test_another_jobs_transaction() -> None:
    execution = executed()
    assert await _verdict(execution, transaction={"input": asked(execution, job_id=Uint256(5))}) == _no("WRONG_RECORD")


async def test_wrong_task() -> None:
    execution = executed()
    other = {"input": asked(execution, trigger_id=Uint256(NOW - 50))}
    assert await _verdict(execution, transaction=other) == _no("WRONG_RECORD")


async def test_an_older_transaction_of_the_same_job() -> None:
    execution = executed()
    older = {"input": asked(execution, trigger_id=Uint256(NOW - 50)), "block_number": 12}
    assert await _verdict(execution, transaction=older) == _no("WRONG_RECORD")


async def test_a_transaction_of_another_attempt_with_other_terms() -> None:
    execution = executed()
    assert await _verdict(execution, transaction={"input": asked(execution, max_fee=Uint256(10**19))}) == _no("WRONG_RECORD")


async def test_a_transaction_that_calls_nothing_of_the_hub() -> None:
    assert await _verdict(executed(), transaction={"input": b"\x00" * 100}) == _no("MALFORMED_CALL")


def test_wrong_chain_is_refused_before_a_vote() -> None:
    elsewhere = msgspec.structs.replace(samples.task(), chain_id=1)
    with pytest.raises(Ignore, match="UNKNOWN_CHAIN"):
        rules.check_execution(samples.execution(elsewhere), PEER, KNOWN, NOW)
    spec = msgspec.structs.replace(SPEC, chain_id=1)
    other = samples.task(samples.authorisation(spec=samples.spec_digest(spec.encode())), spec=spec)
    with pytest.raises(Reject, match="SPEC_CONTRADICTS"):
        rules.check_execution(samples.execution(other), PEER, KNOWN, NOW)


async def test_a_block_before_its_time() -> None:
    early = executed(trigger_id=Uint256(NOW + 50), not_before=NOW)
    assert await _verdict(early) == _no("NOT_DUE")
    assert await _verdict(executed(not_before=NOW + 1)) == _no("NOT_DUE")


@pytest.mark.parametrize(
    ("execution", "job"),
    [
        (executed(trigger_id=Uint256(NOW + 7)), {}),
        (executed(), {"interval": 60}),
        (executed(MOMENTS), {}),  # registered with an interval of 50
        (executed(MOMENTS, trigger_id=Uint256(NOW + 1)), {"interval": 0}),
        (executed(CRON, trigger_id=Uint256(NOW - 1)), {"interval": 0}),
        (executed(SCHEDULED_EVENT), {"definition": 3, "interval": 0}),
    ],
)
async def test_a_second_that_is_not_the_jobs(execution: Execution, job: dict[str, Any]) -> None:
    assert await _verdict(execution, job=job) == _no("NOT_DUE")


async def test_an_inner_failure_shown_as_success() -> None:
    """A package does not say whether the call succeeded: the hub's record does, and no package makes another of it."""
    execution = executed()
    failed = consistent(execution, recorded(execution), success=False)
    shown = dataclasses.replace(failed, success=True)
    assert await verify(execution, shown, means(read(execution))) == (Verdict.CANNOT_TELL, "WRONG_RECORD")


async def test_a_refused_transaction_shown_as_the_one_that_executed() -> None:
    assert await _verdict(executed(), transaction={"success": False}) == _no("WRONG_RECORD")


def test_a_tampered_package_is_refused_before_a_vote() -> None:
    honest = scripted(CUSTOM, DECIDED)
    for tampered in (
        msgspec.structs.replace(honest, call=OTHER_CALL),
        msgspec.structs.replace(honest, target=b"\x67" * 20),
        msgspec.structs.replace(honest, transaction=bytes(32)),
        msgspec.structs.replace(honest, resource_fee=Uint256(1)),
        msgspec.structs.replace(honest, run=None),
    ):
        with pytest.raises(Reject, match="BAD_SIGNATURE"):
            rules.check_execution(tampered, PEER, KNOWN, NOW)


@pytest.mark.parametrize("changed", [{"pinned_block": 39}, {"storage": '{"n": 2}'}])
def test_inputs_of_the_performers_choice_are_refused_before_a_vote(changed: dict[str, Any]) -> None:
    chosen = msgspec.structs.replace(samples.script_task(), **changed)
    with pytest.raises(Reject, match="NOT_DISPATCHER"):
        rules.check_execution(samples.execution(chosen, target=TARGET, run=samples.RUN), PEER, KNOWN, NOW)


@pytest.mark.parametrize("fee", [0, BASE_FEE[3] - 1, BASE_FEE[3] + 1, 10**15])
async def test_gas_inflated_as_a_resource_fee(fee: int) -> None:
    """What gas costs the hub measures itself; the fee beside it is a formula's, to the wei."""
    task = executed().task
    assert await _verdict(samples.execution(task, fee=fee)) == _no("WRONG_FEE")


async def test_gas_inflated_by_what_the_hub_was_told() -> None:
    execution = executed()
    assert await _verdict(execution, transaction={"input": asked(execution, fee=10**15)}) == _no("WRONG_FEE")


@pytest.mark.parametrize("field", ["cpu_ms", "wall_ms", "peak_kib", "transferred"])
async def test_usage_inflated(field: str) -> None:
    beyond = msgspec.structs.replace(most(USAGE), **{field: getattr(most(USAGE), field) + 1})
    assert await _verdict(scripted(said=Prints(ARGUMENTS, beyond))) == _no("WRONG_FEE")


async def test_a_fee_that_is_not_of_the_usage_shown() -> None:
    assert await _verdict(scripted(fee=BASE_FEE[3] + 10**13)) == _no("WRONG_FEE")


async def test_script_swapped() -> None:
    other = Run(bytes(32), ARGUMENTS, USAGE)
    assert await _verdict(scripted(run=other)) == _no("WRONG_SCRIPT")


async def test_no_script_run_where_one_decides() -> None:
    without = samples.execution(samples.script_task(DYNAMIC), target=SPEC.target)
    assert await _verdict(without) == _no("WRONG_SCRIPT")


async def test_a_script_run_where_the_call_is_given() -> None:
    execution = samples.execution(executed().task, run=own_run(DYNAMIC, HONEST))
    assert await _verdict(execution) == _no("WRONG_SCRIPT")


async def test_a_script_without_the_block_it_read() -> None:
    assert await _verdict(scripted(pinned_block=0, storage="")) == _no("WRONG_RECORD")


@pytest.mark.parametrize(
    ("spec", "theirs", "call", "mine"),
    [
        (DYNAMIC, Prints(b'["8"]'), OTHER_CALL, HONEST),
        (CUSTOM, Prints(decides(call=OTHER_CALL)), OTHER_CALL, DECIDED),
        (CUSTOM, Prints(decides()[:-1] + b', "storageUpdates": {"n": 9}}'), CALL, DECIDED),
        (CUSTOM, DECIDED, CALL, Prints(b'{"shouldExecute": false}')),
        (DYNAMIC, HONEST, CALL, Prints(b"Traceback", code="SCRIPT_FAILED")),
    ],
)
async def test_output_changed(spec: JobSpec, theirs: Prints, call: bytes, mine: Prints) -> None:
    assert await _verdict(scripted(spec, theirs, call=call), own=mine) == _no("WRONG_OUTPUT")


@pytest.mark.parametrize("output", [b'{"shouldExecute": false}', b"rubbish", b""])
async def test_an_output_that_means_no_call_at_all(output: bytes) -> None:
    execution = scripted(CUSTOM, run=own_run(CUSTOM, Prints(output)))
    assert await _verdict(execution, own=Prints(output)) == _no("WRONG_OUTPUT")


async def test_a_record_of_another_level() -> None:
    assert await _verdict(executed(), record={"level": 1}) == _no("WRONG_RECORD")
