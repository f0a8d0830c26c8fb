"""Content among peers that keep quiet: they cost those who ask some time, and others nothing."""

from __future__ import annotations

from contextlib import AsyncExitStack

import trio
import trio.testing
from trio.testing import MockClock

from consensus.cid import Cid, raw_cid
from consensus.errors import Transient
from p2p.blobs import BlobLimits, Blobs, serve_blobs
from p2p.block_store import MemoryBlocks
from p2p.memory import MemoryMesh
from p2p.topics import BLOCKS
from tests.p2p.test_blobs import MIB, SMALL, never


async def test_many_silent_peers_do_not_keep_the_other_source_from_being_asked(autojump_clock: MockClock) -> None:
    async def source(cid: Cid) -> bytes | None:
        return SMALL if cid == raw_cid(SMALL) else None

    mesh = MemoryMesh()
    async with AsyncExitStack() as stack:
        for number in range(40):
            await stack.enter_async_context(mesh.join(f"silent-{number}").serve(BLOCKS, never))
        content = Blobs(MemoryBlocks(), mesh.join("keeper"), source=source)
        began = trio.current_time()
        assert await content.get(str(raw_cid(SMALL)), max_bytes=MIB) == SMALL
        assert trio.current_time() - began <= BlobLimits().alone


async def test_who_keeps_us_waiting_is_asked_last_for_a_while(autojump_clock: MockClock) -> None:
    mesh = MemoryMesh()
    giver = mesh.join("z-giver")
    async with AsyncExitStack() as stack:
        has = await stack.enter_async_context(serve_blobs(MemoryBlocks(), giver))
        for number in range(20):
            await stack.enter_async_context(mesh.join(f"silent-{number}").serve(BLOCKS, never))
        content = Blobs(MemoryBlocks(), mesh.join("keeper"), limits=BlobLimits(remembered=0), shuffle=list.sort)
        took = []
        for text in (b"first", b"second"):
            cid, began = await has.put(text), trio.current_time()
            assert await content.get(cid, max_bytes=MIB) == text
            took.append(trio.current_time() - began)
        assert took[0] >= 20 * BlobLimits().patience
        assert took[1] < BlobLimits().patience


async def test_searches_that_lead_nowhere_hold_up_nobody_who_knows_whom_to_ask(autojump_clock: MockClock) -> None:
    """Scripts that nobody has are as many as somebody posts; a package is asked of its performer."""
    mesh = MemoryMesh()
    async with (
        mesh.join("silent").serve(BLOCKS, never),
        serve_blobs(MemoryBlocks(), mesh.join("performer")) as has,
        trio.open_nursery() as nursery,
    ):
        cid = await has.put(SMALL)
        content = Blobs(MemoryBlocks(), mesh.join("attester"))

        async def search(number: int) -> None:
            try:
                await content.get(str(raw_cid(b"%d" % number)), max_bytes=MIB)
            except Transient:
                return

        for number in range(100):
            nursery.start_soon(search, number)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        assert await content.get(cid, max_bytes=MIB, peers=["performer"]) == SMALL
        assert trio.current_time() == began
        nursery.cancel_scope.cancel()
