"""Jobs that are linked, paused, resumed, updated and deleted over HTTP, and what users say of themselves."""

from __future__ import annotations

from typing import Any

import pytest
from eth_utils.address import to_checksum_address

from consensus.codec import task_id
from consensus.conditions import ApiSource, Comparison
from consensus.lifecycle import TaskState
from consensus.messages import JobSpec, Task
from consensus.triggers import Cron, EdgeSeen, LogSeen, Moments, OnCondition, OnEvent
from coordinator.store.records import (
    Attempt,
    Edge,
    EdgeStep,
    Fired,
    Firing,
    Gap,
    Job,
    JobStatus,
    MissedPolicy,
    TaskChange,
    shard_of,
)
from tests.consensus.samples import authorisation
from tests.coordinator.conftest import CONDITION, EVENT, KEY_OWNER, PRICE, SCRIPT, Api
from tests.coordinator.factory import make_task

DAILY = {"schedule_type": "cron", "cron_expression": "@daily"}
LONG = 2**35
CUSTOM: dict[str, Any] = {
    "fields": {"time_interval": 9, "language": "js"},
    "interval": 9,
    "target": bytes(20),
    "target_function": "",
}


async def fire(api: Api, job: Job, **firing: Any) -> Fired:
    shard = shard_of(job.id)
    assert await api.store.claim_shard(shard, 1, 0)
    [fired] = await api.store.fire([Firing(job.id, **{"task": None, **firing})], 0, {shard: 1})
    return fired


async def status(api: Api, job: Job, wanted: str) -> tuple[int, str]:
    answer = await api.put(f"/api/jobs/{job.id}/status/{wanted}")
    return answer.status_code, answer.json().get("status") or answer.json()["code"]


# --- linked -----------------------------------------------------------------------------------------------------


async def test_jobs_in_one_array_are_linked_each_to_the_next(api: Api) -> None:
    array = [api.job(), api.posted(3, EVENT), api.posted(5, CONDITION)]
    answer = await api.post(array)
    assert answer.status_code == 200
    assert answer.json()["job_ids"] == [job["job_id"] for job in array]
    assert answer.json()["task_definition_ids"] == [1, 3, 5]
    assert answer.json()["time_frames"] == [1000, 1000, 1000]
    first, second, third = [await api.stored(job) for job in array]
    assert [j.link_job_id for j in (first, second, third)] == [second.id, third.id, -1]
    assert [j.chain_status for j in (first, second, third)] == [1, 2, 2]
    assert [j.waiting for j in (first, second, third)] == [False, True, True]
    assert first.starts_at == first.created_at
    shown = (await api.get(f"/api/jobs/id/{second.id}")).json()
    assert (shown["job_data"]["status"], shown["job_data"]["starts_at"]) == ("in-queue", None)
    assert (shown["job_data"]["link_job_id"], shown["job_data"]["chain_status"]) == (str(third.id), 2)
    assert set(api.changed) == {first.id, second.id, third.id}
    assert (await api.post(array)).json() == answer.json()
    assert (await api.store.end_job(first.id, JobStatus.COMPLETED, 5)) is not None
    assert not (await api.stored(array[1])).waiting


async def test_of_linked_jobs_all_are_stored_or_none(api: Api) -> None:
    good, bad = api.job(), api.posted(5, {**CONDITION, "value_source_url": "http://127.0.0.1/"})
    for array in ([good, bad], [good, {**api.job(), "job_id": "12"}], [good, {**api.job(), "time_frame": 999}]):
        answer = await api.post(array)
        assert answer.status_code == 422
        assert answer.json()["field"].startswith("[1].")
        assert answer.json()["error"].startswith("[1].")
    assert await api.store.jobs(key_owner=KEY_OWNER) == []
    assert api.changed == []


async def test_jobs_that_cannot_be_linked_are_refused(api: Api) -> None:
    job, other = api.job(), api.job()
    assert (await api.post([job, job])).json()["field"] == "job_id"
    assert (await api.post([job, {**other, "user_address": "0x" + "01" * 20}])).json()["field"] == "[1].user_address"
    await api.taken(job)
    known = await api.post([job, other])
    assert (known.status_code, known.json()["code"]) == (409, "JOB_EXISTS")
    assert await api.store.job(int(other["job_id"])) is None


# --- pause, resume, delete --------------------------------------------------------------------------------------


async def test_a_paused_job_fires_no_more_until_it_is_resumed(api: Api) -> None:
    job = await api.taken(api.job())
    api.changed.clear()
    assert await status(api, job, "paused") == (200, "paused")
    assert api.changed == [job.id]
    assert await api.store.planned_job(job.id) is None
    assert await fire(api, job) is Fired.INACTIVE
    assert await status(api, job, "paused") == (200, "paused")
    for word in ("running", "active"):
        assert await status(api, job, word) == (200, "running")
    planned = await api.store.planned_job(job.id)
    assert planned is not None
    assert planned.next_due == job.next_due
    assert (await api.get(f"/api/jobs/id/{job.id}")).json()["time_job_data"]["is_active"]


@pytest.mark.parametrize(("policy", "missed"), [("run_once", True), ("run_all", True), ("skip", False)])
async def test_what_was_due_during_a_pause_was_missed_and_the_policy_decides(api: Api, policy: str, missed: bool) -> None:
    posted = api.job(time_frame=LONG, missed_run_policy=policy)
    job = await api.taken(posted)
    assert job.next_due is not None
    now = int(api.clock.now())
    ago = job.created_at - 1000
    assert await fire(api, job, next_due=ago) is Fired.NEW  # as if it had been due long since
    await status(api, job, "paused")
    await status(api, job, "running")
    resumed = (await api.stored(posted)).next_due
    assert resumed is not None
    assert (resumed == ago) is missed
    assert missed or resumed > now


async def test_a_job_that_has_ended_is_not_moved_any_more(api: Api) -> None:
    posted = api.job()
    job = await api.taken(posted)
    assert await status(api, job, "deleted") == (200, "deleted")
    for word in ("paused", "running"):
        assert await status(api, job, word) == (422, "JOB_INACTIVE")
    update = await api.put(f"/api/jobs/update/{job.id}", {"job_title": "late"})
    assert (update.status_code, update.json()["code"]) == (422, "JOB_INACTIVE")
    assert await status(api, job, "sleeping") == (422, "INVALID_FIELD")
    assert (await api.stored(posted)).status is JobStatus.DELETED


async def test_nobody_else_pauses_or_updates_my_job(api: Api) -> None:
    job = await api.taken(api.job())
    for key in (await api.other_key("somebody else"), await api.other_key("operator", role="admin")):
        for path in (f"/api/jobs/{job.id}/status/paused", f"/api/jobs/update/{job.id}"):
            answer = await api.client.put(path, headers=key, json={"job_title": "mine"})
            assert (answer.status_code, answer.json()["code"]) == (404, "JOB_NOT_FOUND")
    assert (await api.client.put(f"/api/jobs/{job.id}/status/paused")).status_code == 401


# --- updates ----------------------------------------------------------------------------------------------------


async def test_an_update_takes_effect_at_once_and_makes_a_new_spec(api: Api) -> None:
    posted = api.posted(1, DAILY, time_frame=LONG)
    before = await api.taken(posted)
    api.changed.clear()
    changes = {"cron_expression": "*/5 * * * *", "timezone": "Asia/Tokyo", "job_title": "oftener", "priority": 1}
    answer = await api.put(f"/api/jobs/update/{before.id}", {**changes, "missed_run_policy": "skip", "arguments": ["6"]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["job_data"]["job_title"] == "oftener"
    assert answer.json()["time_job_data"]["cron_expression"] == "*/5 * * * *"
    after = await api.stored(posted)
    assert after.trigger == JobSpec.decode(after.spec).trigger == Cron("*/5 * * * *", "Asia/Tokyo")
    assert (after.priority, after.missed, after.timezone) == (1, MissedPolicy.SKIP, "Asia/Tokyo")
    assert JobSpec.decode(after.spec).arguments == "[6]"
    assert after.target.call != before.target.call
    assert after.next_due is not None
    assert api.clock.now() < after.next_due <= api.clock.now() + 300
    assert api.changed == [before.id]
    planned = await api.store.planned_job(before.id)
    assert planned is not None
    assert planned.trigger == after.trigger


@pytest.mark.parametrize(
    ("changes", "trigger"),
    [
        ({"cron_expression": "@weekly"}, Cron("@weekly", "Europe/Berlin")),
        ({"timezone": "UTC"}, Cron("@daily", "UTC")),
        ({"specific_schedule": [1_893_484_800]}, Moments((1_893_484_800,))),
        ({"schedule_type": "specific", "specific_schedule": "2030-01-01 09:00"}, Moments((1_893_484_800,))),
        ({"job_title": "the same"}, Cron("@daily", "Europe/Berlin")),
    ],
)
async def test_a_schedule_is_replaced_as_a_whole(api: Api, changes: dict[str, Any], trigger: object) -> None:
    posted = api.posted(1, DAILY, time_frame=LONG)
    await api.taken(posted)
    answer = await api.put(f"/api/jobs/update/{posted['job_id']}", changes)
    assert answer.status_code == 200, answer.text
    assert (await api.stored(posted)).trigger == trigger


async def test_an_updated_event_keeps_what_was_not_named(api: Api) -> None:
    fields = {**EVENT, "event_filter_para_name": "value", "event_filter_value": "7", "confirmations": 2}
    posted = api.posted(3, fields)
    await api.taken(posted)
    for changes, filters, confirmations in (
        ({"event_filter_value": 8}, [("value", "8")], 2),
        ({"confirmations": 5}, [("value", "8")], 5),
        ({"event_filters": [{"name": "value", "value": 1}]}, [("value", "1")], 5),
        ({"event_filters": []}, [], 5),
        ({"trigger_event": "Twice(uint256)"}, [], 5),
    ):
        answer = await api.put(f"/api/jobs/update/{posted['job_id']}", changes)
        assert answer.status_code == 200, answer.text
        trigger = (await api.stored(posted)).trigger
        assert isinstance(trigger, OnEvent)
        assert [(f.parameter, f.value) for f in trigger.filters] == filters
        assert trigger.confirmations == confirmations
    assert trigger.event == "Twice(uint256 indexed a)"


async def test_an_updated_condition_keeps_its_edge_and_what_was_not_named(api: Api) -> None:
    posted = api.posted(5, CONDITION, recurring=True)
    job = await api.taken(posted)
    await fire(api, job, edge=EdgeStep(0, Edge(1, armed=False)))
    source = ApiSource(PRICE)
    for changes, comparison in (
        ({"upper_limit": "3.10"}, Comparison(source, "greater_than", "3.10")),
        ({"lower_limit": 7}, Comparison(source, "greater_than", "7")),
        ({"condition_type": "between", "lower_limit": 1, "upper_limit": 2}, Comparison(source, "between", "2", "1")),
        ({"upper_limit": 5}, Comparison(source, "between", "5", "1")),
        ({"selected_key_route": "a.b"}, Comparison(ApiSource(PRICE, "a.b"), "between", "5", "1")),
    ):
        answer = await api.put(f"/api/jobs/update/{job.id}", changes)
        assert answer.status_code == 200, answer.text
        after = await api.stored(posted)
        assert after.trigger == OnCondition(comparison)
        assert after.edge == Edge(1, armed=False)
    one = await api.put(f"/api/jobs/update/{job.id}", {"condition_type": "less_than"})
    assert (one.status_code, one.json()["field"]) == (422, "upper_limit")  # of two limits none is the one
    assert (await api.put(f"/api/jobs/update/{job.id}", {"condition_type": "less_than", "upper_limit": 9})).status_code == 200
    two = await api.put(f"/api/jobs/update/{job.id}", {"condition_type": "between"})
    assert (two.status_code, two.json()["field"]) == (422, "upper_limit")  # nor does one make two, with 0 for the other
    tree = {"any": [{"source": {"type": "static", "url": "1"}, "condition_type": "equals", "upper_limit": 1}]}
    assert (await api.put(f"/api/jobs/update/{job.id}", {"condition": tree})).status_code == 200
    part = await api.put(f"/api/jobs/update/{job.id}", {"upper_limit": 5})
    assert (part.status_code, part.json()["field"]) == (422, "condition_type")
    assert (await api.put(f"/api/jobs/update/{job.id}", CONDITION)).status_code == 200


@pytest.mark.parametrize(
    ("changes", "status_code", "field", "code"),
    [
        ({"time_interval": 20}, 422, "time_interval", "CONTRADICTS_CHAIN"),
        ({"cron_expression": "@daily"}, 422, "time_interval", "CONTRADICTS_CHAIN"),
        ({"time_frame": 20_000}, 422, "time_frame", "CONTRADICTS_CHAIN"),
        ({"job_id": "5"}, 422, "job_id", "CONTRADICTS_CHAIN"),
        ({"user_address": "0x" + "01" * 20}, 422, "user_address", "CONTRADICTS_CHAIN"),
        ({"target_contract_address": "0x" + "01" * 20}, 422, "target_contract_address", "CONTRADICTS_CHAIN"),
        ({"task_definition_id": 7, "dynamic_arguments_script_url": SCRIPT, "language": "py", "arg_type": 2}, 422,
         "task_definition_id", "CONTRADICTS_CHAIN"),
        ({"arguments": ["x"]}, 422, "arguments[0]", "INVALID_FIELD"),
        ({"target_function": "pong"}, 422, "target_function", "INVALID_FIELD"),
        ({"priority": 9}, 422, "priority", "INVALID_FIELD"),
        ({"is_safe": True, "safe_address": "0x" + "ab" * 20}, 422, "is_safe", "CONTRADICTS_CHAIN"),
        ({}, 400, "body", "INVALID_BODY"),
        ({"unheard_of": 1}, 400, "body", "INVALID_BODY"),
        ([], 400, "body", "INVALID_BODY"),
        (b"nonsense", 400, "body", "INVALID_BODY"),
    ],
)  # fmt: skip
async def test_an_update_that_cannot_be_is_refused_by_field(
    api: Api, changes: Any, status_code: int, field: str, code: str
) -> None:
    posted = api.job()
    before = await api.taken(posted)
    answer = await api.put(f"/api/jobs/update/{before.id}", changes)
    assert (answer.status_code, answer.json()["field"], answer.json()["code"]) == (status_code, field, code)
    assert await api.stored(posted) == before


async def test_an_update_to_a_private_url_or_a_past_time_is_refused(api: Api) -> None:
    watching, timed = api.posted(5, CONDITION), api.posted(1, DAILY, time_frame=LONG)
    await api.taken(watching)
    await api.taken(timed)
    private = await api.put(f"/api/jobs/update/{watching['job_id']}", {"value_source_url": "http://169.254.169.254/"})
    assert (private.status_code, private.json()["code"]) == (422, "SOURCE_REFUSED")
    past = await api.put(f"/api/jobs/update/{timed['job_id']}", {"specific_schedule": "2000-01-01T00:00:00Z"})
    assert (past.status_code, past.json()["field"]) == (422, "specific_schedule")


async def test_a_job_as_it_is_shown_is_an_update_that_changes_nothing(api: Api) -> None:
    for posted in (api.job(), api.posted(3, EVENT), api.posted(5, CONDITION), api.posted(7, **CUSTOM)):
        before = await api.taken(posted)
        shown = (await api.get(f"/api/jobs/user/{posted['user_address']}/{before.id}")).json()
        parts = {
            **shown,
            **shown.get("time_job_data", {}),
            **shown.get("event_job_data", {}),
            **shown.get("condition_job_data", {}),
        }
        answer = await api.put(f"/api/jobs/update/{before.id}", parts)
        assert answer.status_code == 200, answer.text
        after = await api.stored(posted)
        assert (after.trigger, after.spec, after.next_due) == (before.trigger, before.spec, before.next_due)


# --- what is told -----------------------------------------------------------------------------------------------


async def test_what_fired_a_task_is_told(api: Api) -> None:
    watching, waiting = api.posted(5, CONDITION), api.posted(3, EVENT)
    job, event = await api.taken(watching), await api.taken(waiting)
    seen = EdgeSeen(1_700_000_100, ("2000.75",))
    edge = make_task(job, 1, scheduled_at=1_700_000_100, observation=seen, id=task_id(job.id, 1))
    assert await fire(api, job, task=edge, edge=EdgeStep(0, Edge(1, armed=False))) is Fired.NEW
    log = make_task(event, 9, scheduled_at=1_700_000_200, observation=LogSeen(b"\xee" * 32, 3))
    assert await fire(api, event, task=log) is Fired.NEW
    told = (await api.get(f"/api/tasks/id/{edge.id}")).json()
    assert told["scheduled_at"] == "2023-11-14T22:15:00Z"
    assert told["observation"] == {"observed_at": "2023-11-14T22:15:00Z", "values": ["2000.75"]}
    told = (await api.get(f"/api/tasks/id/{log.id}")).json()
    assert told["observation"] == {"event_tx_hash": "0x" + "ee" * 32, "event_position": 3}
    recent = (await api.get("/api/tasks/recent")).json()
    assert [t["task_id"] for t in recent] == [str(log.id), str(edge.id)]
    other = await api.client.get("/api/tasks/recent", headers=await api.other_key("somebody else"))
    assert other.json() == []
    condition = (await api.get(f"/api/jobs/id/{job.id}")).json()["condition_job_data"]
    assert (condition["times_fired"], condition["armed"]) == (1, False)


async def test_when_a_condition_went_unobserved_is_told(api: Api) -> None:
    job = await api.taken(api.posted(5, CONDITION))
    began = job.created_at + 10
    await api.store.add_gap(Gap(f"shard:{shard_of(job.id)}", began, began + 5))
    await api.store.add_gap(Gap("source:of somebody else", began, began + 5))
    [gap] = (await api.get(f"/api/jobs/id/{job.id}")).json()["condition_job_data"]["unobserved"]
    assert gap["from"] < gap["to"]


async def test_a_users_points_are_shown_as_a_number(api: Api) -> None:
    await api.taken(api.job())
    posted = api.posted(7, **CUSTOM)
    await api.taken(posted)
    assert (await api.get(f"/api/users/{posted['user_address']}")).json()["user_points"] == "30"


# --- e-mail -----------------------------------------------------------------------------------------------------


async def test_a_user_says_where_to_be_written_to(api: Api) -> None:
    owner = (api.job())["user_address"]
    asked = {"user_address": owner, "email_id": "jo.doe+jobs@mail.example.org"}
    before = await api.put("/api/users/email", asked)
    assert (before.status_code, before.json()["code"]) == (404, "USER_NOT_FOUND")
    await api.taken(api.job())
    for method in ("PUT", "POST"):
        answer = await api.client.request(method, "/api/users/email", headers=api.headers, json=asked)
        assert (answer.status_code, answer.json()) == (200, asked)
    assert (await api.get(f"/api/users/{owner}")).json()["email"] == asked["email_id"]
    other = await api.client.put("/api/users/email", headers=await api.other_key("somebody else"), json=asked)
    assert other.status_code == 404
    assert (await api.put("/api/users/email", {**asked, "email_id": ""})).json()["email_id"] == ""
    assert (await api.get(f"/api/users/{owner}")).json()["email"] == ""


@pytest.mark.parametrize(
    "address",
    ["jo", "jo@", "@example.org", "jo@example", "jo doe@example.org", "jo@exa mple.org", "jo@example.org\r\nBcc: all@example.org",
     "jo@example.org\n", "Jo <jo@example.org>", "a@b.org,c@d.org", "jo..doe@example.org", "j\u00f6@example.org",
     "a" * 65 + "@example.org",
     "jo@" + "a" * 260 + ".org", None, 5],
)  # fmt: skip
async def test_what_is_no_email_address_is_refused(api: Api, address: Any) -> None:
    job = await api.taken(api.job())
    answer = await api.put("/api/users/email", {"user_address": to_checksum_address(job.owner), "email_id": address})
    if address == "jo@example.org\n":  # white space around it is not part of it
        assert answer.json()["email_id"] == "jo@example.org"
        return
    assert (answer.status_code, answer.json().get("field")) == (422, "email_id")


async def test_a_task_shows_the_arguments_it_was_fired_with_after_an_update(api: Api) -> None:
    job = await api.taken(api.job(arguments=["5"]))
    fired = make_task(job, job.created_at + 10)
    assert await fire(api, job, task=fired, next_due=job.created_at + 20) is Fired.NEW
    [before] = (await api.get(f"/api/tasks/job/{job.id}")).json()
    assert (await api.put(f"/api/jobs/update/{job.id}", {"arguments": ["6"]})).status_code == 200
    [task] = (await api.get(f"/api/tasks/job/{job.id}")).json()
    assert task["converted_arguments"] == before["converted_arguments"] == "[5]"
    message = Task(31337, authorisation(), bytes(65), job.spec, "").encode()
    attempt = Attempt(fired.id, 1, bytes(20), "peer", 0, 1, message, 0)
    assert await api.store.add_attempt(attempt, TaskChange(fired.id, (TaskState.DISPATCHED,), attempt=1), 0) is not None
    await api.store.change(TaskChange(fired.id, (TaskState.FAILED,), reason="NO_KEEPER"), 0)
    assert (await api.put(f"/api/jobs/update/{job.id}", {"arguments": ["7"]})).status_code == 200
    assert (await api.get(f"/api/tasks/id/{fired.id}")).json()["converted_arguments"] == "[5]"
