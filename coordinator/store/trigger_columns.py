"""A trigger as the store writes it: exact text, and the field's columns of it for those who read the tables."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec
from eth_utils.address import to_checksum_address

from consensus.conditions import (
    ApiSource,
    BalanceSource,
    Comparison,
    ConfirmationsSource,
    OracleSource,
    Source,
    StaticSource,
    ViewSource,
    WebSocketSource,
)
from consensus.triggers import Cron, Interval, Moments, Observation, OnCondition, OnEvent, Trigger

COLUMNS = (
    "schedule_type",
    "time_interval",
    "cron_expression",
    "specific_schedule",
    "trigger_chain_id",
    "trigger_contract_address",
    "trigger_event",
    "event_filter_para_name",
    "event_filter_value",
    "confirmations",
    "condition_type",
    "upper_limit",
    "lower_limit",
    "hysteresis",
    "value_source_type",
    "value_source_url",
    "selected_key_route",
)
_LAST_SECOND = 253_402_300_799  # of the year 9999, where datetime ends
_trigger: msgspec.json.Decoder[Trigger] = msgspec.json.Decoder(Trigger)
_observation: msgspec.json.Decoder[Observation] = msgspec.json.Decoder(Observation)


def text_of(value: Trigger | Observation) -> str:
    """Exact: `trigger_of` and `observation_of` read back what was written."""
    return msgspec.json.encode(value).decode()


@lru_cache(maxsize=4096)  # many jobs have the same trigger, and share it; a trigger may be long, so not too many are kept
def trigger_of(text: str) -> Trigger:
    return _trigger.decode(text)


def observation_of(text: str) -> Observation:
    return None if text == "null" else _observation.decode(text)


def kind_of(trigger: Trigger) -> str:
    """time, event or condition."""
    match trigger:
        case OnEvent():
            return "event"
        case OnCondition():
            return "condition"
    return "time"


def columns_of(trigger: Trigger) -> dict[str, Any]:
    """The field's columns; one that the trigger does not have is missing. A composite condition has only its type."""
    match trigger:
        case Interval():
            return {"schedule_type": "interval", "time_interval": trigger.interval}
        case Cron():
            return {"schedule_type": "cron", "cron_expression": trigger.expression}
        case Moments():
            return {"schedule_type": "specific", "specific_schedule": ",".join(map(_rfc3339, trigger.seconds))}
        case OnEvent():
            first = trigger.filters[0] if len(trigger.filters) == 1 else None
            return {
                "trigger_chain_id": trigger.chain_id,
                "trigger_contract_address": trigger.contract,
                "trigger_event": trigger.event,
                "event_filter_para_name": first.parameter if first else "",
                "event_filter_value": first.value if first else "",
                "confirmations": trigger.confirmations,
            }
        case OnCondition(root=Comparison() as leaf):
            kind, url, route = source_columns(leaf.source)
            return {
                "condition_type": leaf.operator,
                "upper_limit": leaf.upper,
                "lower_limit": leaf.lower,
                "hysteresis": leaf.hysteresis,
                "value_source_type": kind,
                "value_source_url": url,
                "selected_key_route": route,
            }
        case OnCondition():
            return {"condition_type": trigger.root.__struct_config__.tag}


def source_columns(source: Source) -> tuple[str, str, str]:
    """value_source_type, value_source_url and selected_key_route of a source, as a job is posted with them."""
    match source:
        case StaticSource():
            return "static", source.value, ""
        case ApiSource():
            return "api", source.url, source.route
        case WebSocketSource():
            return "websocket", source.url, source.route
        case OracleSource():
            return "oracle", f"{source.chain_id}:{to_checksum_address(source.contract)}", ""
        case BalanceSource():
            token = f":{to_checksum_address(source.token)}" if source.token else ""
            return "balance", f"{source.chain_id}:{to_checksum_address(source.account)}{token}", ""
        case ViewSource():
            call = f"{source.chain_id}:{to_checksum_address(source.contract)}:{source.function}:{source.arguments}"
            return "contract", call, str(source.output)
        case ConfirmationsSource():
            return "transaction", f"{source.chain_id}:0x{source.transaction.hex()}", ""


def _rfc3339(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if 0 <= second <= _LAST_SECOND else str(second)
