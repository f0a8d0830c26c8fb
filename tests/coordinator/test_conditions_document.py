"""docs/triggers.md says of conditions what the code does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from consensus import conditions, json_route, numbers, view_calls
from consensus.conditions import Operator, Source
from coordinator.scheduler import condition
from node.infra import fetch
from node.infra.settings import FetchSettings
from node.infra.sources import onchain, websockets
from node.infra.toml_settings import option_rows

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "triggers.md").read_text()
SECTION = TEXT[TEXT.index("\n## Conditions\n") :].split("\n## ")[1]
OURS = {"view": "contract"}


def first_cells(heading: str) -> list[str]:
    part = SECTION[SECTION.index(f"### {heading}\n") :].split("\n### ")[0]
    return [cell for cell in re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE) if cell != "condition_type"]


def test_every_operator_has_its_row():
    assert sorted(first_cells("Comparisons")) == sorted(get_args(Operator))


def test_every_source_has_its_row():
    tags = [str(kind.__struct_config__.tag) for kind in get_args(Source)]
    assert sorted(first_cells("Sources")) == sorted(OURS.get(tag, tag) for tag in tags)


def test_the_limits_are_the_codes():
    for text in (
        f"| comparisons | {conditions.MAX_COMPARISONS}, on {conditions.MAX_DEPTH} levels |",
        f"| number | {numbers.MAX_DIGITS} digits, from 10^−{numbers.MAX_MAGNITUDE} to 10^{numbers.MAX_MAGNITUDE} |",
        f"| URL | {conditions.MAX_URL:,} characters |",
        f"| route | {json_route.MAX_ROUTE} characters, {json_route.MAX_STEPS} steps |",
        f"| view call | {view_calls.MAX_TEXT} characters and {view_calls._MAX_TYPES} types;",
        f"its arguments {conditions.MAX_ARGUMENTS:,} characters |",
        f"{websockets._BYTES_PER_S // 1024} KiB or {websockets._BYTES_PER_S // websockets._BYTES_A_FRAME} frames a second",
        f"more than {onchain.STALE_AFTER_S // 3600} hours older",
    ):
        assert text in SECTION
    assert fetch._PER_HOST == 4
    assert "A host gets four requests at a time" in SECTION
    assert fetch._MAX_REDIRECTS == 3
    assert "At most three redirects" in SECTION
    assert condition._MOST_STEPS == 8
    assert "up to eight steps" in SECTION
    assert (fetch._LONGEST_REST_S, fetch._LONGEST_ASKED_REST_S) == (60, 300)


def test_the_settings_that_are_named_exist():
    assert set(re.findall(r"`fetch\.(\w+)`", SECTION)) == {row.key for row in option_rows(FetchSettings)}
