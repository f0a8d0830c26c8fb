"""The streams in memory, for simulations and tests: coordinators of one process share a server that can be taken down."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from consensus.errors import Transient
from coordinator.streams.port import LEVELS, NEWS_KEPT, UNREACHABLE, Entry, TaskNews, level_of


@dataclass(slots=True)
class _Held:
    entry: Entry
    consumer: str
    since: float


@dataclass
class _Data:
    """What a server has: all of it may be lost at once."""

    waiting: dict[int, deque[Entry]] = field(default_factory=lambda: {level: deque() for level in LEVELS})
    held: dict[str, _Held] = field(default_factory=dict)
    queued: dict[int, str] = field(default_factory=dict)
    leases: dict[str, tuple[int, float]] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    alive: dict[str, float] = field(default_factory=dict)
    told: dict[str, deque[TaskNews]] = field(default_factory=dict)
    bound: tuple[int, float] | None = None


class MemoryServer:
    """What several `MemoryStreams` share. Its time is trio's, so leases run out under a virtual clock too.

    `cut` names the instances that do not reach it; while it `hangs`, calls neither return nor fail.
    """

    def __init__(self) -> None:
        self.data = _Data()
        self.cut: set[str] = set()
        self._down = False
        self._running = trio.Event()
        self._running.set()
        self._changed = trio.Event()
        self._entries = 0
        self._listeners: dict[trio.MemorySendChannel[int], str] = {}

    def take_down(self) -> None:
        """From now on every call fails, those that wait too."""
        self._down = True
        self._interrupt()

    def bring_back(self, *, lose: bool = False) -> None:
        """It answers again; with `lose` it has forgotten everything, the tokens of its leases too."""
        if lose:
            self.data = _Data()
        self._down = False
        self._interrupt()

    def lose(self) -> None:
        """It forgets everything without having been away (FLUSHALL)."""
        self.data = _Data()

    def hang(self) -> None:
        self._running = trio.Event()

    def run_on(self) -> None:
        """It hangs no more."""
        self._running.set()

    def isolate(self, instance: str) -> None:
        """This instance reaches it no more, until `join`."""
        self.cut.add(instance)
        self._interrupt()

    def join(self, instance: str) -> None:
        self.cut.discard(instance)

    def _interrupt(self) -> None:
        for channel in list(self._listeners):
            channel.close()
        self._listeners.clear()
        self.wake()

    def wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    @property
    def changed(self) -> trio.Event:
        return self._changed

    def next_id(self) -> str:
        self._entries += 1
        return f"{self._entries}-0"

    async def reach(self, instance: str) -> _Data:
        await trio.lowlevel.checkpoint()
        await self._running.wait()
        if self._down or instance in self.cut:
            raise Transient(UNREACHABLE, "the server is away")
        return self.data

    def listen(self, instance: str) -> tuple[trio.MemorySendChannel[int], trio.MemoryReceiveChannel[int]]:
        send, receive = trio.open_memory_channel[int](NEWS_KEPT)
        self._listeners[send] = instance
        return send, receive

    def unlisten(self, send: trio.MemorySendChannel[int]) -> None:
        self._listeners.pop(send, None)

    def publish(self, job_id: int, origin: str) -> None:
        for channel, listener in list(self._listeners.items()):
            if listener != origin:
                try:
                    channel.send_nowait(job_id)
                except trio.WouldBlock:  # as a trimmed stream does: the follower is told that it has missed some
                    channel.close()
                    del self._listeners[channel]


class MemoryStreams:
    """See `coordinator.streams.port`. `instance` names its consumer."""

    def __init__(self, server: MemoryServer, instance: str) -> None:
        self._server = server
        self._instance = instance

    async def push(self, tasks: Sequence[tuple[int, int]]) -> None:
        data = await self._server.reach(self._instance)
        for task, priority in tasks:
            if task not in data.queued:
                entry = Entry(task, level_of(priority), self._server.next_id())
                data.queued[task] = entry.id
                data.waiting[entry.priority].append(entry)
        self._server.wake()

    async def take(self, limit: int) -> Sequence[Entry]:
        while True:
            changed = self._server.changed
            data = await self._server.reach(self._instance)
            entries: list[Entry] = []
            for level in LEVELS:
                while data.waiting[level] and len(entries) < limit:
                    entries.append(data.waiting[level].popleft())
            if entries:
                for entry in entries:
                    data.held[entry.id] = _Held(entry, self._instance, trio.current_time())
                return entries
            await changed.wait()

    async def done(self, entries: Sequence[Entry]) -> None:
        data = await self._server.reach(self._instance)
        for entry in entries:
            data.held.pop(entry.id, None)
            if data.queued.get(entry.task_id) == entry.id:
                del data.queued[entry.task_id]

    async def keep(self, entries: Sequence[Entry]) -> None:
        data = await self._server.reach(self._instance)
        for entry in entries:
            held = data.held.get(entry.id)
            if held is not None and held.consumer == self._instance:
                held.since = trio.current_time()

    async def orphans(self, idle_s: float, limit: int) -> Sequence[Entry]:
        data = await self._server.reach(self._instance)
        now = trio.current_time()
        dead = {name for name, until in data.alive.items() if until <= now and name != self._instance}
        idle = [held for held in data.held.values() if now - held.since >= idle_s or held.consumer in dead]
        idle.sort(key=lambda held: held.entry.priority)
        for held in idle[:limit]:
            held.consumer, held.since = self._instance, now
        return [held.entry for held in idle[:limit]]

    async def backlog(self) -> int:
        data = await self._server.reach(self._instance)
        return sum(len(waiting) for waiting in data.waiting.values())

    async def acquire(self, name: str, ttl_s: float, *, floor: int = 0) -> int | None:
        data = await self._server.reach(self._instance)
        now = trio.current_time()
        if name in data.leases and data.leases[name][1] > now:
            return None
        token = max(data.tokens.get(name, 0) + 1, round(now * 1e6), floor)
        data.tokens[name] = token
        data.leases[name] = (token, now + ttl_s)
        return token

    async def renew(self, name: str, token: int, ttl_s: float) -> bool:
        data = await self._server.reach(self._instance)
        now = trio.current_time()
        if name not in data.leases or data.leases[name][0] != token or data.leases[name][1] <= now:
            return False
        data.leases[name] = (token, now + ttl_s)
        return True

    async def release(self, name: str, token: int) -> None:
        data = await self._server.reach(self._instance)
        if name in data.leases and data.leases[name][0] == token:
            del data.leases[name]

    async def bind(self, store: int, ttl_s: float) -> bool:
        data = await self._server.reach(self._instance)
        now = trio.current_time()
        if data.bound is not None and data.bound[0] != store and data.bound[1] > now:
            return False
        data.bound = (store, now + ttl_s)
        return True

    async def beat(self, instance: str, ttl_s: float) -> frozenset[str]:
        data = await self._server.reach(self._instance)
        now = trio.current_time()
        data.alive[instance] = now + ttl_s
        return frozenset(name for name, until in data.alive.items() if until > now)

    async def leave(self, instance: str) -> None:
        data = await self._server.reach(self._instance)
        data.alive[instance] = trio.current_time()

    async def announce(self, job_id: int) -> None:
        await self._server.reach(self._instance)
        self._server.publish(job_id, self._instance)

    @asynccontextmanager
    async def news(self) -> AsyncIterator[AsyncIterator[int]]:
        await self._server.reach(self._instance)
        send, receive = self._server.listen(self._instance)
        try:
            yield self._follow(receive)
        finally:
            self._server.unlisten(send)
            send.close()
            receive.close()

    async def _follow(self, receive: trio.MemoryReceiveChannel[int]) -> AsyncIterator[int]:
        async for job_id in receive:
            yield job_id
        raise Transient(UNREACHABLE, "announcements may have been lost")

    async def tell(self, news: Sequence[TaskNews]) -> None:
        data = await self._server.reach(self._instance)
        for item in news:
            data.told.setdefault(item.kind, deque(maxlen=NEWS_KEPT)).append(item)

    async def ping(self) -> None:
        await self._server.reach(self._instance)
