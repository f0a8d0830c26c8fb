"""What a condition job watches, and when its condition holds: values in, exact decimals, truth out."""

from __future__ import annotations

from typing import Literal

import msgspec

MAX_COMPARISONS = 16
MAX_DEPTH = 4

Operator = Literal["greater_than", "less_than", "between", "equals", "not_equals", "greater_equal", "less_equal"]


class StaticSource(msgspec.Struct, frozen=True, tag="static", forbid_unknown_fields=True):
    """A value that never changes."""

    value: str


class ApiSource(msgspec.Struct, frozen=True, tag="api", forbid_unknown_fields=True):
    """What an http(s) URL answers to GET; `route` leads to the value in its JSON (`data.prices[0].usd`), '' takes it whole."""

    url: str
    route: str = ""


class WebSocketSource(msgspec.Struct, frozen=True, tag="websocket", forbid_unknown_fields=True):
    """The latest message of a ws(s) URL; `route` as in `ApiSource`."""

    url: str
    route: str = ""


class OracleSource(msgspec.Struct, frozen=True, tag="oracle", forbid_unknown_fields=True):
    """A Chainlink-style aggregator: latestRoundData's answer, scaled by its decimals()."""

    chain_id: int
    contract: bytes


class BalanceSource(msgspec.Struct, frozen=True, tag="balance", forbid_unknown_fields=True):
    """What an account holds: wei of the native coin when `token` is empty, else the ERC-20's base units."""

    chain_id: int
    account: bytes
    token: bytes = b""


class ViewSource(msgspec.Struct, frozen=True, tag="view", forbid_unknown_fields=True):
    """A contract's view call. `function` is `name(inputs)(outputs)`, `arguments` JSON text, `output` which of the outputs."""

    chain_id: int
    contract: bytes
    function: str
    arguments: str = "[]"
    output: int = 0


class ConfirmationsSource(msgspec.Struct, frozen=True, tag="transaction", forbid_unknown_fields=True):
    """How many blocks lie on a transaction, its own counted: 0 while it is not mined."""

    chain_id: int
    transaction: bytes


Source = StaticSource | ApiSource | WebSocketSource | OracleSource | BalanceSource | ViewSource | ConfirmationsSource


class Comparison(msgspec.Struct, frozen=True, tag="compare", forbid_unknown_fields=True):
    """One source against its limits (decimal text, exact). `between` takes both; the others `upper`.

    After it held it holds until the value has fallen back by `hysteresis` beyond the limit.
    """

    source: Source
    operator: Operator
    upper: str
    lower: str = "0"
    hysteresis: str = "0"


class AllOf(msgspec.Struct, frozen=True, tag="all", forbid_unknown_fields=True):
    """Holds when every member does."""

    members: tuple[Node, ...]


class AnyOf(msgspec.Struct, frozen=True, tag="any", forbid_unknown_fields=True):
    """Holds when a member does."""

    members: tuple[Node, ...]


Node = Comparison | AllOf | AnyOf


class OnCondition(msgspec.Struct, frozen=True, tag="condition", forbid_unknown_fields=True):
    """Fires on the transition from not holding to holding; a firing's trigger id is the number of that edge, from 1."""

    root: Node
