"""No hostile URL becomes a condition: whatever the source's type, alone or deep in a tree, when it is posted."""

from __future__ import annotations

from typing import Any

import pytest

from tests.coordinator.conftest import CONDITION, NAMES, Api
from tests.infra.hostile import HOSTILE, PRIVATE


def posted(api: Api, shape: str, url: str) -> dict[str, Any]:
    if shape == "api":
        return api.posted(5, {**CONDITION, "value_source_url": url})
    if shape == "oracle":
        return api.posted(5, {**CONDITION, "value_source_type": "oracle", "value_source_url": url})
    if shape == "websocket":
        return api.posted(5, {**CONDITION, "value_source_type": "websocket", "value_source_url": url.replace("http", "ws", 1)})
    leaf = {"source": {"type": "api", "url": url}, "condition_type": "equals", "upper_limit": "1"}
    good = {"source": {"type": "static", "url": "1"}, "condition_type": "equals", "upper_limit": "1"}
    return api.posted(5, {"condition": {"all": [good, {"any": [good, leaf]}]}})


@pytest.mark.parametrize("shape", ["api", "oracle", "websocket", "tree"])
async def test_a_hostile_url_is_refused_when_a_job_is_posted(api: Api, shape: str) -> None:
    taken, named = [], set()
    for url in HOSTILE:
        if url != url.strip():
            continue  # the API trims texts
        answer = await api.post(posted(api, shape, url))
        if answer.status_code != 422:
            taken.append((url, answer.status_code, answer.text))
        else:
            named.add(answer.json()["code"])
    assert taken == []
    assert named == {"SOURCE_REFUSED", "INVALID_FIELD"}, "the latter for what is no URL at all"
    assert api.changed == []


async def test_a_name_with_a_private_address_among_others_is_refused_when_a_job_is_posted(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address in PRIVATE:
        monkeypatch.setitem(NAMES, "rebound.example.org", f"93.184.216.34 {address}")
        answer = await api.post(posted(api, "api", "https://rebound.example.org/"))
        assert (answer.status_code, answer.json()["code"]) == (422, "SOURCE_REFUSED")
