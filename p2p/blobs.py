"""Content among peers: what is here is served, within limits; what is not is asked of those who may have it, and checked."""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import structlog
import trio

from consensus.cid import DEFAULT, INVALID, Cid, blocks, layout_of, sha2_256
from consensus.errors import Failed, Reject, Transient
from consensus.unixfs import WRONG_BYTES, Assembly
from p2p.block_store import Blocks
from p2p.limits import WHOLE_LIE, Rate, RateLimiter, Standing
from p2p.network import Network, PeerId
from p2p.topics import BLOCKS, BlockAnswer, BlockRequest

NOT_FOUND = "CONTENT_NOT_FOUND"
MISMATCH = "CONTENT_MISMATCH"

_UNIT = 64 * 1024  # of what is served: one token, so that a block of a chunk costs four
_LATE = 256  # peers remembered for it

V = TypeVar("V")

log = structlog.get_logger()

_Way = Callable[[Cid, "_Search"], Awaitable[tuple[bytes | None, bool]]]

Source = Callable[[Cid], Awaitable[bytes | None]]
"""Another place to get a block from, once no peer has it: None where it is not. Its bytes are checked like everybody's."""


def everybody(_peer: PeerId) -> bool:
    """Nobody is a stranger."""
    return True


@dataclass(frozen=True, slots=True)
class BlobLimits:
    """What is served, and how hard is looked. Requests and units of 64 KiB a second; seconds."""

    requests: Rate = field(default_factory=lambda: Rate(per_second=20.0, burst=128))
    """Of one peer: a committee's packages and scripts at once, of some blocks each."""
    units: Rate = field(default_factory=lambda: Rate(per_second=64.0, burst=256))
    """To one peer: 4 MiB a second, 16 at once."""
    units_in_all: Rate = field(default_factory=lambda: Rate(per_second=128.0, burst=512))
    """To all known peers together, and as much to all strangers: 8 MiB a second, 32 at once. Answers that nobody reads are in
    memory for `StreamLimits.write` at most, so this is also what bounds them: some 150 MiB each."""
    hints: int = 8
    """Peers named by the caller that are asked."""
    others: int = 32
    """Connected peers that are asked beyond them: as many as a peer seeks. A `NOT_FOUND` takes some milliseconds."""
    remembered: int = 8
    """Peers that gave something before, who are asked first among the others: a coordinator has every script."""
    answer: float = 10.0
    """For a peer to answer with a block of 1 MiB: slow lines are asked too."""
    patience: float = 1.0
    """Until the next peer is asked as well."""
    alone: float = 5.0
    """For the peers, before another source is asked too, where there is one."""
    lateness: float = 60.0
    """In which a peer that kept us waiting is asked after all others."""
    rounds: int = 3
    """In which busy peers are asked again."""
    pause: float = 0.5
    """Between them."""
    at_once: int = 16
    """Blocks asked for at a time where the caller names peers, and as many where he names none: 16 MiB of memory each, and ten
    times as much where all that are asked send drop by drop."""


@dataclass(slots=True)
class BlobCounts:
    """What was given and got since the start."""

    served: int = 0
    served_bytes: int = 0
    turned_away: int = 0
    fetched: int = 0
    wrong: int = 0


class Blobs:
    """Implements `p2p.content.Content` over a block store and the peers of a network. Made by `serve_blobs`."""

    def __init__(
        self,
        store: Blocks,
        network: Network,
        *,
        limits: BlobLimits | None = None,
        source: Source | None = None,
        known: Callable[[PeerId], bool] = everybody,
        shuffle: Callable[[list[PeerId]], None] = random.shuffle,
    ) -> None:
        self.store = store
        self.counts = BlobCounts()
        self._network = network
        self._limits = limits or BlobLimits()
        self._source = source
        self._known = known
        self._shuffle = shuffle
        self._liars: Standing[PeerId] = Standing()
        self._requests: RateLimiter[PeerId] = RateLimiter(self._limits.requests)
        self._units: RateLimiter[PeerId] = RateLimiter(self._limits.units)
        self._units_in_all: RateLimiter[bool] = RateLimiter(self._limits.units_in_all, 2)
        self._givers: OrderedDict[PeerId, None] = OrderedDict()
        self._late: OrderedDict[PeerId, float] = OrderedDict()
        """Who kept us waiting, and when."""
        self._asking: dict[bytes, _Asked] = {}
        self._rooms = {named: trio.Semaphore(self._limits.at_once) for named in (True, False)}

    # Content

    async def put(self, data: bytes) -> str:
        laid = list(blocks(data, DEFAULT))
        await self.store.put([block.data for block in laid])
        return str(laid[-1].cid)

    async def keep(self, cid: str, data: bytes) -> None:
        layout = layout_of(cid, data)
        if layout is None:
            raise Failed(INVALID, f"{cid[:64]!r} does not name these {len(data)} bytes")
        await self.store.put([block.data for block in blocks(data, layout)])

    async def get(self, cid: str, *, max_bytes: int, peers: Sequence[PeerId] = ()) -> bytes:
        file = Assembly(Cid.parse(cid), max_bytes=max_bytes)
        search = _Search(list(dict.fromkeys(peers))[: self._limits.hints], bool(peers))
        while (wanted := file.wanted) is not None:
            file.take(await self._block(wanted, search))
        return file.content

    # what is here

    async def held(self, cid: str, *, max_bytes: int) -> bytes | None:
        """The file, if all of it is here. Raises `Failed` like `get`."""
        file = await self._held(Cid.parse(cid), max_bytes)
        return file.content if file else None

    async def pin(self, cid: str, *, max_bytes: int) -> bool:
        """Keeps a file that is here until it is unpinned; false when it is not all here. Raises like `get`."""
        root = Cid.parse(cid)
        file = await self._held(root, max_bytes)
        if file is None:
            return False
        await self.store.pin(root.digest, file.taken)
        if all(digest in self.store for digest in file.taken):
            return True
        await self.store.unpin(root.digest)  # what made room a moment ago took a part of it
        return False

    async def unpin(self, cid: str) -> None:
        """Raises `Failed` CONTENT_INVALID, `Transient`."""
        await self.store.unpin(Cid.parse(cid).digest)

    async def _held(self, root: Cid, max_bytes: int) -> Assembly | None:
        file = Assembly(root, max_bytes=max_bytes)
        while (wanted := file.wanted) is not None:
            block = await self.store.get(wanted.digest)
            if block is None:
                return None
            file.take(block)
        return file

    # what is not

    async def _block(self, cid: Cid, search: _Search) -> bytes:
        """The block's right bytes, from wherever they are. Whoever asks for the same block meanwhile gets it from the store."""
        while True:
            block = await self.store.get(cid.digest)
            if block is not None:
                return block
            asked = self._asking.get(cid.digest)
            if asked is None:
                break
            await asked.done.wait()
        asked = self._asking[cid.digest] = _Asked()
        try:
            async with self._rooms[search.named]:
                block = await self._find(cid, search)
        finally:
            del self._asking[cid.digest]
            asked.done.set()
        return block

    async def _find(self, cid: Cid, search: _Search) -> bytes:
        wrong = search.peers_asked = False
        for way in self._ways(search):
            block, lied = await way(cid, search)
            wrong = wrong or lied
            if block is not None:
                self.counts.fetched += 1
                try:
                    await self.store.put([block])
                except Transient as error:  # the bytes are right, and whoever asked is to have them
                    log.warning("block_not_kept", code=error.code, detail=error.detail)
                return block
        if wrong:
            raise Transient(MISMATCH, f"only other bytes were sent for {cid}")
        raise Transient(NOT_FOUND, f"no peer that was asked has {cid}")

    def _ways(self, search: _Search) -> Sequence[_Way]:
        if self._source is None:
            return (self._of_peers,)
        if search.elsewhere:
            return self._of_source, self._of_peers
        return self._of_peers_soon, self._of_source, self._of_peers

    async def _of_peers_soon(self, cid: Cid, search: _Search) -> tuple[bytes | None, bool]:
        """Peers that are silent, all of them perhaps one liar's, do not keep the other source from being asked."""
        with trio.move_on_after(self._limits.alone):
            found = await self._of_peers(cid, search)
            search.peers_asked = found[0] is None
            return found
        return None, False

    async def _of_source(self, cid: Cid, search: _Search) -> tuple[bytes | None, bool]:
        block = await self._source(cid) if self._source is not None else None
        search.elsewhere = block is not None and cid.names(block)
        if block is not None and not search.elsewhere:
            log.warning("wrong_block", cid=str(cid), source="daemon")
            return None, True
        return block, False

    async def _of_peers(self, cid: Cid, search: _Search) -> tuple[bytes | None, bool]:
        """The block, if one of the peers has it, and whether one sent other bytes."""
        if search.peers_asked:
            return None, False
        lied, asked = False, self._candidates(search)
        for number in range(self._limits.rounds):
            round_ = _Round(cid)
            await self._ask_all(round_, asked)
            lied = lied or round_.lied
            if round_.block is not None:
                if round_.giver is not None:
                    _remember(self._givers, round_.giver, None, self._limits.remembered)
                    search.first(round_.giver)
                return round_.block, lied
            if not round_.busy or number == self._limits.rounds - 1:
                break
            asked = round_.busy
            await trio.sleep(self._limits.pause)
        return None, lied

    def _candidates(self, search: _Search) -> list[PeerId]:
        """The peers named, then others that are connected, those first who gave before; none that lied."""
        now = trio.current_time()
        others = sorted(self._network.connected() - set(search.hints))
        self._shuffle(others)
        givers = list(self._givers)
        # Those who gave come first, the latest of them foremost; those who kept us waiting last.
        others.sort(
            key=lambda p: (self._late.get(p, -math.inf) + self._limits.lateness > now, -givers.index(p) if p in givers else 1)
        )
        able = [peer for peer in (*search.hints, *others) if peer != self._network.peer_id and not self._liars.refused(peer, now)]
        return able[: len(search.hints) + self._limits.others]

    async def _ask_all(self, round_: _Round, peers: Iterable[PeerId]) -> None:
        """One after another, the next one also while the last one is slow; the first right answer ends it."""
        async with trio.open_nursery() as nursery:
            for peer in peers:
                answered = trio.Event()
                nursery.start_soon(self._ask, round_, peer, answered, nursery.cancel_scope)
                with trio.move_on_after(self._limits.patience) as scope:
                    await answered.wait()
                if scope.cancelled_caught:
                    _remember(self._late, peer, trio.current_time(), _LATE)

    async def _ask(self, round_: _Round, peer: PeerId, answered: trio.Event, others: trio.CancelScope) -> None:
        digest = round_.cid.digest

        def decode(data: bytes) -> BlockAnswer:
            """Here, so that the network too counts a wrong block against whoever sent it."""
            answer = BlockAnswer.decode(data)
            if not answer.code and sha2_256(answer.data) != digest:
                raise Reject(WRONG_BYTES, f"not the bytes of {round_.cid}")
            return answer

        try:
            with trio.move_on_after(self._limits.answer):
                answer = await self._network.request(peer, replace(BLOCKS, decode_answer=decode), BlockRequest(digest))
                if not answer.code:
                    round_.block, round_.giver = answer.data, peer
                    others.cancel()
                elif answer.code == "BUSY":
                    round_.busy.append(peer)
        except Reject as error:
            round_.lied = True
            self.counts.wrong += 1
            self._liars.blame(peer, WHOLE_LIE, trio.current_time())
            log.info("wrong_block", cid=str(round_.cid), source=peer, code=error.code)
        except Transient as error:
            log.debug("block_not_got", source=peer, code=error.code)
        finally:
            answered.set()

    # serving

    async def serve(self, request: BlockRequest, peer: PeerId) -> BlockAnswer:
        """Answers a peer: only with what is here, never by asking others, and no more than its share."""
        now = trio.current_time()
        if not self._requests.allow(peer, now):
            self.counts.turned_away += 1
            return BlockAnswer("BUSY")
        if request.digest not in self.store:
            return BlockAnswer("NOT_FOUND")
        known = self._known(peer)  # strangers, however many, take nothing from the others
        if self._units.wait_for(peer, now) or self._units_in_all.wait_for(known, now):
            self.counts.turned_away += 1
            return BlockAnswer("BUSY")
        block = await self.store.get(request.digest)
        if block is None:
            return BlockAnswer("NOT_FOUND")
        for _ in range((len(block) - 1) // _UNIT):  # the rest of its price, down to nothing
            self._units.wait_for(peer, now)
            self._units_in_all.wait_for(known, now)
        self.counts.served += 1
        self.counts.served_bytes += len(block)
        return BlockAnswer("", block)


def _remember(known: OrderedDict[PeerId, V], peer: PeerId, value: V, capacity: int) -> None:
    """Notes the latest of a peer; the one noted longest ago is forgotten beyond so many."""
    known[peer] = value
    known.move_to_end(peer)
    if len(known) > capacity:
        known.popitem(last=False)


@dataclass(slots=True)
class _Asked:
    """A block that is being looked for."""

    done: trio.Event = field(default_factory=trio.Event)


@dataclass(slots=True)
class _Search:
    """Where to look for one file: who gave a block of it is asked first for the next."""

    hints: list[PeerId]
    named: bool
    """The caller knows whom to ask: it waits for no search of those who do not."""
    elsewhere: bool = False
    """The other source gave the last block."""
    peers_asked: bool = False
    """All peers have answered for this block already."""

    def first(self, giver: PeerId) -> None:
        self.hints = [giver, *(peer for peer in self.hints if peer != giver)]


@dataclass(slots=True)
class _Round:
    """What came of asking some peers for one block."""

    cid: Cid
    block: bytes | None = None
    giver: PeerId | None = None
    lied: bool = False
    busy: list[PeerId] = field(default_factory=list)


@asynccontextmanager
async def serve_blobs(
    store: Blocks,
    network: Network,
    *,
    limits: BlobLimits | None = None,
    source: Source | None = None,
    known: Callable[[PeerId], bool] = everybody,
) -> AsyncIterator[Blobs]:
    """Content over this store and network, served to its peers until the context ends; those that are not `known` share a
    part of their own."""
    blobs = Blobs(store, network, limits=limits, source=source, known=known)
    async with network.serve(BLOCKS, blobs.serve):
        yield blobs
