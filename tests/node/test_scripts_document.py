"""docs/scripts.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from consensus.messages import MAX_CALL_BYTES, MAX_OUTPUT_BYTES, MAX_STORAGE_BYTES
from node.sandbox.port import MAX_SOURCE_BYTES, Language, Limits
from node.scripts.comparison import OWN_DOING
from node.scripts.directives import LINES, MOST_HOSTS, MOST_TOLERANCE
from node.scripts.inputs import inputs_of
from node.scripts.outputs import MAX_KEY
from tests.node.script_world import job, task

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "scripts.md").read_text()
PROSE = " ".join(TEXT.split())


def test_the_limits_are_those_of_the_code() -> None:
    limits = Limits()
    rows = dict(re.findall(r"^\| ([^|]+) \| ([0-9]+(?: s| [KM]iB)?) \|$", TEXT, re.MULTILINE))
    assert rows == {
        "processors": f"{limits.cpus:g}",
        "time": f"{limits.wall_s:g} s",
        "memory, with files in `/tmp`": f"{limits.memory >> 20} MiB",
        "processes and threads": str(limits.pids),
        "files in `/tmp`": f"{limits.files >> 20} MiB",
        "stdout": f"{limits.stdout >> 10} KiB",
        "bytes to and from declared hosts": f"{limits.transferred >> 20} MiB",
    }
    assert limits.stdout == MAX_OUTPUT_BYTES
    for said in (
        f"of at most {MAX_SOURCE_BYTES >> 20} MiB",
        f"hex, at most {MAX_CALL_BYTES >> 10} KiB",
        f"at most {MAX_STORAGE_BYTES >> 10} KiB of JSON text",
        f"1 to {MAX_KEY} characters",
        f"first {LINES} lines",
        f"at most {MOST_HOSTS} such lines",
        f"at most {MOST_TOLERANCE:.0%}",
    ):
        assert said in PROSE, said


def test_everything_that_a_script_is_given_has_its_row() -> None:
    given = inputs_of(job(7), task(job(7)), None)
    section = TEXT.partition("## What it is given")[2].partition("\n## ")[0]
    members = re.findall(r"`([a-z_]+)`", "".join(re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE)))
    assert members == re.findall(r'"([a-z_]+)":', given.stdin.decode())
    assert set(re.findall(r"`(TRIGGERX_[A-Z_]+)`", section)) == set(given.environment)


def test_every_reason_and_language_is_explained() -> None:
    reasons = TEXT.partition("## How it can end")[2]
    for code in OWN_DOING | {
        "SCRIPT_UNREACHABLE",
        "SCRIPT_MISMATCH",
        "SANDBOX_UNAVAILABLE",
        "WRONG_SCRIPT",
        "WRONG_OUTPUT",
        "OUTPUT_DIFFERS",
    }:
        assert f"`{code}`" in reasons, code
    for language in Language:
        assert f"`{language.value}`" in TEXT


def test_the_example_shown_is_the_one_in_the_folder() -> None:
    assert f"```python\n{(ROOT / 'docs/examples/scripts/time.py').read_text()}```" in TEXT
