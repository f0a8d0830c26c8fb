"""Schedules, events and scripts as clients post them: what becomes of their fields, and what is refused and why."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from eth_utils.address import to_checksum_address
from trio.testing import MockClock

from consensus.errors import Invalid
from consensus.events import EventFilter
from consensus.messages import JobSpec
from consensus.triggers import Cron, Interval, Moments, OnEvent
from coordinator.definitions.posted import Posted, top_level
from coordinator.fees import SCRIPTED_GAS, Fees
from coordinator.jobs import Jobs
from coordinator.store.changes import STORED
from coordinator.store.memory import MemoryStore
from coordinator.store.records import Firing, MissedPolicy, TaskChange
from node.infra.chain_memory import Ledger, MemoryChain
from node.infra.clock import TrioClock
from node.infra.compute import inline
from tests.coordinator.conftest import ABI, CONDITION, EVENT, KEY_OWNER, OWNER, PING, SCRIPT, TARGET, Api
from tests.coordinator.factory import make_task

PINGED = "Pinged(address indexed sender,uint256 value)"
ACCOUNT = "0x" + "ab" * 20
IN_BERLIN = 1_893_484_800  # 2030-01-01T09:00 there


def spec_of(job: Any) -> JobSpec:
    return JobSpec.decode(job.spec)


# --- schedules --------------------------------------------------------------------------------------------------

SCHEDULES: list[tuple[dict[str, Any], object]] = [
    ({"schedule_type": "interval", "time_interval": 10}, Interval(10)),
    ({"time_interval": "10"}, Interval(10)),
    ({"schedule_type": "cron", "cron_expression": "0 9 * * mon-fri"}, Cron("0 9 * * mon-fri", "Europe/Berlin")),
    ({"cron_expression": " @daily ", "time_interval": 0, "specific_schedule": ""}, Cron("@daily", "Europe/Berlin")),
    ({"schedule_type": "cron", "cron_expression": "*/5 * * * *", "timezone": ""}, Cron("*/5 * * * *", "UTC")),
    ({"schedule_type": "specific", "specific_schedule": "2030-01-01T08:00:00Z"}, Moments((IN_BERLIN,))),
    ({"schedule_type": "specific", "specific_schedule": "2030-01-01 09:00"}, Moments((IN_BERLIN,))),
    ({"schedule_type": "specific", "specific_schedule": "2030-01-01T09:00:00.000+01:00"}, Moments((IN_BERLIN,))),
    ({"schedule_type": "specific", "specific_schedule": str(IN_BERLIN)}, Moments((IN_BERLIN,))),
    (
        {"schedule_type": "specific", "specific_schedule": [IN_BERLIN + 60, str(IN_BERLIN), "2030-01-01T09:00"]},
        Moments((IN_BERLIN, IN_BERLIN + 60)),
    ),
    (
        {"schedule_type": "specific", "specific_schedule": "2030-01-01 09:01, 2030-01-01 09:00"},
        Moments((IN_BERLIN, IN_BERLIN + 60)),
    ),
    # skipped by a change of clocks (as much later as was skipped), and shown twice (the first time)
    ({"schedule_type": "specific", "specific_schedule": "2030-03-31 02:30"}, Moments((1_901_151_000,))),
    ({"schedule_type": "specific", "specific_schedule": "2030-10-27 02:30"}, Moments((1_919_291_400,))),
]


@pytest.mark.parametrize(("fields", "trigger"), SCHEDULES)
async def test_a_schedule_is_what_was_posted(api: Api, fields: dict[str, Any], trigger: object) -> None:
    interval = trigger.interval if isinstance(trigger, Interval) else 0
    job = await api.taken(api.posted(1, fields, interval=interval, time_frame=2**35))
    assert job.trigger == spec_of(job).trigger == trigger
    assert job.next_due is not None
    assert job.next_due > job.created_at
    assert job.recurring
    assert api.changed == [job.id]


@pytest.mark.parametrize(
    ("fields", "interval", "field", "code"),
    [
        ({"schedule_type": "cron"}, 0, "cron_expression", "INVALID_FIELD"),
        ({"schedule_type": "cron", "cron_expression": "every day"}, 0, "cron_expression", "INVALID_FIELD"),
        ({"schedule_type": "cron", "cron_expression": "0 0 31 2 *"}, 0, "cron_expression", "INVALID_FIELD"),
        ({"schedule_type": "cron", "cron_expression": "@reboot"}, 0, "cron_expression", "INVALID_FIELD"),
        ({"cron_expression": "@daily", "timezone": "Mars/Olympus"}, 0, "timezone", "INVALID_FIELD"),
        ({"cron_expression": "0 0 1 1 *"}, 0, "cron_expression", "INVALID_FIELD"),  # not within its life
        ({"cron_expression": "@daily", "specific_schedule": "2030-01-01"}, 0, "specific_schedule", "INVALID_FIELD"),
        ({"schedule_type": "interval", "time_interval": 10, "cron_expression": "@daily"}, 10, "cron_expression", "INVALID_FIELD"),
        ({"schedule_type": "specific"}, 0, "specific_schedule", "INVALID_FIELD"),
        ({"schedule_type": "specific", "specific_schedule": "tomorrow"}, 0, "specific_schedule", "INVALID_FIELD"),
        ({"schedule_type": "specific", "specific_schedule": "2030-02-30T00:00:00Z"}, 0, "specific_schedule", "INVALID_FIELD"),
        ({"schedule_type": "specific", "specific_schedule": "2030-01-01T09:00:00.5Z"}, 0, "specific_schedule", "INVALID_FIELD"),
        ({"schedule_type": "specific", "specific_schedule": IN_BERLIN * 1000}, 0, "specific_schedule", "INVALID_FIELD"),
        ({"schedule_type": "specific", "specific_schedule": [IN_BERLIN * 1000]}, 0, "specific_schedule", "INVALID_FIELD"),
        ({"schedule_type": "specific", "specific_schedule": [True]}, 0, "specific_schedule", "INVALID_FIELD"),
        ({"schedule_type": "specific", "specific_schedule": list(range(1, 1002))}, 0, "specific_schedule", "INVALID_FIELD"),
        ({"schedule_type": "specific", "specific_schedule": "1999-01-01T00:00:00Z"}, 0, "specific_schedule", "INVALID_FIELD"),
        ({"cron_expression": "* * * * *"}, 10, "schedule_type", "CONTRADICTS_CHAIN"),
        ({"time_interval": 10}, 0, "schedule_type", "CONTRADICTS_CHAIN"),
        ({"time_interval": 10}, 20, "time_interval", "CONTRADICTS_CHAIN"),
    ],
)
async def test_a_schedule_that_is_none_is_refused_by_field(
    api: Api, fields: dict[str, Any], interval: int, field: str, code: str
) -> None:
    answer = await api.post(api.posted(1, fields, interval=interval))
    assert (answer.status_code, answer.json().get("field"), answer.json()["code"]) == (422, field, code)
    assert answer.json()["remedy"]
    assert await api.store.jobs(key_owner=KEY_OWNER) == []


async def test_times_that_have_passed_are_taken_only_where_what_was_missed_runs(autojump_clock: MockClock) -> None:
    clock, store = TrioClock(), MemoryStore()
    ledger = Ledger(clock, round_seconds=12)

    async def nothing(*_: object) -> None: ...

    jobs = Jobs(
        store,
        Fees(store, {31337: MemoryChain(clock, ledger=ledger)}, clock, inline),
        clock,
        inline,
        changed=nothing,
        check_url=nothing,
    )
    job_id = ledger.create_job(OWNER, target=TARGET, interval=0, time_frame=1000)
    due = int(clock.now()) + 20
    posted = Posted(
        id=job_id,
        owner=OWNER,
        title="late",
        definition=1,
        time_frame=1000,
        trigger=Moments((due,)),
        chain_id=31337,
        created_chain_id=31337,
        contract=TARGET,
        function="ping(uint256)",
        abi="",
        arg_type=1,
        arguments="[1]",
    )
    await clock.sleep_until(due + 1)
    with pytest.raises(Invalid) as refused:
        await jobs.create([replace(posted, missed=MissedPolicy.SKIP)], key_owner=KEY_OWNER, trace_id="")
    assert refused.value.field == "specific_schedule"
    taken = await jobs.create([posted], key_owner=KEY_OWNER, trace_id="")
    assert taken.jobs[0].next_due == due


@pytest.mark.parametrize("policy", MissedPolicy)
async def test_the_policy_for_missed_seconds_is_kept_and_shown(api: Api, policy: MissedPolicy) -> None:
    job = await api.taken(api.job(missed_run_policy=policy.value, priority=1))
    assert (job.missed, job.priority) == (policy, 1)
    shown = (await api.get(f"/api/jobs/id/{job.id}")).json()["job_data"]
    assert (shown["missed_run_policy"], shown["priority"]) == (policy.value, 1)


# --- events -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "declaration"),
    [
        ({}, PINGED),
        ({"trigger_event": "Pinged(address,uint256)"}, PINGED),
        ({"trigger_event": " event Pinged( address sender , uint value );"}, PINGED),
        ({"trigger_event": "Pinged(address indexed who,uint256 much)"}, "Pinged(address indexed who,uint256 much)"),
        ({"trigger_event": "Other(bytes32 indexed id)", "abi": json.dumps([PING])}, "Other(bytes32 indexed id)"),
        ({"trigger_event": "Plain()"}, "Plain()"),
        ({"trigger_event": "Twice(uint256)"}, "Twice(uint256 indexed a)"),
        ({"trigger_event": "Shaped"}, "Shaped((uint8,string)[] shape)"),
        ({"trigger_event": "Shaped((uint8,string)[])"}, "Shaped((uint8,string)[] shape)"),
    ],
)
async def test_an_event_is_resolved_to_its_whole_declaration(api: Api, changes: dict[str, Any], declaration: str) -> None:
    job = await api.taken(api.posted(3, {**EVENT, **changes}))
    assert job.trigger == spec_of(job).trigger == OnEvent(31337, TARGET, declaration, (), api.chain.confirmations)
    assert (job.next_due, job.caught_up, job.recurring) == (None, False, False)


async def test_an_events_filters_and_confirmations_are_kept_in_canonical_form(api: Api) -> None:
    fields = {"event_filter_para_name": "sender", "event_filter_value": ACCOUNT, "confirmations": 3}
    listed = {"event_filters": [{"name": "value", "value": 7}]}
    job = await api.taken(api.posted(3, {**EVENT, **fields, **listed}, recurring=True))
    assert isinstance(job.trigger, OnEvent)
    checksummed = "0xABaBaBaBABabABabAbAbABAbABabababaBaBABaB"
    assert job.trigger.filters == (EventFilter("sender", checksummed), EventFilter("value", "7"))
    assert job.trigger.confirmations == 3
    assert job.recurring
    shown = (await api.get(f"/api/jobs/id/{job.id}")).json()["event_job_data"]
    assert shown["trigger_event"] == PINGED
    assert shown["event_filters"] == [{"name": "sender", "value": checksummed}, {"name": "value", "value": "7"}]
    assert (shown["trigger_chain_id"], shown["confirmations"], shown["recurring"]) == ("31337", 3, True)


@pytest.mark.parametrize(
    ("changes", "field", "told"),
    [
        ({"trigger_event": "Twice"}, "trigger_event", "Twice(bytes32 indexed a) | Twice(uint256 indexed a)"),
        ({"trigger_event": "Ponged"}, "trigger_event", "no event Ponged"),
        ({"trigger_event": ""}, "trigger_event", "missing"),
        ({"trigger_event": "Ping ed"}, "trigger_event", ""),
        ({"trigger_event": "Pinged(address"}, "trigger_event", ""),
        ({"trigger_event": "Pinged(adress)"}, "trigger_event", "adress"),
        ({"trigger_event": "Pinged(uint256)"}, "trigger_event", "indexed"),
        ({"trigger_event": "Pinged(address,uint256)", "abi": json.dumps([PING])}, "trigger_event", "indexed is not known"),
        ({"trigger_event": "Pinged(address indexed a,uint256 indexed b)"}, "trigger_event", "differs from the ABI"),
        ({"trigger_event": "Quiet"}, "trigger_event", "no event Quiet"),
        ({"trigger_event": "X(bool a) anonymous"}, "trigger_event", "anonymous"),
        ({"trigger_contract_address": "0x1"}, "trigger_contract_address", ""),
        ({"trigger_contract_address": ""}, "trigger_contract_address", ""),
        ({"trigger_chain_id": "5"}, "trigger_chain_id", "not served"),
        ({"trigger_chain_id": ""}, "trigger_chain_id", "missing"),
        ({"trigger_chain_id": "x"}, "trigger_chain_id", ""),
        ({"confirmations": -1}, "confirmations", ""),
        ({"confirmations": 10_001}, "confirmations", ""),
        ({"event_filter_para_name": "value"}, "event_filter_value", "missing"),
        ({"event_filter_value": "5"}, "event_filter_para_name", "missing"),
        ({"event_filter_para_name": "nothing", "event_filter_value": "5"}, "event_filter_value", "no such parameter"),
        ({"event_filter_para_name": "value", "event_filter_value": "x"}, "event_filter_value", "integer"),
        ({"event_filter_para_name": "value", "event_filter_value": -1}, "event_filter_value", "range"),
        ({"event_filter_para_name": "value", "event_filter_value": 0.5}, "event_filter_value", ""),
        ({"event_filter_para_name": "sender", "event_filter_value": "0x12"}, "event_filter_value", "address"),
        ({"event_filters": {"sender": ACCOUNT}}, "event_filters", "list"),
        ({"event_filters": [{"name": "sender"}]}, "event_filters", "list"),
        ({"event_filters": [{"name": "value", "value": n} for n in (1, 2)]}, "event_filters", "two values"),
        ({"event_filters": [{"name": "value", "value": 1}, {"name": "value", "value": None}]}, "event_filters[1].value", ""),
        ({"event_filters": [{"name": "value", "value": 1}] * 17}, "event_filters", "at most 16"),
        ({"recurring": "yes"}, "recurring", ""),
    ],
)
async def test_an_event_that_cannot_be_watched_is_refused_by_field(
    api: Api, changes: dict[str, Any], field: str, told: str
) -> None:
    answer = await api.post({**api.posted(3, EVENT), **changes})
    assert (answer.status_code, answer.json().get("field")) == (422, field)
    assert told in answer.json()["error"]
    assert await api.store.jobs(key_owner=KEY_OWNER) == []


@pytest.mark.parametrize(("definition", "fields"), [(3, EVENT), (5, CONDITION)])
async def test_whether_a_job_recurs_is_what_the_chain_says(api: Api, definition: int, fields: dict[str, Any]) -> None:
    for on_chain in (True, False):
        job = api.posted(definition, fields, recurring=on_chain)
        answer = await api.post({**job, "recurring": not on_chain})
        assert (answer.json()["field"], answer.json()["code"]) == ("recurring", "CONTRADICTS_CHAIN")
        assert (await api.taken(job)).recurring is on_chain


# --- scripts ----------------------------------------------------------------------------------------------------

GATEWAY = "https://teal-random-koala-993.mypinata.cloud/ipfs/bafkreif426p7t7takzhw3g6we2h6wsvf27p5jxj3gaiynqf22p3jvhx4la"


@pytest.mark.parametrize(
    ("definition", "fields", "interval"),
    [
        (2, {"schedule_type": "interval", "time_interval": 10}, 10),
        (2, {"schedule_type": "cron", "cron_expression": "* * * * *"}, 0),
        (4, EVENT, 0),
        (6, CONDITION, 0),
    ],
)
async def test_a_dynamic_job_is_taken_with_its_script(api: Api, definition: int, fields: dict[str, Any], interval: int) -> None:
    for url in (SCRIPT, GATEWAY, "ipfs://QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"):
        job = await api.taken(api.posted(definition, fields, interval=interval, dynamic_arguments_script_url=url, language="go"))
        assert (job.target.script_url, job.target.language, job.target.arg_type) == (url, "go", 2)
        assert (job.target.call, job.target.signature) == (b"", "ping(uint256)")
        spec = spec_of(job)
        assert (spec.script_url, spec.language, spec.function, spec.arguments) == (url, "go", "ping(uint256)", "")


async def test_a_custom_script_needs_no_target(api: Api) -> None:
    fields = {"time_interval": 60, "language": "py"}
    for target in (bytes(20), TARGET):
        job = await api.taken(api.posted(7, fields, interval=60, target=target, target_function="", abi=""))
        assert (job.target.contract, job.trigger, spec_of(job).target) == (target, Interval(60), target)
        shown = (await api.get(f"/api/jobs/id/{job.id}")).json()["time_job_data"]
        assert shown["target_contract_address"] == ("" if not any(target) else shown["target_contract_address"])
        assert (shown["dynamic_arguments_script_url"], shown["language"], shown["time_interval"]) == (SCRIPT, "py", 60)
        assert shown["storage"] == {}


async def test_what_a_script_keeps_is_shown_with_its_job(api: Api) -> None:
    job = await api.taken(api.posted(7, {"time_interval": 60, "language": "py"}, interval=60, target=bytes(20)))
    await api.store.claim_shard(job.shard, 1, 0)
    task = make_task(job, job.created_at + 60)
    await api.store.fire([Firing(job.id, task)], 0, {job.shard: 1})
    kept = {"last": str(2**200), "price": "0.25", "up": "true", "note": '"x"'}
    await api.store.change(TaskChange(task.id, (), {STORED: 1}, storage=kept), 0)
    shown = (await api.get(f"/api/jobs/id/{job.id}")).json()["time_job_data"]
    assert shown["storage"] == {"last": str(2**200), "price": "0.25", "up": True, "note": "x"}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"dynamic_arguments_script_url": ""}, "dynamic_arguments_script_url"),
        ({"dynamic_arguments_script_url": "https://example.org/script.py"}, "dynamic_arguments_script_url"),
        ({"dynamic_arguments_script_url": "ftp://gateway.example.org/ipfs/" + SCRIPT[7:]}, "dynamic_arguments_script_url"),
        ({"dynamic_arguments_script_url": "http://inside.example.org/ipfs/" + SCRIPT[7:]}, "dynamic_arguments_script_url"),
        ({"dynamic_arguments_script_url": SCRIPT + "/../x"}, "dynamic_arguments_script_url"),
        ({"dynamic_arguments_script_url": "ipfs://Qm0"}, "dynamic_arguments_script_url"),
        ({"language": "cobol"}, "language"),
        ({"language": ""}, "language"),
        ({"arg_type": 1}, "arg_type"),
        ({"time_interval": None}, "time_interval"),
        ({"target_contract_address": "0x" + "01" * 20}, "target_contract_address"),
    ],
)
async def test_a_custom_script_that_cannot_be_run_is_refused_by_field(api: Api, changes: dict[str, Any], field: str) -> None:
    posted = api.posted(7, {"time_interval": 60, "language": "py"}, interval=60, target=bytes(20))
    answer = await api.post({**posted, **changes})
    assert (answer.status_code, answer.json().get("field")) == (422, field)


async def test_the_fee_of_a_dynamic_job_needs_no_arguments(api: Api) -> None:
    asked = {"target_chain_id": "31337", "target_contract_address": EVENT["trigger_contract_address"], "abi": ABI}
    fee = await api.get("/api/fees", task_definition_id="4", target_function="ping", args='["not looked at"]', **asked)
    assert int(fee.json()["current_total_fee"]) > 0
    custom = await api.get("/api/fees", task_definition_id="7", target_chain_id="31337", target_function="", abi="", args="")
    assert int(custom.json()["current_total_fee"]) > 0


SAFE = to_checksum_address("0x" + "ab" * 20)
EXEC_FROM_HUB = json.dumps(
    [
        {
            "type": "function",
            "name": "execJobFromHub",
            "inputs": [
                {"name": name, "type": kind}
                for name, kind in [
                    ("safeAddress", "address"),
                    ("actionTarget", "address"),
                    ("actionValue", "uint256"),
                    ("actionData", "bytes"),
                    ("operation", "uint8"),
                    ("jobOwner", "address"),
                ]
            ],
        }
    ]
)
IN_SAFE = {"is_safe": True, "safe_address": SAFE.lower(), "safe_name": "mine", "target_function": "execJobFromHub"}
TO_SAFE: list[Any] = [SAFE.lower(), ACCOUNT, "0", "0x", 1, ACCOUNT]


async def test_a_static_safe_job_is_taken_with_the_number_among_its_arguments(api: Api) -> None:
    job = await api.taken(api.job(**IN_SAFE, abi=EXEC_FROM_HUB, arguments=TO_SAFE))
    assert (job.is_safe, job.safe_address, job.safe_name) == (True, SAFE, "mine")
    assert json.loads(spec_of(job).arguments)[0] == SAFE
    assert json.loads(spec_of(job).arguments)[4] == 1
    [(address, name, _)] = await api.store.safe_addresses(OWNER)
    assert (address, name) == (SAFE, "mine")
    again = await api.get(f"/api/jobs/id/{job.id}")
    assert (again.json()["job_data"]["is_safe"], again.json()["job_data"]["safe_address"]) == (True, SAFE)
    route = f"/api/users/safe-addresses/{to_checksum_address(OWNER)}"
    [listed] = (await api.get(route)).json()["safe_addresses"]
    assert (listed["safe_address"], listed["safe_name"]) == (SAFE, "mine")
    stranger = await api.client.get(route, headers=await api.other_key("somebody else"))
    assert stranger.json() == {"safe_addresses": []}


async def test_a_script_of_a_safe_job_cannot_choose_the_safe(api: Api) -> None:
    fields = {"schedule_type": "interval", "time_interval": 10}
    job = await api.taken(api.posted(2, fields, interval=10, abi=EXEC_FROM_HUB, **IN_SAFE))
    assert json.loads(spec_of(job).arguments) == [SAFE, None, None, None, None, None]
    assert job.target.call == b""


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"safe_address": ""}, "safe_address"),
        ({"safe_address": "0x12"}, "safe_address"),
        ({"arguments": [ACCOUNT[:-1] + "c", *TO_SAFE[1:]]}, "arguments[0]"),
    ],
)
async def test_a_safe_job_that_names_no_safe_or_another_is_refused(api: Api, changes: dict[str, Any], field: str) -> None:
    answer = await api.post({**api.job(**IN_SAFE, abi=EXEC_FROM_HUB, arguments=TO_SAFE), **changes})
    assert (answer.status_code, answer.json()["field"]) == (422, field)


async def test_a_script_cannot_be_given_a_safe_where_its_function_takes_none(api: Api) -> None:
    fields = {"schedule_type": "interval", "time_interval": 10}
    answer = await api.post(api.posted(2, fields, interval=10, **{**IN_SAFE, "target_function": "ping"}))
    assert (answer.status_code, answer.json()["field"]) == (422, "target_function")


def test_parameters_are_counted_at_the_top_level_only() -> None:
    assert top_level("f()") == []
    assert top_level("f(address)") == ["address"]
    assert top_level("f((bool,bytes)[],uint8[2],(address,(int8,int8)))") == [
        "(bool,bytes)[]",
        "uint8[2]",
        "(address,(int8,int8))",
    ]


async def test_gas_and_fee_of_an_owner_are_kept_and_shown(api: Api) -> None:
    fields = {"schedule_type": "interval", "time_interval": 10}
    job = await api.taken(api.posted(2, fields, interval=10, gas_limit=2_000_000, max_fee="30000000000000000"))
    assert (job.target.gas_limit, job.max_fee) == (2_000_000, 3 * 10**16)
    renamed = await api.put(f"/api/jobs/update/{job.id}", {"job_title": "another"})
    assert renamed.json()["job_data"]["max_fee"] == "30000000000000000"
    stored = await api.store.job(job.id)
    assert stored is not None
    assert (stored.target.gas_limit, stored.max_fee, stored.title) == (2_000_000, 3 * 10**16, "another")
    other = await api.taken(api.posted(2, fields, interval=10))
    assert (other.target.gas_limit, other.max_fee) == (SCRIPTED_GAS, 0)
