"""What a script's output means: a call, a decision against one, or a reason that quotes it."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from eth_utils.address import to_checksum_address
from hypothesis import given
from hypothesis import strategies as st

from consensus.errors import Failed
from consensus.messages import MAX_CALL_BYTES, MAX_OUTPUT_BYTES, MAX_STORAGE_BYTES
from node.arguments import encode_call, parse_json
from node.scripts import Call, NoCall
from node.scripts.outputs import action_of, apply, storage_updates
from tests.node.script_world import TARGET, job

CONTRACT = to_checksum_address(b"\x77" * 20)


def decision(**changes: Any) -> bytes:
    return json.dumps({"shouldExecute": True, "targetContract": CONTRACT, "calldata": "0x12345678", **changes}).encode()


@pytest.mark.parametrize(
    ("function", "printed"),
    [
        ("f(uint256)", b"[115792089237316195423570985008687907853269984665640564039457584007913129639935]"),
        ("f(uint256)", b' \n["9007199254740993"]\n'),
        ("f(int256,bytes4,(address,bool)[])", b'[-5,"0x01020304",[["0x%s",true]]]' % (b"11" * 20)),
        ("f((uint128 amount,address to))", b'[{"to":"0x%s","amount":5}]' % (b"11" * 20)),
        ("f()", b"[]"),
    ],
)
def test_an_array_is_the_arguments_of_the_jobs_function(function: str, printed: bytes) -> None:
    action = action_of(job(2, function=function), printed)
    assert action == Call(TARGET, encode_call(function, printed.decode()))


@pytest.mark.parametrize(
    ("printed", "words"),
    [
        (b"", "printed nothing"),
        (b" \n", "printed nothing"),
        (b"hello", "hello"),
        (b"fetching...\n[1]", "fetching..."),
        (b"[1] done", "done"),
        (b"[1][2]", "[1][2]"),
        (b"[NaN]", "NaN"),
        (b"[1.5]", "arguments[0]: has a fraction"),
        (b"[1,2]", "arguments[1]: is one too many"),
        (b"[]", "arguments[0]: is missing"),
        (b'{"value":1}', "is no array"),
        (b"\xff\xfe[\x001\x00]\x00", "UTF-8"),
        (b"\xef\xbb\xbf[1]", "BOM"),
        (b"[" * 30_000, "nested too deeply"),
        (b"[" + b"9" * 5000 + b"]", "JSON"),
        (b"\x1b]0;owned\x07" * 3000, "owned"),
    ],
)
def test_rubbish_ends_with_a_reason_that_quotes_it(printed: bytes, words: str) -> None:
    action = action_of(job(2), printed)
    assert isinstance(action, NoCall)
    assert action.code == "SCRIPT_OUTPUT"
    assert words in action.detail
    assert len(action.detail) <= 512
    assert action.detail.isprintable()


def test_the_first_output_of_a_safe_job_is_the_safe() -> None:
    spec = job(2, function="f(address,uint256)", arguments=json.dumps([CONTRACT, None]))
    other = to_checksum_address(b"\x78" * 20)
    assert isinstance(action_of(spec, json.dumps([CONTRACT.lower(), 5]).encode()), Call)
    refused = action_of(spec, json.dumps([other, 5]).encode())
    assert isinstance(refused, NoCall)
    assert f'arguments[0]: must be "{CONTRACT}"' in refused.detail
    assert isinstance(action_of(spec, json.dumps([CONTRACT]).encode()), NoCall)


def test_a_custom_script_decides_what_is_called() -> None:
    assert action_of(job(7), decision(metadata={"reason": "due"})) == Call(b"\x77" * 20, b"\x12\x34\x56\x78")
    assert action_of(job(7, target=b"\x77" * 20), decision(targetContract=CONTRACT.lower())) == Call(
        b"\x77" * 20, b"\x12\x34\x56\x78"
    )
    assert action_of(job(7), decision(calldata="0x", storageUpdates=None)) == Call(b"\x77" * 20, b"")


def test_a_custom_script_may_decide_against_it_and_say_why() -> None:
    said = {"shouldExecute": False, "metadata": {"reason": "price \u202e1,999\n below\ud800"}}
    assert action_of(job(7), json.dumps(said).encode()) == NoCall("SCRIPT_DECLINED", "price 1,999 below")
    assert action_of(job(7), b'{"shouldExecute":false}') == NoCall("SCRIPT_DECLINED", "the script gave no reason")
    assert action_of(job(7), decision(shouldExecute=False, targetContract="", calldata="")).code == "SCRIPT_DECLINED"  # type: ignore[union-attr]
    long = json.dumps({"shouldExecute": False, "metadata": {"reason": "x" * 9000}}).encode()
    assert len(action_of(job(7), long).detail) <= 512  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("printed", "words"),
    [
        (b"[]", "is no JSON object"),
        (b"{}", "shouldExecute: is missing"),
        (decision(shouldExecute="true"), "shouldExecute: is neither true nor false"),
        (decision(shouldExecute=1), "shouldExecute: is neither true nor false"),
        (b'{"shouldExecute":true,"shouldExecute":false}', "twice"),
        (decision(gas=5), "gas: is not known"),
        (b'{"shouldExecute":true}', "targetContract: is missing"),
        (decision(targetContract="0x12"), "targetContract: is no address"),
        (decision(targetContract="0x5aaeb6053F3E94C9b9A09f33669435E7Ef1BeAed"), "targetContract"),
        (decision(targetContract="0x" + "0" * 40), "targetContract: is the zero address"),
        (decision(calldata="12345678"), "calldata: is no hex text"),
        (decision(calldata="0x123"), "calldata: is no hex text"),
        (decision(calldata=None), "calldata: is no hex text"),
        (decision(metadata="x"), "metadata: is no JSON object"),
        (decision(storageUpdates=[]), "storageUpdates: is no JSON object"),
        (decision(storageUpdates={"a": {}}), "storageUpdates.a: is neither"),
        (decision(storageUpdates={"a": [1]}), "storageUpdates.a: is neither"),
        (decision(storageUpdates={"": 1}), "storageUpdates: has a key of 0"),
        (decision(storageUpdates={"k" * 257: 1}), "storageUpdates: has a key of 257"),
    ],
)
def test_what_a_custom_script_prints_is_strict(printed: bytes, words: str) -> None:
    action = action_of(job(7), printed)
    assert isinstance(action, NoCall)
    assert (action.code, words in action.detail) == ("SCRIPT_OUTPUT", True), action.detail


def test_a_custom_script_calls_its_jobs_contract_where_that_has_one() -> None:
    action = action_of(job(7, target=b"\x79" * 20), decision())
    assert isinstance(action, NoCall)
    assert "is not the job's target contract" in action.detail


def test_calldata_has_a_limit() -> None:
    most = "0x" + "00" * MAX_CALL_BYTES
    assert isinstance(
        action_of(job(7), b'{"shouldExecute":true,"targetContract":"%s","calldata":"%s"}' % (CONTRACT.encode(), most.encode())),
        NoCall,
    )
    small = "0x" + "00" * (MAX_OUTPUT_BYTES // 2 - 100)
    assert isinstance(action_of(job(7), decision(calldata=small)), Call)


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_any_output_means_a_call_or_a_reason_and_nothing_else(printed: bytes) -> None:
    for definition in (2, 7):
        action = action_of(job(definition), printed)
        assert isinstance(action, Call) or (action.detail.isprintable() and len(action.detail) <= 512)
    with suppress(Failed):
        storage_updates(printed)


def test_storage_is_changed_key_by_key_and_kept_in_full() -> None:
    updates = storage_updates(
        decision(storageUpdates={"n": 2**200, "gone": None, "t": "é", "b": False}).replace(b'"b"', b'"f": 0.10, "b"')
    )
    after = apply('{"gone":1,"kept":"x"}', updates)
    assert after == f'{{"b":false,"f":0.10,"kept":"x","n":{2**200},"t":"\\u00e9"}}'
    assert apply(after, {}) == after
    assert apply("", {}) == apply('{"a":1}', {"a": None}) == apply("", {"a": None}) == ""
    assert storage_updates(b'{"shouldExecute":false}') == {}
    for wrong in (b"[]", b"", decision(storageUpdates=5)):
        with pytest.raises(Failed, match="SCRIPT_OUTPUT"):
            storage_updates(wrong)


def test_storage_has_a_limit_and_reaches_it() -> None:
    room = MAX_STORAGE_BYTES - len('{"k":""}')
    assert len(apply("", {"k": "x" * room})) == MAX_STORAGE_BYTES
    with pytest.raises(Failed, match="16385 bytes, at most 16384"):
        apply("", {"k": "x" * (room + 1)})


scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=20)
keys = st.text(min_size=1, max_size=20)


@given(st.dictionaries(keys, scalars, max_size=5), st.dictionaries(keys, scalars, max_size=5))
def test_storage_is_a_dictionary(first: dict[str, Any], second: dict[str, Any]) -> None:
    text = apply(apply("", first), second)
    wanted = {key: value for key, value in {**first, **second}.items() if value is not None}
    assert (parse_json(text, "storage") if text else {}) == wanted
