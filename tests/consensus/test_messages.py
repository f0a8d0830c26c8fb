"""Messages: what they refuse to be, and that no bytes do more than be refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.conditions import (
    AllOf,
    AnyOf,
    ApiSource,
    BalanceSource,
    Comparison,
    ConfirmationsSource,
    OnCondition,
    OracleSource,
    StaticSource,
    ViewSource,
    WebSocketSource,
)
from consensus.errors import Reject
from consensus.events import EventFilter, OnEvent
from consensus.messages import CheckIn, JobSpec, NotExecuted, Run, Task, Uint256, Usage, Vote, Wire
from consensus.triggers import EdgeSeen, LogSeen, Observation
from tests.consensus import samples
from tests.consensus.test_golden import WIRE


@pytest.mark.parametrize("name", WIRE)
def test_every_truncation_and_extension_is_rejected(name: str) -> None:
    kind, message = WIRE[name]
    data = message.encode()
    for cut in range(len(data)):
        with pytest.raises(Reject):
            kind.decode(data[:cut])
    with pytest.raises(Reject):
        kind.decode(data + b"\x00")


@pytest.mark.parametrize("kind", [k for k, _ in WIRE.values()])
@given(data=st.binary(max_size=400))
def test_random_bytes_are_rejected_and_nothing_else(kind: type[Wire], data: bytes) -> None:
    for candidate in (data, b"\x01" + data):
        try:
            kind.decode(candidate)
        except Reject:
            continue


@given(position=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_changed_byte_is_rejected_or_makes_a_valid_message(position: int, byte: int) -> None:
    for kind, message in WIRE.values():
        data = bytearray(message.encode())
        data[position % len(data)] = byte
        try:
            decoded = kind.decode(bytes(data))
        except Reject:
            continue
        assert kind.decode(decoded.encode()) == decoded


addresses = st.binary(min_size=20, max_size=20)
hashes = st.binary(min_size=32, max_size=32)
chains = st.integers(1, 2**62)
short = st.text(max_size=20)
decimals = st.decimals(allow_nan=False, allow_infinity=False, places=6).map(str)
sources = st.one_of(
    st.builds(StaticSource, decimals),
    st.builds(ApiSource, st.just("https://prices.example.org"), st.from_regex(r"[a-z]{1,8}", fullmatch=True)),
    st.builds(WebSocketSource, st.just("wss://prices.example.org"), st.from_regex(r"[a-z]{1,8}", fullmatch=True)),
    st.builds(OracleSource, chains, addresses),
    st.builds(BalanceSource, chains, addresses, st.one_of(st.just(b""), addresses)),
    st.builds(ViewSource, chains, addresses, st.just("price()(uint256)"), st.just("[]")),
    st.builds(ConfirmationsSource, chains, hashes),
)
comparisons = st.builds(Comparison, sources, st.sampled_from(["greater_than", "equals", "less_equal"]), decimals)
conditions = st.one_of(
    comparisons,
    st.lists(comparisons, min_size=1, max_size=4).map(lambda members: AllOf(tuple(members))),
    st.lists(comparisons, min_size=1, max_size=4).map(lambda members: AnyOf(tuple(members))),
).map(OnCondition)
events = st.builds(
    OnEvent,
    chain_id=chains,
    contract=addresses,
    event=st.just("Transfer(address indexed from,address indexed to,uint256 value)"),
    filters=st.lists(st.builds(EventFilter, st.just("value"), st.integers(0, 2**256 - 1).map(str)), max_size=1).map(tuple),
    confirmations=st.integers(0, 10_000),
)
observations = st.one_of(
    st.none(),
    st.builds(LogSeen, hashes, st.integers(0, 2**32 - 1)),
    st.builds(EdgeSeen, st.integers(0, 2**63 - 1), st.lists(short, max_size=16).map(tuple)),
)


@given(trigger=st.one_of(events, conditions), observation=observations)
def test_a_trigger_and_what_was_seen_survive_the_wire(trigger: OnEvent | OnCondition, observation: Observation) -> None:
    spec = msgspec.structs.replace(samples.SPEC, trigger=trigger)
    assert JobSpec.decode(spec.encode()) == spec
    task = samples.task(samples.authorisation(spec=samples.spec_digest(spec.encode())), spec=spec, observation=observation)
    assert Task.decode(task.encode()) == task
    assert task.job() == spec


@given(version=st.text(max_size=64), sandbox=st.text(max_size=32), at=st.integers(0, 2**63 - 1))
def test_a_check_in_survives_the_wire(version: str, sandbox: str, at: int) -> None:
    check_in = msgspec.structs.replace(samples.check_in(), version=version, sandbox=sandbox, at=at)
    assert CheckIn.decode(check_in.encode()) == check_in


@pytest.mark.parametrize(
    ("observation", "change", "value"),
    [
        (samples.LOG, "transaction", b"\x01" * 31),
        (samples.LOG, "position", -1),
        (samples.LOG, "position", 2**32),
        (samples.EDGE, "at", -1),
        (samples.EDGE, "values", ("1",) * 17),
        (samples.EDGE, "values", ("1" * 129,)),
    ],
)
def test_an_observation_out_of_range_cannot_exist(observation: msgspec.Struct, change: str, value: object) -> None:
    with pytest.raises(ValueError):
        msgspec.structs.replace(observation, **{change: value})


def test_an_observation_out_of_range_does_not_arrive_either() -> None:
    honest = samples.event_task().encode()
    assert Task.decode(honest) == samples.event_task()
    with pytest.raises(Reject):
        Task.decode(honest.replace(b"\xc4\x20" + b"\xab" * 32, b"\xc4\x1f" + b"\xab" * 31))


@pytest.mark.parametrize(("change", "value"), [("version", "v" * 65), ("sandbox", "s" * 33), ("at", -1), ("operator", b"")])
def test_a_check_in_out_of_range_cannot_exist(change: str, value: object) -> None:
    with pytest.raises(ValueError):
        msgspec.structs.replace(samples.check_in(), **{change: value})


def test_deep_nesting_is_rejected() -> None:
    with pytest.raises(Reject):
        Task.decode(b"\x01" + b"\x91" * 100_000)


def test_another_version_is_rejected_by_name() -> None:
    with pytest.raises(Reject, match="UNKNOWN_VERSION"):
        Vote.decode(b"\x02" + samples.VOTE.encode()[1:])


def test_a_spec_that_is_not_the_authorised_one_is_rejected() -> None:
    other = msgspec.structs.replace(samples.SPEC, time_frame=7200)
    with pytest.raises(Reject, match="SPEC_MISMATCH"):
        samples.task(spec=other).job()


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("performer", b"\x01" * 19),
        ("selector", b"\x01" * 5),
        ("spec", b""),
        ("attempt", 0),
        ("attempt", 256),
        ("gas_limit", 0),
        ("gas_limit", 30_000_001),
        ("level", 5),
        ("deadline", 0),
    ],
)
def test_an_authorisation_out_of_range_cannot_exist(change: str, value: object) -> None:
    with pytest.raises(ValueError):
        samples.authorisation(**{change: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": b""},
        {"inputs": bytes(64)},
        {"pinned_block": 0, "storage": ""},  # signed all the same
        {"pinned_block": -1},
        {"pinned_block": 2**36},
        {"storage": "x" * (16 * 1024 + 1)},
        {"storage": "\u00e9" * (8 * 1024 + 1)},
    ],
)
def test_a_scripts_inputs_out_of_range_cannot_exist(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        msgspec.structs.replace(samples.script_task(), **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"task": samples.task()},  # no pinned block
        {"code": ""},
        {"code": "x" * 65},
        {"detail": "x" * 513},
        {"signature": b""},
    ],
)
def test_a_report_out_of_range_cannot_exist(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        msgspec.structs.replace(samples.not_executed(), **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"signers": ()},
        {"signers": (bytes(20),) * 17},
        {"signers": (bytes(19),)},
        {"round": 3},
        {"epoch": -1},
        {"signature": bytes(95)},
    ],
)
def test_a_runs_certificate_out_of_range_cannot_exist(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        msgspec.structs.replace(samples.run_certificate(), **changes)


@given(
    output=st.binary(max_size=300),
    detail=st.text(max_size=512),
    storage=st.text(max_size=200),
    usage=st.builds(Usage, *[st.integers(0, 2**40 - 1)] * 4),
)
def test_a_report_survives_the_wire_and_says_the_same(output: bytes, detail: str, storage: str, usage: Usage) -> None:
    task = samples.script_task(storage=storage)
    said = samples.not_executed(task, run=Run(bytes(32), output, usage))
    said = msgspec.structs.replace(said, detail=detail)
    assert NotExecuted.decode(said.encode()) == said
    assert NotExecuted.decode(said.encode()).digest() == said.digest()


@pytest.mark.parametrize("value", [-1, 2**256])
def test_no_integer_outside_uint256_exists(value: int) -> None:
    with pytest.raises(ValueError):
        Uint256(value)


@given(job_id=st.integers(0, 2**256 - 1), created_at=st.integers(1, 2**62), function=st.text(max_size=50))
def test_a_job_spec_survives_the_wire(job_id: int, created_at: int, function: str) -> None:
    spec = msgspec.structs.replace(samples.SPEC, job_id=Uint256(job_id), created_at=created_at, function=function)
    assert JobSpec.decode(spec.encode()) == spec
