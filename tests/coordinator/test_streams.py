"""The streams, whichever server they run on: one suite over memory, the embedded server and a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import pytest
import trio
from pytest_trio import trio_fixture

from consensus.errors import Transient
from coordinator.streams.port import UNREACHABLE, Entry, Streams, TaskNews
from tests.coordinator.servers import Server, answers, running

T = TypeVar("T")

PATIENCE = 20.0  # of a test with a real server on a busy machine
BIG = 2**256 - 1


@pytest.fixture(params=["memory", "embedded", "redis"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@trio_fixture  # type: ignore[untyped-decorator]
async def server(kind, tmp_path) -> AsyncIterator[Server]:
    with trio.fail_after(3 * PATIENCE):
        async with running(kind, tmp_path) as server:
            yield server


@trio_fixture  # type: ignore[untyped-decorator]
async def here(server) -> AsyncIterator[Streams]:
    async with server.open("here") as streams:
        yield streams


@trio_fixture  # type: ignore[untyped-decorator]
async def there(server) -> AsyncIterator[Streams]:
    async with server.open("there") as streams:
        yield streams


def ids(entries: list[Entry]) -> list[int]:
    return [entry.task_id for entry in entries]


async def until(check: Callable[[], Awaitable[T | None]]) -> T:
    """What `check` returns as soon as it is not None."""
    with trio.fail_after(PATIENCE):
        while (found := await check()) is None:  # noqa: ASYNC110 - time passes on a server, which tells nobody
            await trio.sleep(0.01)
    return found


async def fails(call: Callable[[], Awaitable[object]]) -> None:
    with trio.fail_after(PATIENCE):
        while True:
            await call()


# the queue


async def test_the_highest_priority_is_taken_first_whatever_came_first(here):
    await here.push([(1, 3), (2, 2), (3, 1), (4, 3), (5, 2), (BIG, 1)])
    assert ids(await here.take(3)) == [3, BIG, 2]
    assert ids(await here.take(10)) == [5, 1, 4]


async def test_a_priority_that_is_none_comes_last(here):
    await here.push([(1, 7), (2, 3), (3, 0), (4, 1)])
    assert ids(await here.take(10)) == [4, 1, 2, 3]


async def test_what_one_has_taken_no_other_gets(here, there):
    await here.push([(task, 2) for task in range(20)])
    mine, yours = await here.take(5), await there.take(100)
    assert sorted(ids([*mine, *yours])) == list(range(20))
    assert len(mine) == 5


async def test_whoever_waits_is_woken_by_the_next_task(here, there):
    taken: list[Entry] = []
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            taken.extend(await there.take(10))
            nursery.cancel_scope.cancel()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await here.push([(7, 2)])
        await trio.sleep_forever()
    assert ids(taken) == [7]


async def test_a_burst_of_all_priorities_does_not_exceed_the_limit_of_who_waits(here, there):
    taken: list[Entry] = []

    async def take_all() -> None:
        while len(taken) < 9:
            entries = await there.take(1)
            assert len(entries) == 1
            taken.extend(entries)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_all)
        await trio.testing.wait_all_tasks_blocked()
        await here.push([(task, 1 + task % 3) for task in range(9)])
    assert sorted(ids(taken)) == list(range(9))


async def test_a_task_is_queued_once_until_it_is_done(here):
    await here.push([(1, 2), (1, 2)])
    await here.push([(1, 1)])
    assert await here.backlog() == 1
    entries = await here.take(10)
    await here.push([(1, 2)])
    assert (ids(entries), await here.backlog()) == ([1], 0)
    await here.done(entries)
    await here.push([(1, 2)])
    assert await here.backlog() == 1


async def test_the_backlog_is_what_nobody_has_taken(here):
    assert await here.backlog() == 0
    await here.push([(task, 1 + task % 3) for task in range(700)])
    assert await here.backlog() == 700
    taken = await here.take(300)
    assert (len(taken), await here.backlog()) == (300, 400)
    await here.done(taken)
    assert await here.backlog() == 400


async def test_what_is_done_is_never_an_orphan(here, there):
    await here.push([(1, 1), (2, 2), (3, 3)])
    entries = await here.take(10)
    await here.done(entries)
    assert await there.orphans(0, 10) == []


async def test_what_nobody_keeps_is_taken_over_the_highest_priority_first(here, there):
    await here.push([(3, 3), (1, 1), (2, 2)])
    entries = await here.take(10)
    assert await there.orphans(3600, 10) == []
    assert ids(await there.orphans(0, 2)) == [1, 2]
    await here.keep(entries[:1])  # too late: it is another's by now
    assert ids(await there.orphans(3600, 10)) == []
    assert ids(await there.orphans(0, 10)) == [1, 2, 3]


async def test_what_is_kept_is_no_orphan(here, there):
    await here.push([(1, 1), (2, 1)])
    kept, left = await here.take(2)
    with trio.fail_after(PATIENCE):
        while True:
            await here.keep([kept])
            over = await there.orphans(0.2, 10)
            if over:
                break
    assert ids(over) == [left.task_id]


async def test_what_a_dead_instance_holds_is_taken_over_at_once(here, there, server):
    await here.beat("here", 3600)
    await there.beat("there", 3600)
    async with server.open("third") as third:  # which never beats: nobody can say that it is dead
        await here.push([(1, 2), (2, 1), (3, 3), (4, 3)])
        await here.take(2)
        await third.take(1)
        assert await there.orphans(3600, 10) == []
        await here.leave("here")
        assert sorted(ids(await there.orphans(3600, 10))) == [1, 2]
        assert await there.orphans(3600, 10) == []
        assert ids(await there.take(10)) == [4]
        await here.beat("here", 3600)
        await here.push([(5, 1)])
        await here.take(1)
        assert await there.orphans(3600, 10) == []


async def test_orphans_are_found_behind_many_that_are_kept(here, there):
    await here.push([(task, 2) for task in range(300)])
    entries = await here.take(300)
    with trio.fail_after(PATIENCE):
        while True:
            await here.keep(entries[:-1])
            over = await there.orphans(0.3, 1)
            if over:
                break
    assert ids(over) == [entries[-1].task_id]


async def test_what_was_cancelled_while_waiting_costs_no_task(here, server, kind):
    async def cut_short() -> None:
        with trio.move_on_after(0.01):
            await here.take(1)

    for _ in range(5):
        await cut_short()
    await here.push([(1, 1), (2, 1)])
    # An answer may have been under way to a read that is cut short: then it is an orphan.
    taken = ids(await here.take(10))
    taken += ids(await here.orphans(0, 10))
    assert sorted(set(taken)) == [1, 2]


async def test_many_reads_that_are_cut_short_leave_connections_for_others(here):
    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(here.take, 1)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await here.push([(1, 1)])
    assert ids(await here.take(1)) == [1]


# leases


async def test_a_lease_has_one_holder(here, there):
    token = await here.acquire("shard:1", 10)
    assert token is not None
    assert await there.acquire("shard:1", 10) is None
    assert await here.renew("shard:1", token, 10)
    assert not await there.renew("shard:1", token - 1, 10)
    assert await there.acquire("shard:2", 10) is not None


async def test_a_lease_that_is_released_is_free_with_a_higher_token(here, there):
    token = await here.acquire("shard:1", 10)
    assert token is not None
    await there.release("shard:1", token - 1)
    assert await there.acquire("shard:1", 10) is None
    await here.release("shard:1", token)
    later = await there.acquire("shard:1", 10)
    assert later is not None
    assert later > token
    assert not await here.renew("shard:1", token, 10)
    await here.release("shard:1", token)
    assert await there.renew("shard:1", later, 10)


async def test_a_lease_runs_out_when_its_holder_says_nothing(here, there):
    token = await here.acquire("shard:1", 0.2)
    assert token is not None
    assert await until(lambda: there.acquire("shard:1", 10)) > token
    assert not await here.renew("shard:1", token, 10)


async def test_a_token_is_as_high_as_asked_for(here):
    token = await here.acquire("shard:1", 10, floor=9 * 10**15)
    assert token == 9 * 10**15
    await here.release("shard:1", token)
    assert await here.acquire("shard:1", 10) == token + 1


async def test_tokens_rise_although_the_server_has_lost_everything(here, there, server):
    token = await here.acquire("shard:1", 10)
    assert token is not None
    await server.flush()
    assert not await here.renew("shard:1", token, 10)
    later = await there.acquire("shard:1", 10)
    assert later is not None
    assert later > token


async def test_instances_live_until_their_time_is_over_or_they_leave(here, there):
    assert await here.beat("here", 10) == {"here"}
    assert await there.beat("there", 0.1) == {"here", "there"}

    async def alone() -> bool | None:
        return True if await here.beat("here", 10) == {"here"} else None

    assert await until(alone)
    assert await there.beat("there", 10) == {"here", "there"}
    await there.leave("there")
    assert await here.beat("here", 10) == {"here"}


# news


async def test_jobs_are_announced_to_the_others(here, there):
    await there.announce(1)
    async with here.news() as mine, there.news() as yours:
        await here.announce(5)
        await there.announce(BIG)
        await there.announce(7)
        assert [await anext(mine), await anext(mine)] == [BIG, 7]
        assert await anext(yours) == 5


async def test_task_states_are_told(here):
    await here.tell([TaskNews("completed", BIG, 7, "completed", "", 1, 1_700_000_000_000)] * 600)


# outages


async def test_a_server_that_is_away_is_named_and_comes_back(here, server):
    await here.push([(1, 1)])
    await server.kill()
    with pytest.raises(Transient) as caught:
        await fails(here.ping)  # soon: the embedded one is back within a tenth of a second
    assert caught.value.code == UNREACHABLE
    await server.start()
    await answers(here)
    await here.push([(2, 1)])
    assert ids(await here.take(10)) == [1, 2]


async def test_who_waits_for_tasks_learns_of_the_outage(here, server):
    async with trio.open_nursery() as nursery:
        failed = trio.Event()

        async def wait() -> None:
            with pytest.raises(Transient):
                await here.take(1)
            failed.set()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await server.kill()
        await failed.wait()
    await server.start()


async def test_who_follows_the_news_learns_of_the_outage(here, there, server):
    async with trio.open_nursery() as nursery:
        following = trio.Event()

        async def follow() -> None:
            async with here.news() as news:
                following.set()
                with pytest.raises(Transient):
                    await anext(news)

        nursery.start_soon(follow)
        await following.wait()
        await trio.testing.wait_all_tasks_blocked()
        await server.kill()
    await server.start()
    await answers(here)
    await answers(there)
    async with here.news() as news:
        await there.announce(3)
        assert await anext(news) == 3


async def test_what_was_taken_before_a_restart_is_still_held_after_it(here, there, server):
    await here.push([(1, 1), (2, 1)])
    held = await here.take(1)
    token = await here.acquire("shard:1", 3600)
    assert token is not None
    await server.kill()
    await server.start()
    await answers(here)
    await answers(there)
    assert await here.renew("shard:1", token, 10)
    assert ids(await there.take(10)) == [2]
    assert ids(await there.orphans(0, 1)) == ids(held)


async def test_a_server_that_lost_everything_works_on(here, there, server):
    await here.push([(1, 1), (2, 2)])
    held = await here.take(1)
    async with trio.open_nursery() as nursery:
        second = trio.Event()

        async def wait() -> None:
            taken: list[Entry] = []
            while 9 not in ids(taken):
                taken.extend(await there.take(10))
                second.set()

        nursery.start_soon(wait)
        await second.wait()
        await trio.testing.wait_all_tasks_blocked()
        await server.flush()
        await here.keep(held)
        await here.done(held)
        assert await here.orphans(0, 10) == []
        await here.push([(9, 3)])
    assert await here.backlog() == 0
    await here.push([(1, 1)])  # as whoever sweeps the store does
    assert ids(await here.take(10)) == [1]


async def test_streams_are_of_one_store_until_its_coordinators_are_gone(here, there, server):
    assert await here.bind(7, 30)
    assert await there.bind(7, 0.2)
    assert not await there.bind(8, 30)

    async def taken() -> bool | None:
        return await there.bind(8, 30) or None

    assert await until(taken)
    assert not await here.bind(7, 30)
    await server.flush()
    assert await here.bind(7, 30)
