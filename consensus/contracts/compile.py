"""Compiles the contracts into artifacts/: `python -m consensus.contracts.compile` (needs vyper, a development dependency)."""

from __future__ import annotations

import json
from pathlib import Path

from consensus.contracts import NAMES

SOURCES = Path(__file__).parent
ARTIFACTS = SOURCES / "artifacts"


def compiled(name: str) -> str:
    """The text of a contract's artifact file, from its source."""
    from vyper.cli.vyper_compile import compile_files  # type: ignore[import-untyped,unused-ignore]

    path = SOURCES / f"{name}.vy"
    output = compile_files([path], ["abi", "bytecode"], paths=[str(SOURCES)])
    contract = next(iter(output.values()))
    abi = ",\n    ".join(json.dumps(entry) for entry in contract["abi"])
    return f'{{\n  "name": "{name}",\n  "abi": [\n    {abi}\n  ],\n  "bytecode": "{contract["bytecode"]}"\n}}\n'


def main() -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    for name in NAMES:
        (ARTIFACTS / f"{name}.json").write_text(compiled(name), encoding="utf-8")


if __name__ == "__main__":
    main()
