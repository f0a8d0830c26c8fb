"""The job API over HTTP: what the SDK sends is served, and what hostile clients send is refused by name."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
from eth_utils.address import to_checksum_address
from hypothesis import given
from hypothesis import strategies as st
from pytest_trio import trio_fixture

from consensus.errors import Invalid
from consensus.lifecycle import TaskState
from coordinator.api.access import Sources
from coordinator.api.keys import new_key
from coordinator.api.limits import RateLimits
from coordinator.api.requests import one_job
from coordinator.api.server import api_app
from coordinator.store.records import ApiKey, Firing, TaskChange
from node.infra.compute import Threads
from node.infra.http import open_server
from tests.coordinator.factory import make_task
from tests.coordinator.world import KEY_OWNER, OWNER, TARGET, World, open_world

ABI = json.dumps([{"type": "function", "name": "ping", "inputs": [{"name": "value", "type": "uint256"}]}])
BIG = 2**200 + 1


@dataclass
class Api:
    """A served API, a client without a key, and the headers of one that has one."""

    world: World
    client: httpx.AsyncClient
    headers: dict[str, str]
    key: ApiKey

    async def get(self, path: str, **params: str) -> httpx.Response:
        return await self.client.get(path, headers=self.headers, params=params)

    async def post(self, job: Any, **headers: str) -> httpx.Response:
        content = job if isinstance(job, bytes) else json.dumps([job])
        return await self.client.post("/api/jobs", content=content, headers={**self.headers, **headers})

    async def other_key(self, owner: str, **changes: Any) -> dict[str, str]:
        text, record = new_key(owner, now=0)
        await self.world.store.add_key(replace(record, **changes))
        return {"X-API-KEY": text}

    def job(self, *, interval: int = 10, time_frame: int = 1000, **changes: Any) -> dict[str, Any]:
        """A job on chain, and what the SDK posts for it."""
        job_id = self.world.ledger.create_job(OWNER, target=TARGET, interval=interval, time_frame=time_frame)
        chain_id = str(self.world.ledger.domain.chain_id)
        return {
            "job_id": str(job_id),
            "user_address": to_checksum_address(OWNER),
            "ether_balance": 1e21,
            "token_balance": 1e21,
            "job_title": "every ten",
            "task_definition_id": 1,
            "custom": True,
            "time_frame": time_frame,
            "recurring": False,
            "job_cost_prediction": 0.0123,
            "timezone": "Europe/Berlin",
            "created_chain_id": chain_id,
            "schedule_type": "interval",
            "time_interval": interval,
            "target_chain_id": chain_id,
            "target_contract_address": to_checksum_address(TARGET),
            "target_function": "ping",
            "abi": ABI,
            "arg_type": 1,
            "arguments": [str(BIG)],
            "is_imua": True,
            "is_safe": False,
            "safe_name": "",
            "safe_address": "",
            "language": "",
            **changes,
        }


@trio_fixture  # type: ignore[untyped-decorator]
async def api() -> AsyncIterator[Api]:
    async with open_world(keepers=1) as world:
        coordinator = world.coordinator
        assert coordinator is not None
        text, key = new_key(KEY_OWNER, now=0)
        await world.store.add_key(key)

        async def metrics() -> bytes:
            return b"triggerx_build_info 1\n"

        sources = Sources(
            store=world.store,
            jobs=coordinator.jobs,
            clock=world.clock,
            compute=Threads(),
            explorers={world.ledger.domain.chain_id: "https://scan.example.org/"},
            missing=coordinator.missing,
            status=coordinator.status,
            metrics=metrics,
            observe=lambda method, route, status, seconds: None,
        )
        headers = {"X-API-KEY": text, "Authorization": f"Bearer {text}"}
        async with (
            open_server(api_app(sources), "127.0.0.1", 0, body_limit=1_048_576) as url,
            httpx.AsyncClient(base_url=url, timeout=20) as client,
        ):
            yield Api(world, client, headers, key)


async def test_what_the_sdk_does_with_a_time_job(api: Api) -> None:
    job = api.job()
    fees = await api.client.get(
        "/api/fees",
        headers={"Authorization": api.headers["Authorization"], "X-Trace-ID": "get-fees-1-2"},
        params={
            "ipfs_url": "",
            "task_definition_id": "1",
            "target_chain_id": job["target_chain_id"],
            "target_contract_address": job["target_contract_address"],
            "target_function": "ping",
            "abi": ABI,
            "args": json.dumps(job["arguments"]),
        },
    )
    assert fees.status_code == 200
    assert int(fees.json()["current_total_fee"]) == int(fees.json()["total_fee"]) > 0

    created = await api.post(job, **{"X-Trace-ID": "post-jobs-b92266-39bfafc5"})
    assert created.status_code == 200
    assert created.headers["X-Trace-ID"] == "post-jobs-b92266-39bfafc5"
    assert created.json() == {
        "user_id": 1,
        "account_balance": str(10**20),
        "token_balance": str(10**20),
        "job_ids": [job["job_id"]],
        "task_definition_ids": [1],
        "time_frames": [1000],
    }

    owner = job["user_address"]
    for path in ("/api/jobs/by-apikey", f"/api/jobs/user/{owner}"):
        [listed] = (await api.get(path)).json()["jobs"]
        assert listed["job_data"]["job_id"] == job["job_id"]
        assert listed["job_data"]["status"] in ("pending", "running")
        assert listed["time_job_data"]["time_interval"] == 10
        assert listed["time_job_data"]["arguments"] == [str(BIG)]
    bare = (await api.get(f"/api/jobs/user/{owner}/{job['job_id']}")).json()
    assert (bare["job_id"], bare["timezone"]) == (job["job_id"], "Europe/Berlin")
    assert (await api.get(f"/api/jobs/id/{job['job_id']}")).json()["job_data"]["job_title"] == "every ten"
    user = (await api.get(f"/api/users/{owner}")).json()
    assert (user["job_ids"], user["total_jobs"], user["user_address"]) == ([job["job_id"]], 1, owner)

    deleted = await api.client.put(f"/api/jobs/delete/{job['job_id']}", headers=api.headers, json={})
    assert deleted.status_code == 200
    [listed] = (await api.get("/api/jobs/by-apikey")).json()["jobs"]
    assert listed["job_data"]["status"] == "deleted"
    assert (await api.client.delete(f"/api/jobs/delete/{job['job_id']}", headers=api.headers)).status_code == 200


async def test_a_task_is_told_with_every_field_clients_read(api: Api) -> None:
    job = api.job()
    await api.post(job)
    stored = await api.world.store.job(int(job["job_id"]))
    assert stored is not None
    task = make_task(stored, stored.created_at + 500, chain_id=stored.target.chain_id, arguments="")
    await api.world.store.fire([Firing(stored.id, task, None)], 0)
    executed = TaskChange(
        task.id, (TaskState.EXECUTED,), number=4, cost=10**18, executed_at=stored.created_at + 500, execution_tx=b"\xaa" * 32,
        performer=b"\x01" * 20, performer_id=3, successful=True, stages={"executed": 1},
    )  # fmt: skip
    certified = TaskChange(
        task.id, (TaskState.CERTIFIED,), accepted=True, attester_ids=(1, 2), submission_tx=b"\xbb" * 32, proof=b"\xcc" * 32
    )
    await api.world.store.change(executed, 0)
    await api.world.store.change(certified, 0)
    listed = (await api.get(f"/api/tasks/job/{job['job_id']}")).json()
    assert isinstance(listed, list)
    [told] = [t for t in listed if t["task_id"] == str(task.id)]
    expected = {
        "task_number": 4,
        "task_opx_cost": str(10**18),
        "execution_tx_hash": "0x" + "aa" * 32,
        "task_submission_tx_hash": "0x" + "bb" * 32,
        "task_performer_id": 3,
        "task_attester_ids": [1, 2],
        "is_accepted": True,
        "tx_url": "https://scan.example.org/tx/0x" + "aa" * 32,
        "task_status": "completed",
        "task_error": "",
        "converted_arguments": f"[{BIG}]",
    }
    assert {k: told[k] for k in expected} == expected
    assert told["execution_timestamp"].endswith("Z")
    assert (await api.get(f"/api/tasks/id/{task.id}")).json()["stages"]["executed"] == 1
    assert (await api.get(f"/api/tasks/{task.id}")).json()["task_id"] == str(task.id)


async def test_the_same_post_gets_the_same_answer(api: Api) -> None:
    job = api.job()
    first = await api.post(job)
    assert (await api.post(job)).json() == first.json()
    assert (await api.post({**job, "arguments": ["6"]})).status_code == 409
    other = await api.other_key("somebody else")
    refused = await api.client.post("/api/jobs", headers=other, json=[job])
    assert (refused.status_code, refused.json()["code"]) == (409, "JOB_EXISTS")


async def test_keys_are_asked_for_and_checked(api: Api) -> None:
    for path in ("/api/jobs/by-apikey", "/api/tasks/job/1", f"/api/users/{to_checksum_address(OWNER)}"):
        missing = await api.client.get(path)
        assert (missing.status_code, missing.json()["code"]) == (401, "API_KEY_MISSING")
        unknown = await api.client.get(path, headers={"X-API-KEY": "TGRX-nobody"})
        assert (unknown.status_code, unknown.json()["code"]) == (403, "API_KEY_UNKNOWN")
        inactive = await api.client.get(path, headers=await api.other_key("gone", active=False))
        assert inactive.status_code == 403
    bearer = await api.client.get("/api/jobs/by-apikey", headers={"Authorization": api.headers["Authorization"]})
    assert bearer.status_code == 200
    assert (await api.client.post("/api/jobs", content=b"nonsense")).status_code == 401


async def test_another_key_sees_and_deletes_nothing_of_mine(api: Api) -> None:
    job = api.job()
    await api.post(job)
    other = await api.other_key("somebody else")
    owner, job_id = job["user_address"], job["job_id"]
    for path in (f"/api/jobs/id/{job_id}", f"/api/jobs/user/{owner}/{job_id}", f"/api/tasks/job/{job_id}", f"/api/users/{owner}"):
        assert (await api.client.get(path, headers=other)).status_code == 404
    assert (await api.client.get(f"/api/jobs/user/{owner}", headers=other)).json() == {"jobs": []}
    assert (await api.client.get("/api/jobs/by-apikey", headers=other)).json() == {"jobs": []}
    assert (await api.client.put(f"/api/jobs/delete/{job_id}", headers=other, json={})).status_code == 404
    admin = await api.other_key("operator", role="admin")
    assert (await api.client.get(f"/api/jobs/id/{job_id}", headers=admin)).status_code == 200
    assert (await api.client.put(f"/api/jobs/delete/{job_id}", headers=admin, json={})).status_code == 404


async def test_a_key_that_asks_too_often_is_told_when_to_come_back(api: Api) -> None:
    slow = await api.other_key("hurried", rate_limit=3)
    answers = [await api.client.get("/api/jobs/by-apikey", headers=slow) for _ in range(5)]
    assert [a.status_code for a in answers] == [200, 200, 200, 429, 429]
    assert answers[0].headers["X-RateLimit-Limit"] == "3"
    assert [a.headers["X-RateLimit-Remaining"] for a in answers[:4]] == ["2", "1", "0", "0"]
    assert 0 < int(answers[3].headers["X-RateLimit-Reset"]) <= 60
    assert answers[3].json()["message"]
    assert (await api.get("/api/jobs/by-apikey")).status_code == 200


@pytest.mark.parametrize(
    ("changes", "field", "code"),
    [
        ({"task_definition_id": 2}, "task_definition_id", "UNSUPPORTED_JOB"),
        ({"task_definition_id": 7}, "task_definition_id", "UNSUPPORTED_JOB"),
        ({"task_definition_id": 8}, "task_definition_id", "INVALID_FIELD"),
        ({"task_definition_id": True}, "task_definition_id", "INVALID_FIELD"),
        ({"schedule_type": "cron", "cron_expression": "* * * * *"}, "schedule_type", "UNSUPPORTED_JOB"),
        ({"schedule_type": "specific", "specific_schedule": "x"}, "schedule_type", "UNSUPPORTED_JOB"),
        ({"dynamic_arguments_script_url": "ipfs://x"}, "dynamic_arguments_script_url", "UNSUPPORTED_JOB"),
        ({"is_safe": True}, "is_safe", "UNSUPPORTED_JOB"),
        ({"time_interval": 0}, "time_interval", "INVALID_FIELD"),
        ({"time_interval": None}, "time_interval", "INVALID_FIELD"),
        ({"time_interval": 1.5}, "time_interval", "INVALID_FIELD"),
        ({"time_interval": 2000}, "time_interval", "INVALID_FIELD"),
        ({"time_frame": -1}, "time_frame", "INVALID_FIELD"),
        ({"time_frame": 1e30}, "time_frame", "INVALID_FIELD"),
        ({"time_frame": 999}, "time_frame", "CONTRADICTS_CHAIN"),
        ({"job_id": "12"}, "job_id", "UNKNOWN_JOB"),
        ({"job_id": str(2**256)}, "job_id", "INVALID_FIELD"),
        ({"job_id": "-1"}, "job_id", "INVALID_FIELD"),
        ({"job_id": "\u0661"}, "job_id", "INVALID_FIELD"),
        ({"job_id": None}, "job_id", "INVALID_FIELD"),
        ({"job_title": "x" * 300}, "job_title", "INVALID_FIELD"),
        ({"job_title": "\ud800"}, "job_title", "INVALID_FIELD"),
        ({"job_title": "a\0b"}, "job_title", "INVALID_FIELD"),
        ({"job_title": {"a": 1}}, "job_title", "INVALID_FIELD"),
        ({"job_cost_prediction": "9" * 100}, "job_cost_prediction", "INVALID_FIELD"),
        ({"user_address": "0x12"}, "user_address", "INVALID_FIELD"),
        ({"user_address": "0x" + "\u0661" * 40}, "user_address", "INVALID_FIELD"),
        ({"user_address": "0x5aaeb6053F3E94C9b9A09f33669435E7Ef1BeAed"}, "user_address", "INVALID_FIELD"),
        ({"user_address": "0x" + "01" * 20}, "user_address", "CONTRADICTS_CHAIN"),
        ({"target_contract_address": ""}, "target_contract_address", "INVALID_FIELD"),
        ({"target_chain_id": "1", "created_chain_id": "1"}, "target_chain_id", "UNKNOWN_CHAIN"),
        ({"target_chain_id": "1"}, "target_chain_id", "INVALID_FIELD"),
        ({"target_function": "pong"}, "target_function", "INVALID_FIELD"),
        ({"abi": "[" * 5000}, "abi", "INVALID_FIELD"),
        ({"abi": "x" * 200_000}, "abi", "INVALID_FIELD"),
        ({"arguments": []}, "arguments[0]", "INVALID_FIELD"),
        ({"arguments": ["1", "2"]}, "arguments[1]", "INVALID_FIELD"),
        ({"arguments": [str(2**256)]}, "arguments[0]", "INVALID_FIELD"),
        ({"arguments": [0.5]}, "arguments[0]", "INVALID_FIELD"),
        ({"arguments": "5"}, "arguments", "INVALID_FIELD"),
        ({"security": 9}, "security", "INVALID_FIELD"),
    ],
)  # fmt: skip
async def test_a_job_that_cannot_be_taken_is_refused_by_field(api: Api, changes: dict[str, Any], field: str, code: str) -> None:
    job = {**api.job(), **changes}
    answer = await api.post(job)
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (422, code, field)
    assert answer.json()["error"]
    assert await api.world.store.jobs(key_owner=KEY_OWNER) == []


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "INVALID_BODY"),
        (b"nonsense", 400, "INVALID_BODY"),
        (b"\xff\xfe", 400, "INVALID_BODY"),
        (b"[" * 100_000, 400, "INVALID_BODY"),
        (b'{"a":' * 50_000, 400, "INVALID_BODY"),
        (b"NaN", 400, "INVALID_BODY"),
        (b'[{"a":1,"a":2}]', 400, "INVALID_BODY"),
        (b"[" + b"9" * 10_000 + b"]", 400, "INVALID_BODY"),
        (b"{}", 400, "INVALID_BODY"),
        (b"[]", 422, "UNSUPPORTED_JOB"),
        (b"[{},{}]", 422, "UNSUPPORTED_JOB"),
        (b"[5]", 422, "INVALID_FIELD"),
        (b"[null]", 422, "INVALID_FIELD"),
        (b"[{}]", 422, "INVALID_FIELD"),
        (b"[1e999999999]", 422, "INVALID_FIELD"),
        (b" " * 1_100_000, 413, "REQUEST_ENTITY_TOO_LARGE"),
    ],
)
async def test_a_body_that_is_no_job_is_refused(api: Api, body: bytes, status: int, code: str) -> None:
    answer = await api.post(body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_numbers_as_javascript_writes_them_are_taken(api: Api) -> None:
    job = api.job()
    body = json.dumps([job]).replace('"time_interval": 10', '"time_interval": 1e1').replace(f'["{BIG}"]', "[1e+21]")
    assert (await api.post(body.encode())).status_code == 200
    [listed] = (await api.get("/api/jobs/by-apikey")).json()["jobs"]
    assert listed["time_job_data"]["arguments"] == ["1E+21"]
    stored = await api.world.store.job(int(job["job_id"]))
    assert stored is not None
    assert int.from_bytes(stored.target.call[4:], "big") == 10**21


@pytest.mark.parametrize("path", ["/api/tasks/job/{}", "/api/jobs/id/{}", "/api/tasks/id/{}", "/api/jobs/user/0x00/{}"])
@pytest.mark.parametrize("bad", ["abc", "-1", str(2**256), "9" * 5000, "%00", "1'; DROP TABLE job_data; --", "%F0%9F%92%A9"])
async def test_bad_ids_in_paths_are_not_found(api: Api, path: str, bad: str) -> None:
    answer = await api.get(path.format(bad))
    assert answer.status_code in (404, 422)
    assert answer.json()["code"]


async def test_bad_addresses_and_unknown_users_are_told_apart(api: Api) -> None:
    assert (await api.get("/api/users/nobody")).status_code == 422
    assert (await api.get(f"/api/users/{to_checksum_address(b'9' * 20)}")).status_code == 404
    assert (await api.get(f"/api/jobs/user/{to_checksum_address(b'9' * 20)}")).json() == {"jobs": []}


async def test_traces_are_echoed_or_made(api: Api) -> None:
    made = (await api.client.get("/livez")).headers["X-Trace-ID"]
    assert made.startswith("tgrx-")
    assert len(made) == 41
    assert (await api.client.get("/livez", headers={"X-Trace-ID": "any opaque string"})).headers[
        "X-Trace-ID"
    ] == "any opaque string"
    job = api.job()
    await api.post(job, **{"X-Trace-ID": "tgrx-sdk-1"})
    stored = await api.world.store.job(int(job["job_id"]))
    assert stored is not None
    assert stored.trace_id == "tgrx-sdk-1"


async def test_health_is_open_to_all(api: Api) -> None:
    for path in ("/livez", "/readyz", "/api/health", "/metrics", "/status"):
        assert (await api.client.get(path)).status_code == 200
    status = (await api.client.get("/status")).json()
    assert (status["total_keepers"], status["active_keepers"]) == (1, 1)
    assert status["active_keeper_list"][0]["peer_id"] == "keeper-1"
    nothing = await api.client.get("/nothing/here")
    assert (nothing.status_code, nothing.json()["code"]) == (404, "NOT_FOUND")
    wrong = await api.client.post("/livez")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "METHOD_NOT_ALLOWED")


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({}, "target_chain_id"),
        ({"target_chain_id": "5"}, "target_chain_id"),
        ({"target_chain_id": "x"}, "target_chain_id"),
        ({"target_chain_id": "31337", "task_definition_id": "9"}, "task_definition_id"),
        ({"target_chain_id": "31337", "target_contract_address": "0x1"}, "target_contract_address"),
        (
            {"target_chain_id": "31337", "target_contract_address": "0x" + "01" * 20, "target_function": "pong", "abi": ABI},
            "target_function",
        ),
        (
            {
                "target_chain_id": "31337",
                "target_contract_address": "0x" + "01" * 20,
                "target_function": "ping",
                "abi": ABI,
                "args": '["x"]',
            },
            "arguments[0]",
        ),
    ],
)
async def test_a_fee_that_cannot_be_told_names_why(api: Api, params: dict[str, str], field: str) -> None:
    answer = await api.get("/api/jobs/fees", **params)
    assert (answer.status_code, answer.json()["field"]) == (422, field)


async def test_a_chain_that_does_not_answer_is_not_the_clients_fault(api: Api) -> None:
    job = api.job()
    api.world.chain.go_offline()
    answer = await api.post(job)
    assert (answer.status_code, answer.json()["code"]) == (503, "RPC_UNREACHABLE")
    api.world.chain.go_online()
    assert (await api.post(job)).status_code == 200


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
VALID: dict[str, Any] = {
    "job_id": "5",
    "user_address": "0x" + "01" * 20,
    "job_title": "t",
    "task_definition_id": 1,
    "time_frame": 100,
    "time_interval": 10,
    "created_chain_id": "31337",
    "target_chain_id": "31337",
    "target_contract_address": "0x" + "02" * 20,
    "target_function": "ping(uint256)",
}
FIELDS = [
    *VALID,
    "schedule_type",
    "abi",
    "arg_type",
    "arguments",
    "job_cost_prediction",
    "timezone",
    "safe_address",
    "unheard_of",
]


@given(st.dictionaries(st.sampled_from(FIELDS), values, max_size=4))
def test_any_field_of_any_type_is_taken_or_refused_by_name(changes: dict[str, Any]) -> None:
    try:
        posted = one_job(json.dumps([{**VALID, **changes}]).encode())
    except Invalid as refused:
        assert refused.field  # noqa: PT017 - it may also be taken
    else:
        assert len(posted.owner) == len(posted.contract) == 20


@given(st.lists(st.floats(min_value=0, max_value=100), max_size=60), st.integers(1, 30))
def test_no_minute_holds_more_requests_than_a_bucket_and_its_refill(pauses: list[float], limit: int) -> None:
    limits, now, allowed = RateLimits(), 0.0, []
    for pause in pauses:
        now += pause
        if limits.take(b"k", limit, now).allowed:
            allowed.append(now)
    assert all(sum(start <= t < start + 60 for t in allowed) <= 2 * limit for start in allowed)
