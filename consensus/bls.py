"""BLS signatures over BLS12-381, the only file that names a curve: keys, signatures, aggregates, proofs of possession.

Ciphersuite BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_ of draft-irtf-cfrg-bls-signature-05: keys in G1 (48 bytes
compressed), signatures in G2 (96 bytes compressed), hashing to the curve by RFC 9380. Points are checked once, when
they are decoded, and the decoded points are cached, so a known key costs nothing the second time.

Threads: arkworks lets go of the GIL in the pairing and nowhere else (measured on 2 cores, arkworks 0.5.0). Signing takes
0.8 ms (hash to curve and one multiplication) and holds it: two threads sign no faster than one, and a loop beside a
signing thread stalls for 5 ms and more, the interpreter's switch interval, so sign on the event loop. Verification takes
1.5 ms, 1.1 ms where the message's hash is cached: two threads do nearly twice the work, and a loop beside them stalls for
about 1 ms. One verification is hardly worth the hop; runs of them, and `find_invalid` with bad ones, belong in a thread.
Multiplication by a secret does not claim to take constant time.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

from py_arkworks_bls12381 import GT, G1Point, G2Point, Scalar

SIGNATURE_DST = b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_"
"""Domain separation of signed messages."""
POSSESSION_DST = b"BLS_POP_BLS12381G2_XMD:SHA-256_SSWU_RO_POP_"
"""Domain separation of proofs of possession: a signature never passes for a proof, nor a proof for a signature."""
KEY_BYTES = 48
SIGNATURE_BYTES = 96
KEY_EVM_BYTES = 128
"""EIP-2537: x, y, each 48 bytes big-endian behind 16 zero bytes."""
SIGNATURE_EVM_BYTES = 256
"""EIP-2537: x.c0, x.c1, y.c0, y.c1, each 48 bytes big-endian behind 16 zero bytes."""
ORDER = 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001
"""r, the order of both groups; a secret key is 1 <= secret < r."""
SEED_MIN_BYTES = 32

KeyPoint: TypeAlias = G1Point
"""A decoded public key, immutable; opaque outside this module."""
SignaturePoint: TypeAlias = G2Point
"""A decoded signature, immutable; opaque outside this module."""

_FIELD_BYTES = 48
_FIELD_PADDING = bytes(16)
_KEYGEN_OUTPUT_BYTES = 48  # ceil(1.5 * ceil(log2 r) / 8)
_NEGATED_GENERATOR = -G1Point()  # arkworks' default point is the generator
_NO_KEY = G1Point.identity()
_NO_SIGNATURE = G2Point.identity()


class InvalidPoint(ValueError):
    """Bytes that are no valid key or signature: length, flags, range, curve, subgroup, or the point at infinity."""


# --- secrets ---------------------------------------------------------------------------------------------------------


def secret_from_seed(seed: bytes) -> int:
    """KeyGen of the BLS draft (section 2.3), which is EIP-2333's master key: the same seed, the same secret.

    The seed is at least 32 bytes from a good random source. Raises ValueError for a shorter one.
    """
    if len(seed) < SEED_MIN_BYTES:
        raise ValueError(f"a seed has at least {SEED_MIN_BYTES} bytes, not {len(seed)}")
    salt = b"BLS-SIG-KEYGEN-SALT-"
    secret = 0
    while secret == 0:
        salt = hashlib.sha256(salt).digest()
        extracted = hmac.digest(salt, seed + b"\x00", "sha256")
        info = _KEYGEN_OUTPUT_BYTES.to_bytes(2, "big")
        first = hmac.digest(extracted, info + b"\x01", "sha256")
        second = hmac.digest(extracted, first + info + b"\x02", "sha256")
        secret = int.from_bytes((first + second)[:_KEYGEN_OUTPUT_BYTES], "big") % ORDER
    return secret


def check_secret(secret: int) -> None:
    """Raises ValueError, which does not quote the secret, unless 1 <= secret < r."""
    if not 1 <= secret < ORDER:
        raise ValueError("a secret key lies between 1 and the group order")


def _scalar(secret: int) -> Scalar:
    check_secret(secret)
    return Scalar(secret)


def public_key(secret: int) -> bytes:
    """The 48-byte compressed key of a secret. Raises ValueError for a secret out of range."""
    return (G1Point() * _scalar(secret)).to_compressed_bytes()


# --- decoding: the only way from bytes to a point ---------------------------------------------------------------------


@lru_cache(maxsize=1024)  # the keys of three epochs of 150 operators, and room
def parse_key(key: bytes) -> KeyPoint:
    """The point of a 48-byte compressed key. Raises InvalidPoint for anything that is not the encoding of a usable key."""
    if len(key) != KEY_BYTES:
        raise InvalidPoint(f"a key has {KEY_BYTES} bytes, not {len(key)}")
    try:
        point = G1Point.from_compressed_bytes(key)
    except ValueError as error:
        raise InvalidPoint("not a point of the key group") from error
    # arkworks takes any bytes behind the infinity flag for infinity; those end here as well.
    if point == _NO_KEY:
        raise InvalidPoint("the key is the point at infinity")
    return point


@lru_cache(maxsize=1024)  # each signature is decoded to be checked and again to be aggregated, soon after
def parse_signature(signature: bytes) -> SignaturePoint:
    """The point of a 96-byte compressed signature. Raises InvalidPoint for anything that no secret can have signed."""
    if len(signature) != SIGNATURE_BYTES:
        raise InvalidPoint(f"a signature has {SIGNATURE_BYTES} bytes, not {len(signature)}")
    try:
        point = G2Point.from_compressed_bytes(signature)
    except ValueError as error:
        raise InvalidPoint("not a point of the signature group") from error
    if point == _NO_SIGNATURE:
        raise InvalidPoint("the signature is the point at infinity")
    return point


@lru_cache(maxsize=256)  # a committee signs the same digest: hash it to the curve once
def _hash_to_curve(message: bytes, dst: bytes) -> SignaturePoint:
    return G2Point.hash_to_curve(message, dst)


# --- signing and verifying --------------------------------------------------------------------------------------------


def _sign(secret: int, message: bytes, dst: bytes) -> bytes:
    scalar = _scalar(secret)
    return (_hash_to_curve(message, dst) * scalar).to_compressed_bytes()


def _holds(key: KeyPoint, hashed: SignaturePoint, signature: SignaturePoint) -> bool:
    """e(key, H(message)) == e(generator, signature), as one product of two pairings."""
    return GT.pairing_check([_NEGATED_GENERATOR, key], [signature, hashed])


def _verify(key: bytes, message: bytes, signature: bytes, dst: bytes) -> bool:
    try:
        key_point, signature_point = parse_key(key), parse_signature(signature)
    except InvalidPoint:
        return False
    return _holds(key_point, _hash_to_curve(message, dst), signature_point)


def _sum_keys(points: Sequence[KeyPoint]) -> KeyPoint:
    total = _NO_KEY
    for point in points:
        total = total + point
    return total


def _sum_signatures(points: Sequence[SignaturePoint]) -> SignaturePoint:
    total = _NO_SIGNATURE
    for point in points:
        total = total + point
    return total


def sign(secret: int, message: bytes) -> bytes:
    """The 96-byte signature of a message, always the same for the same input. Raises ValueError for a secret out of range."""
    return _sign(secret, message, SIGNATURE_DST)


def verify(key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the owner of `key` signed `message`. A malformed key or signature is a no, never an exception."""
    return _verify(key, message, signature, SIGNATURE_DST)


def aggregate(signatures: Sequence[bytes]) -> bytes:
    """The sum of signatures, 96 bytes, in whatever order they come.

    Raises InvalidPoint for none at all, for a malformed one, and for signatures that cancel each other out.
    The parts are decoded, not verified: verify the result, or use `find_invalid`.
    """
    if not signatures:
        raise InvalidPoint("an aggregate of no signatures")
    total = _sum_signatures([parse_signature(signature) for signature in signatures])
    if total == _NO_SIGNATURE:
        raise InvalidPoint("the signatures cancel each other out")
    return total.to_compressed_bytes()


def fast_aggregate_verify(keys: Sequence[bytes], message: bytes, signature: bytes) -> bool:
    """Whether the owners of all `keys` signed the same `message`. No keys, or any malformed input, is a no.

    Sound only for keys whose possession was proved. A key that is listed twice counts twice, as on chain: who must be
    distinct, and who is entitled to sign, is for the caller to check.
    """
    try:
        key_point, signature_point = _sum_keys([parse_key(key) for key in keys]), parse_signature(signature)
    except InvalidPoint:
        return False
    if key_point == _NO_KEY:
        return False
    return _holds(key_point, _hash_to_curve(message, SIGNATURE_DST), signature_point)


def find_invalid(items: Sequence[tuple[bytes, bytes]], message: bytes) -> list[int]:
    """Indices, ascending, of the (key, signature) pairs that spoil the aggregate over `message`; [] means none does.

    Checks the sum once and halves it only when it fails: one pairing check when all is well, about 2 * bad * log2(n)
    otherwise. Two promises: a valid signature is never blamed, and all the pairs left unblamed verify together as one
    aggregate. Owners of several keys can shift a term from one of their signatures to another so that only their sum is
    right; such a group passes as a whole, because together it has signed. So aggregate *all* that is left: a chosen part
    of it has to be verified anew.

    All pairs are over the same message, and there is no variant for several. Over one message the sum proves that the
    owners together signed *that*. Over different ones a shifted term would let a sum pass although nobody signed any of
    the messages as claimed, and each would then be acted on by itself; that takes a random weight on every
    signature, drawn after all of them are known.
    """
    invalid: list[int] = []
    points: dict[int, tuple[KeyPoint, SignaturePoint]] = {}
    for index, (key, signature) in enumerate(items):
        try:
            points[index] = parse_key(key), parse_signature(signature)
        except InvalidPoint:
            invalid.append(index)
    hashed = _hash_to_curve(message, SIGNATURE_DST)

    def hold(indices: Sequence[int]) -> bool:
        # Infinity is no reason to refuse here: of two keys that cancel out, both signatures may be good.
        keys = _sum_keys([points[index][0] for index in indices])
        return _holds(keys, hashed, _sum_signatures([points[index][1] for index in indices]))

    def search(indices: Sequence[int], known_bad: bool) -> list[int]:
        if not known_bad and hold(indices):
            return []
        if len(indices) == 1:
            return list(indices)
        middle = len(indices) // 2
        left = search(indices[:middle], False)
        # The equation is linear: a sum that fails with a left half that holds has a right half that fails.
        return left + search(indices[middle:], not left)

    if points:
        invalid += search(list(points), False)
    return sorted(invalid)


# --- possession -------------------------------------------------------------------------------------------------------


def prove_possession(secret: int, statement: bytes) -> bytes:
    """Proof, 96 bytes, that the signer knows the secret of its key.

    The statement has to name the key: the standard one is the key's 48 bytes, ours the EIP-712 `Possession` digest. Over
    a statement that does not, another's proof could be worked into one for a rogue key.
    """
    return _sign(secret, statement, POSSESSION_DST)


def verify_possession(key: bytes, statement: bytes, proof: bytes) -> bool:
    """Whether `proof` shows possession of `key` over a statement that names it. Malformed input is a no."""
    return _verify(key, statement, proof, POSSESSION_DST)


# --- EIP-2537, as the contracts take points ---------------------------------------------------------------------------


def _pad(coordinates: bytes) -> bytes:
    fields = range(0, len(coordinates), _FIELD_BYTES)
    return b"".join(_FIELD_PADDING + coordinates[start : start + _FIELD_BYTES] for start in fields)


def _unpad(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise InvalidPoint(f"the EVM encoding has {size} bytes, not {len(data)}")
    words = [data[start : start + 64] for start in range(0, size, 64)]
    if any(not word.startswith(_FIELD_PADDING) for word in words):
        raise InvalidPoint("a coordinate is not padded with 16 zero bytes")
    return b"".join(word[16:] for word in words)


def key_to_evm(key: bytes) -> bytes:
    """A 48-byte key as 128 bytes. Raises InvalidPoint."""
    return _pad(parse_key(key).to_xy_bytes_be())


def key_from_evm(data: bytes) -> bytes:
    """The 48-byte key of its 128 bytes. Raises InvalidPoint for all that `parse_key` would refuse."""
    coordinates = _unpad(data, KEY_EVM_BYTES)
    try:
        point = G1Point.from_xy_bytes_be(coordinates)
    except ValueError as error:
        raise InvalidPoint("not a point of the key group") from error
    if point == _NO_KEY:
        raise InvalidPoint("the key is the point at infinity")
    return point.to_compressed_bytes()


def signature_to_evm(signature: bytes) -> bytes:
    """A 96-byte signature as 256 bytes. Raises InvalidPoint."""
    return _pad(parse_signature(signature).to_xy_bytes_be())


def signature_from_evm(data: bytes) -> bytes:
    """The 96-byte signature of its 256 bytes. Raises InvalidPoint for all that `parse_signature` would refuse."""
    coordinates = _unpad(data, SIGNATURE_EVM_BYTES)
    try:
        point = G2Point.from_xy_bytes_be(coordinates)
    except ValueError as error:
        raise InvalidPoint("not a point of the signature group") from error
    if point == _NO_SIGNATURE:
        raise InvalidPoint("the signature is the point at infinity")
    return point.to_compressed_bytes()
