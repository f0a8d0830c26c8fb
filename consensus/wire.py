"""The wire's own: strict, versioned MessagePack, and the integers of contracts, which end at 256 bits and not at 64."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from consensus import codec
from consensus.errors import Reject

VERSION = 1

S = TypeVar("S", bound="Wire")


class Uint256(int):
    """A contract's integer: 0 .. 2^256 - 1, 32 bytes on the wire."""

    def __new__(cls, value: int) -> Uint256:
        if not 0 <= value <= codec.UINT256_MAX:
            raise ValueError(f"{value} is no uint256")
        return super().__new__(cls, value)


def _encode(value: Any) -> Any:
    if isinstance(value, Uint256):
        return value.to_bytes(32, "big")
    raise NotImplementedError(type(value).__name__)


def _decode(kind: type, value: Any) -> Any:
    if kind is Uint256 and isinstance(value, bytes) and len(value) == 32:
        return Uint256(int.from_bytes(value, "big"))
    raise ValueError("expected 32 bytes")


def need(condition: bool, problem: str) -> None:
    """Raises ValueError: how a message that must not exist says so at birth."""
    if not condition:
        raise ValueError(problem)


class Wire(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all messages: positional MessagePack behind one version byte."""

    def encode(self) -> bytes:
        return bytes([VERSION]) + _ENCODER.encode(self)

    @classmethod
    def decode(cls: type[S], data: bytes) -> S:
        """The one message in `data`. Raises `Reject` for another version, type, length or value."""
        if not data or data[0] != VERSION:
            raise Reject("UNKNOWN_VERSION", f"this node speaks version {VERSION}")
        try:
            return msgspec.msgpack.decode(memoryview(data)[1:], type=cls, dec_hook=_decode)
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
            raise Reject("MALFORMED", str(error)[:200]) from None


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_encode)
