"""Runs without a transaction: true ones get a yes, each lie its no, and what honest keepers may see differently a cannot_tell."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest

from consensus import rules
from consensus.errors import Ignore, Reject
from consensus.messages import JobSpec, NotExecuted, Run, Uint256, Usage, Verdict
from node.infra.chain import ExecutionStatus
from node.sandbox.port import Limits
from node.scripts import NoCall, Outcome
from node.scripts.comparison import compare
from node.verification.not_executed import verify_run
from node.verification.tolerances import most, most_stopped
from tests.consensus import samples
from tests.consensus.samples import NOW, PEER
from tests.consensus.test_rules import KNOWN
from tests.node.attester import CUSTOM, DECLINES, DECLINING, DYNAMIC, HONEST, decides, executed, means, read, recorded, reported
from tests.node.fake_scripts import USAGE, Prints

YES = (Verdict.YES, "")
FAILS = Prints(b"half a", code="SCRIPT_FAILED")
RUBBISH = Prints(b"rubbish")
SLOW = Prints(b"", Usage(20_000, 20_000, 20_000, 0), code="SCRIPT_TIMEOUT")
LARGE = Prints(b"", Usage(900, 1_000, 512 * 1024, 0), code="SCRIPT_MEMORY")
INVALID = Prints(b"", code="SCRIPT_INVALID")


def _no(reason: str) -> tuple[Verdict, str]:
    return Verdict.NO, reason


async def _verdict(said: NotExecuted, own: Prints | None = DECLINING, **job: Any) -> tuple[Verdict, str]:
    return await verify_run(said, means(read(said, job=job), own))


@pytest.mark.parametrize(
    ("spec", "what", "code"),
    [
        (CUSTOM, DECLINING, "SCRIPT_DECLINED"),
        (CUSTOM, FAILS, "SCRIPT_FAILED"),
        (DYNAMIC, FAILS, "SCRIPT_FAILED"),
        (DYNAMIC, RUBBISH, "SCRIPT_OUTPUT"),
        (DYNAMIC, SLOW, "SCRIPT_TIMEOUT"),
        (CUSTOM, LARGE, "SCRIPT_MEMORY"),
    ],
)
async def test_what_the_script_does_for_the_attester_too_gets_a_yes(spec: JobSpec, what: Prints, code: str) -> None:
    assert await _verdict(reported(spec, what, code), what) == YES


async def test_a_script_that_nobody_can_run_gets_a_yes() -> None:
    assert await _verdict(reported(code="SCRIPT_INVALID", run=None), INVALID) == YES


async def test_a_reason_in_other_words_gets_a_yes() -> None:
    other = Prints(DECLINES.replace(b"nothing to do", b"nothing to do at 12:00"))
    assert await _verdict(reported(said=other)) == YES


async def test_a_run_that_was_charged_already_gets_a_yes() -> None:
    said = reported()
    own = read(said)
    own.executed = dataclasses.replace(recorded(executed()), status=ExecutionStatus.NOT_EXECUTED)
    assert await verify_run(said, means(own, DECLINING)) == YES


# one test a lie


async def test_a_call_kept_back() -> None:
    assert await _verdict(reported(), Prints(decides())) == _no("WRONG_OUTPUT")
    assert await _verdict(reported(DYNAMIC, FAILS, "SCRIPT_FAILED"), HONEST) == _no("WRONG_OUTPUT")


async def test_another_reason_than_the_scripts() -> None:
    assert await _verdict(reported(said=FAILS, code="SCRIPT_FAILED")) == _no("WRONG_OUTPUT")


async def test_an_output_that_says_otherwise() -> None:
    assert await _verdict(reported(said=Prints(decides()))) == _no("WRONG_OUTPUT")


async def test_another_script() -> None:
    assert await _verdict(reported(run=Run(bytes(32), DECLINES, USAGE))) == _no("WRONG_SCRIPT")


@pytest.mark.parametrize(("what", "code"), [(SLOW, "SCRIPT_TIMEOUT"), (LARGE, "SCRIPT_MEMORY")])
async def test_a_limit_that_the_script_comes_nowhere_near(what: Prints, code: str) -> None:
    assert await _verdict(reported(said=what, code=code)) == _no("WRONG_OUTPUT")


async def test_a_task_that_executed() -> None:
    said = reported()
    own = read(said)
    own.executed = recorded(executed())
    assert await verify_run(said, means(own, DECLINING)) == _no("ALREADY_EXECUTED")


async def test_a_fee_that_is_not_of_the_usage_shown() -> None:
    assert await _verdict(reported(fee=1)) == _no("WRONG_FEE")


async def test_usage_inflated() -> None:
    beyond = msgspec.structs.replace(most(USAGE), wall_ms=most(USAGE).wall_ms + 1)
    assert await _verdict(reported(said=Prints(DECLINES, beyond))) == _no("WRONG_FEE")


async def test_usage_of_a_script_that_nobody_can_run() -> None:
    """Nothing bounds what is claimed for a run that no attester can make."""
    said = reported(said=Prints(b"", Usage(2**39, 2**39, 2**39, 0)), code="SCRIPT_INVALID")
    assert compare(Outcome(NoCall("SCRIPT_INVALID", ""), None), said.run, said.task.job(), said.code) == "WRONG_OUTPUT"
    with pytest.raises(Reject, match="WRONG_REASON"):
        rules.check_not_executed(said, PEER, KNOWN, NOW)


@pytest.mark.parametrize("field", ["cpu_ms", "wall_ms", "peak_kib", "transferred"])
async def test_usage_beyond_what_the_limits_leave_a_run(field: str) -> None:
    bound = most_stopped(SLOW.usage, Limits())
    beyond = dataclasses.replace(SLOW, usage=msgspec.structs.replace(bound, **{field: getattr(bound, field) + 1}))
    assert await _verdict(reported(said=beyond, code="SCRIPT_TIMEOUT"), SLOW) == _no("WRONG_FEE")


async def test_a_trigger_that_never_fired() -> None:
    assert await _verdict(reported(trigger_id=Uint256(NOW + 7))) == _no("NOT_DUE")


@pytest.mark.parametrize(
    ("job", "reason"), [({"owner": b"\x01" * 20}, "WRONG_RECORD"), ({"target": b"\x01" * 20}, "WRONG_TARGET")]
)
async def test_a_job_that_is_registered_otherwise(job: dict[str, Any], reason: str) -> None:
    assert await _verdict(reported(), **job) == _no(reason)


# what honest keepers may see differently


async def test_a_networked_script_that_acts_for_the_attester_cannot_be_told() -> None:
    said = reported(said=Prints(DECLINES, networked=True))
    assert await _verdict(said, Prints(decides(), networked=True)) == (Verdict.CANNOT_TELL, "OUTPUT_DIFFERS")


@pytest.mark.parametrize(
    ("what", "code", "own"),
    [
        (SLOW, "SCRIPT_TIMEOUT", Prints(DECLINES, Usage(7_000, 7_000, 20_000, 0))),
        (LARGE, "SCRIPT_MEMORY", Prints(DECLINES, Usage(100, 200, 160 * 1024, 0))),
        (SLOW, "SCRIPT_TIMEOUT", Prints(DECLINES, networked=True)),
        (DECLINING, "SCRIPT_DECLINED", SLOW),
    ],
)
async def test_a_limit_that_another_machine_may_have_reached_cannot_be_told(what: Prints, code: str, own: Prints) -> None:
    assert await _verdict(reported(said=what, code=code), own) == (Verdict.CANNOT_TELL, "OUTPUT_DIFFERS")


@pytest.mark.parametrize(
    ("code", "own", "claimed"),
    [
        # a busy loop on a machine that does much else, and on one that does nothing else
        ("SCRIPT_TIMEOUT", Usage(3_900, 20_000, 9_000, 0), Usage(20_300, 20_300, 9_000, 0)),
        # one that reads on and keeps what it has read
        ("SCRIPT_TIMEOUT", Usage(900, 20_000, 40_000, 500_000), Usage(9_000, 20_010, 400_000, 8_000_000)),
        # an engine that stopped the run before anything was measured
        ("SCRIPT_MEMORY", Usage(100, 150, 120_000, 0), Usage(0, 0, 512 * 1024, 0)),
    ],
)
async def test_how_far_a_run_came_until_it_was_stopped_goes_by_the_machine(code: str, own: Usage, claimed: Usage) -> None:
    said = reported(said=Prints(b"", claimed, code=code), code=code)
    assert await _verdict(said, Prints(b"", own, code=code)) == YES


async def test_without_the_script_nothing_can_be_told() -> None:
    assert await _verdict(reported(), None) == (Verdict.CANNOT_TELL, "SCRIPT_UNREACHABLE")


# what is refused before a vote


def test_true_words_are_accepted() -> None:
    rules.check_not_executed(reported(), PEER, KNOWN, NOW)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (samples.not_executed(secret=samples.DISPATCHER), "BAD_SIGNATURE"),
        (msgspec.structs.replace(reported(), fee=Uint256(1)), "BAD_SIGNATURE"),
        (msgspec.structs.replace(reported(), code="SCRIPT_FAILED"), "BAD_SIGNATURE"),
        (reported(code="RPC_UNREACHABLE"), "WRONG_REASON"),
        (reported(DYNAMIC, FAILS), "WRONG_REASON"),  # only custom scripts decide
        (samples.not_executed(samples.task(pinned_block=samples.PINNED), code="SCRIPT_FAILED"), "INPUTS_CONTRADICT"),
        (samples.not_executed(msgspec.structs.replace(samples.script_task(), pinned_block=39)), "NOT_DISPATCHER"),
        (reported(performer=b"\x01" * 20), "WRONG_PERFORMER"),
    ],
)
def test_a_forged_word_is_rejected(said: NotExecuted, code: str) -> None:
    with pytest.raises(Reject, match=code):
        rules.check_not_executed(said, PEER, KNOWN, NOW)


@pytest.mark.parametrize(
    ("said", "source", "now", "code"),
    [
        (reported(), PEER, NOW + 181, "LATE"),
        (reported(), PEER, NOW - 3601, "EARLY"),
        (reported(), "stranger", NOW, "UNKNOWN_PEER"),
        (reported(pinned_block=samples.PINNED + 3 + rules.AHEAD_BLOCKS + 1), PEER, NOW, "UNKNOWN_BLOCK"),
    ],
)
def test_a_word_of_no_use_is_ignored(said: NotExecuted, source: str, now: float, code: str) -> None:
    with pytest.raises(Ignore, match=code):
        rules.check_not_executed(said, source, KNOWN, now)
