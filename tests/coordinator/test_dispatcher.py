"""From a stored task to one keeper that executes it, whoever falls silent, refuses or dies on the way."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from consensus.codec import keccak
from consensus.lifecycle import TaskState
from consensus.messages import Task
from consensus.triggers import Moments
from coordinator.attempts import DispatchPolicy
from p2p.network import PeerId
from tests.coordinator.world import (
    Behaviour,
    FakeKeeper,
    World,
    executes,
    is_silent,
    only_acknowledges,
    open_world,
    refuses,
)


async def test_a_task_is_published_ahead_and_executed_at_its_second(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        job_id = await world.post()
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [TaskState.EXECUTED], job_id)
        created_at = world.ledger.state.jobs[job_id].created_at
        assert task.trigger_id == created_at + 10
        assert task.stages["published"] <= (task.trigger_id - 4) * 1000
        assert task.stages["acknowledged"] < (task.trigger_id - 4) * 1000
        assert task.stages["executed"] == pytest.approx(task.trigger_id * 1000, abs=20)
        assert (task.attempt, task.successful, task.number) == (1, True, 1)
        assert task.execution_tx is not None
        assert task.executed_at == task.trigger_id


async def test_silence_brings_another_keeper_after_the_first_ones_deadline(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        for keeper in world.keepers:
            keeper.behaviour = silent_once(world)
        job_id = await world.post()
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [TaskState.EXECUTED], job_id)
        first, second = await world.attempts(task)
        assert (first.code, second.code) == ("NO_ACKNOWLEDGEMENT", "")
        assert first.performer != second.performer
        assert second.not_before > first.deadline
        assert first.published_ms is not None
        assert first.ended_ms is not None
        assert first.ended_ms - first.published_ms == pytest.approx(30_000, abs=50)
        assert second.created_ms - first.ended_ms == pytest.approx(1_000, abs=50)


def silent_once(world: World) -> Behaviour:
    async def behave(keeper: FakeKeeper, task: Task, source: PeerId) -> None:
        if task.authorisation.attempt > 1:
            await executes(keeper, task, source)

    return behave


async def test_a_refusal_moves_the_task_on_at_once_but_not_its_window(autojump_clock: MockClock) -> None:
    async with open_world() as world:

        async def refuse_once(keeper: FakeKeeper, task: Task, source: PeerId) -> None:
            if task.authorisation.attempt == 1:
                await keeper.refuse(task, source, "RPC_UNREACHABLE")
            else:
                await executes(keeper, task, source)

        for keeper in world.keepers:
            keeper.behaviour = refuse_once
        job_id = await world.post()
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [TaskState.EXECUTED], job_id)
        first, second = await world.attempts(task)
        assert (first.code, first.detail) == ("RPC_UNREACHABLE", "because")
        assert first.ended_ms is not None
        assert first.ended_ms < first.not_before * 1000
        assert second.created_ms - first.ended_ms == pytest.approx(1_000, abs=50)
        assert second.not_before == first.deadline + 1


async def test_four_silent_keepers_fail_the_task_with_that_reason(autojump_clock: MockClock) -> None:
    async with open_world(keepers=5) as world:
        for keeper in world.keepers:
            keeper.behaviour = is_silent
        job_id = await world.post()
        [task] = await world.ended(job_id)
        attempts = await world.attempts(task)
        assert (task.state, task.reason) == (TaskState.FAILED, "NO_ACKNOWLEDGEMENT")
        assert len({a.performer for a in attempts}) == len(attempts) == 4
        assert world.clock.now() > attempts[-1].deadline


async def test_an_acknowledgement_without_execution_is_named(autojump_clock: MockClock) -> None:
    async with open_world(policy=DispatchPolicy(ack_timeout=5, retries=(1,), window=10, settle=5)) as world:
        for keeper in world.keepers:
            keeper.behaviour = only_acknowledges
        job_id = await world.post()
        [task] = await world.ended(job_id)
        attempts = await world.attempts(task)
        assert (task.state, task.reason) == (TaskState.FAILED, "NO_EXECUTION")
        assert [a.code for a in attempts] == ["NO_EXECUTION", "NO_EXECUTION"]
        assert all(a.ended_ms is not None and a.ended_ms > a.deadline * 1000 for a in attempts)


async def test_a_chain_that_moves_past_the_deadline_says_so_without_waiting(autojump_clock: MockClock) -> None:
    async with open_world(policy=DispatchPolicy(ack_timeout=5, retries=(), window=10, settle=500)) as world:
        for keeper in world.keepers:
            keeper.behaviour = only_acknowledges
        job_id = await world.post()
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [TaskState.ACKNOWLEDGED], job_id)
        [attempt] = await world.attempts(task)
        await world.clock.sleep_until(attempt.deadline + 1)
        world.ledger.mine()
        [task] = await world.ended(job_id)
        assert task.reason == "NO_EXECUTION"
        assert world.clock.now() < attempt.deadline + 5


async def test_one_keeper_cannot_call_a_task_hopeless_but_two_can(autojump_clock: MockClock) -> None:
    async with open_world() as world:

        async def lies_once(keeper: FakeKeeper, task: Task, source: PeerId) -> None:
            if task.authorisation.attempt == 1:
                await keeper.refuse(task, source, "HUB_REFUSED", transient=False)
            else:
                await executes(keeper, task, source)

        for keeper in world.keepers:
            keeper.behaviour = lies_once
        await world.until(lambda tasks: [t.state for t in tasks] == [TaskState.EXECUTED], await world.post())
        for keeper in world.keepers:
            keeper.behaviour = refuses("HUB_REFUSED", transient=False)
        [task] = await world.ended(await world.post())
        assert (task.state, task.reason, task.attempt) == (TaskState.FAILED, "HUB_REFUSED", 2)


async def test_a_refusal_counts_only_from_the_keeper_that_has_the_task(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        told: list[Task] = []

        async def others_refuse(keeper: FakeKeeper, task: Task, source: PeerId) -> None:
            told.append(task)
            for other in world.keepers:
                if other is not keeper:
                    await other.refuse(task, source, "HUB_REFUSED", transient=False)
            await executes(keeper, task, source)

        for keeper in world.keepers:
            keeper.behaviour = others_refuse
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [TaskState.EXECUTED], await world.post())
        assert task.attempt == 1
        assert len(told) == 1


async def test_unknown_reasons_of_keepers_do_not_become_codes(autojump_clock: MockClock) -> None:
    async with open_world(policy=DispatchPolicy(ack_timeout=5, retries=(), window=10, settle=5)) as world:
        for keeper in world.keepers:
            keeper.behaviour = refuses("X" * 64)
        [task] = await world.ended(await world.post())
        assert task.reason == "INTERNAL"
        assert task.detail == "X" * 64 + ": because"


async def test_without_keepers_a_task_fails_by_name(autojump_clock: MockClock) -> None:
    async with open_world(keepers=0) as world:
        [task] = await world.ended(await world.post())
        assert (task.state, task.reason) == (TaskState.FAILED, "NO_KEEPER")


async def test_a_keeper_that_comes_online_in_time_is_given_the_task(autojump_clock: MockClock) -> None:
    async with open_world(keepers=0) as world:
        job_id = await world.post()
        await world.until(lambda tasks: len(tasks) == 1, job_id)
        await trio.sleep(20)
        await world.add_keepers(1)
        await trio.sleep(1)  # the registry's event has to be followed before its check-in counts
        await world.hear_keepers()
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [TaskState.EXECUTED], job_id)
        assert task.attempt == 1


async def test_an_owner_without_balance_is_told_so(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        job_id = await world.post()
        world.ledger.transact(lambda state, _: state.balances.clear() or [])
        [task] = await world.ended(job_id)
        assert (task.state, task.reason) == (TaskState.FAILED, "INSUFFICIENT_BALANCE")
        assert await world.attempts(task) == []


async def test_keepers_take_turns(autojump_clock: MockClock) -> None:
    async with open_world(keepers=4) as world:
        job_id = await world.post(interval=10, time_frame=80)
        tasks = await world.until(lambda tasks: len([t for t in tasks if t.state is TaskState.EXECUTED]) == 8, job_id)
        performers = [t.performer for t in tasks]
        assert len(set(performers[:4])) == len(set(performers[4:])) == 4


async def test_a_deleted_job_gets_no_further_attempt(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        for keeper in world.keepers:
            keeper.behaviour = is_silent
        job_id = await world.post()
        await world.until(lambda tasks: [t.state for t in tasks] == [TaskState.DISPATCHED], job_id)
        world.ledger.delete_job(job_id)
        [task] = await world.ended(job_id)
        assert (task.state, task.reason, task.attempt) == (TaskState.FAILED, "JOB_INACTIVE", 1)


async def test_a_restart_republishes_the_same_bytes(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        for keeper in world.keepers:
            keeper.behaviour = is_silent
        job_id = await world.post()
        await world.until(lambda tasks: [t.state for t in tasks] == [TaskState.DISPATCHED], job_id)
        await trio.sleep(0.1)
        world.kill()
        before = [list(keeper.heard) for keeper in world.keepers]
        assert all(len(heard) == 1 for heard in before)
        await trio.sleep(1)
        for keeper in world.keepers:
            keeper.behaviour = executes
        await world.start()
        await world.until(lambda tasks: [t.state for t in tasks] == [TaskState.EXECUTED], job_id)
        assert [keeper.heard for keeper in world.keepers] == [[heard[0], heard[0]] for heard in before]


async def test_an_outage_of_the_chain_delays_a_task_and_loses_nothing(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        job_id = await world.post()
        world.chain.go_offline()
        await world.until(lambda tasks: len(tasks) == 1, job_id)
        await trio.sleep(40)
        world.chain.go_online()
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [TaskState.EXECUTED], job_id)
        assert world.executed_seconds(job_id) == [task.trigger_id]


class _Attacks:
    """What a keeper does with each attempt, by the attempt's number."""

    def __init__(self, acts: list[str]) -> None:
        self.acts = acts

    async def __call__(self, keeper: FakeKeeper, task: Task, source: PeerId) -> None:
        match self.acts[(task.authorisation.attempt - 1) % len(self.acts)]:
            case "silent":
                return
            case "acknowledge":
                await keeper.acknowledge(task, source)
            case "refuse":
                await keeper.refuse(task, source, "RPC_UNREACHABLE")
            case "refuse late":
                await keeper.acknowledge(task, source)
                await trio.sleep(12)
                await keeper.refuse(task, source, "HUB_REFUSED", transient=False)
            case "execute silently":
                await keeper.execute(task)
            case "execute":
                await executes(keeper, task, source)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    acts=st.lists(
        st.sampled_from(["silent", "acknowledge", "refuse", "refuse late", "execute silently", "execute"]), min_size=1, max_size=4
    ),
    kills=st.lists(st.floats(min_value=0.01, max_value=60), max_size=4),
)
def test_windows_never_overlap_whatever_keepers_do_and_whenever_the_coordinator_dies(acts: list[str], kills: list[float]) -> None:
    async def scenario() -> None:
        policy = DispatchPolicy(ack_timeout=6, retries=(1, 2, 4), window=8, settle=5)
        async with open_world(keepers=4, policy=policy) as world:
            for keeper in world.keepers:
                keeper.behaviour = _Attacks(acts)
            job_id = await world.post(interval=7, time_frame=14)
            for pause in kills:
                await trio.sleep(pause)
                world.kill()
                await trio.sleep(0.5)
                await world.start()
            tasks = await world.until(
                lambda tasks: len(tasks) >= 1 and all(t.ended or t.state is TaskState.EXECUTED for t in tasks) and overdue(world),
                job_id,
            )
            assert len({t.trigger_id for t in tasks}) == len(tasks)
            seconds = world.executed_seconds(job_id)
            assert len(seconds) == len(set(seconds))
            for task in tasks:
                attempts = await world.attempts(task)
                assert [a.number for a in attempts] == list(range(1, len(attempts) + 1))
                assert len(attempts) <= 4
                for earlier, later in pairwise(attempts):
                    assert later.not_before > earlier.deadline
                if task.state is TaskState.FAILED:
                    assert task.reason
                if task.trigger_id in seconds:
                    assert task.state is not TaskState.FAILED
                messages = [Task.decode(a.message).authorisation for a in attempts]
                assert [(m.attempt, m.not_before, m.deadline) for m in messages] == [
                    (a.number, a.not_before, a.deadline) for a in attempts
                ]

    def overdue(world: World) -> bool:
        return world.clock.now() > max(j.created_at + j.time_frame for j in world.ledger.state.jobs.values()) + 2

    trio.run(scenario, clock=MockClock(autojump_threshold=0))


async def test_a_task_whose_job_was_changed_executes_what_fired(autojump_clock: MockClock) -> None:
    """Moved to another time and to another call while nobody had answered: the second that fired is still executed, as it was."""
    async with open_world() as world:
        for keeper in world.keepers:
            keeper.behaviour = silent_once(world)
        job_id = world.create(interval=0, time_frame=1000)
        created_at = world.ledger.state.jobs[job_id].created_at
        fired = world.posted(job_id, trigger=Moments((created_at + 10,)), time_frame=1000)
        [job] = await world.take_on(fired)
        await world.until(lambda tasks: [t.state for t in tasks] == [TaskState.DISPATCHED], job_id)
        later = replace(fired, trigger=Moments((created_at + 900,)), arguments="[77]", security=2)
        changed = await world.coordinator.jobs.update(job, later)
        assert changed.target.call != job.target.call
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [TaskState.EXECUTED], job_id)
        messages = [Task.decode(attempt.message) for attempt in await world.attempts(task)]
        assert len(messages) == 2
        assert {message.spec for message in messages} == {job.spec}
        assert {message.authorisation.call_hash for message in messages} == {keccak(job.target.call)}
        assert {message.authorisation.level for message in messages} == {0}
