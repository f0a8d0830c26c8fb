"""Fixed values of every message, for golden files and as the honest start of hostile variants."""

from __future__ import annotations

from typing import Any

import msgspec

from consensus import ecdsa
from consensus.codec import Domain, keccak
from consensus.conditions import AllOf, ApiSource, BalanceSource, Comparison, OnCondition, StaticSource
from consensus.events import EventFilter, OnEvent, firing_id
from consensus.messages import (
    Acknowledgement,
    Authorisation,
    CheckIn,
    Execution,
    JobSpec,
    Refusal,
    Task,
    Uint256,
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
) -> Task:
    auth = auth or authorisation()
    signature = ecdsa.sign(secret, DOMAIN.hub_digest(auth.struct_hash()))
    return Task(31337, auth, signature, spec.encode(), "tgrx-sample", observation)


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


def task_of(spec: JobSpec, trigger_id: int, observation: Observation, **changes: Any) -> Task:
    """A well-signed task of any kind of job."""
    fields = {"spec": spec_digest(spec.encode()), "trigger_id": Uint256(trigger_id), "target": spec.target, **changes}
    return task(authorisation(**fields), spec=spec, observation=observation)


def event_task(spec: JobSpec = EVENT_SPEC, log: LogSeen = LOG, **changes: Any) -> Task:
    assert isinstance(spec.trigger, OnEvent)
    return task_of(spec, firing_id(spec.trigger.chain_id, log.transaction, log.position), log, **changes)


def condition_task(spec: JobSpec = CONDITION_SPEC, edge: int = 1, **changes: Any) -> Task:
    return task_of(spec, edge, EDGE, **changes)


def execution(of: Task | None = None, *, secret: bytes = PERFORMER, call: bytes = CALL) -> Execution:
    of = of or task()
    target = of.authorisation.target
    said = Execution.struct_hash(of.authorisation, b"\x77" * 32, target, call, 0, None)
    return Execution(of, b"\x77" * 32, target, call, Uint256(0), None, ecdsa.sign(secret, DOMAIN.hub_digest(said)))


def acknowledgement(auth: Authorisation | None = None, *, secret: bytes = PERFORMER, at: int = NOW) -> Acknowledgement:
    auth = auth or authorisation()
    digest = DOMAIN.hub_digest(Acknowledgement.struct_hash(auth, at))
    return Acknowledgement(31337, Uint256(auth.task_id), auth.attempt, at, ecdsa.sign(secret, digest))


def check_in(*, secret: bytes = PERFORMER, peer: str = PEER, at: int = NOW) -> CheckIn:
    digest = DOMAIN.hub_digest(CheckIn.struct_hash(peer, "0.1.0", "embedded", at))
    return CheckIn(31337, ecdsa.address_of(PERFORMER), "0.1.0", "embedded", at, ecdsa.sign(secret, digest))


VOTE = Vote(31337, Uint256(authorisation().task_id), b"\x88" * 32, Verdict.NO, "WRONG_CALL", 42, 7, 1, b"\x99" * 96)
REFUSAL = Refusal(31337, Uint256(authorisation().task_id), 2, "NOT_DUE", "too early", False)
