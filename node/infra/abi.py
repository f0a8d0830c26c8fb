"""The encoding of calls whose types users bring.

eth_abi keeps every type it ever parsed in caches without a bound, and takes a tenth of a second to parse a long one: fit for
the contracts we know (`node/infra/contracts.py`), not for what strangers post.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from consensus.abi import AbiType

__all__ = ["AbiType", "encode"]

_WORD = 32


def encode(types: Sequence[AbiType], values: Sequence[Any]) -> bytes:
    """The ABI's encoding of a tuple of these types, by Solidity's specification of head and tail.

    Values are of their types already: integers in range, addresses as 0x text, fixed bytes and arrays of their lengths.
    """
    parts = [_encode(kind, value) for kind, value in zip(types, values, strict=True)]
    offset = sum(_WORD if kind.dynamic else len(part) for kind, part in zip(types, parts, strict=True))
    heads, tails = [], []
    for kind, part in zip(types, parts, strict=True):
        if kind.dynamic:
            heads.append(offset.to_bytes(_WORD, "big"))
            tails.append(part)
            offset += len(part)
        else:
            heads.append(part)
    return b"".join(heads + tails)


def _encode(kind: AbiType, value: Any) -> bytes:
    if kind.dims:
        elements = encode([kind.element] * len(value), value)
        return elements if kind.dims[-1] is not None else len(value).to_bytes(_WORD, "big") + elements
    match kind.base:
        case "tuple":
            return encode(kind.members, value)
        case "uint" | "int":
            return int(value).to_bytes(_WORD, "big", signed=kind.base == "int")
        case "bool":
            return bool(value).to_bytes(_WORD, "big")
        case "address":
            return bytes.fromhex(value[2:]).rjust(_WORD, b"\0")
    data: bytes = value.encode() if kind.base == "string" else value
    padded = data + bytes(-len(data) % _WORD)
    return padded if kind.size else len(data).to_bytes(_WORD, "big") + padded
