"""Where a task's milliseconds go: static tasks on a real devnet, each stage from the programs' own trails."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import trio
import typer

from cli.devnet.devnet import Devnet, DevnetOptions, open_devnet
from cli.devnet.jobs import demo_job, post
from cli.devnet.watch import TaskSeen, Watch
from consensus.lifecycle import FINAL

PATIENCE_S = 60.0
"""After the last due second, for the last task to be verified."""
_LOOK_S = 5.0  # seldom: a look costs each keeper a millisecond or two, which is what is measured here

Span = Callable[[TaskSeen], float | None]


@dataclass(frozen=True, slots=True)
class Row:
    """One measured span, milliseconds."""

    name: str
    values: tuple[float, ...]
    aim_ms: float | None = None

    def quantile(self, q: float) -> float:
        return quantile(self.values, q)


@dataclass(frozen=True, slots=True)
class Result:
    """Of one run."""

    chain: str
    keepers: int
    tasks: int
    verified: int
    rows: tuple[Row, ...]
    unfinished: tuple[str, ...]


def quantile(values: Sequence[float], q: float) -> float:
    """Nearest rank; NaN of nothing."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


def _between(first: str, second: str) -> Span:
    def span(task: TaskSeen) -> float | None:
        a = task.due_ms if first == "due" else task.stages.get(first)
        b = task.stages.get(second)
        return None if not a or b is None else b - a

    return span


def _acknowledged(task: TaskSeen) -> float | None:
    """From publishing the task to having the performer's acknowledgement on disk, both at the coordinator."""
    first, second = task.coordinator_stages.get("published"), task.coordinator_stages.get("acknowledged")
    return None if first is None or second is None else second - first


SPANS: tuple[tuple[str, Span, float | None], ...] = (
    ("acknowledged: after published", _acknowledged, None),
    ("sent: after the due second", _between("due", "sent"), None),
    ("mined: after sent", _between("sent", "mined"), None),
    ("seen by an attester: after mined", _between("mined", "recorded"), None),
    ("first vote: after seen", _between("recorded", "voted"), None),
    ("attested (quorum aggregated): after mined", _between("mined", "aggregated"), None),
    ("certified (certificate sent): after attested", _between("aggregated", "certified_sent"), None),
    ("verified (certificate mined): after certified", _between("certified_sent", "certified"), None),
    ("due to mined", _between("due", "mined"), 150),
    ("mined to verified", _between("mined", "certified"), 250),
)


async def measure(tasks: int, interval: int, keepers: int, say: Callable[[str], None]) -> Result:
    """Runs `tasks` firings of one interval job on a fresh devnet with anvil at 0 confirmations."""
    folder = Path(tempfile.mkdtemp(prefix="triggerx-bench-"))
    try:
        options = DevnetOptions(folder=folder / "net", ready_file=folder / "net" / "devnet.json", keepers=keepers, engine="anvil")
        async with open_devnet(options, say) as devnet:
            return await _measure(devnet, tasks, interval, say)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _measure(devnet: Devnet, tasks: int, interval: int, say: Callable[[str], None]) -> Result:
    assert devnet.deployment.demo is not None
    job = demo_job(devnet.deployment.demo, 1, interval=interval, time_frame=interval * tasks)
    await post(devnet.client, devnet.platform, devnet.sender(devnet.roster.demo_owner.private_key), job)
    say(f"{tasks} tasks, one every {interval} s")
    watch = Watch(devnet.client, devnet.platform.coordinator_url, devnet.platform.api_key, devnet.places)
    with trio.move_on_after(tasks * interval + PATIENCE_S):
        while sum(task.status in FINAL for task in watch.tasks.values()) < tasks:
            await trio.sleep(_LOOK_S)
            await watch.look()
    seen = list(watch.tasks.values())
    rows = tuple(Row(name, tuple(value for task in seen if (value := span(task)) is not None), aim) for name, span, aim in SPANS)
    verified = [task for task in seen if task.verdict == "accepted"]
    unfinished = tuple(f"{task.task_id}: {task.status} {task.error}" for task in seen if task not in verified)
    return Result(devnet.chain.kind, len(devnet.places), len(seen), len(verified), rows, unfinished)


def main(
    tasks: Annotated[int, typer.Option(min=1, max=50, help="Tasks; a keeper's status page holds the last 50.")] = 50,
    interval: Annotated[int, typer.Option(min=1, help="Seconds from one task to the next.")] = 2,
    keepers: Annotated[int, typer.Option(min=2, help="Keepers of the devnet.")] = 5,
) -> None:
    """Latency of each stage of a task, on a devnet of its own. Exit code 1 when a task was not verified."""
    result = trio.run(measure, tasks, interval, keepers, print)
    print("\n" + stages_table(result))
    if result.verified < tasks:
        raise typer.Exit(1)


def stages_table(result: Result) -> str:
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
