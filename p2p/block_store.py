"""Where blocks lie: one file each, named by its hash, written whole or not at all, the least recently used making room."""

from __future__ import annotations

import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog
import trio

from consensus.cid import sha2_256
from consensus.errors import Misconfigured, Transient

T = TypeVar("T")

DISK_BLOCK = 4096
"""The least that a file takes: so many tiny blocks are counted as what they cost."""
PINNED_SHARE = 0.75
"""Of a store, for what is pinned; the rest is for what comes and goes."""
LOOK_AGAIN_S = 30.0
ABANDONED_S = 60.0
"""After which a half-written file is nobody's: a write takes a disk's moment."""
STORE_FULL = "CONTENT_STORE_FULL"
STORE_IO = "CONTENT_STORE_IO"

_HEX = frozenset("0123456789abcdef")
_THREADS = 2  # a read takes microseconds, a write waits for the disk: more threads only queue there

log = structlog.get_logger()


class Blocks(Protocol):
    """Blocks by their sha2-256, within a bounded space. Adapters: `FileBlocks`, and `MemoryBlocks` for virtual clocks."""

    def __contains__(self, digest: bytes) -> bool: ...

    async def get(self, digest: bytes) -> bytes | None:
        """The block, whose bytes hash to `digest`, or None. Counts as use."""
        ...

    async def put(self, blocks: Sequence[bytes]) -> None:
        """Keeps the blocks, durably; what was used least recently and is not pinned makes room. Raises `Transient`
        CONTENT_STORE_FULL (of pinned blocks) or CONTENT_STORE_IO (the disk does not take them)."""
        ...

    async def pin(self, root: bytes, digests: Sequence[bytes]) -> None:
        """Keeps these blocks, durably, until `unpin(root)`. A later pin of the root replaces it. Raises `Transient`
        CONTENT_STORE_FULL (three quarters of it are pinned) or CONTENT_STORE_IO."""
        ...

    async def unpin(self, root: bytes) -> None:
        """Ends the pin, if there is one. Raises `Transient`."""
        ...

    @property
    def pinned(self) -> frozenset[bytes]:
        """The roots that are pinned."""
        ...

    @property
    def used(self) -> int:
        """Bytes taken."""
        ...


@dataclass
class _Room:
    """Which blocks there are, in the order of their use, and which of them must stay."""

    capacity: int
    costs: OrderedDict[bytes, int] = field(default_factory=OrderedDict)
    used: int = 0
    pins: dict[bytes, tuple[bytes, ...]] = field(default_factory=dict)
    holders: dict[bytes, int] = field(default_factory=dict)
    """How many pins hold a block."""

    def add(self, digest: bytes, cost: int) -> None:
        self.drop(digest)
        self.costs[digest] = cost
        self.used += cost

    def drop(self, digest: bytes) -> None:
        self.used -= self.costs.pop(digest, 0)

    def touch(self, digest: bytes) -> None:
        if digest in self.costs:
            self.costs.move_to_end(digest)

    def fresh(self, blocks: Iterable[bytes]) -> dict[bytes, bytes]:
        """Those that are not here yet, by digest; the others are used by being put again."""
        found = {sha2_256(block): block for block in blocks}
        for digest in [each for each in found if each in self.costs]:
            self.costs.move_to_end(digest)
            del found[digest]
        return found

    def check_pin(self, digests: Iterable[bytes]) -> None:
        """Raises `Transient` CONTENT_STORE_FULL when pins would leave too little room for what comes and goes."""
        kept = sum(self.costs.get(digest, 0) for digest in {*self.holders, *digests})
        if kept > self.capacity * PINNED_SHARE:
            raise Transient(STORE_FULL, f"{kept} bytes would be pinned, of {self.capacity} in all")

    def pin(self, root: bytes, digests: Iterable[bytes]) -> None:
        self.unpin(root)
        self.pins[root] = kept = tuple(dict.fromkeys(digests))
        for digest in kept:
            self.holders[digest] = self.holders.get(digest, 0) + 1

    def unpin(self, root: bytes) -> None:
        for digest in self.pins.pop(root, ()):
            self.holders[digest] -= 1
            if not self.holders[digest]:
                del self.holders[digest]

    def victims(self, needed: int) -> list[bytes]:
        """What must go so that `needed` more bytes fit, least recently used first. Raises `Transient` CONTENT_STORE_FULL."""
        short = self.used + needed - self.capacity
        found: list[bytes] = []
        for digest, cost in self.costs.items():
            if short <= 0:
                break
            if digest not in self.holders:
                found.append(digest)
                short -= cost
        if short > 0:
            raise Transient(STORE_FULL, f"{needed} bytes do not fit beside what is pinned; at most {self.capacity} in all")
        return found


def cost_of(block: bytes) -> int:
    """Bytes on disk that a block takes."""
    return -(-max(len(block), 1) // DISK_BLOCK) * DISK_BLOCK


class MemoryBlocks:
    """In this process's memory: for simulations, whose virtual clocks would run on while a thread writes."""

    def __init__(self, capacity: int = 64 * 1024 * 1024) -> None:
        self._room = _Room(capacity)
        self._blocks: dict[bytes, bytes] = {}

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._blocks

    @property
    def pinned(self) -> frozenset[bytes]:
        return frozenset(self._room.pins)

    @property
    def used(self) -> int:
        return self._room.used

    async def get(self, digest: bytes) -> bytes | None:
        await trio.lowlevel.checkpoint()
        self._room.touch(digest)
        return self._blocks.get(digest)

    async def put(self, blocks: Sequence[bytes]) -> None:
        await trio.lowlevel.checkpoint()
        fresh = self._room.fresh(blocks)
        for digest in self._room.victims(sum(map(cost_of, fresh.values()))):
            self._room.drop(digest)
            del self._blocks[digest]
        for digest, block in fresh.items():
            self._room.add(digest, cost_of(block))
            self._blocks[digest] = block

    async def pin(self, root: bytes, digests: Sequence[bytes]) -> None:
        await trio.lowlevel.checkpoint()
        self._room.check_pin(digests)
        self._room.pin(root, digests)

    async def unpin(self, root: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self._room.unpin(root)


class FileBlocks:
    """Below `folder`: `ab/abcd...` the blocks, `pins/` a file a pin, `new/` what is being written. Made by `open_blocks`.

    `shared` with other processes (coordinators on one store), what is not known is looked for on the disk, and what the others
    did is looked through twice a minute at most; until then each counts for itself what is to fit.
    """

    def __init__(self, folder: Path, room: _Room, *, shared: bool) -> None:
        self._folder = folder
        self._room = room
        self._shared = shared
        self._looked = trio.current_time()
        self._threads = trio.CapacityLimiter(_THREADS)
        self._changing = trio.Lock()  # one writer: what makes room for it is not taken twice

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._room.costs or (self._shared and self._path(digest).exists())

    @property
    def pinned(self) -> frozenset[bytes]:
        return frozenset(self._room.pins)

    @property
    def used(self) -> int:
        return self._room.used

    async def get(self, digest: bytes) -> bytes | None:
        if digest not in self:
            await trio.lowlevel.checkpoint()
            return None
        block = await self._on_disk(_read, self._path(digest))
        if block is not None and sha2_256(block) == digest:
            if digest not in self._room.costs:
                self._room.add(digest, cost_of(block))  # another process put it there
            self._room.touch(digest)
            return block
        async with self._changing:
            if block is not None:
                log.warning("block_damaged", digest=digest.hex())  # by the disk, or by somebody: it can be had elsewhere
                await self._on_disk(_remove, [self._path(digest)])
            self._room.drop(digest)
        return None

    async def put(self, blocks: Sequence[bytes]) -> None:
        async with self._changing:
            if self._shared and trio.current_time() >= self._looked + LOOK_AGAIN_S:
                self._room = await self._on_disk(_look, self._folder, self._room.capacity)
                self._looked = trio.current_time()
            fresh = self._room.fresh(blocks)
            victims = self._room.victims(sum(map(cost_of, fresh.values())))
            if victims:
                await self._on_disk(_remove, [self._path(digest) for digest in victims])
                for digest in victims:
                    self._room.drop(digest)
            if fresh:
                files = {self._path(digest): block for digest, block in fresh.items()}
                try:
                    await self._on_disk(_write, self._folder / "new", files)
                except Transient:
                    with trio.CancelScope(shield=True):
                        there = await self._on_disk(_there, files)
                    for path in there:  # what came to be before the disk was full counts
                        self._room.add(bytes.fromhex(path.name), cost_of(files[path]))
                    raise
                for digest, block in fresh.items():
                    self._room.add(digest, cost_of(block))

    async def pin(self, root: bytes, digests: Sequence[bytes]) -> None:
        async with self._changing:
            self._room.check_pin(digests)
            text = "".join(f"{digest.hex()}\n" for digest in digests)
            await self._on_disk(_write, self._folder / "new", {self._pin_path(root): text.encode()})
            self._room.pin(root, digests)

    async def unpin(self, root: bytes) -> None:
        async with self._changing:
            await self._on_disk(_remove, [self._pin_path(root)])
            self._room.unpin(root)

    def _path(self, digest: bytes) -> Path:
        name = digest.hex()
        return self._folder / name[:2] / name

    def _pin_path(self, root: bytes) -> Path:
        return self._folder / "pins" / root.hex()

    async def _on_disk(self, work: Callable[..., T], *arguments: Any) -> T:
        try:
            return await trio.to_thread.run_sync(work, *arguments, limiter=self._threads)
        except OSError as error:
            raise Transient(STORE_IO, f"{self._folder}: {error.strerror or error}") from error


async def open_blocks(folder: Path, capacity: int, *, shared: bool = False) -> FileBlocks:
    """The store in `folder`, which is made when missing; at most `capacity` bytes. Raises `Misconfigured`.

    What a killed process had written is there; what it was writing is thrown away as soon as nobody can be writing it any more.
    """
    try:
        room = await trio.to_thread.run_sync(_look, folder, capacity)
    except OSError as error:
        raise Misconfigured(
            "data_dir", f"cannot keep blocks in {folder} ({error.strerror}): give a folder to write to"
        ) from error
    store = FileBlocks(folder, room, shared=shared)
    try:
        await store.put(())  # a smaller capacity than last time takes effect now
    except Transient as error:
        log.warning("block_store_full", code=error.code, detail=error.detail)
    return store


# in a thread


def _look(folder: Path, capacity: int) -> _Room:
    for name in ("new", "pins"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    _sync(folder)  # a killed process may have made folders in it and got no further
    for left in os.scandir(folder / "new"):
        with suppress(FileNotFoundError):
            if left.stat().st_mtime < time.time() - ABANDONED_S:
                os.unlink(left.path)
    found: list[tuple[float, bytes, int]] = []
    for shelf in folder.iterdir():
        if len(shelf.name) == 2 and set(shelf.name) <= _HEX:
            for entry in os.scandir(shelf):
                digest = _digest(entry.name)
                if digest is None:
                    continue
                with suppress(FileNotFoundError):  # another process threw it out
                    told = entry.stat()
                    found.append((told.st_mtime, digest, -(-max(told.st_size, 1) // DISK_BLOCK) * DISK_BLOCK))
    room = _Room(capacity)
    for _, digest, cost in sorted(found):
        room.add(digest, cost)
    for entry in os.scandir(folder / "pins"):
        root = _digest(entry.name)
        if root is not None:
            with suppress(FileNotFoundError):
                room.pin(root, filter(None, map(_digest, Path(entry.path).read_text(encoding="ascii", errors="replace").split())))
    return room


def _digest(name: str) -> bytes | None:
    return bytes.fromhex(name) if len(name) == 64 and set(name) <= _HEX else None


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            block = file.read()
            os.utime(file.fileno())  # the order of use, for the next start
    except FileNotFoundError:
        return None
    return block


def _write(workshop: Path, files: dict[Path, bytes]) -> None:
    """Each file appears whole, under its name, when its bytes are on the disk; all names are on the disk at the end."""
    made: list[Path] = []
    changed = {path.parent for path in files}
    try:
        for path, data in files.items():
            with suppress(FileExistsError):
                path.parent.mkdir()
                changed.add(path.parent.parent)
            made.append(workshop / secrets.token_hex(16))
            with made[-1].open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            made[-1].rename(path)
    finally:
        for left in made:
            left.unlink(missing_ok=True)
    for folder in changed:
        _sync(folder)


def _there(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.exists()]


def _sync(folder: Path) -> None:
    """Puts a folder's names on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
