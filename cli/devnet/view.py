"""The devnet on a terminal as it runs, and without a terminal as plain lines, one per event."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cli.devnet.watch import STAGES, TaskSeen, Watch

_MIN_TASKS, _MAX_TASKS = 3, 20
_FIXED_LINES = 13  # heading, both tables' titles and rules, and the last line
_WIDE = 116  # columns that the table of tasks takes with its transaction hashes
_COLOURS = {
    "completed": "green",
    "certified": "green",
    "failed": "red",
    "rejected": "red",
    "not_attested": "red",
    "expired": "red",
}


@dataclass(frozen=True, slots=True)
class Heading:
    """What does not change while a devnet runs."""

    chain: str
    rpc_url: str
    coordinator_url: str
    ready_file: str
    demo: str


def short(text: str, head: int = 6, tail: int = 4) -> str:
    """`0x1234…cdef`."""
    return text if len(text) <= head + tail + 1 else f"{text[:head]}…{text[-tail:]}"


def heading_lines(heading: Heading) -> list[str]:
    """The header as lines of text."""
    return [
        f"chain        {heading.chain} at {heading.rpc_url}",
        f"coordinator  {heading.coordinator_url}",
        f"ready file   {heading.ready_file}",
        f"demo job     {heading.demo}",
    ]


def render(heading: Heading, watch: Watch, notices: Sequence[str], *, width: int, height: int) -> RenderableType:
    """The whole screen, for a terminal of `width` columns and `height` lines."""
    room = height - len(watch.keepers) - len(notices) - _FIXED_LINES
    parts: list[RenderableType] = [
        Text("\n".join(heading_lines(heading)), no_wrap=True, overflow="ellipsis"),
        Text(),
        _keepers(watch),
        Text(),
        _tasks(watch, max(_MIN_TASKS, min(room, _MAX_TASKS)), hashes=width >= _WIDE),
        *(Text(notice, style="yellow") for notice in notices),
        Text("\nCtrl-C ends the devnet and every process of it", style="dim"),
    ]
    return Group(*parts)


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False
    )


def _keepers(watch: Watch) -> Table:
    table = _table("keepers")
    for column in ("keeper", "address", "peer id", "online"):
        table.add_column(column, no_wrap=True)
    for column in ("peers", "performed", "attested"):
        table.add_column(column, justify="right")
    for keeper in watch.keepers:
        table.add_row(
            keeper.place.name,
            short(keeper.place.address),
            short(keeper.peer_id, 4, 6),
            Text("yes", style="green") if keeper.online else Text("no", style="red"),
            str(keeper.peers),
            str(len(keeper.performed)),
            str(len(keeper.attested)),
        )
    return table


def _tasks(watch: Watch, count: int, *, hashes: bool) -> Table:
    table = _table("tasks: milliseconds after the due second")
    table.add_column("no.", justify="right", no_wrap=True)
    for column in ("performer", "state"):
        table.add_column(column, no_wrap=True)
    for _, word in STAGES:
        table.add_column(word, justify="right", no_wrap=True)
    for column in ("votes", *(("execution", "certificate") if hashes else ()), "on chain"):
        table.add_column(column, no_wrap=True)
    for task in _newest(watch, count):
        table.add_row(
            task.number,
            task.performer,
            Text(task.status + (f" {task.error}" if task.error else ""), style=_COLOURS.get(task.status, "")),
            *(_millis(task, stage) for stage, _ in STAGES),
            _votes(task),
            *((short(task.execution_tx), short(task.validation_tx)) if hashes else ()),
            Text(task.verdict, style="green" if task.verdict == "accepted" else "red"),
        )
    return table


def _newest(watch: Watch, count: int) -> list[TaskSeen]:
    return sorted(watch.tasks.values(), key=lambda task: (task.due_ms, task.task_id))[-count:]


def _millis(task: TaskSeen, stage: str) -> str:
    millis = task.after_due(stage)
    return "" if millis is None else f"{millis}"


def _votes(task: TaskSeen) -> str:
    yes = sum(vote == "yes" for vote in task.votes.values())
    others = [vote for vote in task.votes.values() if vote != "yes"]
    return " ".join(filter(None, [f"{yes} yes" if task.votes else "", *others]))


class PlainLines:
    """Turns what is seen into lines: each event once, no control codes."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._told: dict[str, set[str]] = {}
        self._online: dict[str, bool] = {}

    def update(self, watch: Watch) -> None:
        """Writes what is new since the last call."""
        for keeper in watch.keepers:
            if self._online.get(keeper.place.name, True) != keeper.online:
                self._write(f"{keeper.place.name} is {'online again' if keeper.online else 'offline'}")
            self._online[keeper.place.name] = keeper.online
        for task in sorted(watch.tasks.values(), key=lambda task: (task.due_ms, task.task_id)):
            told = self._told.setdefault(task.task_id, set())
            for event, line in _events(task):
                if event not in told:
                    told.add(event)
                    self._write(f"task {task.number or short(task.task_id)}: {line}")
        for task_id in self._told.keys() - watch.tasks.keys():
            del self._told[task_id]


def _events(task: TaskSeen) -> Iterable[tuple[str, str]]:
    """What a task's lines say, in the order of its life."""
    if task.performer and task.due_ms:
        yield f"due {task.performer}", f"given to {task.performer}, due at second {task.due_ms // 1000}"
    for stage, word in STAGES:
        millis = task.after_due(stage)
        if millis is None:
            continue
        detail = {
            "sent": f" {task.execution_tx}",
            "aggregated": f", votes {_votes(task)}",
            "certified_sent": f" {task.validation_tx}",
        }.get(stage, "")
        yield stage, f"{word} {millis} ms after its second{detail}"
    if task.verdict:
        yield f"verdict {task.verdict}", f"certificate verified on chain: {task.verdict}"
    elif task.error:
        yield f"error {task.error}", f"{task.status}: {task.error}"
