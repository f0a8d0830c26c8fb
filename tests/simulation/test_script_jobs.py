"""Posted jobs with scripts, from the coordinator to the keepers and back: executed, declined, kept, certified and paid."""

from __future__ import annotations

import json
from dataclasses import replace

import trio
from trio.testing import MockClock

from consensus.fees import resource_fee
from consensus.lifecycle import TaskState
from consensus.messages import Task
from consensus.triggers import Interval
from coordinator.coordinator import Coordinator
from node.infra.chain import Log
from tests.node.fake_scripts import Prints
from tests.simulation.test_keepers import lying
from tests.simulation.test_network import Platform, coordinating, ended, posted
from tests.simulation.world import OWNER, TARGET, Script, World, open_world

CALL = b"\x01\x02\x03\x04" + bytes(32)
SCRIPT = "ipfs://bafkreif426p7t7takzhw3g6we2h6wsvf27p5jxj3gaiynqf22p3jvhx4la"
S = TaskState


async def post(
    world: World, coordinator: Coordinator, prints: Prints | Script, *, definition: int, interval: int, time_frame: int
) -> int:
    """A job with a script, as a client posts it."""
    target = bytes(20) if definition == 7 else TARGET
    job_id = world.ledger.create_job(OWNER, target=target, interval=interval, time_frame=time_frame, definition=definition)
    world.scripts[SCRIPT] = prints
    job = replace(
        posted(world, job_id, Interval(interval)),
        contract=target,
        arg_type=2,
        arguments="[]",
        script_url=SCRIPT,
        language="py",
        **({"function": ""} if definition == 7 else {}),
    )
    await coordinator.jobs.create([job], key_owner="simulation", trace_id="tgrx-simulation")
    return job_id


def counts(task: Task, log: Log | None) -> Prints:
    """Counts its runs, and has every second one make a call."""
    n = json.loads(task.storage or "{}").get("n", 0) + 1
    said = {"shouldExecute": n % 2 == 0, "metadata": {"reason": f"run {n} is odd"}, "storageUpdates": {"n": n}}
    if n % 2 == 0:
        said |= {"targetContract": "0x" + TARGET.hex(), "calldata": "0x" + CALL.hex()}
    return Prints(json.dumps(said).encode())


async def test_a_custom_script_that_counts_is_executed_declined_kept_and_charged(autojump_clock: MockClock) -> None:
    async with open_world(8) as world:
        liar, _gone, *honest = world.residents
        await world.start(liar, lying)
        for resident in honest:
            await world.start(resident)
        platform = Platform()
        async with coordinating(world, platform) as coordinator:
            job_id = await post(world, coordinator, counts, definition=7, interval=120, time_frame=720)
            tasks = await ended(world, platform.store, job_id)
            await trio.sleep(800)
            tasks = list(await platform.store.tasks_of_job(job_id, 100))
            states = [t.state for t in tasks]
            assert states == [S.NOT_EXECUTED, S.COMPLETED] * 3
            assert [t.detail for t in tasks[::2]] == ["run 1 is odd", "run 3 is odd", "run 5 is odd"]
            assert await platform.store.storage(job_id) == '{"n":6}'
            assert all(t.cost for t in tasks)
            assert await platform.store.run_charges(tasks[0].chain_id, 10) == []
            job = await platform.store.job(job_id)
            assert job is not None
            assert job.cost_actual == sum(t.cost or 0 for t in tasks)
            assert world.ledger.state.balances[OWNER] == 10**20 - job.cost_actual
            usage = await platform.store.usage(SCRIPT.removeprefix("ipfs://"))
            assert usage is not None
            assert [t.cost for t in tasks[::2]] == [resource_fee(3, usage)] * 3


async def test_a_scripts_arguments_are_executed_at_their_second(autojump_clock: MockClock) -> None:
    async with open_world(6) as world:
        for resident in world.residents:
            await world.start(resident)
        platform = Platform()
        async with coordinating(world, platform) as coordinator:
            job_id = await post(world, coordinator, Prints(b"[7]"), definition=2, interval=60, time_frame=300)
            tasks = await ended(world, platform.store, job_id)
        assert [t.state for t in tasks] == [S.COMPLETED] * 5
        assert {t.arguments for t in tasks} == {"[7]"}
        assert [t.executed_at for t in tasks] == [t.trigger_id for t in tasks]


async def test_a_script_that_prints_rubbish_ends_its_tasks_by_name(autojump_clock: MockClock) -> None:
    async with open_world(6) as world:
        for resident in world.residents:
            await world.start(resident)
        platform = Platform()
        async with coordinating(world, platform) as coordinator:
            job_id = await post(world, coordinator, Prints(b"<html>"), definition=2, interval=60, time_frame=60)
            [task] = await ended(world, platform.store, job_id)
        assert (task.state, task.reason) == (S.NOT_EXECUTED, "SCRIPT_OUTPUT")
        assert "<html>" in task.detail
