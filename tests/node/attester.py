"""An attester on a table: what its own RPC and sandbox say, and packages to judge by it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from consensus import ecdsa
from consensus.codec import Domain
from consensus.messages import Execution, JobSpec, NotExecuted, Run
from consensus.schedules import Interval
from consensus.triggers import Observation
from node.arguments import encode_call
from node.infra.chain import Chain, ExecutionRecord, ExecutionStatus, Job, Transaction
from node.infra.compute import inline
from node.infra.contracts import encode_execute
from node.packages import execution_digest
from node.recheck import Recheck
from node.scripts import Scripts
from node.verification.executions import Means
from tests.consensus import samples
from tests.consensus.samples import DOMAIN, NOW
from tests.node.fake_scripts import FakeScripts, Prints
from tests.simulation.world import Readings

SPEC = samples.SPEC
CALL = encode_call(SPEC.function, SPEC.arguments)
PERFORMER = ecdsa.address_of(samples.PERFORMER)
TARGET = b"\x66" * 20
URL = samples.CUSTOM_SPEC.script_url

DYNAMIC = msgspec.structs.replace(SPEC, definition=2, arguments="", script_url=URL, language="py")
"""A time job whose script prints the arguments of `ping`."""
CUSTOM = samples.CUSTOM_SPEC


@dataclass
class Read:
    """What this attester's own RPC says. None: not found; an exception: the RPC is away."""

    job_read: Job | None
    transaction_read: Transaction | Exception | None
    executed: ExecutionRecord | None = None

    @property
    def domain(self) -> Domain:
        return DOMAIN

    async def job(self, job_id: int) -> Job | None:
        return self.job_read

    async def execution(self, task_id: int) -> ExecutionRecord | None:
        return self.executed

    async def transaction(self, tx_hash: bytes) -> Transaction | None:
        if isinstance(self.transaction_read, Exception):
            raise self.transaction_read
        return self.transaction_read


def decides(target: bytes = TARGET, call: bytes = CALL) -> bytes:
    """What a custom script prints to have `target` called."""
    return b'{"shouldExecute": true, "targetContract": "0x%s", "calldata": "0x%s"}' % (target.hex().encode(), call.hex().encode())


ARGUMENTS = SPEC.arguments.encode()
HONEST = Prints(ARGUMENTS)
DECLINES = b'{"shouldExecute": false, "metadata": {"reason": "nothing to do"}}'
DECLINING = Prints(DECLINES)


def own_run(spec: JobSpec, said: Prints) -> Run:
    """What an honest keeper's run of a job's script comes to."""
    run = said.outcome(spec).run
    assert run is not None
    return run


def executed(spec: JobSpec = SPEC, call: bytes = CALL, observation: Observation = None, **changes: Any) -> Execution:
    """A static job's package: whatever is in it, its authorisation and its signatures go with it."""
    auth = samples.authorisation(
        spec=samples.spec_digest(spec.encode()), selector=call[:4], call_hash=samples.keccak(call), **changes
    )
    return samples.execution(samples.task(auth, spec=spec, observation=observation), call=call)


def scripted(
    spec: JobSpec = DYNAMIC,
    said: Prints = HONEST,
    *,
    run: Run | None = None,
    target: bytes | None = None,
    call: bytes = CALL,
    fee: int | None = None,
    **changes: Any,
) -> Execution:
    """A dynamic job's package, made of what the performer's script is said to have printed."""
    task = samples.script_task(spec, **changes)
    to = target if target is not None else (spec.target if any(spec.target) else TARGET)
    return samples.execution(task, target=to, call=call, run=own_run(spec, said) if run is None else run, fee=fee)


def reported(spec: JobSpec = CUSTOM, said: Prints = DECLINING, code: str = "SCRIPT_DECLINED", **changes: Any) -> NotExecuted:
    """A performer's word that its script asks for nothing."""
    run = changes.pop("run", own_run(spec, said))
    fee = changes.pop("fee", None)
    return samples.not_executed(samples.script_task(spec, **changes), code=code, run=run, fee=fee)


def recorded(execution: Execution, **changes: Any) -> ExecutionRecord:
    """What the hub has of it; changes are made after its digest."""
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
    return dataclasses.replace(consistent(execution, record), **changes)


def consistent(execution: Execution, record: ExecutionRecord, **changes: Any) -> ExecutionRecord:
    """A record with these changes, and the digest that goes with them."""
    changed = dataclasses.replace(record, **changes)
    return dataclasses.replace(changed, digest=execution_digest(execution, changed))


def asked(
    execution: Execution, *, target: bytes | None = None, call: bytes | None = None, fee: int | None = None, **changes: Any
) -> bytes:
    """The transaction's input: what the hub was told, whatever the package says."""
    authorisation = msgspec.structs.replace(execution.task.authorisation, **changes)
    return encode_execute(
        authorisation,
        execution.task.signature,
        execution.target if target is None else target,
        execution.call if call is None else call,
        execution.resource_fee if fee is None else fee,
    )


def read(
    execution: Execution | NotExecuted, *, job: dict[str, Any] | None = None, transaction: dict[str, Any] | None = None
) -> Read:
    """An RPC that has everything as it should be, but for these changes."""
    spec = execution.task.job()
    registered = Job(
        id=spec.job_id,
        owner=spec.owner,
        definition=spec.definition,
        created_at=SPEC.created_at,
        time_frame=spec.time_frame,
        target=SPEC.target if spec.definition != 7 else bytes(20),
        interval=50 if isinstance(SPEC.trigger, Interval) else 0,
        recurring=True,
        active=True,
    )
    mined = None
    if isinstance(execution, Execution):
        mined = Transaction(execution.transaction, PERFORMER, DOMAIN.hub, asked(execution), 50)
        mined = dataclasses.replace(mined, **(transaction or {}))
    return Read(dataclasses.replace(registered, **(job or {})), mined)


def means(what: Read, said: Prints | None = None, *, recheck: Recheck | None = None, scripts: Scripts | None = None) -> Means:
    """What an attester judges with; `said` is what the script prints in its own sandbox."""
    own = scripts or FakeScripts({URL: said} if said is not None else {})
    return Means(cast(Chain, what), inline, recheck or Recheck({}, Readings(), inline), own)
