"""Processes killed at random under a mix of jobs: everything due executes once, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.storm import Options, run


async def storm(folder: Path, options: Options) -> None:
    said: list[str] = []
    result = await run(options, said.append)
    lines = result.lines(options)
    print("\n".join([*said, *lines]))
    assert result.audit.clean, "\n".join([*lines, f"files in {folder}"])
    assert result.audit.due > options.jobs  # what cannot fail proves nothing
    assert len(result.kills) >= 3, "too few different victims to prove anything"


async def test_a_minute_of_kills_loses_nothing_and_repeats_nothing(tmp_path: Path):
    await storm(tmp_path, Options(tmp_path / "storm", seed=20, seconds=60, jobs=40))


@pytest.mark.soak
async def test_ten_minutes_of_kills_under_two_hundred_jobs(tmp_path: Path):
    await storm(tmp_path, Options(tmp_path / "storm", seed=7, seconds=600, jobs=200))
