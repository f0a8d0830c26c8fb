"""Content between peers: one suite on the memory network and on real hosts."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.cid import MAX_BLOCK_BYTES, Cid, Layout, blocks, cid_of, raw_cid
from consensus.errors import Failed, Reject, Transient
from p2p.blobs import BlobLimits, Blobs, serve_blobs
from p2p.block_store import MemoryBlocks, open_blocks
from p2p.content import Content
from p2p.framing import frame
from p2p.host import HostConfig, open_network
from p2p.limits import Rate
from p2p.memory import MemoryMesh
from p2p.network import Network, PeerId
from p2p.streams import MULTISTREAM, StreamLimits
from p2p.topics import BLOCKS, BlockAnswer, BlockRequest
from tests.p2p.conftest import LOOPBACK, OpenMesh, until
from tests.p2p.hostile import hostile

MIB = 1024 * 1024
FILE = random.Random(1).randbytes(600_000)  # three chunks and their root
SMALL = b"console.log(1)"

Handler = Callable[[BlockRequest, PeerId], Awaitable[BlockAnswer]]

QUICK = BlobLimits(answer=60.0, patience=0.05, pause=0.01)


def client(network: Network, **changes: object) -> Blobs:
    """One that asks and does not serve."""
    return Blobs(MemoryBlocks(), network, limits=QUICK, **changes)  # type: ignore[arg-type]


def says(answer: BlockAnswer, asked: list[PeerId] | None = None) -> Handler:
    async def handler(_request: BlockRequest, source: PeerId) -> BlockAnswer:
        if asked is not None:
            asked.append(source)
        return answer

    return handler


async def got(content: Content, cid: str, *peers: PeerId, max_bytes: int = MIB) -> bytes:
    with trio.fail_after(30):
        return await content.get(cid, max_bytes=max_bytes, peers=peers)


async def test_what_one_peer_puts_another_gets_and_can_give_on(open_mesh: OpenMesh) -> None:
    async with open_mesh(3) as (a, b, c), serve_blobs(MemoryBlocks(), b) as at_b:
        async with serve_blobs(MemoryBlocks(), a) as at_a:
            cids = [await at_a.put(data) for data in (FILE, SMALL, b"")]
            assert cids[1] == str(raw_cid(SMALL))
            for cid, data in zip(cids, (FILE, SMALL, b""), strict=True):
                assert await got(at_b, cid, a.peer_id) == data
        for cid, data in zip(cids, (FILE, SMALL, b""), strict=True):  # a is gone, and b was not told who has it
            assert await got(client(c), cid) == data
        assert at_b.counts.served == 6
        assert at_b.counts.served_bytes > len(FILE)


@pytest.mark.parametrize("layout", [Layout(0, False), Layout(0, True), Layout(1, False), Layout(1, True, MIB)])
async def test_files_of_every_layout_are_put_together(open_mesh: OpenMesh, layout: Layout) -> None:
    store = MemoryBlocks()
    await store.put([block.data for block in blocks(FILE, layout)])
    async with open_mesh(2) as (a, b), serve_blobs(store, a):
        assert await got(client(b), str(cid_of(FILE, layout)), a.peer_id) == FILE


@pytest.mark.parametrize("layout", [Layout(0, False), Layout(0, True), Layout(1, False), Layout(1, True, MIB)])
async def test_a_file_from_elsewhere_is_kept_and_served_by_the_cid_it_has(open_mesh: OpenMesh, layout: Layout) -> None:
    cid = str(cid_of(FILE, layout))
    async with open_mesh(2) as (a, b), serve_blobs(MemoryBlocks(), a) as content:
        with pytest.raises(Failed, match="CONTENT_INVALID"):
            await content.keep(cid, FILE + b"!")
        await content.keep(cid, FILE)
        assert await got(client(b), cid, a.peer_id) == FILE


async def test_what_is_here_is_asked_of_nobody(open_mesh: OpenMesh) -> None:
    asked: list[PeerId] = []
    async with open_mesh(2) as (a, b), a.serve(BLOCKS, says(BlockAnswer("NOT_FOUND"), asked)):
        content = client(b)
        cid = await content.put(FILE)
        assert await got(content, cid, a.peer_id) == FILE
    assert asked == []


async def test_blocks_of_one_file_come_from_whoever_has_them(open_mesh: OpenMesh) -> None:
    laid = list(blocks(FILE))
    stores = [MemoryBlocks(), MemoryBlocks()]
    for number, block in enumerate(laid):
        await stores[number % 2].put([block.data])
    async with open_mesh(3) as (a, b, c), serve_blobs(stores[0], a), serve_blobs(stores[1], b):
        assert await got(client(c), str(laid[-1].cid)) == FILE


async def test_what_nobody_has_may_come_later(open_mesh: OpenMesh) -> None:
    async with open_mesh(3) as (a, b, c), serve_blobs(MemoryBlocks(), a), b.serve(BLOCKS, says(BlockAnswer("NOT_FOUND"))):
        with pytest.raises(Transient, match="CONTENT_NOT_FOUND"):
            await got(
                client(c), str(raw_cid(SMALL)), a.peer_id, "no peer id", "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
            )


async def test_a_peer_that_sends_other_bytes_is_noted_and_the_next_one_asked(open_mesh: OpenMesh) -> None:
    async with open_mesh(3) as (liar, honest, c), serve_blobs(MemoryBlocks(), honest) as has:
        cid = await has.put(SMALL)
        async with liar.serve(BLOCKS, says(BlockAnswer("", b"tampered"))):
            content = client(c)
            assert await got(content, cid, liar.peer_id, honest.peer_id) == SMALL
            assert content.counts.wrong == 1
            assert c.counters.rejected == {"WRONG_BYTES": 1}


async def test_only_other_bytes_is_another_failure_than_nothing_and_three_times_enough(open_mesh: OpenMesh) -> None:
    asked: list[PeerId] = []
    async with open_mesh(2) as (liar, b), liar.serve(BLOCKS, says(BlockAnswer("", b"tampered"), asked)):
        content = client(b)
        for _ in range(3):
            with pytest.raises(Transient, match="CONTENT_MISMATCH"):
                await got(content, str(raw_cid(SMALL)), liar.peer_id)
        with pytest.raises(Transient, match="CONTENT_NOT_FOUND"):
            await got(content, str(raw_cid(SMALL)), liar.peer_id)
        assert len(asked) == 3


async def test_an_oversized_answer_is_not_read_to_its_end_and_the_next_peer_asked(open_mesh: OpenMesh) -> None:
    async with open_mesh(3) as (liar, honest, c), serve_blobs(MemoryBlocks(), honest) as has:
        cid = await has.put(SMALL)
        large = replace(BLOCKS, max_answer_bytes=8 * MIB)
        async with liar.serve(large, says(BlockAnswer("", bytes(4 * MIB)))):
            assert await got(client(c), cid, liar.peer_id, honest.peer_id) == SMALL


async def test_a_slow_peer_holds_nobody_up(open_mesh: OpenMesh) -> None:
    async with open_mesh(3) as (slow, quick, c), slow.serve(BLOCKS, never), serve_blobs(MemoryBlocks(), quick) as has:
        cid = await has.put(FILE)
        with trio.fail_after(30):  # half of what a slow answer is waited for
            assert await client(c).get(cid, max_bytes=MIB, peers=[slow.peer_id]) == FILE


async def never(_request: BlockRequest, _source: PeerId) -> BlockAnswer:
    await trio.sleep_forever()
    raise AssertionError


async def test_who_gave_before_is_asked_first() -> None:
    mesh, asked = MemoryMesh(), list[PeerId]()
    giver, keeper = mesh.join("giver"), mesh.join("keeper")
    async with AsyncExitStack() as stack:
        has = await stack.enter_async_context(serve_blobs(MemoryBlocks(), giver))
        for number in range(10):
            other = mesh.join(f"a{number}")
            await stack.enter_async_context(other.serve(BLOCKS, says(BlockAnswer("NOT_FOUND"), asked)))
        content = client(keeper, shuffle=list.sort)
        assert await got(content, await has.put(SMALL)) == SMALL
        assert len(asked) == 10
        assert await got(content, await has.put(b"the next one")) == b"the next one"
        assert len(asked) == 10


async def test_a_file_over_the_callers_limit_is_refused_before_it_is_fetched(open_mesh: OpenMesh) -> None:
    async with open_mesh(2) as (a, b), serve_blobs(MemoryBlocks(), a) as has:
        content = client(b)
        cid = await has.put(FILE)
        with pytest.raises(Failed, match="CONTENT_TOO_LARGE"):
            await got(content, cid, a.peer_id, max_bytes=len(FILE) - 1)
        assert has.counts.served == 1
        assert await got(content, cid, a.peer_id, max_bytes=len(FILE)) == FILE


@pytest.mark.parametrize(
    "cid", ["", "Qm", "bafkrei", "ipfs://x", "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbd0", "b" * 59, "x" * 9999]
)
async def test_what_is_no_cid_is_looked_for_nowhere(cid: str) -> None:
    with pytest.raises(Failed, match="CONTENT_INVALID"):
        await Blobs(MemoryBlocks(), MemoryMesh().join("a")).get(cid, max_bytes=MIB)


async def test_a_directory_is_no_file(open_mesh: OpenMesh) -> None:
    directory = b"\x0a\x02\x08\x01"  # UnixFS type 1
    store = MemoryBlocks()
    await store.put([directory])
    async with open_mesh(2) as (a, b), serve_blobs(store, a):
        with pytest.raises(Failed, match="CONTENT_INVALID"):
            await got(client(b), str(Cid(1, 0x70, raw_cid(directory).digest)), a.peer_id)


async def test_who_asks_for_the_same_at_once_fetches_it_once(open_mesh: OpenMesh) -> None:
    async with open_mesh(2) as (a, b), serve_blobs(MemoryBlocks(), a) as has:
        content, cid, files = client(b), await has.put(FILE), list[bytes]()

        async def get() -> None:
            files.append(await got(content, cid, a.peer_id))

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(get)
        assert files == [FILE] * 8
        assert has.counts.served == 4


async def test_one_that_gives_up_leaves_the_search_to_the_others(open_mesh: OpenMesh) -> None:
    released, asked = trio.Event(), trio.Event()

    async def slow(_request: BlockRequest, _source: PeerId) -> BlockAnswer:
        asked.set()
        await released.wait()
        return BlockAnswer("", SMALL)

    async with open_mesh(2) as (a, b), a.serve(BLOCKS, slow):
        content, cid, files = client(b), str(raw_cid(SMALL)), list[bytes]()

        async def get() -> None:
            files.append(await got(content, cid, a.peer_id))

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                async with trio.open_nursery() as first:
                    first.start_soon(get)
                    await asked.wait()
                    nursery.start_soon(get)
                    await trio.testing.wait_all_tasks_blocked()
                    first.cancel_scope.cancel()
                released.set()
        assert files == [SMALL]


async def test_a_peer_is_served_its_share_and_told_that_it_had_it(open_mesh: OpenMesh) -> None:
    limits = BlobLimits(requests=Rate(per_second=1e-6, burst=3))
    async with open_mesh(3) as (a, b, c), serve_blobs(MemoryBlocks(), a, limits=limits) as has:
        await has.put(SMALL)
        ask = BlockRequest(raw_cid(SMALL).digest)
        codes = [(await b.request(a.peer_id, BLOCKS, ask)).code for _ in range(5)]
        assert codes == ["", "", "", "BUSY", "BUSY"]
        assert (await c.request(a.peer_id, BLOCKS, ask)).data == SMALL
        assert has.counts.turned_away == 2


async def test_a_peer_is_served_so_many_bytes_and_all_together_so_many(open_mesh: OpenMesh) -> None:
    block = random.Random(2).randbytes(256 * 1024)  # four units
    one, all_ = Rate(per_second=1e-6, burst=8), Rate(per_second=1e-6, burst=12)
    async with open_mesh(3) as (a, b, c), serve_blobs(MemoryBlocks(), a, limits=BlobLimits(units=one, units_in_all=all_)) as has:
        await has.put(block)
        ask = BlockRequest(raw_cid(block).digest)
        assert [(await b.request(a.peer_id, BLOCKS, ask)).code for _ in range(3)] == ["", "", "BUSY"]
        assert [(await c.request(a.peer_id, BLOCKS, ask)).code for _ in range(2)] == ["", "BUSY"]
        missing = BlockRequest(raw_cid(b"not here").digest)
        assert (await c.request(a.peer_id, BLOCKS, missing)).code == "NOT_FOUND"


async def test_strangers_take_nothing_from_those_who_are_known(open_mesh: OpenMesh) -> None:
    limits = BlobLimits(units_in_all=Rate(per_second=1e-6, burst=1))
    async with open_mesh(3) as (a, b, c), serve_blobs(MemoryBlocks(), a, limits=limits, known=c.peer_id.__eq__) as has:
        await has.put(SMALL)
        ask = BlockRequest(raw_cid(SMALL).digest)
        assert [(await b.request(a.peer_id, BLOCKS, ask)).code for _ in range(3)] == ["", "BUSY", "BUSY"]
        assert [(await c.request(a.peer_id, BLOCKS, ask)).code for _ in range(2)] == ["", "BUSY"]


async def test_a_busy_peer_is_asked_again_after_a_pause(open_mesh: OpenMesh) -> None:
    answers = [BlockAnswer("", SMALL), BlockAnswer("BUSY"), BlockAnswer("BUSY")]

    async def later(_request: BlockRequest, _source: PeerId) -> BlockAnswer:
        return answers.pop()

    async with open_mesh(2) as (a, b), a.serve(BLOCKS, later):
        assert await got(client(b), str(raw_cid(SMALL)), a.peer_id) == SMALL


async def test_serving_asks_nobody_else(open_mesh: OpenMesh) -> None:
    async def unexpected(_cid: Cid) -> bytes | None:
        raise AssertionError("a stranger's question must cost no search")

    asked: list[PeerId] = []
    async with (
        open_mesh(3) as (a, b, c),
        serve_blobs(MemoryBlocks(), a, source=unexpected),
        c.serve(BLOCKS, says(BlockAnswer("", SMALL), asked)),
    ):
        assert (await b.request(a.peer_id, BLOCKS, BlockRequest(raw_cid(SMALL).digest))).code == "NOT_FOUND"
    assert asked == []


async def test_what_no_peer_has_comes_from_the_other_source_and_is_checked_too(open_mesh: OpenMesh) -> None:
    laid = {block.cid: block.data for block in blocks(FILE)}
    root = str(cid_of(FILE))

    async def good(cid: Cid) -> bytes | None:
        return laid.get(cid)

    async def bad(_cid: Cid) -> bytes | None:
        return b"tampered"

    asked: list[PeerId] = []
    async with open_mesh(2) as (a, b), a.serve(BLOCKS, says(BlockAnswer("NOT_FOUND"), asked)):
        assert await got(client(b, source=good), root) == FILE
        assert len(asked) == 1, "who has the root has the rest"
        with pytest.raises(Transient, match="CONTENT_MISMATCH"):
            await got(client(b, source=bad), root)


async def test_peers_give_every_block_of_a_file_where_there_is_another_source_too(open_mesh: OpenMesh) -> None:
    searched: list[Cid] = []

    async def source(cid: Cid) -> bytes | None:
        searched.append(cid)
        return None

    async with open_mesh(2) as (a, b), serve_blobs(MemoryBlocks(), a) as has:
        content = client(b, source=source)
        assert await got(content, await has.put(FILE)) == FILE
        assert searched == []
        with pytest.raises(Transient, match="CONTENT_NOT_FOUND"):
            await got(content, str(raw_cid(b"nowhere")))
        assert searched == [raw_cid(b"nowhere")]


async def test_a_store_that_takes_nothing_more_does_not_keep_content_from_who_asks(open_mesh: OpenMesh) -> None:
    async with open_mesh(2) as (a, b), serve_blobs(MemoryBlocks(), a) as has:
        cid = await has.put(FILE)
        assert await got(Blobs(MemoryBlocks(4096), b, limits=QUICK), cid, a.peer_id) == FILE


async def test_a_file_is_pinned_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    store = await open_blocks(tmp_path, 2 * MIB)
    content = Blobs(store, MemoryMesh().join("a"))
    pinned, loose = await content.put(FILE), await content.put(FILE[::-1])
    assert await content.pin(pinned, max_bytes=MIB)
    for number in range(4):
        await content.put(random.Random(number).randbytes(600_000))
    assert await content.held(pinned, max_bytes=MIB) == FILE
    assert await content.held(loose, max_bytes=MIB) is None
    assert not await content.pin(loose, max_bytes=MIB)
    assert len(store.pinned) == 1
    await content.unpin(pinned)
    assert store.pinned == frozenset()
    with pytest.raises(Failed, match="CONTENT_TOO_LARGE"):
        await content.held(pinned, max_bytes=1000)


async def test_who_asks_and_does_not_read_loses_the_stream_and_not_our_memory(tmp_path: Path) -> None:
    limits = StreamLimits(write=0.2)
    config = HostConfig(tmp_path / "key", listen=(LOOPBACK,), streams=limits)
    async with open_network(config) as victim, serve_blobs(MemoryBlocks(), victim) as has:
        block = random.Random(3).randbytes(MAX_BLOCK_BYTES - 4096)
        await has.store.put([block])
        async with hostile(victim) as peer:
            stream = await peer.stream()
            question = BLOCKS.encode_request(BlockRequest(raw_cid(block).digest))
            await stream.write(frame(MULTISTREAM) + frame(BLOCKS.protocol.encode() + b"\n") + frame(question))
            await until(lambda: has.counts.served == 1)
            await until(lambda: not victim._streams._open)


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda b: b"\x01\x92\xa0\xc4" + b))
@settings(max_examples=300)
def test_strangers_bytes_are_a_message_or_a_named_refusal(data: bytes) -> None:
    with suppress(Reject):
        assert len(BLOCKS.decode_request(data).digest) == 32
    with suppress(Reject):
        answer = BLOCKS.decode_answer(data)
        assert not (answer.code and answer.data)
        assert BLOCKS.decode_answer(BLOCKS.encode_answer(answer)) == answer
