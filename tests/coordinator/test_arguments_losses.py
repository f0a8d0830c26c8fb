"""What the field loses of arguments today, one test each; and random types and values, however they are written."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from eth_abi.abi import decode
from eth_utils.address import to_checksum_address
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consensus.codec import keccak
from consensus.errors import Invalid
from consensus.messages import JobSpec
from consensus.triggers import Interval
from coordinator.definitions.posted import Posted, call_of, spec_of
from node.arguments import MAX_SIGNATURE, dump_json, encode_call, resolve_function, selector, with_names
from node.scripts import Call
from node.scripts.outputs import action_of

ADDRESS = to_checksum_address(b"\x77" * 20)


def value_of(kind: str, text: str) -> Any:
    return decode([kind], encode_call(f"f({kind})", text)[4:])[0]


def refusal(function: str, arguments: str, abi: str = "", fixed: str = "") -> Invalid:
    with pytest.raises(Invalid) as refused:
        encode_call(function, arguments, abi, fixed=fixed)
    return refused.value


@pytest.mark.parametrize("number", [2**53 + 1, 2**64, 10**21 + 1, 2**256 - 1])
def test_a_large_integer_keeps_its_last_digit_as_number_text_and_hex(number: int) -> None:
    for text in (f"[{number}]", f'["{number}"]', f'["{hex(number)}"]', f"[{number}.0]"):
        assert value_of("uint256", text) == number


def test_negative_integers_stay_negative() -> None:
    for text in (f"[-{2**53 + 1}]", f'["-{2**53 + 1}"]', f'["-{hex(2**53 + 1)}"]'):
        assert value_of("int256", text) == -(2**53) - 1
    assert refusal("f(uint256)", "[-1]").field == "arguments[0]"


def test_bytes_are_neither_cut_nor_filled() -> None:
    assert value_of("bytes", '["0x00"]') == b"\0"
    assert value_of("bytes32", f'["0x{"ab" * 32}"]') == b"\xab" * 32
    for text in (f'["0x{"ab" * 31}"]', f'["0x{"ab" * 33}"]'):
        assert "exactly 32" in refusal("f(bytes32)", text).problem
    assert refusal("f(bytes)", '["abc"]').field == "arguments[0]"


def test_nothing_is_dropped_of_nested_arrays() -> None:
    assert value_of("uint8[][2][]", "[[[[1],[2,3]],[[],[4]]]]") == (((1,), (2, 3)), ((), (4,)))
    assert refusal("f(uint8[][2][])", "[[[[1],[2,3]],[[]]]]").field == "arguments[0][1][1]"
    assert refusal("f(uint8[][2][])", "[[[[1],[2,999]]]]").field == "arguments[0][0][1][1]"


ORDER = json.dumps(
    [
        {
            "type": "function",
            "name": "trade",
            "inputs": [
                {
                    "name": "order",
                    "type": "tuple",
                    "components": [
                        {"name": "side", "type": "uint8", "internalType": "enum Market.Side"},
                        {
                            "name": "limits",
                            "type": "tuple[]",
                            "components": [{"name": "low", "type": "int128"}, {"name": "", "type": "bool"}],
                        },
                        {"name": "to", "type": "address", "internalType": "address payable"},
                    ],
                },
                {"name": "price", "type": "uint256", "internalType": "Price"},
            ],
        }
    ]
)
TRADE = "trade((uint8,(int128,bool)[],address),uint256)"


def test_tuples_are_given_by_position_or_by_name() -> None:
    by_name = f'[{{"to":"{ADDRESS}","limits":[[-5,true]],"side":1}},7]'
    by_place = f'[[1,[[-5,true]],"{ADDRESS}"],7]'
    assert encode_call(TRADE, by_name, ORDER) == encode_call(TRADE, by_place, ORDER) == encode_call(TRADE, by_place)
    assert refusal(TRADE, by_name).remedy == "send an array, or an ABI with names"
    wrong = refusal(TRADE, by_name.replace("limits", "limit"), ORDER)
    assert (wrong.field, wrong.problem) == ("arguments[0].limit", "is no member: side, limits, to")
    assert refusal(TRADE, f'[{{"to":"{ADDRESS}","side":1}},7]', ORDER).field == "arguments[0].limits"
    assert refusal(TRADE, f'[{{"to":"{ADDRESS}","limits":[{{"low":1}}],"side":1}},7]', ORDER).field == "arguments[0].limits[0]"


def test_an_enum_is_its_members_index() -> None:
    assert encode_call(TRADE, f'[[255,[],"{ADDRESS}"],7]', ORDER)
    named = refusal(TRADE, f'[["Buy",[],"{ADDRESS}"],7]', ORDER)
    assert (named.field, named.problem) == ("arguments[0][0]", "is no integer, enum Market.Side takes a member's index")
    assert refusal(TRADE, f'[[256,[],"{ADDRESS}"],7]', ORDER).problem == "is out of range for uint8"


def test_names_travel_in_the_signature() -> None:
    function = with_names(TRADE, ORDER)
    assert function == "trade((uint8 side,(int128 low,bool)[] limits,address to),uint256)"
    by_name = f'[{{"to":"{ADDRESS}","limits":[[-5,true]],"side":1}},7]'
    assert encode_call(function, by_name) == encode_call(TRADE, by_name, ORDER)
    assert selector(function) == selector(TRADE) == keccak(TRADE.encode())[:4]
    assert resolve_function(function, ORDER) == TRADE
    assert with_names(TRADE, "") == TRADE
    long = json.loads(ORDER)
    for place, member in enumerate(long[0]["inputs"][0]["components"]):
        member["name"] = f"{'n' * 250}{place}"
    assert len(with_names(TRADE, json.dumps(long))) > 700
    many = [{"name": f"{'n' * 250}{i}", "type": "bool"} for i in range(20)]
    wide = json.dumps([{"name": "f", "inputs": [{"name": "t", "type": "tuple", "components": many}]}])
    bare = resolve_function("f", wide)
    assert with_names(bare, wide) == bare
    assert len(bare) < MAX_SIGNATURE


def test_a_script_names_the_members_of_tuples_that_the_posted_abi_names() -> None:
    spec = JobSpec.decode(spec_of(scripted := posted(), call_of(scripted), 1_700_000_000, 3600))
    printed = f'[{{"to":"{ADDRESS}","limits":[[-5,true]],"side":1}},7]'.encode()
    assert action_of(spec, printed) == Call(b"\x55" * 20, encode_call(TRADE, printed.decode(), ORDER))
    assert call_of(scripted).signature == TRADE


def posted() -> Posted:
    return Posted(
        id=1,
        owner=b"\x44" * 20,
        title="",
        definition=2,
        time_frame=3600,
        trigger=Interval(60),
        chain_id=31337,
        created_chain_id=31337,
        contract=b"\x55" * 20,
        function="trade",
        abi=ORDER,
        arg_type=2,
        arguments="",
        script_url="ipfs://bafkreiaxnnnb7qz2focittuqq3ya25q7rcv3bqynnczfzako47346wosmu",
        language="py",
    )


def test_too_many_and_too_few_arguments_are_named() -> None:
    assert (refusal("f(uint8,bool)", "[1]").field, refusal("f(uint8,bool)", "[1]").problem) == (
        "arguments[1]",
        "is missing: f(uint8,bool) takes 2",
    )
    assert refusal("f(uint8,bool)", "[1,true,2]").field == "arguments[2]"
    assert refusal("f((uint8,bool))", "[[1]]").field == "arguments[0][1]"


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint256", "int256", "uint64"])
def test_what_is_out_of_range_is_refused_at_both_ends(kind: str) -> None:
    bits = int(kind.lstrip("uint"))
    low, high = (0, 2**bits - 1) if kind.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert value_of(kind, f"[{low}]") == low
    assert value_of(kind, f"[{high}]") == high
    for number in (low - 1, high + 1):
        for text in (f"[{number}]", f'["{number}"]'):
            assert refusal(f"f({kind})", text).field == "arguments[0]"


def test_an_overloaded_name_is_told_apart_by_its_signature() -> None:
    abi = json.dumps([{"name": "put", "inputs": [{"type": kind}]} for kind in ("uint256", "bytes", "uint256[]")])
    with pytest.raises(Invalid, match=r"put\(bytes\), put\(uint256\), put\(uint256\[\]\)"):
        resolve_function("put", abi)
    assert (
        resolve_function("put(uint256[])", abi) == resolve_function("function put( uint256 [] values )", abi) == "put(uint256[])"
    )
    assert encode_call("put(bytes)", '["0x01"]', abi)[:4] == keccak(b"put(bytes)")[:4]


def test_function_types_are_an_address_and_a_selector() -> None:
    assert value_of("function", f'["0x{"ab" * 24}"]') == b"\xab" * 24
    assert encode_call("f(function)", f'["0x{"ab" * 24}"]')[:4] == keccak(b"f(function)")[:4]
    assert "exactly 24" in refusal("f(function)", '["0xab"]').problem


@pytest.mark.parametrize(
    ("fixed", "arguments", "field"),
    [
        (f'["{ADDRESS}"]', f'["{ADDRESS.lower()}",5]', ""),
        (f'["{ADDRESS}",null]', f'["{ADDRESS}",5]', ""),
        ('[null,"0x5"]', f'["{ADDRESS}",5]', ""),
        ("", f'["{ADDRESS}",5]', ""),
        (f'["{ADDRESS}"]', f'["0x{"78" * 20}",5]', "arguments[0]"),
        ("[null,6]", f'["{ADDRESS}",5]', "arguments[1]"),
        ("[null,null,null]", f'["{ADDRESS}",5]', "arguments[2]"),
        ('["0x12"]', f'["{ADDRESS}",5]', "arguments[0]"),
        ("{}", f'["{ADDRESS}",5]', "arguments"),
    ],
)
def test_what_a_job_fixes_a_script_cannot_change(fixed: str, arguments: str, field: str) -> None:
    if field:
        assert refusal("f(address,uint256)", arguments, fixed=fixed).field == field
    else:
        assert encode_call("f(address,uint256)", arguments, fixed=fixed) == encode_call("f(address,uint256)", arguments)


# --- random types, and values in every way that they may be written ------------------------------------------------------------


@st.composite
def integers(draw: st.DrawFn) -> tuple[str, Any, Any]:
    bits = 8 * draw(st.integers(1, 32))
    signed = draw(st.booleans())
    number = draw(st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else st.integers(0, 2**bits - 1))
    sign, size = "-" if number < 0 else "", abs(number)
    written = draw(st.sampled_from([number, str(number), f"{sign}{hex(size)}", Decimal(number), f"{number}.0"]))
    return f"{'' if signed else 'u'}int{bits}", number, written


fixed_bytes = st.integers(1, 32).flatmap(lambda n: st.tuples(st.just(f"bytes{n}"), st.binary(min_size=n, max_size=n)))
in_hex = (
    st.one_of(
        fixed_bytes,
        st.tuples(st.just("bytes"), st.binary(max_size=70)),
        st.tuples(st.just("function"), st.binary(min_size=24, max_size=24)),
        st.tuples(st.just("address"), st.binary(min_size=20, max_size=20)),
    )
    .flatmap(lambda pair: st.tuples(st.just(pair), st.booleans()))
    .map(
        lambda drawn: (
            drawn[0][0],
            "0x" + drawn[0][1].hex() if drawn[0][0] == "address" else drawn[0][1],
            f"0x{drawn[0][1].hex().upper() if drawn[1] else drawn[0][1].hex()}",
        )
    )
)
booleans = st.booleans().flatmap(
    lambda truth: st.tuples(st.just("bool"), st.just(truth), st.sampled_from([truth, str(truth).lower()]))
)
texts = st.text(max_size=30).map(lambda text: ("string", text, text))
Written = tuple[str, Any, Any]


def compound(inner: st.SearchStrategy[Written]) -> st.SearchStrategy[Written]:
    @st.composite
    def tuples(draw: st.DrawFn) -> Written:
        members = draw(st.lists(inner, min_size=1, max_size=4))
        names = [f"m{place}" for place in range(len(members))]
        by_name = draw(st.booleans())
        kind = "(" + ",".join(f"{each[0]} {name}" for each, name in zip(members, names, strict=True)) + ")"
        written = {name: each[2] for name, each in reversed(list(zip(names, members, strict=True)))}
        return kind, tuple(each[1] for each in members), written if by_name else [each[2] for each in members]

    @st.composite
    def arrays(draw: st.DrawFn) -> Written:
        kind, value, written = draw(inner)
        count = draw(st.integers(0, 3))
        dims = f"[{count}]" if count and draw(st.booleans()) else "[]"
        whole = [written] * count
        return f"{kind}{dims}", (value,) * count, dump_json(whole) if draw(st.booleans()) else whole

    return tuples() | arrays()


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.recursive(integers() | in_hex | booleans | texts, compound, max_leaves=8), max_size=4))
def test_whatever_is_written_is_what_the_contract_reads(parameters: list[Written]) -> None:
    function = f"f({','.join(kind for kind, _, _ in parameters)})"
    canonical = resolve_function(function, "")
    call = encode_call(function, dump_json([written for _, _, written in parameters]))
    assert call[:4] == keccak(canonical.encode())[:4] == selector(function)
    kinds = [canonical_type(kind) for kind, _, _ in parameters]
    assert decode(kinds, call[4:]) == tuple(value for _, value, _ in parameters)


def canonical_type(kind: str) -> str:
    return resolve_function(f"f({kind})", "")[2:-1]
