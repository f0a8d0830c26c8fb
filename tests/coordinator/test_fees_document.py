"""docs/fees.md says what the code computes, the worked example included."""

from __future__ import annotations

import re
from pathlib import Path

from consensus import fees
from consensus.committee import SIZE_BY_LEVEL
from consensus.messages import Usage
from coordinator import charges
from coordinator.fees import SCRIPTED_GAS, UNTRIED_GAS
from coordinator.settings import ChargeSettings
from node.infra.chain import MAX_RUN_FEE
from node.infra.evm import Tariff

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "fees.md").read_text()
HUB = (ROOT / "consensus" / "contracts" / "Hub.vy").read_text()


def of_hub(name: str) -> int:
    [(factor, power)] = re.findall(rf"{name}: public\(constant\(uint256\)\) = ([\d_]+)(?: \* 10\*\*(\d+))?\n", HUB)
    return int(factor) * 10 ** int(power or 0)


def rows(heading: str) -> dict[str, str]:
    section = TEXT.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")][2:]
    return {cells[0].strip(): cells[1].strip() for cells in lines}


def test_the_constants_are_the_codes() -> None:
    unknown = fees.UNKNOWN_RUN
    assert rows("The formula") == {
        **{f"`BASE_FEE` of priority {priority}": str(fee) for priority, fee in fees.BASE_FEE.items()},
        "`CPU_SECOND`": str(fees.CPU_SECOND),
        "`MIB_SECOND`": str(fees.MIB_SECOND),
        "`KIB_TRANSFERRED`": str(fees.KIB_TRANSFERRED),
        "`UNKNOWN_RUN`": f"{unknown.cpu_ms} CPU ms, {unknown.wall_ms} ms, {unknown.peak_kib} KiB, {unknown.transferred} bytes",
    }


def test_the_worked_example_is_what_hub_and_formula_come_to() -> None:
    tariff = Tariff(
        overhead_gas=of_hub("OVERHEAD_GAS"),
        data_gas=of_hub("DATA_GAS"),
        validation_gas=of_hub("VALIDATION_GAS"),
        validation_seat_gas=of_hub("VALIDATION_SEAT_GAS"),
        priority_cap=of_hub("PRIORITY_CAP"),
        unit=10**12,
        round_seconds=12,
    )
    price, size = 10**9, SIZE_BY_LEVEL[3]
    run = fees.run_fee(Usage(730, 1500, 90_000, 12_345))
    gas = (150_000 + tariff.overhead_gas + tariff.data_gas * 36) * price
    aggregation = (tariff.validation_gas + tariff.validation_seat_gas * size) * price + size * tariff.unit
    fee = tariff.fee(3, 150_000, 36, price, 0) + fees.resource_fee(3, Usage(730, 1500, 90_000, 12_345))
    assert fee == gas + aggregation + fees.BASE_FEE[3] + run
    told = list(rows("A worked example").values())
    assert told == [str(gas), str(aggregation), str(fees.BASE_FEE[3]), str(run), str(-(-fee // 10**6) * 10**6)]


def test_numbers_in_the_text_are_the_codes() -> None:
    assert f"gets {UNTRIED_GAS}, one that a script decides\n  {SCRIPTED_GAS}" in TEXT
    assert ", ".join(str(SIZE_BY_LEVEL[level]) for level in (1, 2, 3, 4)) + " for levels 1 to 4" in TEXT
    assert MAX_RUN_FEE == 10**15
    assert (ChargeSettings().batch, ChargeSettings().interval_s) == (charges.BATCH, charges.INTERVAL_S) == (32, 600)
    assert f"when {charges.BATCH} wait" in TEXT
