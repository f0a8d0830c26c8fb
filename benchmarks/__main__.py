"""`python -m benchmarks [part]`: latency of each stage of a task and of one gossip hop, or a part's figures; and the machine."""

from __future__ import annotations

import importlib
import os
import platform
import shlex
import sys
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import trio
import typer

from benchmarks import gossip_hop, task_stages
from cli.devnet.screen import quiet_logs
from cli.program import says_what_is_wrong

VERSIONS = ("libp2p", "trio", "py-arkworks-bls12381", "hypercorn", "httpcore")
COMMANDS = ("conditions", "events", "scheduler", "store", "streams")
"""Modules of this package whose `main` is a command of its own: `python -m benchmarks scheduler --help`."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


class Part(StrEnum):
    """What to measure."""

    stages = "stages"
    gossip = "gossip"


@app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    tasks: Annotated[int, typer.Option(min=1, max=50, help="Tasks; a keeper's status page holds the last 50.")] = 50,
    interval: Annotated[int, typer.Option(min=1, help="Seconds from one task to the next.")] = 2,
    keepers: Annotated[int, typer.Option(min=2, help="Keepers of the devnet.")] = 5,
    only: Annotated[Part | None, typer.Option(help="One of the two parts.", show_default=False)] = None,
) -> None:
    """Measure a task's stages and a gossip hop. Exit code 1 when a task was not verified."""
    quiet_logs()
    print(f"$ python -m benchmarks {shlex.join(sys.argv[1:])}".rstrip())
    print(machine())
    if context.invoked_subcommand is not None:
        return
    failed = False
    if only is not Part.gossip:
        result = trio.run(task_stages.measure, tasks, interval, keepers, print)
        print("\n" + stages_table(result))
        failed = result.verified < tasks
    if only is not Part.stages:
        print()
        gossip_hop.main()
    print(f"\nload at the end {load()}")
    if failed:
        raise typer.Exit(1)


def machine() -> str:
    """What the figures were measured on."""
    return (
        f"{os.cpu_count()} cores, {cpu_model()}, {platform.system()} {platform.release()}, load {load()}\n"
        f"Python {platform.python_version()}, " + ", ".join(f"{name} {installed(name)}" for name in VERSIONS)
    )


def load() -> str:
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "?"


def stages_table(result: task_stages.Result) -> str:
    """Markdown, so that it can be pasted into the docs."""
    lines = [
        f"{result.verified} of {result.tasks} tasks verified on chain; {result.keepers} keepers; {result.chain}, 0 confirmations",
        "",
        "| stage, ms | p50 | p99 | aim (p50) | n |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in result.rows:
        aim = f"{row.aim_ms:.0f}" if row.aim_ms is not None else ""
        lines.append(f"| {row.name} | {row.quantile(0.5):.0f} | {row.quantile(0.99):.0f} | {aim} | {len(row.values)} |")
    return "\n".join([*lines, *(f"not verified: {each}" for each in result.unfinished)])


for name in COMMANDS:
    app.command(name)(importlib.import_module(f"benchmarks.{name}").main)

if __name__ == "__main__":
    says_what_is_wrong(app)
