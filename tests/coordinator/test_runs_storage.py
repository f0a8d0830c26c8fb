"""What coordinators take from packages of runs: a job's storage, and nothing from who contradicts himself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import pytest
import trio
from trio.testing import MockClock

from consensus.lifecycle import TaskState
from consensus.messages import Execution, PackageReference, Run, Task, Uint256
from coordinator.fees import cid_of
from coordinator.store.memory import MemoryStore
from node.arguments import encode_call
from node.scripts.outputs import action_of
from node.scripts.port import Call
from p2p.network import PeerId
from p2p.topics import EXECUTIONS, PACKAGES
from tests.consensus import samples
from tests.coordinator.scripts_world import SCRIPT, USAGE, Scripted, decides, declines, everybody, post
from tests.coordinator.world import TARGET, FakeKeeper, open_world

S = TaskState
PING = encode_call("ping(uint256)", "[7]")


async def test_what_a_script_keeps_is_given_to_the_next_run_once_it_is_certified(autojump_clock: MockClock) -> None:
    async with open_world() as world:

        def count(task: Task) -> bytes:
            known = json.loads(task.storage or "{}").get("n", 0)
            return decides(TARGET, PING, n=known + 1, gone=None)

        script = everybody(world, Scripted(count))
        job_id = await post(world, interval=30, time_frame=90)
        await world.until(lambda tasks: bool(tasks) and tasks[0].state is S.EXECUTED, job_id)
        await trio.sleep(2)
        assert await world.store.storage(job_id) == ""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.certify_all)
            await world.ended(job_id, 3)
            await trio.sleep(5)
            nursery.cancel_scope.cancel()
        assert await world.store.storage(job_id) == '{"n":3}'
        assert [storage for _, storage in script.inputs] == ["", '{"n":1}', '{"n":2}']
        assert await world.store.tasks_with_packages() == []
        assert await world.store.usage(cid_of(SCRIPT)) == USAGE


async def test_a_rejected_execution_keeps_nothing(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        everybody(world, Scripted(lambda _: decides(TARGET, PING, n=1)))
        job_id = await post(world)
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTED], job_id)
        await trio.sleep(1)
        world.settle(task.id, accepted=False)
        await world.ended(job_id)
        await trio.sleep(1)
        assert await world.store.storage(job_id) == ""
        assert await world.store.tasks_with_packages() == []


async def test_a_keeper_that_signs_two_packages_of_one_attempt_changes_nothing(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        script = everybody(world, Scripted(lambda _: decides(TARGET, PING, n=1)))
        job_id = await post(world)
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTED], job_id)
        package = script.published[0]
        keeper = next(k for k in world.keepers if k.address == task.performer)
        other = Run(bytes(32), decides(TARGET, PING, n=666), USAGE)
        action = action_of(package.task.job(), other.output)
        assert isinstance(action, Call)
        transaction = package.transaction  # type: ignore[union-attr]
        lie = keeper.signer.execution(package.task, world.ledger.domain, transaction, TARGET, PING, 0, other)
        await keeper.network.publish(EXECUTIONS, lie)
        await trio.sleep(1)
        world.settle(task.id)
        await world.ended(job_id)
        await trio.sleep(1)
        assert await world.store.storage(job_id) == ""


async def test_a_package_that_names_the_transaction_that_replaced_another_contradicts_nothing(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        script = everybody(world, Scripted(lambda _: decides(TARGET, PING, n=1)))
        job_id = await post(world)
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTED], job_id)
        package = script.published[0]
        assert isinstance(package, Execution)
        keeper = next(k for k in world.keepers if k.address == task.performer)
        fee = package.resource_fee
        dearer = keeper.signer.execution(package.task, world.ledger.domain, b"\x99" * 32, TARGET, PING, fee, package.run)
        await keeper.network.publish(EXECUTIONS, dearer)
        await trio.sleep(1)
        world.settle(task.id)
        await world.ended(job_id)
        await trio.sleep(1)
        assert await world.store.storage(job_id) == '{"n":1}'


@pytest.mark.parametrize("executes", [True, False])
async def test_a_task_that_a_stranger_gave_another_trace_id_is_the_same_task(autojump_clock: MockClock, executes: bool) -> None:
    """Anyone may publish it again, and the performer may have that copy first."""
    output = decides(TARGET, PING, n=1) if executes else declines(n=1)
    async with open_world() as world:
        script = Scripted(lambda _: output)

        async def takes_the_strangers(keeper: FakeKeeper, task: Task, source: PeerId) -> None:
            await script(keeper, msgspec.structs.replace(task, trace_id="another"), source)

        for keeper in world.keepers:
            keeper.behaviour = takes_the_strangers
        job_id = await post(world)
        if executes:
            [task] = await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTED], job_id)
            await trio.sleep(1)
            world.settle(task.id)
        [task] = await world.ended(job_id)
        await trio.sleep(1)
        assert task.state is (S.COMPLETED if executes else S.NOT_EXECUTED)
        assert await world.store.storage(job_id) == '{"n":1}'


class Silent:
    """Content that nobody has, and nobody says so."""

    def __init__(self) -> None:
        self.asked: list[PeerId] = []

    async def put(self, data: bytes) -> str:
        raise NotImplementedError

    async def keep(self, cid: str, data: bytes) -> None:
        raise NotImplementedError

    async def get(self, cid: str, *, max_bytes: int, peers: Sequence[PeerId] = ()) -> bytes:
        self.asked.extend(peers)
        await trio.sleep_forever()
        raise AssertionError


async def test_who_names_content_that_nobody_has_leaves_others_room(autojump_clock: MockClock) -> None:
    content = Silent()
    async with open_world(coordinators=()) as world:
        world.content = content
        await world.start()
        script = everybody(world, Scripted(lambda _: decides(TARGET, PING, n=1)))
        job_id = await post(world)
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTED], job_id)
        keeper = next(k for k in world.keepers if k.address == task.performer)
        attempt = script.published[0].task.authorisation.attempt
        for n in range(40):
            reference = PackageReference(task.chain_id, Uint256(task.id), attempt, f"{samples.CID[:-2]}{n:02}")
            await keeper.network.publish(PACKAGES, reference)
        await trio.sleep(10)  # half of what one may take
        assert content.asked == [keeper.peer_id] * 4


async def test_a_package_that_is_not_of_the_recorded_execution_says_nothing(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        script = Scripted(lambda _: decides(TARGET, PING, n=1))

        async def lies(keeper: FakeKeeper, task: Task, source: PeerId) -> None:
            """Executes one call, and publishes another."""
            await keeper.acknowledge(task, source)
            await world.clock.sleep_until(task.authorisation.not_before)
            sent = await keeper.wallet.send(
                await keeper.wallet.prepare_execution(task.authorisation, task.signature, TARGET, PING, 0)
            )
            other = Run(bytes(32), decides(TARGET, PING[:-1] + b"\x09", n=666), USAGE)
            package = keeper.signer.execution(task, world.ledger.domain, sent, TARGET, PING[:-1] + b"\x09", 0, other)
            await keeper.network.publish(EXECUTIONS, package)

        for keeper in world.keepers:
            keeper.behaviour = lies
        job_id = await post(world)
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTED], job_id)
        await trio.sleep(1)
        world.settle(task.id)
        await world.ended(job_id)
        await trio.sleep(1)
        assert await world.store.storage(job_id) == ""
        assert not script.published
        [task] = await world.tasks(job_id)
        assert task.arguments == ""


@pytest.mark.parametrize("when", ["before the package is settled", "after the certificate"])
async def test_a_coordinator_that_died_keeps_what_its_former_life_heard(autojump_clock: MockClock, when: str) -> None:
    store = MemoryStore()
    async with open_world(store=store) as world:
        everybody(world, Scripted(lambda _: decides(TARGET, PING, n=1)))
        job_id = await post(world)
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTED], job_id)
        await trio.sleep(1)
        assert await store.tasks_with_packages() == [task.id]
        if when == "after the certificate":
            packages = await store.packages(task.id)
            await store.drop_packages(task.id)
            world.settle(task.id)
            await world.ended(job_id)
            world.kill()
            for package in packages:
                await store.add_package(replace(package))
        else:
            world.kill()
            world.settle(task.id)
        await world.start()
        with trio.fail_after(60):
            while await store.storage(job_id) != '{"n":1}':  # noqa: ASYNC110
                await trio.sleep(0.1)
        assert await store.tasks_with_packages() == []
