"""When conditions hold, to the last digit: numbers, routes, operators, hysteresis, trees and edges."""

from __future__ import annotations

import itertools
import json
from decimal import Decimal
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.conditions import (
    AllOf,
    AnyOf,
    ApiSource,
    BalanceSource,
    Comparison,
    Condition,
    ConfirmationsSource,
    Move,
    Node,
    OnCondition,
    OracleSource,
    StaticSource,
    ViewSource,
    WebSocketSource,
    evaluate,
    gap_scope,
    holds,
    leaves,
    move,
    single_limit,
    still_holds,
)
from consensus.json_route import NoSuchRoute, parse_route, select
from consensus.numbers import NotANumber, number, scaled
from consensus.triggers import EdgeSeen, Trigger
from consensus.view_calls import NoSuchOutput, parse_view

SOURCE = StaticSource("1")


def compare(operator: str, upper: str, lower: str = "0", hysteresis: str = "0") -> Comparison:
    return Comparison(SOURCE, operator, upper, lower, hysteresis)


# numbers


@pytest.mark.parametrize(
    ("given_as", "expected"),
    [
        ("0", "0"),
        ("-0", "0"),
        ("0.0", "0"),
        ("0e999", "0"),
        ("1", "1"),
        ("-1", "-1"),
        ("+1", "1"),
        ("0.5", "0.5"),
        (".5", "0.5"),
        ("5.", "5"),
        ("007", "7"),
        ("1e3", "1000"),
        ("1E-3", "0.001"),
        ("1e30", "1000000000000000000000000000000"),
        ("1000000000000000000000000000000", "1e30"),
        ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
        (str(2**256 - 1), str(2**256 - 1)),
        (str(-(2**255)), str(-(2**255))),
        (2**256 - 1, str(2**256 - 1)),
        (0, "0"),
        (-7, "-7"),
        (Decimal("0.20"), "0.2"),
        ("1e100", "1e100"),
        ("1e-100", "1e-100"),
        ("9" * 100, "9" * 100),
    ],
)
def test_numbers_keep_every_digit(given_as: object, expected: str):
    assert number(given_as) == Decimal(expected)
    assert len(str(number(given_as))) <= 128, "it must fit an EdgeSeen"
    EdgeSeen(0, (str(number(given_as)),))


@pytest.mark.parametrize(
    ("given_as", "says"),
    [
        ("NaN", "'NaN' is no number"),
        ("nan", "is no number"),
        ("sNaN", "is no number"),
        ("Infinity", "is no number"),
        ("-Infinity", "is no number"),
        ("inf", "is no number"),
        ("", "empty text is no number"),
        (" ", "is no number"),
        (" 1", "is no number"),
        ("1 ", "is no number"),
        ("1\n", "is no number"),
        ("0x10", "is no number"),
        ("1_000", "is no number"),
        ("1,000", "is no number"),
        ("1.2.3", "is no number"),
        ("1e", "is no number"),
        ("e1", "is no number"),
        ("--1", "is no number"),
        ("١", "is no number"),
        ("½", "is no number"),
        ("high", "'high' is no number"),
        ("null", "is no number"),
        ("true", "is no number"),
        ("1e99999", "is no number"),
        ("1e101", "out of range"),
        ("1e-101", "out of range"),
        ("1" * 101, "more than 100 digits"),
        ("1" * 5000, "a text of 5000 characters"),
        (10**4000, "out of range"),
        (True, "true is no number"),
        (False, "false is no number"),
        (None, "null is no number"),
        ({}, "an object is no number"),
        ([1], "an array is no number"),
        (0.5, "a float has lost digits"),
        (float("nan"), "a float"),
        (Decimal("NaN"), "NaN is no number"),
        (Decimal("Infinity"), "Infinity is no number"),
        (b"1", "a bytes is no number"),
    ],
)
def test_what_is_no_number_is_named(given_as: object, says: str):
    with pytest.raises(NotANumber, match=says.replace("'", ".")):
        number(given_as)


@given(st.text(max_size=150))
def test_any_text_is_a_bounded_number_or_refused(text: str):
    try:
        value = number(text)
    except NotANumber:
        return
    assert value == Decimal(text)
    assert value == 0 or -100 <= value.adjusted() <= 100


@pytest.mark.parametrize(
    ("value", "decimals", "expected"),
    [
        (250_000_000_000, 8, "2500"),
        (-5, 1, "-0.5"),
        (0, 18, "0"),
        (1, 18, "0.000000000000000001"),
        (2**255 - 1, 0, str(2**255 - 1)),
    ],
)
def test_contracts_fractions_are_exact(value: int, decimals: int, expected: str):
    assert scaled(value, decimals) == Decimal(expected)


def test_absurd_decimals_are_refused():
    with pytest.raises(NotANumber):
        scaled(1, 255)


# routes

DOCUMENT = json.loads(
    '{"data": {"prices": [{"usd": 1}, {"usd": 2}], "0": "zero", "a.b": 3, "it\'s": 4, "[x]": 5}, "$": 7, "n": null}'
)


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        ("", DOCUMENT),
        ("$", DOCUMENT),
        ("data.prices[0].usd", 1),
        ("data.prices.1.usd", 2),
        ("$.data.prices[1].usd", 2),
        ('$["data"]["prices"][1]["usd"]', 2),
        ("data['prices'][1].usd", 2),
        ("data.0", "zero"),
        ('data["0"]', "zero"),
        ('data["a.b"]', 3),
        ('data["it\'s"]', 4),
        ('data["[x]"]', 5),
        ('["$"]', 7),
        ("n", None),
    ],
)
def test_a_route_leads_through_objects_and_arrays(route: str, expected: object):
    assert select(DOCUMENT, parse_route(route)) == expected


@pytest.mark.parametrize(
    ("route", "says"),
    [
        ("data.price", "no key 'price' after data"),
        ("nothing", "no key 'nothing' at the top"),
        ("data.prices[2]", "no place 2 in an array of 2 after data.prices"),
        ("data.prices.7.usd", "no place 7"),
        ("data.prices.usd", "leads nowhere: there is an array"),
        ("data[0]", "leads nowhere: there is an object"),
        ("data.prices[0].usd.x", "leads nowhere: there is a single value"),
        ("n.x", "leads nowhere: there is a single value"),
        ("data.prices.-1", "leads nowhere"),
        ("data.prices.²", "leads nowhere"),
    ],
)
def test_a_route_that_leads_nowhere_says_how_far_it_led(route: str, says: str):
    with pytest.raises(NoSuchRoute) as raised:
        select(DOCUMENT, parse_route(route))
    assert says in str(raised.value)


@pytest.mark.parametrize(
    "route",
    [
        ".",
        ".a",
        "a.",
        "a..b",
        "a[",
        "a[]",
        "a]",
        "a[-1]",
        "a[1",
        'a[""]',
        'a["b]',
        "a[b]",
        "a[1]b",
        "a b",
        "$a.$.",
        "a[1234567]",
        "[*]",
        "a" * 257,
        ".".join("a" * 17),
    ],
)
def test_a_route_that_cannot_be_read_is_refused(route: str):
    with pytest.raises(ValueError, match="route"):
        parse_route(route)


@given(st.text(max_size=60))
def test_any_text_is_a_route_or_refused(text: str):
    try:
        route = parse_route(text)
    except ValueError:
        return
    if route:
        with pytest.raises(NoSuchRoute):
            select(None, route)


# view calls


@pytest.mark.parametrize(
    ("text", "output", "word", "expected"),
    [
        ("balanceOf(address)(uint256)", 0, 0, 2**256 - 1),
        ("f()(int256,int8)", 1, 1, -1),
        ("f()(bool)", 0, 0, 1),
        ("f()(string,uint8)", 1, 1, 255),
        ("f()(uint256[3],uint8)", 1, 3, 7),
        ("f()(uint256[],bytes,(uint8,string),uint8)", 3, 3, 7),
        ("f()((uint8,(int8,bytes32)),uint8)", 1, 3, 7),
        ("f()(uint256[2][3],(uint8,uint8)[2],uint64)", 2, 10, 7),
        ("f((uint256,bytes)[],string)(uint256)", 0, 0, 7),
    ],
)
def test_a_views_number_is_found_among_its_outputs(text: str, output: int, word: int, expected: int):
    words = [expected.to_bytes(32, "big", signed=expected < 0) if n == word else b"\0" * 32 for n in range(word + 1)]
    view = parse_view(text)
    assert view.number(b"".join(words), output) == expected
    assert view.signature == text[: text.index(")(") + 1]
    with pytest.raises(NoSuchOutput):
        view.number(b"".join(words)[:-1], output)


@pytest.mark.parametrize(
    ("text", "word"), [("f()(uint8)", 256), ("f()(bool)", 2), ("f()(int8)", 128), ("f()(int8)", -129), ("f()(uint128)", 2**128)]
)
def test_a_word_that_does_not_fit_its_type_is_no_number(text: str, word: int):
    with pytest.raises(NoSuchOutput):
        parse_view(text).number(word.to_bytes(32, "big", signed=word < 0), 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "f",
        "f()",
        "f(uint256)",
        "f()()",
        "(uint256)(uint256)",
        "f()(uint)",
        "f()(uint257)",
        "f()(uint7)",
        "f()(bytes33)",
        "f()(uint8[0])",
        "f( )(uint8)",
        "f()(uint8) ",
        "f(uint8,)(uint8)",
        "f(,)(uint8)",
        "f()(())",
        "f()(uint8",
        "f(uint8)uint8",
        "1f()(uint8)",
        "f()(uint08)",
        "f()(" + "(" * 9 + "uint8" + ")" * 10,
        "f(" + ",".join(["uint8"] * 65) + ")(uint8)",
        "f()(uint8)(uint8)",
        "f" * 600 + "()(uint8)",
    ],
)
def test_what_is_no_view_call_is_refused(text: str):
    with pytest.raises(ValueError):
        parse_view(text)


@given(st.text(alphabet="f()uint8[],0123 bytesx", max_size=60))
def test_any_text_is_a_view_call_or_refused(text: str):
    try:
        parse_view("f" + text)
    except ValueError:
        return


# operators and hysteresis

LESS, SAME, MORE = "0.2", "0.5", "0.50000000000000000000000000000000000001"


@pytest.mark.parametrize(
    ("operator", "less", "same", "more"),
    [
        ("greater_than", False, False, True),
        ("greater_equal", False, True, True),
        ("less_than", True, False, False),
        ("less_equal", True, True, False),
        ("equals", False, True, False),
        ("not_equals", True, False, True),
    ],
)
def test_the_operators_at_their_limit(operator: str, less: bool, same: bool, more: bool):
    for was_holding in (False, True):
        found = [holds(compare(operator, "0.5"), number(value), was_holding) for value in (LESS, SAME, MORE)]
        assert found == [less, same, more]


@pytest.mark.parametrize(
    ("value", "operator", "upper", "lower", "expected"),
    [
        ("0.5", "greater_than", "0.2", "0", True),
        ("0.2", "greater_than", "0.5", "0", False),
        ("0", "greater_than", "-0.1", "0", True),
        ("-1", "greater_than", "0", "0", False),
        ("-1", "less_than", "0", "0", True),
        ("-1.5", "less_than", "-1.25", "0", True),
        ("-0", "equals", "0", "0", True),
        ("0.0", "equals", "0", "0", True),
        ("1e30", "equals", "1000000000000000000000000000000", "0", True),
        ("1000000000000000000000000000001", "greater_than", "1e30", "0", True),
        ("1000000000000000000000000000001", "equals", "1e30", "0", False),
        ("9007199254740993", "equals", "9007199254740992", "0", False),
        ("0.1", "equals", "0.10000000000000000001", "0", False),
        ("0.30000000000000004", "equals", "0.3", "0", False),
        ("1.0", "equals", "1", "0", True),
        ("1e-30", "greater_than", "0", "0", True),
        ("5", "between", "10", "1", True),
        ("1", "between", "10", "1", True),
        ("10", "between", "10", "1", True),
        ("10.000000000000000000001", "between", "10", "1", False),
        ("0.999999999999999999999", "between", "10", "1", False),
        ("0", "between", "1", "-1", True),
        ("-2", "between", "-1", "-3", True),
        ("3", "between", "3", "3", True),
        (str(2**256 - 1), "greater_than", str(2**256 - 2), "0", True),
    ],
)
def test_values_are_compared_exactly(value: str, operator: str, upper: str, lower: str, expected: bool):
    assert holds(compare(operator, upper, lower), number(value), False) is expected


@pytest.mark.parametrize(
    ("operator", "upper", "lower", "slack", "walk"),
    [
        ("greater_than", "100", "0", "5", [("100", 0), ("100.1", 1), ("99", 1), ("95.1", 1), ("95", 0), ("99", 0), ("101", 1)]),
        ("greater_equal", "100", "0", "5", [("99.9", 0), ("100", 1), ("95", 1), ("94.9", 0), ("99", 0)]),
        ("less_than", "0", "0", "0.5", [("0", 0), ("-0.1", 1), ("0.4", 1), ("0.5", 0), ("0.1", 0), ("-1", 1)]),
        ("less_equal", "-10", "0", "1", [("-9", 0), ("-10", 1), ("-9", 1), ("-8.9", 0)]),
        ("between", "10", "5", "1", [("4", 0), ("5", 1), ("4", 1), ("3.9", 0), ("4.5", 0), ("10", 1), ("11", 1), ("11.1", 0)]),
        ("equals", "1", "0", "0.1", [("0.95", 0), ("1", 1), ("0.9", 1), ("1.1", 1), ("1.11", 0), ("1.05", 0), ("1", 1)]),
        ("greater_than", "1e30", "0", "1e-30", [("1e30", 0), ("1000000000000000000000000000001", 1), ("1e30", 1)]),
    ],
)
def test_hysteresis_keeps_a_condition_until_it_has_fallen_back_far_enough(
    operator: str, upper: str, lower: str, slack: str, walk: list[tuple[str, int]]
):
    condition = Condition(compare(operator, upper, lower, slack))
    held = condition.begun(False)
    for value, expected in walk:
        found = condition.evaluate([number(value)], held)
        assert (found.truth, found.held) == (bool(expected), (bool(expected),)), value
        held = found.held


numbers_ = st.decimals(min_value=-(10**12), max_value=10**12, places=6).map(str)


@given(
    st.sampled_from(["greater_than", "greater_equal", "less_than", "less_equal", "between", "equals"]),
    numbers_,
    numbers_,
    st.decimals(min_value=0, max_value=100, places=3).map(str),
    numbers_,
)
def test_hysteresis_only_ever_widens_what_holds(operator: str, one: str, other: str, slack: str, value: str):
    lower, upper = sorted((one, other), key=Decimal)
    comparison = compare(operator, upper, lower, slack)
    assert not holds(comparison, number(value), False) or holds(comparison, number(value), True)
    if not Decimal(slack):
        assert holds(comparison, number(value), False) == holds(comparison, number(value), True)


@given(numbers_, numbers_)
def test_comparisons_agree_with_fractions(one: str, other: str):
    value, limit = Fraction(one), Fraction(other)
    expected = {
        "greater_than": value > limit,
        "greater_equal": value >= limit,
        "less_than": value < limit,
        "less_equal": value <= limit,
        "equals": value == limit,
        "not_equals": value != limit,
    }
    assert {operator: holds(compare(operator, other), number(one), False) for operator in expected} == expected


# trees

T, F, U = Decimal(1), Decimal(0), None
LEAF = compare("equals", "1")
VALUES = {True: T, False: F, None: U}


@pytest.mark.parametrize(("one", "other"), list(itertools.product((True, False, None), repeat=2)))
def test_and_and_or_know_three_values(one: bool | None, other: bool | None):
    values = [VALUES[one], VALUES[other]]
    both = False if False in (one, other) else None if None in (one, other) else True
    either = True if True in (one, other) else None if None in (one, other) else False
    assert evaluate(AllOf((LEAF, LEAF)), values, (False, False)).truth is both
    assert evaluate(AnyOf((LEAF, LEAF)), values, (False, False)).truth is either


@pytest.mark.parametrize(
    ("root", "values", "expected"),
    [
        (AllOf((LEAF, AnyOf((LEAF, LEAF)))), (T, F, T), True),
        (AllOf((LEAF, AnyOf((LEAF, LEAF)))), (T, F, U), None),
        (AllOf((LEAF, AnyOf((LEAF, LEAF)))), (F, U, U), False),
        (AnyOf((AllOf((LEAF, LEAF)), LEAF)), (U, U, T), True),
        (AnyOf((AllOf((LEAF, LEAF)), LEAF)), (U, F, F), False),
        (AnyOf((AllOf((LEAF, AnyOf((LEAF,)))), LEAF)), (T, T, F), True),
        (AllOf((LEAF,)), (T,), True),
        (AnyOf((LEAF,)), (F,), False),
        (LEAF, (U,), None),
    ],
)
def test_trees_are_decided_by_what_is_known(root: Node, values: tuple[Decimal | None, ...], expected: bool | None):
    assert evaluate(root, values, (False,) * len(values)).truth is expected


def test_a_leaf_without_a_value_keeps_what_it_was_for_its_hysteresis():
    condition = Condition(AnyOf((compare("greater_than", "10", hysteresis="5"), compare("greater_than", "10"))))
    seen = condition.evaluate([Decimal(11), Decimal(0)], condition.begun(False))
    assert seen.held == (True, False)
    unknown = condition.evaluate([None, Decimal(0)], seen.held)
    assert unknown == type(unknown)(None, (True, False))
    assert condition.evaluate([Decimal(6), Decimal(0)], unknown.held).truth is True
    assert condition.evaluate([Decimal(5), Decimal(0)], unknown.held).truth is False


def test_values_are_in_the_order_of_the_leaves():
    named = [Comparison(StaticSource(str(n)), "equals", str(n)) for n in range(4)]
    root = AllOf((named[0], AnyOf((named[1], AllOf((named[2],)))), named[3]))
    assert [leaf.upper for leaf in leaves(root)] == ["0", "1", "2", "3"]
    assert [source.value for source in Condition(root).sources] == ["0", "1", "2", "3"]
    assert evaluate(root, [Decimal(n) for n in range(4)], (False,) * 4).truth is True


def test_whoever_rechecks_a_firing_allows_for_the_hysteresis():
    comparison = compare("greater_than", "10", hysteresis="1")
    assert still_holds(comparison, [Decimal("9.5")]) is True
    assert still_holds(comparison, [Decimal(9)]) is False
    assert still_holds(comparison, [None]) is None


# edges


@pytest.mark.parametrize(
    ("armed", "truth", "expected"),
    [
        (True, True, Move.FIRE),
        (True, False, Move.NONE),
        (True, None, Move.NONE),
        (False, True, Move.NONE),
        (False, False, Move.REARM),
        (False, None, Move.NONE),
    ],
)
def test_an_edge_fires_on_the_transition_and_is_armed_again_when_it_fell_back(armed: bool, truth: bool | None, expected: Move):
    assert move(armed, truth) is expected


@given(st.lists(st.sampled_from([True, False, None])))
def test_firings_are_the_transitions_of_what_is_known(truths: list[bool | None]):
    armed, fired = True, 0
    for truth in truths:
        match move(armed, truth):
            case Move.FIRE:
                armed, fired = False, fired + 1
            case Move.REARM:
                armed = True
    known = [False, *(truth for truth in truths if truth is not None)]
    assert fired == sum(not before and after for before, after in itertools.pairwise(known))


@pytest.mark.parametrize(
    ("upper", "lower", "limit"),
    [
        ("5", "0", "5"),
        ("5", None, "5"),
        ("5", "", "5"),
        (None, "5", "5"),
        ("", "5", "5"),
        ("0", "5", "5"),
        ("0", "0", "0"),
        (None, None, "0"),
        ("5", "7", "5"),
        ("-5", "0", "-5"),
        ("0.0", "-2.5", "-2.5"),
    ],
)
def test_the_upper_limit_is_the_limit_unless_only_the_lower_one_is_set(upper: str | None, lower: str | None, limit: str):
    assert single_limit(upper, lower) == limit


# birth

ADDRESS, HASH = b"\x0a" * 20, b"\x0b" * 32


@pytest.mark.parametrize(
    "make",
    [
        lambda: StaticSource("NaN"),
        lambda: StaticSource(""),
        lambda: ApiSource("ftp://a.b/"),
        lambda: ApiSource("ws://a.b/"),
        lambda: ApiSource("http://a.b/ c"),
        lambda: ApiSource("http://a.b/é"),
        lambda: ApiSource("http://a.b/" + "c" * 2048),
        lambda: ApiSource(""),
        lambda: ApiSource("http://a.b/", "a[-1]"),
        lambda: WebSocketSource("http://a.b/"),
        lambda: WebSocketSource("ws://a.b/", "a..b"),
        lambda: OracleSource(0, ADDRESS),
        lambda: OracleSource(1, ADDRESS[1:]),
        lambda: BalanceSource(1, b""),
        lambda: BalanceSource(1, ADDRESS, b"1"),
        lambda: ViewSource(1, ADDRESS, "f()"),
        lambda: ViewSource(1, ADDRESS, "f()(uint256)", output=1),
        lambda: ViewSource(1, ADDRESS, "f()(uint256)", output=-1),
        lambda: ViewSource(1, ADDRESS, "f()(string)"),
        lambda: ViewSource(1, ADDRESS, "f()(uint256)", "[" + "1," * 4096 + "1]"),
        lambda: ConfirmationsSource(1, ADDRESS),
        lambda: ConfirmationsSource(2**63, HASH),
        lambda: compare("between", "1", "2"),
        lambda: compare("greater_than", "x"),
        lambda: compare("greater_than", "1", "x"),
        lambda: compare("greater_than", "1", hysteresis="-1"),
        lambda: compare("greater_than", "1", hysteresis="NaN"),
        lambda: compare("not_equals", "1", hysteresis="1"),
        lambda: AllOf(()),
        lambda: AnyOf(()),
        lambda: AllOf((LEAF,) * 17),
        lambda: AllOf((AnyOf((LEAF,) * 9), AnyOf((LEAF,) * 8))),
        lambda: AllOf((AllOf((AllOf((AllOf((LEAF,)),)),)),)),
    ],
)
def test_an_invalid_condition_cannot_exist(make):
    with pytest.raises(ValueError):
        make()


@pytest.mark.parametrize(
    "source",
    [
        StaticSource("-1.5"),
        ApiSource("https://a.b/c?d=e", "$.f[0]"),
        WebSocketSource("wss://a.b/", "p"),
        OracleSource(1, ADDRESS),
        BalanceSource(1, ADDRESS),
        BalanceSource(1, ADDRESS, ADDRESS),
        ViewSource(1, ADDRESS, "f(uint256)(bool)", "[1]"),
        ConfirmationsSource(1, HASH),
    ],
)
def test_conditions_travel_and_are_checked_on_arrival(source):
    trigger = OnCondition(AllOf((Comparison(source, "between", "2", "1", "0.5"), AnyOf((LEAF, LEAF)))))
    wire = msgspec.msgpack.encode(trigger)
    assert msgspec.msgpack.decode(wire, type=Trigger) == trigger
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(wire.replace(b"\xa10.5"[1:], b"-.5"), type=Trigger)


def test_gaps_are_told_apart_by_source_and_tell_no_secrets():
    one, other = ApiSource("https://a.b/?key=secret", "x"), ApiSource("https://a.b/?key=secret", "y")
    assert gap_scope(one) != gap_scope(other)
    assert gap_scope(one) == gap_scope(ApiSource("https://a.b/?key=secret", "x"))
    assert "secret" not in gap_scope(one)
    assert len({gap_scope(BalanceSource(n, ADDRESS)) for n in range(1, 5)}) == 4
