"""One log of thousands of jobs, and thousands of logs of one: whoever shares the loop has its turn meanwhile."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from coordinator.scheduler.event_chain import ChainWatch
from coordinator.scheduler.event_reads import Hit
from coordinator.scheduler.event_search import Watched
from node.infra.chain_memory import Emitted, MemoryChain
from node.infra.clock import TrioClock
from tests.coordinator.events_world import CONTRACT, Desk, on_event, pinged, planned, scheduling


@pytest.mark.parametrize(("jobs", "logs"), [(3_000, 1), (1, 3_000)])
async def test_a_flood_is_taken_in_small_parts(
    jobs: int, logs: int, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, desk = TrioClock(), Desk()
    chain = MemoryChain(clock)
    in_a_row = longest = total = 0
    take = ChainWatch.take

    def counting(self: ChainWatch, watched: Watched, hit: Hit) -> None:
        nonlocal in_a_row, longest, total
        in_a_row, total = in_a_row + 1, total + 1
        longest = max(longest, in_a_row)
        take(self, watched, hit)

    async def other() -> None:
        nonlocal in_a_row
        while True:
            await trio.lowlevel.checkpoint()
            in_a_row = 0

    monkeypatch.setattr(ChainWatch, "take", counting)
    many = [planned(job_id, on_event(confirmations=2), clock.now()) for job_id in range(1, jobs + 1)]
    async with scheduling(chain, clock, desk, *many), trio.open_nursery() as nursery:
        await trio.sleep(5)
        nursery.start_soon(other)
        chain.ledger.emit_all([Emitted(CONTRACT, *pinged(1))] * logs)
        while total < jobs * logs:
            await trio.lowlevel.checkpoint()
            autojump_clock.jump(0.1)
        nursery.cancel_scope.cancel()
    assert longest <= 1_000  # turns are not dealt strictly one by one
