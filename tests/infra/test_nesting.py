"""Deeply nested JSON is refused before a parser can overflow the stack, whatever libraries did to the recursion limit."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.infra.nesting import MOST, check_nesting

_JSON = st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(value=_JSON)
def test_ordinary_json_passes(value: object) -> None:
    check_nesting(json.dumps(value))


@pytest.mark.parametrize("text", ["[" * (MOST + 1), '{"a":' * (MOST + 1), '["]",' * (MOST + 1), '["\\"]",' * (MOST + 1)])
def test_deeper_json_is_refused(text: str) -> None:
    with pytest.raises(RecursionError):
        check_nesting(text)


def test_brackets_in_strings_and_broad_json_do_not_count() -> None:
    check_nesting(json.dumps(["[" * 10_000] + [[] for _ in range(10_000)]))


@pytest.mark.parametrize(
    "program",
    [
        "from node.arguments import parse_json\nfrom consensus.errors import Invalid\n"
        "try: parse_json('[' * 1_000_000, 'abi')\nexcept Invalid: print('refused')",
        "from node.infra.keystore import _read\nfrom consensus.errors import Misconfigured\nfrom pathlib import Path\n"
        "import tempfile\nfile = Path(tempfile.mkstemp()[1])\nfile.write_text('[' * 60_000)\n"
        "try: _read(file, 'keys.bls')\nexcept Misconfigured: print('refused')\nfile.unlink()",
    ],
)
def test_a_process_with_a_raised_recursion_limit_survives_it(program: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", f"import web3, sys\nsys.setrecursionlimit(100_000)\n{program}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stdout.strip()) == (0, "refused"), ended.stderr
