"""`python -m benchmarks`: latency of each stage of a task and of one gossip hop, with what it was measured on."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import trio

from benchmarks import gossip_hop, task_stages
from cli.devnet.screen import quiet_logs

VERSIONS = ("libp2p", "trio", "py-arkworks-bls12381", "hypercorn", "httpcore")


def main() -> int:
    """Exit code 1 when a task was not verified."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--tasks", type=int, default=50)
    parser.add_argument("--interval", type=int, default=2, help="seconds from one task to the next")
    parser.add_argument("--keepers", type=int, default=5)
    parser.add_argument("--only", choices=("stages", "gossip"), help="one of the two parts")
    arguments = parser.parse_args()
    quiet_logs()
    print(f"$ python -m benchmarks {shlex.join(sys.argv[1:])}".rstrip())
    print(machine())
    failed = False
    if arguments.only != "gossip":
        result = trio.run(task_stages.measure, arguments.tasks, arguments.interval, arguments.keepers, print)
        print("\n" + stages_table(result))
        failed = result.verified < result.tasks or result.tasks < arguments.tasks
    if arguments.only != "stages":
        print("\none gossip hop")
        print(lines_of(gossip_hop.measure()))
    print(f"\nload at the end {load()}")
    return int(failed)


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


def lines_of(measured: dict[str, Any], indent: str = "  ") -> str:
    """Any nested figures as lines."""
    lines = []
    for key, value in measured.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}", lines_of(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {value:.2f}" if isinstance(value, float) else f"{indent}{key}: {value}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
