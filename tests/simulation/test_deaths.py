"""SIGKILL at every call a keeper makes of chain, wallet, journal and mesh: the task still ends once, and as it should."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from consensus.messages import Task, Usage
from node.infra.chain import ExecutionStatus, Wallet
from node.infra.chain_memory import MemoryPrepared, SentTransactions
from node.journal import Journal
from node.scripts import Scripts
from node.workflow import Keeper, Parts, Served
from p2p.content import Content
from p2p.network import Network
from p2p.topics import ANSWERS, TASKS, Answer, Taken
from tests.node.fake_scripts import Prints, Script
from tests.simulation.test_scripts import hearing
from tests.simulation.world import Resident, World, open_world

PERFORMER, AGGREGATOR = 0, 2  # of the five; the second is drawn first for the block of this task


class Doom:
    """Strikes before or after the `at`th call that is wrapped in it: from then on its keeper does nothing more."""

    def __init__(self, at: int) -> None:
        self._at = at
        self._moments = 0
        self.struck = trio.Event()

    async def moment(self) -> None:
        if self._moments == self._at:
            self.struck.set()
            await trio.sleep_forever()
        self._moments += 1

    async def around(self, call: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        await self.moment()
        result = await call(*arguments)
        await self.moment()
        return result


class Mortal:
    """Passes everything on to `inner`, each coroutine function through `doom`."""

    def __init__(self, inner: Any, doom: Doom) -> None:
        self._inner, self._doom = inner, doom

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not inspect.iscoroutinefunction(found):
            return found
        return lambda *arguments: self._doom.around(found, *arguments)


class MortalWallet(Mortal):
    """Dies between the record of a transaction and its leaving, too."""

    def __init__(self, inner: Wallet, doom: Doom, sent: SentTransactions) -> None:
        super().__init__(inner, doom)
        self._sent = sent

    async def send(self, prepared: MemoryPrepared) -> bytes:
        await self._doom.moment()
        self._sent.by_key.setdefault(prepared.key, prepared.sending)
        return cast(bytes, await self._doom.around(self._inner.send, prepared))


def doomed(resident: Resident, doom: Doom) -> Callable[[Parts], Keeper]:
    def build(parts: Parts) -> Keeper:
        [(chain_id, served)] = parts.chains.items()
        served.observer.chain = cast(Any, Mortal(served.chain, doom))
        wallet = cast(Wallet, MortalWallet(served.wallet, doom, resident.sent))
        return Keeper(
            dataclasses.replace(
                parts,
                chains={chain_id: Served(served.observer, wallet)},
                journal=cast(Journal, Mortal(parts.journal, doom)),
                network=cast(Network, Mortal(parts.network, doom)),
                scripts=cast(Scripts, Mortal(parts.scripts, doom)),
                content=cast(Content, Mortal(parts.content, doom)),
            )
        )

    return build


async def _end(world: World, task: Task) -> ExecutionStatus:
    with trio.fail_after(300):
        await world.ledger.wait_until(lambda: world.status(task) > ExecutionStatus.PENDING)
    return ExecutionStatus(world.status(task))


async def taken(answer: Answer, source: str) -> Taken:
    """What a coordinator says to an answer it can use."""
    return Taken()


async def _live_and_die(
    at: int, *, keepers: int, victim: int, returns: bool, window: int = 30, prints: Prints | None = None
) -> bool:
    """One task in a network whose `victim` dies at its `at`th moment; False when the task ended before that came.

    `prints` is what the job's script does, if it has one; each run of it takes another time.
    """
    async with (
        open_world(keepers) as world,
        world.publisher.serve(ANSWERS, taken),
        hearing(world) as heard,
        trio.open_nursery() as nursery,
    ):
        doom = Doom(at)
        for resident in world.residents:
            if resident.number != victim:
                await world.start(resident)
        mortal = world.residents[victim]

        async def live() -> None:
            with suppress(RuntimeError):  # trio's, when death comes before it is ready
                await world.start(mortal, doomed(mortal, doom))

        nursery.start_soon(live)
        spec = world.create_job() if prints is None else world.create_script_job(_another_time_each_run(prints), definition=2)
        task = world.task(spec, spec.created_at + 10, world.residents[0].address, window=window)

        async def strike() -> None:
            await doom.struck.wait()
            world.kill(mortal)
            if returns:
                await trio.sleep(2)
                await world.start(mortal)
                await world.publisher.publish(TASKS, task)  # as a coordinator does that has no answer

        nursery.start_soon(strike)
        await trio.sleep(2)
        await world.publisher.publish(TASKS, task)
        if prints is None or not prints.code:
            assert await _end(world, task) is ExecutionStatus.CERTIFIED, at
            assert len(world.ledger.calls) == 1, at
        else:
            await heard.certified()
            assert not world.ledger.calls, at
            assert len(set(heard.words)) == 1, at  # it says the same, whenever it has died
        mined = [s for block in world.ledger.blocks for s in block.sendings]
        assert len({s.hash for s in mined}) == len(mined), at
        nursery.cancel_scope.cancel()
        return doom.struck.is_set()
    raise AssertionError("unreachable")


def _another_time_each_run(prints: Prints) -> Script:
    runs = itertools.count(1)
    return lambda task, log: dataclasses.replace(prints, usage=Usage(next(runs), 1, 1, 0))


@pytest.mark.parametrize(("victim", "returns"), [(PERFORMER, True), (AGGREGATOR, True), (AGGREGATOR, False)])
async def test_a_keeper_may_die_at_any_moment_of_its_work(autojump_clock: MockClock, victim: int, returns: bool) -> None:
    at = 0
    while await _live_and_die(at, keepers=5, victim=victim, returns=returns):
        at += 1
    assert at > 25  # it was at work


@pytest.mark.parametrize("prints", [Prints(b"[7]"), Prints(b"", code="SCRIPT_FAILED")])
async def test_a_performer_of_a_script_may_die_at_any_moment_of_its_work(autojump_clock: MockClock, prints: Prints) -> None:
    at = 0
    while await _live_and_die(at, keepers=5, victim=PERFORMER, returns=True, prints=prints):
        at += 1
    assert at > 15  # it was at work
