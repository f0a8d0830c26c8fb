"""Which logs fire an event job: the declaration, the filters, and the identity of a firing."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import msgspec
from eth_utils.address import is_checksum_address, to_checksum_address

from consensus import abi
from consensus.abi import AbiType, Malformed
from consensus.codec import keccak, words

MAX_FILTERS = 16
MAX_DECLARATION = 4096
MAX_VALUE = 8192
"""Characters of a filter's value."""
MAX_CONFIRMATIONS = 10_000


class EventFilter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A parameter, by the name it has in the declaration, and the value it must have, as canonical text of its type."""

    parameter: str
    value: str

    def __post_init__(self) -> None:
        if len(self.parameter) > 256 or len(self.value) > MAX_VALUE:
            raise ValueError("a parameter's name has at most 256 characters, its value 8192")


class OnEvent(msgspec.Struct, frozen=True, tag="event", forbid_unknown_fields=True):
    """A log of `contract` (20 bytes) that `event` declares and every filter matches.

    `event` is the whole declaration, from which topic and types follow: `Transfer(address indexed from,address indexed
    to,uint256 value)`. `confirmations` is how many blocks must lie on top of the log's.
    """

    chain_id: int
    contract: bytes
    event: str
    filters: tuple[EventFilter, ...] = ()
    confirmations: int = 0

    def __post_init__(self) -> None:
        if len(self.contract) != 20 or not 0 < self.chain_id < 2**63:
            raise ValueError("contract is 20 bytes, chain_id positive")
        if (
            len(self.filters) > MAX_FILTERS
            or len(self.event) > MAX_DECLARATION
            or not 0 <= self.confirmations <= MAX_CONFIRMATIONS
        ):
            raise ValueError("at most 16 filters, a declaration of 4096 characters, 10,000 confirmations")


def firing_id(chain_id: int, transaction: bytes, position: int) -> int:
    """The trigger id of a log: chain, transaction hash, and its position within the receipt.

    Not the block-wide log index: a reorganisation moves that.
    """
    return int.from_bytes(keccak(words(chain_id, transaction, position)), "big")


# --- declarations ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    """One parameter of an event. `hashed`: its topic is a keccak, from which the value cannot be read."""

    name: str
    kind: AbiType
    indexed: bool

    @cached_property
    def hashed(self) -> bool:
        return self.indexed and (bool(self.kind.dims) or self.kind.base == "tuple" or self.kind.dynamic)


@dataclass(frozen=True)
class Declaration:
    """An event as its contract declares it."""

    name: str
    parameters: tuple[Parameter, ...]

    @cached_property
    def signature(self) -> str:
        """What the first topic is made of: `Transfer(address,address,uint256)`."""
        return f"{self.name}({','.join(p.kind.canonical for p in self.parameters)})"

    @cached_property
    def topic(self) -> bytes:
        return keccak(self.signature.encode())

    @cached_property
    def text(self) -> str:
        """The declaration in its one canonical form, as `OnEvent.event` has it."""
        each = (f"{p.kind.canonical}{' indexed' if p.indexed else ''}{' ' + p.name if p.name else ''}" for p in self.parameters)
        return f"{self.name}({','.join(each)})"

    def decode(self, topics: Sequence[bytes], data: bytes) -> tuple[Any, ...] | None:
        """The values in the order of the parameters, of hashed ones their topic; None when the log is none of this event.

        Two events of one signature differ in what is indexed (ERC-20's and ERC-721's `Transfer`): the number of topics says.
        """
        if len(topics) != len(self._indexed) + 1 or topics[0] != self.topic:
            return None
        try:
            plain = iter(abi.decode(self._plain, data))
            of_topics = iter([t if p.hashed else abi.of_word(p.kind, t) for p, t in zip(self._indexed, topics[1:], strict=True)])
        except Malformed:
            return None
        return tuple(next(of_topics if p.indexed else plain) for p in self.parameters)

    @cached_property
    def _indexed(self) -> tuple[Parameter, ...]:
        return tuple(p for p in self.parameters if p.indexed)

    @cached_property
    def _plain(self) -> tuple[AbiType, ...]:
        return tuple(p.kind for p in self.parameters if not p.indexed)


_HEAD = re.compile(r"\s*(?:event\s+)?([A-Za-z_$][A-Za-z0-9_$]{0,255})\s*\(")
_PARAMETER = re.compile(r"(?:\s+(indexed)(?![A-Za-z0-9_$]))?(?:\s+([A-Za-z_$][A-Za-z0-9_$]{0,255}))?\s*")
_END = re.compile(r"\s*(anonymous)?\s*;?\s*\Z")


@lru_cache(maxsize=1024)
def declared(text: str) -> Declaration:
    """Reads `Transfer(address indexed from, address indexed to, uint256 value)`; `event` before and `;` behind may stand.

    Raises ValueError, saying what is wrong.
    """
    if len(text) > MAX_DECLARATION:
        raise ValueError(f"an event's declaration has at most {MAX_DECLARATION} characters")
    head = _HEAD.match(text)
    if head is None:
        raise ValueError("an event is declared like Transfer(address indexed from, address indexed to, uint256 value)")
    parameters: list[Parameter] = []
    at = head.end()
    if text[at:].lstrip().startswith(")"):
        at = text.index(")", at) + 1
    else:
        closed = False
        while not closed:
            parameter, at = _parameter(text, at)
            parameters.append(parameter)
            closed = text.startswith(")", at)
            if not closed and not text.startswith(",", at):
                raise ValueError(f"the declaration goes on with {text[at : at + 40]!r} where a comma or ) is expected")
            at += 1
    end = _END.match(text, at)
    if end is None:
        raise ValueError(f"behind the declaration stands {text[at : at + 40]!r}")
    if end[1]:
        raise ValueError("an anonymous event has no topic of its own: its logs cannot be told from others'")
    if len(parameters) > abi.MAX_TYPES or sum(p.indexed for p in parameters) > 3:
        raise ValueError(f"an event has at most {abi.MAX_TYPES} parameters, 3 of them indexed")
    return Declaration(head[1], tuple(parameters))


def _parameter(text: str, at: int) -> tuple[Parameter, int]:
    while at < len(text) and text[at].isspace():
        at += 1
    kind, at = abi.parse_type(text, at)
    match = _PARAMETER.match(text, at)
    assert match is not None  # every part of it is optional
    return Parameter(match[2] or "", kind, bool(match[1])), match.end()


# --- filters -----------------------------------------------------------------------------------------------------

Wanted = tuple[tuple[int, Any], ...]
"""Places of parameters, and the value that `Declaration.decode` must give there."""


def checked(declaration: str, filters: Sequence[tuple[str, str]]) -> tuple[EventFilter, ...]:
    """A user's filters (name, value) as canonical ones, which all must match. Raises ValueError naming the parameter.

    Values as text: integers in decimal or hex, addresses in one case or with a right checksum, true or false, bytes as
    hex, strings as they are, arrays and tuples as JSON.
    """
    event = declared(declaration)
    if len(filters) > MAX_FILTERS:
        raise ValueError(f"an event job has at most {MAX_FILTERS} filters")
    found: dict[str, EventFilter] = {}
    for name, given in filters:
        parameter = event.parameters[_place(event, name)]
        canonical = EventFilter(name, _text_of(parameter.kind, _read(parameter, given)))
        if found.setdefault(name, canonical) != canonical:
            raise ValueError(f"{name}: no log has two values of one parameter")
    return tuple(found.values())


def wanted(trigger: OnEvent) -> Wanted:
    """What its filters ask of a decoded log. Raises ValueError for a declaration or a filter that `checked` would refuse."""
    event = declared(trigger.event)
    found = []
    for each in trigger.filters:
        place = _place(event, each.parameter)
        parameter = event.parameters[place]
        value = _read(parameter, each.value)
        found.append((place, keccak(abi.in_place(parameter.kind, value)) if parameter.hashed else value))
    return tuple(found)


def matches(trigger: OnEvent, address: bytes, topics: Sequence[bytes], data: bytes) -> bool:
    """Whether a log of `address` fires the trigger. Never raises: a log or a trigger that makes no sense does not match."""
    if address != trigger.contract:
        return False
    try:
        asked = wanted(trigger)
        values = declared(trigger.event).decode(topics, data)
    except ValueError:
        return False
    return values is not None and all(values[place] == value for place, value in asked)


def _place(event: Declaration, name: str) -> int:
    places = [place for place, parameter in enumerate(event.parameters) if parameter.name == name and name]
    if len(places) == 1:
        return places[0]
    if places:
        raise ValueError(f"{name}: {event.name} has several parameters of that name")
    names = ", ".join(p.name for p in event.parameters if p.name)
    raise ValueError(f"{name[:60]!r}: {event.name} has no such parameter{', but ' + names if names else ''}")


def _read(parameter: Parameter, given: str) -> Any:
    if len(given) > MAX_VALUE:
        raise ValueError(f"{parameter.name}: a value has at most {MAX_VALUE} characters")
    kind = parameter.kind
    try:
        return _value(kind, _json(given) if kind.dims or kind.base == "tuple" else given)
    except ValueError as error:
        raise ValueError(f"{parameter.name}: {error}") from None


_MAX_BRACKETS = 512  # of a JSON value: bounds how deep it nests


def _json(text: str) -> Any:
    if text.count("[") + text.count("{") > _MAX_BRACKETS:
        raise ValueError("an array or tuple with too many parts")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("an array or tuple is given as JSON") from None


_HEX = re.compile(r"0[xX]((?:[0-9a-fA-F]{2})*)\Z")
_INTEGER = re.compile(r"(-?)(?:0[xX]([0-9a-fA-F]{1,64})|([0-9]{1,80}))\Z")


def _value(kind: AbiType, given: Any) -> Any:
    """From JSON or text to what `abi.decode` gives for the type."""
    if kind.dims or kind.base == "tuple":
        wanted_count = kind.dims[-1] if kind.dims else len(kind.members)
        if not isinstance(given, list) or wanted_count not in (None, len(given)):
            raise ValueError(f"{kind.canonical} takes {'a list' if wanted_count is None else f'a list of {wanted_count}'}")
        kinds = [kind.element] * len(given) if kind.dims else kind.members
        return tuple(_value(each, value) for each, value in zip(kinds, given, strict=True))
    if kind.base == "bool":
        truth = {"true": True, "false": False}.get(given.lower()) if isinstance(given, str) else given
        if not isinstance(truth, bool):
            raise ValueError("a bool is true or false")
        return truth
    if kind.base in ("uint", "int"):
        return _whole(kind, given)
    if not isinstance(given, str):
        raise ValueError(f"{kind.canonical} is given as text")
    if kind.base == "string":
        return _encoded(given)
    digits = _HEX.match(given)
    if kind.base == "address":
        if digits is None or len(digits[1]) != 40:
            raise ValueError("an address is 0x and 40 hexadecimal digits")
        if digits[1] not in (digits[1].lower(), digits[1].upper()) and not is_checksum_address(given):
            raise ValueError("the address has a wrong checksum: a digit or its case is mistyped")
        return bytes.fromhex(digits[1])
    if digits is None or (kind.size and len(digits[1]) != 2 * kind.size):
        raise ValueError(f"{kind.canonical} is given as 0x and {2 * kind.size if kind.size else 'an even number of'} digits")
    return bytes.fromhex(digits[1])


def _whole(kind: AbiType, given: Any) -> int:
    match = _INTEGER.match(given.strip()) if isinstance(given, str) else None
    if match is not None:
        number = int(match[2], 16) if match[2] else int(match[3])
        given = -number if match[1] else number
    if not isinstance(given, int) or isinstance(given, bool):
        raise ValueError(f"{kind.canonical} takes an integer, in decimal or as 0x")
    low, high = (0, 2**kind.size) if kind.base == "uint" else (-(2 ** (kind.size - 1)), 2 ** (kind.size - 1))
    if not low <= given < high:
        raise ValueError(f"out of range for {kind.canonical}")
    return given


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair is no text") from None


def _text_of(kind: AbiType, value: Any) -> str:
    """The canonical text of a value."""
    if kind.dims or kind.base == "tuple":
        return json.dumps(_jsonable(kind, value), separators=(",", ":"), ensure_ascii=False)
    if kind.base == "bool":
        return "true" if value else "false"
    return str(_jsonable(kind, value))


def _jsonable(kind: AbiType, value: Any) -> Any:
    if kind.dims:
        return [_jsonable(kind.element, each) for each in value]
    match kind.base:
        case "tuple":
            return [_jsonable(m, each) for m, each in zip(kind.members, value, strict=True)]
        case "address":
            return to_checksum_address(value)
        case "bytes" | "function":
            return "0x" + value.hex()
        case "string":
            return value.decode()
    return value
