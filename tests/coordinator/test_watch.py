"""The platform's parts: an outage long enough is told once, its end once, and a part that hangs hides no other."""

from __future__ import annotations

from collections.abc import Callable

import trio
from trio.testing import MockClock

from consensus.errors import Transient
from coordinator.alerts import Alerts, Recipient
from coordinator.store.memory import MemoryStore
from coordinator.streams.memory import MemoryServer, MemoryStreams
from coordinator.watch import REMEDIES, Probe, Watch, part_rows, probes
from node.infra.chain_memory import MemoryChain
from node.infra.clock import TrioClock
from p2p.memory import MemoryMesh
from tests.coordinator.told import Told

OPS = Recipient("42", "ops@example.org")


class Part:
    def __init__(self) -> None:
        self.away = self.hangs = False

    async def probe(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.hangs:
            await trio.sleep_forever()
        if self.away:
            raise Transient("RPC_UNREACHABLE", "no endpoint answers")


async def watching(
    nursery: trio.Nursery, parts: dict[str, Probe], *, store: MemoryStore | None = None, told: Told | None = None
) -> tuple[Watch, Told]:
    told = told or Told()
    clock = TrioClock()
    alerts = Alerts(store or MemoryStore(), clock, telegram=told)
    watch = Watch(parts, alerts, clock, to=OPS, down_after=30)
    await nursery.start(alerts.run)
    await nursery.start(watch.run)
    return watch, told


async def test_a_part_that_is_away_too_long_is_told_once_and_so_is_its_return(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    chain, mesh = Part(), Part()
    watch, told = await watching(nursery, {"chain:31337": chain.probe, "mesh": mesh.probe})
    await trio.sleep(60)
    assert not told.messages
    chain.away = True
    await trio.sleep(20)
    assert watch.degraded() == ["chain:31337"]
    assert not told.messages  # a hiccup is no outage
    await trio.sleep(600)
    assert told.subjects == ["TriggerX: chain:31337 is away"]
    assert "no endpoint answers" in told.messages[0][2]
    assert REMEDIES["chain"] in told.messages[0][2]
    chain.away = False
    await trio.sleep(600)
    assert told.subjects == ["TriggerX: chain:31337 is away", "TriggerX: chain:31337 works again"]
    assert watch.degraded() == []
    chain.away = True
    await trio.sleep(600)
    assert len(told.subjects) == 3  # another outage is told again


async def test_hiccups_are_not_told(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    chain = Part()
    _, told = await watching(nursery, {"chain:1": chain.probe})
    for _ in range(20):
        chain.away = True
        await trio.sleep(20)
        chain.away = False
        await trio.sleep(20)
    assert not told.messages


async def test_a_part_that_hangs_is_away_and_hides_no_other(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    chain, mesh = Part(), Part()
    watch, told = await watching(nursery, {"chain:1": chain.probe, "mesh": mesh.probe})
    chain.hangs = mesh.away = True
    await trio.sleep(120)
    assert watch.degraded() == ["chain:1", "mesh"]
    assert sorted(told.subjects) == ["TriggerX: chain:1 is away", "TriggerX: mesh is away"]


async def test_an_outage_that_a_restart_slept_through_is_told_neither_twice_nor_left_open(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store, told, chain = MemoryStore(), Told(), Part()
    chain.away = True
    async with trio.open_nursery() as first_life:
        await watching(first_life, {"chain:1": chain.probe}, store=store, told=told)
        await trio.sleep(60)
        first_life.cancel_scope.cancel()
    await watching(nursery, {"chain:1": chain.probe}, store=store, told=told)
    await trio.sleep(60)
    assert told.subjects == ["TriggerX: chain:1 is away"]
    chain.away = False
    await trio.sleep(60)
    assert told.subjects == ["TriggerX: chain:1 is away", "TriggerX: chain:1 works again"]


async def test_two_coordinators_tell_once_together(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    store, told, chain = MemoryStore(), Told(), Part()
    for _ in range(2):
        await watching(nursery, {"chain:1": chain.probe}, store=store, told=told)
    chain.away = True
    await trio.sleep(120)
    chain.away = False
    await trio.sleep(120)
    assert told.subjects == ["TriggerX: chain:1 is away", "TriggerX: chain:1 works again"]


async def test_each_part_shows_whether_it_works(autojump_clock: MockClock) -> None:
    clock, mesh, server, store = TrioClock(), MemoryMesh(), MemoryServer(), MemoryStore()
    network, chain = mesh.join("coordinator"), MemoryChain(clock)
    parts = probes(store, MemoryStreams(server, "a"), {31337: chain}, network, clock)
    assert sorted(parts) == ["chain:31337", "mesh", "store", "streams"]
    mesh.join("keeper")
    for name in parts:
        await parts[name]()

    async def fails(name: str, break_: Callable[[], object]) -> bool:
        break_()
        try:
            await parts[name]()
        except Transient:
            return True
        return False

    assert await fails("chain:31337", chain.go_offline)
    assert await fails("streams", server.take_down)
    assert await fails("mesh", lambda: mesh.leave("keeper"))


async def test_states_are_shown_with_since_and_why(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    chain, mesh = Part(), Part()
    chain.away = True
    watch, _ = await watching(nursery, {"chain:1": chain.probe, "mesh": mesh.probe})
    await trio.sleep(1)
    assert part_rows(watch.states()) == [
        {"part": "chain:1", "up": False, "since": "2023-11-14 22:13:20 UTC", "why": "RPC_UNREACHABLE"},
        {"part": "mesh", "up": True, "since": "2023-11-14 22:13:20 UTC"},
    ]
