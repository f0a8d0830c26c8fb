"""Conditions as clients post them: comparisons, trees of them, the sources of values, and URLs that are not to be asked."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from consensus.conditions import (
    AllOf,
    AnyOf,
    ApiSource,
    BalanceSource,
    Comparison,
    ConfirmationsSource,
    OracleSource,
    StaticSource,
    ViewSource,
    WebSocketSource,
)
from consensus.messages import JobSpec
from consensus.triggers import OnCondition
from tests.coordinator.conftest import CONDITION, KEY_OWNER, PRICE, Api

ACCOUNT = "0x" + "ab" * 20
API = ApiSource(PRICE)
SIGNATURE = "balanceOf(address)(uint256)"
HASH = "0x" + "cd" * 32


@pytest.mark.parametrize(
    ("changes", "comparison"),
    [
        ({}, Comparison(API, "greater_than", "2000.5")),
        ({"upper_limit": 10**30}, Comparison(API, "greater_than", "1" + "0" * 30)),
        ({"upper_limit": "0.10"}, Comparison(API, "greater_than", "0.10")),
        ({"upper_limit": "-0.5", "condition_type": "less_than"}, Comparison(API, "less_than", "-0.5")),
        ({"upper_limit": 0}, Comparison(API, "greater_than", "0")),
        ({"upper_limit": None, "lower_limit": 7}, Comparison(API, "greater_than", "7")),
        ({"upper_limit": 5, "lower_limit": 3}, Comparison(API, "greater_than", "5")),
        ({"condition_type": "between", "upper_limit": 3, "lower_limit": -2}, Comparison(API, "between", "3", "-2")),
        ({"condition_type": "equals", "upper_limit": 1, "hysteresis": 0.25}, Comparison(API, "equals", "1", "0", "0.25")),
        ({"selected_key_route": "data[0].usd"}, Comparison(ApiSource(PRICE, "data[0].usd"), "greater_than", "2000.5")),
        (
            {"value_source_type": "static", "value_source_url": "static:5"},
            Comparison(StaticSource("5"), "greater_than", "2000.5"),
        ),
        ({"value_source_type": "static", "value_source_url": 5.5}, Comparison(StaticSource("5.5"), "greater_than", "2000.5")),
        ({"value_source_type": "oracle"}, Comparison(API, "greater_than", "2000.5")),
        (
            {"value_source_type": "oracle", "value_source_url": f"31337:{ACCOUNT}"},
            Comparison(OracleSource(31337, b"\xab" * 20), "greater_than", "2000.5"),
        ),
        (
            {"value_source_type": "websocket", "value_source_url": "wss://price.example.org/feed", "selected_key_route": "p"},
            Comparison(WebSocketSource("wss://price.example.org/feed", "p"), "greater_than", "2000.5"),
        ),
        (
            {"value_source_type": "balance", "value_source_url": f"balance:31337:{ACCOUNT}"},
            Comparison(BalanceSource(31337, b"\xab" * 20), "greater_than", "2000.5"),
        ),
        (
            {"value_source_type": "balance", "value_source_url": f"31337:{ACCOUNT}:{ACCOUNT}"},
            Comparison(BalanceSource(31337, b"\xab" * 20, b"\xab" * 20), "greater_than", "2000.5"),
        ),
        (
            {"value_source_type": "contract", "value_source_url": f'31337:{ACCOUNT}:balanceOf(address)(uint):["{ACCOUNT}"]'},
            Comparison(
                ViewSource(31337, b"\xab" * 20, SIGNATURE, '["0xABaBaBaBABabABabAbAbABAbABabababaBaBABaB"]'),
                "greater_than",
                "2000.5",
            ),
        ),
        (
            {"value_source_type": "contract", "value_source_url": f"31337:{ACCOUNT}:f()(string,int8)", "selected_key_route": "1"},
            Comparison(ViewSource(31337, b"\xab" * 20, "f()(string,int8)", "[]", 1), "greater_than", "2000.5"),
        ),
        (
            {"value_source_type": "transaction", "value_source_url": f"31337:{HASH}", "upper_limit": 12},
            Comparison(ConfirmationsSource(31337, b"\xcd" * 32), "greater_than", "12"),
        ),
    ],
)
async def test_a_condition_is_what_was_posted(api: Api, changes: dict[str, Any], comparison: Comparison) -> None:
    posted = api.posted(5, {**CONDITION, **changes})
    job = await api.taken(posted)
    assert job.trigger == JobSpec.decode(job.spec).trigger == OnCondition(comparison)
    assert (job.next_due, job.recurring) == (None, False)
    shown = (await api.get(f"/api/jobs/id/{job.id}")).json()["condition_job_data"]
    assert (shown["condition_type"], shown["upper_limit"]) == (comparison.operator, comparison.upper)
    assert shown["unobserved"] == []
    # what is shown can be posted again, and means the same
    again = {
        **api.posted(5, {}),
        **{name: shown[name] for name in shown if name in (*CONDITION, "hysteresis", "selected_key_route")},
    }
    assert (await api.taken(again)).trigger == job.trigger


async def test_a_limit_keeps_every_digit_it_was_sent_with(api: Api) -> None:
    text = "123456789012345678901234567890.123456789012345678901234567890"
    posted = json.dumps(api.posted(5, {**CONDITION, "upper_limit": 1.0})).replace('"upper_limit": 1.0', f'"upper_limit": {text}')
    assert (await api.post(f"[{posted}]".encode())).status_code == 200
    [job] = await api.store.jobs(key_owner=KEY_OWNER)
    assert isinstance(job.trigger, OnCondition)
    assert isinstance(job.trigger.root, Comparison)
    assert Decimal(job.trigger.root.upper) == Decimal(text)


async def test_conditions_are_composed_of_others(api: Api) -> None:
    above = {"source": {"type": "api", "url": PRICE, "route": "eth"}, "condition_type": "greater_than", "upper_limit": "0.5"}
    rich = {"source": {"type": "balance", "url": f"31337:{ACCOUNT}"}, "condition_type": "greater_equal", "upper_limit": 10**18}
    tree = {"all": [above, {"any": [rich, {**above, "hysteresis": "0.1"}]}]}
    job = await api.taken(api.posted(5, {"condition": tree}))
    first = Comparison(ApiSource(PRICE, "eth"), "greater_than", "0.5")
    second = Comparison(BalanceSource(31337, b"\xab" * 20), "greater_equal", str(10**18))
    third = Comparison(ApiSource(PRICE, "eth"), "greater_than", "0.5", "0", "0.1")
    assert job.trigger == OnCondition(AllOf((first, AnyOf((second, third)))))
    shown = (await api.get(f"/api/jobs/id/{job.id}")).json()["condition_job_data"]
    assert (await api.taken(api.posted(5, {"condition": shown["condition"]}))).trigger == job.trigger


NONE = dict.fromkeys(CONDITION)
LEAF: dict[str, Any] = {"source": {"type": "static", "url": "1"}, "condition_type": "equals", "upper_limit": 1}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"condition_type": "above"}, "condition_type"),
        ({"condition_type": None}, "condition_type"),
        ({"condition_type": ["equals"]}, "condition_type"),
        ({"upper_limit": None, "lower_limit": None}, "upper_limit"),
        ({"upper_limit": "NaN"}, "upper_limit"),
        ({"upper_limit": "1,000"}, "upper_limit"),
        ({"upper_limit": True}, "upper_limit"),
        ({"upper_limit": "0x10"}, "upper_limit"),
        ({"upper_limit": 1e200}, "upper_limit"),
        ({"upper_limit": [1]}, "upper_limit"),
        ({"condition_type": "between", "upper_limit": 1, "lower_limit": 2}, "lower_limit"),
        ({"condition_type": "between", "upper_limit": 1, "lower_limit": None}, "lower_limit"),
        ({"hysteresis": -1}, "hysteresis"),
        ({"condition_type": "not_equals", "hysteresis": 1}, "hysteresis"),
        ({"value_source_type": "carrier pigeon"}, "value_source_type"),
        ({"value_source_type": None}, "value_source_type"),
        ({"value_source_type": "api", "value_source_url": ""}, "value_source_url"),
        ({"value_source_type": "api", "value_source_url": "ftp://price.example.org"}, "value_source_url"),
        ({"value_source_type": "api", "value_source_url": "wss://price.example.org"}, "value_source_url"),
        ({"value_source_type": "websocket"}, "value_source_url"),
        ({"value_source_type": "static", "value_source_url": "five"}, "value_source_url"),
        ({"value_source_type": "oracle", "value_source_url": "31337"}, "value_source_url"),
        ({"value_source_type": "oracle", "value_source_url": "1:0x12"}, "value_source_url"),
        ({"value_source_type": "oracle", "value_source_url": f"1:{ACCOUNT}"}, "value_source_url"),
        ({"value_source_type": "balance", "value_source_url": f"31337:{ACCOUNT}:"}, "value_source_url"),
        ({"value_source_type": "contract", "value_source_url": f"31337:{ACCOUNT}:f()"}, "value_source_url"),
        ({"value_source_type": "contract", "value_source_url": f"31337:{ACCOUNT}:f()(string)"}, "value_source_url"),
        ({"value_source_type": "contract", "value_source_url": f"31337:{ACCOUNT}:f(uint8)(int8):[256]"}, "value_source_url"),
        ({"value_source_type": "contract", "value_source_url": f"31337:{ACCOUNT}:f()(int8):[1]"}, "value_source_url"),
        ({"value_source_type": "transaction", "value_source_url": "31337:0x12"}, "value_source_url"),
        ({"selected_key_route": "a..b"}, "selected_key_route"),
        ({"selected_key_route": 5}, "selected_key_route"),
        ({"value_source_type": "static", "value_source_url": "1", "selected_key_route": "a"}, "selected_key_route"),
        ({"condition": LEAF}, "condition_type"),
        ({**NONE, "condition": {"all": []}}, "condition.all"),
        ({**NONE, "condition": {"all": [LEAF], "any": [LEAF]}}, "condition.all"),
        ({**NONE, "condition": [LEAF]}, "condition"),
        ({**NONE, "condition": {"any": [LEAF, {**LEAF, "upper_limit": "x"}]}}, "condition.any[1].upper_limit"),
        ({**NONE, "condition": {**LEAF, "else": 1}}, "condition.else"),
        ({**NONE, "condition": {**LEAF, "source": {"type": "api"}}}, "condition.source"),
        ({**NONE, "condition": {"all": [{"any": [LEAF] * 9}, {"any": [LEAF] * 9}]}}, "condition"),
        ({**NONE, "condition": {"all": [{"any": [{"all": [{"any": [LEAF]}]}]}]}}, f"condition{'.all[0].any[0]' * 2}"),
    ],
)  # fmt: skip
async def test_a_condition_that_is_none_is_refused_by_field(api: Api, changes: dict[str, Any], field: str) -> None:
    answer = await api.post(api.posted(5, {**CONDITION, **changes}))
    assert (answer.status_code, answer.json().get("field")) == (422, field)
    assert answer.json()["remedy"]
    assert await api.store.jobs(key_owner=KEY_OWNER) == []


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.0.0.1:8081/",
        "http://2130706433/",
        "http://0177.0.0.1/",
        "http://0x7f.1/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/",
        "http://192.168.1.1/",
        "http://localhost/",
        "http://inside.example.org/",
        "http://mixed.example.org/",
        "http://user@price.example.org/",
        "http://price.example.org:22/",
        "http://nowhere.example.org/",
    ],
)
async def test_a_url_that_reaches_into_the_network_is_refused_when_the_job_is_posted(api: Api, url: str) -> None:
    for fields in ({**CONDITION, "value_source_url": url}, {"condition": {"any": [{**CONDITION, "value_source_url": url}]}}):
        answer = await api.post(api.posted(5, fields))
        assert (answer.status_code, answer.json()["field"]) == (422, "value_source_url")
        assert answer.json()["code"].startswith("SOURCE_")
    socket = {**CONDITION, "value_source_type": "websocket", "value_source_url": url.replace("http", "ws")}
    assert (await api.post(api.posted(5, socket))).status_code == 422
    assert await api.store.jobs(key_owner=KEY_OWNER) == []


async def test_a_private_host_that_the_operator_allows_may_be_watched(api: Api) -> None:
    await api.taken(api.posted(5, {**CONDITION, "value_source_url": "http://127.0.0.1:8080/price"}))
