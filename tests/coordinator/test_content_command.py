"""`triggerx content`: what is uploaded and downloaded is what its CID says, whatever the coordinator answers."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from pytest_trio import trio_fixture
from typer.testing import CliRunner

from cli.content import app, download, upload
from consensus.cid import cid_of
from consensus.errors import Failed, Misconfigured, Transient
from p2p.blobs import serve_blobs
from p2p.block_store import MemoryBlocks
from p2p.memory import MemoryMesh
from tests.coordinator.test_content import SCRIPT, Place, served

CID = str(cid_of(SCRIPT))
API = "http://coordinator.example.org"


@trio_fixture  # type: ignore[untyped-decorator]
async def place() -> AsyncIterator[Place]:
    mesh = MemoryMesh()
    async with serve_blobs(MemoryBlocks(), mesh.join("coordinator")) as blobs, served(blobs, mesh) as found:
        yield found


def answers(status: int, body: bytes) -> httpx.MockTransport:
    return httpx.MockTransport(lambda _: httpx.Response(status, content=body))


async def test_a_script_is_uploaded_and_had_again(place: Place) -> None:
    assert await upload(place.url + "/", place.headers["X-API-KEY"], SCRIPT) == CID
    assert await download(place.url, CID) == SCRIPT


async def test_an_unknown_key_is_the_callers_to_mend(place: Place) -> None:
    with pytest.raises(Misconfigured, match="--api-key-file"):
        await upload(place.url, "another", SCRIPT)


async def test_what_is_not_there_may_come_later(place: Place) -> None:
    with pytest.raises(Transient, match="CONTENT_NOT_FOUND"):
        await download(place.url, CID)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff", b"<html>"])
async def test_an_answer_without_a_cid_is_no_upload(body: bytes) -> None:
    with pytest.raises(Failed, match="CONTENT_REFUSED"):
        await upload(API, "key", SCRIPT, answers(201, body))


async def test_other_bytes_and_too_many_are_refused() -> None:
    with pytest.raises(Failed, match="CONTENT_MISMATCH"):
        await download(API, CID, answers(200, b"tampered"))
    with pytest.raises(Failed, match="CONTENT_TOO_LARGE"):
        await download(API, CID, answers(200, bytes(2**20 + 1)))


async def test_nobody_at_the_url_is_said(unused_port: int) -> None:
    for ask in (lambda: upload(f"http://127.0.0.1:{unused_port}", "key", SCRIPT), lambda: download("no url", CID)):
        with pytest.raises(Transient, match="COORDINATOR_UNREACHABLE"):
            await ask()


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_cid_alone_needs_no_coordinator(tmp_path: Path) -> None:
    (tmp_path / "script.js").write_bytes(SCRIPT)
    assert CliRunner().invoke(app, ["add", "--only-hash", str(tmp_path / "script.js")]).output.strip() == CID


@pytest.mark.parametrize("content", [b"", bytes(2**20 + 1), None])
def test_what_is_no_script_is_refused_before_anybody_is_asked(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "script.js").write_bytes(content)
    done = CliRunner().invoke(app, ["add", "--only-hash", str(tmp_path / "script.js")])
    assert isinstance(done.exception, Misconfigured)


def test_a_script_is_uploaded_to_somebody(tmp_path: Path) -> None:
    (tmp_path / "script.js").write_bytes(SCRIPT)
    done = CliRunner().invoke(app, ["add", str(tmp_path / "script.js")])
    assert isinstance(done.exception, Misconfigured)
    assert "--only-hash" in str(done.exception)
