"""Whole flows through a coordinator: linked jobs, conditions, check-ins, rewards, and what followers are told."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import msgspec
import pytest
import trio
from trio.testing import MockClock

from consensus.conditions import ApiSource, Comparison, OnCondition
from consensus.errors import Ignore, Reject
from consensus.lifecycle import TaskState
from consensus.triggers import EdgeSeen
from coordinator import points
from coordinator.attempts import DispatchPolicy
from coordinator.metrics import CoordinatorMetrics
from coordinator.store.records import JobStatus
from node.infra.chain_memory_rules import ATTESTER_UNIT, validation_share
from tests.coordinator.world import OWNER, World, executes, is_silent, open_world

S = TaskState


async def statuses(world: World, jobs: list[int]) -> list[JobStatus]:
    found = [await world.store.job(job_id) for job_id in jobs]
    return [job.status for job in found if job is not None]


async def linked(world: World, count: int = 3, via: str | None = None) -> list[int]:
    jobs = [world.create(interval=10, time_frame=1000) for _ in range(count)]
    await world.take_on(*(world.posted(job_id) for job_id in jobs), via=via)
    return jobs


async def test_the_next_job_begins_when_the_former_has_completed(autojump_clock: MockClock) -> None:
    async with open_world() as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.certify_all)
        jobs = [world.create(interval=10, time_frame=frame) for frame in (20, 100, 200)]
        await world.take_on(*(world.posted(job_id) for job_id in jobs))
        first = await world.ended(jobs[0], 2)
        assert [t.state for t in first] == [S.COMPLETED] * 2
        second = await world.until(lambda tasks: len(tasks) >= 1, jobs[1])
        created_at = world.ledger.state.jobs[jobs[1]].created_at
        assert created_at + 20 < second[0].trigger_id <= created_at + 40
        assert await world.tasks(jobs[2]) == []
        last = created_at + 100
        await world.until(lambda tasks: all(t.ended for t in tasks) and tasks[-1].trigger_id == last, jobs[1])
        third = await world.until(lambda tasks: len(tasks) >= 1, jobs[2])
        assert third[0].trigger_id > last
        assert await statuses(world, jobs) == [JobStatus.COMPLETED, JobStatus.COMPLETED, JobStatus.SCHEDULED]
        nursery.cancel_scope.cancel()


async def test_a_linked_job_begins_at_whichever_coordinator_holds_it(autojump_clock: MockClock) -> None:
    async with open_world(coordinators=("a", "b")) as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.certify_all)
        chains = []
        for n in range(4):
            jobs = [world.create(interval=5, time_frame=frame) for frame in (5, 40, 80)]
            await world.take_on(*(world.posted(job_id) for job_id in jobs), via="ab"[n % 2])
            chains.append(jobs)
        for jobs in chains:
            for job_id in jobs:
                await world.until(lambda tasks: len(tasks) >= 1, job_id)
        nursery.cancel_scope.cancel()


async def test_what_waits_for_a_job_that_is_deleted_never_begins(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        jobs = await linked(world)
        world.ledger.delete_job(jobs[0])
        await trio.sleep(60)
        assert await statuses(world, jobs) == [JobStatus.DELETED, JobStatus.FAILED, JobStatus.FAILED]
        assert [await world.tasks(job_id) for job_id in jobs[1:]] == [[], []]


URL = "https://price.example.org/eth"


def above(limit: str) -> OnCondition:
    return OnCondition(Comparison(ApiSource(URL), "greater_than", upper=limit))


async def test_a_condition_job_executes_on_each_edge_with_what_was_seen(autojump_clock: MockClock) -> None:
    async with open_world() as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.certify_all)
        world.sources.values[URL] = Decimal(90)
        job_id = world.create(interval=0, time_frame=10_000, definition=5)
        await world.take_on(world.posted(job_id, trigger=above("100")))
        for value, count in ((90, 0), (101, 1), (105, 1), (99, 1), (200, 2)):
            world.sources.values[URL] = Decimal(value)
            await trio.sleep(10)
            tasks = await world.tasks(job_id)
            assert len(tasks) == count
        tasks = await world.ended(job_id, 2)
        assert [(t.trigger_id, t.state) for t in tasks] == [(1, S.COMPLETED), (2, S.COMPLETED)]
        assert [t.observation.values for t in tasks if isinstance(t.observation, EdgeSeen)] == [("101",), ("200",)]
        assert all(t.executed_at is not None and t.executed_at - t.scheduled_at <= 2 for t in tasks)
        nursery.cancel_scope.cancel()


async def test_two_coordinators_fire_an_edge_once_and_watch_on_when_one_dies(autojump_clock: MockClock) -> None:
    async with open_world(coordinators=("a", "b")) as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.certify_all)
        world.sources.values[URL] = Decimal(90)
        jobs = [world.create(interval=0, time_frame=10_000, definition=5) for _ in range(6)]
        for job_id in jobs:
            await world.take_on(world.posted(job_id, trigger=above("100")), via="a")
        await trio.sleep(3)
        world.sources.values[URL] = Decimal(101)
        await trio.sleep(5)
        world.sources.values[URL] = Decimal(90)
        await trio.sleep(5)
        world.kill("a")
        await trio.sleep(10)
        world.sources.values[URL] = Decimal(102)
        for job_id in jobs:
            tasks = await world.ended(job_id, 2)
            assert [t.trigger_id for t in tasks] == [1, 2] == sorted(world.executed_seconds(job_id))
        nursery.cancel_scope.cancel()


async def test_a_condition_job_that_runs_once_ends_with_its_task(autojump_clock: MockClock) -> None:
    async with open_world() as world, trio.open_nursery() as nursery:
        nursery.start_soon(world.certify_all)
        world.sources.values[URL] = Decimal(1)
        job_id = world.create(interval=0, time_frame=10_000, definition=5, recurring=False)
        await world.take_on(world.posted(job_id, trigger=above("100")))
        await trio.sleep(3)
        for value in (101, 99, 101):
            world.sources.values[URL] = Decimal(value)
            await trio.sleep(10)
        [task] = await world.ended(job_id)
        assert task.state is S.COMPLETED
        assert await statuses(world, [job_id]) == [JobStatus.COMPLETED]
        nursery.cancel_scope.cancel()


async def test_an_executed_task_of_an_expired_non_timed_job_gets_no_attempt_beyond_its_life(autojump_clock: MockClock) -> None:
    async with open_world(policy=DispatchPolicy(ack_timeout=5, retries=(1, 2, 4), window=30, settle=5)) as world:
        for keeper in world.keepers:
            keeper.behaviour = is_silent
        world.sources.values[URL] = Decimal(1)
        job_id = world.create(interval=0, time_frame=60, definition=5)
        await world.take_on(world.posted(job_id, trigger=above("100")))
        await trio.sleep(20)
        world.sources.values[URL] = Decimal(101)
        [task] = await world.ended(job_id)
        job = await world.store.job(job_id)
        assert job is not None
        assert (task.state, task.reason) == (S.FAILED, "JOB_INACTIVE")
        attempts = await world.attempts(task)
        assert attempts
        assert all(a.deadline <= job.expires_at for a in attempts)


# --- the monitor


@pytest.mark.parametrize("coordinators", [("a",), ("a", "b")])
async def test_a_certificate_pays_once_however_many_monitors_read_it(
    autojump_clock: MockClock, coordinators: tuple[str, ...]
) -> None:
    async with open_world(coordinators=coordinators) as world:
        job_id = await world.post()
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTED], job_id)
        before = await world.store.user(OWNER)
        world.settle(task.id)
        [task] = await world.ended(job_id)
        await trio.sleep(20)
        cost, share = task.cost, validation_share(0)
        assert cost is not None
        records = {r.address: r for r in await world.store.keeper_records()}
        by_id = {k.id: k.address for k in await world.chain.keepers()}
        assert task.performer_id is not None
        performer, submitter = by_id[task.performer_id], by_id[1]
        expected: dict[bytes, int] = {submitter: share}
        for attester in (by_id[2], by_id[3]):
            expected[attester] = expected.get(attester, 0) + ATTESTER_UNIT
        expected[performer] = expected.get(performer, 0) + cost - share - 2 * ATTESTER_UNIT
        assert {a: r.rewards for a, r in records.items() if r.rewards} == expected
        assert sum(expected.values()) == cost
        assert sum(r.points for r in records.values()) == 3 * points.for_accepted(cost, 1)
        assert (records[performer].executed, records[by_id[2]].attested, records[by_id[3]].attested) == (1, 1, 1)
        after = await world.store.user(OWNER)
        assert before is not None
        assert after is not None
        assert after.points - before.points == cost


async def test_an_attester_that_has_left_is_named_and_paid_all_the_same(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        job_id = await world.post()
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTED], job_id)
        leaver = {k.id: k.address for k in await world.chain.keepers()}[3]
        world.ledger.exit(leaver)
        world.ledger.advance_epoch()
        world.settle(task.id)
        await world.ended(job_id)
        records = {r.address: r for r in await world.store.keeper_records()}
        assert records[leaver].attested == 1
        assert records[leaver].rewards >= ATTESTER_UNIT


async def test_followers_are_told_of_each_step_by_kind(autojump_clock: MockClock) -> None:
    async with open_world(policy=DispatchPolicy(ack_timeout=5, retries=(1,), window=10, settle=5)) as world:
        world.keepers[0].behaviour = world.keepers[1].behaviour = world.keepers[2].behaviour = is_silent
        [failed] = await world.ended(await world.post())
        for keeper in world.keepers:
            keeper.behaviour = executes
        job_id = await world.post()
        [done] = await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTED], job_id)
        world.settle(done.id)
        [done] = await world.ended(job_id)
        await trio.sleep(1)
        told = world.server.data.told
        assert [n.task_id for n in told["dispatched"]] == [failed.id, done.id]
        assert [(n.task_id, n.attempt) for n in told["retry"]] == [(failed.id, 2)]
        assert [(n.task_id, n.reason) for n in told["failed"]] == [(failed.id, "NO_ACKNOWLEDGEMENT")]
        assert [(n.task_id, n.state) for n in told["completed"]] == [(done.id, "completed")]


async def test_every_metric_is_served_by_a_running_coordinator(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        job_id = await world.post(interval=10, time_frame=100)
        await world.until(lambda tasks: len(tasks) == 2, job_id)
        await trio.sleep(4)  # the parts are looked at, the queue's length asked for
        metrics = CoordinatorMetrics("1.2.3")
        served = (await metrics.render(world.coordinator, world.store, world.keepers[0].network.counters)).decode()
        assert all(row.name.removesuffix("_total") in served for row in metrics.metrics.rows())
        for line in (
            'triggerx_coordinator_jobs{kind="time"} 1.0',
            'triggerx_coordinator_fired{kind="time"} 2.0',
            "triggerx_coordinator_shards 16.0",
            "triggerx_coordinator_instances 1.0",
            'triggerx_coordinator_keepers{chain="31337",state="online"} 3.0',
            'triggerx_coordinator_part_up{part="streams"} 1.0',
            "triggerx_coordinator_queue_backlog 0.0",
        ):
            assert line in served


# --- check-ins


async def test_a_check_in_over_http_counts_as_one_over_the_mesh_and_once(autojump_clock: MockClock) -> None:
    async with open_world(keepers=1) as world:
        keepers, keeper = world.coordinator.keepers, world.keepers[0]
        await trio.sleep(60)
        message = keeper.signer.check_in(world.ledger.domain, keeper.peer_id, "0.2.0", "docker", int(world.clock.now()))
        await keepers.check_in(message, keeper.peer_id)
        [seen] = keepers.all()
        assert (seen.version, seen.sandbox, seen.uptime_s, seen.last_seen) == ("0.2.0", "docker", 60, int(world.clock.now()))
        with pytest.raises(Ignore, match="REPLAY"):
            await keepers.check_in(message, keeper.peer_id)
        await trio.sleep(5)
        later = keeper.signer.check_in(world.ledger.domain, keeper.peer_id, "0.2.0", "docker", int(world.clock.now()))
        with pytest.raises(Ignore, match="UNKNOWN_PEER"):
            await keepers.check_in(later, "keeper-9")
        with pytest.raises(Reject, match="BAD_SIGNATURE"):
            await keepers.check_in(msgspec.structs.replace(later, version="6.6.6"), keeper.peer_id)
        assert await world.store.keepers() == keepers.all()


async def test_a_check_in_that_another_coordinator_took_is_known_here_soon(autojump_clock: MockClock) -> None:
    async with open_world(keepers=1, coordinators=("a", "b")) as world:
        a, b = (world.processes[name].coordinator.keepers for name in ("a", "b"))
        [seen] = a.all()
        await trio.sleep(400)
        newer = replace(seen, last_seen=int(world.clock.now()), version="9.9.9")
        await world.store.save_keeper(newer)
        await trio.sleep(11)
        assert a.all() == b.all() == [newer]
