"""ABI types as values: what strangers write of them, read with bounds, and what strangers' contracts say in them.

eth_abi keeps every type it ever parsed in caches without a bound, and takes a tenth of a second to parse a long one: fit for
the contracts we know, not for declarations and logs that anybody can make.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

MAX_DEPTH = 16
"""Nesting of arrays and tuples in one type: far above any contract's, far below the interpreter's stack."""
MAX_TYPES = 256
"""Types in one declaration, tuple members counted."""
MAX_ARRAY = 65_536
"""Elements of an array of fixed length: more words than a transaction's log has room for."""

_WORD = 32
_BASE = re.compile(r"(uint|int|bytes|address|bool|string|function)(\d{0,3})(?![0-9A-Za-z_$])")
_SUFFIX = re.compile(r"\[(\d{0,6})\]")


@dataclass(frozen=True)
class AbiType:
    """One type: `base` with its bits or bytes, or a tuple's `members`; `dims` are array sizes, innermost first, None open.

    A tuple's `names` are its members', '' where one has none. `enum` is what an ABI calls an enum, for errors only.
    """

    base: str
    size: int = 0
    members: tuple[AbiType, ...] = ()
    names: tuple[str, ...] = ()
    dims: tuple[int | None, ...] = ()
    enum: str = field(default="", compare=False)

    @cached_property
    def canonical(self) -> str:
        """As a selector or topic is made of it."""
        return self._text(named=False)

    @cached_property
    def named(self) -> str:
        """The same with the members' names: `(uint128 amount,address to)[]`."""
        return self._text(named=True)

    def _text(self, *, named: bool) -> str:
        match self.base:
            case "tuple" if named:
                each = zip(self.members, self.names or ("",) * len(self.members), strict=True)
                text = "(" + ",".join(f"{member.named} {name}".rstrip() for member, name in each) + ")"
            case "tuple":
                text = f"({','.join(member.canonical for member in self.members)})"
            case "function":
                text = "function"
            case _:
                text = f"{self.base}{self.size or ''}"
        return text + "".join(f"[{'' if d is None else d}]" for d in self.dims)

    @cached_property
    def element(self) -> AbiType:
        """The type of an array's elements."""
        return replace(self, dims=self.dims[:-1])

    @cached_property
    def dynamic(self) -> bool:
        """Whether its size depends on the value: it is then encoded behind the heads, which hold its offset."""
        if self.dims:
            return self.dims[-1] is None or self.element.dynamic
        return self.base == "string" or (self.base == "bytes" and not self.size) or any(m.dynamic for m in self.members)

    @cached_property
    def head(self) -> int:
        """Bytes that it takes among the heads."""
        if self.dynamic:
            return _WORD
        if self.dims:
            return (self.dims[-1] or 0) * self.element.head
        return sum(m.head for m in self.members) if self.base == "tuple" else _WORD


def parse_type(text: str, at: int = 0, depth: int = 0) -> tuple[AbiType, int]:
    """The type that begins at `at` (`uint256`, `(address,bytes)[2]`, `tuple(uint8 kind,string)`), and where it ends.

    Members may have names. Raises ValueError.
    """
    if depth > MAX_DEPTH:
        raise ValueError("types are nested too deeply")
    if text.startswith("tuple(", at):  # as ethers prints it
        at += len("tuple")
    if text.startswith("(", at):
        members, names, at = _members(text, at + 1, depth + 1)
        kind = AbiType("tuple", members=members, names=names)
    else:
        kind, at = _base(text, at)
    dims, at = parse_dims(text, at)
    return (replace(kind, dims=dims) if dims else kind), at


def parse_dims(text: str, at: int = 0) -> tuple[tuple[int | None, ...], int]:
    """The array sizes that stand at `at` (`[2][]`), and where they end. Raises ValueError."""
    dims: list[int | None] = []
    while (match := _SUFFIX.match(text, at)) is not None:
        if match[1].startswith("0") or (match[1] and int(match[1]) > MAX_ARRAY):
            raise ValueError(f"an array of {match[1]} is out of range")
        dims.append(int(match[1]) if match[1] else None)
        at = match.end()
        if len(dims) > MAX_DEPTH:
            raise ValueError("types are nested too deeply")
    return tuple(dims), at


_NAME = re.compile(r"\s*([A-Za-z_$][A-Za-z0-9_$]*)?\s*")


def _members(text: str, at: int, depth: int) -> tuple[tuple[AbiType, ...], tuple[str, ...], int]:
    found: list[AbiType] = []
    names: list[str] = []
    while True:
        each, at = parse_type(text, _space(text, at), depth)
        found.append(each)
        if len(found) > MAX_TYPES:
            raise ValueError(f"a tuple has at most {MAX_TYPES} members")
        name = _NAME.match(text, at)
        assert name is not None  # every part of it is optional
        names.append(name[1] or "")
        at = name.end()
        if text.startswith(")", at):
            return tuple(found), tuple(names), at + 1
        if not text.startswith(",", at):
            raise ValueError(f"{text[at : at + 40]!r} is no type")
        at += 1


def _space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _base(text: str, at: int) -> tuple[AbiType, int]:
    match = _BASE.match(text, at)
    if match is None:
        raise ValueError(f"{text[at : at + 40]!r} is no type")
    base, digits = match[1], match[2]
    size = int(digits) if digits else 256 if base in ("uint", "int") else 0
    number = base in ("uint", "int")
    fits = (8 <= size <= 256 and size % 8 == 0) if number else not digits or (base == "bytes" and 1 <= size <= 32)
    if digits.startswith("0") or not fits:
        raise ValueError(f"{match[0]!r} is no type")
    if base == "function":  # an address and a selector
        return AbiType("function", 24), match.end()
    return AbiType(base, size), match.end()


class Malformed(ValueError):
    """Bytes that are no encoding of the types."""


def decode(kinds: Sequence[AbiType], data: bytes) -> tuple[Any, ...]:
    """Values of these types: ints, bools, addresses as 20 bytes, bytes, text of strings as their bytes, tuples of such.

    Takes time and memory in proportion to `data`, whatever it says: no word is read twice. Padding on the right is not
    looked at, for old compilers left dirt there. Raises `Malformed`.
    """
    return _Decoder(data).tuple_at(kinds, 0)


class _Decoder:
    def __init__(self, data: bytes) -> None:
        self._data = data
        # In an encoding each value has words of its own: offsets that make several of one word do not multiply anything.
        self._left = len(data) // _WORD + 1

    def tuple_at(self, kinds: Sequence[AbiType], base: int) -> tuple[Any, ...]:
        values, head = [], base
        for kind in kinds:
            values.append(self._value(kind, base + self._size(head) if kind.dynamic else head))
            head += kind.head
        return tuple(values)

    def _spend(self, words: int) -> None:
        self._left -= words
        if self._left < 0:
            raise Malformed("it says more than it holds")

    def _word(self, at: int) -> bytes:
        found = self._data[at : at + _WORD]
        if len(found) < _WORD:
            raise Malformed("it ends too early")
        return found

    def _size(self, at: int) -> int:
        """An offset or a length: nothing beyond the data makes sense."""
        size = int.from_bytes(self._word(at), "big")
        if size > len(self._data):
            raise Malformed("an offset or a length leads out of it")
        return size

    def _value(self, kind: AbiType, at: int) -> Any:
        if kind.dims:
            count = kind.dims[-1]
            if count is None:
                self._spend(1)
                count, at = self._size(at), at + _WORD
            if count > self._left:
                raise Malformed("it says more than it holds")
            return self.tuple_at([kind.element] * count, at)
        if kind.base == "tuple":
            return self.tuple_at(kind.members, at)
        self._spend(1)
        if kind.base == "string" or (kind.base == "bytes" and not kind.size):
            length = self._size(at)
            self._spend((length + _WORD - 1) // _WORD)
            found = self._data[at + _WORD : at + _WORD + length]
            if len(found) < length:
                raise Malformed("it ends too early")
            return found
        return of_word(kind, self._word(at))


def of_word(kind: AbiType, word: bytes) -> Any:
    """The value in one word. Raises `Malformed`."""
    if kind.base in ("bytes", "function"):
        return word[: kind.size]
    if kind.base == "int":
        signed = int.from_bytes(word, "big", signed=True)
        if not -(2 ** (kind.size - 1)) <= signed < 2 ** (kind.size - 1):
            raise Malformed(f"a number does not fit {kind.canonical}")
        return signed
    value = int.from_bytes(word, "big")
    bits = {"uint": kind.size, "address": 160, "bool": 1}[kind.base]
    if value >> bits:
        raise Malformed(f"a value does not fit {kind.canonical}")
    if kind.base == "address":
        return word[12:]
    return bool(value) if kind.base == "bool" else value


def in_place(kind: AbiType, value: Any, *, outermost: bool = True) -> bytes:
    """The bytes whose keccak is the topic of an indexed value that fits no word (Solidity's "Encoding of Indexed Event
    Parameters"): elements one after another, padded to words, without lengths and offsets."""
    if kind.dims:
        return b"".join(in_place(kind.element, each, outermost=False) for each in value)
    if kind.base == "tuple":
        return b"".join(in_place(m, each, outermost=False) for m, each in zip(kind.members, value, strict=True))
    if kind.base == "string" or (kind.base == "bytes" and not kind.size):
        return bytes(value) if outermost else bytes(value) + bytes(-len(value) % _WORD)
    return to_word(kind, value)


def to_word(kind: AbiType, value: Any) -> bytes:
    """The word of a value that fits one."""
    if kind.base in ("bytes", "function"):
        return bytes(value).ljust(_WORD, b"\0")
    if kind.base == "address":
        return bytes(value).rjust(_WORD, b"\0")
    return int(value).to_bytes(_WORD, "big", signed=kind.base == "int")
