"""Jobs with scripts, and what a script runner is given in tests: content in a dictionary, a sandbox that is told what to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import trio

from consensus import cid
from consensus.errors import Failed, Transient
from consensus.messages import JobSpec, Task, Uint256, Usage, spec_digest
from consensus.triggers import Observation
from node.infra.chain import Log
from node.infra.compute import inline
from node.sandbox.port import Finished, Language, Limits, Program
from node.scripts.library import Library
from node.scripts.runner import ScriptRunner
from p2p.network import PeerId
from tests.consensus import samples

USAGE = Usage(120, 150, 40_000, 0)
LOG = Log(7, b"\x01" * 32, samples.LOG.transaction, samples.LOG.position, b"\x66" * 20, (b"\x02" * 32,), b"\x03\x04")
TARGET = samples.SPEC.target


def job(definition: int = 2, **changes: Any) -> JobSpec:
    """A job of a dynamic type whose script is not there yet."""
    trigger = {2: samples.SPEC.trigger, 4: samples.ON_EVENT, 6: samples.ON_CONDITION, 7: samples.SPEC.trigger}[definition]
    fields: dict[str, Any] = {
        "definition": definition,
        "trigger": trigger,
        "arguments": "",
        "script_url": f"ipfs://{samples.CID}",
        "language": "py",
    }
    if definition == 7:
        fields |= {"function": "", "target": bytes(20)}
    return msgspec.structs.replace(samples.SPEC, **{**fields, **changes})


def task(spec: JobSpec, *, storage: str = "", observation: Observation = None, pinned_block: int = 40, **changes: Any) -> Task:
    observed = {4: samples.LOG, 6: samples.EDGE}.get(spec.definition, observation)
    auth = samples.authorisation(
        **{
            "spec": spec_digest(spec.encode()),
            "target": spec.target,
            "selector": bytes(4),
            "call_hash": bytes(32),
            "trigger_id": Uint256(samples.NOW),
            **changes,
        }
    )
    return samples.task(auth, spec=spec, observation=observed, pinned_block=pinned_block, storage=storage)


@dataclass
class Shelf:
    """The content port: a dictionary, and an error for what is not in it."""

    files: dict[str, bytes] = field(default_factory=dict)
    error: Failed | Transient = field(default_factory=lambda: Transient("CONTENT_NOT_FOUND", "no peer has it"))
    asked: list[str] = field(default_factory=list)
    gate: trio.Event | None = None

    def add(self, data: bytes) -> str:
        name = str(cid.cid_of(data))
        self.files[name] = data
        return name

    async def put(self, data: bytes) -> str:
        await trio.lowlevel.checkpoint()
        return self.add(data)

    async def keep(self, cid: str, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.files[cid] = data

    async def get(self, cid: str, *, max_bytes: int, peers: Sequence[PeerId] = ()) -> bytes:
        self.asked.append(cid)
        await trio.lowlevel.checkpoint()
        if self.gate is not None:
            await self.gate.wait()
        if cid not in self.files:
            raise type(self.error)(self.error.code, self.error.detail)
        if len(self.files[cid]) > max_bytes:
            raise Failed("CONTENT_TOO_LARGE", f"more than {max_bytes} bytes")
        return self.files[cid]


class NoWeb:
    async def get(self, url: str) -> bytes:
        raise Transient("SOURCE_UNREACHABLE", f"{url} is not there")


Answer = Finished | Exception


@dataclass
class Box:
    """A sandbox that answers as `answer` says, and remembers what it was asked."""

    answer: Callable[[Program], Answer] = lambda program: finished(b"[]")
    problem: str = ""
    languages: frozenset[Language] = frozenset(Language)
    name: str = "fake"
    runs: list[Program] = field(default_factory=list)
    checks: list[bytes] = field(default_factory=list)
    gate: trio.Event | None = None

    async def run(self, program: Program, limits: Limits) -> Finished:
        self.runs.append(program)
        await trio.lowlevel.checkpoint()
        if self.gate is not None:
            await self.gate.wait()
        answer = self.answer(program)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def check(self, language: Language, source: bytes) -> str:
        self.checks.append(source)
        await trio.lowlevel.checkpoint()
        return self.problem


def finished(stdout: bytes, exit_code: int = 0, stderr: bytes = b"") -> Finished:
    return Finished(exit_code, stdout, stderr, USAGE)


@dataclass
class World:
    shelf: Shelf
    box: Box
    runner: ScriptRunner

    def posted(self, source: bytes, definition: int = 2, **changes: Any) -> JobSpec:
        """A job whose script is on the shelf."""
        return job(definition, script_url=f"ipfs://{self.shelf.add(source)}", **changes)


def world(box: Box | None = None) -> World:
    shelf, box = Shelf(), box or Box()
    return World(shelf, box, ScriptRunner(Library(shelf, NoWeb(), (), inline), box, inline))
