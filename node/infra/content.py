"""A program's content: its own blocks first, then its peers', then the IPFS daemon's, where the operator has one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import trio

from consensus.errors import Failed, Transient
from node.infra.ipfs import IpfsDaemon
from node.infra.settings import ContentSettings
from p2p.background import background_tasks
from p2p.blobs import Blobs, everybody, serve_blobs
from p2p.block_store import open_blocks
from p2p.network import Network, PeerId

BLOCKS_FOLDER = "blocks"
MAX_CONTENT_BYTES = 1024 * 1024
"""Of one file: a script may have so much, and a package less."""

_WAITING = 256  # CIDs that the daemon is still to be given: minutes of packages
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_TRIES = 12  # some six minutes; what a daemon that is away for longer misses, peers have

log = structlog.get_logger(__name__)


class Uploads:
    """What the daemon is still to be given: one file after another; while it is away, the first of them waits for it."""

    def __init__(self, daemon: IpfsDaemon, blobs: Blobs) -> None:
        self._daemon = daemon
        self._blobs = blobs
        self._offered, self._next = trio.open_memory_channel[str](_WAITING)
        self._open = 0
        self._settled = trio.Event()

    def offer(self, cid: str) -> None:
        """Never waits: beyond so many the newest is left out."""
        try:
            self._offered.send_nowait(cid)
            self._open += 1
        except trio.WouldBlock:
            log.warning("ipfs_upload_left_out", cid=cid, waiting=_WAITING)

    async def settled(self) -> None:
        """Until everything offered was uploaded or given up."""
        while self._open:
            self._settled = trio.Event()
            await self._settled.wait()

    async def run(self) -> None:
        """Works until cancelled."""
        async for cid in self._next:
            await self._upload(cid)
            self._open -= 1
            self._settled.set()

    async def _upload(self, cid: str) -> None:
        pause = _FIRST_PAUSE_S
        for left in reversed(range(_TRIES)):
            try:
                data = await self._blobs.held(cid, max_bytes=MAX_CONTENT_BYTES)
                if data is not None:  # else it was thrown out meanwhile
                    await self._daemon.add(data)
                    log.debug("ipfs_uploaded", cid=cid)
                return
            except Failed as error:
                log.warning("ipfs_upload_failed", cid=cid, code=error.code, detail=error.detail)
                return
            except Transient as error:
                log.warning("ipfs_upload_failed", cid=cid, code=error.code, detail=error.detail, tries_left=left)
            if left:
                await trio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)


class SharedContent:
    """Implements `p2p.content.Content`; what is put is offered to the daemon too, in its own time. Made by `open_content`."""

    def __init__(self, blobs: Blobs, uploads: Uploads | None = None) -> None:
        self.blobs = blobs
        self.uploads = uploads

    async def put(self, data: bytes) -> str:
        cid = await self.blobs.put(data)
        if self.uploads is not None:
            self.uploads.offer(cid)
        return cid

    async def keep(self, cid: str, data: bytes) -> None:
        await self.blobs.keep(cid, data)

    async def get(self, cid: str, *, max_bytes: int, peers: Sequence[PeerId] = ()) -> bytes:
        return await self.blobs.get(cid, max_bytes=max_bytes, peers=peers)

    async def held(self, cid: str, *, max_bytes: int) -> bytes | None:
        """The file, if it is in this program's own store. Raises `Failed` like `get`."""
        return await self.blobs.held(cid, max_bytes=max_bytes)


@asynccontextmanager
async def open_content(
    settings: ContentSettings,
    data_dir: Path,
    network: Network,
    *,
    known: Callable[[PeerId], bool] = everybody,
    shared: bool = False,
) -> AsyncIterator[SharedContent]:
    """Content below `data_dir`, served to the network's peers until the context ends, strangers from a part of their own.

    `shared` says that other processes may use the same folder. Dials no daemon. Raises `Misconfigured`.
    """
    store = await open_blocks(data_dir / BLOCKS_FOLDER, settings.store_bytes, shared=shared)
    daemon = IpfsDaemon(settings.ipfs_api, timeout_s=settings.ipfs_timeout_s) if settings.ipfs_api else None
    async with (
        serve_blobs(store, network, source=daemon.source if daemon else None, known=known) as blobs,
        background_tasks() as nursery,
    ):
        uploads = Uploads(daemon, blobs) if daemon is not None else None
        if uploads is not None:
            nursery.start_soon(uploads.run)
        yield SharedContent(blobs, uploads)
