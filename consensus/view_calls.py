"""What users write of a view call, `name(inputs)(outputs)`, and the number among what it returned."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

MAX_TEXT = 512
_MAX_DEPTH = 4
_MAX_TYPES = 64
_WORD = 32
_NAME = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]{0,127}(?=\()")
_TYPE = re.compile(r"(?:(uint|int)(\d{1,3})|(bytes)(\d{0,2})|(bool|address|string))")
_ARRAY = re.compile(r"\[(\d{0,4})\]")


class NoSuchOutput(ValueError):
    """What a view returned does not hold the number asked for."""


@dataclass(frozen=True, slots=True)
class Output:
    """Where a returned value stands: its word in the head, and as what number it reads. `base` is '' where it is none."""

    word: int
    base: str
    bits: int


@dataclass(frozen=True, slots=True)
class View:
    """`signature` is canonical: what the selector is made of."""

    signature: str
    outputs: tuple[Output, ...]

    def number(self, returned: bytes, output: int) -> int:
        """The number in `returned`; a truth value is 1 or 0. Raises `NoSuchOutput`."""
        place = self.outputs[output]
        word = returned[place.word * _WORD : (place.word + 1) * _WORD]
        if len(word) < _WORD:
            raise NoSuchOutput(f"{len(returned)} bytes came back: too few for output {output}")
        value = int.from_bytes(word, "big", signed=place.base == "int")
        low, high = (-(2 ** (place.bits - 1)), 2 ** (place.bits - 1)) if place.base == "int" else (0, 2**place.bits)
        if not low <= value < high:
            raise NoSuchOutput(f"output {output} does not fit its type")
        return value


@lru_cache(maxsize=1024)
def parse_view(text: str) -> View:
    """`balanceOf(address)(uint256)`, in canonical types without spaces. Raises ValueError."""
    name = _NAME.match(text)
    if len(text) > MAX_TEXT or name is None:
        raise ValueError("a view call is written like balanceOf(address)(uint256)")
    parser = _Parser(text)
    _, after = parser.types(name.end(), 0)
    if after >= len(text):
        raise ValueError("a view call names what it returns too: balanceOf(address)(uint256)")
    outputs, end = parser.types(after, 0)
    if end != len(text) or not outputs:
        raise ValueError("a view call is written like balanceOf(address)(uint256), with at least one output")
    placed, at = [], 0
    for words, base, bits in outputs:
        placed.append(Output(at, base, bits))
        at += words
    return View(text[:after], tuple(placed))


Type = tuple[int, str, int]
"""Words in the head, and the base and bits of a number; '' and 0 for what is none."""


class _Parser:
    """Recursive descent over one text; keeps count, so that nothing multiplies."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._seen = 0

    def types(self, at: int, depth: int) -> tuple[list[Type], int]:
        """The list in parentheses that begins at `at`, and where it ends."""
        if depth > _MAX_DEPTH:
            raise ValueError("types are nested too deeply")
        if not self._text.startswith("(", at):
            raise ValueError(f"a list of types is missing at {self._text[at : at + 20]!r}")
        found: list[Type] = []
        at += 1
        while not self._text.startswith(")", at):
            if found:
                if not self._text.startswith(",", at):
                    raise ValueError(f"{self._text[at : at + 20]!r} is no type")
                at += 1
            each, at = self._type(at, depth)
            found.append(each)
        return found, at + 1

    def _type(self, at: int, depth: int) -> tuple[Type, int]:
        self._seen += 1
        if self._seen > _MAX_TYPES:
            raise ValueError(f"a view call has at most {_MAX_TYPES} types")
        if self._text.startswith("(", at):
            members, at = self.types(at, depth + 1)
            if not members:
                raise ValueError("a tuple has members")
            dynamic = any(words == 0 for words, _, _ in members)
            kind: Type = (0 if dynamic else sum(words for words, _, _ in members), "", 0)
        else:
            kind, at = self._base(at)
        while match := _ARRAY.match(self._text, at):
            if match[1].startswith("0"):
                raise ValueError("an array has at least one element")
            kind = (kind[0] * int(match[1]) if match[1] else 0, "", 0)
            at = match.end()
        return kind if depth else (kind[0] or 1, kind[1], kind[2]), at

    def _base(self, at: int) -> tuple[Type, int]:
        match = _TYPE.match(self._text, at)
        if match is None:
            raise ValueError(f"{self._text[at : at + 20]!r} is no type: write uint256, not uint")
        number, digits, fixed, size, other = match.groups()
        if number is not None:
            bits = int(digits)
            if digits.startswith("0") or bits % 8 or not 8 <= bits <= 256:
                raise ValueError(f"{match[0]} is no type")
            return (1, number, bits), match.end()
        if fixed is not None:
            if size and (size.startswith("0") or int(size) > _WORD):
                raise ValueError(f"{match[0]} is no type")
            return (1 if size else 0, "", 0), match.end()
        if other == "bool":
            return (1, "bool", 1), match.end()
        return (0 if other == "string" else 1, "", 0), match.end()
