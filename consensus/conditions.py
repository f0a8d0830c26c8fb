"""What a condition job watches, and when its condition holds: values in, exact decimals, truth out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Literal

import msgspec

from consensus.codec import keccak
from consensus.json_route import parse_route
from consensus.numbers import NotANumber, number, total
from consensus.view_calls import parse_view

__all__ = [
    "AllOf",
    "AnyOf",
    "ApiSource",
    "BalanceSource",
    "Comparison",
    "Condition",
    "ConfirmationsSource",
    "Evaluation",
    "Move",
    "Node",
    "NotANumber",
    "OnCondition",
    "Operator",
    "OracleSource",
    "Source",
    "StaticSource",
    "ViewSource",
    "WebSocketSource",
    "evaluate",
    "gap_scope",
    "holds",
    "leaves",
    "move",
    "number",
    "single_limit",
    "still_holds",
]

MAX_COMPARISONS = 16
MAX_DEPTH = 4
"""Levels of a tree, the comparisons' own counted."""
MAX_URL = 2048
MAX_ARGUMENTS = 4096
"""Characters of a view call's arguments."""

_URL = re.compile(r"(?i:(https?|wss?))://[!-~]+")

Operator = Literal["greater_than", "less_than", "between", "equals", "not_equals", "greater_equal", "less_equal"]


class StaticSource(msgspec.Struct, frozen=True, tag="static", forbid_unknown_fields=True):
    """A value that never changes."""

    value: str

    def __post_init__(self) -> None:
        number(self.value)


class ApiSource(msgspec.Struct, frozen=True, tag="api", forbid_unknown_fields=True):
    """What an http(s) URL answers to GET; `route` leads to the value in its JSON (`data.prices[0].usd`), '' takes it whole."""

    url: str
    route: str = ""

    def __post_init__(self) -> None:
        _check_url(self.url, "http", "https")
        parse_route(self.route)


class WebSocketSource(msgspec.Struct, frozen=True, tag="websocket", forbid_unknown_fields=True):
    """The latest message of a ws(s) URL; `route` as in `ApiSource`."""

    url: str
    route: str = ""

    def __post_init__(self) -> None:
        _check_url(self.url, "ws", "wss")
        parse_route(self.route)


class OracleSource(msgspec.Struct, frozen=True, tag="oracle", forbid_unknown_fields=True):
    """A Chainlink-style aggregator: latestRoundData's answer, scaled by its decimals()."""

    chain_id: int
    contract: bytes

    def __post_init__(self) -> None:
        _check_chain(self.chain_id)
        _check_length("contract", self.contract, 20)


class BalanceSource(msgspec.Struct, frozen=True, tag="balance", forbid_unknown_fields=True):
    """What an account holds: wei of the native coin when `token` is empty, else the ERC-20's base units."""

    chain_id: int
    account: bytes
    token: bytes = b""

    def __post_init__(self) -> None:
        _check_chain(self.chain_id)
        _check_length("account", self.account, 20)
        if self.token:
            _check_length("token", self.token, 20)


class ViewSource(msgspec.Struct, frozen=True, tag="view", forbid_unknown_fields=True):
    """A contract's view call. `function` is `name(inputs)(outputs)`, `arguments` JSON text, `output` which of the outputs."""

    chain_id: int
    contract: bytes
    function: str
    arguments: str = "[]"
    output: int = 0

    def __post_init__(self) -> None:
        _check_chain(self.chain_id)
        _check_length("contract", self.contract, 20)
        outputs = parse_view(self.function).outputs
        if not 0 <= self.output < len(outputs):
            raise ValueError(f"output is 0 to {len(outputs) - 1}: {self.function[:80]} has no other")
        if not outputs[self.output].base:
            raise ValueError(f"output {self.output} of {self.function[:80]} is no number")
        if len(self.arguments) > MAX_ARGUMENTS:
            raise ValueError(f"arguments have at most {MAX_ARGUMENTS} characters")


class ConfirmationsSource(msgspec.Struct, frozen=True, tag="transaction", forbid_unknown_fields=True):
    """How many blocks lie on a transaction, its own counted: 0 while it is not mined."""

    chain_id: int
    transaction: bytes

    def __post_init__(self) -> None:
        _check_chain(self.chain_id)
        _check_length("transaction", self.transaction, 32)


Source = StaticSource | ApiSource | WebSocketSource | OracleSource | BalanceSource | ViewSource | ConfirmationsSource


class Comparison(msgspec.Struct, frozen=True, tag="compare", forbid_unknown_fields=True):
    """One source against its limits (decimal text, exact). `between` takes both, and holds on them too; the others take `upper`.

    After it held it holds until the value has fallen back by `hysteresis` beyond the limit: see `holds`. `not_equals` takes
    none: there is nothing beyond a point.
    """

    source: Source
    operator: Operator
    upper: str
    lower: str = "0"
    hysteresis: str = "0"

    def __post_init__(self) -> None:
        if number(self.lower) > number(self.upper) and self.operator == "between":
            raise ValueError("lower is not above upper")
        if number(self.hysteresis) < 0:
            raise ValueError("hysteresis is not negative")
        if number(self.hysteresis) and self.operator == "not_equals":
            raise ValueError("not_equals takes no hysteresis")


class AllOf(msgspec.Struct, frozen=True, tag="all", forbid_unknown_fields=True):
    """Holds when every member does."""

    members: tuple[Node, ...]

    def __post_init__(self) -> None:
        _check_tree(self)


class AnyOf(msgspec.Struct, frozen=True, tag="any", forbid_unknown_fields=True):
    """Holds when a member does."""

    members: tuple[Node, ...]

    def __post_init__(self) -> None:
        _check_tree(self)


Node = Comparison | AllOf | AnyOf


class OnCondition(msgspec.Struct, frozen=True, tag="condition", forbid_unknown_fields=True):
    """Fires on the transition from not holding to holding; a firing's trigger id is the number of that edge, from 1."""

    root: Node


def leaves(root: Node) -> Iterator[Comparison]:
    """The comparisons from left to right: the order of values everywhere."""
    if isinstance(root, Comparison):
        yield root
    else:
        for member in root.members:
            yield from leaves(member)


def single_limit(upper: str | None, lower: str | None) -> str:
    """The limit of an operator that takes one, of the two that clients send: the upper one, unless only the lower one is set."""
    upper_set, lower_set = (text is not None and text != "" for text in (upper, lower))
    if lower_set and (not upper_set or (not number(upper) and number(lower))):
        return str(lower)
    return str(upper) if upper_set else "0"


def gap_scope(source: Source) -> str:
    """The `scope` of a `Gap` of this source: `source:` and a digest, for URLs carry keys and are long."""
    return f"source:{keccak(msgspec.json.encode(source)).hex()[:32]}"


# --- truth ------------------------------------------------------------------------------------------------------

_TESTS: dict[str, Callable[[Decimal, Decimal, Decimal], bool]] = {
    "greater_than": lambda value, low, high: value > low,
    "greater_equal": lambda value, low, high: value >= low,
    "less_than": lambda value, low, high: value < high,
    "less_equal": lambda value, low, high: value <= high,
    "between": lambda value, low, high: low <= value <= high,
    "equals": lambda value, low, high: low <= value <= high,
    "not_equals": lambda value, low, high: value != low,
}


@dataclass(frozen=True, slots=True)
class _Test:
    """A comparison ready to be made: its ends while it does not hold, and the wider ones while it does."""

    passes: Callable[[Decimal, Decimal, Decimal], bool]
    low: Decimal
    high: Decimal
    held_low: Decimal
    held_high: Decimal

    def __call__(self, value: Decimal, was_holding: bool) -> bool:
        if was_holding:
            return self.passes(value, self.held_low, self.held_high)
        return self.passes(value, self.low, self.high)


def _test(comparison: Comparison) -> _Test:
    high, slack = number(comparison.upper), number(comparison.hysteresis)
    low = number(comparison.lower) if comparison.operator == "between" else high
    if not slack:  # most have none: two numbers less in memory
        return _Test(_TESTS[comparison.operator], low, high, low, high)
    return _Test(_TESTS[comparison.operator], low, high, total(low, -slack), total(high, slack))


def holds(comparison: Comparison, value: Decimal, was_holding: bool) -> bool:
    """Whether the comparison holds; exact. With hysteresis h, while it held:

    `greater_than` holds on while value > upper - h, `greater_equal` while value >= upper - h, `less_than` while value <
    upper + h, `less_equal` while value <= upper + h, `between` while lower - h <= value <= upper + h, `equals` while
    upper - h <= value <= upper + h; to begin to hold the limits count as they are.
    """
    return _test(comparison)(value, was_holding)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`truth` is None when unknown: a value is missing, and the others do not decide. `held` is what to hand to the next one."""

    truth: bool | None
    held: tuple[bool, ...]


_Shape = int | tuple[bool, tuple["_Shape", ...]]
"""A leaf's place, or whether all or any of these."""


class Condition:
    """A tree of comparisons, its limits read once: what a scheduler keeps of a job."""

    __slots__ = ("_shape", "_tests", "sources")

    def __init__(self, root: Node) -> None:
        found = list(leaves(root))
        self.sources = tuple(leaf.source for leaf in found)
        self._tests = tuple(map(_test, found))
        self._shape = _shaped(root, iter(range(len(found))))

    def begun(self, holding: bool) -> tuple[bool, ...]:
        """`held` for the first evaluation: of a condition that held when it was last seen, or did not.

        Which leaves of an AnyOf held is not known then: all count, so that it is rather re-armed late than fired twice.
        """
        return (holding,) * len(self._tests)

    def evaluate(self, values: Sequence[Decimal | None], held: Sequence[bool]) -> Evaluation:
        """In three values: AND is false when a member is, OR true when a member is, whatever is unknown.

        A leaf without a value keeps its `held`.
        """
        if len(self._tests) == 1 and self._shape == 0:  # most conditions
            if values[0] is None:
                return Evaluation(None, tuple(held))
            truth = self._tests[0](values[0], held[0])
            return Evaluation(truth, (truth,))
        truths = [None if value is None else test(value, was) for test, value, was in zip(self._tests, values, held, strict=True)]
        after = tuple(was if truth is None else truth for truth, was in zip(truths, held, strict=True))
        return Evaluation(_truth(self._shape, truths), after)


def evaluate(root: Node, values: Sequence[Decimal | None], held: Sequence[bool]) -> Evaluation:
    """`Condition(root).evaluate`, for whoever looks once. Values and `held` are in the order of `leaves`."""
    return Condition(root).evaluate(values, held)


def still_holds(root: Node, values: Sequence[Decimal | None]) -> bool | None:
    """Whether a condition that was seen to hold a moment ago does: hysteresis counts. For keepers that re-check a firing."""
    condition = Condition(root)
    return condition.evaluate(values, condition.begun(True)).truth


def _shaped(root: Node, places: Iterator[int]) -> _Shape:
    if isinstance(root, Comparison):
        return next(places)
    return isinstance(root, AllOf), tuple(_shaped(member, places) for member in root.members)


def _truth(shape: _Shape, truths: Sequence[bool | None]) -> bool | None:
    if isinstance(shape, int):
        return truths[shape]
    wants_all, members = shape
    found = [_truth(member, truths) for member in members]
    if (not wants_all) in found:  # one false ends an AND, one true an OR
        return not wants_all
    return None if None in found else wants_all


class Move(Enum):
    """What an observation makes of an edge."""

    FIRE = "fire"
    REARM = "re-arm"
    NONE = "none"


def move(armed: bool, truth: bool | None) -> Move:
    """A job is armed when it is created, so that a first observation that holds fires; then again only after it was false.

    What is not known moves nothing.
    """
    if truth is None or truth is not armed:
        return Move.NONE
    return Move.FIRE if truth else Move.REARM


# --- checks at birth --------------------------------------------------------------------------------------------


def _check_url(url: str, *schemes: str) -> None:
    match = _URL.fullmatch(url)
    if len(url) > MAX_URL or match is None or match[1].lower() not in schemes:
        raise ValueError(f"a url begins with {' or '.join(schemes)} and has at most {MAX_URL} characters, all of ASCII")


def _check_chain(chain_id: int) -> None:
    if not 1 <= chain_id < 2**63:
        raise ValueError("a chain id is 1 to 2^63")


def _check_length(name: str, value: bytes, length: int) -> None:
    if len(value) != length:
        raise ValueError(f"{name} has {length} bytes")


def _check_tree(root: AllOf | AnyOf) -> None:
    if not root.members:
        raise ValueError("a composite has members")
    depth, count = _measure(root)
    if depth > MAX_DEPTH:
        raise ValueError(f"a condition has at most {MAX_DEPTH} levels")
    if count > MAX_COMPARISONS:
        raise ValueError(f"a condition has at most {MAX_COMPARISONS} comparisons")


def _measure(root: Node) -> tuple[int, int]:
    """Levels and comparisons. The members were measured at their own birth: this never goes deep."""
    if isinstance(root, Comparison):
        return 1, 1
    measures = [_measure(member) for member in root.members]
    return 1 + max(depth for depth, _ in measures), sum(count for _, count in measures)
