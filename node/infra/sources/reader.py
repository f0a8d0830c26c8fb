"""All sources behind one reader: what shares a request is read together."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from typing import NoReturn

import structlog
import trio

from consensus.conditions import ApiSource, Source, StaticSource, WebSocketSource
from consensus.errors import Failed, Transient
from consensus.numbers import number
from node.infra.addresses import parse_url
from node.infra.chain import Chain
from node.infra.compute import Compute, Threads
from node.infra.fetch import UNREACHABLE, Fetcher
from node.infra.retry import doubling, full_jitter
from node.infra.sources.answers import Answer, parse_answer
from node.infra.sources.onchain import ChainReader, EncodeCall
from node.infra.sources.websockets import Budget, listen

log = structlog.get_logger(__name__)

Problem = Failed | Transient
Value = Decimal | Failed | Transient
"""A number, or why there is none."""
Heard = Sequence[Answer] | Failed | Transient
"""New messages of a WebSocket, oldest first; or why there are none for now."""

_INLINE_BYTES = 8 * 1024  # parsing more than this is a thread's
_HEAR_EVERY_S = 0.1  # a feed that talks more often is heard so often
_BACKLOG = 64  # messages between two hearings: of more the oldest are left out
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_HEALTHY_S = 60.0  # a connection that lived this long is renewed with the first pause


class Sources:
    """Errors are `Failed` with code SOURCE_REFUSED or SOURCE_UNUSABLE, and `Transient` with code SOURCE_UNREACHABLE.

    `encode_call` is `node.arguments.encode_call`; `compute` takes large answers off the event loop.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        chains: Mapping[int, Chain],
        encode_call: EncodeCall,
        *,
        compute: Compute | None = None,
        timeout_s: float = 10.0,
        max_message: int = 262_144,
    ) -> None:
        self._fetcher = fetcher
        self._chains = ChainReader(chains, encode_call)
        self._compute = compute or Threads()
        self._timeout_s = timeout_s
        self._max_message = max_message
        self._budget = Budget()

    async def read(self, source: Source) -> Decimal:
        """The source's value now. A WebSocket is connected to, and the first message that has the value taken."""
        value = (await self.read_each([source]))[source]
        if isinstance(value, Decimal):
            return value
        raise value

    async def read_each(self, sources: Sequence[Source]) -> Mapping[Source, Value]:
        """The values of sources of one `place`: one request for all of them. Raises nothing."""
        try:
            match sources[0]:
                case StaticSource():
                    return {each: number(each.value) for each in sources if isinstance(each, StaticSource)}
                case ApiSource(url=url):
                    answer = await self.parse(await self._fetcher.get(url))
                    return {each: _value(answer, each) for each in sources}
                case WebSocketSource(url=url):
                    return await self._first_messages(url, sources)
                case source:
                    value = await self._chains.read(source)
                    return dict.fromkeys(sources, value)
        except (Failed, Transient) as error:
            return dict.fromkeys(sources, error)

    async def follow(self, url: str, hear: Callable[[Heard], Awaitable[None]]) -> NoReturn:
        """Keeps a connection to a WebSocket, anew with growing pauses when it ends; `hear` is told at most ten times a second."""
        pauses = iter(doubling(_FIRST_PAUSE_S, _LONGEST_PAUSE_S))
        while True:
            began = trio.current_time()
            messages: deque[str | bytes] = deque(maxlen=_BACKLOG)
            try:
                await self._hearing(url, messages, hear)
            except (Failed, Transient) as error:
                log.info("websocket_lost", place=self.host_of(WebSocketSource(url)), code=error.code, detail=error.detail)
                await hear(error)
            if trio.current_time() - began > _HEALTHY_S:
                pauses = iter(doubling(_FIRST_PAUSE_S, _LONGEST_PAUSE_S))
            await trio.sleep(full_jitter(next(pauses)))

    async def parse(self, body: bytes | str) -> Answer:
        """As `parse_answer`, off the loop when it is long."""
        return parse_answer(body) if len(body) < _INLINE_BYTES else await self._compute(parse_answer, body)

    @staticmethod
    def place(source: Source) -> str:
        """What is asked: sources of one place are read together."""
        match source:
            case ApiSource(url=url) | WebSocketSource(url=url):
                return url
        return repr(source)

    @staticmethod
    def host_of(source: Source) -> str:
        """Whom a request goes to, so that one slow host holds up its own only."""
        match source:
            case ApiSource(url=url) | WebSocketSource(url=url):
                try:
                    return parse_url(url, "http", "https", "ws", "wss").place
                except ValueError:  # refused when it is read
                    return url
            case StaticSource():
                return ""
        return f"chain {source.chain_id}"

    async def _hearing(self, url: str, messages: deque[str | bytes], hear: Callable[[Heard], Awaitable[None]]) -> None:
        arrived = trio.Event()

        async def take(message: str | bytes) -> None:
            messages.append(message)
            arrived.set()

        async def tell() -> None:
            nonlocal arrived
            while True:
                await arrived.wait()
                arrived = trio.Event()
                answers = await self._parsed(messages)
                if answers:
                    await hear(answers)
                await trio.sleep(_HEAR_EVERY_S)

        failure: Failed | Transient | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            try:
                await listen(self._fetcher, url, self._max_message, take, self._budget)
            except (Failed, Transient) as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _parsed(self, messages: deque[str | bytes]) -> list[Answer]:
        """Takes all there are. What is no JSON (greetings, heartbeats) says nothing."""
        answers: list[Answer] = []
        while messages:
            try:
                answers.append(await self.parse(messages.popleft()))
            except Failed:
                continue
        return answers

    async def _first_messages(self, url: str, sources: Sequence[Source]) -> Mapping[Source, Value]:
        """Listens until every source has had its value, or the time is up."""
        values: dict[Source, Value] = {}
        problem: Problem = Transient(UNREACHABLE, f"no message with the value within {self._timeout_s:g} s")

        async def take(message: str | bytes) -> None:
            try:
                answer = await self.parse(message)
            except Failed:
                return  # a greeting, a heartbeat
            for each in sources:
                if not isinstance(values.get(each), Decimal):
                    values[each] = _value(answer, each)
            if all(isinstance(value, Decimal) for value in values.values()):
                life.cancel()

        with trio.move_on_after(self._timeout_s) as life:
            try:
                await listen(self._fetcher, url, self._max_message, take, self._budget)
            except (Failed, Transient) as error:
                problem = error
        return {each: values.get(each, problem) for each in sources}


def latest(answers: Sequence[Answer], source: WebSocketSource) -> Decimal | None:
    """The newest value of the source in these messages; None when none has one: what was known before then stands."""
    for answer in reversed(answers):
        value = _value(answer, source)
        if isinstance(value, Decimal):
            return value
    return None


def _value(answer: Answer, source: Source) -> Value:
    assert isinstance(source, ApiSource | WebSocketSource)
    try:
        return answer.number(source.route)
    except Failed as error:
        return error
