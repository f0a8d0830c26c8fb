"""What followers are told, and what is dropped when nobody listens."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from coordinator.news import Teller
from coordinator.store.records import Task
from coordinator.streams.memory import MemoryServer, MemoryStreams
from node.infra.clock import TrioClock
from tests.coordinator.factory import START, make_job, make_task

TASK = make_task(make_job(), START + 10)


async def test_news_is_told_in_order_and_dropped_while_the_streams_are_away(autojump_clock: MockClock) -> None:
    server = MemoryServer()
    async with trio.open_nursery() as nursery:
        teller = Teller(MemoryStreams(server, "a"), TrioClock())
        await nursery.start(teller.run)
        teller.tell("dispatched", TASK)
        await wait_all_tasks_blocked()
        server.take_down()
        teller.tell("retry", TASK)
        await wait_all_tasks_blocked()
        assert teller.dropped == 1
        server.bring_back()
        teller.tell("failed", TASK)
        teller.tell("failed", TASK)
        await wait_all_tasks_blocked()
        assert {kind: len(told) for kind, told in server.data.told.items()} == {"dispatched": 1, "failed": 2}
        nursery.cancel_scope.cancel()


async def test_memory_is_bounded_while_nobody_sends(autojump_clock: MockClock) -> None:
    ended: list[Task] = []
    teller = Teller(MemoryStreams(MemoryServer(), "a"), TrioClock(), ended.append)
    for _ in range(5000):
        teller.tell("dispatched", TASK)
    assert teller.dropped == 5000 - 4096
    assert ended == []  # it has not ended, whatever it is called
