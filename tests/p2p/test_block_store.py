"""Blocks on disk and in memory: one suite on both, and what only a disk can do to them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from consensus.cid import sha2_256
from consensus.errors import Misconfigured, Transient
from p2p.block_store import DISK_BLOCK, LOOK_AGAIN_S, Blocks, MemoryBlocks, cost_of, open_blocks


def block(number: int, size: int = 100) -> bytes:
    return number.to_bytes(4, "big") * (size // 4)


@pytest.fixture(params=["memory", "files"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> Blocks:
    """Room for four small blocks."""
    capacity = 4 * DISK_BLOCK
    return MemoryBlocks(capacity) if request.param == "memory" else await open_blocks(tmp_path / "blocks", capacity)


def on_disk(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("??/*")}


async def kept(store: Blocks, *blocks: bytes) -> list[bool]:
    return [await store.get(sha2_256(each)) == each for each in blocks]


async def test_what_was_put_is_there_and_nothing_else(store: Blocks) -> None:
    await store.put([block(1), b""])
    assert await kept(store, block(1), b"", block(2)) == [True, True, False]
    assert sha2_256(block(1)) in store
    assert sha2_256(block(2)) not in store
    assert store.used == 2 * DISK_BLOCK


async def test_the_same_block_takes_its_room_once(store: Blocks) -> None:
    for _ in range(9):
        await store.put([block(1), block(1)])
    assert store.used == DISK_BLOCK


async def test_what_was_used_least_recently_makes_room(store: Blocks) -> None:
    for number in range(4):
        await store.put([block(number)])
    await store.get(sha2_256(block(0)))
    await store.put([block(1)])  # putting again is use too
    await store.put([block(4), block(5)])
    assert await kept(store, *map(block, range(6))) == [True, True, False, False, True, True]
    assert store.used == 4 * DISK_BLOCK


async def test_pinned_blocks_stay_and_a_store_full_of_them_says_so(store: Blocks) -> None:
    roots = [sha2_256(block(number)) for number in range(4)]
    for number in range(3):
        await store.put([block(number)])
        await store.pin(roots[number], [roots[number]])
    await store.put([block(3)])
    await store.put([block(4)])
    assert await kept(store, *map(block, range(5))) == [True, True, True, False, True]
    with pytest.raises(Transient, match="CONTENT_STORE_FULL"):
        await store.put([block(5), block(6)])
    with pytest.raises(Transient, match="CONTENT_STORE_FULL"):
        await store.pin(sha2_256(block(4)), [sha2_256(block(4))])  # nothing could come and go any more
    assert await kept(store, block(4), block(5)) == [True, False], "what does not fit throws nothing out"
    await store.unpin(roots[0])
    await store.put([block(5), block(6)])
    assert await kept(store, *map(block, range(7))) == [False, True, True, False, False, True, True]


async def test_a_block_of_two_pins_stays_until_both_are_gone(store: Blocks) -> None:
    shared = sha2_256(block(0))
    await store.put([block(0)])
    await store.pin(b"a" * 32, [shared])
    await store.pin(b"b" * 32, [shared, shared])
    await store.pin(b"b" * 32, [shared])
    await store.unpin(b"a" * 32)
    assert store.pinned == {b"b" * 32}
    await store.put([block(number) for number in range(1, 4)])
    await store.put([block(4)])
    assert sha2_256(block(0)) in store
    await store.unpin(b"b" * 32)
    await store.unpin(b"b" * 32)
    await store.put([block(5), block(6)])
    assert sha2_256(block(0)) not in store


async def test_a_store_opened_again_holds_what_it_held_in_the_order_of_use(tmp_path: Path) -> None:
    first = await open_blocks(tmp_path, 4 * DISK_BLOCK)
    for number in range(4):
        await first.put([block(number)])
        os.utime(tmp_path / sha2_256(block(number)).hex()[:2] / sha2_256(block(number)).hex(), (number, number))
    await first.get(sha2_256(block(0)))
    await first.pin(sha2_256(block(1)), [sha2_256(block(1))])
    again = await open_blocks(tmp_path, 4 * DISK_BLOCK)
    assert again.used == 4 * DISK_BLOCK
    assert again.pinned == {sha2_256(block(1))}
    await again.put([block(4), block(5)])
    assert await kept(again, *map(block, range(6))) == [True, True, False, False, True, True]


async def test_a_smaller_store_throws_out_when_it_opens(tmp_path: Path) -> None:
    await (await open_blocks(tmp_path, 4 * DISK_BLOCK)).put([block(number) for number in range(4)])
    assert (await open_blocks(tmp_path, 2 * DISK_BLOCK)).used == 2 * DISK_BLOCK


async def test_a_damaged_block_is_no_block_and_can_be_put_again(tmp_path: Path) -> None:
    store = await open_blocks(tmp_path, 4 * DISK_BLOCK)
    await store.put([block(1)])
    name = sha2_256(block(1)).hex()
    (tmp_path / name[:2] / name).write_bytes(b"rotten")
    assert await store.get(sha2_256(block(1))) is None
    assert sha2_256(block(1)) not in store
    assert store.used == 0
    await store.put([block(1)])
    assert await kept(store, block(1)) == [True]


async def test_a_block_that_somebody_removed_is_not_there(tmp_path: Path) -> None:
    store = await open_blocks(tmp_path, 4 * DISK_BLOCK)
    await store.put([block(1)])
    name = sha2_256(block(1)).hex()
    (tmp_path / name[:2] / name).unlink()
    assert await store.get(sha2_256(block(1))) is None
    assert store.used == 0


async def test_a_disk_that_takes_nothing_is_named_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_blocks(tmp_path, 4 * DISK_BLOCK)

    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(Transient, match=r"CONTENT_STORE_IO.*No space left"):
            await store.put([block(1)])
    assert list((tmp_path / "new").iterdir()) == []
    assert await kept(store, block(1)) == [False]
    await store.put([block(1)])
    assert await kept(store, block(1)) == [True]


async def test_what_came_to_be_before_the_disk_was_full_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, left, real = await open_blocks(tmp_path, 8 * DISK_BLOCK), [2], os.fsync

    def soon_full(file: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(file)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", soon_full)
        with pytest.raises(Transient, match="CONTENT_STORE_IO"):
            await store.put([block(number) for number in range(4)])
    assert await kept(store, *map(block, range(4))) == [True, True, False, False]
    assert store.used == 2 * DISK_BLOCK == DISK_BLOCK * len(on_disk(tmp_path))


async def test_a_folder_that_cannot_be_written_is_the_operators_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Misconfigured, match="data_dir"):
        await open_blocks(tmp_path / "file", DISK_BLOCK)


async def test_many_writers_at_once_keep_the_bound(tmp_path: Path) -> None:
    store = await open_blocks(tmp_path, 8 * DISK_BLOCK)
    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(store.put, [block(number, 5000)])
    assert store.used == 8 * DISK_BLOCK
    assert sum(await kept(store, *(block(number, 5000) for number in range(40)))) == 4
    assert sum(map(cost_of, on_disk(tmp_path).values())) == store.used


async def test_two_processes_on_one_folder_have_each_others_blocks_and_pins_and_keep_the_bound(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    one, other = [await open_blocks(tmp_path, 8 * DISK_BLOCK, shared=True) for _ in range(2)]
    await one.put([block(1)])
    await one.pin(b"r" * 32, [sha2_256(block(1))])
    assert sha2_256(block(1)) in other
    assert await kept(other, block(1), block(2)) == [True, False]
    for number in range(2, 40):
        await trio.sleep(LOOK_AGAIN_S / 2)
        await (one, other)[number % 2].put([block(number)])
    assert await kept(other, block(1), block(39)) == [True, True]
    assert await kept(one, block(1), block(39)) == [True, True]
    assert sum(map(cost_of, on_disk(tmp_path).values())) <= 10 * DISK_BLOCK
    assert other.pinned == {b"r" * 32}
    await other.unpin(b"r" * 32)
    assert await kept(one, block(2)) == [False], "what one throws out the other has no more"


async def test_a_process_that_starts_leaves_alone_what_another_is_writing(tmp_path: Path) -> None:
    await open_blocks(tmp_path, 8 * DISK_BLOCK, shared=True)
    (tmp_path / "new" / "half").write_bytes(b"ha")  # a moment ago
    await open_blocks(tmp_path, 8 * DISK_BLOCK, shared=True)
    assert (tmp_path / "new" / "half").exists()


WRITER = """
import sys, trio
from pathlib import Path
from p2p.block_store import open_blocks
async def main():
    store = await open_blocks(Path(sys.argv[1]), 2**26)
    for number in range(10**6):
        block = number.to_bytes(4, "big") * 20_000
        await store.put([block])
        print(number, flush=True)
trio.run(main)
"""


def test_what_was_acknowledged_survives_a_sigkill_whole(tmp_path: Path) -> None:
    for round_ in range(3):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            for _ in range(5 + 7 * round_):
                last = int(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(10)
            process.stdout.close()
        store = trio.run(open_blocks, tmp_path, 2**26)
        assert all(trio.run(kept, store, *(number.to_bytes(4, "big") * 20_000 for number in range(last + 1))))
        for half in (tmp_path / "new").iterdir():
            os.utime(half, (1, 1))  # long ago
        trio.run(open_blocks, tmp_path, 2**26)
        assert list((tmp_path / "new").iterdir()) == []
        assert all(sha2_256(data).hex() == name for name, data in on_disk(tmp_path).items())
