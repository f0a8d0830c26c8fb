"""Events from posted fields: a name, a signature or a declaration, resolved through the job's ABI to the whole declaration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from eth_utils.address import to_checksum_address

from consensus.abi import MAX_DEPTH, MAX_TYPES, parse_type
from consensus.errors import Invalid
from consensus.events import MAX_DECLARATION, MAX_FILTERS, Declaration, EventFilter, OnEvent, Parameter, checked, declared
from coordinator.definitions.values import address
from node.arguments import dump_json, parse_json

_CANDIDATES = 16  # declarations of one name that an error lists
_EXAMPLE = "Transfer(address indexed from,address indexed to,uint256 value)"


def declaration(event: str, abi: str) -> Declaration:
    """The event that `event` means: a bare name or a canonical signature by the ABI, a whole declaration by itself.

    Raises `Invalid` for `trigger_event` or `abi`.
    """
    text = event.strip()
    if not text:
        raise Invalid("trigger_event", "is missing", "send the event's name, or its whole declaration")
    if "(" not in text:
        name = _read(f"{text}()").name
        return _one(_events(abi, name), f"the ABI has no event {name}")
    written = _read(text)
    found = [e for e in _events(abi, written.name) if e.signature == written.signature]
    if any(p.indexed for p in written.parameters) or not written.parameters:
        if found and not any(_alike(written, e) for e in found):
            raise Invalid("trigger_event", "differs from the ABI in what is indexed", f"send {found[0].text}")
        return written
    return _one(found, f"which parameters of {written.signature} are indexed is not known: the ABI has no such event")


def _read(text: str) -> Declaration:
    try:
        return declared(text)
    except ValueError as error:
        raise Invalid("trigger_event", str(error)[:200], f"send a name, or a declaration like {_EXAMPLE}") from None


def _alike(left: Declaration, right: Declaration) -> bool:
    return [p.indexed for p in left.parameters] == [p.indexed for p in right.parameters]


def _one(found: Sequence[Declaration], nothing: str) -> Declaration:
    candidates = {e.text: e for e in found}
    if not candidates:
        raise Invalid("trigger_event", nothing, f"add the event to abi, or send its whole declaration, like {_EXAMPLE}")
    if len(candidates) > 1:
        shown = " | ".join(sorted(candidates)[:_CANDIDATES]) + (" | ..." if len(candidates) > _CANDIDATES else "")
        raise Invalid("trigger_event", f"is overloaded: {shown}"[:1000], "send one of these declarations")
    [event] = candidates.values()
    return event


# --- the ABI ----------------------------------------------------------------------------------------------------


def _events(abi: str, name: str) -> list[Declaration]:
    """The ABI's events of that name; what the others look like does not matter here."""
    if not abi.strip():
        return []
    entries = parse_json(abi, "abi")
    if not isinstance(entries, list):
        raise Invalid("abi", "is no JSON array of objects", "send the ABI as the compiler prints it")
    found = []
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict) or entry.get("type") != "event" or entry.get("name") != name or entry.get("anonymous"):
            continue
        inputs, field = entry.get("inputs", []), f"abi[{place}].inputs"
        if not isinstance(inputs, list) or len(inputs) > MAX_TYPES:
            raise Invalid(field, f"is no array of at most {MAX_TYPES} parameters")
        event = Declaration(name, tuple(_parameter(each, f"{field}[{i}]") for i, each in enumerate(inputs)))
        try:
            found.append(declared(event.text))
        except ValueError as error:
            raise Invalid(field, str(error)[:200]) from None
    return found


def _parameter(entry: Any, field: str) -> Parameter:
    text = _type_text(entry, field, 0)
    try:
        kind, end = parse_type(text)
        if end != len(text):
            raise ValueError(f"{text[end : end + 40]!r} is behind a type")
    except ValueError as error:
        raise Invalid(f"{field}.type", str(error)[:200]) from None
    name = entry.get("name")
    return Parameter(name if isinstance(name, str) else "", kind, entry.get("indexed") is True)


def _type_text(entry: Any, field: str, depth: int) -> str:
    text = entry.get("type") if isinstance(entry, dict) else None
    if not isinstance(text, str) or len(text) > MAX_DECLARATION:
        raise Invalid(f"{field}.type", "is missing")
    if not text.startswith("tuple") or text.startswith("tuple("):
        return text
    members = entry.get("components")
    if not isinstance(members, list) or len(members) > MAX_TYPES or depth > MAX_DEPTH:
        raise Invalid(f"{field}.components", f"is no array of at most {MAX_TYPES} members, or nested too deeply")
    inner = ",".join(_type_text(each, f"{field}.components[{i}]", depth + 1) for i, each in enumerate(members))
    if len(inner) > MAX_DECLARATION:
        raise Invalid(f"{field}.components", f"is over {MAX_DECLARATION} characters")
    return f"({inner}){text.removeprefix('tuple')}"


# --- filters ----------------------------------------------------------------------------------------------------


def on_event(
    chain_id: int, contract: str, event: str, abi: str, filters: Sequence[tuple[str, Any, str]], confirmations: int
) -> OnEvent:
    """The event to watch. `filters` are parameter, value, and the field that an error names. Raises `Invalid`."""
    watched, known = address(contract, "trigger_contract_address"), declaration(event, abi)
    if len(filters) > MAX_FILTERS:
        raise Invalid("event_filters", f"are {len(filters)}, at most {MAX_FILTERS}", "send fewer")
    for name, value, field in filters:
        _checked(known, [(name, _text(value, field))], field)
    made = _checked(known, [(name, _text(value, field)) for name, value, field in filters], "event_filters")
    try:
        return OnEvent(chain_id, watched, known.text, made, confirmations)
    except ValueError as error:
        raise Invalid("trigger_event", str(error)[:200], "correct it") from None


def _checked(event: Declaration, filters: Sequence[tuple[str, str]], field: str) -> tuple[EventFilter, ...]:
    try:
        return checked(event.text, filters)
    except ValueError as error:
        raise Invalid(field, str(error)[:300], "name a parameter of the event, and a value of its type") from None


def _text(value: Any, field: str) -> str:
    """A filter's value as text: numbers in full, arrays and objects as JSON."""
    match value:
        case str():
            return value
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case Decimal() if value == value.to_integral_value() and value.adjusted() < 80:
            return str(int(value))
        case list() | dict():
            return dump_json(value)
    raise Invalid(field, "is no value of an event's parameter", "send text, a whole number, true or false")


def fields(event: OnEvent) -> Mapping[str, Any]:
    """The event as it would be posted."""
    one = event.filters[0] if len(event.filters) == 1 else None
    return {
        "trigger_chain_id": str(event.chain_id),
        "trigger_contract_address": to_checksum_address(event.contract),
        "trigger_event": event.event,
        "event_filter_para_name": one.parameter if one else "",
        "event_filter_value": one.value if one else "",
        "event_filters": [{"name": f.parameter, "value": f.value} for f in event.filters],
        "confirmations": event.confirmations,
    }
