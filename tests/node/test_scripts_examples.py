"""The scripts shown to users, each run as a keeper runs it: fetched, checked, in a real sandbox, and understood."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consensus.codec import keccak
from consensus.messages import JobSpec, Run, Task
from node.arguments import encode_call
from node.infra.compute import inline
from node.infra.settings import SandboxSettings
from node.sandbox.embedded import open_embedded
from node.sandbox.port import Language
from node.scripts import Call, NoCall, outputs
from node.scripts.directives import Directives, directives
from node.scripts.library import Library
from node.scripts.runner import ScriptRunner
from tests.components import find
from tests.consensus import samples
from tests.node.script_world import LOG, TARGET, NoWeb, Shelf, job, task

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "examples" / "scripts"
PING = "ping(uint256)"
EVENT_VALUE = 2**255 + 2**53 + 1
SEEN = replace(LOG, data=EVENT_VALUE.to_bytes(32, "big") + bytes(32))


@pytest.fixture(params=list(Language))
async def runner(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Language, ScriptRunner, Shelf]]:
    language, shelf = request.param, Shelf()
    async with open_embedded(SandboxSettings(esbuild=find("esbuild"))) as sandbox:
        if language is Language.GO:
            await sandbox.settled()
        if language not in sandbox.languages:
            missing = f"{language}: {sandbox.missing.get(language, 'not on this machine')}"
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
        yield language, ScriptRunner(Library(shelf, NoWeb(), (), inline), sandbox, inline), shelf


async def test_every_example_does_what_it_says(runner: tuple[Language, ScriptRunner, Shelf]) -> None:
    language, scripts, shelf = runner

    def posted(name: str, definition: int, **changes: Any) -> JobSpec:
        source = (FOLDER / f"{name}.{language}").read_bytes()
        return job(definition, script_url=f"ipfs://{shelf.add(source)}", language=language.value, **changes)

    async def called(spec: JobSpec, given: Task) -> tuple[Call | NoCall, Run]:
        outcome = await scripts.run(spec, given, SEEN)
        assert outcome.run is not None, outcome
        assert (outcome.networked, outcome.run.usage.cpu_ms > 0) == (False, True)
        assert (await scripts.judge(spec, given, outcome.run, getattr(outcome.action, "code", ""), SEEN))[1] is None
        return outcome.action, outcome.run

    spec = posted("time", 2)
    assert (await called(spec, task(spec)))[0] == Call(TARGET, encode_call(PING, f"[{samples.NOW * 10**18}]"))
    spec = posted("event", 4)
    assert (await called(spec, task(spec)))[0] == Call(TARGET, encode_call(PING, f"[{EVENT_VALUE}]"))
    spec = posted("condition", 6)
    assert (await called(spec, task(spec, trigger_id=2**62)))[0] == Call(TARGET, encode_call(PING, f"[{2**62}]"))

    spec = posted("custom", 7)
    action, run = await called(spec, task(spec))
    assert action == NoCall("SCRIPT_DECLINED", "run 1 is odd")
    storage = outputs.apply("", outputs.storage_updates(run.output))
    assert storage == '{"runs":1}'
    action, run = await called(spec, task(spec, storage=storage))
    assert action == Call(b"\x77" * 20, encode_call(PING, "[2]"))
    assert outputs.apply(storage, outputs.storage_updates(run.output)) == '{"runs":2}'


def test_the_example_with_the_network_declares_what_it_reads() -> None:
    assert directives((FOLDER / "price.py").read_text()) == Directives(("api.example.org",), (1, 200))
    assert keccak(PING.encode())[:4].hex() == "773acdef"
