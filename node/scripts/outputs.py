"""What a script's output means: a call, or a reason for none; and what a custom script keeps between its runs."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from eth_utils.address import to_canonical_address

from consensus.errors import Failed, Invalid
from consensus.messages import MAX_CALL_BYTES, MAX_OUTPUT_BYTES, MAX_STORAGE_BYTES, JobSpec
from node.arguments import as_address, as_bytes, dump_json, encode_call, parse_json
from node.scripts.port import Call, NoCall
from node.scripts.quoting import MOST, quoted

CUSTOM = 7
"""The task definition whose script decides whether to execute, and what."""
MAX_KEY = 256
"""Characters of a key of the storage."""

_ZERO = bytes(20)
_KEYS = frozenset({"shouldExecute", "targetContract", "calldata", "metadata", "storageUpdates"})
_NO_REASON = "the script gave no reason"

Scalar = str | int | Decimal | bool | None


def action_of(job: JobSpec, output: bytes) -> Call | NoCall:
    """The call that `output` means for this job; `NoCall` SCRIPT_DECLINED, or SCRIPT_OUTPUT with what is wrong with it and
    its beginning and end."""
    try:
        text = _text(output)
        if job.definition == CUSTOM:
            return _decided(job, _decision(text))
        return Call(job.target, encode_call(job.function, text, fixed=job.arguments))
    except Invalid as error:
        return bad_output(error.detail, output)


def bad_output(problem: str, output: bytes) -> NoCall:
    """SCRIPT_OUTPUT in words that quote it."""
    said = quoted(problem, MOST // 2)
    if not output.strip():
        return NoCall("SCRIPT_OUTPUT", said)
    lead = f"{said}; it printed: "
    return NoCall("SCRIPT_OUTPUT", lead + quoted(output, MOST - len(lead)))


def essence(job: JobSpec, output: bytes) -> Any:
    """What of an output others must have too: its JSON value, of a custom script's without `metadata`, which says when and why
    and has no effect. Raises `Invalid`."""
    value = parse_json(_text(output), "output")
    if job.definition == CUSTOM and isinstance(value, dict):
        return {key: each for key, each in value.items() if key != "metadata"}
    return value


def storage_updates(output: bytes) -> dict[str, Scalar]:
    """What a custom script's output changes in its job's storage: a value, or None to delete the key. Raises `Failed`
    SCRIPT_OUTPUT for an output that no keeper would have taken for one."""
    try:
        return _updates(_decision(_text(output)))
    except Invalid as error:
        raise Failed("SCRIPT_OUTPUT", error.detail) from None


def apply(storage: str, updates: Mapping[str, Scalar]) -> str:
    """The storage after the updates, as the text of a JSON object with its keys in order; '' for none, before and after.

    Raises `Failed` SCRIPT_OUTPUT when it would be larger than 16 KiB or `storage` is no JSON object.
    """
    try:
        kept = parse_json(storage, "storage") if storage else {}
    except Invalid as error:
        raise Failed("SCRIPT_OUTPUT", error.detail) from None
    if not isinstance(kept, dict):
        raise Failed("SCRIPT_OUTPUT", "the storage is no JSON object")
    merged = {key: value for key, value in {**kept, **updates}.items() if value is not None}
    text = dump_json(dict(sorted(merged.items()))) if merged else ""
    if len(text.encode()) > MAX_STORAGE_BYTES:
        raise Failed("SCRIPT_OUTPUT", f"the storage would be {len(text.encode())} bytes, at most {MAX_STORAGE_BYTES}")
    return text


def _text(output: bytes) -> str:
    if len(output) > MAX_OUTPUT_BYTES:
        raise Invalid("output", f"has {len(output)} bytes, at most {MAX_OUTPUT_BYTES}")
    try:
        text = output.decode()
    except UnicodeDecodeError:
        raise Invalid("output", "is no UTF-8 text") from None
    if not text.strip():
        raise Invalid("output", "is empty: the script printed nothing on stdout")
    return text


def _decision(text: str) -> dict[str, Any]:
    value = parse_json(text, "output")
    if not isinstance(value, dict):
        raise Invalid("output", "is no JSON object")
    for key in value:
        if key not in _KEYS:
            raise Invalid(quoted(key, 60), f"is not known: {', '.join(sorted(_KEYS))}")
    if not isinstance(value.get("shouldExecute"), bool):
        raise Invalid("shouldExecute", "is neither true nor false" if "shouldExecute" in value else "is missing")
    if not isinstance(value.get("metadata") or {}, dict):
        raise Invalid("metadata", "is no JSON object")
    _updates(value)
    return value


def _decided(job: JobSpec, decision: Mapping[str, Any]) -> Call | NoCall:
    if not decision["shouldExecute"]:
        reason = (decision.get("metadata") or {}).get("reason")
        return NoCall("SCRIPT_DECLINED", (quoted(reason) if isinstance(reason, str) else "") or _NO_REASON)
    for key in ("targetContract", "calldata"):
        if key not in decision:
            raise Invalid(key, "is missing")
    target = to_canonical_address(as_address(decision["targetContract"], "targetContract"))
    if target == _ZERO:
        raise Invalid("targetContract", "is the zero address")
    if job.target not in (_ZERO, target):
        raise Invalid("targetContract", "is not the job's target contract")
    data = as_bytes(decision["calldata"], "calldata")
    if len(data) > MAX_CALL_BYTES:
        raise Invalid("calldata", f"has {len(data)} bytes, at most {MAX_CALL_BYTES} are carried")
    return Call(target, data)


def _updates(decision: Mapping[str, Any]) -> dict[str, Scalar]:
    updates = decision.get("storageUpdates")
    if updates is None:
        return {}
    if not isinstance(updates, dict):
        raise Invalid("storageUpdates", "is no JSON object")
    for key, value in updates.items():
        if not 0 < len(key) <= MAX_KEY:
            raise Invalid("storageUpdates", f"has a key of {len(key)} characters, 1 to {MAX_KEY} are kept")
        if isinstance(value, dict | list):
            raise Invalid(f"storageUpdates.{quoted(key, 60)}", "is neither text, number, true, false nor null")
    return updates
