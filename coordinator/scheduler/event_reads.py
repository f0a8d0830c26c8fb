"""What event jobs read of their chain: the logs they ask for, with the times of their blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import trio

from consensus.errors import Transient
from coordinator.scheduler.event_index import EventIndex
from node.infra.chain import Chain, Head, Log

_BLOCK_READS = 8  # at a time, for the times of blocks with matches
MOST_SPAN = 5_000
"""Blocks of one read; shorter ones while they hold much."""
_MANY, _FEW = 8_000, 2_000  # logs of one read that make the next one shorter, or longer
_WITHOUT_PAUSE = 64  # logs looked at in one go, a millisecond or two: time jobs and answers are due meanwhile


@dataclass(frozen=True, slots=True)
class Hit:
    """A log that jobs ask for, and its block's time."""

    log: Log
    timestamp: int
    job_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Reading:
    """The hits of a range of blocks, and how many logs were looked at for them."""

    hits: Sequence[Hit]
    logs: int

    def next_span(self, span: int) -> int:
        """Blocks of the next read, when this one had `span`."""
        if self.logs > _MANY:
            return max(1, span // 2)
        return min(MOST_SPAN, 2 * span) if self.logs < _FEW else span


async def read_hits(chain: Chain, index: EventIndex, first: int, head: Head) -> Reading:
    """Of the blocks from `first` up to `head`, on its branch. Raises `Transient` when the chain has another one by now."""
    contracts, topics = index.asked
    if not contracts:
        return Reading((), 0)
    logs = await chain.logs(contracts, topics, first, head.number, tip=head.hash)
    found = await _matching(index, logs)
    times = await _times(chain, {each.block_number: each.block_hash for each, _ in found}, head)
    return Reading([Hit(each, times[each.block_number], job_ids) for each, job_ids in found], len(logs))


async def _matching(index: EventIndex, logs: Sequence[Log]) -> list[tuple[Log, Sequence[int]]]:
    """The logs that jobs ask for, with these. A contract may emit ten thousand in a block, or a few of a megabyte."""
    found: list[tuple[Log, Sequence[int]]] = []
    work = 0
    for each in logs:
        if job_ids := index.jobs_of(each):
            found.append((each, job_ids))
        work += 1 + len(each.data) // 1024
        if work >= _WITHOUT_PAUSE:
            work = 0
            await trio.lowlevel.checkpoint()
    return found


async def _times(chain: Chain, blocks: Mapping[int, bytes], head: Head) -> dict[int, int]:
    """Each block's time. Raises `Transient` when one is not that block any more."""
    times: dict[int, int] = {}
    wrong: list[Transient] = []
    limit = trio.CapacityLimiter(_BLOCK_READS)

    async def read(number: int, block_hash: bytes) -> None:
        async with limit:
            if wrong:
                return
            try:
                block = head if number == head.number else await chain.block(number)
            except Transient as error:
                wrong.append(error)
                return
        if block is None or block.hash != block_hash:
            wrong.append(Transient("RPC_ERROR", f"block {number} is another one by now"))
        else:
            times[number] = block.timestamp

    async with trio.open_nursery() as nursery:
        for number, block_hash in blocks.items():
            nursery.start_soon(read, number, block_hash)
    if wrong:
        raise wrong[0]
    return times


async def first_block_at(chain: Chain, second: int, last: int) -> int:
    """Number of the first block whose time is `second` or later, up to block `last`; `last + 1` when there is none."""
    low, high = 0, last + 1
    while low < high:
        middle = (low + high) // 2
        block = await chain.block(middle)
        if block is None:
            raise Transient("RPC_ERROR", f"block {middle} is not there")
        if block.timestamp < second:
            low = middle + 1
        else:
            high = middle
    return low
