"""A job's script from its CID to what it came to: checked before it runs, run once, and no failure without a reason."""

from __future__ import annotations

import pytest
import trio

from consensus.errors import Failed, Transient
from consensus.messages import MAX_STORAGE_BYTES, Run
from node.sandbox.port import MAX_SOURCE_BYTES, Language, Program, Stopped
from node.scripts import Call, NoCall, Outcome
from tests.node.script_world import LOG, TARGET, USAGE, Answer, Box, finished, job, task, world

DECLINED = b'{"shouldExecute":false,"metadata":{"reason":"not yet"}}'


def no_call(outcome: Outcome) -> tuple[str, str]:
    assert isinstance(outcome.action, NoCall)
    return outcome.action.code, outcome.action.detail


async def test_a_script_is_fetched_checked_run_and_understood() -> None:
    here = world(Box(lambda program: finished(b"[5]", stderr=b"looking\n")))
    spec = here.posted(b"# triggerx: allow api.example.org\n# triggerx: tolerance 1%\nprint([5])")
    outcome = await here.runner.run(spec, task(spec))
    assert isinstance(outcome.action, Call)
    assert outcome.action.target == TARGET
    assert outcome.run is not None
    assert outcome.run.output == b"[5]"
    assert outcome.run.usage == USAGE
    assert (outcome.networked, outcome.tolerance) == (True, (1, 100))
    [program] = here.box.runs
    assert (program.language, program.hosts) == (Language.PYTHON, ("api.example.org",))
    assert program.environment["TRIGGERX_JOB_ID"] == str(spec.job_id)


async def test_a_task_runs_its_script_once_however_often_it_is_asked_for() -> None:
    here = world(Box(lambda program: finished(b"[5]"), gate=trio.Event()))
    spec = here.posted(b"print([5])")
    found: list[Outcome] = []

    async def ask() -> None:
        found.append(await here.runner.run(spec, task(spec)))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert here.box.gate is not None
        here.box.gate.set()
    assert found == [found[0]] * 5
    assert await here.runner.run(spec, task(spec)) is found[0]
    assert len(here.box.runs) == len(here.box.checks) == len(here.shelf.asked) == 1


async def test_whoever_waits_takes_over_from_one_who_leaves() -> None:
    here = world(Box(lambda program: finished(b"[5]"), gate=trio.Event()))
    spec = here.posted(b"print([5])")
    found: list[Outcome] = []

    async def ask(leaving: trio.CancelScope) -> None:
        with leaving:
            found.append(await here.runner.run(spec, task(spec)))

    first = trio.CancelScope()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, first)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask, trio.CancelScope())
        await trio.testing.wait_all_tasks_blocked()
        first.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert here.box.gate is not None
        here.box.gate.set()
    assert len(found) == 1
    assert len(here.box.runs) == 2


async def test_other_inputs_are_another_run_and_the_script_is_checked_once() -> None:
    here = world(Box(lambda program: finished(DECLINED)))
    spec = here.posted(b"print()", 7)
    for given in (task(spec), task(spec, storage='{"n":1}'), task(spec, pinned_block=41), task(spec)):
        await here.runner.run(spec, given)
    assert len(here.box.runs) == 3
    assert len(here.box.checks) == len(here.shelf.asked) == 1


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (
            finished(b"[5]", 1, b"Traceback ...\nValueError: no price\x1b[0m\n"),
            "SCRIPT_FAILED",
            "exit code 1: Traceback ... ValueError: no price [0m",
        ),
        (finished(b"said on stdout", 3), "SCRIPT_FAILED", "exit code 3: said on stdout"),
        (finished(b"", -9), "SCRIPT_FAILED", "killed by signal 9"),
        (finished(b""), "SCRIPT_OUTPUT", "printed nothing"),
        (finished(b"rubbish"), "SCRIPT_OUTPUT", "rubbish"),
        (Stopped("SCRIPT_TIMEOUT", "20 s; it printed: \x07[", USAGE), "SCRIPT_TIMEOUT", "20 s; it printed: ["),
        (Stopped("SCRIPT_MEMORY", "512 MiB", USAGE), "SCRIPT_MEMORY", "512 MiB"),
        (Stopped("SCRIPT_OUTPUT", "more than 32 KiB: yyy", USAGE), "SCRIPT_OUTPUT", "more than 32 KiB"),
    ],
)
async def test_a_run_that_fails_says_why_and_what_it_used(answer: Answer, code: str, words: str) -> None:
    here = world(Box(lambda program: answer))
    spec = here.posted(b"print([5])")
    outcome = await here.runner.run(spec, task(spec))
    assert no_call(outcome)[0] == code
    assert words in no_call(outcome)[1]
    assert no_call(outcome)[1].isprintable()
    assert outcome.run is not None
    assert outcome.run.usage == USAGE
    await here.runner.run(spec, task(spec))
    assert len(here.box.runs) == 1


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"", "0 bytes"),
        (b"#" * (MAX_SOURCE_BYTES + 1), "1048576 bytes"),
        (b"PK\x03\x04\x14\x00\x00\x00\x08\x00\xd4\xff", "no UTF-8 text"),
        (b"\x7fELF\x02\x01\x01\x00", "zero byte"),
        (b"# triggerx: allow 10.0.0.1", "line 1: 10.0.0.1"),
    ],
)
async def test_a_script_that_cannot_run_is_refused_before_any_sandbox_sees_it(source: bytes, words: str) -> None:
    here = world()
    spec = here.posted(source)
    outcome = await here.runner.run(spec, task(spec))
    assert no_call(outcome)[0] == "SCRIPT_INVALID"
    assert words in no_call(outcome)[1]
    assert outcome.run is None
    assert not here.box.runs
    assert not here.box.checks


async def test_a_script_with_a_syntax_error_is_refused_and_checked_once() -> None:
    here = world(Box(problem="line 3: unexpected \x00 indent" + "!" * 2000))
    spec = here.posted(b"if")
    for _ in range(2):
        code, detail = no_call(await here.runner.run(spec, task(spec)))
        assert code == "SCRIPT_INVALID"
        assert detail.startswith("its syntax: line 3: unexpected indent")
        assert len(detail) <= 512
    assert len(here.box.checks) == 1
    assert not here.box.runs


@pytest.mark.parametrize("changes", [{"language": "rust"}, {"language": ""}, {"script_url": "https://example.org/x.py"}])
async def test_a_job_that_names_no_script_that_can_run_ends_with_a_reason(changes: dict[str, str]) -> None:
    here = world()
    spec = job(2, **changes)
    assert no_call(await here.runner.run(spec, task(spec)))[0] == "SCRIPT_INVALID"


async def test_a_keeper_that_cannot_run_a_script_does_not_blame_it() -> None:
    here = world(Box(languages=frozenset({Language.GO})))
    spec = here.posted(b"print([5])")
    with pytest.raises(Transient, match="SANDBOX_UNAVAILABLE"):
        await here.runner.run(spec, task(spec))
    here = world(Box(lambda program: Transient("SANDBOX_UNAVAILABLE", "the engine is gone")))
    spec = here.posted(b"print([5])")
    with pytest.raises(Transient, match="SANDBOX_UNAVAILABLE"):
        await here.runner.run(spec, task(spec))
    here.box.answer = lambda program: finished(b"[5]")
    assert isinstance((await here.runner.run(spec, task(spec))).action, Call)


async def test_a_script_that_nobody_has_is_asked_for_again() -> None:
    here = world()
    spec = job(2)
    for _ in range(2):
        with pytest.raises(Transient, match="SCRIPT_UNREACHABLE"):
            await here.runner.run(spec, task(spec))
    assert len(here.shelf.asked) == 2
    here.shelf.error = Failed("CONTENT_INVALID", "a directory")
    assert no_call(await here.runner.run(spec, task(spec))) == ("SCRIPT_INVALID", "a directory")


async def test_storage_that_would_overflow_is_no_call() -> None:
    said = b'{"shouldExecute":false,"storageUpdates":{"n":"%s"}}' % (b"x" * 1000)
    here = world(Box(lambda program: finished(said)))
    spec = here.posted(b"print()", 7)
    full = '{"k":"%s"}' % ("x" * (MAX_STORAGE_BYTES - 100))
    assert no_call(await here.runner.run(spec, task(spec, storage=full)))[0] == "SCRIPT_OUTPUT"
    assert no_call(await here.runner.run(spec, task(spec)))[0] == "SCRIPT_DECLINED"


async def test_an_events_script_waits_for_this_keepers_own_log() -> None:
    here = world(Box(lambda program: finished(b"[5]")))
    spec = here.posted(b"print([5])", 4)
    with pytest.raises(Transient, match="EVENT_NOT_FOUND"):
        await here.runner.run(spec, task(spec))
    assert isinstance((await here.runner.run(spec, task(spec), LOG)).action, Call)
    assert b'"data":"0x0304"' in here.box.runs[0].stdin


async def test_another_keepers_run_is_judged_by_ones_own() -> None:
    here = world(Box(lambda program: finished(b"[5]")))
    spec = here.posted(b"print([5])")
    outcome = await here.runner.run(spec, task(spec))
    assert outcome.run is not None
    assert await here.runner.judge(spec, task(spec), outcome.run) == (outcome, None)
    lie = Run(outcome.run.script, b"[6]", USAGE)
    for _ in range(2):
        assert await here.runner.judge(spec, task(spec), lie) == (outcome, "WRONG_OUTPUT")
    assert len(here.box.runs) == 2  # once for itself, and once to see that it does not change
    assert await here.runner.judge(spec, task(spec), Run(bytes(32), b"[5]", USAGE)) == (outcome, "WRONG_SCRIPT")


async def test_a_script_that_never_prints_the_same_proves_nothing() -> None:
    count = iter(range(100))

    def random(program: Program) -> Answer:
        return finished(b"[%d]" % next(count))

    here = world(Box(random))
    spec = here.posted(b"print([random()])")
    outcome = await here.runner.run(spec, task(spec))
    assert outcome.run is not None
    other = Run(outcome.run.script, b"[50]", USAGE)
    for _ in range(2):
        assert await here.runner.judge(spec, task(spec), other) == (outcome, "OUTPUT_DIFFERS")
    assert len(here.box.runs) == 2
    assert (await here.runner.judge(spec, task(spec), Run(outcome.run.script, b"rubbish", USAGE)))[1] == "WRONG_OUTPUT"


async def test_what_is_remembered_has_a_bound() -> None:
    here = world(Box(lambda program: finished(b"[5]")))
    for number in range(40):
        spec = here.posted(b"#" * (MAX_SOURCE_BYTES - 10) + b"%d" % number)
        await here.runner.run(spec, task(spec))
    scripts = here.runner._scripts
    assert scripts._weight <= scripts._most == 16 * MAX_SOURCE_BYTES
    for second in range(300):
        await here.runner.run(spec, task(spec, trigger_id=second + 1))
    assert len(here.runner._outcomes._values) == 256
