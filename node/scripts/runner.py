"""Runs jobs' scripts: fetched by CID, checked before they run, run once for a task, and understood."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import structlog

from consensus.errors import Failed, Invalid, Transient
from consensus.messages import MAX_OUTPUT_BYTES, JobSpec, Run, Task, Usage
from node.infra.chain import Log
from node.infra.compute import Compute
from node.sandbox.port import MAX_SOURCE_BYTES, Finished, Language, Limits, Program, Sandbox, Stopped
from node.scripts import outputs
from node.scripts.comparison import compare, contradicts_itself
from node.scripts.directives import Directives, directives
from node.scripts.inputs import Inputs, inputs_of
from node.scripts.library import Library
from node.scripts.once import Once
from node.scripts.port import Call, NoCall, Outcome
from node.scripts.quoting import MOST, last_words, quoted
from node.scripts.source import Source, language_of, parse_source

_log = structlog.get_logger(__name__)

_CHECKED_BYTES = 16 * 1024 * 1024
"""Of checked scripts that are kept in memory: sixteen of the largest, thousands of the usual."""
_OUTCOMES = 256
"""Kept: an output and a call are 48 KiB at most, and a committee asks within minutes."""
_ENTRY_BYTES = 1024  # what a checked script takes beside its bytes

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Script:
    """A script that passed its checks, or `problem` says why none runs it."""

    digest: bytes
    language: Language
    directives: Directives
    source: bytes = field(repr=False)
    problem: str = ""


class ScriptRunner:
    """Implements `node.scripts.port.Scripts` with one sandbox, or none. `private` are hosts that scripts may declare though they
    are not of the public internet, for devnets."""

    def __init__(
        self,
        library: Library,
        sandbox: Sandbox | None,
        compute: Compute,
        *,
        limits: Limits | None = None,
        private: Collection[str] = (),
    ) -> None:
        self._library = library
        self._sandbox = sandbox
        self._compute = compute
        self._limits = limits or Limits()
        self._private = frozenset(private)
        self._scripts: _Kept[tuple[str, Language], Script] = _Kept(_CHECKED_BYTES)
        self._outcomes: _Kept[bytes, Outcome] = _Kept(_OUTCOMES)
        self._unsteady: _Kept[bytes, bool] = _Kept(_OUTCOMES)
        self._checking: Once[tuple[str, Language], Script] = Once()
        self._running: Once[bytes, Outcome] = Once()
        self._again: Once[bytes, bool] = Once()

    async def run(self, job: JobSpec, task: Task, log: Log | None = None) -> Outcome:
        given = inputs_of(job, task, log)
        return await self._run(_key(job, given), job, task, given)

    async def judge(
        self, job: JobSpec, task: Task, claimed: Run | None, code: str = "", log: Log | None = None
    ) -> tuple[Outcome, str | None]:
        given = inputs_of(job, task, log)
        key = _key(job, given)
        own = await self._run(key, job, task, given)
        why = await self._compute(compare, own, claimed, job, code)
        if why == "WRONG_OUTPUT" and own.run is not None and not await self._compute(contradicts_itself, claimed, job, code):
            why = "OUTPUT_DIFFERS" if await self._is_unsteady(key, own, job, task, given) else why
        return own, why

    def action_of(self, job: JobSpec, output: bytes) -> Call | NoCall:
        return outputs.action_of(job, output)

    async def _run(self, key: bytes, job: JobSpec, task: Task, given: Inputs) -> Outcome:
        async def run() -> Outcome:
            outcome = await self._outcome(job, task, given)
            self._outcomes.put(key, outcome, 1)
            return outcome

        kept = self._outcomes.get(key)
        return kept if kept is not None else await self._running(key, run)

    async def _is_unsteady(self, key: bytes, own: Outcome, job: JobSpec, task: Task, given: Inputs) -> bool:
        """Whether a second run differs from the first: once found out, it is known of the task."""

        async def run_again() -> bool:
            second = await self._outcome(job, task, given)
            code = own.action.code if isinstance(own.action, NoCall) else ""
            unsteady = await self._compute(compare, second, own.run, job, code) is not None
            self._unsteady.put(key, unsteady, 1)
            return unsteady

        kept = self._unsteady.get(key)
        return kept if kept is not None else await self._again(key, run_again)

    async def _outcome(self, job: JobSpec, task: Task, given: Inputs) -> Outcome:
        try:
            source = _source(job)
            language = language_of(source, job.language)
            sandbox = self._ready(language)
            script = await self._checked(source, language, sandbox)
            if script.problem:
                raise Failed("SCRIPT_INVALID", script.problem)
            said = script.directives
            program = Program(language, script.source, given.stdin, given.environment, said.hosts)
            finished = await sandbox.run(program, self._limits)
        except Failed as error:
            return Outcome(NoCall("SCRIPT_INVALID", quoted(error.detail)), None)
        except Stopped as stopped:
            action: Call | NoCall = NoCall(stopped.code, quoted(stopped.detail))
            run = Run(script.digest, b"", stopped.usage)
        else:
            action = await self._compute(meaning, job, task, finished)
            run = Run(script.digest, finished.stdout[:MAX_OUTPUT_BYTES], finished.usage)
        _tell(task, source.cid, language, action, run.usage)
        return Outcome(action, run, bool(said.hosts), said.tolerance)

    def _ready(self, language: Language) -> Sandbox:
        if self._sandbox is None:
            raise Transient("SANDBOX_UNAVAILABLE", "this keeper has no sandbox")
        if language not in self._sandbox.languages:
            raise Transient("SANDBOX_UNAVAILABLE", f"this keeper's sandbox does not run {language}")
        return self._sandbox

    async def _checked(self, source: Source, language: Language, sandbox: Sandbox) -> Script:
        """Checks once for a CID and a language, as long as there is room to remember. Raises `Failed` and `Transient`."""
        key = source.cid, language

        async def check() -> Script:
            data = await self._library.get(source)
            script = await self._compute(read, data, language, self._private)
            if not script.problem:
                problem = await sandbox.check(language, data)
                if problem:
                    script = Script(script.digest, language, Directives(), b"", f"its syntax: {quoted(problem, MOST - 16)}")
            self._scripts.put(key, script, len(script.source) + _ENTRY_BYTES)
            return script

        kept = self._scripts.get(key)
        return kept if kept is not None else await self._checking(key, check)


def read(data: bytes, language: Language, private: Collection[str] = ()) -> Script:
    """What can be said of a script's bytes without a compiler."""
    digest = hashlib.sha256(data).digest()
    try:
        if not 0 < len(data) <= MAX_SOURCE_BYTES:
            raise Failed("SCRIPT_INVALID", f"has {len(data)} bytes, 1 to {MAX_SOURCE_BYTES} are run")
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise Failed("SCRIPT_INVALID", "is no UTF-8 text: a script is one source file") from None
        if "\0" in text:
            raise Failed("SCRIPT_INVALID", "holds a zero byte: a script is one source file")
        return Script(digest, language, directives(text, private), data)
    except Failed as error:
        return Script(digest, language, Directives(), b"", error.detail)


def meaning(job: JobSpec, task: Task, finished: Finished) -> Call | NoCall:
    """What a finished run means: the call of its output, if it ended well and what it keeps has room."""
    if finished.exit_code != 0:
        ended = f"exit code {finished.exit_code}" if finished.exit_code > 0 else f"killed by signal {-finished.exit_code}"
        said = last_words(finished.stderr, MOST - 40) or last_words(finished.stdout, MOST - 40)
        return NoCall("SCRIPT_FAILED", f"{ended}: {said}" if said else ended)
    action = outputs.action_of(job, finished.stdout)
    if job.definition == outputs.CUSTOM and (isinstance(action, Call) or action.code == "SCRIPT_DECLINED"):
        try:
            outputs.apply(task.storage, outputs.storage_updates(finished.stdout))
        except Failed as error:
            return outputs.bad_output(error.detail, finished.stdout)
    return action


def _source(job: JobSpec) -> Source:
    try:
        return parse_source(job.script_url)
    except Invalid as error:
        raise Failed("SCRIPT_INVALID", error.detail) from None


def _key(job: JobSpec, given: Inputs) -> bytes:
    """Everything that a run depends on: the job as agreed, and what the script is given for this firing."""
    return hashlib.sha256(hashlib.sha256(job.encode()).digest() + given.stdin).digest()


def _tell(task: Task, cid: str, language: Language, action: Call | NoCall, usage: Usage) -> None:
    _log.info(
        "script ran",
        task_id=str(task.task_id),
        cid=cid,
        language=language.value,
        code=action.code if isinstance(action, NoCall) else "",
        detail=action.detail if isinstance(action, NoCall) else "",
        cpu_ms=usage.cpu_ms,
        wall_ms=usage.wall_ms,
        peak_kib=usage.peak_kib,
    )


class _Kept(Generic[K, V]):
    """The values used last, up to a total weight."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._weight = 0
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K) -> V | None:
        if (found := self._values.get(key)) is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: K, value: V, weight: int) -> None:
        if (before := self._values.pop(key, None)) is not None:
            self._weight -= before[1]
        self._values[key] = value, weight
        self._weight += weight
        while self._weight > self._most:
            _, (_, gone) = self._values.popitem(last=False)
            self._weight -= gone
