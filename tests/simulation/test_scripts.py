"""Jobs with scripts on a network with one keeper lying and one gone: what a script decides is executed or certified not to be."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from consensus import runs
from consensus.codec import keccak
from consensus.errors import Transient
from consensus.messages import NotExecuted, RunCertificate, Task, Usage
from node.infra.chain import ExecutionStatus, Log
from node.infra.compute import inline
from node.infra.observe import Registry
from node.run_certificates import RunCertificates
from node.workflow import Keeper, Parts
from p2p.network import Received
from p2p.topics import NOT_EXECUTED, RUN_CERTIFICATES, TASKS
from tests.node.fake_scripts import FakeScripts, Prints
from tests.simulation.test_keepers import lying
from tests.simulation.test_triggers import ABOVE, PRICE, on_transfer, transfer
from tests.simulation.world import TARGET, Resident, World, open_world

CALLED = keccak(b"somewhere")[:20]
CALL = b"\x01\x02\x03\x04" + bytes(32)


def decides(call: bytes) -> Prints:
    """To have `call` made somewhere."""
    said = b'{"shouldExecute": true, "targetContract": "0x%s", "calldata": "0x%s"}'
    return Prints(said % (CALLED.hex().encode(), call.hex().encode()))


DECIDES = decides(CALL)
DECLINES = Prints(b'{"shouldExecute": false, "metadata": {"reason": "the price is fine"}}')
ARGUMENTS = Prints(b"[7]")


async def settled(world: World, task: Task) -> ExecutionStatus:
    with trio.fail_after(600):
        await world.ledger.wait_until(lambda: world.status(task) > ExecutionStatus.PENDING)
    return ExecutionStatus(world.status(task))


async def network(world: World, performer: Callable[[Parts], Keeper] = Keeper) -> Resident:
    """One lies, one is gone, and one performs; returns that one."""
    liar, _gone, first, *others = world.residents
    await world.start(liar, lying)
    await world.start(first, performer)
    for resident in others:
        await world.start(resident)
    return first


def outcomes(world: World, task: Task) -> set[str]:
    """How the task ended at each keeper."""
    trails = [t for r in world.residents if r.tracker for t in r.tracker.trails() if t.task_id == task.task_id]
    return {trail.outcome for trail in trails}


def reasons(world: World, task: Task) -> set[str]:
    trails = [t for r in world.residents if r.tracker for t in r.tracker.trails() if t.task_id == task.task_id]
    return {trail.facts["reason"] for trail in trails if "verdict" in trail.facts}


class Heard:
    """What the coordinator hears of runs, each certificate checked as it has to."""

    def __init__(self) -> None:
        self.words: list[NotExecuted] = []
        self.certificates: list[RunCertificate] = []
        self._certified = trio.Event()

    async def certified(self) -> RunCertificate:
        with trio.fail_after(600):
            await self._certified.wait()
        return self.certificates[0]

    async def listen_words(self, channel: trio.MemoryReceiveChannel[Received[NotExecuted]]) -> None:
        async for received in channel:
            self.words.append(received.message)

    async def listen_certificates(self, channel: trio.MemoryReceiveChannel[Received[RunCertificate]]) -> None:
        async for received in channel:
            self.certificates.append(received.message)
            self._certified.set()


@asynccontextmanager
async def hearing(world: World) -> AsyncIterator[Heard]:
    heard = Heard()
    observer = world.observer()
    chain_id = world.ledger.domain.chain_id
    certificates = RunCertificates({chain_id: observer.chain}, Registry({chain_id: observer}), world.clock, inline)

    async def anything(said: NotExecuted, source: str) -> None: ...

    async with (
        world.publisher.subscribe(NOT_EXECUTED, anything, capacity=64) as words,
        world.publisher.subscribe(RUN_CERTIFICATES, certificates.check, capacity=64) as certified,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(observer.run)
        nursery.start_soon(heard.listen_words, words)
        nursery.start_soon(heard.listen_certificates, certified)
        yield heard
        nursery.cancel_scope.cancel()


async def test_scripts_of_every_type_are_executed_and_certified(autojump_clock: MockClock) -> None:
    async with open_world(10) as world:
        performer = await network(world)
        world.readings.values[PRICE] = "2001"
        seen: list[Log | None] = []

        def of_event(task: Task, log: Log | None) -> Prints:
            seen.append(log)
            return ARGUMENTS

        timed = world.create_script_job(ARGUMENTS, definition=2)
        event = world.create_script_job(of_event, definition=4, trigger=on_transfer(world))
        condition = world.create_script_job(ARGUMENTS, definition=6, trigger=ABOVE)
        custom = world.create_script_job(DECIDES)
        aimed = world.create_script_job(DECIDES, target=CALLED)
        await trio.sleep(5)
        tasks = [
            *(world.task(spec, spec.created_at + 10, performer.address) for spec in (timed, custom, aimed)),
            world.event_task(event, transfer(world), 0, performer.address),
            world.condition_task(condition, 1, performer.address),
        ]
        for task in tasks:
            await world.publisher.publish(TASKS, task)
        assert [await settled(world, task) for task in tasks] == [ExecutionStatus.CERTIFIED] * 5
        assert sorted(call.target for call in world.ledger.calls) == sorted([CALLED, CALLED, TARGET, TARGET, TARGET])
        assert {call.data for call in world.ledger.calls if call.target == CALLED} == {CALL}
        assert seen
        assert all(log is not None for log in seen)


async def test_a_script_that_declines_ends_in_a_certificate_and_no_transaction(autojump_clock: MockClock) -> None:
    async with open_world(10) as world, hearing(world) as heard:
        performer = await network(world)
        spec = world.create_script_job(DECLINES)
        height = world.ledger.head.number
        task = world.task(spec, spec.created_at + 10, performer.address)
        await world.publisher.publish(TASKS, task)
        certificate = await heard.certified()
        assert certificate.not_executed.task == task
        assert (certificate.not_executed.code, certificate.not_executed.detail) == ("SCRIPT_DECLINED", "the price is fine")
        await trio.sleep(300)
        assert world.ledger.head.number == height
        assert outcomes(world, task) == {"SCRIPT_DECLINED"}


async def test_a_declined_task_never_executes_however_often_it_comes_to_its_keeper(autojump_clock: MockClock) -> None:
    async with open_world(10) as world, hearing(world) as heard:
        performer = await network(world)
        script: list[Prints] = [DECLINES]
        spec = world.create_script_job(lambda task, log: script[-1])
        task = world.task(spec, spec.created_at + 10, performer.address)
        await world.publisher.publish(TASKS, task)
        await heard.certified()
        script.append(DECIDES)
        again = world.task(spec, spec.created_at + 10, performer.address, attempt=2, window=120)
        await world.publisher.publish(TASKS, again)
        await trio.sleep(60)
        assert not world.ledger.calls


@pytest.mark.parametrize(
    ("theirs", "own", "reason"),
    [
        (DECLINES, DECIDES, "WRONG_OUTPUT"),
        (Prints(b"", code="SCRIPT_FAILED"), DECLINES, "WRONG_OUTPUT"),
        (Prints(b"", Usage(20_000, 20_000, 10, 0), "SCRIPT_TIMEOUT"), DECIDES, "WRONG_OUTPUT"),
        (dataclasses.replace(DECLINES, networked=True), dataclasses.replace(DECIDES, networked=True), "OUTPUT_DIFFERS"),
    ],
)
async def test_a_performer_that_keeps_a_call_back_gets_no_certificate(
    theirs: Prints, own: Prints, reason: str, autojump_clock: MockClock
) -> None:
    async with open_world(10) as world, hearing(world) as heard:
        spec = world.create_script_job(own)

        def deceitful(parts: Parts) -> Keeper:
            return Keeper(dataclasses.replace(parts, scripts=FakeScripts({spec.script_url: theirs})))

        performer = await network(world, deceitful)
        task = world.task(spec, spec.created_at + 10, performer.address)
        await world.publisher.publish(TASKS, task)
        await trio.sleep(300)
        assert heard.words
        assert not heard.certificates
        assert reason in reasons(world, task)


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        (Prints(b"[8]"), "WRONG_OUTPUT"),
        (Prints(b"[7]", Usage(60_000, 60_000, 10**6, 0)), "WRONG_FEE"),
    ],
)
async def test_a_changed_output_and_an_inflated_run_are_rejected(theirs: Prints, reason: str, autojump_clock: MockClock) -> None:
    async with open_world(10) as world:
        spec = world.create_script_job(ARGUMENTS, definition=2)

        def deceitful(parts: Parts) -> Keeper:
            return Keeper(dataclasses.replace(parts, scripts=FakeScripts({spec.script_url: theirs})))

        performer = await network(world, deceitful)
        task = world.task(spec, spec.created_at + 10, performer.address)
        await world.publisher.publish(TASKS, task)
        assert await settled(world, task) is ExecutionStatus.REJECTED
        assert reason in reasons(world, task)


async def test_a_restarted_performer_publishes_the_same_package_and_runs_nothing_again(autojump_clock: MockClock) -> None:
    async with open_world(10) as world:
        await network(world)
        ran: list[int] = []
        performer = world.residents[2]

        def counting(parts: Parts) -> Keeper:
            def first_only(task: Task, log: Log | None) -> Prints:
                ran.append(1)
                return Prints(b"[7]") if len(ran) == 1 else Prints(b"[8]")

            return Keeper(dataclasses.replace(parts, scripts=FakeScripts({spec.script_url: first_only})))

        spec = world.create_script_job(ARGUMENTS, definition=2)
        world.kill(performer)
        await world.start(performer, counting)
        task = world.task(spec, spec.created_at + 10, performer.address, window=30)
        await world.publisher.publish(TASKS, task)
        await trio.sleep(2)
        world.kill(performer)  # decided, and not sent
        await trio.sleep(15)
        await world.start(performer, counting)
        assert await settled(world, task) is ExecutionStatus.CERTIFIED
        assert len(ran) == 1
        assert [call.data[4:] for call in world.ledger.calls] == [(7).to_bytes(32, "big")]


async def test_a_performer_killed_while_it_reports_says_the_same_after_a_restart(autojump_clock: MockClock) -> None:
    async with open_world(10) as world, hearing(world) as heard:
        performer = await network(world)
        world.mesh.loss = lambda source, target, topic: topic == NOT_EXECUTED.name and target != "coordinator"
        usages = iter(range(1, 100))
        spec = world.create_script_job(lambda task, log: dataclasses.replace(DECLINES, usage=Usage(next(usages), 1, 1, 0)))
        task = world.task(spec, spec.created_at + 10, performer.address)
        await world.publisher.publish(TASKS, task)
        await trio.sleep(5)
        world.kill(performer)
        world.mesh.loss = lambda *_: False
        await world.start(performer)
        await heard.certified()
        assert len(heard.words) >= 2
        assert len(set(heard.words)) == 1


async def test_a_keeper_without_the_script_refuses_for_now(autojump_clock: MockClock) -> None:
    async with open_world(4) as world:
        performer = await network(world)
        spec = world.create_script_job(ARGUMENTS, definition=2)
        world.scripts[spec.script_url] = Transient("SCRIPT_UNREACHABLE", "nobody has it")
        task = world.task(spec, spec.created_at + 10, performer.address)
        await world.publisher.publish(TASKS, task)
        await trio.sleep(30)
        assert performer.tracker is not None
        [trail] = performer.tracker.trails()
        assert (trail.outcome, "accepted" in trail.stages) == ("SCRIPT_UNREACHABLE", False)


async def test_rounds_go_on_until_enough_of_a_committee_are_there(autojump_clock: MockClock) -> None:
    async with open_world(10) as world, hearing(world) as heard:
        performer = world.residents[0]
        await world.start(performer)
        spec = world.create_script_job(DECLINES)
        task = world.task(spec, spec.created_at + 10, performer.address)
        await world.publisher.publish(TASKS, task)
        await world.clock.sleep_until(runs.opens(task, 1) - 20)
        assert not heard.certificates
        for resident in world.residents[1:]:
            await world.start(resident)
        certificate = await heard.certified()
        assert certificate.round <= 1


@pytest.mark.parametrize("what", [ARGUMENTS, Prints(b"", code="SCRIPT_FAILED")])
async def test_an_ended_task_that_comes_again_after_a_restart_runs_nothing(what: Prints, autojump_clock: MockClock) -> None:
    async with open_world(10) as world, hearing(world) as heard:
        performer = await network(world)
        spec = world.create_script_job(what, definition=2)
        task = world.task(spec, spec.created_at + 10, performer.address, window=300)
        await world.publisher.publish(TASKS, task)
        if what is ARGUMENTS:
            assert await settled(world, task) is ExecutionStatus.CERTIFIED
        else:
            await heard.certified()
        await trio.sleep(5)
        world.kill(performer)
        world.scripts[spec.script_url] = Transient("SCRIPT_UNREACHABLE", "not to be asked for again")
        await world.start(performer)
        height = world.ledger.head.number
        await world.publisher.publish(TASKS, task)
        await trio.sleep(30)
        assert world.ledger.head.number == height
        assert performer.tracker is not None
        assert [trail.outcome for trail in performer.tracker.trails()] == ["done" if what is ARGUMENTS else "SCRIPT_FAILED"]


async def test_a_script_that_takes_longer_than_a_round_is_judged_all_the_same(autojump_clock: MockClock) -> None:
    async with open_world(8) as world:  # everybody has a seat in every round
        performer = await network(world)
        slow = dataclasses.replace(ARGUMENTS, takes=world.ledger.round_seconds + 5)
        spec = world.create_script_job(slow, definition=2)
        task = world.task(spec, spec.created_at + 30, performer.address)
        await world.publisher.publish(TASKS, task)
        assert await settled(world, task) is ExecutionStatus.CERTIFIED
        record = world.ledger.state.executed[task.task_id].record
        assert world.ledger.head.timestamp >= record.timestamp + world.ledger.round_seconds


@pytest.mark.parametrize("deleted", [False, True])
async def test_what_was_decided_before_a_restart_is_done_if_the_chain_still_allows_it(
    deleted: bool, autojump_clock: MockClock
) -> None:
    async with open_world(10) as world:
        performer = await network(world)
        spec = world.create_script_job(ARGUMENTS, definition=2)
        task = world.task(spec, spec.created_at + 20, performer.address, window=40)
        await world.publisher.publish(TASKS, task)
        await trio.sleep(2)
        world.kill(performer)  # decided, and not sent
        if deleted:
            world.ledger.delete_job(spec.job_id)
        height = world.ledger.head.number
        await world.start(performer, offline=True)
        await trio.sleep(25)
        assert performer.chain is not None
        performer.chain.go_online()
        if deleted:
            await trio.sleep(60)
            assert world.ledger.head.number == height
            assert "JOB_INACTIVE" in outcomes(world, task)
        else:
            assert await settled(world, task) is ExecutionStatus.CERTIFIED
