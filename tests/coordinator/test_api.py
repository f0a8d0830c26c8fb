"""The job API over HTTP: what the SDK does with a time job, keys and whose they are, and what is told."""

from __future__ import annotations

import json

from eth_utils.address import to_checksum_address
from hypothesis import given
from hypothesis import strategies as st

from consensus.lifecycle import TaskState
from consensus.messages import JobSpec, spec_cid, spec_digest
from coordinator.api.limits import RateLimits
from coordinator.store.records import Firing, Job, Task, TaskChange, shard_of
from tests.coordinator.conftest import ABI, BIG, OWNER, Api
from tests.coordinator.factory import make_task


async def fire(api: Api, job: Job, *tasks: Task) -> None:
    shard = shard_of(job.id)
    assert await api.store.claim_shard(shard, 1, 0)
    await api.store.fire([Firing(job.id, task) for task in tasks], 0, {shard: 1})


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
    stored = await api.store.job(int(job["job_id"]))
    assert stored is not None
    task = make_task(stored, stored.created_at + 500, chain_id=stored.target.chain_id, arguments="")
    await fire(api, stored, task)
    executed = TaskChange(
        task.id, (TaskState.EXECUTED,), number=4, cost=10**18, executed_at=stored.created_at + 500, execution_tx=b"\xaa" * 32,
        performer=b"\x01" * 20, performer_id=3, successful=True, stages={"executed": 1},
    )  # fmt: skip
    certified = TaskChange(
        task.id, (TaskState.CERTIFIED,), accepted=True, attester_ids=(1, 2), submission_tx=b"\xbb" * 32, proof=b"\xcc" * 32
    )
    await api.store.change(executed, 0)
    await api.store.change(certified, 0)
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
    for changes in ({"arguments": ["6"]}, {"priority": 1}, {"missed_run_policy": "skip"}, {"job_title": "another"}):
        assert (await api.post({**job, **changes})).status_code == 409
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


async def test_a_jobs_spec_is_what_its_authorisations_name(api: Api) -> None:
    job = api.job()
    await api.post(job)
    told = (await api.get(f"/api/jobs/spec/{job['job_id']}")).json()
    spec = bytes.fromhex(told["spec"][2:])
    assert told["cid"] == spec_cid(spec_digest(spec))
    decoded = JobSpec.decode(spec)
    assert (str(decoded.job_id), decoded.function) == (job["job_id"], "ping(uint256)")
    assert told["gas_limit"] > 0


async def test_another_key_sees_and_deletes_nothing_of_mine(api: Api) -> None:
    job = api.job()
    await api.post(job)
    other = await api.other_key("somebody else")
    owner, job_id = job["user_address"], job["job_id"]
    for path in (
        f"/api/jobs/id/{job_id}",
        f"/api/jobs/spec/{job_id}",
        f"/api/jobs/user/{owner}/{job_id}",
        f"/api/tasks/job/{job_id}",
        f"/api/users/{owner}",
    ):
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


async def test_numbers_as_javascript_writes_them_are_taken(api: Api) -> None:
    job = api.job()
    body = json.dumps([job]).replace('"time_interval": 10', '"time_interval": 1e1').replace(f'["{BIG}"]', "[1e+21]")
    assert (await api.post(body.encode())).status_code == 200
    [listed] = (await api.get("/api/jobs/by-apikey")).json()["jobs"]
    assert listed["time_job_data"]["arguments"] == ["1E+21"]
    stored = await api.store.job(int(job["job_id"]))
    assert stored is not None
    assert int.from_bytes(stored.target.call[4:], "big") == 10**21


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
    stored = await api.store.job(int(job["job_id"]))
    assert stored is not None
    assert stored.trace_id == "tgrx-sdk-1"


async def test_health_is_open_to_all(api: Api) -> None:
    for path in ("/livez", "/readyz", "/api/health", "/metrics", "/status"):
        assert (await api.client.get(path)).status_code == 200
    status = (await api.client.get("/status")).json()
    assert (status["total_keepers"], status["active_keepers"]) == (0, 0)
    nothing = await api.client.get("/nothing/here")
    assert (nothing.status_code, nothing.json()["code"]) == (404, "NOT_FOUND")
    wrong = await api.client.post("/livez")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "METHOD_NOT_ALLOWED")


async def test_a_chain_that_does_not_answer_is_not_the_clients_fault(api: Api) -> None:
    job = api.job()
    api.chain.go_offline()
    answer = await api.post(job)
    assert (answer.status_code, answer.json()["code"]) == (503, "RPC_UNREACHABLE")
    api.chain.go_online()
    assert (await api.post(job)).status_code == 200


@given(st.lists(st.floats(min_value=0, max_value=100), max_size=60), st.integers(1, 30))
def test_no_minute_holds_more_requests_than_a_bucket_and_its_refill(pauses: list[float], limit: int) -> None:
    limits, now, allowed = RateLimits(), 0.0, []
    for pause in pauses:
        now += pause
        if limits.take(b"k", limit, now).allowed:
            allowed.append(now)
    assert all(sum(start <= t < start + 60 for t in allowed) <= 2 * limit for start in allowed)


async def test_a_job_that_outlives_the_calendar_is_shown(api: Api) -> None:
    job = api.job(time_frame=2**39, interval=2**38)
    assert (await api.post(job)).status_code == 200
    [listed] = (await api.get("/api/jobs/by-apikey")).json()["jobs"]
    assert listed["time_job_data"]["expiration_time"] == "9999-12-31T23:59:59Z"


async def test_tasks_with_long_arguments_are_the_newest_that_an_answer_holds(api: Api) -> None:
    job = api.job(time_frame=1000)
    await api.post(job)
    stored = await api.store.job(int(job["job_id"]))
    assert stored is not None
    tasks = [make_task(stored, stored.created_at + 10 * i, arguments="5" * 50_000) for i in range(11, 41)]
    await fire(api, stored, *tasks)
    shown = (await api.get(f"/api/tasks/job/{job['job_id']}")).json()
    assert [t["task_id"] for t in shown] == [str(t.id) for t in tasks[-len(shown) :]]
    assert 1_000_000 < sum(len(t["converted_arguments"]) for t in shown) < 1_100_000
