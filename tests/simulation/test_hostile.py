"""Hostile peers, keepers and dispatchers around an honest network: the honest tasks are executed and certified all the same."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from consensus.codec import keccak
from consensus.committee import Committee, of_task
from consensus.errors import Transient
from consensus.messages import Task, Vote
from node.arguments import encode_call
from node.decisions import Decision
from node.infra.chain import ExecutionStatus, Policy
from node.journal import Journal, Opinion, Subject
from node.signer import Signer
from node.workflow import Keeper, Parts
from p2p.topics import ANSWERS, EXECUTIONS, TASKS, VOTES, Answer, Taken
from tests.simulation.world import Resident, World, open_world


async def settled(world: World, task: Task) -> ExecutionStatus:
    with trio.fail_after(600):
        await world.ledger.wait_until(lambda: world.status(task) > ExecutionStatus.PENDING)
    return ExecutionStatus(world.status(task))


def drawn(world: World, task: Task, round_: int = 0) -> Committee:
    """The committee of an executed task."""
    record = world.ledger.state.executed[task.task_id].record
    epoch, block = world.ledger.state.epoch_of(record.block_number), world.ledger.block(record.block_number)
    assert epoch is not None
    assert block is not None
    return of_task(epoch, block.head.hash, round_, record.level, record.performer)


def resident_of(world: World, address: bytes) -> Resident:
    return next(r for r in world.residents if r.address == address)


def outcomes(resident: Resident) -> dict[int, str]:
    assert resident.tracker is not None
    return {trail.task_id: trail.outcome for trail in resident.tracker.trails()}


async def test_an_earlier_attempts_keeper_cannot_have_the_executing_ones_work_rejected(autojump_clock: MockClock) -> None:
    async with open_world(6) as world:
        envious, honest, *others = world.residents
        for resident in (honest, *others):
            await world.start(resident)
        spec = world.create_job()
        second = spec.created_at + 10
        first = world.task(spec, second, envious.address, attempt=1)
        task = world.task(spec, second, honest.address, attempt=2, window=30)
        # He was given the first attempt, executed nothing, and now says he did.
        lie = Signer(envious.operator, envious.bls_secret).execution(
            first, world.ledger.domain, keccak(b"never sent"), first.authorisation.target, _call(first), 0, None
        )
        network = world.mesh.join(envious.peer_id)
        await network.publish(EXECUTIONS, lie)
        await world.publisher.publish(TASKS, task)
        for _ in range(20):
            await trio.sleep(0.5)
            await network.publish(EXECUTIONS, lie)
        assert await settled(world, task) is ExecutionStatus.CERTIFIED
        await trio.sleep(120)
        assert {outcomes(r)[task.task_id] for r in (honest, *others)} == {"done"}


def _call(task: Task) -> bytes:
    job = task.job()
    return encode_call(job.function, job.arguments)


async def test_an_aggregator_that_answers_votes_with_rubbish_costs_nobody_his_duty(autojump_clock: MockClock) -> None:
    rubbish = dataclasses.replace(VOTES, encode_answer=lambda _: b"\xff\xff")

    async def accept(vote: Vote, source: str) -> Taken:
        return Taken()

    async with open_world(6) as world, trio.open_nursery() as nursery:
        for resident in world.residents:
            await world.start(resident)
        spec = world.create_job()
        task = world.task(spec, spec.created_at + 10, world.residents[0].address)
        await world.publisher.publish(TASKS, task)
        await world.ledger.wait_until(lambda: bool(world.ledger.calls))
        hostile = resident_of(world, drawn(world, task).members[0].address)
        world.kill(hostile)
        network = world.mesh.join(hostile.peer_id)

        async def serve() -> None:
            async with network.serve(rubbish, accept):
                await trio.sleep_forever()

        nursery.start_soon(serve)
        assert await settled(world, task) is ExecutionStatus.CERTIFIED
        record = world.ledger.state.executed[task.task_id].record
        assert world.ledger.head.timestamp < record.timestamp + world.ledger.round_seconds  # in the first round
        nursery.cancel_scope.cancel()


async def test_a_publisher_that_answers_with_rubbish_stops_no_execution(autojump_clock: MockClock) -> None:
    rubbish = dataclasses.replace(ANSWERS, encode_answer=lambda _: b"\xff\xff")

    async def accept(answer: Answer, source: str) -> Taken:
        return Taken()

    async with open_world(4) as world, world.publisher.serve(rubbish, accept):
        for resident in world.residents:
            await world.start(resident)
        spec = world.create_job()
        task = world.task(spec, spec.created_at + 10, world.residents[0].address)
        await world.publisher.publish(TASKS, task)
        assert await settled(world, task) is ExecutionStatus.CERTIFIED


async def test_strangers_who_repeat_a_task_and_take_no_answer_leave_room_for_others(autojump_clock: MockClock) -> None:
    async with open_world(4) as world:
        for resident in world.residents:
            await world.start(resident)
        performer = world.residents[0]
        spec = world.create_job()
        repeated = world.task(spec, spec.created_at + 600, performer.address, window=600)
        await world.publisher.publish(TASKS, repeated)
        await trio.sleep(1)
        for stranger in range(400):
            await world.mesh.join(f"stranger-{stranger}").publish(TASKS, repeated)
        await trio.sleep(1)
        task = world.task(spec, spec.created_at + 10, performer.address)
        await world.publisher.publish(TASKS, task)
        assert await settled(world, task) is ExecutionStatus.CERTIFIED
        assert world.ledger.head.timestamp < spec.created_at + 30


async def test_packages_without_a_record_leave_room_for_other_performers(autojump_clock: MockClock) -> None:
    async with open_world(6) as world:
        loud, honest, *others = world.residents
        for resident in (honest, *others):
            await world.start(resident)
        network, signer = world.mesh.join(loud.peer_id), Signer(loud.operator, loud.bls_secret)
        spec = world.create_job()
        for i in range(1, 300):
            empty = world.task(spec, spec.created_at + 10 * i, loud.address)
            target = empty.authorisation.target
            await network.publish(
                EXECUTIONS, signer.execution(empty, world.ledger.domain, bytes(32), target, _call(empty), 0, None)
            )
        task = world.task(spec, spec.created_at + 10, honest.address, attempt=2)
        await world.publisher.publish(TASKS, task)
        assert await settled(world, task) is ExecutionStatus.CERTIFIED


async def test_nothing_is_acknowledged_before_it_is_on_disk(autojump_clock: MockClock) -> None:
    happened: list[str] = []

    class SlowJournal(Journal):
        async def accept(self, task: Task, publisher: str, decision: Decision) -> bool:
            await trio.sleep(3)
            taken = await super().accept(task, publisher, decision)
            happened.append("on disk")
            return taken

    async def accept(answer: Answer, source: str) -> Taken:
        happened.append("acknowledged")
        return Taken()

    def slow(parts: Parts) -> Keeper:
        return Keeper(dataclasses.replace(parts, journal=SlowJournal(world.residents[0].database)))

    async with open_world(3) as world, world.publisher.serve(ANSWERS, accept):
        await world.start(world.residents[0], slow)
        spec = world.create_job()
        task = world.task(spec, spec.created_at + 10, world.residents[0].address)
        for _ in range(5):  # a repetition must not be answered before the first
            await world.publisher.publish(TASKS, task)
            await trio.sleep(0.5)
        await trio.sleep(3)
        assert happened[0] == "on disk"
        assert set(happened[1:]) == {"acknowledged"}


async def test_a_verdict_that_the_disk_does_not_take_is_not_signed(autojump_clock: MockClock) -> None:
    class FullJournal(Journal):
        async def vote(self, task_id: int, digest: bytes, opinion: Opinion, subject: Subject = Subject.EXECUTION) -> Opinion:
            raise Transient("DISK_FULL")

    signed: list[Vote] = []

    class CountingSigner(Signer):
        def vote(self, *args: Any, **kwargs: Any) -> Vote:
            signed.append(super().vote(*args, **kwargs))
            return signed[-1]

    def full(parts: Parts) -> Keeper:
        signer = CountingSigner(parts.signer._operator_secret, parts.signer._bls_secret)
        return Keeper(dataclasses.replace(parts, journal=FullJournal(parts.journal._database), signer=signer))

    async with open_world(6) as world:
        for resident in world.residents:
            await world.start(resident, full if resident.number == 3 else Keeper)
        spec = world.create_job()
        tasks = [world.task(spec, spec.created_at + 10 * i, world.residents[0].address, window=30) for i in (1, 2)]
        for task in tasks:
            await world.publisher.publish(TASKS, task)
        assert [await settled(world, task) for task in tasks] == [ExecutionStatus.CERTIFIED] * 2
        assert not signed


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda w, s: w.ledger.delete_job(s.job_id), "JOB_INACTIVE"),
        (lambda w, s: w.ledger.state.balances.update({s.owner: 1}), "INSUFFICIENT_BALANCE"),
        (lambda w, s: w.ledger.set_policy(s.job_id, Policy(b"pinned".ljust(32), 0, 0, 0)), "HUB_REFUSED"),
    ],
)
async def test_a_performer_pays_for_no_transaction_that_the_hub_must_refuse(
    autojump_clock: MockClock, spoil: Callable[[World, Any], None], code: str
) -> None:
    refused: list[str] = []

    async def accept(answer: Answer, source: str) -> Taken:
        said = answer.refused()
        refused.append(said.code if said is not None else "acknowledged")
        return Taken()

    async with open_world(4) as world, world.publisher.serve(ANSWERS, accept):
        await world.start(world.residents[0])
        spec = world.create_job()
        spoil(world, spec)
        height = world.ledger.head.number
        task = world.task(spec, spec.created_at + 10, world.residents[0].address)
        await world.publisher.publish(TASKS, task)
        await trio.sleep(30)
        assert refused == [code]
        assert world.ledger.head.number == height
        assert outcomes(world.residents[0]) == {task.task_id: code}


async def test_a_task_executed_by_another_attempt_is_not_paid_for_again(autojump_clock: MockClock) -> None:
    async with open_world(4) as world:
        for resident in world.residents:
            await world.start(resident)
        spec = world.create_job()
        second = spec.created_at + 10
        task = world.task(spec, second, world.residents[0].address)
        await world.publisher.publish(TASKS, task)
        assert await settled(world, task) is ExecutionStatus.CERTIFIED
        height = world.ledger.head.number
        again = world.task(spec, second, world.residents[1].address, attempt=2, window=60)
        await world.publisher.publish(TASKS, again)
        await trio.sleep(30)
        assert world.ledger.head.number == height


async def test_a_keeper_that_starts_without_its_chain_blames_no_publisher(autojump_clock: MockClock) -> None:
    async with open_world(4) as world:
        late, *others = world.residents
        for resident in others:
            await world.start(resident)
        await world.start(late, offline=True)
        spec = world.create_job()
        for i in range(2, 8):
            await world.publisher.publish(TASKS, world.task(spec, spec.created_at + 10 * i, others[0].address))
        await trio.sleep(5)
        assert late.chain is not None
        late.chain.go_online()
        await trio.sleep(5)
        task = world.task(spec, spec.created_at + 20, late.address, attempt=2, window=60)
        await world.publisher.publish(TASKS, task)
        await trio.sleep(2)
        assert task.task_id in outcomes(late)


async def test_no_memory_grows_with_the_tasks_that_went_by(autojump_clock: MockClock) -> None:
    keepers: list[Keeper] = []

    def watched(parts: Parts) -> Keeper:
        keepers.append(Keeper(parts))
        return keepers[-1]

    async with open_world(5) as world:
        for resident in world.residents:
            await world.start(resident, watched)
        spec = world.create_job()
        tasks = [world.task(spec, spec.created_at + 10 * i, world.residents[i % 5].address) for i in range(1, 6)]
        for task in tasks:
            await world.publisher.publish(TASKS, task)
            await settled(world, task)
        await trio.sleep(200)
        for keeper in keepers:
            assert keeper._attending.idle
            assert not keeper._performer._performing
            assert not keeper._performer._answering
            assert not keeper._aggregator._ballots
            for expirer in keeper._expirers.values():
                assert not expirer._due
                assert not expirer._observer._waiting
        for resident in world.residents:
            await resident.database.read(_nothing_open)


def _nothing_open(db: sqlite3.Connection) -> None:
    assert db.execute("SELECT count(*) FROM task WHERE outcome = '' OR length(message) > 0").fetchone() == (0,)


async def test_an_executed_task_without_a_package_is_refunded_once(autojump_clock: MockClock) -> None:
    async with open_world(5) as world:
        for resident in world.residents:
            await world.start(resident)
        performer = world.residents[0]
        world.mesh.loss = lambda source, _target, topic: source == performer.peer_id and topic == EXECUTIONS.name
        spec = world.create_job()
        task = world.task(spec, spec.created_at + 10, performer.address)
        before = world.ledger.state.balances.copy()
        await world.publisher.publish(TASKS, task)
        await world.ledger.wait_until(lambda: bool(world.ledger.calls))
        world.kill(performer)
        assert await settled(world, task) is ExecutionStatus.EXPIRED
        assert world.ledger.state.balances == before
        height = world.ledger.head.number
        await trio.sleep(120)
        assert world.ledger.head.number == height  # nobody paid for a second expiry
