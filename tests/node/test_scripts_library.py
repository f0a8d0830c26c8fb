"""Where a script's bytes come from: peers first, then gateways; its CID decides what is believed."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from consensus.cid import Layout, cid_of
from consensus.errors import Failed, Transient
from node.infra.compute import inline
from node.infra.settings import FetchSettings
from node.sandbox.port import MAX_SOURCE_BYTES
from node.scripts.library import CONTENT_S, Library, open_library
from node.scripts.source import parse_source
from tests.infra.web import Web, open_web, reply
from tests.node.script_world import NoWeb, Shelf

SCRIPT = b"print([5])"
NAME = str(cid_of(SCRIPT))


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with open_web() as server:
        yield server


@pytest.fixture
async def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
async def library(web: Web, shelf: Shelf) -> AsyncIterator[Library]:
    settings = FetchSettings(allow=(web.place,), max_bytes=1024)
    async with open_library(shelf, settings, [f"{web.url}/second/"], inline) as opened:
        yield opened


async def test_a_script_that_peers_have_is_asked_of_nobody_else(web: Web, shelf: Shelf, library: Library) -> None:
    shelf.add(SCRIPT)
    assert await library.get(parse_source(f"{web.url}/ipfs/{NAME}")) == SCRIPT
    assert not web.asked


async def test_its_own_gateway_is_asked_next_and_what_it_gave_is_kept(web: Web, shelf: Shelf, library: Library) -> None:
    large = b"#" * (MAX_SOURCE_BYTES - 1)
    name = str(cid_of(large))
    web.replies[f"/ipfs/{name}"] = reply(large)
    source = parse_source(f"{web.url}/ipfs/{name}/large.py")
    for _ in range(2):
        assert await library.get(source) == large
    assert web.asked == {f"/ipfs/{name}": 1}
    assert shelf.files == {name: large}


async def test_the_configured_gateways_are_asked_last(web: Web, library: Library) -> None:
    web.replies[f"/second/ipfs/{NAME}"] = reply(SCRIPT)
    assert await library.get(parse_source(f"ipfs://{NAME}")) == SCRIPT
    assert await library.get(parse_source(f"{web.url}/ipfs/{NAME}")) == SCRIPT


@pytest.mark.parametrize("layout", [Layout(version=0, raw_leaves=False), Layout(raw_leaves=False), Layout()])
async def test_a_script_is_known_by_whatever_cid_kubo_gives_it(web: Web, library: Library, layout: Layout) -> None:
    for data in (SCRIPT, b"#" * 600_000):
        name = str(cid_of(data, layout))
        web.replies[f"/ipfs/{name}"] = reply(data)
        for _ in range(2):
            assert await library.get(parse_source(f"{web.url}/ipfs/{name}")) == data
    assert all(count == 1 for count in web.asked.values())


async def test_the_right_cid_with_other_bytes_is_no_script(web: Web, shelf: Shelf, library: Library) -> None:
    web.replies[f"/ipfs/{NAME}"] = reply(b"print([6])")
    with pytest.raises(Transient, match="another CID") as refused:
        await library.get(parse_source(f"{web.url}/ipfs/{NAME}"))
    assert refused.value.code == "SCRIPT_MISMATCH"
    assert not shelf.files
    web.replies[f"/second/ipfs/{NAME}"] = reply(SCRIPT)
    assert await library.get(parse_source(f"{web.url}/ipfs/{NAME}")) == SCRIPT


async def test_a_liar_among_the_peers_is_told_from_an_empty_shelf(shelf: Shelf) -> None:
    library = Library(shelf, NoWeb(), (), inline)
    for error, code in (
        (Transient("CONTENT_MISMATCH", "a peer sent other bytes"), "SCRIPT_MISMATCH"),
        (Transient("CONTENT_NOT_FOUND", "nobody has it"), "SCRIPT_UNREACHABLE"),
        (Failed("CONTENT_INVALID", "a directory"), "SCRIPT_INVALID"),
        (Failed("CONTENT_TOO_LARGE", "2 MiB"), "SCRIPT_INVALID"),
    ):
        shelf.error = error
        with pytest.raises((Failed, Transient)) as refused:
            await library.get(parse_source(f"ipfs://{NAME}"))
        assert (refused.value.code, refused.value.detail) == (code, error.detail)


async def test_a_gateway_that_sends_without_end_is_left(web: Web, library: Library) -> None:
    async def endless(stream: trio.abc.Stream) -> None:
        await stream.send_all(b"HTTP/1.1 200 x\r\n\r\n")
        while True:
            await stream.send_all(b"#" * 65536)

    web.replies[f"/ipfs/{NAME}"] = endless
    with pytest.raises(Transient, match="more than 1048576 bytes") as refused:
        await library.get(parse_source(f"{web.url}/ipfs/{NAME}"))
    assert refused.value.code == "SCRIPT_UNREACHABLE"


async def test_a_gateway_inside_ones_network_is_never_asked(web: Web, shelf: Shelf) -> None:
    async with open_library(shelf, FetchSettings(), (), inline) as library:
        with pytest.raises(Transient, match="no address of the public internet") as refused:
            await library.get(parse_source(f"{web.url}/ipfs/{NAME}"))
    assert refused.value.code == "SCRIPT_UNREACHABLE"
    assert not web.connections


async def test_several_who_want_a_script_fetch_it_once(shelf: Shelf) -> None:
    shelf.add(SCRIPT)
    shelf.gate = trio.Event()
    library = Library(shelf, NoWeb(), (), inline)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(library.get, parse_source(f"ipfs://{NAME}"))
        await trio.testing.wait_all_tasks_blocked()
        shelf.gate.set()
    assert shelf.asked == [NAME]


async def test_peers_that_do_not_answer_hold_nobody_up(shelf: Shelf, autojump_clock: trio.testing.MockClock) -> None:
    shelf.gate = trio.Event()
    library = Library(shelf, NoWeb(), (), inline)
    with pytest.raises(Transient, match="peers did not answer") as refused:
        await library.get(parse_source(f"ipfs://{NAME}"))
    assert refused.value.code == "SCRIPT_UNREACHABLE"
    assert trio.current_time() == pytest.approx(CONTENT_S)
