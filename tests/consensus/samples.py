"""Fixed values of every message, for golden files and as the honest start of hostile variants."""

from __future__ import annotations

from typing import Any

import msgspec

from consensus import ecdsa
from consensus.codec import Domain, keccak
from consensus.conditions import AllOf, ApiSource, BalanceSource, Comparison, OnCondition, StaticSource
from consensus.events import EventFilter, OnEvent, firing_id
from consensus.fees import resource_fee
from consensus.messages import (
    Acknowledgement,
    Authorisation,
    CheckIn,
    Execution,
    JobSpec,
    NotExecuted,
    PackageReference,
    Refusal,
    Run,
    RunCertificate,
    Task,
    Uint256,
    Usage,
    Verdict,
    Vote,
    spec_digest,
)
from consensus.triggers import EdgeSeen, Interval, LogSeen, Observation

DISPATCHER = keccak(b"sample dispatcher")
PERFORMER = keccak(b"sample performer")
PEER = "12D3KooWSample"
DOMAIN = Domain(31337, b"\x11" * 20, b"\x22" * 20, b"\x33" * 20)
NOW = 1_700_000_100
CALL = bytes.fromhex("773acdef") + (2**200 + 7).to_bytes(32, "big")

SPEC = JobSpec(
    job_id=Uint256(2**255 + 3),
    chain_id=31337,
    definition=1,
    owner=b"\x44" * 20,
    created_at=1_700_000_000,
    time_frame=3600,
    trigger=Interval(50),
    target=b"\x55" * 20,
    function="ping(uint256)",
    arguments=f'["{2**200 + 7}"]',
    level=3,
)


def authorisation(**changes: object) -> Authorisation:
    fields: dict[str, object] = {
        "job_id": SPEC.job_id,
        "trigger_id": Uint256(1_700_000_100),
        "attempt": 2,
        "performer": ecdsa.address_of(PERFORMER),
        "spec": spec_digest(SPEC.encode()),
        "target": SPEC.target,
        "selector": CALL[:4],
        "call_hash": keccak(CALL),
        "gas_limit": 123_456,
        "level": 3,
        "max_fee": Uint256(10**18),
        "not_before": NOW,
        "deadline": NOW + 30,
    }
    return Authorisation(**{**fields, **changes})  # type: ignore[arg-type]


def task(
    auth: Authorisation | None = None,
    *,
    secret: bytes = DISPATCHER,
    spec: JobSpec = SPEC,
    observation: Observation = None,
    pinned_block: int = 0,
    storage: str = "",
) -> Task:
    auth = auth or authorisation()
    signature = ecdsa.sign(secret, DOMAIN.hub_digest(auth.struct_hash()))
    scripted = pinned_block > 0 or storage != ""
    said = DOMAIN.hub_digest(Task.inputs_hash(auth, pinned_block, storage))
    inputs = ecdsa.sign(secret, said) if scripted else b""
    return Task(31337, auth, signature, spec.encode(), "tgrx-sample", observation, pinned_block, storage, inputs)


ON_EVENT = OnEvent(
    chain_id=1,
    contract=b"\x66" * 20,
    event="Transfer(address indexed from,address indexed to,uint256 value)",
    filters=(EventFilter("value", "1000"),),
    confirmations=2,
)
LOG = LogSeen(b"\xab" * 32, 3)
EVENT_SPEC = msgspec.structs.replace(SPEC, definition=3, trigger=ON_EVENT)

ON_CONDITION = OnCondition(
    AllOf(
        (
            Comparison(ApiSource("https://prices.example.org/eth", "data.usd"), "greater_than", "2000.50", hysteresis="10"),
            Comparison(BalanceSource(31337, b"\x77" * 20), "between", "100", "1"),
            Comparison(StaticSource("1"), "equals", "1"),
        )
    )
)
EDGE = EdgeSeen(NOW, ("2000.51", "7", "1"))
CONDITION_SPEC = msgspec.structs.replace(SPEC, definition=5, trigger=ON_CONDITION)


PINNED = 40
"""The block that samples of scripts read the chain at."""
CID = "bafkreiaxnnnb7qz2focittuqq3ya25q7rcv3bqynnczfzako47346wosmu"
CUSTOM_SPEC = msgspec.structs.replace(
    SPEC, definition=7, target=bytes(20), function="", arguments="", script_url=f"ipfs://{CID}", language="py", priority=2
)
USAGE = Usage(120, 340, 20_000, 1024)
RUN = Run(b"\xaa" * 32, b'{"shouldExecute": false}', USAGE)


def task_of(
    spec: JobSpec, trigger_id: int, observation: Observation, *, pinned_block: int = 0, storage: str = "", **changes: Any
) -> Task:
    """A well-signed task of any kind of job."""
    fields = {"spec": spec_digest(spec.encode()), "trigger_id": Uint256(trigger_id), "target": spec.target, **changes}
    return task(authorisation(**fields), spec=spec, observation=observation, pinned_block=pinned_block, storage=storage)


def script_task(spec: JobSpec = CUSTOM_SPEC, *, pinned_block: int = PINNED, storage: str = '{"n": 1}', **changes: Any) -> Task:
    """A script decides its calldata."""
    selector = keccak(spec.function.encode())[:4] if spec.function else bytes(4)
    fields = {"call_hash": bytes(32), "selector": selector, **changes}
    second = fields.pop("trigger_id", NOW)
    return task_of(spec, second, None, pinned_block=pinned_block, storage=storage, **fields)


def event_task(spec: JobSpec = EVENT_SPEC, log: LogSeen = LOG, **changes: Any) -> Task:
    assert isinstance(spec.trigger, OnEvent)
    return task_of(spec, firing_id(spec.trigger.chain_id, log.transaction, log.position), log, **changes)


def condition_task(spec: JobSpec = CONDITION_SPEC, edge: int = 1, **changes: Any) -> Task:
    return task_of(spec, edge, EDGE, **changes)


TRANSACTION = b"\x77" * 32


def execution(
    of: Task | None = None,
    *,
    secret: bytes = PERFORMER,
    transaction: bytes = TRANSACTION,
    target: bytes | None = None,
    call: bytes = CALL,
    run: Run | None = None,
    fee: int | None = None,
) -> Execution:
    """A package; without `fee` it asks for what the formula says."""
    of = of or task()
    to = of.authorisation.target if target is None else target
    asked = resource_fee(of.job().priority, run.usage if run else None) if fee is None else fee
    said = Execution.struct_hash(of.authorisation, transaction, to, call, asked, run)
    return Execution(of, transaction, to, call, Uint256(asked), run, ecdsa.sign(secret, DOMAIN.hub_digest(said)))


def not_executed(
    of: Task | None = None,
    *,
    code: str = "SCRIPT_DECLINED",
    run: Run | None = RUN,
    fee: int | None = None,
    secret: bytes = PERFORMER,
) -> NotExecuted:
    of = of or script_task()
    asked = resource_fee(of.job().priority, run.usage if run else None) if fee is None else fee
    digest = NotExecuted.struct_hash(of, code, run, asked)
    return NotExecuted(of, code, "it declined", run, Uint256(asked), ecdsa.sign(secret, DOMAIN.hub_digest(digest)))


def run_certificate(said: NotExecuted | None = None) -> RunCertificate:
    """Well formed; nobody signed it."""
    return RunCertificate(said or not_executed(), 7, 1, (b"\x01" * 20, b"\x02" * 20), b"\x99" * 96)


PACKAGE_REFERENCE = PackageReference(31337, Uint256(authorisation().task_id), 2, CID)


def acknowledgement(auth: Authorisation | None = None, *, secret: bytes = PERFORMER, at: int = NOW) -> Acknowledgement:
    auth = auth or authorisation()
    digest = DOMAIN.hub_digest(Acknowledgement.struct_hash(auth, at))
    return Acknowledgement(31337, Uint256(auth.task_id), auth.attempt, at, ecdsa.sign(secret, digest))


def check_in(*, secret: bytes = PERFORMER, peer: str = PEER, at: int = NOW) -> CheckIn:
    digest = DOMAIN.hub_digest(CheckIn.struct_hash(peer, "0.1.0", "embedded", at))
    return CheckIn(31337, ecdsa.address_of(PERFORMER), "0.1.0", "embedded", at, ecdsa.sign(secret, digest))


VOTE = Vote(31337, Uint256(authorisation().task_id), b"\x88" * 32, Verdict.NO, "WRONG_CALL", 42, 7, 1, b"\x99" * 96)
REFUSAL = Refusal(31337, Uint256(authorisation().task_id), 2, "NOT_DUE", "too early", False)
