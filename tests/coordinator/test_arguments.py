"""Arguments of a job: everything a client sends arrives exactly, or is refused by name."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from eth_abi.abi import decode, encode
from eth_abi.grammar import parse
from eth_abi.registry import registry
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consensus.codec import keccak
from consensus.errors import Invalid
from node.arguments import canonical_arguments, dump_json, encode_call, parse_json, resolve_function

ADDRESS = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
ABI = json.dumps(
    [
        {"type": "function", "name": "ping", "inputs": [{"name": "value", "type": "uint256"}]},
        {"type": "function", "name": "put", "inputs": [{"type": "uint256"}]},
        {"type": "function", "name": "put", "inputs": [{"type": "bytes"}]},
        {"type": "function", "name": "odd", "inputs": [{"type": "some.Library"}]},
        {
            "type": "function",
            "name": "trade",
            "inputs": [
                {
                    "name": "order",
                    "type": "tuple[]",
                    "components": [{"name": "amount", "type": "uint128"}, {"name": "to", "type": "address"}],
                }
            ],
        },
        {"type": "event", "name": "Pinged", "inputs": []},
    ]
)


def one(kind: str, value: Any) -> Any:
    call = encode_call(f"f({kind})", dump_json([value]) if not isinstance(value, str) else json.dumps([value]))
    assert call[:4] == keccak(f"f({kind})".encode())[:4]
    return decode([kind], call[4:])[0]


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("uint256", "1e+21", 10**21),
        ("uint256", "1.5e3", 1500),
        ("uint256", '"1e+21"', 10**21),
        ("uint256", str(2**256 - 1), 2**256 - 1),
        ("uint256", f'"{2**200 + 1}"', 2**200 + 1),
        ("uint256", str(2**53 + 1), 2**53 + 1),
        ("uint256", '"0xff"', 255),
        ("uint256", "0e-999999", 0),
        ("int256", f'"-{2**255}"', -(2**255)),
        ("int8", "-128", -128),
        ("int16", '"-0x10"', -16),
        ("bool", "true", True),
        ("bool", '"false"', False),
        ("bytes4", '"0x01020304"', b"\1\2\3\4"),
        ("bytes", '"0x"', b""),
        ("string", '"\\u00e9\\u0000"', "\u00e9\0"),
        ("address", f'"{ADDRESS}"', ADDRESS.lower()),
        ("address", f'"{ADDRESS.lower()}"', ADDRESS.lower()),
        ("uint8[2][]", "[[1,2],[3,4]]", ((1, 2), (3, 4))),
        ("uint8[]", '"[1, 2]"', (1, 2)),
        ("(uint256,bool)", '[1,"true"]', (1, True)),
        ("((uint8,bytes)[],string)", '[[[1,"0x02"]],"x"]', (((1, b"\2"),), "x")),
    ],
)
def test_a_value_arrives_exactly(kind: str, text: str, expected: Any) -> None:
    assert decode([kind], encode_call(f"f({kind})", f"[{text}]")[4:])[0] == expected


@pytest.mark.parametrize(
    ("kind", "text", "field"),
    [
        ("uint256", str(2**256), "arguments[0]"),
        ("uint256", "-1", "arguments[0]"),
        ("uint256", "0.5", "arguments[0]"),
        ("uint256", "1.0000000000000000000000000000000000000000000000000000000000000001", "arguments[0]"),
        ("uint256", "1e999999999", "arguments[0]"),
        ("uint256", "1e-999999999", "arguments[0]"),
        ("uint256", "true", "arguments[0]"),
        ("uint256", "null", "arguments[0]"),
        ("uint256", '""', "arguments[0]"),
        ("uint256", '"1_0"', "arguments[0]"),
        ("uint256", '" 1"', "arguments[0]"),
        ("uint256", '"\u0661"', "arguments[0]"),
        ("uint256", "NaN", "arguments"),
        ("uint256", "9" * 5000, "arguments"),
        ("uint8", "256", "arguments[0]"),
        ("int8", "128", "arguments[0]"),
        ("bool", "1", "arguments[0]"),
        ("bool", '"yes"', "arguments[0]"),
        ("address", '"0x5aaeb6053F3E94C9b9A09f33669435E7Ef1BeAed"', "arguments[0]"),
        ("address", '"5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"', "arguments[0]"),
        ("bytes4", '"0x010203"', "arguments[0]"),
        ("bytes", '"0x123"', "arguments[0]"),
        ("bytes", '"text"', "arguments[0]"),
        ("string", "5", "arguments[0]"),
        ("string", '"\\ud800"', "arguments[0]"),
        ("uint8[2]", "[1]", "arguments[0][1]"),
        ("uint8[2]", "[1,2,3]", "arguments[0][2]"),
        ("uint8[]", "[1,256]", "arguments[0][1]"),
        ("(uint8,bool)", "[1]", "arguments[0][1]"),
        ("(uint8,bool)", '{"a":1}', "arguments[0]"),
        ("uint256", "1,2", "arguments[1]"),
        ("uint256,uint256", "1", "arguments[1]"),
        ("uint256[]", "[" * 100_000, "arguments"),
        ("bytes", f'"0x{"00" * 17_000}"', "arguments"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(kind: str, text: str, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        encode_call(f"f({kind})", f"[{text}]")
    assert refused.value.field == field


def test_tuples_by_name_need_the_abis_names() -> None:
    text = f'[[{{"to":"{ADDRESS}","amount":"5"}}]]'
    assert canonical_arguments("trade((uint128,address)[])", text, ABI) == f'[[[5,"{ADDRESS}"]]]'
    with pytest.raises(Invalid, match="missing") as missing:
        encode_call("trade((uint128,address)[])", '[[{"amount":5}]]', ABI)
    assert missing.value.field == "arguments[0][0].to"
    with pytest.raises(Invalid) as unknown:
        encode_call("trade((uint128,address)[])", f'[[{{"to":"{ADDRESS}","amount":5,"fee":1}}]]', ABI)
    assert unknown.value.field == "arguments[0][0].fee"
    with pytest.raises(Invalid, match="twice"):
        encode_call("trade((uint128,address)[])", f'[[{{"to":"{ADDRESS}","amount":5,"amount":6}}]]', ABI)


def test_functions_are_found_by_name_and_by_signature() -> None:
    assert resolve_function("ping", ABI) == "ping(uint256)"
    assert resolve_function(" ping( uint value )".replace(" value", ""), ABI) == "ping(uint256)"
    assert resolve_function("put(bytes)", ABI) == "put(bytes)"
    assert resolve_function("anything(uint8[3],(bool,int))", "") == "anything(uint8[3],(bool,int256))"
    assert resolve_function("trade", ABI) == "trade((uint128,address)[])"
    with pytest.raises(Invalid, match=r"put\(bytes\), put\(uint256\)"):
        resolve_function("put", ABI)


@pytest.mark.parametrize(
    ("function", "abi", "field"),
    [
        ("pong", ABI, "target_function"),
        ("Pinged", ABI, "target_function"),
        ("ping(bytes)", ABI, "target_function"),
        ("ping", "", "target_function"),
        ("", ABI, "target_function"),
        ("ping(uint256", "", "target_function"),
        ("ping(uint7)", "", "target_function"),
        ("ping(bytes33)", "", "target_function"),
        ("ping(bytes0)", "", "target_function"),
        ("ping(uint08)", "", "target_function"),
        ("ping(uint256[0])", "", "target_function"),
        ("ping(bool8)", "", "target_function"),
        ("ping(,)", "", "target_function"),
        ("ping" + "(" * 200 + ")" * 200, "", "target_function"),
        ("p\0ng(uint256)", "", "target_function"),
        ("odd", ABI, "abi[3].inputs[0].type"),
        ("ping", "{}", "abi"),
        ("ping", "[1]", "abi"),
        ("ping", "nonsense", "abi"),
        ("ping", "[" * 100_000, "abi"),
        ("ping", '[{"type":"function","name":"ping","inputs":5}]', "abi[0].inputs"),
        ("ping", '[{"type":"function","name":"ping","inputs":[{"type":"tuple"}]}]', "abi[0].inputs[0].components"),
    ],
)
def test_bad_functions_are_refused_by_name(function: str, abi: str, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        resolve_function(function, abi)
    assert refused.value.field == field


def test_a_function_without_parameters_needs_no_arguments() -> None:
    assert encode_call("tick()", "") == encode_call("tick()", "[]") == encode_call("tick()", "null") == keccak(b"tick()")[:4]


@pytest.mark.parametrize(
    "arguments",
    ["[1e99999999999999999999]", "[1e-99999999999999999999]", "[1." + "0" * 250_000 + "1]", "[" + "9" * 250_000 + "]"],
    ids=["large exponent", "small exponent", "digits of a fraction", "digits"],
)
def test_a_number_too_long_to_compute_with_is_refused_unread(arguments: str) -> None:
    with pytest.raises(Invalid) as refused:
        encode_call("f(uint256)", arguments)
    assert refused.value.field == "arguments"


def test_types_that_strangers_bring_are_not_kept() -> None:
    kept = [parse.cache_info().currsize, registry.get_encoder.cache_info().currsize]
    encode_call("never_seen_before((uint8[77],bytes19[78][])[])", "[[]]")
    assert kept == [parse.cache_info().currsize, registry.get_encoder.cache_info().currsize]


def test_an_overloaded_name_lists_some_of_its_signatures() -> None:
    abi = json.dumps([{"name": "f", "inputs": [{"type": f"bytes[{i}][{j}]"}]} for i in range(1, 40) for j in range(1, 40)])
    with pytest.raises(Invalid) as refused:
        resolve_function("f", abi)
    assert "f(bytes[10][10]), " in refused.value.problem
    assert len(refused.value.problem) < 500


scalars = st.one_of(
    st.sampled_from([8, 16, 128, 256]).flatmap(lambda n: st.tuples(st.just(f"uint{n}"), st.integers(0, 2**n - 1))),
    st.sampled_from([8, 64, 256]).flatmap(
        lambda n: st.tuples(st.just(f"int{n}"), st.integers(-(2 ** (n - 1)), 2 ** (n - 1) - 1))
    ),
    st.tuples(st.just("bool"), st.booleans()),
    st.tuples(st.just("string"), st.text(max_size=40)),
    st.tuples(st.just("bytes"), st.binary(max_size=70)),
    st.integers(1, 32).flatmap(lambda n: st.tuples(st.just(f"bytes{n}"), st.binary(min_size=n, max_size=n))),
    st.tuples(st.just("address"), st.binary(min_size=20, max_size=20).map(lambda b: "0x" + b.hex())),
)


def nested(inner: st.SearchStrategy[tuple[str, Any]]) -> st.SearchStrategy[tuple[str, Any]]:
    together = st.lists(inner, min_size=1, max_size=4).map(lambda m: (f"({','.join(k for k, _ in m)})", tuple(v for _, v in m)))
    fixed = st.tuples(inner, st.integers(1, 3)).map(lambda p: (f"{p[0][0]}[{p[1]}]", [p[0][1]] * p[1]))
    opened = st.tuples(inner, st.integers(0, 3)).map(lambda p: (f"{p[0][0]}[]", [p[0][1]] * p[1]))
    return st.one_of(together, fixed, opened)


def as_json(value: Any, as_text: bool) -> Any:
    if isinstance(value, bytes):
        return "0x" + value.hex()
    if isinstance(value, list | tuple):
        return [as_json(v, as_text) for v in value]
    return str(value) if as_text and isinstance(value, int) and not isinstance(value, bool) else value


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.recursive(scalars, nested, max_leaves=6), max_size=4), st.booleans())
def test_every_type_encodes_as_eth_abi_does(parameters: list[tuple[str, Any]], as_text: bool) -> None:
    kinds = [k for k, _ in parameters]
    function = f"f({','.join(kinds)})"
    text = json.dumps([as_json(v, as_text) for _, v in parameters])
    canonical = canonical_arguments(function, text)
    assert resolve_function(function, "") == function
    assert encode_call(function, text)[4:] == encode(kinds, [v for _, v in parameters])
    assert encode_call(function, canonical) == encode_call(function, text)
    assert canonical_arguments(function, canonical) == canonical


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["uint256", "int8[]", "(bool,bytes)", "address", "string", "bytes4[2]"]), st.lists(json_values, max_size=3)
)
def test_hostile_values_are_encoded_or_refused_and_nothing_else(kind: str, values: list[Any]) -> None:
    with suppress(Invalid):
        assert len(encode_call(f"f({kind})", json.dumps(values))) >= 4


@settings(max_examples=200, deadline=None)
@given(json_values)
def test_json_survives_a_round_trip_without_loss(value: Any) -> None:
    parsed = parse_json(json.dumps(value), "x")
    assert parse_json(dump_json(parsed), "x") == parsed
