"""Everything that is not a key or a signature is refused, from the wire and from the chain, and nothing of it crashes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from py_arkworks_bls12381 import G1Point, G2Point
from py_ecc.bls import ciphersuites, g2_primitives

from consensus import bls

# py-ecc's own names for bytes would only be in the way here.
Reference: Any = ciphersuites.G2ProofOfPossession
pubkey_to_G1: Any = g2_primitives.pubkey_to_G1
signature_to_G2: Any = g2_primitives.signature_to_G2
P = 0x1A0111EA397FE69A4B1BA7B6434BACD764774B84F38512BF6730D2A0F6B0F6241EABFFFEB153FFFFB9FEFFFFFFFFAAAB  # the field's modulus
DIGEST = bytes(range(32))
COMPRESSED, INFINITE, LARGER = 0x80, 0x40, 0x20  # the three flag bits of a compressed point

SECRET = bls.secret_from_seed(bytes(32))
KEY, SIGNATURE = bls.public_key(SECRET), bls.sign(SECRET, DIGEST)
KEY_EVM, SIGNATURE_EVM = bls.key_to_evm(KEY), bls.signature_to_evm(SIGNATURE)


def g1_from_x(x: int) -> bytes:
    return bytes([COMPRESSED | x >> 376]) + (x % 2**376).to_bytes(47, "big")


def g2_from_x(c0: int, c1: int) -> bytes:
    return g1_from_x(c1) + c0.to_bytes(48, "big")


def found(encode: Callable[[int], bytes], decode: Callable[[bytes], G1Point | G2Point], on_curve: bool) -> bytes:
    """The first small x with no point on the curve, or with one that is outside the subgroup."""
    for x in range(1, 1000):
        try:
            point = decode(encode(x))
        except ValueError:
            if not on_curve:
                return encode(x)
            continue
        if on_curve and not point.is_in_subgroup():
            return encode(x)
    raise AssertionError("a search of a thousand x finds both")


G1_OFF_CURVE = found(g1_from_x, G1Point.from_compressed_bytes_unchecked, on_curve=False)
G1_OUTSIDE = found(g1_from_x, G1Point.from_compressed_bytes_unchecked, on_curve=True)
G2_OFF_CURVE = found(lambda x: g2_from_x(x, 1), G2Point.from_compressed_bytes_unchecked, on_curve=False)
G2_OUTSIDE = found(lambda x: g2_from_x(x, 1), G2Point.from_compressed_bytes_unchecked, on_curve=True)
G1_OUTSIDE_POINT = G1Point.from_compressed_bytes_unchecked(G1_OUTSIDE)
G2_OUTSIDE_POINT = G2Point.from_compressed_bytes_unchecked(G2_OUTSIDE)
# A good point plus a bad one: nothing in its form gives it away.
G1_SHIFTED = (bls.parse_key(KEY) + G1_OUTSIDE_POINT).to_compressed_bytes()
G2_SHIFTED = (bls.parse_signature(SIGNATURE) + G2_OUTSIDE_POINT).to_compressed_bytes()


def flagged(point: bytes, flags: int) -> bytes:
    return bytes([point[0] ^ flags]) + point[1:]


def malformed(good: bytes, off_curve: bytes, outside: bytes, shifted: bytes) -> dict[str, bytes]:
    size = len(good)
    return {
        "empty": b"",
        "short": good[:-1],
        "long": good + b"\0",
        "twice": good * 2,
        "infinity": bytes([COMPRESSED | INFINITE]) + bytes(size - 1),
        "infinity with the sign bit": bytes([COMPRESSED | INFINITE | LARGER]) + bytes(size - 1),
        "infinity with a tail": bytes([COMPRESSED | INFINITE]) + bytes(size - 2) + b"\1",
        "infinity without the compressed bit": bytes([INFINITE]) + bytes(size - 1),
        "infinity flag on a point": flagged(good, INFINITE),
        "no compressed bit": flagged(good, COMPRESSED),
        "zeros": bytes(size),
        "ones": b"\xff" * size,
        "off the curve": off_curve,
        "outside the subgroup": outside,
        "shifted out of the subgroup": shifted,
    }


BAD_KEYS = malformed(KEY, G1_OFF_CURVE, G1_OUTSIDE, G1_SHIFTED) | {
    "x is p": g1_from_x(P),
    "x is p plus the x of a point": g1_from_x(P + int.from_bytes(G1_OUTSIDE, "big") % 2**376),
    "a signature": SIGNATURE,
    "uncompressed": bls.parse_key(KEY).to_xy_bytes_be(),
}
BAD_SIGNATURES = malformed(SIGNATURE, G2_OFF_CURVE, G2_OUTSIDE, G2_SHIFTED) | {
    "c0 is p": SIGNATURE[:48] + P.to_bytes(48, "big"),
    "c1 is p": g1_from_x(P) + SIGNATURE[48:],
    "flag in the second half": SIGNATURE[:48] + flagged(SIGNATURE[48:], COMPRESSED),
    "sign flag in the second half": SIGNATURE[:48] + flagged(SIGNATURE[48:], LARGER),
    "a key": KEY,
    "two keys": KEY + KEY,
    "uncompressed": bls.parse_signature(SIGNATURE).to_xy_bytes_be(),
}


def replaced(data: bytes, word: int, value: bytes) -> bytes:
    return data[: 64 * word] + value + data[64 * (word + 1) :]


def malformed_evm(good: bytes, outside: bytes) -> dict[str, bytes]:
    cases = {
        "empty": b"",
        "short": good[:-1],
        "long": good + b"\0",
        "infinity": bytes(len(good)),
        "outside the subgroup": outside,
        "off the curve": good[:-1] + bytes([good[-1] ^ 1]),
    }
    for word in range(len(good) // 64):
        value = good[64 * word : 64 * (word + 1)]
        number = int.from_bytes(value, "big")
        cases[f"word {word} plus p"] = replaced(good, word, (number + P).to_bytes(64, "big"))
        cases[f"word {word} is p"] = replaced(good, word, P.to_bytes(64, "big"))
        cases[f"word {word} not padded"] = replaced(good, word, b"\1" + value[1:])
        cases[f"word {word} not padded at the end"] = replaced(good, word, value[:15] + b"\1" + value[16:])
        for flag in (COMPRESSED, INFINITE, LARGER):
            cases[f"word {word} with flag {flag:#x}"] = replaced(good, word, value[:16] + flagged(value[16:], flag))
    return cases


BAD_KEYS_EVM = malformed_evm(KEY_EVM, bls._pad(G1_OUTSIDE_POINT.to_xy_bytes_be())) | {"a signature": SIGNATURE_EVM}
BAD_SIGNATURES_EVM = malformed_evm(SIGNATURE_EVM, bls._pad(G2_OUTSIDE_POINT.to_xy_bytes_be())) | {"a key": KEY_EVM}


def test_the_points_of_the_tables_are_what_they_claim_to_be() -> None:
    for encoded, decode in ((G1_OUTSIDE, pubkey_to_G1), (G1_SHIFTED, pubkey_to_G1), (G2_OUTSIDE, signature_to_G2)):
        decode(encoded)  # the reference finds them on the curve
    for encoded, decode in ((G1_OFF_CURVE, pubkey_to_G1), (G2_OFF_CURVE, signature_to_G2)):
        with pytest.raises(ValueError):
            decode(encoded)
    assert not Reference.KeyValidate(G1_OUTSIDE)
    assert not Reference.KeyValidate(G1_SHIFTED)


@pytest.mark.parametrize("bad", BAD_KEYS.values(), ids=BAD_KEYS.keys())
def test_a_malformed_key_is_refused(bad: bytes) -> None:
    with pytest.raises(bls.InvalidPoint):
        bls.parse_key(bad)
    with pytest.raises(bls.InvalidPoint):
        bls.key_to_evm(bad)
    assert not bls.verify(bad, DIGEST, SIGNATURE)
    assert not bls.verify_possession(bad, DIGEST, SIGNATURE)
    assert not bls.fast_aggregate_verify([bad], DIGEST, SIGNATURE)
    assert not bls.fast_aggregate_verify([KEY, bad], DIGEST, SIGNATURE)
    assert bls.find_invalid([(KEY, SIGNATURE), (bad, SIGNATURE)], DIGEST) == [1]


@pytest.mark.parametrize("bad", BAD_SIGNATURES.values(), ids=BAD_SIGNATURES.keys())
def test_a_malformed_signature_is_refused(bad: bytes) -> None:
    with pytest.raises(bls.InvalidPoint):
        bls.parse_signature(bad)
    with pytest.raises(bls.InvalidPoint):
        bls.signature_to_evm(bad)
    with pytest.raises(bls.InvalidPoint):
        bls.aggregate([SIGNATURE, bad])
    assert not bls.verify(KEY, DIGEST, bad)
    assert not bls.verify_possession(KEY, DIGEST, bad)
    assert not bls.fast_aggregate_verify([KEY], DIGEST, bad)
    assert bls.find_invalid([(KEY, bad), (KEY, SIGNATURE)], DIGEST) == [0]


@pytest.mark.parametrize("bad", BAD_KEYS_EVM.values(), ids=BAD_KEYS_EVM.keys())
def test_a_malformed_key_from_the_chain_is_refused(bad: bytes) -> None:
    with pytest.raises(bls.InvalidPoint):
        bls.key_from_evm(bad)


@pytest.mark.parametrize("bad", BAD_SIGNATURES_EVM.values(), ids=BAD_SIGNATURES_EVM.keys())
def test_a_malformed_signature_from_the_chain_is_refused(bad: bytes) -> None:
    with pytest.raises(bls.InvalidPoint):
        bls.signature_from_evm(bad)


def test_the_other_sign_is_a_point_but_another_one() -> None:
    key, signature = flagged(KEY, LARGER), flagged(SIGNATURE, LARGER)
    assert not bls.verify(key, DIGEST, SIGNATURE)
    assert not bls.verify(KEY, DIGEST, signature)
    assert bls.verify(key, DIGEST, signature)


# --- any bytes --------------------------------------------------------------------------------------------------------


def near(good: bytes) -> st.SearchStrategy[bytes]:
    """Bytes that start from a good encoding, or at least look like one: length and flags right, the rest anything."""
    size = len(good)
    patched = st.builds(
        lambda at, patch: (good[:at] + patch + good[at + len(patch) :])[:size],
        st.integers(0, size - 1),
        st.binary(min_size=1, max_size=3),
    )
    plausible = st.binary(min_size=size, max_size=size).map(lambda raw: bytes([raw[0] % 0x1A | COMPRESSED]) + raw[1:])
    return st.one_of(st.binary(max_size=size + 2), st.binary(min_size=size, max_size=size), patched, plausible, st.just(good))


def accepted_is_canonical(decode: Callable[[bytes], bytes], encode: Callable[[bytes], bytes], data: bytes) -> None:
    try:
        decoded = decode(data)
    except bls.InvalidPoint:
        return
    assert encode(decoded) == data


@settings(deadline=None, max_examples=300)
@given(key=near(KEY), signature=near(SIGNATURE))
def test_whatever_bytes_come_they_are_decoded_to_the_same_bytes_or_refused(key: bytes, signature: bytes) -> None:
    accepted_is_canonical(lambda data: bls.parse_key(data).to_compressed_bytes(), bytes, key)
    accepted_is_canonical(lambda data: bls.parse_signature(data).to_compressed_bytes(), bytes, signature)
    accepted_is_canonical(bls.key_to_evm, bls.key_from_evm, key)
    accepted_is_canonical(bls.signature_to_evm, bls.signature_from_evm, signature)


@settings(deadline=None, max_examples=300)
@given(key=near(KEY_EVM), signature=near(SIGNATURE_EVM))
def test_whatever_bytes_the_chain_gives_they_are_decoded_to_the_same_bytes_or_refused(key: bytes, signature: bytes) -> None:
    accepted_is_canonical(bls.key_from_evm, bls.key_to_evm, key)
    accepted_is_canonical(bls.signature_from_evm, bls.signature_to_evm, signature)


@settings(deadline=None, max_examples=200)
@given(key=near(KEY), message=st.one_of(st.just(DIGEST), st.binary(max_size=64)), signature=near(SIGNATURE))
def test_whatever_bytes_come_verification_answers(key: bytes, message: bytes, signature: bytes) -> None:
    good = (key, message, signature) == (KEY, DIGEST, SIGNATURE)
    assert bls.verify(key, message, signature) is good
    assert bls.fast_aggregate_verify([key], message, signature) is good
    assert bls.find_invalid([(key, signature)], message) == ([] if good else [0])
    assert bls.verify_possession(key, message, signature) is False
