"""The asyncio thread: results, errors, cancellation and context cross the border both ways, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import traceback

import pytest
import trio

from node.infra.aio import open_asyncio_thread


async def test_a_result_comes_back_from_the_other_thread():
    async def where(number: int) -> tuple[int, str]:
        await asyncio.sleep(0)
        return number, threading.current_thread().name

    async with open_asyncio_thread() as aio:
        assert await aio.run(where, 7) == (7, "asyncio")


async def test_an_exception_keeps_its_traceback():
    async def innermost() -> None:
        raise LookupError("gone")

    async with open_asyncio_thread() as aio:
        with pytest.raises(LookupError, match="gone") as caught:
            await aio.run(innermost)
    assert "innermost" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]


async def test_cancelling_trio_cancels_asyncio_and_waits_for_its_cleanup():
    started, cleaned = trio.Event(), []
    token = trio.lowlevel.current_trio_token()

    async def sleeper() -> None:
        token.run_sync_soon(started.set)
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    async with open_asyncio_thread() as aio, trio.open_nursery() as nursery:
        nursery.start_soon(aio.run, sleeper)
        await started.wait()
        nursery.cancel_scope.cancel()
    assert cleaned == [True]


async def test_a_call_in_a_cancelled_scope_never_starts():
    calls = []

    async def call() -> None:
        calls.append(1)

    async with open_asyncio_thread() as aio:
        with trio.CancelScope() as scope:
            scope.cancel()
            await aio.run(call)
        assert scope.cancelled_caught
    assert calls == []


async def test_a_result_that_beats_the_cancellation_is_kept():
    async def stubborn() -> str:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return "kept"
        return "never"

    async with open_asyncio_thread() as aio:
        with trio.CancelScope() as scope:
            trio.lowlevel.current_trio_token().run_sync_soon(scope.cancel)
            assert await aio.run(stubborn) == "kept"


async def test_a_cancellation_born_inside_asyncio_does_not_look_like_ours():
    async def cancel_myself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async with open_asyncio_thread() as aio:
        with pytest.raises(trio.BrokenResourceError):
            await aio.run(cancel_myself)


async def test_leaving_cancels_what_still_runs_and_joins_the_thread():
    before, ended = set(threading.enumerate()), []

    async def background() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(True)

    async def spawn() -> asyncio.Task[None]:
        task = asyncio.create_task(background())
        await asyncio.sleep(0)
        return task

    async with open_asyncio_thread() as aio:
        task = await aio.run(spawn)
    assert ended == [True]
    assert task.cancelled()
    assert not [t for t in set(threading.enumerate()) - before if t.name == "asyncio"]
    with pytest.raises(trio.ClosedResourceError):
        await aio.run(background)


async def test_a_call_under_way_when_the_thread_closes_learns_it():
    entered, token = trio.Event(), trio.lowlevel.current_trio_token()
    outcomes = []

    async def wait_forever() -> None:
        token.run_sync_soon(entered.set)
        await asyncio.sleep(3600)

    async with trio.open_nursery() as nursery, open_asyncio_thread() as aio:

        async def caller() -> None:
            try:
                await aio.run(wait_forever)
            except trio.ClosedResourceError as error:
                outcomes.append(str(error))

        nursery.start_soon(caller)
        await entered.wait()
    assert outcomes == ["the asyncio thread closed during the call"]


async def test_context_variables_travel_along():
    trace = contextvars.ContextVar("trace", default="none")

    async def read() -> str:
        return trace.get()

    async with open_asyncio_thread() as aio:
        trace.set("tgrx-1")
        assert await aio.run(read) == "tgrx-1"


async def test_many_calls_at_once_each_get_their_own_answer():
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return 2 * number

    results: dict[int, int] = {}
    async with open_asyncio_thread() as aio:

        async def ask(number: int) -> None:
            results[number] = await aio.run(double, number)

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(ask, number)
    assert results == {number: 2 * number for number in range(200)}
