"""Who is there: check-ins over the mesh and over HTTP, once each, and what they are worth."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
import trio
from trio.testing import MockClock

from consensus.errors import Ignore, Reject
from consensus.lifecycle import TaskState
from coordinator.keepers import OFFLINE_AFTER_S
from p2p.topics import CHECK_INS
from tests.coordinator.world import open_world

S = TaskState


async def test_a_registry_event_makes_a_new_keeper_known(autojump_clock: MockClock) -> None:
    async with open_world(keepers=1) as world:
        await world.add_keepers(1)
        await trio.sleep(1)
        await world.hear_keepers()
        assert world.coordinator.status()["active_keepers"] == 2


async def test_keepers_go_offline_by_age_and_their_uptime_counts(autojump_clock: MockClock) -> None:
    async with open_world(keepers=2) as world:
        for _ in range(10):
            await trio.sleep(60)
            await world.keepers[0].check_in()
        await trio.sleep(1)
        [online] = world.coordinator.status()["active_keeper_list"]
        assert (online["peer_id"], online["uptime"], online["version"]) == ("keeper-1", 600, "0.1.0")
        assert world.coordinator.status()["total_keepers"] == 2
        await trio.sleep(OFFLINE_AFTER_S)
        assert world.coordinator.status()["active_keepers"] == 0


async def test_a_check_in_replayed_or_of_another_keeper_counts_for_nothing(autojump_clock: MockClock) -> None:
    async with open_world(keepers=2) as world:
        honest, liar = world.keepers
        now = int(world.clock.now())
        message = honest.signer.check_in(world.ledger.domain, honest.peer_id, "0.1.0", "", now)
        stolen = honest.signer.check_in(world.ledger.domain, honest.peer_id, "6.6.6", "", now + 5)
        await honest.network.publish(CHECK_INS, message)
        await trio.sleep(10)
        await honest.network.publish(CHECK_INS, message)
        await liar.network.publish(CHECK_INS, stolen)
        await trio.sleep(1)
        seen = {k["peer_id"]: k for k in world.coordinator.status()["active_keeper_list"]}
        assert seen["keeper-1"]["version"] == "0.1.0"
        assert seen["keeper-1"]["last_checked_in"] == now


async def test_known_keepers_are_given_tasks_after_a_restart_without_a_new_check_in(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        world.kill()
        keepers, world.keepers = world.keepers, []  # nobody checks in
        await world.start()
        world.keepers = keepers
        job_id = await world.post()
        [task] = await world.until(lambda tasks: [t.state for t in tasks] == [S.EXECUTED], job_id)
        assert task.attempt == 1


async def test_after_a_long_absence_connected_keepers_are_given_tasks_before_they_check_in(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        job_id = await world.post(interval=10, time_frame=2000)
        world.kill()
        await trio.sleep(OFFLINE_AFTER_S + 60)
        keepers, world.keepers = world.keepers, []  # nobody checks in
        await world.start()
        world.keepers = keepers
        started = world.clock.now()
        tasks = await world.until(lambda tasks: any(t.executed_at and t.executed_at >= int(started) for t in tasks), job_id)
        assert world.clock.now() < started + 2
        assert all(t.attempt <= 1 for t in tasks)


async def test_a_check_in_over_http_counts_as_one_over_the_mesh_and_once(autojump_clock: MockClock) -> None:
    async with open_world(keepers=1) as world:
        keepers, keeper = world.coordinator.keepers, world.keepers[0]
        await trio.sleep(60)
        message = keeper.signer.check_in(world.ledger.domain, keeper.peer_id, "0.2.0", "docker", int(world.clock.now()))
        await keepers.check_in(message, keeper.peer_id)
        [seen] = keepers.all()
        assert (seen.version, seen.sandbox, seen.uptime_s, seen.last_seen) == ("0.2.0", "docker", 60, int(world.clock.now()))
        with pytest.raises(Ignore, match="REPLAY"):
            await keepers.check_in(message, keeper.peer_id)
        await trio.sleep(5)
        later = keeper.signer.check_in(world.ledger.domain, keeper.peer_id, "0.2.0", "docker", int(world.clock.now()))
        with pytest.raises(Ignore, match="UNKNOWN_PEER"):
            await keepers.check_in(later, "keeper-9")
        with pytest.raises(Reject, match="BAD_SIGNATURE"):
            await keepers.check_in(msgspec.structs.replace(later, version="6.6.6"), keeper.peer_id)
        assert await world.store.keepers() == keepers.all()


async def test_a_check_in_that_another_coordinator_took_is_known_here_soon(autojump_clock: MockClock) -> None:
    async with open_world(keepers=1, coordinators=("a", "b")) as world:
        a, b = (world.processes[name].coordinator.keepers for name in ("a", "b"))
        [seen] = a.all()
        await trio.sleep(400)
        newer = replace(seen, last_seen=int(world.clock.now()), version="9.9.9")
        await world.store.save_keeper(newer)
        await trio.sleep(11)
        assert a.all() == b.all() == [newer]
