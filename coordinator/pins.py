"""Scripts that live jobs name stay in this coordinator's own store, and no others do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import trio

from consensus.cid import DAG_PB, Cid
from consensus.errors import Failed, Invalid, Transient
from coordinator.store.port import Store
from node.infra.content import MAX_CONTENT_BYTES
from node.scripts.source import parse_source
from p2p.blobs import Blobs

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

log = structlog.get_logger(__name__)

PAUSE_S = 300.0
"""Between two looks at the jobs. What was just uploaded is the last to be thrown out, and no owner alone uploads fast enough for
it to go before the next look."""


class Pins:
    """`run` compares the store's pins with the jobs again and again; a look that fails is made up for by the next."""

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store = store
        self._blobs = blobs
        self._trees: set[bytes] = set()  # roots that this process pinned with all that they link to

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Works until cancelled."""
        task_status.started()
        while True:
            try:
                await self.look()
            except Transient as error:
                log.warning("scripts_not_pinned", code=error.code, detail=error.detail)
            await trio.sleep(PAUSE_S)

    async def look(self) -> None:
        """Pins what is here and named by a job that has not ended, newest jobs first; unpins the rest. Raises `Transient`."""
        named: dict[bytes, Cid] = {}
        for url in await self._store.script_urls():
            await trio.lowlevel.checkpoint()  # thousands of them
            try:
                cid = Cid.parse(parse_source(url).cid)
            except (Invalid, Failed):
                continue  # a job of before its URL was checked
            # The root of a tree has the same hash where somebody names it as a raw block: it is the tree that stays.
            if cid.codec == DAG_PB or cid.digest not in named:
                named[cid.digest] = cid
        for root in self._blobs.store.pinned - named.keys():
            await self._blobs.store.unpin(root)
        self._trees &= named.keys()
        for root, cid in named.items():
            tree = cid.codec == DAG_PB and root not in self._trees
            if root in self._blobs.store and (tree or root not in self._blobs.store.pinned):
                try:
                    if await self._blobs.pin(str(cid), max_bytes=MAX_CONTENT_BYTES) and tree:
                        self._trees.add(root)
                except Failed as error:
                    log.debug("not_pinned", cid=str(cid), code=error.code)
