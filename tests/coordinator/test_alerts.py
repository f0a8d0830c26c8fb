"""An outage is told once, however many coordinators see it and however long channels are away; nothing grows without bound."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from consensus.errors import Failed, Misconfigured, Transient
from coordinator.alerts import Alerts, Notice, Outbox, Recipient, open_alerts, platform
from coordinator.settings import AlertSettings, TelegramSettings
from coordinator.store.memory import MemoryStore
from coordinator.streams.memory import MemoryServer, MemoryStreams
from node.infra.clock import TrioClock
from node.infra.retry import RetryAfter
from tests.coordinator.told import Told

BOTH = Recipient("42", "ops@example.org")
AWAY = Notice("it is away", "since then; do this")


def over(since: int | None) -> Notice:
    return Notice("it is back", f"told at {since}")


class Absent(MemoryStore):
    """A store that is away when a test says so."""

    away = False

    async def open_alert(self, subject: str, text: str, at: int) -> bool:
        if self.away:
            raise Transient("DATABASE_BUSY")
        return await super().open_alert(subject, text, at)

    async def close_alert(self, subject: str) -> int | None:
        if self.away:
            raise Transient("DATABASE_BUSY")
        return await super().close_alert(subject)


async def test_of_two_coordinators_one_tells_of_an_outage_and_one_of_its_end(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store, telegram, mail = MemoryStore(), Told(), Told()
    both = [Alerts(store, TrioClock(), telegram=telegram, mail=mail) for _ in range(2)]
    for alerts in both:
        await nursery.start(alerts.run)
    assert [await alerts.begin("part:store", AWAY, [BOTH]) for alerts in both * 2] == [True, False, False, False]
    await trio.sleep(60)
    assert telegram.messages == [("42", "it is away", "since then; do this")]
    assert mail.messages == [("ops@example.org", "it is away", "since then; do this")]
    assert [await alerts.end("part:store", over, [BOTH]) for alerts in reversed(both)] == [True, False]
    await trio.sleep(60)
    assert telegram.subjects == mail.subjects == ["it is away", "it is back"]


async def test_a_restart_tells_of_nothing_again(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    store, telegram = MemoryStore(), Told()
    async with trio.open_nursery() as first_life:
        alerts = Alerts(store, TrioClock(), telegram=telegram)
        await first_life.start(alerts.run)
        await alerts.begin("keeper:1", AWAY, [BOTH])
        await trio.sleep(5)
        first_life.cancel_scope.cancel()
    again = Alerts(store, TrioClock(), telegram=telegram)
    await nursery.start(again.run)
    assert not await again.begin("keeper:1", AWAY, [BOTH])
    assert await again.end("keeper:1", over, [BOTH])
    await trio.sleep(5)
    assert telegram.subjects == ["it is away", "it is back"]


async def test_a_channel_that_is_away_gets_the_message_when_it_is_back(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    telegram = Told()
    telegram.failures.extend(Transient("TELEGRAM_UNREACHABLE") for _ in range(8))
    alerts = Alerts(MemoryStore(), TrioClock(), telegram=telegram)
    await nursery.start(alerts.run)
    await alerts.begin("part:mesh", AWAY, [BOTH])
    await trio.sleep(3600)
    assert telegram.subjects == ["it is away"]
    assert alerts.counts() == {("telegram", "failed"): 8, ("telegram", "sent"): 1}


async def test_an_end_replaces_a_beginning_that_was_never_sent(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    telegram = Told()
    telegram.failures.extend(Transient("TELEGRAM_UNREACHABLE") for _ in range(3))
    alerts = Alerts(MemoryStore(), TrioClock(), telegram=telegram)
    await nursery.start(alerts.run)
    await alerts.begin("part:mesh", AWAY, [BOTH])
    await trio.sleep(0.5)
    await alerts.end("part:mesh", over, [BOTH])
    await trio.sleep(3600)
    assert telegram.subjects == ["it is back"]


async def test_a_server_that_asks_for_silence_gets_it(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    telegram = Told()
    telegram.failures.append(RetryAfter("TELEGRAM_BUSY", "429", 90))
    alerts = Alerts(MemoryStore(), TrioClock(), telegram=telegram)
    await nursery.start(alerts.run)
    began = trio.current_time()
    for outage in range(5):
        await alerts.begin(f"keeper:{outage}", AWAY, [Recipient(str(outage))])
        await trio.sleep(1)
    await trio.sleep(600)
    assert len(telegram.messages) == 5
    assert sum(at - began < 90 for at in telegram.times) <= 1  # what was under way when it was asked


async def test_who_cannot_be_written_to_is_given_up_and_holds_up_nobody(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    mail = Told()
    mail.failures.append(Failed("MAIL_REFUSED", "550"))
    alerts = Alerts(MemoryStore(), TrioClock(), mail=mail)
    await nursery.start(alerts.run)
    await alerts.begin("job:1", AWAY, [Recipient(email="nobody@example.org")])
    await trio.sleep(1)
    await alerts.begin("job:2", AWAY, [Recipient(email="user@example.org")])
    await trio.sleep(600)
    assert [to for to, _, _ in mail.messages] == ["user@example.org"]
    assert alerts.counts()["mail", "refused"] == 1


async def test_a_channel_that_hangs_is_tried_again(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    telegram = Told(hangs=True)
    alerts = Alerts(MemoryStore(), TrioClock(), telegram=telegram)
    await nursery.start(alerts.run)
    await alerts.begin("part:mesh", AWAY, [BOTH])
    await trio.sleep(100)
    telegram.hangs = False
    await trio.sleep(200)
    assert telegram.subjects == ["it is away"]


async def test_one_recipient_is_not_flooded(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    telegram = Told()
    alerts = Alerts(MemoryStore(), TrioClock(), telegram=telegram)
    await nursery.start(alerts.run)
    for number in range(60):
        await alerts.begin(f"job:{number}", AWAY, [Recipient("42")])
    await alerts.begin("keeper:1", AWAY, [Recipient("7")])
    await trio.sleep(30)
    assert (len(telegram.to("42")), len(telegram.to("7"))) == (20, 1)
    await trio.sleep(3600)
    assert len(telegram.to("42")) == 60  # a minute each, and none lost


async def test_what_waits_is_bounded_and_the_oldest_gives_way(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    telegram = Told(hangs=True)
    outbox = Outbox("telegram", telegram)
    nursery.start_soon(outbox.run)
    await trio.testing.wait_all_tasks_blocked()
    for number in range(3000):
        outbox.put(f"job:{number}", str(number), AWAY)
    assert len(outbox) <= 1002
    assert outbox.counts["dropped"] == 2000
    for _ in range(3000):
        outbox.put("job:1", "1", AWAY)
    assert len(outbox) <= 1002


async def test_one_recipients_flood_takes_nobody_elses_room(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    telegram = Told()
    outbox = Outbox("telegram", telegram)
    outbox.put("part:store", "ops", AWAY)
    for number in range(3000):
        outbox.put(f"job:{number}", "flooder", AWAY)
    assert len(outbox) == 101
    nursery.start_soon(outbox.run)
    await trio.sleep(600)
    assert telegram.to("ops") == ["it is away"]


async def test_an_outage_of_the_store_itself_is_told_once_by_the_streams_word(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store, server, telegram = Absent(), MemoryServer(), Told()
    both = [Alerts(store, TrioClock(), telegram=telegram, streams=MemoryStreams(server, name)) for name in ("a", "b")]
    for alerts in both:
        await nursery.start(alerts.run)
    store.away = True
    with pytest.raises(Transient):
        await both[0].begin("keeper:1", AWAY, [BOTH])
    assert [await alerts.begin("part:store", AWAY, [BOTH], always=True) for alerts in both * 2] == [True, False, False, False]
    with pytest.raises(Transient):
        await both[0].end("part:store", over, [BOTH])
    store.away = False
    assert [await alerts.end("part:store", over, [BOTH]) for alerts in both] == [True, False]
    await trio.sleep(5)
    assert telegram.subjects == ["it is away", "it is back"]
    store.away = True  # the lease was given back
    assert await both[1].begin("part:store", AWAY, [BOTH], always=True)


async def test_with_nobody_to_ask_everybody_tells(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    store, telegram = Absent(), Told()
    store.away = True
    alerts = Alerts(store, TrioClock(), telegram=telegram)
    await nursery.start(alerts.run)
    assert await alerts.begin("part:store", AWAY, [BOTH], always=True)
    assert not await alerts.begin("part:store", AWAY, [BOTH], always=True)
    await trio.sleep(5)
    assert telegram.subjects == ["it is away"]


async def test_without_channels_nothing_is_sent_and_nothing_waits() -> None:
    async with open_alerts(AlertSettings(), MemoryStore(), TrioClock()) as alerts:
        assert await alerts.begin("part:store", AWAY, [BOTH])
        assert await alerts.end("part:store", None, [BOTH])
        assert not alerts.counts()


async def test_a_missing_token_is_the_operators_to_mend(tmp_path: Path) -> None:
    settings = AlertSettings(telegram=TelegramSettings(token_file=tmp_path / "none"))
    with pytest.raises(Misconfigured, match=r"alerts\.telegram\.token_file"):
        async with open_alerts(settings, MemoryStore(), TrioClock()):
            pass


def test_the_platforms_people_are_those_configured() -> None:
    assert platform(AlertSettings(platform_chat="-100", platform_email="ops@example.org")) == Recipient("-100", "ops@example.org")
    assert not platform(AlertSettings())
