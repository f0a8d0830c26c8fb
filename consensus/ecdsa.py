"""secp256k1 signatures over 32-byte digests, as Ethereum's ecrecover takes them: r || s || v, 65 bytes, low s, v 27 or 28."""

from __future__ import annotations

import coincurve

from consensus.codec import keccak

SIGNATURE_BYTES = 65
_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


def address_of(secret: bytes) -> bytes:
    """The 20-byte address of a 32-byte secret."""
    return _address(coincurve.PrivateKey(secret).public_key)


def sign(secret: bytes, digest: bytes) -> bytes:
    """Deterministic (RFC 6979) signature of a 32-byte digest."""
    raw = coincurve.PrivateKey(secret).sign_recoverable(digest, hasher=None)
    return raw[:64] + bytes([27 + raw[64]])


def recover(digest: bytes, signature: bytes) -> bytes | None:
    """The address that signed, or None when the signature is malformed, malleable (high s) or recovers nothing.

    A caller compares it with who *should* have signed; an address by itself proves nothing.
    """
    if len(signature) != SIGNATURE_BYTES or signature[64] not in (27, 28):
        return None
    if int.from_bytes(signature[32:64], "big") > _HALF_ORDER:
        return None
    try:
        key = coincurve.PublicKey.from_signature_and_message(signature[:64] + bytes([signature[64] - 27]), digest, hasher=None)
    except ValueError:
        return None
    except Exception as error:
        if type(error) is not Exception:
            raise
        return None
    return _address(key)


def _address(key: coincurve.PublicKey) -> bytes:
    return keccak(key.format(compressed=False)[1:])[12:]
