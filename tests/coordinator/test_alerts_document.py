"""docs/alerts.md says what the code does: parts, remedies, codes, limits."""

from __future__ import annotations

import re
from pathlib import Path

from consensus.codec import CHECK_IN_TYPEHASH, keccak
from coordinator import alerts, health, watch
from coordinator.api import health as api
from coordinator.settings import AlertSettings
from node.checkins import as_json
from node.infra import mail, telegram
from tests.consensus import samples

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "alerts.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head and without the marks of code."""
    section = TEXT.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_parts_and_what_to_do_are_the_codes() -> None:
    told = {part.strip("`").partition(":")[0]: remedy for part, _, remedy in rows("The parts of the platform")}
    assert told == watch.REMEDIES


def test_the_answers_to_a_check_in_are_the_codes() -> None:
    told = {code.strip("`"): (int(status), why) for status, code, why in rows("Check-ins") if code}
    for code, status in (*api._STATUS.items(), ("BAD_SIGNATURE", 401)):
        assert told[code] == (status, api._WHY[code])


def test_the_codes_of_the_channels_are_told() -> None:
    for code in (telegram.UNREACHABLE, telegram.BUSY, telegram.REFUSED, mail.UNREACHABLE, mail.REFUSED, alerts.TIMEOUT):
        assert f"`{code}`" in TEXT


def test_the_numbers_are_the_codes() -> None:
    settings = AlertSettings()
    assert f"`alerts.keeper_offline_s` ({settings.keeper_offline_s:.0f})" in TEXT
    assert f"`alerts.part_down_s` ({settings.part_down_s:.0f})" in TEXT
    assert f"`alerts.low_balance_executions` ({settings.low_balance_executions})" in TEXT
    assert f"At most {alerts._WAITING} messages" in TEXT
    assert f"gets {alerts._BURST} at a stretch and then one a minute" in TEXT
    assert alerts._REFILL_S == 60
    assert f"... {alerts._LONGEST_PAUSE_S:.0f} seconds" in TEXT
    assert f"first {health._GRACE_S:.0f} s" in TEXT
    assert f"every {watch._EVERY_S:.0f} seconds" in TEXT
    assert f"within {watch._PATIENCE_S:.0f} seconds" in TEXT
    assert f"over {api._OF_ONE} a minute from one address, or {api._OF_ALL} from all" in TEXT
    assert f"over {api._BODY_BYTES} bytes" in TEXT


def test_the_example_has_a_check_ins_fields_and_the_signed_type() -> None:
    [example] = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    assert re.findall(r'"(\w+)":', example) == list(as_json(samples.check_in(), samples.PEER))
    [signed] = re.findall(r"`(CheckIn\(.*?\))`", TEXT)
    assert keccak(signed.encode()) == CHECK_IN_TYPEHASH
