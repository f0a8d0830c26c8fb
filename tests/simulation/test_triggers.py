"""Event and condition jobs on a network with one keeper lying and one gone: what fired is certified, what did not is not."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
import trio
from trio.testing import MockClock

from consensus.codec import keccak, words
from consensus.conditions import AllOf, ApiSource, Comparison, OnCondition, StaticSource
from consensus.events import EventFilter, OnEvent, declared
from consensus.messages import JobSpec, Task
from consensus.triggers import LogSeen
from node.infra.chain import ExecutionStatus
from node.infra.compute import inline
from node.recheck import Recheck
from node.workflow import Keeper, Parts
from p2p.topics import TASKS
from tests.simulation.test_keepers import lying
from tests.simulation.world import Resident, World, open_world

TOKEN = keccak(b"token")[:20]
TRANSFER = "Transfer(address indexed from,address indexed to,uint256 value)"
PRICE = ApiSource("https://prices.example.org/eth", "usd")
ABOVE = OnCondition(AllOf((Comparison(PRICE, "greater_than", "2000.5"), Comparison(StaticSource("1"), "equals", "1"))))
NEVER = OnCondition(Comparison(StaticSource("1"), "equals", "2"))


class Believing(Recheck):
    """Finds every trigger fired."""

    async def look(self, task: Task, job: JobSpec) -> None:
        return

    async def wait(self, task: Task, job: JobSpec) -> None:
        return

    async def still(self, task: Task, job: JobSpec) -> None:
        return


def credulous(parts: Parts) -> Keeper:
    """A keeper that executes whatever it is told to, so that only its committee stands between a forgery and its certificate."""
    keeper = Keeper(parts)
    for executor in keeper._performer._executors.values():
        executor._recheck = Believing({}, parts.sources, inline)
    return keeper


def on_transfer(world: World, value: int = 7) -> OnEvent:
    return OnEvent(world.ledger.domain.chain_id, TOKEN, TRANSFER, (EventFilter("value", str(value)),))


def transfer(world: World, value: int = 7) -> bytes:
    topics = [declared(TRANSFER).topic, words(b"\x01" * 20), words(b"\x02" * 20)]
    return world.ledger.emit(TOKEN, topics, words(value))


async def settled(world: World, task: Task) -> ExecutionStatus:
    with trio.fail_after(600):
        await world.ledger.wait_until(lambda: world.status(task) > ExecutionStatus.PENDING)
    return ExecutionStatus(world.status(task))


def votes(world: World, task: Task) -> set[str]:
    """What committee members said of a task, by reason."""
    trails = [t for r in world.residents if r.tracker for t in r.tracker.trails() if t.task_id == task.task_id]
    return {trail.facts["reason"] for trail in trails if "reason" in trail.facts}


async def _network(world: World, performer: Callable[[Parts], Keeper] = Keeper) -> Resident:
    """One lies, one is gone, and one performs; returns that one."""
    liar, _gone, first, *others = world.residents
    await world.start(liar, lying)
    await world.start(first, performer)
    for resident in others:
        await world.start(resident)
    return first


async def test_event_and_condition_jobs_are_executed_and_certified(autojump_clock: MockClock) -> None:
    async with open_world(10) as world:
        performer = await _network(world)
        event_job, condition_job = world.create_triggered_job(on_transfer(world)), world.create_triggered_job(ABOVE)
        world.readings.values[PRICE] = "2000.50001"
        for edge in range(1, 6):
            await trio.sleep(7)
            seen = world.event_task(event_job, transfer(world), 0, performer.address)
            held = world.condition_task(condition_job, edge, performer.address)
            for task in (seen, held):
                await world.publisher.publish(TASKS, task)
            assert await settled(world, seen) is await settled(world, held) is ExecutionStatus.CERTIFIED
        assert len(world.ledger.calls) == 10


async def test_a_firing_published_twice_executes_once(autojump_clock: MockClock) -> None:
    async with open_world(10) as world:
        performer = await _network(world)
        job = world.create_triggered_job(on_transfer(world))
        await trio.sleep(5)
        task = world.event_task(job, transfer(world), 0, performer.address)
        for _ in range(3):
            await world.publisher.publish(TASKS, task)
            await trio.sleep(2)
        assert await settled(world, task) is ExecutionStatus.CERTIFIED
        assert len(world.ledger.calls) == 1


def unknown(world: World) -> LogSeen:
    return LogSeen(keccak(b"no such transaction"), 0)


def other_value(world: World) -> LogSeen:
    return LogSeen(transfer(world, 8), 0)


def other_position(world: World) -> LogSeen:
    return LogSeen(transfer(world), 1)


@pytest.mark.parametrize(
    ("forge", "status", "reason"),
    [
        (unknown, ExecutionStatus.EXPIRED, "EVENT_NOT_FOUND"),
        (other_value, ExecutionStatus.REJECTED, "EVENT_MISMATCH"),
        (other_position, ExecutionStatus.REJECTED, "EVENT_MISMATCH"),
    ],
)
async def test_a_forged_log_gets_no_certificate(
    forge: Callable[[World], LogSeen], status: ExecutionStatus, reason: str, autojump_clock: MockClock
) -> None:
    async with open_world(10) as world:
        performer = await _network(world, credulous)
        job = world.create_triggered_job(on_transfer(world))
        await trio.sleep(5)
        seen = forge(world)
        task = world.event_task(job, seen.transaction, seen.position, performer.address)
        await world.publisher.publish(TASKS, task)
        assert await settled(world, task) is status
        assert reason in votes(world, task)


async def test_a_log_older_than_the_job_gets_no_certificate(autojump_clock: MockClock) -> None:
    async with open_world(10) as world:
        performer = await _network(world, credulous)
        old = transfer(world)
        await trio.sleep(5)
        job = world.create_triggered_job(on_transfer(world))
        task = world.event_task(job, old, 0, performer.address)
        await world.publisher.publish(TASKS, task)
        assert await settled(world, task) is ExecutionStatus.REJECTED
        assert "EVENT_MISMATCH" in votes(world, task)


@pytest.mark.parametrize(
    ("trigger", "price", "status", "reason"),
    [
        (ABOVE, "2000.5", ExecutionStatus.EXPIRED, "CONDITION_NOT_MET"),
        (ABOVE, None, ExecutionStatus.EXPIRED, "SOURCE_UNREACHABLE"),
        (NEVER, None, ExecutionStatus.REJECTED, "CONDITION_NOT_MET"),
    ],
)
async def test_a_condition_that_does_not_hold_gets_no_certificate(
    trigger: OnCondition, price: str | None, status: ExecutionStatus, reason: str, autojump_clock: MockClock
) -> None:
    async with open_world(10) as world:
        performer = await _network(world, credulous)
        if price is not None:
            world.readings.values[PRICE] = price
        task = world.condition_task(world.create_triggered_job(trigger), 1, performer.address)
        await world.publisher.publish(TASKS, task)
        assert await settled(world, task) is status
        assert reason in votes(world, task)


@pytest.mark.parametrize("forge", [unknown, other_value])
async def test_an_honest_performer_does_not_take_a_forged_log(
    forge: Callable[[World], LogSeen], autojump_clock: MockClock
) -> None:
    async with open_world(4) as world:
        performer = await _network(world)
        job = world.create_triggered_job(on_transfer(world))
        await trio.sleep(5)
        seen = forge(world)
        task = world.event_task(job, seen.transaction, seen.position, performer.address)
        await world.publisher.publish(TASKS, task)
        await trio.sleep(30)
        assert performer.tracker is not None
        [trail] = performer.tracker.trails()
        assert trail.outcome == ("EVENT_NOT_FOUND" if forge is unknown else "EVENT_MISMATCH")
        assert "accepted" not in trail.stages
        assert not world.ledger.calls


async def test_a_log_reorganised_away_before_it_is_paid_for_is_refused_by_name(autojump_clock: MockClock) -> None:
    async with open_world(4) as world:
        performer = await _network(world)
        job = world.create_triggered_job(on_transfer(world))
        await trio.sleep(5)
        tx_hash = transfer(world)
        later = int(world.clock.now()) + 8
        task = world._task(
            job, world.event_task(job, tx_hash, 0, b"\x01" * 20).authorisation.trigger_id, performer.address, later, 10,
            LogSeen(tx_hash, 0),
        )  # fmt: skip
        await world.publisher.publish(TASKS, task)
        await trio.sleep(4)
        world.ledger.reorg(1, keep=False)
        await trio.sleep(30)
        assert performer.tracker is not None
        [trail] = performer.tracker.trails()
        assert (trail.outcome, "accepted" in trail.stages) == ("EVENT_REORGANISED", True)
        assert not world.ledger.calls


async def _refusal(world: World, task: Task) -> str:
    """With which code the performer ended the task."""
    performer = next(r for r in world.residents if r.address == task.authorisation.performer)
    assert performer.tracker is not None
    await world.publisher.publish(TASKS, task)
    await trio.sleep(15)
    [trail] = [t for t in performer.tracker.trails() if t.task_id == task.task_id]
    return str(trail.outcome)


async def test_no_gas_is_paid_for_an_event_job_that_is_over_whatever_is_authorised(autojump_clock: MockClock) -> None:
    async with open_world(4) as world:
        performer = world.residents[0]
        await world.start(performer)
        job = world.create_triggered_job(on_transfer(world))
        await trio.sleep(5)
        seen = transfer(world)  # in the job's life, which is over when its confirmations are there
        await trio.sleep(job.time_frame)
        height = world.ledger.head.number
        assert await _refusal(world, world.event_task(job, seen, 0, performer.address)) == "JOB_INACTIVE"
        assert world.ledger.head.number == height


@pytest.mark.parametrize("differs", [{"created_at": 1}, {"time_frame": 10**6}, {"owner": b"\x09" * 20}])
async def test_no_gas_is_paid_for_a_spec_that_every_committee_would_find_contradicted(
    autojump_clock: MockClock, differs: dict[str, object]
) -> None:
    async with open_world(4) as world:
        performer = world.residents[0]
        await world.start(performer)
        job = msgspec.structs.replace(world.create_triggered_job(on_transfer(world)), **differs)
        await trio.sleep(5)
        height = world.ledger.head.number + 1
        assert await _refusal(world, world.event_task(job, transfer(world), 0, performer.address)) == "WRONG_RECORD"
        assert world.ledger.head.number == height
