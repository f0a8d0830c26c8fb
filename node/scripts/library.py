"""Scripts by their CIDs: from this keeper's own content and its peers, else from gateways; whoever sends, the CID decides."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import structlog
import trio

from consensus.cid import matches
from consensus.errors import Failed, Transient
from node.infra.compute import Compute
from node.infra.fetch import Resolver, open_fetcher
from node.infra.settings import FetchSettings
from node.sandbox.port import MAX_SOURCE_BYTES
from node.scripts.once import Once
from node.scripts.source import Source
from p2p.content import Content

_log = structlog.get_logger(__name__)

CONTENT_S = 8.0
"""Seconds for peers and daemon before gateways are asked."""
_PUT_S = 5.0


class Fetch(Protocol):
    """Requests to strangers' URLs, guarded and with a limit of at least a script's size. (`node.infra.fetch.Fetcher`)"""

    async def get(self, url: str) -> bytes: ...


class Library:
    """Keeps nothing itself: what a gateway gave goes to the content port, from where it is had, and given to peers, next time."""

    def __init__(self, content: Content, fetch: Fetch, gateways: Sequence[str], compute: Compute) -> None:
        self._content = content
        self._fetch = fetch
        self._gateways = tuple(f"{each.rstrip('/')}/ipfs/" for each in gateways)
        self._compute = compute
        self._once: Once[Source, bytes] = Once()

    async def get(self, source: Source) -> bytes:
        """The script's bytes, at most 1 MiB. Raises `Failed` SCRIPT_INVALID for what is larger or no file, `Transient`
        SCRIPT_UNREACHABLE when nobody has it, SCRIPT_MISMATCH when all that came is something else."""
        return await self._once(source, lambda: self._get(source))

    async def _get(self, source: Source) -> bytes:
        told: list[Transient] = []
        try:
            with trio.fail_after(CONTENT_S):
                return await self._content.get(source.cid, max_bytes=MAX_SOURCE_BYTES)
        except trio.TooSlowError:
            told.append(Transient("SCRIPT_UNREACHABLE", f"peers did not answer in {CONTENT_S:g} s"))
        except Failed as error:
            raise Failed("SCRIPT_INVALID", error.detail) from None
        except Transient as error:
            told.append(Transient(_code(error), error.detail))
        for url in dict.fromkeys([source.gateway, *(each + source.cid for each in self._gateways)]):
            if not url:
                continue
            try:
                data = await self._from_gateway(url, source.cid)
            except Transient as error:
                told.append(error)
            else:
                await self._keep(source.cid, data)
                return data
        worst = next((each for each in told if each.code == "SCRIPT_MISMATCH"), told[-1])
        raise Transient(worst.code, "; ".join(each.detail for each in told)[:512])

    async def _from_gateway(self, url: str, cid: str) -> bytes:
        try:
            data = await self._fetch.get(url)
        except (Failed, Transient) as error:  # a refused URL, too: others may have the content
            raise Transient("SCRIPT_UNREACHABLE", error.detail) from None
        if not await self._compute(matches, cid, data):
            raise Transient("SCRIPT_MISMATCH", f"{url[:120]} gives {len(data)} bytes with another CID")
        if len(data) > MAX_SOURCE_BYTES:
            raise Failed("SCRIPT_INVALID", f"has {len(data)} bytes, at most {MAX_SOURCE_BYTES}")
        return data

    async def _keep(self, cid: str, data: bytes) -> None:
        """For peers and the next time; without it the script only has to be fetched again."""
        with trio.move_on_after(_PUT_S):
            try:
                await self._content.keep(cid, data)
            except (Failed, Transient) as error:
                _log.warning("script not kept", cid=cid, code=error.code, detail=error.detail)


@asynccontextmanager
async def open_library(
    content: Content, settings: FetchSettings, gateways: Sequence[str], compute: Compute, *, resolver: Resolver | None = None
) -> AsyncIterator[Library]:
    """With a guarded fetcher of its own for gateways: a script may be larger than what conditions read. `gateways` are base URLs
    (`https://dweb.link`)."""
    async with open_fetcher(settings.model_copy(update={"max_bytes": MAX_SOURCE_BYTES}), resolver=resolver) as fetcher:
        yield Library(content, fetcher, gateways, compute)


def _code(error: Transient) -> str:
    return "SCRIPT_MISMATCH" if error.code == "CONTENT_MISMATCH" else "SCRIPT_UNREACHABLE"
