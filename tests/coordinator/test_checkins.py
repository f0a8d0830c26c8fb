"""Check-ins over HTTP: taken like those of the mesh, once each, from whom they say, and cheap to refuse."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx
import msgspec
import pytest
import trio
from eth_utils.address import to_checksum_address
from hypothesis import given
from hypothesis import strategies as st
from pytest_trio import trio_fixture
from structlog.testing import capture_logs

from consensus import ecdsa
from consensus.errors import Invalid
from consensus.messages import CheckIn
from coordinator.api import health
from coordinator.api.server import api_app
from coordinator.fees import Fees
from coordinator.jobs import Jobs
from coordinator.keepers import Keepers
from coordinator.signals import Signals
from coordinator.store.memory import MemoryStore
from coordinator.store.records import KeeperRecord
from coordinator.watch import PartState
from node.checkins import PATH, CheckInPost, as_json, open_check_in_post
from node.infra.clock import TrioClock
from node.infra.compute import inline
from node.infra.http import open_server
from p2p.memory import MemoryMesh
from tests.consensus import samples
from tests.consensus.samples import PEER, PERFORMER
from tests.consensus.test_rules import Known
from tests.coordinator.conftest import sources

OPERATOR = ecdsa.address_of(PERFORMER)


@dataclass
class Desk:
    """A coordinator that takes check-ins, and a client."""

    url: str
    client: httpx.AsyncClient
    keepers: Keepers
    store: MemoryStore
    clock: TrioClock
    parts: dict[str, PartState]

    def check_in(self, ago: int = 0, **changes: Any) -> CheckIn:
        return replaced(samples.check_in(at=int(self.clock.now()) - ago), **changes)

    async def post(self, body: Any, path: str = PATH) -> httpx.Response:
        return await self.client.post(path, content=body if isinstance(body, bytes) else json.dumps(body))


def replaced(check_in: CheckIn, **changes: Any) -> CheckIn:
    return msgspec.structs.replace(check_in, **changes)


@trio_fixture  # type: ignore[untyped-decorator]
async def desk() -> AsyncIterator[Desk]:
    clock, store, parts = TrioClock(), MemoryStore(), dict[str, PartState]()
    keepers = Keepers(store, MemoryMesh().join("coordinator"), Known(), Signals(), clock)

    async def nobody(_: int) -> None:
        return

    async def any_url(*_: str) -> None:
        return

    jobs = Jobs(store, Fees(store, {}, clock, inline), clock, inline, changed=nobody, check_url=any_url)
    app = api_app(sources(store, jobs, clock, keepers=keepers, parts=lambda: parts))
    async with open_server(app, "127.0.0.1", 0) as url, httpx.AsyncClient(base_url=url, timeout=20) as client:
        yield Desk(url, client, keepers, store, clock, parts)


@pytest.mark.parametrize("path", ["/keeper/checkin", "/health"])
async def test_a_signed_check_in_makes_a_keeper_online(desk: Desk, path: str) -> None:
    check_in = desk.check_in()
    answer = await desk.post(as_json(check_in, PEER), path)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "last_checked_in": check_in.at})
    [seen] = await desk.store.keepers()
    assert (seen.address, seen.peer_id, seen.version, seen.sandbox) == (OPERATOR, PEER, "0.1.0", "embedded")
    await desk.store.save_keeper_form(KeeperRecord(31337, OPERATOR, name="ours", email="ops@example.org", chat_id="42"))
    listed = await desk.client.get("/operators")
    [row] = listed.json()["operators"]
    assert (row["keeper_address"], row["online"], row["chain_id"]) == (to_checksum_address(OPERATOR), True, "31337")
    assert "ops@example.org" not in listed.text


async def test_a_check_in_counts_once(desk: Desk) -> None:
    body = as_json(desk.check_in(), PEER)
    assert (await desk.post(body)).status_code == 200
    again = await desk.post(body)
    assert (again.status_code, again.json()["code"]) == (409, "REPLAY")
    older = await desk.post(as_json(desk.check_in(ago=5), PEER))
    assert (older.status_code, older.json()["code"]) == (409, "REPLAY")


async def test_what_came_by_gossip_is_a_replay_here(desk: Desk) -> None:
    check_in = desk.check_in()
    await desk.keepers.check_in(check_in, PEER)
    assert (await desk.post(as_json(check_in, PEER))).status_code == 409


@pytest.mark.parametrize(
    ("change", "peer", "status", "code"),
    [
        ({"signature": b"\x01" * 65}, PEER, 401, "BAD_SIGNATURE"),
        ({"sandbox": "docker"}, PEER, 401, "BAD_SIGNATURE"),
        ({"version": "9.9.9"}, PEER, 401, "BAD_SIGNATURE"),
        ({"operator": b"\x01" * 20}, PEER, 403, "UNKNOWN_PEER"),
        ({}, "12D3KooWNobody", 403, "UNKNOWN_PEER"),
        ({"chain_id": 5}, PEER, 422, "UNKNOWN_CHAIN"),
    ],
)
async def test_a_check_in_that_is_not_the_keepers_is_refused(
    desk: Desk, change: dict[str, Any], peer: str, status: int, code: str
) -> None:
    answer = await desk.post(as_json(desk.check_in(**change), peer))
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert not await desk.store.keepers()


@pytest.mark.parametrize("ago", [31, 3600, -31])
async def test_a_wrong_clock_or_an_old_recording_is_refused(desk: Desk, ago: int) -> None:
    answer = await desk.post(as_json(desk.check_in(ago=ago), PEER))
    assert (answer.status_code, answer.json()["code"]) == (422, "STALE")


@pytest.mark.parametrize(
    "change",
    [
        {"chain_id": "x"},
        {"chain_id": 0},
        {"chain_id": 2**64},
        {"chain_id": None},
        {"operator": "0x12"},
        {"operator": "0x" + "zz" * 20},
        {"signature": "0x"},
        {"signature": "0x" + "00" * 66},
        {"at": -1},
        {"at": 2**63},
        {"at": "now"},
        {"version": "v" * 65},
        {"sandbox": "s" * 33},
        {"peer_id": "p" * 129},
        {"peer_id": 7},
    ],
)
async def test_a_malformed_check_in_names_what_is_wrong(desk: Desk, change: dict[str, Any]) -> None:
    answer = await desk.post({**as_json(desk.check_in(), PEER), **change})
    assert answer.status_code in (400, 422)
    assert answer.json()["code"] in ("INVALID_BODY", "INVALID_FIELD")


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null", b"\xff", b"[" * 3000, b'{"a":' * 800, b" " * 5000])
async def test_what_is_no_check_in_at_all_is_refused(desk: Desk, body: bytes) -> None:
    answer = await desk.post(body)
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_BODY")


@given(st.binary(max_size=300))
def test_no_bytes_do_more_than_be_refused(body: bytes) -> None:
    with pytest.raises(Invalid):
        health._read(body)


async def test_one_client_cannot_keep_the_processor_at_checking_signatures(desk: Desk) -> None:
    forged = as_json(desk.check_in(signature=b"\x01" * 65), PEER)
    began, checked = desk.clock.now(), 0
    while (answer := await desk.post(forged)).status_code == 401:
        checked += 1
        assert checked <= health._OF_ONE * (1 + (desk.clock.now() - began) / 60) + 1
    assert answer.status_code == 429
    assert answer.json()["code"] == "RATE_LIMITED"
    assert "message" in answer.json()


async def test_health_says_which_part_is_away(desk: Desk) -> None:
    desk.parts["mesh"] = PartState(True, 0)
    well = (await desk.client.get("/api/health")).json()
    assert (well["status"], well["degraded"]) == ("healthy", [])
    desk.parts["streams"] = PartState(False, 60, "STREAMS_UNREACHABLE")
    answer = await desk.client.get("/api/health")
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["degraded"]) == ("degraded", ["streams"])
    assert answer.json()["parts"][1] == {
        "part": "streams", "up": False, "since": "1970-01-01 00:01:00 UTC", "why": "STREAMS_UNREACHABLE"
    }  # fmt: skip


# the keeper's side


async def test_a_keeper_posts_what_the_coordinator_takes(desk: Desk) -> None:
    async with open_check_in_post(desk.url + "/") as post:
        await post(desk.check_in(), PEER)
    assert len(await desk.store.keepers()) == 1


async def test_an_outage_is_logged_when_it_begins_and_when_it_ends(desk: Desk) -> None:
    async with httpcore.AsyncConnectionPool() as pool:
        post = CheckInPost(desk.url, pool)
        unknown = desk.check_in(operator=b"\x01" * 20)
        with capture_logs() as logs:
            for _ in range(3):
                await post(unknown, PEER)
            await post(desk.check_in(), PEER)
            await post(desk.check_in(), PEER)  # a replay: it arrived
        assert [log["event"] for log in logs if "check-ins" in log["event"]] == [
            "check-ins do not arrive over HTTP",
            "check-ins arrive over HTTP again",
        ]


async def test_a_coordinator_that_is_gone_raises_nothing() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    async with open_check_in_post(f"http://127.0.0.1:{port}") as post:
        await post(samples.check_in(), PEER)
