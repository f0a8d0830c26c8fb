"""Content over the job API: uploaded with a key, given to anybody as bytes and never as a page, kept while jobs name it."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
import trio
from pytest_trio import trio_fixture  # type: ignore[import-untyped]
from trio.testing import MockClock

from consensus.cid import RAW, Cid, Layout, blocks, cid_of, matches
from consensus.errors import Transient
from coordinator.api.keys import new_key
from coordinator.api.server import api_app
from coordinator.fees import Fees
from coordinator.jobs import Jobs
from coordinator.pins import Pins
from coordinator.store.memory import MemoryStore
from coordinator.store.records import JobStatus
from node.infra.chain_memory import MemoryChain
from node.infra.clock import TrioClock
from node.infra.compute import Threads
from node.infra.content import SharedContent
from node.infra.http import open_server
from p2p.blobs import Blobs, serve_blobs
from p2p.block_store import DISK_BLOCK, MemoryBlocks
from p2p.memory import MemoryMesh
from tests.coordinator.conftest import sources
from tests.coordinator.factory import START, make_job

MIB = 1024 * 1024
SCRIPT = b"// triggerx: allow example.org\nconsole.log(JSON.stringify([1]))\n"


@dataclass
class Place:
    """A served API with a key, and the content behind it."""

    client: httpx.AsyncClient
    headers: dict[str, str]
    blobs: Blobs
    mesh: MemoryMesh
    url: str

    async def post(self, content: bytes, **headers: str) -> httpx.Response:
        return await self.client.post("/api/content", content=content, headers={**self.headers, **headers})


@asynccontextmanager
async def served(blobs: Blobs | None, mesh: MemoryMesh) -> AsyncIterator[Place]:
    clock, store = TrioClock(), MemoryStore()
    text, key = new_key("devnet", now=0)
    await store.add_key(replace(key, rate_limit=1000))
    chains = {31337: MemoryChain(clock)}

    async def changed(_job_id: int) -> None: ...

    async def any_url(url: str, /, *schemes: str) -> None: ...

    jobs = Jobs(store, Fees(store, chains, clock, Threads()), clock, Threads(), changed=changed, check_url=any_url)
    app = api_app(sources(store, jobs, clock, content=SharedContent(blobs) if blobs else None))
    async with (
        open_server(app, "127.0.0.1", 0, body_limit=2 * MIB) as url,
        httpx.AsyncClient(base_url=url, timeout=20) as client,
    ):
        yield Place(client, {"X-API-KEY": text}, blobs or Blobs(MemoryBlocks(), mesh.join("none")), mesh, url)


@trio_fixture  # type: ignore[untyped-decorator]
async def place() -> AsyncIterator[Place]:
    mesh = MemoryMesh()
    async with serve_blobs(MemoryBlocks(), mesh.join("coordinator")) as blobs, served(blobs, mesh) as found:
        yield found


async def test_what_is_uploaded_is_had_by_its_cid_from_the_gateway_and_by_keepers_over_the_mesh(place: Place) -> None:
    answer = await place.post(SCRIPT)
    assert answer.status_code == 201, answer.text
    said = answer.json()
    assert matches(said["cid"], SCRIPT)
    assert said == {"cid": said["cid"], "url": f"{place.url}/ipfs/{said['cid']}", "ipfs_url": f"ipfs://{said['cid']}"}
    assert (await place.client.get(said["url"])).content == SCRIPT
    keeper = Blobs(MemoryBlocks(), place.mesh.join("keeper"))
    assert await keeper.get(said["cid"], max_bytes=MIB) == SCRIPT


async def test_text_may_come_as_json(place: Place) -> None:
    body = json.dumps({"content": "print('ü')"}).encode()
    answer = await place.post(body, **{"Content-Type": "application/json; charset=utf-8"})
    assert answer.json()["cid"] == str(cid_of("print('ü')".encode()))


NO_TEXT = [b"{", b"[]", b'{"content": 5}', b'{"content": ""}', b'{"other": "x"}', b'{"content": "\\ud800"}', b"\xff"]


@pytest.mark.parametrize("body", NO_TEXT)
async def test_json_that_holds_no_text_is_refused(place: Place, body: bytes) -> None:
    answer = await place.post(body, **{"Content-Type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    assert answer.json()["code"] in ("INVALID_BODY", "INVALID_FIELD")


async def test_a_file_has_one_byte_to_one_mebibyte(place: Place) -> None:
    whole = random.Random(1).randbytes(MIB)
    cid = (await place.post(whole)).json()["cid"]
    assert (await place.client.get(f"/ipfs/{cid}")).content == whole
    for wrong in (b"", whole + b"x"):
        answer = await place.post(wrong)
        assert (answer.status_code, answer.json()["field"]) == (422, "content")
    assert (await place.post(bytes(3 * MIB))).status_code == 413


async def test_uploading_needs_a_key_and_is_limited(place: Place) -> None:
    assert (await place.client.post("/api/content", content=SCRIPT)).status_code == 401
    assert (await place.client.post("/api/content", content=SCRIPT, headers={"X-API-KEY": "x"})).status_code == 403
    codes = [(await place.post(b"%d" % number)).status_code for number in range(40)]
    assert codes.count(201) >= 30
    assert codes[-1] == 429


async def test_one_owner_pushes_out_no_others_scripts_by_large_uploads(place: Place) -> None:
    answers = [await place.post(bytes([number]) * MIB) for number in range(12)]
    assert 4 <= [answer.status_code for answer in answers].count(201) < 8
    assert (answers[-1].status_code, "bytes" in answers[-1].json()["message"]) == (429, True)


async def test_what_users_upload_is_never_a_page(place: Place) -> None:
    for data, kind in ((b"<script>alert(1)</script>", "text/plain; charset=utf-8"), (b"\x89PNG\xff", "application/octet-stream")):
        cid = (await place.post(data, **{"Content-Type": "text/html"})).json()["cid"]
        headers = (await place.client.get(f"/ipfs/{cid}")).headers
        assert headers["content-type"] == kind
        assert headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in headers["content-security-policy"]
        assert "immutable" in headers["cache-control"]
        assert headers["etag"] == f'"{cid}"'


async def test_who_has_it_already_is_told_so(place: Place) -> None:
    cid = (await place.post(SCRIPT)).json()["cid"]
    answer = await place.client.get(f"/ipfs/{cid}", headers={"If-None-Match": f'"{cid}"'})
    assert (answer.status_code, answer.content) == (304, b"")
    head = await place.client.head(f"/ipfs/{cid}")
    assert (head.status_code, head.content) == (200, b"")


async def test_a_file_in_another_layout_is_given_by_its_own_cid(place: Place) -> None:
    data = random.Random(2).randbytes(300_000)
    laid = list(blocks(data, Layout(0, raw_leaves=False)))
    await place.blobs.store.put([block.data for block in laid])
    assert (await place.client.get(f"/ipfs/{laid[-1].cid}")).content == data


async def test_the_gateway_asks_nobody_for_what_is_not_here(place: Place) -> None:
    elsewhere = place.mesh.join("keeper")
    async with serve_blobs(MemoryBlocks(), elsewhere) as keeper:
        cid = await keeper.put(SCRIPT)
        answer = await place.client.get(f"/ipfs/{cid}")
        assert (answer.status_code, answer.json()["code"]) == (404, "CONTENT_NOT_FOUND")
        assert keeper.counts.served == 0


@pytest.mark.parametrize("cid", ["x", "..%2f..%2fetc%2fpasswd", "Qm" + "1" * 44, "bafkrei" + "a" * 600])
async def test_what_is_no_cid_is_not_found(place: Place, cid: str) -> None:
    answer = await place.client.get(f"/ipfs/{cid}")
    assert answer.status_code == 404


async def test_too_much_is_not_given(place: Place) -> None:
    data = bytes(MIB + 1)
    await place.blobs.put(data)
    answer = await place.client.get(f"/ipfs/{cid_of(data)}")
    assert (answer.status_code, answer.json()["code"]) == (404, "CONTENT_TOO_LARGE")


async def test_downloads_of_one_address_are_limited(place: Place) -> None:
    cid = (await place.post(SCRIPT)).json()["cid"]
    codes = [(await place.client.get(f"/ipfs/{cid}")).status_code for _ in range(140)]
    assert codes[:100] == [200] * 100
    assert codes[-1] == 429


async def test_a_coordinator_without_content_says_so() -> None:
    async with served(None, MemoryMesh()) as place:
        assert (await place.post(SCRIPT)).status_code == 503
        assert (await place.client.get(f"/ipfs/{cid_of(SCRIPT)}")).json()["code"] == "NOT_SERVED"


# pins


def script(number: int) -> bytes:
    return f"print({number})".encode()


def named_by(job_id: int, url: str, **changes: Any) -> Any:
    job = make_job(job_id, definition=2)
    return replace(job, target=replace(job.target, script_url=url), **changes)


def pinned(blobs: Blobs) -> set[bytes]:
    return set(blobs.store.pinned)


async def test_scripts_that_live_jobs_name_are_pinned_and_no_others() -> None:
    store, blobs = MemoryStore(), Blobs(MemoryBlocks(), MemoryMesh().join("coordinator"))
    pins, cids = Pins(store, blobs), [await blobs.put(script(number)) for number in range(4)]
    digests = [Cid.parse(cid).digest for cid in cids]
    await store.add_job(named_by(1, f"ipfs://{cids[0]}"))
    await store.add_job(named_by(2, f"https://gateway.example.org/ipfs/{cids[1]}/script.py"))
    await store.add_job(named_by(3, f"ipfs://{cids[1]}"))
    await store.add_job(named_by(4, f"ipfs://{cid_of(b'elsewhere')}"))
    await store.add_job(named_by(5, "of an older version"))
    await pins.look()
    assert pinned(blobs) == {digests[0], digests[1]}
    await store.end_job(1, JobStatus.DELETED, START)
    await store.end_job(2, JobStatus.DELETED, START)
    await store.pause_job(3, START)  # it may go on
    await pins.look()
    assert pinned(blobs) == {digests[1]}


async def test_a_pinned_script_outlasts_a_flood_of_uploads() -> None:
    store, blobs = MemoryStore(), Blobs(MemoryBlocks(8 * DISK_BLOCK), MemoryMesh().join("coordinator"))
    cid = await blobs.put(script(0))
    await store.add_job(named_by(1, f"ipfs://{cid}"))
    await Pins(store, blobs).look()
    for number in range(1, 50):
        await blobs.put(script(number))
    assert await blobs.held(cid, max_bytes=MIB) == script(0)
    assert await blobs.held(str(cid_of(script(1))), max_bytes=MIB) is None


@pytest.mark.parametrize("first", ["the file", "its root"])
async def test_who_names_the_root_of_a_large_script_as_a_file_of_its_own_loosens_none_of_it(first: str) -> None:
    store, blobs = MemoryStore(), Blobs(MemoryBlocks(2 * MIB), MemoryMesh().join("coordinator"))
    large = bytes(range(256)) * 2048
    cid = await blobs.put(large)
    urls = [f"ipfs://{cid}", f"ipfs://{Cid(1, RAW, Cid.parse(cid).digest)}"]
    pins = Pins(store, blobs)
    for number, url in enumerate(urls if first == "the file" else reversed(urls)):
        await store.add_job(named_by(number + 1, url))
        await pins.look()
    for number in range(500):
        await blobs.put(script(number))
    assert await blobs.held(cid, max_bytes=MIB) == large


async def test_more_scripts_than_may_be_pinned_leave_room_for_others() -> None:
    store, blobs = MemoryStore(), Blobs(MemoryBlocks(8 * DISK_BLOCK), MemoryMesh().join("coordinator"))
    for number in range(8):
        await store.add_job(named_by(number + 1, f"ipfs://{await blobs.put(script(number))}"))
    with pytest.raises(Transient, match="CONTENT_STORE_FULL"):
        await Pins(store, blobs).look()
    assert len(pinned(blobs)) == 6
    await blobs.put(script(99))


async def test_pins_go_on_after_a_look_that_failed(autojump_clock: MockClock) -> None:
    store, blobs = MemoryStore(), Blobs(MemoryBlocks(), MemoryMesh().join("coordinator"))
    cid, real, looked, again = await blobs.put(script(0)), store.script_urls, list[int](), trio.Event()
    await store.add_job(named_by(1, f"ipfs://{cid}"))

    async def failing() -> Any:
        looked.append(1)
        if len(looked) == 1:
            raise Transient("DATABASE_BUSY")
        if len(looked) == 3:
            again.set()
        return await real()

    store.script_urls = failing  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        await nursery.start(Pins(store, blobs).run)
        await again.wait()
        assert pinned(blobs) == {Cid.parse(cid).digest}
        nursery.cancel_scope.cancel()
