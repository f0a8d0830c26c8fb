"""A program's content: its own blocks first, then its peers', then the IPFS daemon's, where the operator has one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import trio

from consensus.errors import Failed, Transient
from node.infra.ipfs import IpfsDaemon
from node.infra.settings import ContentSettings
from p2p.background import background_tasks
from p2p.blobs import Blobs, serve_blobs
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


class SharedContent:
    """Implements `p2p.content.Content`; what is put is offered to the daemon too, in its own time. Made by `open_content`."""

    def __init__(self, blobs: Blobs, uploads: trio.MemorySendChannel[str] | None = None) -> None:
        self.blobs = blobs
        self._uploads = uploads
        """To the daemon; None without one."""

    async def put(self, data: bytes) -> str:
        cid = await self.blobs.put(data)
        if self._uploads is not None:
            try:
                self._uploads.send_nowait(cid)
            except trio.WouldBlock:
                log.warning("ipfs_upload_left_out", cid=cid, waiting=_WAITING)
        return cid

    async def get(self, cid: str, *, max_bytes: int, peers: Sequence[PeerId] = ()) -> bytes:
        return await self.blobs.get(cid, max_bytes=max_bytes, peers=peers)

    async def held(self, cid: str, *, max_bytes: int) -> bytes | None:
        """The file, if it is in this program's own store. Raises `Failed` like `get`."""
        return await self.blobs.held(cid, max_bytes=max_bytes)


@asynccontextmanager
async def open_content(settings: ContentSettings, data_dir: Path, network: Network) -> AsyncIterator[SharedContent]:
    """Content below `data_dir`, served to the network's peers until the context ends. Dials no daemon. Raises `Misconfigured`."""
    store = await open_blocks(data_dir / BLOCKS_FOLDER, settings.store_bytes)
    daemon = IpfsDaemon(settings.ipfs_api, timeout_s=settings.ipfs_timeout_s) if settings.ipfs_api else None
    uploads, to_upload = trio.open_memory_channel[str](_WAITING)
    async with (
        serve_blobs(store, network, source=daemon.source if daemon else None) as blobs,
        background_tasks() as nursery,
    ):
        if daemon is not None:
            nursery.start_soon(_upload, daemon, blobs, to_upload)
        yield SharedContent(blobs, uploads if daemon else None)


async def _upload(daemon: IpfsDaemon, blobs: Blobs, cids: trio.MemoryReceiveChannel[str]) -> None:
    """Gives the daemon one file after another; while it is away, the first of them waits for it."""
    async for cid in cids:
        pause = _FIRST_PAUSE_S
        for left in reversed(range(_TRIES)):
            try:
                data = await blobs.held(cid, max_bytes=MAX_CONTENT_BYTES)
                if data is not None:  # else it was thrown out meanwhile
                    await daemon.add(data)
                    log.debug("ipfs_uploaded", cid=cid)
                break
            except Failed as error:
                log.warning("ipfs_upload_failed", cid=cid, code=error.code, detail=error.detail)
                break
            except Transient as error:
                log.warning("ipfs_upload_failed", cid=cid, code=error.code, detail=error.detail, tries_left=left)
                if left:
                    await trio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_S)
