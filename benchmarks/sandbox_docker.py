"""What a run in a fresh container costs, one that waited and one made for it, beside a bare `docker run`, all in the same run.

On a Docker engine of its own with the image made from this machine's programs, as in the tests: it takes root, and `dockerd`.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import trio
import typer

from benchmarks.sandbox import HEAD, LIMITS, SOURCES, row
from node.infra.aio import open_asyncio_thread
from node.sandbox.docker import DockerSandbox, open_docker
from node.sandbox.docker_container import TOOLS
from node.sandbox.port import Language, Program
from tests.components import find
from tests.sandbox.engine import IMAGE, Engine, running_engine


async def nowhere(host: str, port: int) -> list[str]:
    raise OSError(f"{host} is not asked for")


async def timed(times: int, once: Callable[[], Awaitable[object]], between: Callable[[], Awaitable[object]]) -> list[float]:
    """Milliseconds of each `once`, sorted, after two that are not counted."""
    found = []
    for _ in range(times + 2):
        await between()
        began = time.perf_counter()
        await once()
        found.append((time.perf_counter() - began) * 1000)
    return sorted(found[2:])


async def runs(engine: Engine, times: int, warm: int) -> None:
    with tempfile.TemporaryDirectory(prefix="containers-") as folder:
        async with (
            open_asyncio_thread() as aio,
            open_docker(
                aio, url=engine.url, image=IMAGE, owner="bench", folder=Path(folder), addresses=nowhere, warm=warm
            ) as sandbox,
        ):
            await sandbox.check(Language.PYTHON, b"1")  # which tells what the image has
            for language in sorted(sandbox.languages):
                await one_language(sandbox, language, times, "waiting container" if warm else "new container")


async def one_language(sandbox: DockerSandbox, language: Language, times: int, name: str) -> None:
    program = Program(language, SOURCES[language])
    used = []

    async def once() -> None:
        finished = await sandbox.run(program, LIMITS)
        assert finished.exit_code == 0, finished.stderr
        used.append(finished.usage)

    found = await timed(times, once, sandbox.settled)
    cpu, peak = (statistics.median(getattr(each, field) for each in used) for field in ("cpu_ms", "peak_kib"))
    print(row(f"{language.value}: {name}", found, cpu, peak / 1024), flush=True)


async def bare(engine: Engine, times: int) -> None:
    programs = {
        Language.PYTHON: [TOOLS.python, "-c", SOURCES[Language.PYTHON].decode()],
        Language.JAVASCRIPT: [TOOLS.node, "-e", SOURCES[Language.JAVASCRIPT].decode()],
    }
    for language, program in programs.items():
        command = ["docker", "--host", engine.url, "run", "--rm", "--network", "none", IMAGE, *(str(each) for each in program)]

        async def once(command: list[str] = command) -> None:
            await trio.run_process(command, capture_stdout=True)

        print(row(f"{language.value}: docker run", await timed(times, once, trio.lowlevel.checkpoint)), flush=True)


def main(times: Annotated[int, typer.Option(min=5, help="Runs of each.")] = 100) -> None:
    """Sandboxed runs: on a Docker engine."""
    if find("dockerd") is None:
        print("Docker: not measured (it takes dockerd, and root)")
        return
    with running_engine() as engine:
        print(f"\nDocker, {times} runs each\n\n{HEAD}", flush=True)
        for warm in (1, 0):
            trio.run(runs, engine, times, warm)
        trio.run(bare, engine, times)


if __name__ == "__main__":
    typer.run(main)
