"""Keepers hear that they are offline and when they are back; users that a job fails, that a deposit runs low; all once."""

from __future__ import annotations

from dataclasses import replace

import trio
from eth_utils.address import to_checksum_address
from trio.testing import MockClock

from consensus import ecdsa
from consensus.codec import keccak
from consensus.lifecycle import TaskState
from coordinator.alerts import Alerts
from coordinator.health import KeeperWatch, UserWatch
from coordinator.store.memory import MemoryStore
from coordinator.store.records import KeeperRecord, KeeperSeen, Task
from node.infra.chain_memory import MemoryChain
from node.infra.clock import TrioClock
from tests.consensus.test_rules import Known
from tests.coordinator.factory import CHAIN, OWNER, make_job, make_task
from tests.coordinator.told import Told

KEEPER, OTHER = (ecdsa.address_of(keccak(name)) for name in (b"keeper", b"other"))
FACTS = Known(peers={"peer": KEEPER, "other": OTHER})


class Place:
    """A store, two channels, and what was told by them."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.clock = TrioClock()
        self.store = store or MemoryStore()
        self.telegram, self.mail = Told(), Told()
        self.alerts = Alerts(self.store, self.clock, telegram=self.telegram, mail=self.mail)

    async def seen(self, address: bytes = KEEPER, peer: str = "peer", chain_id: int = 31337) -> None:
        now = int(self.clock.now())
        await self.store.save_keeper(KeeperSeen(chain_id, address, peer, "0.2.0", now, now, 0))

    async def people(self, address: bytes = KEEPER, chain_id: int = 31337) -> None:
        record = KeeperRecord(chain_id, address, name="ours", email="keeper@example.org", chat_id="42")
        await self.store.save_keeper_form(record)

    async def watch_keepers(self, nursery: trio.Nursery) -> None:
        await nursery.start(self.alerts.run)
        await nursery.start(KeeperWatch(self.store, FACTS, self.alerts, self.clock).run)


NAME = to_checksum_address(KEEPER)


async def test_a_keeper_offline_for_ten_minutes_is_told_once_and_again_when_it_is_back(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    place = Place()
    await place.people()
    await place.watch_keepers(nursery)
    for _ in range(5):
        await place.seen()
        await trio.sleep(60)
    await trio.sleep(500)
    assert not place.telegram.messages
    await trio.sleep(3600)
    assert place.telegram.subjects == place.mail.subjects == [f"TriggerX: keeper {NAME} is offline"]
    assert [to for to, _, _ in place.telegram.messages + place.mail.messages] == ["42", "keeper@example.org"]
    await place.seen()
    await trio.sleep(60)
    assert place.telegram.subjects[1:] == place.mail.subjects[1:] == [f"TriggerX: keeper {NAME} is online again"]
    await trio.sleep(700)
    assert len(place.telegram.messages) == 3  # the next outage


async def test_a_keeper_known_before_a_restart_counts_but_is_first_given_time_to_be_heard(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store = MemoryStore()
    before = Place(store)
    await before.people()
    await before.seen()
    await before.people(OTHER)
    await before.seen(OTHER, "other")
    await trio.sleep(5000)  # nobody watches
    place = Place(store)
    place.clock = TrioClock(before.clock.now())
    await place.watch_keepers(nursery)
    await trio.sleep(100)
    now = int(place.clock.now())
    await store.save_keeper(KeeperSeen(31337, OTHER, "other", "0.2.0", now, now, 0))
    assert not place.telegram.messages
    await trio.sleep(300)
    assert place.telegram.subjects == [f"TriggerX: keeper {NAME} is offline"]


async def test_two_coordinators_tell_a_keeper_once(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    store = MemoryStore()
    places = [Place(store), Place(store)]
    await places[0].people()
    await places[0].seen()
    for place in places:
        await place.watch_keepers(nursery)
    await trio.sleep(2000)
    await places[0].seen()
    await trio.sleep(60)
    told = [subject for place in places for subject in place.telegram.subjects]
    assert sorted(told) == [f"TriggerX: keeper {NAME} is offline", f"TriggerX: keeper {NAME} is online again"]


async def test_a_keeper_of_two_chains_is_one_keeper(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    place = Place()
    for chain_id in (31337, 10):
        await place.people(chain_id=chain_id)
        await place.seen(chain_id=chain_id)
    await place.watch_keepers(nursery)
    await trio.sleep(300)
    await place.seen()
    await trio.sleep(400)
    assert not place.telegram.messages  # heard of on one of them
    await trio.sleep(400)
    assert len(place.telegram.messages) == len(place.mail.messages) == 1


async def test_who_left_the_registry_is_left_in_peace(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    place = Place()
    await place.people()
    await place.seen(peer="former peer")
    await place.watch_keepers(nursery)
    await trio.sleep(3600)
    assert not place.telegram.messages
    assert not await place.store.alerts()


# users


class Counting(MemoryChain):
    reads = 0

    async def balance(self, owner: bytes) -> int:
        self.reads += 1
        return await super().balance(owner)


class Users(Place):
    """One owner with one job, and a deposit."""

    async def begin(self, nursery: trio.Nursery, *, email: str = "user@example.org") -> None:
        await self.store.add_job(make_job())
        await self.store.set_email(OWNER, email, 0)
        self.chain = Counting(self.clock)
        self.chain.ledger.deposit(OWNER, 10**18)
        self.watch = UserWatch(self.store, {CHAIN: self.chain}, self.alerts, self.clock, low_balance_executions=3)
        await nursery.start(self.alerts.run)
        await nursery.start(self.watch.run)

    async def ended(self, number: int, state: TaskState, reason: str = "", **changes: object) -> None:
        """The job's task of this number ends."""
        task: Task = replace(make_task(make_job(), number), state=state, reason=reason, **changes)  # type: ignore[arg-type]
        self.store._tasks[task.id] = task
        self.store._by_job.setdefault(task.job_id, []).append(task.id)
        self.watch.task_ended(task)
        await trio.sleep(20)


START = 1_700_000_000


async def test_a_user_hears_of_the_first_failure_after_success_only(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    users = Users()
    await users.begin(nursery)
    for second in (10, 20, 30):
        await users.ended(START + second, TaskState.FAILED, "INNER_CALL_FAILED", detail="it reverts")
    [(to, subject, text)] = users.mail.messages
    assert to == "user@example.org"
    assert subject.startswith("TriggerX: job ")
    assert "INNER_CALL_FAILED" in text
    assert "it reverts" in text
    assert "What to do: Call the function yourself" in text
    assert not users.telegram.messages
    await users.ended(START + 40, TaskState.COMPLETED)
    await users.ended(START + 50, TaskState.FAILED, "NO_KEEPER")
    assert len(users.mail.messages) == 2


async def test_a_user_without_an_address_is_told_nothing_until_there_is_one(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    users = Users()
    await users.begin(nursery, email="")
    await users.ended(START + 10, TaskState.REJECTED, "REFUSED_BY_COMMITTEE")
    assert not await users.store.alerts()
    await users.store.set_email(OWNER, "user@example.org", 0)
    await users.ended(START + 20, TaskState.REJECTED, "REFUSED_BY_COMMITTEE")
    assert len(users.mail.messages) == 1


async def test_two_coordinators_tell_a_user_once(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    store = MemoryStore()
    both = [Users(store), Users(store)]
    for users in both:
        await users.begin(nursery)
    for users in both:
        await users.ended(START + 10, TaskState.FAILED, "NO_KEEPER")
    assert sum(len(users.mail.messages) for users in both) == 1


async def test_a_low_deposit_is_told_once_until_it_was_enough(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    users = Users()
    await users.begin(nursery)
    await users.ended(START + 10, TaskState.COMPLETED, cost=10**17)
    assert not users.mail.messages
    await trio.sleep(60)
    await users.ended(START + 20, TaskState.COMPLETED, cost=4 * 10**17)  # of 10^18: two more
    [(_, subject, text)] = users.mail.messages
    assert subject == f"TriggerX: your deposit on chain {CHAIN} is low"
    assert "enough for 2 more execution" in text
    assert "depositETH" in text
    await trio.sleep(60)
    await users.ended(START + 30, TaskState.FAILED, "INSUFFICIENT_BALANCE", predicted_cost=4 * 10**17)
    assert len(users.mail.messages) == 1  # said already, and in better words than a failed job's
    users.chain.ledger.deposit(OWNER, 10**19)
    await trio.sleep(60)
    await users.ended(START + 40, TaskState.COMPLETED, cost=4 * 10**17)
    assert not await users.store.alerts()
    assert len(users.mail.messages) == 1


async def test_a_deposit_is_not_read_with_every_task(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    users = Users()
    await users.begin(nursery)
    began = trio.current_time()
    for second in range(10, 400, 10):
        await users.ended(START + second, TaskState.COMPLETED, cost=1)
    assert users.chain.reads <= (trio.current_time() - began) / 60 + 1


async def test_a_flood_of_ended_tasks_waits_in_a_bounded_place(autojump_clock: MockClock) -> None:
    users = Users()
    watch = UserWatch(users.store, {}, users.alerts, users.clock)
    task = make_task(make_job(), START + 10)
    for _ in range(5000):
        watch.task_ended(task)


async def test_an_open_alert_of_a_job_that_is_over_is_closed(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    users = Users()
    await users.begin(nursery)
    await users.ended(START + 10, TaskState.FAILED, "NO_KEEPER")
    await users.store.open_alert("job:99", "of a job that is no more", 0)
    assert len(await users.store.alerts()) == 2
    await trio.sleep(30)
    assert list(await users.store.alerts()) == ["job:7"]


async def test_jobs_that_fail_for_ever_do_not_hide_one_that_works_again(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    users = Users()
    for number in range(2000):
        job = await users.store.add_job(make_job(10_000 + number))
        await users.store.open_alert(f"job:{job.id}", "of a job that always fails", 0)
    await users.begin(nursery)
    await users.ended(START + 10, TaskState.FAILED, "NO_KEEPER")
    assert "job:7" in await users.store.alerts()
    await users.ended(START + 20, TaskState.COMPLETED)
    await trio.sleep(120)
    assert "job:7" not in await users.store.alerts()
    assert len(await users.store.alerts()) == 2000
