"""BLS against py-ecc, the slow reference: the same bytes, what they mean, and which of many are bad.

`python -m tests.consensus.test_bls` writes tests/golden/bls.json anew, with py-ecc alone.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from py_ecc import optimized_bls12_381
from py_ecc.bls import ciphersuites, g2_primitives

from consensus import bls

GOLDEN = Path(__file__).parents[1] / "golden" / "bls.json"
# py-ecc's own names for bytes would only be in the way here.
Reference: Any = ciphersuites.G2ProofOfPossession
pubkey_to_G1: Any = g2_primitives.pubkey_to_G1
signature_to_G2: Any = g2_primitives.signature_to_G2
curve: Any = optimized_bls12_381
DIGEST = bytes(range(32))
LARGER = 0x20  # the flag of a compressed point for the larger of the two y


def reference_evm(coordinates: list[int]) -> bytes:
    return b"".join(int(value).to_bytes(64, "big") for value in coordinates)


def reference_key_to_evm(key: bytes) -> bytes:
    x, y = curve.normalize(pubkey_to_G1(key))
    return reference_evm([x.n, y.n])


def reference_signature_to_evm(signature: bytes) -> bytes:
    x, y = curve.normalize(signature_to_G2(signature))
    return reference_evm([*x.coeffs, *y.coeffs])


def write_golden() -> None:
    """Inputs chosen here, outputs computed by py-ecc; all bytes as hex, secrets as decimal strings."""
    signers: list[dict[str, str]] = []
    statements = [DIGEST, b"", b"\xff" * 100]
    for number, statement in enumerate(statements):
        seed = bytes([number]) * (32 + number)
        secret = Reference.KeyGen(seed)
        key = Reference.SkToPk(secret)
        signature = Reference.Sign(secret, DIGEST)
        signers.append(
            {
                "seed": seed.hex(),
                "secret": str(secret),
                "key": key.hex(),
                "key_evm": reference_key_to_evm(key).hex(),
                "signature": signature.hex(),
                "signature_evm": reference_signature_to_evm(signature).hex(),
                "statement": statement.hex(),
                "possession": Reference._CoreSign(secret, statement, Reference.POP_TAG).hex(),
                "standard_possession": Reference.PopProve(secret).hex(),
            }
        )
    total = Reference.Aggregate([bytes.fromhex(signer["signature"]) for signer in signers])
    golden = {"message": DIGEST.hex(), "signers": signers, "aggregate": total.hex()}
    GOLDEN.write_text(json.dumps(golden, indent=2) + "\n")


@cache
def golden() -> Any:
    return json.loads(GOLDEN.read_text())


@cache
def committee(size: int) -> tuple[tuple[bytes, bytes], ...]:
    """(key, signature over DIGEST) of so many keepers."""
    secrets = [bls.secret_from_seed(number.to_bytes(32, "big")) for number in range(1, size + 1)]
    return tuple((bls.public_key(secret), bls.sign(secret, DIGEST)) for secret in secrets)


KEY, SIGNATURE = committee(1)[0]


# --- the same bytes as the reference ---------------------------------------------------------------------------------


def test_the_suite_is_the_one_of_the_reference() -> None:
    assert bls.SIGNATURE_DST == Reference.DST
    assert bls.POSSESSION_DST == Reference.POP_TAG


def test_every_golden_byte_is_reproduced() -> None:
    for signer in golden()["signers"]:
        secret = bls.secret_from_seed(bytes.fromhex(signer["seed"]))
        key = bls.public_key(secret)
        signature = bls.sign(secret, bytes.fromhex(golden()["message"]))
        statement = bytes.fromhex(signer["statement"])
        assert str(secret) == signer["secret"]
        assert key.hex() == signer["key"]
        assert signature.hex() == signer["signature"]
        assert bls.prove_possession(secret, statement).hex() == signer["possession"]
        assert bls.prove_possession(secret, key).hex() == signer["standard_possession"]
        assert bls.verify_possession(key, statement, bytes.fromhex(signer["possession"]))
        assert bls.key_to_evm(key).hex() == signer["key_evm"]
        assert bls.signature_to_evm(signature).hex() == signer["signature_evm"]
        assert bls.key_from_evm(bytes.fromhex(signer["key_evm"])) == key
        assert bls.signature_from_evm(bytes.fromhex(signer["signature_evm"])) == signature
    signatures = [bytes.fromhex(signer["signature"]) for signer in golden()["signers"]]
    assert bls.aggregate(signatures).hex() == golden()["aggregate"]


def test_fresh_secrets_give_the_bytes_of_the_reference() -> None:
    chance = random.Random()  # a new draw in every run, shown on failure
    seeds = [chance.randbytes(32) for _ in range(4)]
    messages = [chance.randbytes(length) for length in (32, 32, 0, 200)]
    for seed, message in zip(seeds, messages, strict=True):
        drawn = f"seed {seed.hex()}, message {message.hex()}"
        secret = bls.secret_from_seed(seed)
        assert secret == Reference.KeyGen(seed), drawn
        key = bls.public_key(secret)
        assert key == Reference.SkToPk(secret), drawn
        assert bls.sign(secret, message) == Reference.Sign(secret, message), drawn
        proof = bls.prove_possession(secret, message)
        assert proof == Reference._CoreSign(secret, message, Reference.POP_TAG), drawn


def test_the_reference_accepts_our_aggregate_and_our_proof() -> None:
    keys, signatures = zip(*committee(3), strict=True)
    total = bls.aggregate(signatures)
    assert total == Reference.Aggregate(list(signatures))
    assert Reference.FastAggregateVerify(list(keys), DIGEST, total)
    secret = bls.secret_from_seed((1).to_bytes(32, "big"))
    assert Reference.PopVerify(KEY, bls.prove_possession(secret, KEY))


def test_key_generation_is_that_of_eip_2333() -> None:
    # Test case 0 of https://eips.ethereum.org/EIPS/eip-2333
    seed = bytes.fromhex(
        "c55257c360c07c72029aebc1b53c05ed0362ada38ead3e3e9efa3708e53495531f09a6987599d18264c1e1c92f2cf141630c7a3c4ab7c81b2f001698e7463b04"
    )
    assert bls.secret_from_seed(seed) == 6083874454709270928345386274498605044986640685124978867557563392430687146096


# --- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", [0, -1, bls.ORDER, bls.ORDER + 1, 2**256])
def test_a_secret_out_of_range_is_refused_and_not_quoted(secret: int) -> None:
    uses: list[Callable[[], object]] = [
        lambda: bls.check_secret(secret),
        lambda: bls.public_key(secret),
        lambda: bls.sign(secret, DIGEST),
        lambda: bls.prove_possession(secret, DIGEST),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="between 1 and the group order") as caught:
            use()
        assert str(secret) not in str(caught.value).split()


@pytest.mark.parametrize("secret", [1, bls.ORDER - 1])
def test_the_outermost_secrets_are_good(secret: int) -> None:
    assert bls.verify(bls.public_key(secret), DIGEST, bls.sign(secret, DIGEST))


def test_a_short_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 32 bytes"):
        bls.secret_from_seed(bytes(31))


# --- what a signature means -------------------------------------------------------------------------------------------


def test_a_signature_is_good_for_its_key_and_message_alone() -> None:
    (other_key, other_signature) = committee(2)[1]
    assert bls.verify(KEY, DIGEST, SIGNATURE)
    assert not bls.verify(KEY, DIGEST[::-1], SIGNATURE)
    assert not bls.verify(other_key, DIGEST, SIGNATURE)
    assert not bls.verify(KEY, DIGEST, other_signature)


def test_a_signature_is_no_proof_of_possession_and_a_proof_no_signature() -> None:
    secret = bls.secret_from_seed((1).to_bytes(32, "big"))
    proof = bls.prove_possession(secret, DIGEST)
    assert bls.verify_possession(KEY, DIGEST, proof)
    assert not bls.verify_possession(KEY, DIGEST, SIGNATURE)
    assert not bls.verify(KEY, DIGEST, proof)


def test_an_aggregate_is_good_for_exactly_its_signers() -> None:
    keys, signatures = zip(*committee(5), strict=True)
    total = bls.aggregate(signatures)
    assert bls.fast_aggregate_verify(keys, DIGEST, total)
    assert bls.fast_aggregate_verify(keys[::-1], DIGEST, total)
    assert bls.aggregate(signatures[::-1]) == total
    assert not bls.fast_aggregate_verify(keys[:4], DIGEST, total)
    assert not bls.fast_aggregate_verify([*keys, keys[0]], DIGEST, total)
    assert not bls.fast_aggregate_verify(keys, bytes(32), total)
    assert not bls.fast_aggregate_verify([], DIGEST, total)
    assert not bls.fast_aggregate_verify([*keys[:4], bytes(48)], DIGEST, total)


def negated(point: bytes) -> bytes:
    """-P: the sign bit turned over."""
    return bytes([point[0] ^ LARGER]) + point[1:]


def test_an_empty_aggregate_and_one_that_cancels_out_are_refused() -> None:
    with pytest.raises(bls.InvalidPoint, match="no signatures"):
        bls.aggregate([])
    with pytest.raises(bls.InvalidPoint, match="cancel"):
        bls.aggregate([SIGNATURE, negated(SIGNATURE)])
    with pytest.raises(bls.InvalidPoint):
        bls.aggregate([SIGNATURE, bytes(96)])
    assert not bls.fast_aggregate_verify([KEY, negated(KEY)], DIGEST, SIGNATURE)


# --- rogue keys -------------------------------------------------------------------------------------------------------


def minus(left: bytes, right: bytes) -> bytes:
    return bls.aggregate([left, negated(right)])


def test_a_rogue_key_forges_an_aggregate_but_cannot_prove_possession() -> None:
    victim_secret, known = (bls.secret_from_seed(bytes([number]) * 32) for number in (1, 2))
    victim = bls.public_key(victim_secret)
    rogue = (bls.parse_key(bls.public_key(known)) - bls.parse_key(victim)).to_compressed_bytes()
    # The victim never signed, and yet:
    assert bls.fast_aggregate_verify([victim, rogue], DIGEST, bls.sign(known, DIGEST))

    victim_proof = bls.prove_possession(victim_secret, victim)
    attempts = [bls.prove_possession(known, rogue), victim_proof, minus(bls.prove_possession(known, rogue), victim_proof)]
    assert not any(bls.verify_possession(rogue, rogue, attempt) for attempt in attempts)


def test_a_statement_that_does_not_name_the_key_would_let_a_rogue_key_in() -> None:
    # Why `prove_possession` asks for a statement that names the key.
    victim_secret, known = (bls.secret_from_seed(bytes([number]) * 32) for number in (1, 2))
    rogue = (bls.parse_key(bls.public_key(known)) - bls.parse_key(bls.public_key(victim_secret))).to_compressed_bytes()
    shared = b"I know my secret"
    forged = minus(bls.prove_possession(known, shared), bls.prove_possession(victim_secret, shared))
    assert bls.verify_possession(rogue, shared, forged)


# --- finding the bad ones ---------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_bisection_finds_exactly_the_bad_signatures(data: st.DataObject) -> None:
    items = list(committee(data.draw(st.integers(1, 13))))
    bad = sorted(data.draw(st.sets(st.integers(0, len(items) - 1))))
    wrong = bls.sign(bls.secret_from_seed(b"\x07" * 32), DIGEST)
    for index in bad:
        items[index] = items[index][0], data.draw(st.sampled_from([wrong, negated(items[index][1]), bytes(96), b""]))
    assert bls.find_invalid(items, DIGEST) == bad
    kept = [item for index, item in enumerate(items) if index not in bad]
    if kept:
        keys, signatures = zip(*kept, strict=True)
        assert bls.fast_aggregate_verify(keys, DIGEST, bls.aggregate(signatures))


def test_nothing_to_check_has_nothing_bad() -> None:
    assert bls.find_invalid([], DIGEST) == []


def test_one_pairing_check_is_enough_when_all_signatures_are_good(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = 0
    holds = bls._holds

    def counted(*arguments: Any) -> bool:
        nonlocal checks
        checks += 1
        return holds(*arguments)

    monkeypatch.setattr(bls, "_holds", counted)
    items = list(committee(13))
    assert bls.find_invalid(items, DIGEST) == []
    assert checks == 1
    items[5] = items[5][0], items[6][1]
    assert bls.find_invalid(items, DIGEST) == [5]
    assert checks == 1 + 6  # not 9: a half known to be bad is not checked again


def test_keys_that_cancel_out_do_not_get_good_signatures_blamed() -> None:
    items = [(KEY, SIGNATURE), (negated(KEY), negated(SIGNATURE))]
    assert bls.find_invalid(items, DIGEST) == []
    assert bls.find_invalid([*items, (KEY, negated(SIGNATURE))], DIGEST) == [2]


def test_a_shifted_pair_passes_as_a_whole_and_not_by_halves() -> None:
    # The limit that `find_invalid` states: only the sum of the two is right, so the two are good only together.
    shift = bls.sign(bls.secret_from_seed(b"\x07" * 32), DIGEST)
    (first, first_signature), (second, second_signature) = committee(2)
    shifted = [(first, bls.aggregate([first_signature, shift])), (second, minus(second_signature, shift))]
    assert bls.find_invalid(shifted, DIGEST) == []
    assert bls.fast_aggregate_verify([first, second], DIGEST, bls.aggregate([signature for _, signature in shifted]))
    assert bls.find_invalid(shifted[:1], DIGEST) == [0]
    assert bls.find_invalid(shifted[1:], DIGEST) == [0]


if __name__ == "__main__":
    write_golden()
