"""A keeper's scripts as its program opens them, with the network that a script declares."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest

from consensus.errors import Transient
from consensus.messages import JobSpec, Run
from node.infra.compute import inline
from node.infra.fetch import open_fetcher
from node.infra.settings import FetchSettings, SandboxSettings
from node.scripts import Call, NoCall
from node.scripts.open import Opened, open_scripts
from tests.components import find
from tests.infra.web import Web, open_web, reply
from tests.node.script_world import USAGE, Shelf, job, task

PRICE = """
# triggerx: allow {place}
# triggerx: tolerance 1%
import json, urllib.request
with urllib.request.urlopen("http://{place}/price", timeout=5) as answer:
    print(json.dumps([json.load(answer)["price"]]))
"""


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with open_web() as server:
        yield server


@asynccontextmanager
async def opened(kind: Literal["embedded", "none"], shelf: Shelf, web: Web, folder: Path) -> AsyncIterator[Opened]:
    settings, fetch = SandboxSettings(kind=kind, esbuild=find("esbuild")), FetchSettings(allow=(web.place,))
    async with (
        open_fetcher(fetch) as fetcher,
        open_scripts(
            settings,
            fetch,
            content=shelf,
            addresses=fetcher.addresses,
            owner="test",
            folder=folder,
            hidden=(),
            compute=inline,
        ) as scripts,
    ):
        yield scripts


def posted(shelf: Shelf, web: Web) -> JobSpec:
    return job(2, script_url=f"ipfs://{shelf.add(PRICE.format(place=web.place).encode())}")


async def test_what_a_script_reads_from_the_network_may_differ_a_little(web: Web, tmp_path: Path) -> None:
    shelf = Shelf()
    spec = posted(shelf, web)
    web.replies["/price"] = reply(b'{"price": 200000}')
    async with opened("embedded", shelf, web, tmp_path) as scripts:
        outcome = await scripts.scripts.run(spec, task(spec))
        assert isinstance(outcome.action, Call), outcome
        assert outcome.run is not None
        assert outcome.run.usage.transferred > 0
        assert (scripts.sandbox, scripts.reason) == ("embedded", "")
        for printed, verdict in ((b"[201999]", None), (b"[202001]", "OUTPUT_DIFFERS"), (b"[]", "WRONG_OUTPUT")):
            claimed = Run(outcome.run.script, printed, USAGE)
            assert (await scripts.scripts.judge(spec, task(spec), claimed))[1] == verdict, printed
    assert web.asked == {"/price": 1}


async def test_a_script_reaches_no_host_that_it_does_not_declare(web: Web, tmp_path: Path) -> None:
    shelf = Shelf()
    web.replies["/price"] = reply(b'{"price": 200000}')
    source = PRICE.format(place=web.place).replace(f"allow {web.place}", "allow prices.example.org")
    spec = job(2, script_url=f"ipfs://{shelf.add(source.encode())}")
    async with opened("embedded", shelf, web, tmp_path) as scripts:
        outcome = await scripts.scripts.run(spec, task(spec))
    assert isinstance(outcome.action, NoCall)
    assert outcome.action.code == "SCRIPT_FAILED"
    assert not web.asked


async def test_a_keeper_without_a_sandbox_says_so(web: Web, tmp_path: Path) -> None:
    shelf = Shelf()
    spec = posted(shelf, web)
    async with opened("none", shelf, web, tmp_path) as scripts:
        assert (scripts.sandbox, bool(scripts.reason)) == ("", True)
        with pytest.raises(Transient, match="SANDBOX_UNAVAILABLE"):
            await scripts.scripts.run(spec, task(spec))
        assert isinstance(scripts.scripts.action_of(spec, b"[5]"), Call)
    assert not shelf.asked
