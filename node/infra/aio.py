"""One asyncio loop in a thread of its own, called from trio: the way in for libraries that know only asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol, TypeVar, TypeVarTuple

import outcome
import structlog
import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_JOIN_S = 5.0  # a library that swallows cancellation for longer is left to the daemon thread

log = structlog.get_logger(__name__)


class AsyncioThread(Protocol):
    """Runs coroutine functions of asyncio libraries. Objects bound to a loop must be made and used through the same one."""

    async def run(self, fn: Callable[[*Ts], Awaitable[T]], /, *args: *Ts) -> T:
        """Awaits `fn(*args)` in the asyncio thread and returns its result, or raises its exception with its traceback.

        Cancelling the trio side cancels the asyncio task and waits for it to end. Context variables go along.
        Raises `trio.ClosedResourceError` once the thread is closing, and `trio.BrokenResourceError` when something
        inside the asyncio thread cancelled the task.
        """
        ...


class _Thread:
    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._main, name="asyncio", daemon=True)

    async def start(self) -> None:
        token, ready = trio.lowlevel.current_trio_token(), trio.Event()

        async def main() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            _tell(token, ready.set)
            await self._stop.wait()
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        self._target = main
        self._thread.start()
        with trio.CancelScope(shield=True):  # the thread is up within a millisecond; without its loop it could not be stopped
            await ready.wait()

    def _main(self) -> None:
        asyncio.run(self._target())

    async def close(self) -> None:
        self._closing = True
        loop, stop = self._loop, self._stop
        assert loop is not None
        assert stop is not None
        with trio.CancelScope(shield=True):
            loop.call_soon_threadsafe(stop.set)
            # A real-time bound inside the worker thread: trio's own deadlines may be virtual.
            await trio.to_thread.run_sync(self._thread.join, _JOIN_S)
        if self._thread.is_alive():
            log.warning("asyncio_thread_did_not_end", waited_s=_JOIN_S)

    async def run(self, fn: Callable[[*Ts], Awaitable[T]], /, *args: *Ts) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        loop = self._loop
        if self._closing or loop is None:
            raise trio.ClosedResourceError("the asyncio thread is closed")
        token, caller = trio.lowlevel.current_trio_token(), trio.lowlevel.current_task()
        running: list[asyncio.Task[T]] = []
        raise_cancel: Callable[[], Any] | None = None

        async def step() -> T:
            return await fn(*args)

        def start() -> None:
            task = loop.create_task(step())
            running.append(task)  # the loop itself holds tasks only weakly
            task.add_done_callback(done)

        def done(task: asyncio.Task[T]) -> None:
            _tell(token, lambda: trio.lowlevel.reschedule(caller, outcome.Value(task)))

        def abort(raise_it: Callable[[], Any]) -> trio.lowlevel.Abort:
            nonlocal raise_cancel
            raise_cancel = raise_it
            with suppress(RuntimeError):  # the loop has ended, and with it the task: its outcome is on the way
                loop.call_soon_threadsafe(lambda: running[0].cancel())  # in order, so after `start`
            return trio.lowlevel.Abort.FAILED

        loop.call_soon_threadsafe(start)
        task: asyncio.Task[T] = await trio.lowlevel.wait_task_rescheduled(abort)
        running.clear()
        if task.cancelled():
            if raise_cancel is not None:
                raise_cancel()
            if self._closing:
                raise trio.ClosedResourceError("the asyncio thread closed during the call")
            raise trio.BrokenResourceError("the call was cancelled inside the asyncio thread")
        return task.result()


def _tell(token: trio.lowlevel.TrioToken, fn: Callable[[], None]) -> None:
    """Runs `fn` on the trio thread, unless trio is gone, when nobody is left to be told."""
    with suppress(trio.RunFinishedError):
        token.run_sync_soon(fn)


@asynccontextmanager
async def open_asyncio_thread() -> AsyncIterator[AsyncioThread]:
    """Starts the thread; on exit cancels whatever still runs in it, closes its loop and joins it."""
    thread = _Thread()
    await thread.start()
    try:
        yield thread
    finally:
        await thread.close()
