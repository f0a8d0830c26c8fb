"""Jobs with scripts at the coordinator: what is authorised, believed and kept, and what ends without a transaction."""

from __future__ import annotations

import json

import pytest
import trio
from trio.testing import MockClock

from consensus import ecdsa
from consensus.fees import resource_fee
from consensus.lifecycle import TaskState
from consensus.messages import NotExecuted, Run, Task
from coordinator import monitor
from coordinator.attempts import DispatchPolicy
from node.arguments import encode_call
from node.infra.chain import Policy
from p2p.network import PeerId
from p2p.topics import RUN_CERTIFICATES
from tests.coordinator.scripts_world import USAGE, Scripted, certificate, decides, declines, everybody, post
from tests.coordinator.world import DISPATCHER, OWNER, TARGET, FakeKeeper, open_world

S = TaskState
PING = encode_call("ping(uint256)", "[7]")


# --- dispatch


async def test_of_a_scripts_call_only_what_it_may_not_choose_is_authorised(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        everybody(world, Scripted(lambda _: b"[7]"))
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTED], await post(world, 2))
        [attempt] = await world.attempts(task)
        message = Task.decode(attempt.message)
        a = message.authorisation
        assert (a.target, a.selector, a.call_hash) == (TARGET, PING[:4], bytes(32))
        inputs = Task.inputs_hash(a, message.pinned_block, message.storage)
        assert ecdsa.recover(world.ledger.domain.hub_digest(inputs), message.inputs) == ecdsa.address_of(DISPATCHER)
        assert message.pinned_block >= 1
        assert task.arguments == "[7]"


async def test_a_custom_scripts_function_is_left_open_too(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        everybody(world, Scripted(lambda _: decides(TARGET, PING)))
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTED], await post(world, contract=TARGET))
        [attempt] = await world.attempts(task)
        a = Task.decode(attempt.message).authorisation
        assert (a.target, a.selector, a.call_hash, a.gas_limit) == (TARGET, bytes(4), bytes(32), 1_000_000)
        await world.until(lambda tasks: bool(tasks[0].arguments), task.job_id)
        assert json.loads((await world.tasks(task.job_id))[0].arguments)["calldata"] == "0x" + PING.hex()


async def test_scripts_are_sent_out_sooner_than_calls(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        everybody(world, Scripted(lambda _: b"[7]"))
        [scripted] = await world.until(
            lambda tasks: [t.state for t in tasks] == [S.EXECUTED], await post(world, 2, interval=60, time_frame=60)
        )
        assert scripted.stages["published"] <= (scripted.trigger_id - 9) * 1000
        assert scripted.stages["executed"] == pytest.approx(scripted.trigger_id * 1000, abs=50)


async def test_only_keepers_with_a_sandbox_are_given_scripts(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        script = everybody(world, Scripted(lambda _: b"[7]"))
        for keeper in world.keepers[1:]:
            keeper.sandbox = ""
        await trio.sleep(1)
        await world.hear_keepers()
        await trio.sleep(1)
        job_id = await post(world, 2, time_frame=40)
        tasks = await world.until(lambda tasks: len(tasks) == 4 and all(t.state is S.EXECUTED for t in tasks), job_id)
        assert {t.performer for t in tasks} == {world.keepers[0].address}
        assert len(script.published) == 4


async def test_a_job_is_not_executed_above_its_owners_cap(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        everybody(world, Scripted(lambda _: b"[7]"))
        [task] = await world.ended(await post(world, 2, max_fee=1000))
        assert (task.state, task.reason, await world.attempts(task)) == (S.FAILED, "FEE_ABOVE_CAP", [])


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        (Policy(b"another JobSpec".ljust(32), 0, 0, 0), "HUB_REFUSED"),
        (Policy(bytes(32), 1000, 0, 0), "FEE_ABOVE_CAP"),
        (Policy(bytes(32), 0, 1_000_001, 0), "HUB_REFUSED"),
        (Policy(bytes(32), 0, 0, 3), "HUB_REFUSED"),
    ],
)
async def test_what_an_owner_pinned_otherwise_is_sent_to_no_keeper(autojump_clock: MockClock, policy: Policy, code: str) -> None:
    async with open_world() as world:
        everybody(world, Scripted(lambda _: b"[7]"))
        job_id = await post(world, 2)
        world.ledger.set_policy(job_id, policy)
        [task] = await world.ended(job_id)
        assert (task.state, task.reason, await world.attempts(task)) == (S.FAILED, code, [])


# --- runs without a transaction


async def test_a_script_that_declines_ends_its_task_with_its_own_words_and_no_keepers_fault(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        everybody(world, Scripted(lambda _: declines("the price is too low", checked=1)))
        job_id = await post(world)
        [task] = await world.ended(job_id)
        assert (task.state, task.reason, task.detail) == (S.NOT_EXECUTED, "SCRIPT_DECLINED", "the price is too low")
        assert (task.attempt, len(await world.attempts(task)), task.execution_tx) == (1, 1, None)
        assert task.attester_ids
        assert await world.store.storage(job_id) == '{"checked":1}'
        assert all(r.failed == 0 for r in await world.store.keeper_records())
        assert world.coordinator.line.open(task.chain_id, task.performer or b"") == 0


async def test_words_that_nobody_signed_are_shown_as_plain_text(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        script = everybody(world, Scripted(lambda _: declines(), certify=False))
        job_id = await post(world)
        await world.until(lambda tasks: bool(script.published), job_id)
        said = script.published[0]
        assert isinstance(said, NotExecuted)
        keeper = next(k for k in world.keepers if k.address == said.task.authorisation.performer)
        fails = keeper.signer.not_executed(
            said.task, world.ledger.domain, "SCRIPT_FAILED", "\x1b[31mred\r\n\u202etxt", said.run, 5
        )
        await world.keepers[0].network.publish(RUN_CERTIFICATES, certificate(world, fails))
        [task] = await world.ended(job_id)
        assert (task.reason, task.detail) == ("SCRIPT_FAILED", "[31mred txt")


async def test_two_coordinators_see_one_end_and_charge_it_once(autojump_clock: MockClock) -> None:
    async with open_world(coordinators=("a", "b")) as world:
        everybody(world, Scripted(lambda _: declines(n=1)))
        job_id = await post(world, time_frame=100)
        tasks = await world.ended(job_id, 10)
        assert {t.state for t in tasks} == {S.NOT_EXECUTED}
        await trio.sleep(700)
        tasks = await world.tasks(job_id)
        fee = resource_fee(3, USAGE)
        assert [t.cost for t in tasks] == [fee] * 10
        assert world.ledger.state.balances[OWNER] == 10**20 - 10 * fee
        assert len(world.ledger.state.charged) == 10
        assert await world.store.run_charges(world.ledger.domain.chain_id, 100) == []
        job = await world.store.job(job_id)
        user = await world.store.user(OWNER)
        assert job is not None
        assert user is not None
        assert job.cost_actual == 10 * fee
        assert user.points == 20 * 10**15 + 10 * fee
        executed = {r.address: r.executed for r in await world.store.keeper_records()}
        assert sum(executed.values()) == 10
        assert sum(r.rewards for r in await world.store.keeper_records()) == 10 * fee


async def test_runs_are_charged_together_when_there_are_enough_of_them(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        everybody(world, Scripted(lambda _: declines()))
        began = world.clock.now()
        job_id = await post(world, interval=1, time_frame=32)
        await world.until(lambda tasks: sum(t.cost is not None for t in tasks) == 32, job_id)
        assert world.clock.now() - began < 120
        numbers = {record.block_number for record in world.ledger.state.charged.values()}
        assert len(numbers) == 1


async def test_a_charge_that_the_hub_skips_costs_nothing_and_waits_no_longer(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        everybody(world, Scripted(lambda _: declines()))
        job_id = await post(world)
        await world.ended(job_id)
        world.ledger.delete_job(job_id)
        [task] = await world.until(lambda tasks: tasks[0].cost is not None, job_id)
        assert (task.cost, task.state, "not_charged" in task.stages) == (0, S.NOT_EXECUTED, True)
        assert await world.store.run_charges(world.ledger.domain.chain_id, 100) == []


async def test_a_run_that_its_owner_cannot_pay_yet_is_charged_when_there_is_a_deposit(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        everybody(world, Scripted(lambda _: declines()))
        job_id = await post(world)
        await world.ended(job_id)
        world.ledger.state.balances[OWNER] = 0
        await trio.sleep(700)
        [task] = await world.tasks(job_id)
        assert task.cost is None
        world.ledger.deposit(OWNER, 10**18)
        [task] = await world.until(lambda tasks: tasks[0].cost is not None, job_id)
        assert task.cost == resource_fee(3, USAGE)


async def test_a_run_that_nobody_can_pay_is_given_up(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "_CHARGE_PATIENCE_S", 1000)  # a day
    async with open_world() as world:
        everybody(world, Scripted(lambda _: declines()))
        job_id = await post(world)
        await world.ended(job_id)
        world.ledger.state.balances[OWNER] = 0
        await trio.sleep(2000)
        [task] = await world.tasks(job_id)
        assert (task.cost, await world.store.run_charges(task.chain_id, 9)) == (0, [])


async def test_what_no_committee_confirms_is_tried_by_another_and_ends_by_name(autojump_clock: MockClock) -> None:
    async with open_world(keepers=4) as world:
        everybody(world, Scripted(lambda _: declines(), certify=False))
        [task] = await world.ended(await post(world))
        attempts = await world.attempts(task)
        assert (task.state, task.reason) == (S.FAILED, "NO_QUORUM")
        assert [a.code for a in attempts] == ["NO_QUORUM", "NO_QUORUM"]
        assert attempts[0].ended_ms is not None
        assert attempts[0].ended_ms >= (attempts[0].not_before + 180) * 1000
        assert all(r.failed == 0 for r in await world.store.keeper_records())


async def test_who_reports_what_no_committee_confirms_and_another_executes_is_given_less(autojump_clock: MockClock) -> None:
    async with open_world(keepers=4) as world:
        everybody(world, Scripted(lambda _: b"[7]"))
        liar = world.keepers[0]
        liar.behaviour = Scripted(lambda _: b"rubbish", certify=False)
        job_id = await post(world, 2, interval=10, time_frame=1600)
        executed = (S.EXECUTED, S.NOT_ATTESTED)
        tasks = await world.until(lambda tasks: len(tasks) == 160 and all(t.state in executed for t in tasks), job_id)
        given = [t.trigger_id for t in tasks if any(a.performer == liar.address for a in await world.attempts(t))]
        late = [second for second in given if second > tasks[80].trigger_id]
        assert len(late) <= 6
        assert given


async def test_a_certificate_that_too_few_signed_ends_nothing(autojump_clock: MockClock) -> None:
    async with open_world(keepers=4) as world:
        script = everybody(world, Scripted(lambda _: declines(), certify=False))
        job_id = await post(world)
        await world.until(lambda tasks: bool(script.published), job_id)
        said = script.published[0]
        forged = certificate(world, said, signers=1)  # type: ignore[arg-type]
        await world.keepers[0].network.publish(RUN_CERTIFICATES, forged)
        await trio.sleep(5)
        [task] = await world.tasks(job_id)
        assert task.state is S.ACKNOWLEDGED
        await world.keepers[0].network.publish(RUN_CERTIFICATES, certificate(world, said))  # type: ignore[arg-type]
        [task] = await world.ended(job_id)
        assert task.state is S.NOT_EXECUTED


async def test_a_run_of_a_task_that_was_never_dispatched_so_is_not_believed(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        script = everybody(world, Scripted(lambda _: declines(), certify=False))
        job_id = await post(world)
        await world.until(lambda tasks: bool(script.published), job_id)
        said = script.published[0]
        a, key = said.task.authorisation, DISPATCHER
        inputs = ecdsa.sign(key, world.ledger.domain.hub_digest(Task.inputs_hash(a, 1, '{"a":1}')))
        other = Task(said.task.chain_id, a, said.task.signature, said.task.spec, "", None, 1, '{"a":1}', inputs)
        keeper = next(k for k in world.keepers if k.address == a.performer)
        lie = keeper.signer.not_executed(other, world.ledger.domain, "SCRIPT_DECLINED", "", Run(bytes(32), declines(), USAGE), 5)
        if world.ledger.state.epoch_of(1) is not None:
            await keeper.network.publish(RUN_CERTIFICATES, certificate(world, lie))
        await trio.sleep(5)
        [task] = await world.tasks(job_id)
        assert task.state is S.ACKNOWLEDGED


async def test_an_execution_of_another_attempt_overrules_the_certificate(autojump_clock: MockClock) -> None:
    policy = DispatchPolicy(ack_timeout=5, retries=(1, 1), window=10, settle=5)
    async with open_world(keepers=4, policy=policy) as world:
        first = Scripted(lambda _: declines(), certify=False)
        second = Scripted(lambda _: decides(TARGET, PING, n=2))

        async def by_attempt(keeper: FakeKeeper, task: Task, source: PeerId) -> None:
            await (first if task.authorisation.attempt == 1 else second)(keeper, task, source)

        for keeper in world.keepers:
            keeper.behaviour = by_attempt
        job_id = await post(world)
        await world.until(lambda tasks: bool(tasks) and tasks[0].state is S.EXECUTED, job_id)
        await world.keepers[0].network.publish(RUN_CERTIFICATES, certificate(world, first.published[0]))  # type: ignore[arg-type]
        await trio.sleep(5)
        [task] = await world.tasks(job_id)
        assert task.state is S.EXECUTED
