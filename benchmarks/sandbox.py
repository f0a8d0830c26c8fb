"""What a sandboxed run costs: each language in the embedded sandbox, beside the same program as a bare subprocess."""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated

import trio
import typer

from consensus.errors import Misconfigured
from node.infra.settings import SandboxSettings
from node.sandbox.embedded import Embedded, open_embedded
from node.sandbox.port import Language, Limits, Program
from tests.components import find

SOURCES = {
    Language.PYTHON: b"print([1])",
    Language.JAVASCRIPT: b"console.log([1])",
    Language.TYPESCRIPT: b"const said: number[] = [1]; console.log(said)",
    Language.GO: b'package main\nimport "fmt"\nfunc main() { fmt.Println("[1]") }',
}
LIMITS = Limits(wall_s=60.0)

HEAD = "| run | p50 ms | p99 ms | CPU ms | peak MiB |\n| --- | ---: | ---: | ---: | ---: |"


async def measured(times: int, once: Callable[[], Awaitable[object]]) -> list[float]:
    """Milliseconds of each, after two that are not counted."""
    for _ in range(2):
        await once()
    found = []
    for _ in range(times):
        began = time.perf_counter()
        await once()
        found.append((time.perf_counter() - began) * 1000)
    return sorted(found)


def row(name: str, found: Sequence[float], *more: float) -> str:
    """A line of the table under `HEAD`; `found` is sorted."""
    p99 = found[min(len(found) - 1, int(len(found) * 0.99))]
    return f"| {name} | {statistics.median(found):.1f} | {p99:.1f} | {' | '.join(f'{each:.1f}' for each in more) or ' | '} |"


async def bare(language: Language, folder: Path) -> list[str] | None:
    """The command of a bare subprocess; None where the language would have to be built first."""
    source = folder / f"main.{language.value}"
    await trio.Path(source).write_bytes(SOURCES[language])
    match language:
        case Language.PYTHON:
            return [shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable, "-s", "-B", str(source)]
        case Language.JAVASCRIPT:
            node = shutil.which("node")
            return [node, str(source)] if node else None
        case _:
            return None


async def embedded(times: int, cgroups: bool) -> None:
    try:
        async with open_embedded(SandboxSettings(esbuild=find("esbuild")), cgroups=cgroups) as sandbox:
            await sandbox.settled()
            print(f"\nEmbedded, {'with' if cgroups else 'without'} cgroups, {times} runs each\n\n{HEAD}", flush=True)
            for language in sorted(sandbox.languages):
                await _one_language(sandbox, language, times)
    except Misconfigured as error:
        print(f"\nEmbedded: not measured ({error.detail})")


async def _one_language(sandbox: Embedded, language: Language, times: int) -> None:
    program = Program(language, SOURCES[language])
    used = []

    async def once() -> None:
        finished = await sandbox.run(program, LIMITS)
        assert finished.exit_code == 0, finished.stderr
        used.append(finished.usage)

    async def check_anew() -> None:
        nonlocal number
        number += 1
        comment = f"\n{'#' if language is Language.PYTHON else '//'} {number}\n".encode()
        assert await sandbox.check(language, SOURCES[language] + comment) == ""

    number = 0
    found = await measured(times, once)
    cpu, peak = (statistics.median(getattr(each, name) for each in used) for name in ("cpu_ms", "peak_kib"))
    print(row(f"{language.value}: run", found, cpu, peak / 1024), flush=True)
    checks = await measured(max(3, times // 5), check_anew)
    print(
        row(f"{language.value}: check{' and build' if language in (Language.GO, Language.TYPESCRIPT) else ''}", checks),
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        if (command := await bare(language, Path(folder))) is not None:

            async def alone() -> None:
                done = await trio.run_process(command, capture_stdout=True, env={"PATH": "/usr/bin:/bin", "HOME": folder})
                assert done.returncode == 0

            print(row(f"{language.value}: bare subprocess", await measured(times, alone)), flush=True)


def main(times: Annotated[int, typer.Option(min=5, help="Runs of each.")] = 100) -> None:
    """Sandboxed runs: embedded."""
    for cgroups in (True, False):
        trio.run(embedded, times, cgroups)
