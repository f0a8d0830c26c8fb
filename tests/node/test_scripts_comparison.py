"""When another keeper's run contradicts one's own, and when it only differs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.messages import JobSpec, Run
from node.scripts import NoCall, Outcome
from node.scripts.comparison import compare
from node.scripts.outputs import action_of
from tests.node.script_world import USAGE, job

PERCENT = (1, 100)


def run(printed: bytes, script: bytes = b"\x01" * 32) -> Run:
    return Run(script, printed, USAGE)


def own(spec: JobSpec, printed: bytes, *, networked: bool = False, code: str = "") -> Outcome:
    action = NoCall(code, "") if code else action_of(spec, printed)
    return Outcome(action, run(printed), networked, PERCENT if networked else (0, 1))


def judged(mine: bytes, theirs: bytes, *, networked: bool = False, **changes: Any) -> str | None:
    spec = job(2, **changes)
    return compare(own(spec, mine, networked=networked), run(theirs), spec)


def test_the_same_output_is_the_same() -> None:
    assert judged(b"[5]", b"[5]") is None
    assert judged(b"[5]", b" [ 5 ]\n") is None
    assert judged(b'["5"]', b'["5"]') is None


@pytest.mark.parametrize("theirs", [b"[6]", b'["5"]', b"[5.0]", b"[1e30]"])
def test_another_output_without_network_is_a_contradiction(theirs: bytes) -> None:
    assert judged(b"[5]", theirs) in ("WRONG_OUTPUT", None)
    assert judged(b"[5]", theirs) == (None if theirs == b"[5.0]" else "WRONG_OUTPUT")


@pytest.mark.parametrize(
    ("mine", "theirs", "verdict"),
    [
        (b"[100000]", b"[101000]", None),
        (b"[100000]", b"[99000]", None),
        (b"[100000]", b"[101001]", "OUTPUT_DIFFERS"),
        (b'["100000"]', b'["100999"]', None),
        (b'["100000"]', b"[100999]", "OUTPUT_DIFFERS"),
        (b"[0]", b"[1]", "OUTPUT_DIFFERS"),
        (b"[1]", b"[1]", None),
        (b"[115792089237316195423570985008687907853269984665640564039457584007913129639935]", b"[1]", "OUTPUT_DIFFERS"),
    ],
)
def test_numbers_from_the_network_may_differ_by_the_tolerance(mine: bytes, theirs: bytes, verdict: str | None) -> None:
    assert judged(mine, theirs, networked=True) == verdict


def test_only_numbers_may_differ() -> None:
    function = "f(bool,address,bytes,string,uint256[])"

    def printed(truth: bool = True, address: str = "11", data: str = "0x64", text: str = "a", numbers: Any = (100,)) -> bytes:
        return json.dumps([truth, "0x" + address * 20, data, text, list(numbers)]).encode()

    def differs(**changes: Any) -> str | None:
        return judged(printed(), printed(**changes), networked=True, function=function)

    assert differs(numbers=[101]) is None
    for changes in ({"truth": False}, {"address": "12"}, {"data": "0x65"}, {"text": "b"}, {"numbers": []}, {"numbers": [100, 1]}):
        assert differs(**changes) == "OUTPUT_DIFFERS", changes


def test_an_output_that_means_no_call_is_a_lie_even_with_network() -> None:
    assert judged(b"[5]", b"rubbish", networked=True) == "WRONG_OUTPUT"
    spec = job(7)
    declined = b'{"shouldExecute":false}'
    assert compare(own(spec, declined, networked=True), run(declined), spec) == "WRONG_OUTPUT"
    assert compare(own(spec, declined), run(declined), spec, "SCRIPT_DECLINED") is None


def decision(execute: bool = True, **more: Any) -> bytes:
    return json.dumps({"shouldExecute": execute, "targetContract": "0x" + "77" * 20, "calldata": "0x12", **more}).encode()


def test_a_custom_scripts_metadata_does_not_count_but_its_storage_does() -> None:
    spec = job(7)
    mine = own(spec, decision(metadata={"timestamp": 1, "reason": "a"}, storageUpdates={"n": 1}))
    assert compare(mine, run(decision(metadata={"timestamp": 2}, storageUpdates={"n": 1})), spec) is None
    assert compare(mine, run(decision(storageUpdates={"n": 2})), spec) == "WRONG_OUTPUT"
    assert compare(mine, run(decision(storageUpdates={"n": True})), spec) == "WRONG_OUTPUT"
    assert compare(mine, run(decision(execute=False)), spec, "SCRIPT_DECLINED") == "WRONG_OUTPUT"


def test_a_decision_by_what_the_network_says_may_go_either_way() -> None:
    spec = job(7)
    mine = own(spec, decision(), networked=True)
    assert compare(mine, run(decision(execute=False)), spec, "SCRIPT_DECLINED") == "OUTPUT_DIFFERS"


def test_another_script_is_told_before_anything_else() -> None:
    spec = job(2)
    assert compare(own(spec, b"[5]"), run(b"[5]", script=b"\x02" * 32), spec) == "WRONG_SCRIPT"


@pytest.mark.parametrize(
    ("mine", "claimed", "verdict"),
    [
        ("SCRIPT_FAILED", "SCRIPT_FAILED", None),
        ("SCRIPT_FAILED", "", "WRONG_OUTPUT"),
        ("", "SCRIPT_FAILED", "WRONG_OUTPUT"),
        ("", "SCRIPT_OUTPUT", "WRONG_OUTPUT"),
        ("", "SCRIPT_DECLINED", "WRONG_OUTPUT"),
        ("", "NO_KEEPER", "WRONG_OUTPUT"),
        ("NO_KEEPER", "NO_KEEPER", "WRONG_OUTPUT"),
        ("SCRIPT_TIMEOUT", "SCRIPT_TIMEOUT", None),
        ("", "SCRIPT_TIMEOUT", "OUTPUT_DIFFERS"),
        ("SCRIPT_TIMEOUT", "", "OUTPUT_DIFFERS"),
        ("SCRIPT_MEMORY", "SCRIPT_FAILED", "OUTPUT_DIFFERS"),
        ("", "SCRIPT_INVALID", "OUTPUT_DIFFERS"),
    ],
)
def test_a_failure_is_compared_by_its_reason(mine: str, claimed: str, verdict: str | None) -> None:
    spec = job(2)
    shown = None if claimed == "SCRIPT_INVALID" else run(b"[5]")
    assert compare(own(spec, b"[5]", code=mine), shown, spec, claimed) == verdict


def test_a_script_that_cannot_run_needs_no_run_and_everything_else_does() -> None:
    spec = job(2)
    invalid = Outcome(NoCall("SCRIPT_INVALID", ""), None)
    assert compare(invalid, None, spec, "SCRIPT_INVALID") is None
    assert compare(own(spec, b"[5]"), None, spec, "SCRIPT_FAILED") == "WRONG_OUTPUT"
    assert compare(own(spec, b"[5]"), None, spec, "") == "WRONG_OUTPUT"
    assert compare(invalid, run(b"[5]"), spec, "") == "OUTPUT_DIFFERS"


values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=6)
decisions = st.fixed_dictionaries(
    {"shouldExecute": st.booleans()}, optional={"storageUpdates": st.dictionaries(st.text(), values), "metadata": values}
)
outputs = st.binary(max_size=60) | (values | decisions).map(lambda value: json.dumps(value).encode())


@given(st.sampled_from([2, 7]), st.booleans(), outputs, outputs)
def test_whatever_is_printed_agrees_with_itself_and_is_judged(kind: int, networked: bool, mine: bytes, theirs: bytes) -> None:
    spec = job(kind)
    outcome = own(spec, mine, networked=networked)
    code = outcome.action.code if isinstance(outcome.action, NoCall) else ""
    assert compare(outcome, outcome.run, spec, code) is None
    for claim in ("", "SCRIPT_DECLINED", "SCRIPT_OUTPUT"):
        assert compare(outcome, run(theirs), spec, claim) in (None, "WRONG_OUTPUT", "OUTPUT_DIFFERS")
