"""The network in one process: links that delay, drop and break on command, on a virtual clock."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from consensus.errors import Transient
from p2p.memory import MemoryMesh
from p2p.network import PeerId
from tests.p2p.conftest import ECHO, TEXT, accept


async def echo(message: str, _source: PeerId) -> str:
    return message


async def test_messages_take_the_time_their_link_takes(autojump_clock: MockClock) -> None:
    mesh = MemoryMesh(latency=lambda source, _target: {"near": 0.01, "far": 2.0}[source])
    near, far, reader = mesh.join("near"), mesh.join("far"), mesh.join("reader")
    async with reader.subscribe(TEXT, accept, capacity=8) as channel:
        started = trio.current_time()
        await far.publish(TEXT, "first sent")
        await near.publish(TEXT, "first here")
        arrivals = [((await channel.receive()).message, round(trio.current_time() - started, 6)) for _ in range(2)]
    assert arrivals == [("first here", 0.01), ("first sent", 2.0)]


async def test_a_request_takes_both_ways(autojump_clock: MockClock) -> None:
    mesh = MemoryMesh(latency=lambda _source, target: 1.0 if target == "b" else 0.5)
    a, b = mesh.join("a"), mesh.join("b")
    async with b.serve(ECHO, echo):
        started = trio.current_time()
        assert await a.request("b", ECHO, "hello") == "hello"
        assert trio.current_time() - started == pytest.approx(1.5)


async def test_a_peer_that_is_cut_off_hears_and_says_nothing_until_it_is_restored(autojump_clock: MockClock) -> None:
    mesh = MemoryMesh(latency=lambda _source, _target: 1.0)
    a, b = mesh.join("a"), mesh.join("b")
    async with b.subscribe(TEXT, accept, capacity=8) as channel, b.serve(ECHO, echo):
        await a.publish(TEXT, "under way when it was cut")
        mesh.cut("b")
        await a.publish(TEXT, "while it was cut")
        assert a.connected() == b.connected() == a.topic_peers(TEXT) == frozenset()
        with pytest.raises(Transient):
            await a.request("b", ECHO, "hello?")
        await trio.sleep(5)
        mesh.restore("b")
        await a.publish(TEXT, "after")
        assert (await channel.receive()).message == "after"
        assert await a.request("b", ECHO, "hello") == "hello"


async def test_a_broken_link_concerns_only_its_two_ends(autojump_clock: MockClock) -> None:
    mesh = MemoryMesh()
    a, b, c = mesh.join("a"), mesh.join("b"), mesh.join("c")
    mesh.cut_link("a", "b")
    async with b.subscribe(TEXT, accept, capacity=8) as at_b, c.subscribe(TEXT, accept, capacity=8) as at_c:
        await a.publish(TEXT, "from a")
        await c.publish(TEXT, "from c")
        assert (await at_b.receive()).source == "c"
        assert (await at_c.receive()).source == "a"
        assert a.connected() == {"c"}
        mesh.restore_link("b", "a")
        assert a.connected() == {"b", "c"}


async def test_lost_messages_are_lost(autojump_clock: MockClock) -> None:
    lost = iter([True, False])
    mesh = MemoryMesh(loss=lambda _source, _target, _topic: next(lost))
    a, b = mesh.join("a"), mesh.join("b")
    async with b.subscribe(TEXT, accept, capacity=8) as channel:
        await a.publish(TEXT, "one")
        await a.publish(TEXT, "two")
        assert (await channel.receive()).message == "two"
        await trio.testing.wait_all_tasks_blocked()
        assert b.counters.delivered == 1


async def test_raw_bytes_of_a_hostile_peer_are_judged_like_any_others(autojump_clock: MockClock) -> None:
    mesh = MemoryMesh()
    victim = mesh.join("victim")
    async with victim.subscribe(TEXT, accept, capacity=8) as channel, victim.serve(ECHO, echo):
        mesh.inject("enemy", TEXT.name, b"\xff\xfe")
        mesh.inject("enemy", TEXT.name, b"x" * 5000)
        mesh.inject("enemy", TEXT.name, b"harmless", to="victim")
        assert (await channel.receive()).source == "enemy"
        with pytest.raises(Transient):
            await mesh.inject_request("enemy", "victim", ECHO.protocol, b"\xff\xfe")
        assert victim.counters.rejected == {"UNDECODABLE": 2, "TOO_LARGE": 1}
        assert victim.counters.cut_off == 1
        mesh.inject("enemy", TEXT.name, b"too late")
        await trio.testing.wait_all_tasks_blocked()
        assert victim.counters.ignored == {"CUT_OFF": 1}


async def test_a_peer_that_left_is_gone_and_may_come_back_empty(autojump_clock: MockClock) -> None:
    mesh = MemoryMesh()
    a, b = mesh.join("a"), mesh.join("b")
    async with b.subscribe(TEXT, accept, capacity=8) as old:
        mesh.leave("b")
        assert a.connected() == frozenset()
        await b.publish(TEXT, "a ghost speaks")
        again = mesh.join("b")
        async with again.subscribe(TEXT, accept, capacity=8) as new, a.subscribe(TEXT, accept, capacity=8) as at_a:
            await a.publish(TEXT, "hello again")
            assert (await new.receive()).message == "hello again"
            await again.publish(TEXT, "here")
            assert (await at_a.receive()).message == "here"
        assert old.statistics().current_buffer_used == 0


async def test_an_hour_of_a_hundred_peers_takes_seconds(autojump_clock: MockClock) -> None:
    mesh = MemoryMesh(latency=lambda _source, _target: 0.05)
    talker, *listeners = [mesh.join(f"peer-{index}") for index in range(100)]
    heard = 0

    async def listen(index: int) -> None:
        nonlocal heard
        async with listeners[index].subscribe(TEXT, accept, capacity=8) as channel:
            for _ in range(12):
                await channel.receive()
                heard += 1

    async with trio.open_nursery() as nursery:
        for index in range(len(listeners)):
            nursery.start_soon(listen, index)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(12):
            await talker.publish(TEXT, "tick")
            await trio.sleep(300)
    assert heard == 99 * 12
