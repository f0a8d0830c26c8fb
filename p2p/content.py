"""Content by CID as the rest of the program sees it: bytes in, CID out, and the same bytes from whoever has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from p2p.network import PeerId


class Content(Protocol):
    """Adapters: the local block store with exchange between peers (`p2p.blobs`), in front of an IPFS daemon where one is
    configured (`node.infra.ipfs`). Whatever comes is checked against its CID, whoever sent it."""

    async def put(self, data: bytes) -> str:
        """Keeps the bytes and serves them to peers; their CID (v1, base32; raw when one block suffices, else UnixFS as Kubo's
        `add --cid-version=1` lays it out). Raises `Transient` when the disk does not take them."""
        ...

    async def keep(self, cid: str, data: bytes) -> None:
        """Keeps and serves a file that came another way, by the CID that it has already. Raises `Failed` CONTENT_INVALID for a
        CID that is not this file's in any layout of Kubo's defaults, `Transient` when the disk does not take it."""
        ...

    async def get(self, cid: str, *, max_bytes: int, peers: Sequence[PeerId] = ()) -> bytes:
        """The file with this CID, of any layout that Kubo makes. Looks here, then at `peers`, at other connected peers, and at
        the daemon. Raises `Failed` CONTENT_TOO_LARGE or CONTENT_INVALID (no CID of a file), `Transient` CONTENT_NOT_FOUND or
        CONTENT_MISMATCH (somebody sent other bytes, and nobody the right ones). The caller sets the deadline."""
        ...
