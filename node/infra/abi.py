"""ABI types as values, and the encoding of calls whose types users bring.

eth_abi keeps every type it ever parsed in caches without a bound, and takes a tenth of a second to parse a long one: fit for
the contracts we know (`node/infra/contracts.py`), not for what strangers post.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

_WORD = 32


@dataclass(frozen=True)
class AbiType:
    """One type: `base` with its bits or bytes, or a tuple's `members`; `dims` are array sizes, innermost first, None open."""

    base: str
    size: int = 0
    members: tuple[AbiType, ...] = ()
    names: tuple[str, ...] = ()
    dims: tuple[int | None, ...] = ()

    @cached_property
    def canonical(self) -> str:
        text = f"({','.join(m.canonical for m in self.members)})" if self.base == "tuple" else f"{self.base}{self.size or ''}"
        return text + "".join(f"[{'' if d is None else d}]" for d in self.dims)

    @cached_property
    def element(self) -> AbiType:
        """The type of an array's elements."""
        return AbiType(self.base, self.size, self.members, self.names, self.dims[:-1])

    @cached_property
    def dynamic(self) -> bool:
        """Whether its size depends on the value: it is then encoded behind the heads, which hold its offset."""
        if self.dims:
            return self.dims[-1] is None or self.element.dynamic
        return self.base == "string" or (self.base == "bytes" and not self.size) or any(m.dynamic for m in self.members)


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
