"""Event jobs on a chain in memory, by a virtual clock: depth, reorganisations, restarts, outages, crowds."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from consensus.events import OnEvent
from coordinator.scheduler import event_chain
from coordinator.scheduler.event import RETURN_BLOCKS, EventScheduler
from coordinator.scheduler.event_chain import HELD_BLOCKS
from coordinator.scheduler.event_shards import LOADING_S
from coordinator.store.records import Fired, MissedPolicy, shard_of
from node.infra.chain import Log
from node.infra.chain_feed import REWIND_BLOCKS
from node.infra.chain_memory import Emitted, MemoryChain
from node.infra.chain_memory_ledger import Sending
from node.infra.clock import TrioClock
from tests.coordinator.events_world import CONTRACT, Desk, on_event, pinged, planned, scheduling, word

Clock = MockClock


class World:
    """A chain that makes a block every second, and its clock."""

    def __init__(self, confirmations: int = 0, latency: float = 0) -> None:
        self.clock = TrioClock()
        self.chain = MemoryChain(self.clock, confirmations=confirmations, latency=latency)
        self.ledger = self.chain.ledger
        self.desk = Desk()

    @property
    def now(self) -> float:
        return self.clock.now()

    async def blocks(self, count: int) -> None:
        """As many blocks, a second after each other."""
        for _ in range(count):
            await trio.sleep(1)
            self.ledger.mine()

    async def ping(self, value: int = 1, who: int = 1) -> bytes:
        """A log in a block of its own, a second on."""
        await trio.sleep(1)
        return self.ledger.emit(CONTRACT, *pinged(value, who))

    async def settle(self) -> None:
        """All that can happen without another block has happened."""
        await trio.sleep(3)


def seen(*transactions: bytes) -> set[tuple[bytes, int]]:
    return {(tx, 0) for tx in transactions}


async def test_each_matching_log_fires_once_and_others_do_not(autojump_clock: Clock) -> None:
    world = World()
    job = planned(5, on_event(("value", "7")), world.now)
    async with scheduling(world.chain, world.clock, world.desk, job) as scheduler:
        first, other, again = await world.ping(7), await world.ping(8), await world.ping(7)
        world.ledger.emit(b"\xdd" * 20, *pinged(7))
        await world.desk.until(lambda: len(world.desk.tasks) == 2)
        await world.settle()
    assert world.desk.fired(5) == seen(first, again)
    assert other not in {tx for tx, _ in world.desk.fired(5)}
    assert scheduler.fired == 2
    [task] = [f.task for f in world.desk.tasks.values() if f.task and f.task.id == world.desk.task_of(5, first)]
    assert task is not None
    assert (task.job_id, task.chain_id, task.priority, task.trace_id) == (5, 31337, 2, "trace")


async def test_positions_count_within_the_receipt(autojump_clock: Clock) -> None:
    world = World()
    log = Emitted(CONTRACT, *pinged(1))
    other = Emitted(b"\xdd" * 20, (word(1),), b"")
    async with scheduling(world.chain, world.clock, world.desk, planned(1, on_event(), world.now)):
        await trio.sleep(1)
        tx = world.ledger.emit_all([other, log, other, log])
        await world.desk.until(lambda: len(world.desk.tasks) == 2)
    assert world.desk.fired(1) == {(tx, 1), (tx, 3)}


async def test_nothing_of_the_jobs_second_or_before_and_nothing_after_its_end(autojump_clock: Clock) -> None:
    world = World()
    before = await world.ping()
    world.ledger.emit(CONTRACT, *pinged(2))  # the very second
    job = planned(1, on_event(), world.now, time_frame=3)
    later = planned(2, on_event(), world.now, starts_at=int(world.now) + 2)
    async with scheduling(world.chain, world.clock, world.desk, job, later):
        pings = [await world.ping() for _ in range(5)]
        await world.settle()
    assert before not in {tx for tx, _ in world.desk.fired(1)}
    assert world.desk.fired(1) == seen(*pings[:3])
    assert world.desk.fired(2) == seen(*pings[1:])


@pytest.mark.parametrize("of_chain", [0, 2])
async def test_a_match_waits_for_the_confirmations_of_the_job_and_at_least_the_chains(
    autojump_clock: Clock, of_chain: int
) -> None:
    world = World(of_chain)
    jobs = [planned(i, on_event(confirmations=i), world.now) for i in (1, 2, 5)]
    async with scheduling(world.chain, world.clock, world.desk, *jobs):
        await world.blocks(8)
        await world.ping()
        for depth in range(7):
            await world.settle()
            fired = {i for i in (1, 2, 5) if world.desk.fired(i)}
            assert fired == {i for i in (1, 2, 5) if max(i, of_chain) <= depth}
            await world.blocks(1)


async def test_a_match_whose_block_is_reorganised_away_before_it_is_deep_never_fires(autojump_clock: Clock) -> None:
    world = World()
    async with scheduling(world.chain, world.clock, world.desk, planned(1, on_event(confirmations=3), world.now)):
        await world.ping()
        await world.blocks(2)
        await world.settle()
        world.ledger.reorg(3, keep=False)
        stays = await world.ping()
        await world.blocks(10)
        await world.settle()
    assert world.desk.fired(1) == seen(stays)
    assert world.desk.cancelled == []


async def test_a_fired_log_that_does_not_come_back_cancels_its_task(autojump_clock: Clock) -> None:
    world = World()
    async with scheduling(world.chain, world.clock, world.desk, planned(1, on_event(), world.now)):
        gone = await world.ping()
        await world.desk.until(lambda: bool(world.desk.tasks))
        world.ledger.reorg(1, keep=False)
        await world.blocks(RETURN_BLOCKS - 2)  # the other branch is a block longer already
        await world.settle()
        assert world.desk.cancelled == []
        await world.blocks(3)
        await world.settle()
    assert world.desk.cancelled == [world.desk.task_of(1, gone)]


@pytest.mark.parametrize("later", [0, RETURN_BLOCKS + 10])
async def test_a_fired_log_that_is_mined_anew_is_the_same_firing_however_late(autojump_clock: Clock, later: int) -> None:
    world = World()
    async with scheduling(world.chain, world.clock, world.desk, planned(1, on_event(), world.now)):
        tx = await world.ping()
        await world.desk.until(lambda: bool(world.desk.tasks))
        [dropped] = world.ledger.reorg(1, keep=False)
        await world.blocks(later)
        await world.settle()
        assert bool(world.desk.cancelled) == bool(later)
        world.ledger.submit(dropped)
        await world.blocks(RETURN_BLOCKS + 5)
        await world.settle()
    assert world.desk.fired(1) == seen(tx)
    assert world.desk.answers == {Fired.NEW: 1, Fired.KNOWN: 1}
    assert world.desk.cancelled == []


async def test_a_log_that_comes_and_goes_while_it_waits_for_depth_again_leaves_its_task_cancelled(autojump_clock: Clock) -> None:
    world = World()
    async with scheduling(world.chain, world.clock, world.desk, planned(1, on_event(confirmations=3), world.now)):
        tx = await world.ping()
        await world.blocks(3)
        await world.desk.until(lambda: bool(world.desk.tasks))
        [dropped] = world.ledger.reorg(4, keep=False)
        world.ledger.submit(dropped)
        await world.settle()
        world.ledger.reorg(1, keep=False)
        await world.blocks(RETURN_BLOCKS + 3)
        await world.settle()
    assert world.desk.cancelled == [world.desk.task_of(1, tx)]


async def test_the_task_of_a_job_that_fires_once_is_cancelled_too_unless_the_log_is_there_after_all(
    autojump_clock: Clock,
) -> None:
    world = World()
    jobs = [planned(1, on_event(("value", "1")), world.now, recurring=False)]
    jobs += [planned(2, on_event(("value", "2")), world.now, recurring=False)]
    async with scheduling(world.chain, world.clock, world.desk, *jobs) as scheduler:
        gone, back = await world.ping(1), await world.ping(2)
        await world.desk.until(lambda: len(world.desk.tasks) == 2)
        assert list(scheduler.jobs()) == []
        sendings = world.ledger.reorg(2, keep=False)
        world.ledger.submit(sendings[1])
        other = await world.ping(1)
        await world.blocks(RETURN_BLOCKS + 3)
        await world.settle()
    assert world.desk.cancelled == [world.desk.task_of(1, gone)]
    assert world.desk.fired(2) == seen(back)
    assert other not in {tx for tx, _ in world.desk.fired(1)}


async def test_a_job_that_fires_once_fires_for_its_first_log_though_it_is_found_last(autojump_clock: Clock) -> None:
    world = World()
    created = world.now
    first = await world.ping()
    await world.blocks(300)
    async with scheduling(world.chain, world.clock, world.desk) as scheduler:
        await world.settle()
        world.chain._latency = 0.2  # the search takes a while
        scheduler.put(planned(1, on_event(), created, recurring=False))
        for _ in range(20):
            await world.ping()
        await world.desk.until(lambda: bool(world.desk.tasks))
        await world.settle()
    assert world.desk.fired(1) == seen(first)
    [firing] = world.desk.tasks.values()
    assert firing.spent


async def test_a_new_job_gets_what_came_between_its_creation_and_its_posting(autojump_clock: Clock) -> None:
    world = World()
    old = await world.ping()
    created = world.now
    between = [await world.ping() for _ in range(3)]
    async with scheduling(world.chain, world.clock, world.desk) as scheduler:
        await world.settle()
        scheduler.put(planned(1, on_event(), created))
        scheduler.put(planned(2, on_event(), created, missed=MissedPolicy.SKIP))
        await world.desk.until(lambda: world.desk.caught_up == {1, 2})
        new = await world.ping()
        await world.settle()
    assert world.desk.fired(1) == seen(*between, new)
    assert world.desk.fired(2) == seen(new)
    assert old not in {tx for tx, _ in world.desk.fired(1)}


async def test_after_a_restart_nothing_is_lost_and_what_waited_for_depth_is_read_again(autojump_clock: Clock) -> None:
    world = World()
    jobs = [planned(1, on_event(confirmations=5), world.now), planned(2, on_event(), world.now)]
    async with scheduling(world.chain, world.clock, world.desk, *jobs):
        await world.desk.until(lambda: world.desk.caught_up == {1, 2})
        pings = [await world.ping()]
        await world.blocks(1)
        await world.desk.until(lambda: world.desk.checkpoints.get("events:31337:2") == 2)
        assert world.desk.checkpoints["events:31337:1"] == 0
    pings += [await world.ping() for _ in range(3)]
    await world.blocks(REWIND_BLOCKS + 40)
    jobs = [planned(1, on_event(confirmations=5), 0 + world.now - 200, caught_up=True)]
    jobs += [planned(2, on_event(), world.now - 200, caught_up=True)]
    async with scheduling(world.chain, world.clock, world.desk, *jobs):
        await world.desk.until(lambda: len(world.desk.tasks) == 8)
        await world.settle()
    assert world.desk.fired(1) == world.desk.fired(2) == seen(*pings)


async def test_while_a_shard_is_loaded_its_checkpoint_stays_where_it_was_found(autojump_clock: Clock) -> None:
    """Its jobs come page by page: a crash in between must not lose the past of those that have not come yet."""
    world = World()
    created = world.now
    await world.blocks(1)
    tx = await world.ping()
    await world.blocks(REWIND_BLOCKS * 3)
    world.desk.checkpoints["events:31337:1"] = 1
    first, second = (planned(i, on_event(), created, caught_up=True) for i in (1, 17))
    async with scheduling(world.chain, world.clock, world.desk, first) as scheduler:
        await world.desk.until(lambda: bool(world.desk.tasks))
        await world.blocks(5)
        assert world.desk.checkpoints["events:31337:1"] == 1
        scheduler.put(second)
        await world.desk.until(lambda: len(world.desk.tasks) == 2)
        await world.blocks(int(LOADING_S) + 2)
        await world.settle()
        assert world.desk.checkpoints["events:31337:1"] == world.ledger.head.number
    assert world.desk.fired(17) == seen(tx)


async def test_a_reorganisation_while_nobody_watched_is_read_after_the_restart(autojump_clock: Clock) -> None:
    world = World()
    created = world.now
    async with scheduling(world.chain, world.clock, world.desk, planned(1, on_event(), created)):
        await world.blocks(10)
        await world.desk.until(lambda: world.desk.checkpoints.get("events:31337:1") == 10)
    world.ledger.reorg(5, keep=False)
    world.ledger.reorg(1, keep=False)
    # In a block below the checkpoint by now.
    del world.ledger.blocks[7:]
    tx = world.ledger.emit(CONTRACT, *pinged(1))
    assert world.ledger.found[tx] == 7
    await world.blocks(5)
    async with scheduling(world.chain, world.clock, world.desk, planned(1, on_event(), created, caught_up=True)):
        await world.desk.until(lambda: bool(world.desk.tasks))
    assert world.desk.fired(1) == seen(tx)


async def test_by_the_policy_skip_only_what_becomes_deep_from_now_on_counts(autojump_clock: Clock) -> None:
    world = World()
    created = world.now
    await world.blocks(2)
    world.desk.checkpoints["events:31337:1"] = 1
    await world.ping()
    await world.blocks(4)
    almost = await world.ping()
    await world.blocks(2)
    job = planned(1, on_event(confirmations=4), created, caught_up=True, missed=MissedPolicy.SKIP)
    async with scheduling(world.chain, world.clock, world.desk, job):
        await world.blocks(6)
        await world.settle()
    assert world.desk.fired(1) == seen(almost)


async def test_neither_an_outage_of_the_chain_nor_of_the_store_loses_or_repeats_anything(autojump_clock: Clock) -> None:
    world = World()
    pings = []
    async with scheduling(world.chain, world.clock, world.desk, planned(1, on_event(confirmations=1), world.now)):
        for step in range(60):
            if step % 15 == 5:
                world.chain.go_offline()
            if step % 15 == 12:
                world.chain.go_online()
            world.desk.away = step % 11 in (3, 4, 5)
            pings.append(await world.ping())
        world.desk.away = False
        world.chain.go_online()
        await world.blocks(2)
        await world.desk.until(lambda: len(world.desk.tasks) == 60)
        await world.settle()
    assert world.desk.fired(1) == seen(*pings)
    assert world.desk.answers == {Fired.NEW: 60}


async def test_of_a_thousand_logs_in_one_block_none_is_lost_and_the_store_is_held_for_a_bounded_time(
    autojump_clock: Clock,
) -> None:
    world = World()
    world.ledger.block_seconds = 1
    async with scheduling(world.chain, world.clock, world.desk, planned(1, on_event(), world.now)):
        await world.settle()
        log = Emitted(CONTRACT, *pinged(1))
        transactions = [world.ledger.emit_all([log] * 10) for _ in range(100)]
        await world.blocks(1)
        await world.desk.until(lambda: len(world.desk.tasks) == 1000)
    assert world.desk.fired(1) == {(tx, i) for tx in transactions for i in range(10)}
    assert max(world.desk.batches) <= 256


class CountingChain(MemoryChain):
    """Counts what is read of it."""

    def __init__(self, clock: TrioClock) -> None:
        super().__init__(clock)
        self.reads = 0

    async def reach(self) -> None:
        self.reads += 1
        await super().reach()

    async def logs(
        self, contracts: Sequence[bytes], topics: Sequence[bytes], from_block: int, to_block: int, *, tip: bytes | None = None
    ) -> Sequence[Log]:
        return await super().logs(contracts, topics, from_block, to_block, tip=tip)


async def reads_of_a_block(count: int) -> float:
    world = World()
    world.chain = CountingChain(world.clock)
    world.ledger = world.chain.ledger
    jobs = [
        planned(i, on_event(("value", str(i % 50)), contract=CONTRACT[:18] + i.to_bytes(2, "big")), world.now)
        for i in range(count)
    ]
    async with scheduling(world.chain, world.clock, world.desk, *jobs):
        await world.desk.until(lambda: len(world.desk.caught_up) == count)
        await world.settle()
        before = world.chain.reads
        for _ in range(20):
            await trio.sleep(1)
            world.ledger.emit(CONTRACT[:18] + bytes(2), *pinged(0))
        await world.settle()
    assert len(world.desk.tasks) == 20
    return (world.chain.reads - before) / 20


async def test_reads_of_a_block_do_not_grow_with_the_number_of_jobs(autojump_clock: Clock) -> None:
    one, many = await reads_of_a_block(1), await reads_of_a_block(3000)
    assert one == many <= 5


async def test_jobs_that_are_removed_or_replaced_fire_no_more_as_they_were(autojump_clock: Clock) -> None:
    world = World()
    jobs = [planned(i, on_event(("value", str(i))), world.now) for i in (1, 2)]
    async with scheduling(world.chain, world.clock, world.desk, *jobs) as scheduler:
        await world.desk.until(lambda: len(world.desk.caught_up) == 2)
        scheduler.remove(1)
        scheduler.remove(99)
        created = world.now
        scheduler.put(planned(2, on_event(("value", "3")), created, caught_up=True))
        assert (len(scheduler), list(scheduler.jobs())) == (1, [2])
        for value in (1, 2):
            await world.ping(value)
        three = await world.ping(3)
        await world.settle()
    assert world.desk.fired(1) == set()
    assert world.desk.fired(2) == seen(three)


async def test_a_shard_that_another_holds_is_dropped_and_its_checkpoint_left_alone(autojump_clock: Clock) -> None:
    world = World()
    jobs = [planned(i, on_event(), world.now) for i in (1, 2)]
    async with scheduling(world.chain, world.clock, world.desk, *jobs) as scheduler:
        await world.blocks(3)
        await world.desk.until(lambda: world.desk.checkpoints.get("events:31337:1") == 3)
        world.desk.fenced.add(shard_of(1))
        await world.ping()
        await world.blocks(4)
        await world.desk.until(lambda: world.desk.checkpoints["events:31337:2"] == 8)
        assert list(scheduler.jobs()) == [2]
    assert world.desk.checkpoints["events:31337:1"] == 3


async def test_a_trigger_that_makes_no_sense_is_passed_over(autojump_clock: Clock) -> None:
    world = World()
    scheduler = EventScheduler({31337: world.chain}, world.clock, world.desk.fire, world.desk, world.desk.cancel)
    scheduler.put(planned(1, OnEvent(31337, CONTRACT, "no declaration"), world.now))
    scheduler.put(planned(2, on_event(chain_id=5), world.now))
    assert len(scheduler) == 0


async def test_jobs_that_ask_for_great_depth_fire_when_it_is_reached_and_hold_nothing_in_memory(autojump_clock: Clock) -> None:
    world = World()
    depth = HELD_BLOCKS + 50
    async with scheduling(
        world.chain, world.clock, world.desk, planned(1, on_event(confirmations=depth), world.now)
    ) as scheduler:
        pings = [await world.ping() for _ in range(40)]
        await world.blocks(depth - 40)
        await world.settle()
        assert len(world.desk.tasks) == 0
        assert len(scheduler._watches[31337]._held) == 0
        await world.blocks(60)
        await world.settle()
    assert world.desk.fired(1) == seen(*pings)


async def test_a_crowd_of_matches_is_put_off_and_fires_all_the_same(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_chain, "MOST_HELD", 50)
    world = World()
    jobs = [planned(1, on_event(confirmations=30), world.now), planned(2, on_event(("value", "7"), confirmations=30), world.now)]
    async with scheduling(world.chain, world.clock, world.desk, *jobs) as scheduler:
        log = Emitted(CONTRACT, *pinged(1))
        transactions = []
        for _ in range(20):
            await trio.sleep(1)
            transactions.append(world.ledger.emit_all([log] * 9))
            await world.settle()
            assert len(scheduler._watches[31337]._held) <= 60
        seven = await world.ping(7)
        await world.blocks(80)
        await world.settle()
    assert world.desk.fired(1) == {(tx, i) for tx in transactions for i in range(9)} | seen(seven)
    assert world.desk.fired(2) == seen(seven)


@pytest.mark.parametrize("seed", range(25))
async def test_whatever_the_chain_does_what_stays_fires_once_and_what_goes_does_not_stay(
    autojump_clock: Clock, seed: int
) -> None:
    """An oracle reads the final chain. Reorganisations, re-mined transactions, outages, restarts, jobs that come and go."""
    chance = random.Random(seed)
    world = World(chance.choice([0, 0, 2]), latency=chance.choice([0, 0.05, 0.3]))
    created = world.now
    jobs = {
        1: planned(1, on_event(), created),
        2: planned(2, on_event(confirmations=4), created),
        3: planned(3, on_event(("who", "0x" + "00" * 19 + "02"), confirmations=chance.randrange(8)), created),
        18: planned(18, on_event(("value", "1")), created),
    }
    dropped: list[Sending] = []
    lives = 4 if seed % 2 else 1
    for life in range(lives):  # of a coordinator
        stored = [replace(job, caught_up=i in world.desk.caught_up) for i, job in jobs.items()]
        late = stored.pop() if chance.random() < 0.5 else None
        async with scheduling(world.chain, world.clock, world.desk, *stored) as scheduler:
            for _ in range(120 // lives):
                await trio.sleep(chance.choice([0.1, 1, 1, 4]))
                match chance.randrange(14):
                    case 12:
                        job = chance.choice(list(jobs.values()))  # put in anew, whatever is being read at this moment
                        scheduler.put(replace(job, caught_up=job.job_id in world.desk.caught_up))
                    case 13 if late is not None:
                        scheduler.put(late)
                        late = None
                    case 0 | 1 | 2 | 3:
                        world.ledger.emit(CONTRACT, *pinged(chance.randrange(3), chance.randrange(3)))
                    case 4 | 5 | 6:
                        world.ledger.mine(chance.randrange(1, 4))
                    case 7:
                        dropped += world.ledger.reorg(chance.randrange(1, 6), keep=chance.random() < 0.5)
                    case 8:
                        for sending in chance.sample(dropped, min(2, len(dropped))):
                            world.ledger.submit(sending)
                    case 9:
                        world.chain.go_offline()
                    case 10:
                        world.chain.go_online()
                    case 11:
                        world.desk.away = not world.desk.away
            world.chain.go_online()
            world.desk.away = False
            if late is not None:
                scheduler.put(late)
            if life == lives - 1:
                await world.blocks(40)
                await world.settle()
    canonical = [log for block in world.ledger.blocks for log in block.logs]
    times = {b.head.number: b.head.timestamp for b in world.ledger.blocks}
    for job_id in jobs:
        expected = set()
        for log in canonical:
            value, who = int.from_bytes(log.data, "big"), int.from_bytes(log.topics[1], "big")
            if times[log.block_number] > created and (job_id < 3 or (job_id == 3 and who == 2) or (job_id == 18 and value == 1)):
                expected.add((log.tx_hash, log.position))
        assert expected <= world.desk.fired(job_id)
        gone = {world.desk.task_of(job_id, *each) for each in world.desk.fired(job_id) - expected}
        assert not {world.desk.task_of(job_id, *each) for each in expected} & set(world.desk.cancelled)
        assert lives > 1 or gone <= set(world.desk.cancelled)  # what fired before a restart is the keepers' to notice
    assert world.desk.answers[Fired.NEW] == len(world.desk.tasks)
