"""Who waits for a keeper, and who is next."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from coordinator.line import Line
from coordinator.scoring import Need, Policy, Standing
from coordinator.signals import Signals
from node.infra.clock import TrioClock

CHAIN = 1


def address(number: int) -> bytes:
    return bytes(19) + bytes([number])


class FakeKeepers:
    """Keepers of one chain that are online, by number."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = set(numbers)

    def online(self, chain_id: int) -> list[Standing]:
        assert chain_id == CHAIN
        return [Standing(address(n), f"keeper-{n}", connected=True) for n in sorted(self.numbers)]


class Table:
    """A line, and who has been given a keeper in which order."""

    def __init__(self, keepers: FakeKeepers, nursery: trio.Nursery, *, tasks_each: int = 1) -> None:
        self.signals = Signals()
        self.clock = TrioClock()
        self.line = Line(keepers, self.signals, self.clock, Policy(tasks_each=tasks_each))  # type: ignore[arg-type]
        self.given: list[tuple[str, int]] = []
        self.refused: dict[str, tuple[str, float]] = {}
        self.nursery = nursery

    def wait(self, name: str, priority: int = 3, need: Need | None = None) -> trio.CancelScope:
        scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                began = trio.current_time()
                found = await self.line.place(CHAIN, need or Need(1), priority, self.clock.now())
                if isinstance(found, str):
                    self.refused[name] = (found, trio.current_time() - began)
                else:
                    self.given.append((name, found.address[-1]))

        self.nursery.start_soon(run)
        return scope


async def test_the_higher_priority_is_next_then_who_came_first(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        table = Table(FakeKeepers(1), nursery)
        await nursery.start(table.line.run)
        table.wait("running")
        await wait_all_tasks_blocked()
        for name, priority in (("low 1", 3), ("low 2", 3), ("middle", 2), ("high 1", 1), ("high 2", 1)):
            table.wait(name, priority)
            await wait_all_tasks_blocked()
        assert len(table.line) == 5
        for _ in range(5):
            table.line.release(CHAIN, address(1))
            await wait_all_tasks_blocked()
        assert [name for name, _ in table.given] == ["running", "high 1", "high 2", "middle", "low 1", "low 2"]
        assert len(table.line) == 0
        nursery.cancel_scope.cancel()


async def test_a_keeper_never_has_more_tasks_than_it_may(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        table = Table(FakeKeepers(1, 2), nursery, tasks_each=3)
        await nursery.start(table.line.run)
        for number in range(10):
            table.wait(str(number))
        await wait_all_tasks_blocked()
        assert sorted(keeper for _, keeper in table.given) == [1, 1, 1, 2, 2, 2]
        assert table.line.open(CHAIN, address(1)) == 3
        nursery.cancel_scope.cancel()


async def test_one_that_no_keeper_suits_holds_nobody_up(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        table = Table(FakeKeepers(1), nursery)
        await nursery.start(table.line.run)
        table.wait("needs a sandbox", 1, Need(2, sandbox=True))
        table.wait("plain", 3)
        await wait_all_tasks_blocked()
        assert table.given == [("plain", 1)]
        nursery.cancel_scope.cancel()


async def test_a_keeper_that_comes_online_is_given_the_next_at_once(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        keepers = FakeKeepers()
        table = Table(keepers, nursery)
        await nursery.start(table.line.run)
        table.wait("patient")
        await trio.sleep(60)
        assert table.given == []
        keepers.numbers.add(7)
        table.signals.notify(("keepers", CHAIN))
        await wait_all_tasks_blocked()
        assert table.given == [("patient", 7)]
        nursery.cancel_scope.cancel()


async def test_patience_ends_by_name_sooner_when_nobody_suits_than_when_all_are_busy(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        table = Table(FakeKeepers(1), nursery)
        await nursery.start(table.line.run)
        table.wait("first")
        await wait_all_tasks_blocked()
        table.wait("second")
        table.wait("hopeless", 3, Need(2, sandbox=True))
        await trio.sleep(700)
        assert table.refused == {"hopeless": ("NO_KEEPER", 130.0), "second": ("KEEPERS_BUSY", 600.0)}
        assert len(table.line) == 0
        nursery.cancel_scope.cancel()


async def test_who_leaves_the_line_holds_no_keeper(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        table = Table(FakeKeepers(1), nursery)
        await nursery.start(table.line.run)
        table.wait("first")
        await wait_all_tasks_blocked()
        gone = table.wait("gone", 1)
        table.wait("second")
        await wait_all_tasks_blocked()
        table.line.release(CHAIN, address(1))  # given to the one that leaves in the same moment
        gone.cancel()
        await wait_all_tasks_blocked()
        assert [name for name, _ in table.given] == ["first", "second"]
        assert table.line.open(CHAIN, address(1)) == 1
        nursery.cancel_scope.cancel()


async def test_a_line_in_which_nobody_moves_does_not_spin(autojump_clock: MockClock) -> None:
    class Counting(FakeKeepers):
        looks = 0

        def online(self, chain_id: int) -> list[Standing]:
            Counting.looks += 1
            return super().online(chain_id)

    async with trio.open_nursery() as nursery:
        table = Table(Counting(), nursery)
        await nursery.start(table.line.run)
        for number in range(100):
            table.wait(str(number))
        await wait_all_tasks_blocked()
        Counting.looks = 0
        await trio.sleep(100)
        assert Counting.looks <= 102
        nursery.cancel_scope.cancel()


async def test_an_attempt_that_was_refused_counts_for_its_keeper_until_its_deadline(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        table = Table(FakeKeepers(1), nursery)
        nursery.start_soon(table.line.run)
        table.wait("first")
        await wait_all_tasks_blocked()
        table.line.rest(CHAIN, address(1), table.clock.now() + 60)
        table.wait("second")
        await trio.sleep(59)
        assert table.given == [("first", 1)]
        await trio.sleep(2)
        assert table.given == [("first", 1), ("second", 1)]
        nursery.cancel_scope.cancel()
