"""Documents that list what the code has: tables of options, metrics and reasons equal it.

`python -m tests.test_documents` writes them anew.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from consensus.lifecycle import REASONS, TRANSITIONS
from coordinator.metrics import CoordinatorMetrics
from coordinator.settings import CoordinatorSettings
from node.infra.settings import NodeSettings, option_rows, render_example
from node.infra.telemetry import Metrics

ROOT = Path(__file__).resolve().parent.parent


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def configuration() -> str:
    parts = ["# Configuration\n\nEvery option of both programs, from the code. Relative paths start at the file's folder.\n"]
    for title, model in (("triggerx-node", NodeSettings), ("triggerx-coordinator", CoordinatorSettings)):
        rows = [(f"`{r.key}`", r.type, f"`{r.default}`" if r.default else "required", r.meaning) for r in option_rows(model)]
        parts.append(f"## {title}\n\n{_table(('key', 'type', 'default', 'meaning'), rows)}")
        parts.append(f"A file with everything in it:\n\n```toml\n{render_example(model).strip()}\n```\n")
    return "\n".join(parts)


def metrics() -> str:
    head = ("metric", "type", "labels", "meaning")
    everywhere = _metric_rows(Metrics("node", "0"))
    coordinator = [row for row in _metric_rows(CoordinatorMetrics("0").metrics) if row not in everywhere]
    return (
        "# Metrics\n\n`GET /metrics` of every program, beside Prometheus' standard process metrics.\n\n"
        + f"{_table(head, everywhere)}\n## triggerx-coordinator\n\n{_table(head, coordinator)}"
    )


def _metric_rows(metrics: Metrics) -> list[tuple[str, ...]]:
    return [(f"`{r.name}`", r.type, ", ".join(r.labels), r.meaning) for r in metrics.rows()]


def reasons() -> str:
    rows = [(f"`{r.code}`", r.text, "another keeper is asked" if r.transient else "") for r in REASONS.values()]
    states = [(f"`{state}`", ", ".join(f"`{f}`" for f in sorted(after)) or "(final)") for state, after in TRANSITIONS.items()]
    return (
        "# States and reasons\n\nWhy a task, an attempt or a vote ended so: the code in logs, metrics and `task_error`.\n\n"
        + f"{_table(('code', 'meaning', 'then'), rows)}\nA task's states, and what may follow each:\n\n"
        + _table(("state", "may be followed by"), states)
    )


DOCUMENTS = {"configuration.md": configuration, "metrics.md": metrics, "reasons.md": reasons}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_lists_what_the_code_has(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == DOCUMENTS[name](), "python -m tests.test_documents writes it anew"


def test_every_code_that_can_end_a_task_has_its_row() -> None:
    raised: set[str] = set()
    for package in ("node", "coordinator"):
        for path in (ROOT / package).rglob("*.py"):
            for call in ast.walk(ast.parse(path.read_text())):
                if (
                    isinstance(call, ast.Call)
                    and isinstance(call.func, ast.Name)
                    and call.func.id in {"Failed", "Transient"}
                    and call.args
                    and isinstance(call.args[0], ast.Constant)
                ):
                    raised.add(call.args[0].value)
    deploying = {"DEPLOY_FAILED"}
    assert raised - deploying <= set(REASONS)
    assert raised  # or the search finds nothing any more


if __name__ == "__main__":
    for file, text in DOCUMENTS.items():
        (ROOT / "docs" / file).write_text(text())
