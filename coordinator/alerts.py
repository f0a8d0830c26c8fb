"""Tells people what is wrong, once an outage, and that it is over: by Telegram and e-mail, however long these take to answer."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import structlog
import trio

from consensus.errors import Failed, Transient
from coordinator.settings import AlertSettings
from coordinator.store.port import Store
from coordinator.streams.port import Streams
from node.infra.clock import Clock
from node.infra.keystore import read_password
from node.infra.mail import Mail
from node.infra.retry import RetryAfter, full_jitter
from node.infra.telegram import open_telegram

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

log = structlog.get_logger(__name__)

TIMEOUT = "ALERT_TIMEOUT"

_WAITING = 1000  # messages to be sent by one channel: a whole network's keepers, each once, and room
_WAITING_EACH = 100  # and to one recipient: who has a thousand failing jobs takes nobody else's room
_AT_ONCE = 2  # a slow recipient's server must not hold up the others
_SEND_S = 60.0  # above the sums of the channels' own timeouts; a message that takes longer is tried again
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 300.0
_BURST = 20  # messages that one recipient gets at a stretch,
_REFILL_S = 60.0  # and then one in this time
_RECIPIENTS = 4096  # whose allowance is remembered
_LEASE_S = 24 * 3600.0  # of an outage of the store, which cannot say itself who tells of it


@dataclass(frozen=True, slots=True)
class Recipient:
    """Where somebody is told: a Telegram chat, a mail address, both, or (empty) neither."""

    chat_id: str = ""
    email: str = ""

    def __bool__(self) -> bool:
        return bool(self.chat_id or self.email)


@dataclass(frozen=True, slots=True)
class Notice:
    """What somebody is told: one line, and what to do about it."""

    subject: str
    text: str


class Channel(Protocol):
    """One way to people."""

    async def send(self, to: str, subject: str, text: str) -> None:
        """Raises `Transient` when it may work later, `RetryAfter` when the server said when, and `Failed` when this recipient
        cannot be reached."""
        ...


class Alerts:
    """Outages by name. Whoever of several coordinators opens one first in the store tells of it; so with its end.

    Sending goes on in the background (`run`), with growing pauses while the process lives. What is said later of an outage
    replaces what could not be sent before: the end's text tells of the beginning too.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        telegram: Channel | None = None,
        mail: Channel | None = None,
        streams: Streams | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._streams = streams
        self._channels = {
            name: Outbox(name, channel) for name, channel in (("telegram", telegram), ("mail", mail)) if channel is not None
        }
        self._untold: dict[str, int | None] = {}  # outages told of though the store was away: their lease on the streams

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sends until cancelled."""
        async with trio.open_nursery() as nursery:
            for outbox in self._channels.values():
                nursery.start_soon(outbox.run)
            task_status.started()

    async def begin(self, outage: str, notice: Notice, to: Iterable[Recipient], *, always: bool = False) -> bool:
        """Tells of an outage unless that was done; True when it is told now.

        Raises `Transient` when the store is away. With `always` it does not: then the streams say who tells, and if they
        are away too, everybody does.
        """
        try:
            first = await self._store.open_alert(outage, notice.text, int(self._clock.now()))
        except Transient:
            if not always:
                raise
            first = await self._first_without_store(outage)
        if first:
            log.warning("outage_began", outage=outage, notice=notice.subject)
            self._tell(outage, notice, to)
        return first

    async def end(self, outage: str, notice: Callable[[int | None], Notice] | None, to: Iterable[Recipient]) -> bool:
        """Tells that an outage is over, unless that was done or nobody was told of it; True when it is told now.

        `notice` is given the second (UTC) the outage was told of, None where only this process knew; without it nobody is
        told. Raises `Transient`.
        """
        since = await self._store.close_alert(outage)
        untold = outage in self._untold
        lease = self._untold.pop(outage, None)
        if lease is not None and self._streams is not None:
            try:
                await self._streams.release(f"alert:{outage}", lease)
            except Transient as error:  # it runs out by itself
                log.warning("lease_not_released", lease=outage, code=error.code)
        if since is None and not untold:
            return False
        log.info("outage_ended", outage=outage)
        if notice is not None:
            self._tell(outage, notice(since), to)
        return True

    def counts(self) -> Counter[tuple[str, str]]:
        """Messages by (channel, what became of them: sent, refused, dropped, failures to be tried again)."""
        found: Counter[tuple[str, str]] = Counter()
        for name, outbox in self._channels.items():
            found.update({(name, outcome): count for outcome, count in outbox.counts.items()})
        return found

    async def _first_without_store(self, outage: str) -> bool:
        if outage in self._untold:
            return False
        lease: int | None = None
        if self._streams is not None:
            try:
                lease = await self._streams.acquire(f"alert:{outage}", _LEASE_S)
                if lease is None:
                    return False
            except Transient as error:
                log.warning("nobody_to_ask_who_tells", outage=outage, code=error.code)
        self._untold[outage] = lease
        return True

    def _tell(self, outage: str, notice: Notice, to: Iterable[Recipient]) -> None:
        for recipient in to:
            for name, address in (("telegram", recipient.chat_id), ("mail", recipient.email)):
                if address and name in self._channels:
                    self._channels[name].put(outage, address, notice)


@dataclass(slots=True)
class _Delivery:
    outage: str
    to: str
    notice: Notice
    due: float
    pause: float = _FIRST_PAUSE_S

    @property
    def key(self) -> tuple[str, str]:
        return self.outage, self.to


class Outbox:
    """What waits to be sent by one channel: the oldest first, one message an outage and recipient, bounded."""

    def __init__(self, name: str, channel: Channel) -> None:
        self._name = name
        self._channel = channel
        self._waiting: dict[tuple[str, str], _Delivery] = {}
        self._sending: set[tuple[str, str]] = set()
        self._allowances: OrderedDict[str, tuple[float, float]] = OrderedDict()  # messages left, as of when
        self._silent_until = float("-inf")
        self._changed = trio.Event()
        self.counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._sending)

    def put(self, outage: str, to: str, notice: Notice) -> None:
        """Replaces what waits for the same recipient about the same outage; the oldest gives way when there is no room."""
        self._add(_Delivery(outage, to, notice, trio.current_time()))

    def _add(self, delivery: _Delivery) -> None:
        self._waiting.pop(delivery.key, None)
        same = [key for key in self._waiting if key[1] == delivery.to]
        if len(same) >= _WAITING_EACH or len(self._waiting) >= _WAITING:
            oldest = same[0] if len(same) >= _WAITING_EACH else next(iter(self._waiting))
            del self._waiting[oldest]
            self.counts["dropped"] += 1
            log.error("alert_dropped", channel=self._name, outage=oldest[0])
        self._waiting[delivery.key] = delivery
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(_AT_ONCE):
                nursery.start_soon(self._work)

    async def _work(self) -> None:
        while True:
            delivery = await self._next()
            try:
                await self._send(delivery)
            finally:
                self._sending.discard(delivery.key)
                self._wake()

    async def _next(self) -> _Delivery:
        while True:
            changed, now = self._changed, trio.current_time()
            free = [d for d in self._waiting.values() if d.key not in self._sending]
            due, delivery = min(((self._due(d, now), i) for i, d in enumerate(free)), default=(float("inf"), -1))
            if due <= now:
                found = self._waiting.pop(free[delivery].key)
                self._sending.add(found.key)
                self._take(found.to, now)
                return found
            with trio.move_on_at(due):
                await changed.wait()

    def _due(self, delivery: _Delivery, now: float) -> float:
        left, at = self._allowances.get(delivery.to, (float(_BURST), now))
        return max(delivery.due, self._silent_until, at + (1 - left) * _REFILL_S)

    def _take(self, to: str, now: float) -> None:
        left, at = self._allowances.pop(to, (float(_BURST), now))
        self._allowances[to] = (min(_BURST, left + (now - at) / _REFILL_S) - 1, now)
        if len(self._allowances) > _RECIPIENTS:
            self._allowances.popitem(last=False)

    async def _send(self, delivery: _Delivery) -> None:
        notice = delivery.notice
        try:
            with trio.fail_after(_SEND_S):
                await self._channel.send(delivery.to, notice.subject, notice.text)
        except Failed as error:
            self.counts["refused"] += 1
            log.warning("alert_refused", channel=self._name, outage=delivery.outage, code=error.code, detail=error.detail)
        except RetryAfter as error:
            self._silent_until = trio.current_time() + error.seconds
            self._again(delivery, error, error.seconds)
        except Transient as error:
            self._again(delivery, error, full_jitter(delivery.pause))
        except trio.TooSlowError:
            self._again(delivery, Transient(TIMEOUT, f"no answer in {_SEND_S:.0f} s"), full_jitter(delivery.pause))
        else:
            self.counts["sent"] += 1
            log.info("alert_sent", channel=self._name, outage=delivery.outage, notice=notice.subject)

    def _again(self, delivery: _Delivery, error: Transient, pause: float) -> None:
        self.counts["failed"] += 1
        log.warning(
            "alert_not_sent", channel=self._name, outage=delivery.outage, code=error.code, detail=error.detail, again_in_s=pause
        )
        if delivery.key in self._waiting:  # something newer is to be said of it
            return
        delivery.due = trio.current_time() + pause
        delivery.pause = min(2 * delivery.pause, _LONGEST_PAUSE_S)
        self._add(delivery)


@asynccontextmanager
async def open_alerts(
    settings: AlertSettings, store: Store, clock: Clock, streams: Streams | None = None
) -> AsyncIterator[Alerts]:
    """Alerts by the channels that are configured; dials nothing. `run` it. Raises `Misconfigured` for unreadable secrets."""
    async with AsyncExitStack() as stack:
        telegram = mail = None
        if (bot := settings.telegram) is not None:
            token = read_password(bot.token_file, key="alerts.telegram.token_file")
            telegram = await stack.enter_async_context(open_telegram(token, bot.api))
        if (smtp := settings.mail) is not None:
            password = read_password(smtp.password_file, key="alerts.mail.password_file") if smtp.password_file else None
            mail = Mail(smtp.host, smtp.port, smtp.security, smtp.sender, user=smtp.user, password=password)
        yield Alerts(store, clock, telegram=telegram, mail=mail, streams=streams)


def platform(settings: AlertSettings) -> Recipient:
    """Who hears of the platform's own outages."""
    return Recipient(settings.platform_chat, settings.platform_email)
