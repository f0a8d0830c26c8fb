"""A keeper killed at each await of submitting: one transaction for a task, no gap, and what follows is mined at once."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from consensus.messages import Uint256
from node.infra.chain import TaskExecuted
from node.infra.evm_reads import hex_of, int_of
from tests.chain.anvil_world import CHAIN_ID, AnvilWorld
from tests.chain.submitting import Keeper, Order, Setup, keeper_process
from tests.chain.worlds import INTERVAL, PING, authorise

_MOST_STEPS = 1_000  # far more than there are; so many runs would mean that the path never ends


class Life:
    """A job with many due seconds, and the checks after each death."""

    def __init__(self, world: AnvilWorld, keeper: Keeper, setup: Setup, first_second: int) -> None:
        self.world, self.keeper, self._setup = world, keeper, setup
        self._first = first_second
        self._address = hex_of(world.keepers[0].address)

    def second(self, number: int) -> int:
        return self._first + number * INTERVAL

    async def nonces(self) -> tuple[int, int]:
        calls = [("eth_getTransactionCount", [self._address, tag]) for tag in ("latest", "pending")]
        mined, pending = await self.world.rpc.batch(calls)
        return int_of(mined), int_of(pending)

    async def executions(self, second: int) -> list[TaskExecuted]:
        """Of the task of this second, ever."""
        performer = self.world.keepers[0].address
        job, target = self._setup.job_id, self.world.target
        task_id = authorise(self.world.chain, job, second, performer, target, call=PING.encode(7))[0].task_id
        events = await self.world.chain.events(0, (await self.world.chain.head()).number)
        return [e for e in events if isinstance(e, TaskExecuted) and e.task_id == Uint256(task_id)]


async def begin(world: AnvilWorld, folder: Path) -> Setup:
    job_id = await world.create_job(time_frame=_MOST_STEPS * INTERVAL)
    await world.pass_seconds(_MOST_STEPS * INTERVAL - 60)
    contracts = world.settings().contracts
    links = ("hub", "attestation_center", "keeper_registry", "job_registry", "gas_registry")
    return Setup(
        url=world.url,
        chain_id=CHAIN_ID,
        contracts={name: hex_of(getattr(contracts, name)) for name in links},
        database=str(folder / "sent.sqlite"),
        job_id=job_id,
        target=world.target.hex(),
    )


async def test_killed_at_any_await_of_submitting_it_sends_one_transaction_for_a_task_and_leaves_no_gap(
    on_anvil: AnvilWorld, tmp_path: Path
) -> None:
    setup = await begin(on_anvil, tmp_path)
    job = await on_anvil.chain.job(setup.job_id)
    assert job is not None
    with keeper_process(setup) as keeper:
        life = Life(on_anvil, keeper, setup, job.created_at + INTERVAL)
        for kill_at in count():
            assert kill_at < _MOST_STEPS
            before, _ = await life.nonces()
            second = life.second(kill_at)
            if not (await keeper.run(Order(second, kill_at))).killed:
                break
            outcome = await keeper.run(Order(second, other_first=True, other_after=True))
            assert outcome.success
            [execution] = await life.executions(second)
            assert execution.place.tx_hash.hex() == outcome.tx_hash
            assert await life.nonces() == (before + 3, before + 3), f"killed at step {kill_at}"
    assert kill_at > 40


async def test_killed_at_any_await_of_a_replacement_it_sends_one_transaction_for_a_task_and_leaves_no_gap(
    on_anvil: AnvilWorld, tmp_path: Path
) -> None:
    setup = await begin(on_anvil, tmp_path)
    job = await on_anvil.chain.job(setup.job_id)
    assert job is not None
    replaced = 0
    with keeper_process(setup) as keeper:
        life = Life(on_anvil, keeper, setup, job.created_at + INTERVAL)
        for kill_at in count():
            assert kill_at < _MOST_STEPS
            await on_anvil.rpc.call("anvil_setNextBlockBaseFeePerGas", [hex(10**9)])
            await on_anvil.rpc.call("evm_mine")
            await on_anvil.rpc.call("evm_setAutomine", [False])
            before, _ = await life.nonces()
            second = life.second(kill_at)
            ended = await keeper.run(Order(second, kill_at, stuck=True))
            if not ended.killed:
                assert ended.versions > 1
                break
            outcome = await keeper.run(Order(second, other_after=True))
            assert outcome.success
            replaced += outcome.versions > 1
            [execution] = await life.executions(second)
            assert execution.place.tx_hash.hex() == outcome.tx_hash
            assert await life.nonces() == (before + 2, before + 2), f"killed at step {kill_at}"
    assert kill_at > 20
    assert replaced == kill_at  # each of them was stuck
