"""The streams on a Redis or Valkey server: its client runs in the asyncio thread, its errors end here."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar, TypeVarTuple
from urllib.parse import urlsplit

import structlog
import trio
from redis.asyncio import BlockingConnectionPool, Redis, UnixDomainSocketConnection
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import TimeoutError as TimedOut

from consensus.errors import Misconfigured, Transient
from coordinator.streams import scripts
from coordinator.streams.port import LEVELS, NEWS_KEPT, UNREACHABLE, Entry, TaskNews, level_of
from node.infra.aio import AsyncioThread

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

KEY: Final = "redis.url"
OLDEST: Final = (6, 2)
"""The first Redis with XAUTOCLAIM."""

_CALL_S: Final = 2.0
"""For a connection, and for an answer. Half of the default lease: a server that hangs is noticed before the lease is gone."""
_BLOCK_MS: Final = 2000
"""A read that waits asks anew so often: no answer within this and `_CALL_S` means that the server hangs."""
_CONNECTIONS: Final = 16  # calls under way at once; more wait their turn, at most _CALL_S
_READERS: Final = 8  # reads that wait: one of the queue, one of the news, and what is being cancelled
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
_CHUNK: Final = 256  # tasks in one script: some 2 ms of the server's time
_NEWS_BATCH: Final = 1000
_FORGET_MS: Final = 3_600_000
_PING_MS: Final = 60_000
_GROUP: Final = "coordinators"

log = structlog.get_logger(__name__)


class _Calls:
    """One server, asked through the asyncio thread; what has just failed is not asked again for a moment."""

    def __init__(self, aio: AsyncioThread, address: Mapping[str, Any]) -> None:
        self._aio = aio
        self.client = _client(address, _CALL_S, _CONNECTIONS)
        self.waiting = _client(address, _CALL_S + _BLOCK_MS / 1000, _READERS)
        self._pause = _FIRST_PAUSE_S
        self._not_before = -float("inf")
        self._reachable = True

    async def __call__(self, fn: Callable[[*Ts], Awaitable[T]], /, *args: *Ts) -> T:
        """Raises `Transient`, at once when the server was away a moment ago."""
        if trio.current_time() < self._not_before:
            await trio.lowlevel.checkpoint()
            raise Transient(UNREACHABLE, "the server was away a moment ago")
        try:
            result = await self._aio.run(fn, *args)
        except (Disconnected, TimedOut, OSError, trio.BrokenResourceError) as error:
            self._away(error)
            raise Transient(UNREACHABLE, str(error)) from error
        except RedisError as error:  # it answers, and refuses: loading, out of memory, read-only, ...
            raise Transient(UNREACHABLE, f"the server refuses: {error}") from error
        if not self._reachable:
            log.info("streams_reachable_again")
        self._pause, self._reachable = _FIRST_PAUSE_S, True
        return result

    async def paced(self) -> None:
        """Waits until the server may be asked again: for those who ask in a loop."""
        await trio.sleep_until(max(self._not_before, trio.current_time()))

    def _away(self, error: BaseException) -> None:
        if self._reachable:
            log.warning("streams_unreachable", error=str(error))
        self._reachable = False
        self._not_before = trio.current_time() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_S)

    async def close(self) -> None:
        with trio.move_on_after(_CALL_S) as scope:
            scope.shield = True
            for client in (self.client, self.waiting):
                await self._aio.run(client.aclose, True)


class RedisStreams:
    """See `coordinator.streams.port`. `instance` names its consumer."""

    def __init__(self, calls: _Calls, prefix: str, instance: str) -> None:
        self._call = calls
        self._prefix = prefix
        self._instance = instance
        self._streams = [f"{prefix}:queue:{level}" for level in LEVELS]
        self._queue = [f"{prefix}:queued", *self._streams]
        self._tokens = f"{prefix}:tokens"
        self._instances = f"{prefix}:instances"
        self._news = f"{prefix}:news"
        self._spare: list[Entry] = []
        """Entries that came beyond the limit of a `take`; of each level one at most."""
        self._scripts: dict[str, Any] = {}

    async def _run(self, script: str, keys: Sequence[str], args: Sequence[str | int]) -> Any:
        """Evaluates one of `scripts`; its text goes to the server once."""
        if script not in self._scripts:
            self._scripts[script] = self._call.client.register_script(script)
        return await self._call(self._scripts[script], keys, args)

    # the queue

    async def push(self, tasks: Sequence[tuple[int, int]]) -> None:
        for first in range(0, len(tasks), _CHUNK):
            args = [word for task, priority in tasks[first : first + _CHUNK] for word in (str(task), level_of(priority))]
            await self._run(scripts.PUSH, self._queue, args)

    async def take(self, limit: int) -> Sequence[Entry]:
        if self._spare:
            entries, self._spare = self._spare[:limit], self._spare[limit:]
            await trio.lowlevel.checkpoint()
            return entries
        while True:
            await self._call.paced()
            taken = await self._run(scripts.TAKE, self._streams, [_GROUP, self._instance, limit])
            if taken and (entries := await self._readable(taken)):
                return entries
            entries = await self._readable(await self._call(self._wait))
            if entries:
                self._spare = entries[limit:]
                return entries[:limit]

    async def _readable(self, taken: Sequence[tuple[Any, bytes, bytes]]) -> list[Entry]:
        """(level, id, task) triples as entries, the highest priority first. What somebody else put there and nobody can read
        leaves the queue: it would come back to each of us for ever."""
        entries, odd = [], []
        for level, ident, task in taken:
            try:
                entries.append(Entry(int(task), int(level), ident.decode()))
            except ValueError:
                odd += [str(int(level)), ident.decode(), ""]
        if odd:
            log.error("queue_entries_unreadable", entries=len(odd) // 3, remedy="let nobody else write to the server's keys")
            await self._run(scripts.DONE, self._queue, [_GROUP, *odd])
        return sorted(entries, key=lambda entry: entry.priority)

    async def _wait(self) -> list[tuple[Any, bytes, bytes]]:
        streams: dict[Any, Any] = dict.fromkeys(self._streams, ">")
        try:
            found: Any = await self._call.waiting.xreadgroup(_GROUP, self._instance, streams, count=1, block=_BLOCK_MS)
        except ResponseError as error:
            if str(error).startswith(("NOGROUP", "UNBLOCKED")):  # the data went while we waited: `_take` makes the group anew
                return []
            raise
        levels = {stream.encode(): level for stream, level in zip(self._streams, LEVELS, strict=True)}
        return [(levels[key], ident, fields.get(b"t", b"")) for key, items in found for ident, fields in items if fields]

    async def done(self, entries: Sequence[Entry]) -> None:
        for first in range(0, len(entries), _CHUNK):
            part = entries[first : first + _CHUNK]
            args = [str(word) for entry in part for word in (entry.priority, entry.id, entry.task_id)]
            await self._run(scripts.DONE, self._queue, [_GROUP, *args])

    async def keep(self, entries: Sequence[Entry]) -> None:
        for first in range(0, len(entries), _CHUNK):
            args = [str(word) for entry in entries[first : first + _CHUNK] for word in (entry.priority, entry.id)]
            await self._run(scripts.KEEP, self._streams, [_GROUP, self._instance, *args])

    async def orphans(self, idle_s: float, limit: int) -> Sequence[Entry]:
        args = (_GROUP, self._instance, round(idle_s * 1000), limit, _FORGET_MS)
        return await self._readable(await self._run(scripts.ORPHANS, [*self._streams, self._instances], args))

    async def backlog(self) -> int:
        return int(await self._run(scripts.BACKLOG, self._streams, [_GROUP]))

    # leases

    async def acquire(self, name: str, ttl_s: float, *, floor: int = 0) -> int | None:
        token = await self._run(scripts.ACQUIRE, [self._lease(name), self._tokens], [name, round(ttl_s * 1000), floor])
        return None if token is None else int(token)

    async def renew(self, name: str, token: int, ttl_s: float) -> bool:
        return bool(await self._run(scripts.RENEW, [self._lease(name)], [token, round(ttl_s * 1000)]))

    async def release(self, name: str, token: int) -> None:
        await self._run(scripts.RELEASE, [self._lease(name)], [token])

    async def bind(self, store: int, ttl_s: float) -> bool:
        return bool(await self._run(scripts.BIND, [f"{self._prefix}:store"], [store, round(ttl_s * 1000)]))

    async def beat(self, instance: str, ttl_s: float) -> frozenset[str]:
        alive = await self._run(scripts.BEAT, [self._instances], [instance, round(ttl_s * 1000), _FORGET_MS])
        return frozenset(name.decode(errors="replace") for name in alive)

    async def leave(self, instance: str) -> None:
        await self._run(scripts.BEAT, [self._instances], [instance, 0, _FORGET_MS])

    def _lease(self, name: str) -> str:
        return f"{self._prefix}:lease:{name}"

    # news

    async def announce(self, job_id: int) -> None:
        await self._call(self._add, [(self._news, {"job": str(job_id), "from": self._instance})])

    @asynccontextmanager
    async def news(self) -> AsyncIterator[AsyncIterator[int]]:
        await self._call.paced()
        newest = await self._call(self._newest)
        async with aclosing(self._follow(newest)) as news:
            yield news

    async def _newest(self) -> bytes:
        found: Any = await self._call.client.xrevrange(self._news, count=1)
        return bytes(found[0][0]) if found else b"0-0"

    async def _follow(self, last: bytes) -> AsyncGenerator[int, None]:
        while True:
            found = await self._call(self._read, last)
            for ident, fields in found:
                last = ident
                if fields.get(b"from") != self._instance.encode() and fields.get(b"job", b"").isdigit():
                    yield int(fields[b"job"])
            if len(found) == _NEWS_BATCH and await self._call(self._trimmed, last):
                raise Transient(UNREACHABLE, "too many announcements to follow: some were not seen")

    async def _read(self, last: bytes) -> Any:
        found: Any = await self._call.waiting.xread({self._news: last}, count=_NEWS_BATCH, block=_BLOCK_MS)
        return found[0][1] if found else []

    async def _trimmed(self, last: bytes) -> bool:
        oldest: Any = await self._call.client.xrange(self._news, count=1)
        return bool(oldest) and _order(oldest[0][0]) > _order(last)

    async def tell(self, news: Sequence[TaskNews]) -> None:
        entries: list[tuple[str, dict[Any, Any]]] = [
            (
                f"{self._prefix}:tasks:{item.kind}",
                {
                    "task_id": str(item.task_id),
                    "job_id": str(item.job_id),
                    "state": item.state,
                    "reason": item.reason,
                    "attempt": item.attempt,
                    "at_ms": item.at_ms,
                },
            )
            for item in news
        ]
        for first in range(0, len(entries), _CHUNK):
            await self._call(self._add, entries[first : first + _CHUNK])

    async def _add(self, entries: Sequence[tuple[str, dict[Any, Any]]]) -> None:
        async with self._call.client.pipeline(transaction=False) as pipe:
            for stream, fields in entries:
                pipe.xadd(stream, fields, maxlen=NEWS_KEPT, approximate=True)
            await pipe.execute()

    async def ping(self) -> None:
        await self._call(self._write)

    async def _write(self) -> None:  # a server that is full, or a replica, answers PING and takes nothing
        await self._call.client.set(f"{self._prefix}:ping", self._instance, px=_PING_MS)


def _client(address: Mapping[str, Any], timeout: float, connections: int) -> Redis:
    # Its own retries would hide outages from us for seconds, and do what is not idempotent twice.
    limits = {"socket_timeout": timeout, "socket_connect_timeout": _CALL_S, "retry": Retry(NoBackoff(), 0), "protocol": 2}
    pool = BlockingConnectionPool(**{**address, **limits, "max_connections": connections, "timeout": _CALL_S})
    return Redis.from_pool(pool)


def _order(ident: bytes) -> tuple[int, int]:
    milliseconds, _, number = ident.partition(b"-")
    return int(milliseconds), int(number)


@asynccontextmanager
async def open_redis(aio: AsyncioThread, url: str, prefix: str, instance: str) -> AsyncIterator[RedisStreams]:
    """The streams on the server at `url`, which may be away for now. Raises `Misconfigured` for what no waiting mends."""
    where = urlsplit(url)
    if where.scheme != "unix" and not re.fullmatch(r"/?[0-9]*", where.path):  # the client would take database 0
        raise Misconfigured(KEY, "the URL's path is the number of a database, as in redis://localhost:6379/0")
    try:
        calls = _Calls(aio, parse_url(url))
        for client in (calls.client, calls.waiting):
            client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, RedisError) as error:  # in the url's query anything can be named
        raise Misconfigured(KEY, "the URL has parts that make no connection: check its port, database and query") from error
    async with _opened(calls) as calls:
        await _refuse_the_unusable(aio, calls.client)
        yield RedisStreams(calls, prefix, instance)


@asynccontextmanager
async def open_redis_socket(aio: AsyncioThread, path: Path, prefix: str, instance: str) -> AsyncIterator[RedisStreams]:
    """The streams on the server behind a unix socket, which nobody else uses: what earlier coordinators held is free."""
    async with _opened(_Calls(aio, {"path": str(path), "connection_class": UnixDomainSocketConnection})) as calls:
        await calls(_free, calls.client, prefix)
        yield RedisStreams(calls, prefix, instance)


@asynccontextmanager
async def _opened(calls: _Calls) -> AsyncIterator[_Calls]:
    try:
        yield calls
    finally:
        await calls.close()


async def _free(client: Redis, prefix: str) -> None:
    # The queue too: its entries are held by consumers that are gone, and the store knows every task that belongs in it.
    left = [f"{prefix}:store", f"{prefix}:queued", f"{prefix}:instances", *(f"{prefix}:queue:{level}" for level in LEVELS)]
    left += [key.decode() async for key in client.scan_iter(match=f"{_literal(prefix)}:lease:*", count=1000)]
    await client.delete(*left)


def _literal(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "*?[]^\\" else letter for letter in text)


async def _refuse_the_unusable(aio: AsyncioThread, client: Redis) -> None:
    try:
        about = await aio.run(client.info, "server")
        memory = await aio.run(client.info, "memory")
    except AuthenticationError as error:
        raise Misconfigured(KEY, f"the server refuses user or password: {error}") from error
    except ResponseError as error:
        raise Misconfigured(KEY, f"the server refuses: {error}") from error
    except (RedisError, OSError) as error:
        log.warning("streams_unreachable", error=str(error), remedy=f"tasks wait until the server of {KEY} answers")
        return
    found = tuple(int(part) for part in str(about["redis_version"]).split(".")[:2])
    if found < OLDEST:
        raise Misconfigured(KEY, f"the server is version {about['redis_version']}: {'.'.join(map(str, OLDEST))} is the oldest")
    if (policy := memory.get("maxmemory_policy", "noeviction")) != "noeviction":
        log.warning("streams_may_be_evicted", policy=policy, remedy="set the server's maxmemory-policy to noeviction")
