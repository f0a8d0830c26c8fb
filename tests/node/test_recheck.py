"""A trigger as a keeper re-checks it by its own reading: what fired is seen, what did not is named, what lags waits."""

from __future__ import annotations

import msgspec
import pytest
import trio
from trio.testing import MockClock

from consensus.codec import keccak, words
from consensus.conditions import AllOf, AnyOf, ApiSource, BalanceSource, Comparison, OnCondition, StaticSource
from consensus.errors import Failed, Transient
from consensus.events import EventFilter, OnEvent, declared
from consensus.messages import JobSpec, Task
from consensus.triggers import LogSeen, names
from node.arguments import encode_call
from node.infra.chain_memory import Ledger, MemoryChain
from node.infra.clock import TrioClock
from node.infra.compute import inline
from node.infra.fetch import open_fetcher
from node.infra.settings import FetchSettings
from node.infra.sources import Sources
from node.recheck import Recheck, due_at, supported
from tests.consensus import samples
from tests.simulation.world import Readings

TOKEN = b"\x66" * 20
TRANSFER = "Transfer(address indexed from,address indexed to,uint256 value)"
TOPIC = declared(TRANSFER).topic
ELSEWHERE = 10
"""A chain that is not the target's."""


class Scene:
    """A keeper that reads two chains and what sources say."""

    def __init__(self, *, confirmations: int = 0, chain_confirmations: int = 0) -> None:
        self.clock = TrioClock()
        self.ledger = Ledger(self.clock, chain_id=ELSEWHERE)
        self.chain = MemoryChain(self.clock, ledger=self.ledger, confirmations=chain_confirmations)
        self.readings = Readings()
        self.recheck = Recheck({ELSEWHERE: self.chain}, self.readings, inline)
        self.trigger = OnEvent(ELSEWHERE, TOKEN, TRANSFER, (EventFilter("value", "7"),), confirmations)
        self.created_at = self.ledger.head.timestamp

    def spec(self) -> JobSpec:
        return msgspec.structs.replace(samples.EVENT_SPEC, trigger=self.trigger, created_at=self.created_at, time_frame=100)

    def transfer(self, value: int = 7, token: bytes = TOKEN, topic: bytes = TOPIC) -> LogSeen:
        tx_hash = self.ledger.emit(token, [topic, words(b"\x01" * 20), words(b"\x02" * 20)], words(value))
        return LogSeen(tx_hash, 0)

    def task(self, seen: LogSeen) -> Task:
        return samples.event_task(self.spec(), seen)

    async def look(self, seen: LogSeen) -> None:
        await self.recheck.look(self.task(seen), self.spec())


async def test_a_log_that_is_there_has_fired(autojump_clock: MockClock) -> None:
    scene = Scene()
    await trio.sleep(5)
    seen = scene.transfer()
    await scene.look(seen)
    await scene.recheck.wait(scene.task(seen), scene.spec())
    await scene.recheck.still(scene.task(seen), scene.spec())


async def test_a_log_that_the_job_does_not_ask_for_is_a_contradiction(autojump_clock: MockClock) -> None:
    scene = Scene()
    await trio.sleep(5)
    other = b"\x67" * 20
    for seen in (scene.transfer(8), scene.transfer(token=other), scene.transfer(topic=keccak(b"Approval"))):
        with pytest.raises(Failed, match="EVENT_MISMATCH"):
            await scene.look(seen)
    with pytest.raises(Failed, match="EVENT_MISMATCH"):
        await scene.look(LogSeen(scene.transfer().transaction, 1))


async def test_a_log_older_than_the_job_or_younger_than_its_end_is_a_contradiction(autojump_clock: MockClock) -> None:
    scene = Scene()
    early = scene.transfer()
    with pytest.raises(Failed, match="EVENT_MISMATCH"):
        await scene.look(early)
    await trio.sleep(101)
    late = scene.transfer()
    with pytest.raises(Failed, match="EVENT_MISMATCH"):
        await scene.look(late)


async def test_an_unknown_log_may_be_known_later(autojump_clock: MockClock) -> None:
    scene = Scene()
    with pytest.raises(Transient, match="EVENT_NOT_FOUND"):
        await scene.look(LogSeen(keccak(b"nothing"), 0))
    with pytest.raises(Transient, match="EVENT_NOT_FOUND"):
        await Recheck({}, scene.readings, inline).look(scene.task(scene.transfer()), scene.spec())


async def test_a_log_has_fired_once_it_is_as_deep_as_the_job_asks(autojump_clock: MockClock) -> None:
    scene = Scene(confirmations=2)
    await trio.sleep(5)
    seen = scene.transfer()
    for _ in range(2):
        with pytest.raises(Transient, match="EVENT_NOT_FOUND"):
            await scene.look(seen)
        scene.transfer()
    await scene.look(seen)


async def test_what_is_not_deep_yet_is_no_contradiction_yet(autojump_clock: MockClock) -> None:
    scene = Scene(chain_confirmations=1)
    await trio.sleep(5)
    wrong = scene.transfer(8)
    with pytest.raises(Transient, match="EVENT_NOT_FOUND"):
        await scene.look(wrong)
    scene.transfer()
    with pytest.raises(Failed, match="EVENT_MISMATCH"):
        await scene.look(wrong)


async def test_a_performer_waits_a_little_for_a_log_that_its_rpc_does_not_know_yet(autojump_clock: MockClock) -> None:
    scene = Scene()
    await trio.sleep(5)
    seen = scene.transfer()
    [sending] = scene.ledger.reorg(1, keep=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.recheck.wait, scene.task(seen), scene.spec())
        await trio.sleep(2)
        scene.ledger.submit(sending)
    began = trio.current_time()
    with pytest.raises(Transient, match="EVENT_NOT_FOUND"):
        await scene.recheck.wait(scene.task(LogSeen(keccak(b"never"), 0)), scene.spec())
    assert trio.current_time() - began <= 6


async def test_a_log_that_a_reorganisation_took_is_not_paid_for(autojump_clock: MockClock) -> None:
    scene = Scene()
    await trio.sleep(5)
    seen = scene.transfer()
    await scene.look(seen)
    await scene.recheck.still(scene.task(seen), scene.spec())
    [sending] = scene.ledger.reorg(1, keep=False)
    with pytest.raises(Transient, match="EVENT_REORGANISED"):
        await scene.recheck.still(scene.task(seen), scene.spec())
    scene.ledger.submit(sending)
    await scene.recheck.still(scene.task(seen), scene.spec())
    await trio.sleep(200)  # in another block, which is not of the job's life any more
    [sending] = scene.ledger.reorg(1, keep=False)
    scene.ledger.submit(sending)
    with pytest.raises(Transient, match="EVENT_REORGANISED"):
        await scene.recheck.still(scene.task(seen), scene.spec())


async def test_an_rpc_that_is_away_tells_nothing(autojump_clock: MockClock) -> None:
    scene = Scene()
    seen = scene.transfer()
    scene.chain.go_offline()
    with pytest.raises(Transient, match="RPC_UNREACHABLE"):
        await scene.look(seen)
    with pytest.raises(Transient, match="RPC_UNREACHABLE"):
        await scene.recheck.still(scene.task(seen), scene.spec())


# conditions

PRICE = ApiSource("https://prices.example.org/eth", "usd")
OTHER = ApiSource("https://prices.example.org/btc", "usd")


def condition(root: Comparison | AllOf | AnyOf) -> tuple[Task, JobSpec]:
    spec = msgspec.structs.replace(samples.CONDITION_SPEC, trigger=OnCondition(root))
    return samples.condition_task(spec), spec


ABOVE = condition(Comparison(PRICE, "greater_than", "2000", hysteresis="10"))


async def test_a_condition_holds_by_the_keepers_own_reading(autojump_clock: MockClock) -> None:
    scene = Scene()
    scene.readings.values[PRICE] = "2000.000000000000000000000000000001"
    await scene.recheck.look(*ABOVE)
    await scene.recheck.wait(*ABOVE)


async def test_hysteresis_counts_as_it_does_while_a_condition_holds(autojump_clock: MockClock) -> None:
    scene = Scene()
    scene.readings.values[PRICE] = "1995"
    await scene.recheck.look(*ABOVE)
    await trio.sleep(10)
    scene.readings.values[PRICE] = "1990"
    with pytest.raises(Transient, match="CONDITION_NOT_MET"):
        await scene.recheck.wait(*ABOVE)


async def test_a_condition_that_does_not_hold_now_may_have_held_then(autojump_clock: MockClock) -> None:
    scene = Scene()
    scene.readings.values[PRICE] = "1"
    with pytest.raises(Transient, match="CONDITION_NOT_MET"):
        await scene.recheck.look(*ABOVE)


async def test_a_condition_of_constants_that_does_not_hold_never_did(autojump_clock: MockClock) -> None:
    task, spec = condition(Comparison(StaticSource("1"), "greater_than", "2"))
    with pytest.raises(Failed, match="CONDITION_NOT_MET"):
        await Scene().recheck.look(task, spec)
    with pytest.raises(Failed, match="CONDITION_NOT_MET"):
        await Scene().recheck.wait(task, spec)


async def test_a_source_that_does_not_answer_matters_only_where_it_decides(autojump_clock: MockClock) -> None:
    scene = Scene()
    scene.readings.values[OTHER] = "5"
    away, there = Comparison(PRICE, "greater_than", "2000"), Comparison(OTHER, "equals", "5")
    await scene.recheck.look(*condition(AnyOf((away, there))))
    with pytest.raises(Transient, match="SOURCE_UNREACHABLE"):
        await scene.recheck.wait(*condition(AllOf((away, there))))
    with pytest.raises(Transient, match="CONDITION_NOT_MET"):
        await scene.recheck.wait(*condition(AllOf((away, Comparison(OTHER, "equals", "6")))))


async def test_a_performer_waits_a_little_for_a_condition(autojump_clock: MockClock) -> None:
    scene = Scene()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.recheck.wait, *ABOVE)
        await trio.sleep(2)
        scene.readings.values[PRICE] = "2001"


async def test_an_attester_that_looks_each_second_does_not_ask_each_second(autojump_clock: MockClock) -> None:
    scene = Scene()
    scene.readings.values[PRICE] = "1"
    for _ in range(30):
        with pytest.raises(Transient, match="CONDITION_NOT_MET"):
            await scene.recheck.look(*ABOVE)
        await trio.sleep(1)
    assert scene.readings.asked <= 11
    scene.readings.values[PRICE] = "2001"
    await trio.sleep(3)
    await scene.recheck.look(*ABOVE)
    asked = scene.readings.asked
    scene.readings.values[PRICE] = "1"  # it held after the firing: that is enough
    await trio.sleep(60)
    await scene.recheck.look(*ABOVE)
    assert scene.readings.asked == asked


async def test_a_balance_is_read_from_the_keepers_own_chain(autojump_clock: MockClock) -> None:
    scene = Scene()
    async with open_fetcher(FetchSettings()) as fetcher:
        recheck = Recheck({ELSEWHERE: scene.chain}, Sources(fetcher, {ELSEWHERE: scene.chain}, encode_call), inline)
        task, spec = condition(Comparison(BalanceSource(ELSEWHERE, b"\x01" * 20), "greater_equal", "5"))
        with pytest.raises(Transient, match="CONDITION_NOT_MET"):
            await recheck.look(task, spec)
        elsewhere, spec_elsewhere = condition(Comparison(BalanceSource(99, b"\x01" * 20), "greater_equal", "0"))
        with pytest.raises(Transient, match="SOURCE_UNREACHABLE"):
            await recheck.look(elsewhere, spec_elsewhere)
        private, spec_private = condition(Comparison(ApiSource("http://127.0.0.1/metadata"), "equals", "0"))
        with pytest.raises(Failed, match="SOURCE_REFUSED"):
            await recheck.look(private, spec_private)


# what belongs together


@pytest.mark.parametrize(
    ("spec", "types"), [(samples.SPEC, {1, 2, 7}), (samples.EVENT_SPEC, {3, 4}), (samples.CONDITION_SPEC, {5, 6})]
)
def test_a_trigger_is_of_its_jobs_type(spec: JobSpec, types: set[int]) -> None:
    for definition in range(1, 8):
        job = msgspec.structs.replace(spec, definition=definition)
        if definition in types:
            supported(job)
        else:
            with pytest.raises(Failed, match="NOT_DUE"):
                supported(job)


def test_only_a_schedules_trigger_id_is_a_second() -> None:
    later = samples.task(samples.authorisation(trigger_id=samples.Uint256(samples.NOW + 50)))
    assert due_at(later, samples.SPEC) == samples.NOW + 50
    assert due_at(samples.event_task(), samples.EVENT_SPEC) == samples.NOW
    assert due_at(samples.condition_task(), samples.CONDITION_SPEC) == samples.NOW


async def test_a_task_without_the_observation_of_its_firing_has_not_fired() -> None:
    bare = msgspec.structs.replace(samples.event_task(), observation=None)
    assert not names(samples.ON_EVENT, bare.authorisation.trigger_id, None)
    with pytest.raises(Failed, match="NOT_DUE"):
        await Recheck({}, Readings(), inline).look(bare, samples.EVENT_SPEC)
