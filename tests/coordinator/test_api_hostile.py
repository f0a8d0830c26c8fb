"""Requests that no honest client sends: each is refused by the field's name, and nothing is stored."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from consensus.errors import Invalid
from consensus.events import declared
from consensus.messages import JobSpec
from consensus.triggers import OnCondition
from coordinator.api.requests import PostedJob, posted_jobs, updated_job
from coordinator.definitions.conditions import FIELDS, OPERATORS
from coordinator.definitions.events import declaration
from coordinator.definitions.posted import Call, spec_of
from coordinator.fees import Fees
from coordinator.jobs import Jobs
from coordinator.store.memory import MemoryStore
from node.infra.chain_memory import Ledger, MemoryChain
from node.infra.clock import TrioClock
from node.infra.compute import inline
from tests.coordinator.conftest import ABI, CONDITION, EVENT, KEY_OWNER, SCRIPT, Api


@pytest.mark.parametrize(
    ("changes", "field", "code"),
    [
        ({"task_definition_id": 2}, "dynamic_arguments_script_url", "INVALID_FIELD"),
        ({"task_definition_id": 3}, "trigger_chain_id", "INVALID_FIELD"),
        ({"task_definition_id": 5}, "condition_type", "INVALID_FIELD"),
        ({"task_definition_id": 7}, "dynamic_arguments_script_url", "INVALID_FIELD"),
        ({"task_definition_id": 8}, "task_definition_id", "INVALID_FIELD"),
        ({"task_definition_id": True}, "task_definition_id", "INVALID_FIELD"),
        ({"schedule_type": "cron", "cron_expression": "* * * * *"}, "time_interval", "INVALID_FIELD"),
        ({"schedule_type": "monthly"}, "schedule_type", "INVALID_FIELD"),
        ({"schedule_type": ["cron"]}, "schedule_type", "INVALID_FIELD"),
        ({"dynamic_arguments_script_url": "ipfs://x"}, "dynamic_arguments_script_url", "INVALID_FIELD"),
        ({"arg_type": 2}, "arg_type", "INVALID_FIELD"),
        ({"missed_run_policy": "sometimes"}, "missed_run_policy", "INVALID_FIELD"),
        ({"priority": 0}, "priority", "INVALID_FIELD"),
        ({"priority": 4}, "priority", "INVALID_FIELD"),
        ({"is_safe": True}, "safe_address", "INVALID_FIELD"),
        ({"is_safe": True, "safe_address": "0x" + "ab" * 20}, "arguments[0]", "INVALID_FIELD"),
        ({"gas_limit": 20_000}, "gas_limit", "INVALID_FIELD"),
        ({"gas_limit": 10**9}, "gas_limit", "INVALID_FIELD"),
        ({"max_fee": -1}, "max_fee", "INVALID_FIELD"),
        ({"max_fee": 0.5}, "max_fee", "INVALID_FIELD"),
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
    assert await api.store.jobs(key_owner=KEY_OWNER) == []


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
        (b"[]", 400, "INVALID_BODY"),
        (b"[{},{}]", 422, "INVALID_FIELD"),
        (b"[" + b",".join([b"{}"] * 33) + b"]", 422, "INVALID_FIELD"),
        (b"[5]", 422, "INVALID_FIELD"),
        (b"[null]", 422, "INVALID_FIELD"),
        (b"[{}]", 422, "INVALID_FIELD"),
        (b"[1e999999999]", 422, "INVALID_FIELD"),
        (b"[1e99999999999999999999]", 400, "INVALID_BODY"),
        (b" " * 1_100_000, 413, "REQUEST_ENTITY_TOO_LARGE"),
    ],
)
async def test_a_body_that_is_no_job_is_refused(api: Api, body: bytes, status: int, code: str) -> None:
    answer = await api.post(body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


@pytest.mark.parametrize("path", ["/api/tasks/job/{}", "/api/jobs/id/{}", "/api/tasks/id/{}", "/api/jobs/user/0x00/{}"])
@pytest.mark.parametrize("bad", ["abc", "-1", str(2**256), "9" * 5000, "%00", "1'; DROP TABLE job_data; --", "%F0%9F%92%A9"])
async def test_bad_ids_in_paths_are_not_found(api: Api, path: str, bad: str) -> None:
    answer = await api.get(path.format(bad))
    assert answer.status_code in (404, 422)
    assert answer.json()["code"]


PING = {"target_chain_id": "31337", "target_contract_address": "0x" + "01" * 20, "target_function": "ping", "abi": ABI}


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({}, "target_chain_id"),
        ({"target_chain_id": "5"}, "target_chain_id"),
        ({"target_chain_id": "x"}, "target_chain_id"),
        ({"target_chain_id": "31337", "task_definition_id": "9"}, "task_definition_id"),
        ({"target_chain_id": "31337", "target_contract_address": "0x1"}, "target_contract_address"),
        ({**PING, "target_function": "pong"}, "target_function"),
        ({**PING, "args": '["x"]'}, "arguments[0]"),
        ({**PING, "args": "[1e99999999999999999999]"}, "arguments"),
    ],
)
async def test_a_fee_that_cannot_be_told_names_why(api: Api, params: dict[str, str], field: str) -> None:
    answer = await api.get("/api/jobs/fees", **params)
    assert (answer.status_code, answer.json()["field"]) == (422, field)


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
SCHEDULE = ["schedule_type", "time_interval", "cron_expression", "specific_schedule", "timezone"]
KINDS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, [*VALID, "unheard_of"]),
    ({}, list(PostedJob.model_fields)),
    ({"time_interval": None, "cron_expression": "@daily"}, SCHEDULE),
    ({"time_interval": None, "specific_schedule": "2030-01-01T00:00:00Z"}, SCHEDULE),
    ({"task_definition_id": 3, **EVENT, "abi": ABI}, [*EVENT, "abi", "event_filters", "event_filter_value", "confirmations"]),
    (
        {"task_definition_id": 3, **EVENT, "abi": ABI, "event_filter_para_name": "value"},
        ["event_filters", "event_filter_value", "event_filter_para_name"],
    ),
    ({"task_definition_id": 5, **CONDITION}, list(FIELDS)),
    ({"task_definition_id": 7, "dynamic_arguments_script_url": SCRIPT, "language": "py"}, ["arg_type", "language", "arguments"]),
]


def changes(of: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(of), values, max_size=3)


posts = st.sampled_from(KINDS).flatmap(lambda kind: st.tuples(st.just(kind[0]), changes(kind[1])))


@given(posts)
def test_any_field_of_any_type_is_taken_or_refused_by_name(post: tuple[dict[str, Any], dict[str, Any]]) -> None:
    kind, changed = post
    try:
        [posted] = posted_jobs(json.dumps([{**VALID, **kind, **changed}]).encode())
    except Invalid as refused:
        assert refused.field  # noqa: PT017 - it may also be taken
    else:
        assert len(posted.owner) == len(posted.contract) == 20
        assert JobSpec.decode(spec_of(posted, Call("", "", b""), 1, posted.time_frame)).trigger == posted.trigger


@given(posts)
def test_any_update_is_taken_or_refused_by_name(post: tuple[dict[str, Any], dict[str, Any]]) -> None:
    kind, changed = post
    try:
        posted = updated_job({**VALID, **kind}, json.dumps(changed).encode())
    except Invalid as refused:
        assert refused.field  # noqa: PT017 - it may also be taken
    else:
        assert posted.time_frame > 0


nodes = st.recursive(
    st.fixed_dictionaries(
        {"source": st.just({"type": "static", "url": "1"}), "condition_type": st.sampled_from(OPERATORS)},
        optional={"upper_limit": values, "lower_limit": values, "hysteresis": values},
    )
    | values,
    lambda inner: st.fixed_dictionaries({"all": st.lists(inner, max_size=4)}) | st.fixed_dictionaries({"any": st.lists(inner)}),
    max_leaves=24,
)


@given(nodes)
def test_any_tree_of_conditions_is_taken_or_refused_by_name(tree: Any) -> None:
    try:
        [posted] = posted_jobs(json.dumps([{**VALID, "task_definition_id": 5, "condition": tree}]).encode())
    except Invalid as refused:
        assert refused.field.startswith("condition")  # noqa: PT017 - it may also be taken
    else:
        assert isinstance(posted.trigger, OnCondition)


@given(st.text(alphabet='Pingd(),[] uint256adresboltupxy\t"{}:;019', max_size=80) | st.text(max_size=20), st.text(max_size=30))
def test_any_event_is_resolved_or_refused_by_name(event: str, abi: str) -> None:
    for text in (ABI, abi):
        try:
            found = declaration(event, text)
        except Invalid as refused:
            assert refused.field == "trigger_event" or refused.field.startswith("abi")  # noqa: PT017 - it may also be taken
        else:
            assert declared(found.text) == found


@given(st.sampled_from(["api", "oracle", "static", "websocket", "balance", "contract", "transaction"]), st.text(max_size=60))
def test_any_source_is_taken_or_refused_by_name(kind: str, url: str) -> None:
    job = {**VALID, "task_definition_id": 5, **CONDITION, "value_source_type": kind, "value_source_url": url}
    try:
        posted_jobs(json.dumps([job]).encode())
    except Invalid as refused:
        assert refused.field == "value_source_url"  # noqa: PT017 - it may also be taken


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("127.0.0.1", "SOURCE_REFUSED"),
        ("169.254.169.254", "SOURCE_REFUSED"),
        ("10.0.0.1:8443", "SOURCE_REFUSED"),
        ("inside.example.org", "SOURCE_REFUSED"),
        ("localhost", "SOURCE_REFUSED"),
        ("0x7f.1", "INVALID_FIELD"),
    ],
)
async def test_a_script_is_not_looked_for_inside_the_network(api: Api, host: str, code: str) -> None:
    script = f"https://{host}/ipfs/{SCRIPT.removeprefix('ipfs://')}"
    answer = await api.post(api.posted(4, EVENT, dynamic_arguments_script_url=script))
    found = answer.json()
    assert (answer.status_code, found["field"], found["code"]) == (422, "dynamic_arguments_script_url", code)


async def test_fees_are_told_to_one_client_so_often_and_to_a_key_by_its_own_limit(api: Api) -> None:
    params = {"target_chain_id": "31337"}
    told = 0
    while (await api.client.get("/api/fees", params=params)).status_code == 200:
        told += 1
        assert told < 2000
    assert told >= 600
    assert (await api.client.get("/api/fees", params=params, headers={"X-API-KEY": "TGRX-unknown"})).status_code == 429
    mine = {"Authorization": api.headers["Authorization"]}  # as the SDK asks
    assert (await api.client.get("/api/fees", params=params, headers=mine)).status_code == 200
    limited = await api.other_key("else", rate_limit=1)
    assert [(await api.client.get("/api/fees", params=params, headers=limited)).status_code for _ in range(2)] == [200, 429]


async def test_a_condition_of_many_slow_hosts_holds_no_request_for_long(autojump_clock: MockClock) -> None:
    async def slow(url: str, /, *schemes: str) -> None:
        await trio.sleep(9)

    clock, store = TrioClock(), MemoryStore()
    ledger = Ledger(clock, round_seconds=12)
    jobs = Jobs(
        store,
        Fees(store, {31337: MemoryChain(clock, ledger=ledger)}, clock, inline),
        clock,
        inline,
        changed=no_news,
        check_url=slow,
    )
    leaf = {"condition_type": "greater_than", "upper_limit": 1}
    leaves = [{**leaf, "source": {"type": "api", "url": f"https://h{n}.example.org/"}} for n in range(16)]
    job = Api(store, ledger, MemoryChain(clock, ledger=ledger), clock, [], None, {}, None).posted(  # type: ignore[arg-type]
        5, {"condition": {"all": leaves}}
    )
    began = trio.current_time()
    with pytest.raises(Invalid, match="value_source_url") as refused:
        await jobs.create(posted_jobs(json.dumps([job]).encode()), key_owner=KEY_OWNER, trace_id="")
    assert refused.value.code == "SOURCE_UNREACHABLE"
    assert trio.current_time() - began < 25


async def no_news(job_id: int) -> None:
    """For jobs that nobody schedules."""
