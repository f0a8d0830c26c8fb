"""The sandbox on a Docker engine: one fresh container for every run, mostly one that was started before it was needed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import structlog
import trio

from consensus.errors import Misconfigured, Transient
from consensus.messages import Usage
from node.infra.aio import AsyncioThread
from node.infra.connections import Addresses
from node.sandbox.docker_container import CERTIFICATES, TOOLS, Shape
from node.sandbox.docker_engine import UNAVAILABLE, Answer, Engine, Gone
from node.sandbox.docker_pool import Container, Pool, open_pool
from node.sandbox.egress import ENVIRONMENT, Egress, open_egress, wrapped
from node.sandbox.languages import (
    BUILDING,
    Built,
    Tools,
    build_command,
    built_name,
    check_command,
    environment,
    out_of_heap,
    run_command,
    source_name,
)
from node.sandbox.port import Finished, Language, Limits, Program, Stopped

_GRACE_S: Final = 5.0
"""How long after a run's time its launcher may take to say so."""
_QUOTED = 512
_FREE = Usage(0, 0, 0, 0)

_Command = Callable[[Tools], list[str]]

log = structlog.get_logger(__name__)


class DockerSandbox:
    """See `node.sandbox.port`. Made by `open_docker`."""

    name: Final = "docker"

    def __init__(self, engine: Engine, pool: Pool, addresses: Addresses, concurrency: int) -> None:
        self._engine = engine
        self._pool = pool
        self._addresses = addresses
        self._turns = trio.CapacityLimiter(concurrency)
        self._tools: Tools | None = None
        self._built = Built()

    @property
    def languages(self) -> frozenset[Language]:
        """Of the image; all of them until its first container has started."""
        return (self._tools or TOOLS).languages

    async def settled(self) -> None:
        """Until as many containers wait for a run as may, and none that was used is left."""
        await self._pool.settled()

    async def run(self, program: Program, limits: Limits) -> Finished:
        async with self._turns:
            file, code = source_name(program.language), program.source
            if (name := built_name(program.language)) is not None:
                built = await self._build(program.language, program.source)
                if isinstance(built, Finished):
                    return built
                file, code = name, built

            def command(tools: Tools) -> list[str]:
                return run_command(program.language, tools, limits)

            finished = await self._execute(program, limits, file, code, command)
            if out_of_heap(program.language, finished.exit_code, finished.stderr):
                raise Stopped("SCRIPT_MEMORY", f"ran out of memory: {_quote(finished.stderr)}", finished.usage)
            return finished

    async def check(self, language: Language, source: bytes) -> str:
        async with self._turns:
            try:
                if built_name(language) is not None:
                    built = await self._build(language, source)
                    return _words(built) if isinstance(built, Finished) else ""
                finished = await self._execute(
                    Program(language, source),
                    BUILDING,
                    source_name(language),
                    source,
                    lambda tools: check_command(language, tools),
                )
            except Stopped as stopped:
                return stopped.detail
            return _words(finished) if finished.exit_code else ""

    async def _build(self, language: Language, source: bytes) -> bytes | Finished:
        """What is run; where nothing could be built, how that ended."""
        key = Built.key(language, source)
        if (built := self._built.get(key)) is None:
            program = Program(language, source)
            try:
                finished = await self._execute(
                    program, BUILDING, source_name(language), source, lambda tools: build_command(language, tools)
                )
            except Stopped as stopped:
                raise Stopped(stopped.code, f"while it was built: {stopped.detail}"[:_QUOTED], _FREE) from None
            if finished.exit_code:
                return Finished(finished.exit_code, b"", finished.stderr, _FREE)
            built = finished.stdout
            self._built.put(key, built)
        return built

    async def _execute(self, program: Program, limits: Limits, file: str, code: bytes, command: _Command) -> Finished:
        while True:
            try:
                container, waited = await self._pool.take(Shape.of(limits))
            except Misconfigured as error:  # since this node started: then it would not have
                raise Transient(UNAVAILABLE, error.detail) from error
            ended = False
            try:
                self._tools = container.tools
                if missing := container.tools.missing(program.language):
                    raise Transient(UNAVAILABLE, f"the image {self._engine.image} lacks something: {missing}")
                path = container.script / file
                path.write_bytes(code)
                path.chmod(0o755)
                argv = command(container.tools)
                finished = await self._use(container, argv, program, limits)
                ended = True
                return finished
            except Stopped:
                ended = True  # the launcher has killed all there was
                raise
            except Gone as gone:
                if await self._engine.ran_out_of_memory(container.name):
                    raise Stopped("SCRIPT_MEMORY", _memory(limits), Usage(0, 0, limits.memory // 1024, 0)) from None
                if not waited:
                    raise Transient(UNAVAILABLE, f"the container ended before its program did: {gone}") from None
                log.debug("container_had_died_waiting", container=container.name)
            except OSError as error:
                raise Transient(UNAVAILABLE, f"a container's files cannot be written: {error}") from None
            finally:
                if ended:
                    self._pool.discard(container)
                else:
                    await self._pool.kill(container)

    async def _use(self, container: Container, argv: list[str], program: Program, limits: Limits) -> Finished:
        variables = environment(limits, program.environment)
        if not program.hosts:
            return await self._ask(container, argv, variables, program.stdin, limits, None)
        async with open_egress(program.hosts, limits, addresses=self._addresses, folder=container.egress) as egress:
            argv = wrapped(argv, container.tools.python or "")
            variables = {**variables, **ENVIRONMENT, "SSL_CERT_FILE": CERTIFICATES}
            return await self._ask(container, argv, variables, program.stdin, limits, egress)

    async def _ask(
        self,
        container: Container,
        argv: list[str],
        variables: dict[str, str],
        stdin: bytes,
        limits: Limits,
        egress: Egress | None,
    ) -> Finished:
        head = {
            "argv": argv,
            "environment": variables,
            "wall_s": limits.wall_s,
            "stdout": limits.stdout,
            "stderr": limits.stderr,
        }
        began = trio.current_time()
        answer: Answer | None = None
        with trio.move_on_after(limits.wall_s + _GRACE_S):
            answer = await self._engine.ask(container.attached, head, stdin, max(limits.stdout, limits.stderr))
        transferred = 0 if egress is None else egress.transferred
        if answer is None:
            await self._pool.kill(container)
            wall_ms = round((trio.current_time() - began) * 1000)
            raise Stopped("SCRIPT_TIMEOUT", f"ran longer than {limits.wall_s:g} s", Usage(wall_ms, wall_ms, 0, transferred))
        return _finished(answer, limits, transferred)


def _finished(answer: Answer, limits: Limits, transferred: int) -> Finished:
    said = answer.head
    usage = Usage(said.cpu_ms, said.wall_ms, said.peak // 1024, transferred)
    printed = _quote(answer.stderr or answer.stdout)
    if said.end == "output":
        raise Stopped("SCRIPT_OUTPUT", f"printed more than {limits.stdout} bytes: {_quote(answer.stdout)}", usage)
    if said.end == "memory" or said.oom:
        raise Stopped("SCRIPT_MEMORY", f"{_memory(limits)}{printed and f': {printed}'}", usage)
    if said.end == "time":
        raise Stopped("SCRIPT_TIMEOUT", f"ran longer than {limits.wall_s:g} s{printed and f': {printed}'}", usage)
    return Finished(said.exit, answer.stdout, answer.stderr, usage)


def _memory(limits: Limits) -> str:
    return f"took more than {limits.memory // 2**20} MiB of memory"


def _quote(printed: bytes) -> str:
    """What was printed last."""
    return printed.decode(errors="replace").strip()[-_QUOTED:]


def _words(finished: Finished) -> str:
    return _quote(finished.stderr) or f"ended with exit code {finished.exit_code}"


@asynccontextmanager
async def open_docker(
    aio: AsyncioThread,
    *,
    url: str,
    image: str,
    owner: str,
    folder: Path,
    addresses: Addresses,
    concurrency: int = 2,
    warm: int = 1,
) -> AsyncIterator[DockerSandbox]:
    """The sandbox on the engine at `url`, which may be away for now.

    `owner` names this node among others on the same engine; `folder` is where containers find their programs and sockets, the
    same for the engine as for us; `addresses` is the guard of `node.infra.fetch` (`Fetcher.addresses`). Of `warm` containers
    each waits for one run. Raises `Misconfigured` when the engine answers and has no such image.
    """
    engine = Engine(aio, url, image)
    try:
        with suppress(Transient):  # which the engine has logged
            await engine.image_id()
        async with open_pool(engine, owner, folder, Shape.of(Limits()), warm) as pool:
            yield DockerSandbox(engine, pool, addresses, concurrency)
    finally:
        await engine.close()
