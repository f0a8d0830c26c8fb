"""What the chain's events mean: rewards and points once, named attesters, and what followers and operators are told."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from consensus.lifecycle import TaskState
from coordinator import points
from coordinator.attempts import DispatchPolicy
from coordinator.metrics import CoordinatorMetrics
from node.infra.chain_memory_rules import ATTESTER_UNIT, validation_share
from tests.coordinator.world import OWNER, executes, is_silent, open_world

S = TaskState


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
