"""The attester believes nothing: an honest execution gets its yes, each lie the no that names it, each lag a cannot_tell."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import pytest

from consensus import ecdsa
from consensus.codec import Domain
from consensus.errors import Transient
from consensus.messages import Execution, JobSpec, Uint256, Verdict
from consensus.schedules import Cron, Moments
from consensus.triggers import Observation
from node.arguments import encode_call
from node.infra.chain import Chain, ExecutionRecord, ExecutionStatus, Job, Transaction
from node.infra.compute import inline
from node.infra.contracts import encode_execute
from node.recheck import Recheck
from node.verifier import describes, execution_digest, verify
from tests.consensus import samples
from tests.consensus.samples import DOMAIN, NOW
from tests.simulation.world import Readings

RECHECK = Recheck({}, Readings(), inline)
CALL = encode_call(samples.SPEC.function, samples.SPEC.arguments)
PERFORMER = ecdsa.address_of(samples.PERFORMER)


@dataclass
class Read:
    """What this attester's own RPC says. None: not found; an exception: the RPC is away."""

    job_read: Job | None
    transaction_read: Transaction | Exception | None

    @property
    def domain(self) -> Domain:
        return DOMAIN

    async def job(self, job_id: int) -> Job | None:
        return self.job_read

    async def transaction(self, tx_hash: bytes) -> Transaction | None:
        if isinstance(self.transaction_read, Exception):
            raise self.transaction_read
        return self.transaction_read


def executed(spec: JobSpec = samples.SPEC, call: bytes = CALL, observation: Observation = None, **changes: Any) -> Execution:
    auth = samples.authorisation(
        spec=samples.spec_digest(spec.encode()), selector=call[:4], call_hash=samples.keccak(call), **changes
    )
    return samples.execution(samples.task(auth, spec=spec, observation=observation), call=call)


def recorded(execution: Execution, **changes: Any) -> ExecutionRecord:
    record = ExecutionRecord(
        task_id=execution.task.task_id,
        job_id=execution.task.authorisation.job_id,
        number=1,
        performer=execution.task.authorisation.performer,
        performer_id=1,
        block_number=50,
        timestamp=NOW,
        level=3,
        status=ExecutionStatus.PENDING,
        success=True,
        fee=10**15,
        digest=bytes(32),
    )
    record = dataclasses.replace(record, digest=execution_digest(execution, record))
    return dataclasses.replace(record, **changes)


def asked(execution: Execution, *, call: bytes | None = None, fee: int = 0, **changes: Any) -> bytes:
    """The transaction's input: what the hub was told, whatever the package says."""
    authorisation = msgspec.structs.replace(execution.task.authorisation, **changes)
    sent = execution.call if call is None else call
    return encode_execute(authorisation, execution.task.signature, execution.target, sent, fee)


def chain(execution: Execution, *, job: dict[str, Any] | None = None, transaction: dict[str, Any] | None = None) -> Chain:
    registered = Job(
        id=samples.SPEC.job_id,
        owner=samples.SPEC.owner,
        definition=1,
        created_at=samples.SPEC.created_at,
        time_frame=samples.SPEC.time_frame,
        target=samples.SPEC.target,
        interval=50,
        recurring=True,
        active=True,
    )
    mined = Transaction(execution.transaction, PERFORMER, DOMAIN.hub, asked(execution), 50)
    read = Read(dataclasses.replace(registered, **(job or {})), dataclasses.replace(mined, **(transaction or {})))
    return cast(Chain, read)


async def test_an_honest_execution_gets_a_yes() -> None:
    execution = executed()
    assert await verify(execution, recorded(execution), chain(execution), inline, RECHECK) == (Verdict.YES, "")


async def test_an_inner_failure_that_the_hub_recorded_gets_a_yes() -> None:
    execution = executed()
    failed = recorded(execution, success=False)
    failed = dataclasses.replace(failed, digest=execution_digest(execution, failed))
    assert await verify(execution, failed, chain(execution), inline, RECHECK) == (Verdict.YES, "")


SPEC = samples.SPEC
MOMENTS = msgspec.structs.replace(SPEC, trigger=Moments((NOW, NOW + 500)))
CRON = msgspec.structs.replace(SPEC, trigger=Cron("* * * * *", "UTC"), created_at=NOW - 200)
MINUTE = NOW - NOW % 60
SCHEDULED_EVENT = msgspec.structs.replace(SPEC, definition=3)  # a schedule under an event job's type


@pytest.mark.parametrize(("spec", "second"), [(MOMENTS, NOW), (CRON, MINUTE)])
async def test_cron_and_specific_times_get_a_yes_at_their_seconds(spec: JobSpec, second: int) -> None:
    execution = executed(spec, trigger_id=Uint256(second))
    read = chain(execution, job={"interval": 0, "created_at": spec.created_at})
    assert await verify(execution, recorded(execution), read, inline, RECHECK) == (Verdict.YES, "")


@pytest.mark.parametrize("definition", [2, 4, 6, 7])
async def test_a_job_whose_script_cannot_be_run_yet_is_left_to_others(definition: int) -> None:
    execution = executed(msgspec.structs.replace(SPEC, definition=definition))
    opinion = await verify(execution, recorded(execution), chain(execution), inline, RECHECK)
    assert opinion == (Verdict.CANNOT_TELL, "UNSUPPORTED_JOB")


@pytest.mark.parametrize(
    ("reason", "execution", "record", "job", "transaction"),
    [
        ("WRONG_RECORD", executed(), {"level": 1}, {}, {}),
        ("NOT_DUE", executed(trigger_id=Uint256(NOW + 7)), {}, {}, {}),
        ("NOT_DUE", executed(trigger_id=Uint256(NOW + 50)), {}, {}, {}),
        ("NOT_DUE", executed(), {}, {"interval": 60}, {}),
        ("WRONG_CALL", executed(call=encode_call("ping(uint256)", '["8"]')), {}, {}, {}),
        ("WRONG_CALL", executed(), {}, {}, {"input": asked(executed(), call=CALL + bytes(32))}),
        ("WRONG_FEE", executed(), {}, {}, {"input": asked(executed(), fee=10**15)}),
        ("WRONG_RECORD", executed(), {}, {}, {"success": False}),  # a harmless copy of what it really sent
        ("WRONG_RECORD", executed(), {}, {}, {"input": asked(executed(), max_fee=Uint256(10**19))}),
        ("MALFORMED_CALL", executed(), {}, {}, {"input": b"\x00" * 100}),
        ("WRONG_TARGET", executed(msgspec.structs.replace(SPEC, target=b"\x66" * 20)), {}, {}, {}),
        ("WRONG_TARGET", executed(), {}, {"target": b"\x66" * 20}, {}),
        ("WRONG_RECORD", executed(), {}, {"owner": b"\x66" * 20}, {}),
        ("WRONG_RECORD", executed(), {}, {"created_at": 1}, {}),
        ("WRONG_RECORD", executed(), {}, {}, {"sender": b"\x01" * 20}),
        ("WRONG_RECORD", executed(), {}, {}, {"to": b"\x01" * 20}),
        ("NOT_DUE", executed(trigger_id=Uint256(NOW + 50), not_before=NOW), {}, {}, {}),
        ("NOT_DUE", executed(MOMENTS), {}, {}, {}),  # registered with an interval of 50
        ("NOT_DUE", executed(MOMENTS, trigger_id=Uint256(NOW + 1)), {}, {"interval": 0}, {}),
        ("NOT_DUE", executed(CRON, trigger_id=Uint256(NOW - 1)), {}, {"interval": 0}, {}),
        ("NOT_DUE", executed(SCHEDULED_EVENT), {}, {"definition": 3, "interval": 0}, {}),
    ],
)
async def test_a_lie_gets_the_no_that_names_it(
    reason: str, execution: Execution, record: dict[str, Any], job: dict[str, Any], transaction: dict[str, Any]
) -> None:
    opinion = await verify(
        execution, recorded(execution, **record), chain(execution, job=job, transaction=transaction), inline, RECHECK
    )
    assert opinion == (Verdict.NO, reason)


@pytest.mark.parametrize(
    "record",
    [
        {"performer": b"\x01" * 20},
        {"success": False},
        {"fee": 10**16},
        {"timestamp": NOW + 1},
        {"block_number": 51},
        {"digest": bytes(32)},
    ],
)
async def test_a_package_of_another_execution_says_nothing_about_the_recorded_one(record: dict[str, Any]) -> None:
    execution = executed()
    opinion = await verify(execution, recorded(execution, **record), chain(execution), inline, RECHECK)
    assert opinion == (Verdict.CANNOT_TELL, "WRONG_RECORD")


async def test_an_earlier_attempts_package_says_nothing_about_a_later_ones_record() -> None:
    first, second = executed(attempt=1), executed(attempt=2)
    assert not describes(first, recorded(second))
    opinion = await verify(first, recorded(second), chain(second), inline, RECHECK)
    assert opinion == (Verdict.CANNOT_TELL, "WRONG_RECORD")


async def test_endpoints_on_different_branches_are_no_contradiction() -> None:
    execution = executed()
    opinion = await verify(execution, recorded(execution), chain(execution, transaction={"block_number": 49}), inline, RECHECK)
    assert opinion == (Verdict.CANNOT_TELL, "TRANSACTION_NOT_FOUND")


async def test_a_claimed_resource_fee_gets_a_no() -> None:
    execution = msgspec.structs.replace(executed(), resource_fee=Uint256(1))
    assert await verify(execution, recorded(execution), chain(execution), inline, RECHECK) == (Verdict.NO, "WRONG_FEE")


@pytest.mark.parametrize(
    ("read", "reason"),
    [(None, "TRANSACTION_NOT_FOUND"), (Transient("RPC_UNREACHABLE"), "RPC_UNREACHABLE")],
)
async def test_an_attester_whose_rpc_lags_cannot_tell(read: Transaction | Exception | None, reason: str) -> None:
    execution = executed()
    lagging = cast(Read, chain(execution))
    lagging.transaction_read = read
    assert await verify(execution, recorded(execution), cast(Chain, lagging), inline, RECHECK) == (Verdict.CANNOT_TELL, reason)
