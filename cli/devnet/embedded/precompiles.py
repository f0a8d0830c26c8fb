"""The EIP-2537 precompiles (0x0b to 0x11) on arkworks: py-evm's gas and refusals, without its seconds of pure Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

from eth.abc import ComputationAPI
from eth.exceptions import VMError
from eth.precompiles.bls12_381 import constants
from py_arkworks_bls12381 import GT, G1Point, G2Point, Scalar

Precompile = Callable[[ComputationAPI], None]
_Point = TypeVar("_Point", G1Point, G2Point)

FIELD_MODULUS: Final = 0x1A0111EA397FE69A4B1BA7B6434BACD764774B84F38512BF6730D2A0F6B0F6241EABFFFEB153FFFFB9FEFFFFFFFFAAAB
_MODULUS_BYTES: Final = FIELD_MODULUS.to_bytes(48, "big")
_PAD: Final = bytes(16)  # a field element is 48 bytes, right-aligned in 64

FP: Final = 64
G1: Final = 2 * FP
G2: Final = 4 * FP
SCALAR: Final = 32

# EIP-2537, "Gas schedule": the pairing's two prices are the only ones py-evm does not name.
PAIRING_BASE_GAS: Final = 37_700
PAIRING_PAIR_GAS: Final = 32_600


def _field_element(data: bytes) -> bytes:
    """64 bytes as the precompile takes them to the 48 of the number, which must be below the modulus."""
    if data[:16] != _PAD or data[16:] >= _MODULUS_BYTES:
        raise VMError("field element is not below the modulus")
    return data[16:]


def _g1(data: bytes, in_subgroup: bool) -> G1Point:
    x, y = _field_element(data[:FP]), _field_element(data[FP:G1])
    if not any(x) and not any(y):
        return G1Point.identity()
    xi, yi = int.from_bytes(x, "big"), int.from_bytes(y, "big")
    if (yi * yi - xi * xi * xi - 4) % FIELD_MODULUS:
        raise VMError("G1 point is not on the curve")
    point = G1Point.from_xy_bytes_unchecked_be(x + y)
    if in_subgroup and not point.is_in_subgroup():
        raise VMError("G1 point is not in the subgroup")
    return point


def _g2(data: bytes, in_subgroup: bool) -> G2Point:
    parts = [_field_element(data[at : at + FP]) for at in range(0, G2, FP)]  # x.c0, x.c1, y.c0, y.c1
    if not any(any(part) for part in parts):
        return G2Point.identity()
    x0, x1, y0, y1 = (int.from_bytes(part, "big") for part in parts)
    s0, s1 = x0 * x0 - x1 * x1, 2 * x0 * x1  # x squared, with u * u = -1
    c0, c1 = s0 * x0 - s1 * x1 + 4, s0 * x1 + s1 * x0 + 4  # x cubed + 4 (1 + u)
    if (y0 * y0 - y1 * y1 - c0) % FIELD_MODULUS or (2 * y0 * y1 - c1) % FIELD_MODULUS:
        raise VMError("G2 point is not on the curve")
    point = G2Point.from_xy_bytes_unchecked_be(b"".join(parts))
    if in_subgroup and not point.is_in_subgroup():
        raise VMError("G2 point is not in the subgroup")
    return point


def _padded(raw: bytes) -> bytes:
    return b"".join(_PAD + raw[at : at + 48] for at in range(0, len(raw), 48))


def _g1_bytes(point: G1Point) -> bytes:
    return bytes(G1) if point == G1Point.identity() else _padded(bytes(point.to_xy_bytes_be()))


def _g2_bytes(point: G2Point) -> bytes:
    return bytes(G2) if point == G2Point.identity() else _padded(bytes(point.to_xy_bytes_be()))


def _input(computation: ComputationAPI, length: int, name: str) -> bytes:
    data = bytes(computation.msg.data)
    if len(data) != length:
        raise VMError(f"{name} takes {length} bytes, not {len(data)}")
    return data


def _items(computation: ComputationAPI, width: int, name: str) -> list[bytes]:
    data = bytes(computation.msg.data)
    if not data or len(data) % width:
        raise VMError(f"{name} takes a positive multiple of {width} bytes, not {len(data)}")
    return [data[at : at + width] for at in range(0, len(data), width)]


def g1_add(computation: ComputationAPI) -> None:
    """0x0b: the sum of two curve points (no subgroup check)."""
    data = _input(computation, 2 * G1, "G1ADD")
    computation.consume_gas(constants.BLS12_G1_ADD_GAS, "G1ADD")
    computation.output = _g1_bytes(_g1(data[:G1], False) + _g1(data[G1:], False))


def g2_add(computation: ComputationAPI) -> None:
    """0x0d: the sum of two twist points (no subgroup check)."""
    data = _input(computation, 2 * G2, "G2ADD")
    computation.consume_gas(constants.BLS12_G2_ADD_GAS, "G2ADD")
    computation.output = _g2_bytes(_g2(data[:G2], False) + _g2(data[G2:], False))


def _msm_gas(count: int, unit: int, discounts: Sequence[int], last: int) -> int:
    discount = discounts[count - 1] if count <= len(discounts) else last
    return count * unit * discount // constants.MSM_MULTIPLIER


def _terms(items: Iterable[bytes], decode: Callable[[bytes, bool], _Point]) -> tuple[list[_Point], list[Scalar]]:
    points, scalars = [], []
    for item in items:
        points.append(decode(item[:-SCALAR], True))
        scalars.append(Scalar.from_be_bytes_mod_order(item[-SCALAR:]))
    return points, scalars


def g1_msm(computation: ComputationAPI) -> None:
    """0x0c: the sum of scalar * point over G1."""
    items = _items(computation, G1 + SCALAR, "G1MSM")
    gas = _msm_gas(len(items), constants.BLS12_G1_MSM_GAS, constants.G1_MSM_DISCOUNTS, constants.G1_MSM_MAX_DISCOUNT)
    computation.consume_gas(gas, "G1MSM")
    computation.output = _g1_bytes(G1Point.multiexp_unchecked(*_terms(items, _g1)))


def g2_msm(computation: ComputationAPI) -> None:
    """0x0e: the sum of scalar * point over G2."""
    items = _items(computation, G2 + SCALAR, "G2MSM")
    gas = _msm_gas(len(items), constants.BLS12_G2_MSM_GAS, constants.G2_MSM_DISCOUNTS, constants.G2_MSM_MAX_DISCOUNT)
    computation.consume_gas(gas, "G2MSM")
    computation.output = _g2_bytes(G2Point.multiexp_unchecked(*_terms(items, _g2)))


def pairing_check(computation: ComputationAPI) -> None:
    """0x0f: 1 when the product of the pairings is the identity, else 0, as 32 bytes."""
    items = _items(computation, G1 + G2, "PAIRING_CHECK")
    computation.consume_gas(PAIRING_PAIR_GAS * len(items) + PAIRING_BASE_GAS, "PAIRING_CHECK")
    lefts, rights = [], []
    for item in items:
        left, right = _g1(item[:G1], True), _g2(item[G1:], True)
        # A pair with the identity contributes the identity; arkworks is asked about the others only.
        if left != G1Point.identity() and right != G2Point.identity():
            lefts.append(left)
            rights.append(right)
    holds = not lefts or GT.pairing_check(lefts, rights)
    computation.output = int(holds).to_bytes(32, "big")


def map_fp_to_g1(computation: ComputationAPI) -> None:
    """0x10: a field element to a point of G1 (RFC 9380 SSWU, cofactor cleared)."""
    data = _input(computation, FP, "MAP_FP_TO_G1")
    computation.consume_gas(constants.BLS12_MAP_FP_G1_GAS, "MAP_FP_TO_G1")
    computation.output = _g1_bytes(G1Point.map_from_fp_be(_field_element(data)))


def map_fp2_to_g2(computation: ComputationAPI) -> None:
    """0x11: an element of the quadratic extension to a point of G2 (RFC 9380 SSWU, cofactor cleared)."""
    data = _input(computation, 2 * FP, "MAP_FP2_TO_G2")
    computation.consume_gas(constants.BLS12_MAP_FP2_G2_GAS, "MAP_FP2_TO_G2")
    computation.output = _g2_bytes(G2Point.map_from_fp2_be(_field_element(data[:FP]) + _field_element(data[FP:])))


BLS_PRECOMPILES: Final[dict[bytes, Precompile]] = {
    number.to_bytes(20, "big"): function
    for number, function in (
        (0x0B, g1_add),
        (0x0C, g1_msm),
        (0x0D, g2_add),
        (0x0E, g2_msm),
        (0x0F, pairing_check),
        (0x10, map_fp_to_g1),
        (0x11, map_fp2_to_g2),
    )
}
"""Address to function, as a py-evm computation class takes them."""
