"""A job's arguments: from JSON to ABI words with full precision; what does not fit is an error that names the argument."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from typing import Any

from eth_utils.address import is_checksum_address, to_checksum_address

from consensus.abi import MAX_DEPTH, MAX_TYPES, AbiType, parse_type
from consensus.codec import keccak
from consensus.errors import Invalid
from consensus.messages import MAX_CALL_BYTES
from node.infra.abi import encode
from node.infra.nesting import check_nesting

MAX_SIGNATURE = 4096
"""Characters of a function's signature, as a JobSpec holds it."""
MAX_ARRAY = MAX_CALL_BYTES // 32
"""More elements than this never fit the calldata of a task."""
MAX_NUMBER = 256
"""Characters of one number: a 256-bit integer has 78 digits."""

_CANDIDATES = 16  # signatures of one name that an error lists
_NAME = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]{0,255}\Z")
_SPACE = re.compile(r"(?<![\w$])\s+|\s+(?![\w$])")  # all but between a type and a name
_ENUM = re.compile(r"enum ([\w$.]{1,100})\Z", re.ASCII)
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d{1,6})?\Z", re.ASCII)
_BYTES = AbiType("bytes")
_HEX = re.compile(r"0[xX]([0-9a-fA-F]*)\Z")


def parse_json(text: str, field: str) -> Any:
    """JSON without loss: integers exact, other numbers as Decimal, no NaN, no repeated keys. Raises `Invalid` for `field`."""
    try:
        check_nesting(text)
        return json.loads(text, parse_float=_decimal, parse_constant=_no_constant, object_pairs_hook=_unique)
    except RecursionError:
        raise Invalid(field, "nested too deeply") from None
    except ValueError as error:
        raise Invalid(field, f"is not JSON ({str(error)[:120]})", "send JSON text") from None


def dump_json(value: Any) -> str:
    """The inverse of `parse_json`: compact JSON in which Decimals keep every digit.

    Raises RecursionError for a value nested deeper than the interpreter's stack; `parse_json` never returns one.
    """
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(str(k))}:{dump_json(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(dump_json(v) for v in value) + "]"
    return json.dumps(value)


def resolve_function(target_function: str, abi: str) -> str:
    """The canonical signature (`ping(uint256)`) of a bare name or a full signature, by the ABI's JSON text ('' for none).

    Raises `Invalid` naming `target_function` or `abi`: unknown names, overloaded bare names (with the candidates), bad types.
    """
    wanted = target_function.strip()
    entries = _entries(abi)
    if "(" in wanted:
        name, types = _parse_signature(wanted, "target_function")
        signature = _canonical(name, types)
        if entries and signature not in {_canonical(name, t) for t in _named(entries, name)}:
            raise Invalid("target_function", f"the ABI has no function {signature}", "send the ABI of the target contract")
        return signature
    if not _NAME.match(wanted):
        raise Invalid("target_function", "is no function name", "send a name like ping or a signature like ping(uint256)")
    candidates = sorted({_canonical(wanted, t) for t in _named(entries, wanted)})
    if not candidates:
        raise Invalid("target_function", f"the ABI has no function {wanted}", "send the target's ABI, or the full signature")
    if len(candidates) > 1:
        shown = ", ".join(candidates[:_CANDIDATES]) + (", ..." if len(candidates) > _CANDIDATES else "")
        raise Invalid("target_function", f"is overloaded: {shown}", "send one of these signatures")
    return candidates[0]


def with_names(function: str, abi: str) -> str:
    """The signature with the names that the ABI has for tuples' members (`trade((uint128 amount,address to)[])`), so that a
    script's output can name them too; as it is where the ABI has none, or they are too long. Raises `Invalid`."""
    named = _types(function, abi)[1]
    text = f"{function.partition('(')[0]}({','.join(t.named for t in named)})"
    return text if len(text) <= MAX_SIGNATURE else function


def selector(function: str) -> bytes:
    """The first four bytes of a call of `function`, a signature with or without names. Raises `Invalid`."""
    return keccak(_types(function, "")[0].encode())[:4]


def canonical_arguments(function: str, arguments: str, abi: str = "") -> str:
    """The arguments as canonical JSON text: by position, integers in full, bytes as hex, addresses in checksum case.

    `function` is a signature; with names of its own or of the `abi` tuples may be objects. Raises `Invalid`.
    """
    signature, types = _types(function, abi)
    return dump_json(_plain(_values(signature, types, arguments)))


def encode_call(function: str, arguments: str, abi: str = "", *, fixed: str = "") -> bytes:
    """Calldata of `function`, a signature, for the JSON text of an argument array ('' is an empty one).

    `fixed` is the JSON text of an array of what the first arguments must be, null where any will do ('' for none). Raises
    `Invalid` naming the argument (`arguments[0]`, `arguments[1].amount`) for whatever is missing, left over, out of range, of
    another type, would lose a digit, or is not what it must be.
    """
    signature, types = _types(function, abi)
    values = _values(signature, types, arguments)
    _check_fixed(types, values, fixed)
    call = keccak(signature.encode())[:4] + encode(types, values)
    if len(call) > MAX_CALL_BYTES:
        raise Invalid("arguments", f"the call takes {len(call)} bytes, at most {MAX_CALL_BYTES} are carried")
    return call


def _decimal(text: str) -> Decimal:
    if len(text) > MAX_NUMBER:  # what is done with digits takes the square of their number
        raise ValueError(f"a number of {len(text)} characters")
    try:
        return Decimal(text)
    except InvalidOperation:
        raise ValueError("a number's exponent is out of range") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _canonical(name: str, types: Sequence[AbiType]) -> str:
    return f"{name}({','.join(t.canonical for t in types)})"


# --- types ------------------------------------------------------------------------------------------------------


def _types(function: str, abi: str) -> tuple[str, tuple[AbiType, ...]]:
    """The canonical signature, and the parameter types with the names that the ABI, or the text itself, gives tuples' members."""
    name, types = _parse_signature(function, "target_function")
    signature = _canonical(name, types)
    for named in _named(_entries(abi), name):
        if _canonical(name, named) == signature:
            return signature, named
    return signature, types


def _entries(abi: str) -> list[tuple[int, dict[str, Any]]]:
    """The ABI's functions with their places in it."""
    if not abi.strip():
        return []
    entries = parse_json(abi, "abi")
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise Invalid("abi", "is no JSON array of objects", "send the ABI as the compiler prints it")
    return [(i, e) for i, e in enumerate(entries) if e.get("type", "function") == "function"]


def _named(entries: list[tuple[int, dict[str, Any]]], name: str) -> list[tuple[AbiType, ...]]:
    """Parameter types of every function of that name; what the others look like does not matter here."""
    return [_abi_inputs(e.get("inputs", []), f"abi[{i}].inputs", 0) for i, e in entries if e.get("name") == name]


def _abi_inputs(inputs: Any, field: str, depth: int) -> tuple[AbiType, ...]:
    if depth > MAX_DEPTH:
        raise Invalid(field, "nested too deeply")
    if not isinstance(inputs, list) or len(inputs) > MAX_TYPES or not all(isinstance(i, dict) for i in inputs):
        raise Invalid(field, f"is no array of at most {MAX_TYPES} parameters")
    return tuple(_abi_type(each, f"{field}[{place}]", depth) for place, each in enumerate(inputs))


def _abi_type(parameter: dict[str, Any], field: str, depth: int) -> AbiType:
    text = parameter.get("type")
    if not isinstance(text, str):
        raise Invalid(f"{field}.type", "is missing")
    if not text.startswith("tuple"):
        internal = parameter.get("internalType")
        enum = _ENUM.match(internal) if isinstance(internal, str) else None
        return replace(_parse(text, f"{field}.type"), enum=enum[1] if enum else "")
    members = parameter.get("components")
    parsed = _abi_inputs(members, f"{field}.components", depth + 1)
    names = tuple(name if isinstance(name := m.get("name"), str) and _NAME.match(name) else "" for m in members or ())
    return _bounded(AbiType("tuple", members=parsed, names=names, dims=_parse(f"bool{text[5:]}", f"{field}.type").dims), field)


def _parse_signature(text: str, field: str) -> tuple[str, tuple[AbiType, ...]]:
    compact = _SPACE.sub("", text.strip().removeprefix("function "))
    name = compact.partition("(")[0]
    if not _NAME.match(name) or not compact.endswith(")") or len(text) > MAX_SIGNATURE:
        raise Invalid(field, "is no function signature", "send it like ping(uint256)")
    listed = compact[len(name) :]
    return name, _parse(listed, field).members if listed != "()" else ()


def _parse(text: str, field: str) -> AbiType:
    try:
        kind, end = parse_type(text)
    except ValueError as error:
        raise Invalid(field, str(error)) from None
    if end != len(text):
        raise Invalid(field, f"{text[:60]!r} is no type")
    return _bounded(kind, field)


def _bounded(kind: AbiType, field: str) -> AbiType:
    """The type, if its arrays of fixed length fit a call."""
    for size in kind.dims:
        if size is not None and size > MAX_ARRAY:
            raise Invalid(field, f"an array of {size} is out of range")
    for member in kind.members:
        _bounded(member, field)
    return kind


# --- values -----------------------------------------------------------------------------------------------------


def _values(signature: str, types: Sequence[AbiType], arguments: str) -> list[Any]:
    given = _array_of(arguments, "arguments")
    _count(len(given), len(types), "arguments", f"{signature} takes {len(types)}")
    return [_convert(t, value, f"arguments[{i}]") for i, (t, value) in enumerate(zip(types, given, strict=True))]


def _array_of(text: str, field: str) -> list[Any]:
    given = parse_json(text, field) if text.strip() else []
    if given is None:
        given = []
    if not isinstance(given, list):
        raise Invalid(field, "is no array", "send the arguments in order, as an array")
    return given


def _check_fixed(types: Sequence[AbiType], values: Sequence[Any], fixed: str) -> None:
    wanted = _array_of(fixed, "arguments")
    if len(wanted) > len(types):
        raise Invalid(f"arguments[{len(types)}]", "is one too many among those that the job gives")
    for place, (kind, given) in enumerate(zip(types, wanted, strict=False)):
        if given is not None and _convert(kind, given, f"arguments[{place}]") != values[place]:
            raise Invalid(f"arguments[{place}]", f"must be {dump_json(given)[:100]}, which the job gives")


def _count(given: int, wanted: int, field: str, hint: str) -> None:
    if given < wanted:
        raise Invalid(f"{field}[{given}]", f"is missing: {hint}")
    if given > wanted:
        raise Invalid(f"{field}[{wanted}]", f"is one too many: {hint}")


def _convert(kind: AbiType, value: Any, field: str) -> Any:
    if kind.dims:
        return _array(kind, value, field)
    match kind.base:
        case "tuple":
            return _tuple(kind, value, field)
        case "uint" | "int":
            return _integer(kind, value, field)
        case "bool":
            return _boolean(value, field)
        case "address":
            return as_address(value, field)
        case "bytes" | "function":
            return _bytes(kind, value, field)
        case _:
            return _string(value, field)


def _nested(value: Any, field: str) -> Any:
    """Real clients send arrays and tuples as JSON text too: the SDK insists on text for every argument of a full signature."""
    return parse_json(value, field) if isinstance(value, str) and value.lstrip()[:1] in ("[", "{") else value


def _array(kind: AbiType, value: Any, field: str) -> list[Any]:
    value = _nested(value, field)
    if not isinstance(value, list):
        raise Invalid(field, f"is no array, {kind.canonical} takes one")
    wanted = kind.dims[-1]
    if wanted is not None:
        _count(len(value), wanted, field, f"{kind.canonical} has {wanted} elements")
    if len(value) > MAX_ARRAY:
        raise Invalid(field, f"has {len(value)} elements, more than a call carries")
    return [_convert(kind.element, each, f"{field}[{i}]") for i, each in enumerate(value)]


def _tuple(kind: AbiType, value: Any, field: str) -> tuple[Any, ...]:
    value = _nested(value, field)
    if isinstance(value, list):
        _count(len(value), len(kind.members), field, f"{kind.canonical} has {len(kind.members)} members")
        return tuple(_convert(m, v, f"{field}[{i}]") for i, (m, v) in enumerate(zip(kind.members, value, strict=True)))
    if not isinstance(value, dict):
        raise Invalid(field, f"is neither array nor object, {kind.canonical} takes one of them")
    if not all(kind.names) or len(set(kind.names)) != len(kind.names):
        raise Invalid(field, "is an object, but the ABI does not name the members", "send an array, or an ABI with names")
    for name in value:
        if name not in kind.names:
            raise Invalid(f"{field}.{name[:60]}", f"is no member: {', '.join(kind.names)}")
    for name in kind.names:
        if name not in value:
            raise Invalid(f"{field}.{name}", "is missing")
    return tuple(_convert(m, value[n], f"{field}.{n}") for m, n in zip(kind.members, kind.names, strict=True))


def _integer(kind: AbiType, value: Any, field: str) -> int:
    number = _whole(value, field, kind)
    low, high = (0, 2**kind.size - 1) if kind.base == "uint" else (-(2 ** (kind.size - 1)), 2 ** (kind.size - 1) - 1)
    if not low <= number <= high:
        raise Invalid(field, f"is out of range for {kind.canonical}")
    return number


def _whole(value: Any, field: str, kind: AbiType) -> int:
    if isinstance(value, str):
        sign, digits = (-1, value[1:]) if value.startswith("-") else (1, value)
        if (match := _HEX.match(digits)) and match[1]:
            if len(match[1]) > MAX_NUMBER:
                raise Invalid(field, f"is out of range for {kind.canonical}")
            return sign * int(match[1], 16)
        if not _NUMBER.match(value) or len(value) > MAX_NUMBER:
            if kind.enum:
                raise Invalid(field, f"is no integer, enum {kind.enum} takes a member's index", "count its members from 0")
            raise Invalid(field, f"is no integer, {kind.canonical} takes one", "send digits, or hex with 0x")
        value = Decimal(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, Decimal):
        raise Invalid(field, f"is no integer, {kind.canonical} takes one")
    if not value:
        return 0
    if value.adjusted() > 80:  # before the digits are written out: 1e999999999 is nine characters
        raise Invalid(field, f"is out of range for {kind.canonical}")
    numerator, denominator = value.as_integer_ratio() if value.adjusted() >= 0 else (0, 0)
    if denominator != 1:
        raise Invalid(field, f"has a fraction, {kind.canonical} takes integers only")
    return numerator


def _boolean(value: Any, field: str) -> bool:
    found = {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(found, bool):
        raise Invalid(field, "is neither true nor false")
    return found


def as_address(value: Any, field: str) -> str:
    """The address in checksum case. Raises `Invalid` for `field`."""
    if not isinstance(value, str) or not (match := _HEX.match(value)) or len(match[1]) != 40:
        raise Invalid(field, "is no address", "send 0x and 40 hex digits")
    if match[1] not in (match[1].lower(), match[1].upper()) and not is_checksum_address(value):
        raise Invalid(field, "is mistyped: its checksum (EIP-55) does not match")
    return to_checksum_address(value)


def as_bytes(value: Any, field: str) -> bytes:
    """The bytes of hex text. Raises `Invalid` for `field`."""
    return _bytes(_BYTES, value, field)


def _bytes(kind: AbiType, value: Any, field: str) -> bytes:
    if not isinstance(value, str) or not (match := _HEX.match(value)) or len(match[1]) % 2:
        raise Invalid(field, f"is no hex text, {kind.canonical} takes 0x and an even number of digits")
    raw = bytes.fromhex(match[1])
    if kind.size and len(raw) != kind.size:
        raise Invalid(field, f"has {len(raw)} bytes, {kind.canonical} takes exactly {kind.size}")
    return raw


def _string(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise Invalid(field, "is no text, string takes one", "put it in quotes")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Invalid(field, "holds half a surrogate pair") from None
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return "0x" + value.hex() if isinstance(value, bytes) else value
