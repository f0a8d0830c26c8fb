"""The BLS precompiles on arkworks answer, charge and refuse exactly as py-evm's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from eth.exceptions import OutOfGas, VMError
from eth.vm.forks.prague.computation import PRAGUE_PRECOMPILES
from hypothesis import given, settings
from hypothesis import strategies as st
from py_arkworks_bls12381 import G1Point, G2Point, Scalar

from cli.devnet.embedded.precompiles import BLS_PRECOMPILES, FIELD_MODULUS

G1ADD, G1MSM, G2ADD, G2MSM, PAIRING, MAP_G1, MAP_G2 = range(0x0B, 0x12)


def padded(xy: bytes) -> bytes:
    return b"".join(bytes(16) + xy[at : at + 48] for at in range(0, len(xy), 48))


def g1(k: int) -> bytes:
    return padded((G1Point() * Scalar(k)).to_xy_bytes_be())


def g2(k: int) -> bytes:
    return padded((G2Point() * Scalar(k)).to_xy_bytes_be())


def fp(value: int) -> bytes:
    return value.to_bytes(64, "big")


def scalar(value: int) -> bytes:
    return value.to_bytes(32, "big")


def negated(point: bytes) -> bytes:
    half = len(point) // 2
    rows = [int.from_bytes(point[at : at + 64], "big") for at in range(half, len(point), 64)]
    return point[:half] + b"".join(fp((FIELD_MODULUS - row) % FIELD_MODULUS) for row in rows)


def outside_the_subgroup() -> bytes:
    """A point of the G1 curve that is not in its subgroup."""
    x = 4
    while True:
        square = (x**3 + 4) % FIELD_MODULUS
        y = pow(square, (FIELD_MODULUS + 1) // 4, FIELD_MODULUS)
        if (
            y * y % FIELD_MODULUS == square
            and not G1Point.from_xy_bytes_unchecked_be(x.to_bytes(48, "big") + y.to_bytes(48, "big")).is_in_subgroup()
        ):
            return fp(x) + fp(y)
        x += 1


NO_G1, NO_G2 = bytes(128), bytes(256)
STRAY = outside_the_subgroup()
ORDER = 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001

CASES: dict[str, tuple[int, bytes]] = {
    "sum in G1": (G1ADD, g1(3) + g1(5)),
    "doubling in G1": (G1ADD, g1(3) + g1(3)),
    "sum with the opposite in G1": (G1ADD, g1(3) + negated(g1(3))),
    "sum with the identity in G1": (G1ADD, g1(3) + NO_G1),
    "sum outside the subgroup is allowed": (G1ADD, STRAY + g1(1)),
    "sum off the curve": (G1ADD, fp(1) + fp(1) + g1(1)),
    "sum of the wrong length": (G1ADD, g1(3) + g1(5) + b"\0"),
    "coordinate not reduced": (G1ADD, fp(FIELD_MODULUS) + fp(0) + g1(1)),
    "coordinate with a dirty pad": (G1ADD, b"\1" + g1(3)[1:] + g1(5)),
    "sum in G2": (G2ADD, g2(3) + g2(5)),
    "sum with the opposite in G2": (G2ADD, g2(3) + negated(g2(3))),
    "sum off the curve in G2": (G2ADD, fp(1) * 4 + g2(1)),
    "MSM of one": (G1MSM, g1(3) + scalar(7)),
    "MSM of two": (G1MSM, g1(3) + scalar(7) + g1(4) + scalar(2)),
    "MSM with a scalar above the order": (G1MSM, g1(3) + scalar(2**256 - 1)),
    "MSM with the order": (G1MSM, g1(3) + scalar(ORDER)),
    "MSM with the identity": (G1MSM, NO_G1 + scalar(7)),
    "MSM outside the subgroup": (G1MSM, STRAY + scalar(1)),
    "MSM of nothing": (G1MSM, b""),
    "MSM in G2": (G2MSM, g2(3) + scalar(7) + g2(9) + scalar(ORDER - 1)),
    "MSM in G2 of the wrong length": (G2MSM, g2(3)),
    "pairing that holds": (PAIRING, g1(6) + g2(1) + negated(g1(2)) + g2(3)),
    "pairing that does not": (PAIRING, g1(6) + g2(1) + negated(g1(2)) + g2(4)),
    "pairing with identities": (PAIRING, NO_G1 + g2(1) + g1(1) + NO_G2),
    "pairing of one": (PAIRING, g1(1) + g2(1)),
    "pairing outside the subgroup": (PAIRING, STRAY + g2(1)),
    "pairing off the curve": (PAIRING, fp(1) * 2 + g2(1)),
    "pairing of nothing": (PAIRING, b""),
    "pairing cut short": (PAIRING, g1(1) + g2(1)[:-1]),
    "map to G1": (MAP_G1, fp(7)),
    "map of zero to G1": (MAP_G1, fp(0)),
    "map to G1 not reduced": (MAP_G1, fp(FIELD_MODULUS)),
    "map to G2": (MAP_G2, fp(7) + fp(9)),
    "map to G2 not reduced": (MAP_G2, fp(7) + fp(FIELD_MODULUS)),
    "map to G2 of the wrong length": (MAP_G2, fp(7)),
}


@dataclass
class Frame:
    """As much of a computation as a precompile touches."""

    data: bytes
    gas: int = 10**9
    output: bytes = b""
    spent: int = 0
    msg: SimpleNamespace = field(init=False)

    def __post_init__(self) -> None:
        self.msg = SimpleNamespace(data=self.data)

    def consume_gas(self, amount: int, reason: str) -> None:
        if amount > self.gas - self.spent:
            raise OutOfGas(reason)
        self.spent += amount


def outcome(table: dict[bytes, object], number: int, frame: Frame) -> tuple[bytes | str, int]:
    try:
        table[number.to_bytes(20, "big")](frame)  # type: ignore[operator]
    except VMError as error:
        return type(error).__name__, frame.spent
    return frame.output, frame.spent


@pytest.mark.parametrize("case", CASES)
def test_output_gas_and_refusal_equal_py_evms(case: str) -> None:
    number, data = CASES[case]
    ours, theirs = (outcome(table, number, Frame(data)) for table in (BLS_PRECOMPILES, PRAGUE_PRECOMPILES))
    assert ours == theirs


@pytest.mark.parametrize("case", ["sum in G1", "MSM of two", "MSM in G2", "pairing that holds", "map to G1", "map to G2"])
def test_gas_is_taken_before_any_work(case: str) -> None:
    number, data = CASES[case]
    full = Frame(data)
    outcome(BLS_PRECOMPILES, number, full)
    assert outcome(BLS_PRECOMPILES, number, Frame(data, gas=full.spent - 1)) == ("OutOfGas", 0)


@settings(max_examples=200)
@given(st.integers(0x0B, 0x11), st.binary(max_size=800))
def test_no_input_raises_anything_but_a_refusal(number: int, data: bytes) -> None:
    answer, _ = outcome(BLS_PRECOMPILES, number, Frame(data))
    assert isinstance(answer, (bytes, str))


@settings(max_examples=60)
@given(st.sampled_from(sorted(CASES)), st.data())
def test_one_changed_byte_raises_nothing_but_a_refusal(case: str, data: st.DataObject) -> None:
    number, valid = CASES[case]
    changed = bytearray(valid or b"\0")
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    answer, _ = outcome(BLS_PRECOMPILES, number, Frame(bytes(changed)))
    assert isinstance(answer, (bytes, str))
