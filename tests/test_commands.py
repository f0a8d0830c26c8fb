"""The documents' commands: each exists, with every option that a reader is told to give it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from cli import coordinator, node, triggerx

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = {"triggerx": triggerx.app, "triggerx-node": node.app, "triggerx-coordinator": coordinator.app}


def told() -> list[tuple[str, str]]:
    """Command lines in blocks of shell, by document."""
    found = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE):
            if language not in ("", "sh"):
                continue
            lines = block.replace("\\\n", " ").splitlines()
            found += [(path.name, line) for line in lines if line.split(" ")[0] in PROGRAMS]
    return found


def test_the_operators_guide_tells_commands() -> None:
    assert len([1 for name, _ in told() if name == "operators.md"]) >= 6


@pytest.mark.parametrize(("document", "line"), told())
def test_a_command_in_a_document_can_be_typed(document: str, line: str) -> None:
    program, *words = shlex.split(line)
    command: Any = typer.main.get_command(PROGRAMS[program])
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    options = {name for each in command.params for name in each.opts}
    given = [word for word in words if word.startswith("--")]
    assert set(given) <= options, document
    required = [each for each in command.params if each.required]
    assert {each.opts[0] for each in required if each.param_type_name == "option"} <= set(given), document
