"""docs/api.md says what the code does: routes, metrics, codes, and the example is taken."""

from __future__ import annotations

import re
from pathlib import Path

from consensus import committee
from consensus.conditions import MAX_COMPARISONS, MAX_DEPTH
from consensus.events import MAX_FILTERS
from consensus.schedules import MAX_MOMENTS
from consensus.triggers import Interval
from coordinator.api import answers, tasks
from coordinator.api import jobs as api_jobs
from coordinator.api.requests import posted_jobs
from coordinator.api.server import api_app
from coordinator.definitions.conditions import OPERATORS, SOURCE_TYPES
from coordinator.fees import LEAST_GAS, MOST_GAS, SCRIPTED_GAS, Fees
from coordinator.jobs import MAX_LINKED, Jobs
from coordinator.scheduler.time import MISSED_AFTER_S
from coordinator.store.memory import MemoryStore
from coordinator.store.records import MissedPolicy
from node.infra import fetch
from node.infra.clock import SystemClock
from node.infra.compute import inline
from node.sandbox.port import Language
from tests.coordinator.conftest import sources

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "api.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head and without the marks of code."""
    section = TEXT.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_routes_is_the_apps() -> None:
    store, clock = MemoryStore(), SystemClock()

    async def nothing(*_: object) -> None: ...

    jobs = Jobs(store, Fees(store, {}, clock, inline), clock, inline, changed=nothing, check_url=nothing)
    app = api_app(sources(store, jobs, clock))
    served = {
        (method, rule.rule): app.view_functions[rule.endpoint]
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.endpoint != "static"
    }
    told = {(method, path): key == "yes" for method, path, key, _ in rows("Routes")}
    assert told == {route: hasattr(view, "__wrapped__") for route, view in served.items()}


def test_every_code_that_the_api_can_answer_is_in_the_table_of_errors() -> None:
    folders = (ROOT / "coordinator" / "api", ROOT / "coordinator" / "definitions")
    files = [
        ROOT / "coordinator" / "jobs.py",
        ROOT / "coordinator" / "fees.py",
        *(path for folder in folders for path in folder.glob("*.py")),
    ]
    text = "\n".join(path.read_text() for path in files)
    raised = (
        set(re.findall(r'RefusedError\(\s*\d+, "([A-Z_]+)"', text))
        | set(re.findall(r'code="([A-Z_]+)"', text))
        | {fetch.REFUSED, fetch.UNREACHABLE}
    )
    told = set(re.findall(r"\b[A-Z][A-Z_]+\b", " ".join(cells[1] for cells in rows("Errors"))))
    assert raised <= told


def test_the_example_is_a_job() -> None:
    [example] = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    [posted] = posted_jobs(example.encode())
    assert (posted.trigger, posted.time_frame, posted.definition) == (Interval(10), 3600, 1)


def test_the_words_that_a_job_may_hold_are_the_codes() -> None:
    [kinds] = re.findall(r"`condition_type` \((.*?)\)", TEXT, re.DOTALL)
    assert re.findall(r"`(\w+)`", kinds) == list(OPERATORS)
    assert sorted(cells[0] for cells in rows("Types 5 and 6: conditions")) == sorted(SOURCE_TYPES)
    assert all(f"`{policy.value}`" in TEXT for policy in MissedPolicy)
    assert ", ".join(f"`{language}`" for language in Language) in TEXT


def test_numbers_in_the_text_are_the_codes() -> None:
    assert f"newest {tasks.TASKS_SHOWN} tasks" in TEXT
    assert tasks.TASKS_SHOWN == api_jobs.TASK_IDS_SHOWN
    assert f"newest {tasks.RECENT_LOOKED_AT} tasks" in TEXT
    assert f"1 to {MAX_MOMENTS} times" in TEXT
    assert f"at most {MAX_FILTERS}, which all must match" in TEXT
    assert f"at most {MAX_COMPARISONS} comparisons on {MAX_DEPTH} levels" in TEXT
    assert f"at most {MAX_LINKED} of one user" in TEXT
    assert f"{MISSED_AFTER_S:.0f} s late" in TEXT.replace("\n", " ")
    sizes = ", ".join(str(committee.SIZE_BY_LEVEL[level]) for level in (1, 2, 3, 4))
    assert f"committees of {sizes}; 0, the\ndefault, means {committee.SIZE_BY_LEVEL[0]}" in TEXT
    assert f"`gas_limit` (of the call alone, {LEAST_GAS} to {MOST_GAS}" in TEXT
    assert f"decides gets {SCRIPTED_GAS})" in TEXT
    assert answers.rfc3339(0) == "1970-01-01T00:00:00Z"
