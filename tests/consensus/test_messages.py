"""Messages: what they refuse to be, and that no bytes do more than be refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.errors import Reject
from consensus.messages import Execution, JobSpec, Task, Uint256, Vote, Wire
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
    data = bytearray(samples.execution().encode())
    data[position % len(data)] = byte
    try:
        decoded = Execution.decode(bytes(data))
    except Reject:
        return
    assert Execution.decode(decoded.encode()) == decoded


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


@pytest.mark.parametrize("value", [-1, 2**256])
def test_no_integer_outside_uint256_exists(value: int) -> None:
    with pytest.raises(ValueError):
        Uint256(value)


@given(job_id=st.integers(0, 2**256 - 1), created_at=st.integers(1, 2**62), function=st.text(max_size=50))
def test_a_job_spec_survives_the_wire(job_id: int, created_at: int, function: str) -> None:
    spec = msgspec.structs.replace(samples.SPEC, job_id=Uint256(job_id), created_at=created_at, function=function)
    assert JobSpec.decode(spec.encode()) == spec
