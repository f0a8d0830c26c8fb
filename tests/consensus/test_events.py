"""Which logs match: declarations, typed filters, and logs that strangers make."""

from __future__ import annotations

from typing import Any

import pytest
from eth_abi.abi import encode
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st

from consensus import abi
from consensus.events import EventFilter, OnEvent, _text_of, checked, declared, matches, wanted

CONTRACT = b"\xcc" * 20
ALICE, BOB = b"\xa1" * 20, b"\xb0" * 20
TRANSFER = "Transfer(address indexed from,address indexed to,uint256 value)"
EVERYTHING = (
    "All(int64 indexed small,string indexed label,bool flag,bytes4 id,bytes blob,string word,int256 n,uint8[] list,"
    "(address,(uint16,string)[]) nested,uint256[2][] pairs)"
)


def on(event: str, *filters: tuple[str, str]) -> OnEvent:
    return OnEvent(chain_id=1, contract=CONTRACT, event=declared(event).text, filters=checked(event, filters))


def word(value: int) -> bytes:
    return value.to_bytes(32, "big", signed=value < 0)


def transfer(sender: bytes, to: bytes, value: int) -> tuple[list[bytes], bytes]:
    topic = keccak(text="Transfer(address,address,uint256)")
    return [topic, sender.rjust(32, b"\0"), to.rjust(32, b"\0")], word(value)


def everything(**changes: Any) -> tuple[list[bytes], bytes]:
    v: dict[str, Any] = {
        "small": -5,
        "label": "hello",
        "flag": True,
        "id": b"\x01\x02\x03\x04",
        "blob": b"\xff" * 40,
        "word": "grüße",
        "n": -(2**255),
        "list": [1, 2, 3],
        "nested": (to_checksum_address(ALICE), [(7, "seven"), (8, "x" * 40)]),
        "pairs": [[1, 2], [3, 2**256 - 1]],
    } | changes
    data = encode(
        ["bool", "bytes4", "bytes", "string", "int256", "uint8[]", "(address,(uint16,string)[])", "uint256[2][]"],
        [v[n] for n in ("flag", "id", "blob", "word", "n", "list", "nested", "pairs")],
    )
    return [declared(EVERYTHING).topic, word(v["small"]), keccak(text=v["label"])], data


def test_a_declaration_has_one_canonical_form_and_its_signatures_topic() -> None:
    written = " event Transfer( address  indexed from , address indexed to,uint value ) ; "
    event = declared(written)
    assert event.text == TRANSFER
    assert declared(event.text) == event
    assert event.topic.hex() == "ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
    assert declared("Paused()").signature == "Paused()"
    nested = declared("A(tuple(uint a, string b)[2][] indexed x, (bytes3,int)[] y)")
    assert nested.signature == "A((uint256,string)[2][],(bytes3,int256)[])"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "declared like"),
        ("Transfer", "declared like"),
        ("Transfer(address", "comma or )"),
        ("Transfer(address from) anonymous", "anonymous"),
        ("Transfer(address from) more", "behind"),
        ("Transfer(addres from)", "no type"),
        ("Transfer(uint7 x)", "no type"),
        ("Transfer(uint256x)", "no type"),
        ("Transfer(bytes33 x)", "no type"),
        ("Transfer(uint256[0] x)", "out of range"),
        ("Transfer(uint256[070] x)", "out of range"),
        ("Transfer(,)", "no type"),
        ("T(uint indexed a,uint indexed b,uint indexed c,uint indexed d)", "3 of them indexed"),
        ("T(" + "(" * 40 + "uint" + ")" * 40 + " x)", "too deeply"),
        ("T(uint" + "[]" * 40 + " x)", "too deeply"),
        ("T(" + "uint," * 2000 + "uint)", "4096"),
    ],
)
def test_what_is_no_declaration_is_refused_with_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("(", "\\(").replace(")", "\\)")):
        declared(text)


def test_without_filters_every_log_of_the_event_and_contract_matches_and_no_other() -> None:
    trigger = on(TRANSFER)
    topics, data = transfer(ALICE, BOB, 5)
    assert matches(trigger, CONTRACT, topics, data)
    assert not matches(trigger, ALICE, topics, data)
    assert not matches(trigger, CONTRACT, [bytes(32), *topics[1:]], data)
    assert not matches(trigger, CONTRACT, [], b"")


def test_events_of_one_signature_are_told_apart_by_what_is_indexed() -> None:
    topics, data = transfer(ALICE, BOB, 5)
    nft = on("Transfer(address indexed from,address indexed to,uint256 indexed tokenId)")
    assert not matches(nft, CONTRACT, topics, data)
    assert matches(nft, CONTRACT, [*topics, word(5)], b"")
    assert not matches(on(TRANSFER), CONTRACT, [*topics, word(5)], b"")


@pytest.mark.parametrize(
    ("name", "value", "other"),
    [
        ("small", "-5", "5"),
        ("small", "-0x5", "-4"),
        ("label", "hello", "hello "),
        ("flag", "TRUE", "false"),
        ("id", "0x01020304", "0x01020305"),
        ("blob", "0x" + "ff" * 40, "0x" + "ff" * 39),
        ("word", "grüße", "gruesse"),
        ("n", str(-(2**255)), "0"),
        ("list", "[1, 2, 3]", "[1,2]"),
        ("list", '["0x1", "2", 3]', "[]"),
        ("nested", f'["0x{"a1" * 20}", [[7, "seven"], ["8", "{"x" * 40}"]]]', f'["0x{"a1" * 20}", []]'),
        ("pairs", f"[[1,2],[3,{2**256 - 1}]]", "[[1,2],[3,4]]"),
    ],
)
def test_filters_compare_typed_values(name: str, value: str, other: str) -> None:
    topics, data = everything()
    assert matches(on(EVERYTHING, (name, value)), CONTRACT, topics, data)
    assert not matches(on(EVERYTHING, (name, other)), CONTRACT, topics, data)


def test_all_filters_must_match() -> None:
    topics, data = transfer(ALICE, BOB, 5)
    both = (("to", "0x" + BOB.hex()), ("value", "0x05"))
    assert matches(on(TRANSFER, *both), CONTRACT, topics, data)
    assert not matches(on(TRANSFER, *both, ("from", "0x" + BOB.hex())), CONTRACT, topics, data)


@pytest.mark.parametrize("text", ["0x" + ALICE.hex(), "0x" + ALICE.hex().upper(), to_checksum_address(ALICE)])
def test_addresses_match_in_any_case(text: str) -> None:
    topics, data = transfer(ALICE, BOB, 5)
    trigger = on(TRANSFER, ("from", text))
    assert trigger.filters == (EventFilter("from", to_checksum_address(ALICE)),)
    assert matches(trigger, CONTRACT, topics, data)


def test_indexed_values_without_a_word_of_their_own_compare_by_hash() -> None:
    event = "Set(uint16[] indexed list,(string,bytes2) indexed pair)"
    trigger = on(event, ("list", "[1,258]"), ("pair", '["abc","0x0102"]'))
    topics = [
        declared(event).topic,
        keccak(word(1) + word(258)),
        keccak(b"abc".ljust(32, b"\0") + b"\x01\x02".ljust(32, b"\0")),
    ]
    assert matches(trigger, CONTRACT, topics, b"")
    assert not matches(trigger, CONTRACT, [*topics[:2], keccak(b"abc\x01\x02")], b"")
    assert matches(
        on("B(bytes indexed b)", ("b", "0x" + "61" * 33)), CONTRACT, [declared("B(bytes b)").topic, keccak(b"a" * 33)], b""
    )


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("unknown", "1", "'unknown': All has no such parameter, but small, label"),
        ("", "1", "no such parameter"),
        ("small", "9223372036854775808", "small: out of range for int64"),
        ("small", "1.0", "small: int64 takes an integer"),
        ("small", "", "small: int64 takes"),
        ("small", "1" * 400, "small: int64 takes"),
        ("flag", "1", "flag: a bool is"),
        ("id", "0x0102", "id: bytes4 is given as 0x and 8 digits"),
        ("id", "abcd", "id: bytes4"),
        ("blob", "0xabc", "blob: bytes is given"),
        ("list", "1,2", "list: an array or tuple is given as JSON"),
        ("list", "[256]", "list: out of range for uint8"),
        ("list", "[1.5]", "list: uint8 takes an integer"),
        ("list", "[true]", "list: uint8 takes an integer"),
        ("list", "[" * 600, "too many parts"),
        ("list", "[" * 500, "given as JSON"),
        ("pairs", "[[1]]", "a list of 2"),
        ("nested", '{"a": 1}', "a list of 2"),
        ("nested", '["0xA1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1", []]', "wrong checksum"),
        ("nested", '["0x12", []]', "an address is"),
        ("word", "x" * 9000, "word: a value has at most"),
        ("word", "\ud800", "surrogate"),
    ],
)
def test_a_filter_that_cannot_match_is_refused_naming_the_parameter(name: str, value: str, says: str) -> None:
    with pytest.raises(ValueError) as refused:
        checked(EVERYTHING, [(name, value)])
    assert says in str(refused.value)


def test_one_parameter_has_one_value_and_one_name() -> None:
    with pytest.raises(ValueError, match="two values"):
        checked(TRANSFER, [("value", "1"), ("value", "2")])
    assert len(checked(TRANSFER, [("value", "1"), ("value", "0x1")])) == 1
    with pytest.raises(ValueError, match="several parameters"):
        checked("T(uint a,uint a)", [("a", "1")])
    with pytest.raises(ValueError, match="16 filters"):
        checked(TRANSFER, [("value", "1")] * 17)


def test_a_trigger_that_makes_no_sense_matches_nothing() -> None:
    topics, data = transfer(ALICE, BOB, 5)
    for event, filters in (("nonsense", ()), (TRANSFER, (EventFilter("nobody", "1"),)), (TRANSFER, (EventFilter("to", "me"),))):
        assert not matches(OnEvent(1, CONTRACT, event, filters), CONTRACT, topics, data)


@given(st.lists(st.binary(max_size=40), max_size=5), st.binary(max_size=600), st.booleans())
def test_whatever_a_log_holds_matching_does_not_raise(topics: list[bytes], data: bytes, ours: bool) -> None:
    trigger = on(EVERYTHING, ("list", "[1]"), ("small", "1"))
    if ours:
        topics = [declared(EVERYTHING).topic, word(1), bytes(32)]
    matches(trigger, CONTRACT, topics, data)


@given(st.integers(0, 20), st.integers(0, 2**256 - 1))
def test_a_changed_word_never_raises(place: int, value: int) -> None:
    topics, data = everything()
    changed = data[: place * 32] + word(value) + data[place * 32 + 32 :]
    matches(on(EVERYTHING, ("n", "1")), CONTRACT, topics, changed)


def test_data_that_points_at_itself_costs_no_more_than_its_length() -> None:
    kind, _ = abi.parse_type("string[][][][]")
    count = 100
    level = word(count) + word(32 * count) * count  # each of its elements is the next level: 100 ** 4 strings in 13 kB
    with pytest.raises(abi.Malformed, match="more than it holds"):
        abi.decode([kind], word(32) + level * 4 + word(3) + b"abc".ljust(32))
    same = word(32) + word(count) + b"".join(word(32 * count) for _ in range(count)) + word(16_000) + bytes(16_000)
    with pytest.raises(abi.Malformed, match="more than it holds"):
        abi.decode([abi.parse_type("bytes[]")[0]], same)
    with pytest.raises(abi.Malformed):
        abi.decode([abi.parse_type("uint256[65536][65536][65536]")[0]], bytes(64))


_LEAVES = st.sampled_from(["uint8", "int256", "address", "bool", "bytes", "bytes7", "string", "uint256"])
_TYPES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        inner.map(lambda t: t + "[]"),
        st.tuples(inner, st.integers(1, 3)).map(lambda t: f"{t[0]}[{t[1]}]"),
        st.lists(inner, min_size=1, max_size=3).map(lambda ts: f"({','.join(ts)})"),
    ),
    max_leaves=6,
)


def _value_of(kind: abi.AbiType, draw: Any) -> Any:
    if kind.dims:
        count = draw(st.integers(0, 3)) if kind.dims[-1] is None else kind.dims[-1]
        return tuple(_value_of(kind.element, draw) for _ in range(count))
    match kind.base:
        case "tuple":
            return tuple(_value_of(m, draw) for m in kind.members)
        case "uint":
            return draw(st.integers(0, 2**kind.size - 1))
        case "int":
            return draw(st.integers(-(2 ** (kind.size - 1)), 2 ** (kind.size - 1) - 1))
        case "bool":
            return draw(st.booleans())
        case "address":
            return draw(st.binary(min_size=20, max_size=20))
        case "bytes" if kind.size:
            return draw(st.binary(min_size=kind.size, max_size=kind.size))
    return draw(st.binary(max_size=70)) if kind.base == "bytes" else draw(st.text(max_size=30)).encode()


def _for_eth_abi(kind: abi.AbiType, value: Any) -> Any:
    if kind.dims:
        return [_for_eth_abi(kind.element, each) for each in value]
    if kind.base == "tuple":
        return tuple(_for_eth_abi(m, each) for m, each in zip(kind.members, value, strict=True))
    return value.decode() if kind.base == "string" else to_checksum_address(value) if kind.base == "address" else value


@given(st.lists(_TYPES, max_size=4), st.data())
def test_what_the_reference_encodes_is_decoded_and_its_canonical_filter_matches(types: list[str], data: st.DataObject) -> None:
    event = declared(f"E({','.join(f'{t} p{i}' for i, t in enumerate(types))})")
    values = [_value_of(p.kind, data.draw) for p in event.parameters]
    encoded = encode(types, [_for_eth_abi(p.kind, v) for p, v in zip(event.parameters, values, strict=True)])
    assert event.decode([event.topic], encoded) == tuple(values)
    texts = [(p.name, _text_of(p.kind, v)) for p, v in zip(event.parameters, values, strict=True)]
    trigger = OnEvent(1, CONTRACT, event.text, checked(event.text, texts))
    assert wanted(trigger) == tuple(enumerate(values))
    assert matches(trigger, CONTRACT, [event.topic], encoded)
