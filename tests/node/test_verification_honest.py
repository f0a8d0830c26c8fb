"""What honest keepers may see differently gets a yes, or is left open: gas, blocks, machines, networks, and RPCs that lag."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from consensus.errors import Transient
from consensus.messages import Execution, JobSpec, Uint256, Usage, Verdict
from consensus.schedules import Cron, Moments
from node.arguments import encode_call
from node.infra.chain import Transaction
from node.packages import describes
from node.verification.executions import verify
from node.verification.tolerances import most
from tests.consensus.samples import NOW
from tests.node.attester import ARGUMENTS, CUSTOM, HONEST, SPEC, consistent, decides, executed, means, read, recorded, scripted
from tests.node.fake_scripts import USAGE, Prints

YES = (Verdict.YES, "")
MOMENTS = msgspec.structs.replace(SPEC, trigger=Moments((NOW, NOW + 500)))
CRON = msgspec.structs.replace(SPEC, trigger=Cron("* * * * *", "UTC"), created_at=NOW - 200)
MINUTE = NOW - NOW % 60


async def _verdict(
    execution: Execution, *, record: dict[str, Any] | None = None, transaction: dict[str, Any] | None = None, own: Prints = HONEST
) -> tuple[Verdict, str]:
    what = read(execution, transaction=transaction)
    return await verify(execution, recorded(execution, **(record or {})), means(what, own))


async def test_an_inner_failure_that_the_hub_recorded_gets_a_yes() -> None:
    execution = executed()
    failed = consistent(execution, recorded(execution), success=False)
    assert await verify(execution, failed, means(read(execution))) == YES


@pytest.mark.parametrize("fee", [10**14, 3 * 10**15])
async def test_gas_that_cost_more_or_less_than_elsewhere_gets_a_yes(fee: int) -> None:
    """The hub measures gas and caps its price; a performer claims neither."""
    execution = executed()
    assert await verify(execution, consistent(execution, recorded(execution), fee=fee), means(read(execution))) == YES


async def test_a_later_block_gets_a_yes() -> None:
    execution = executed()
    later = consistent(execution, recorded(execution), timestamp=NOW + 25, block_number=60)
    assert await verify(execution, later, means(read(execution, transaction={"block_number": 60}))) == YES


async def test_a_networked_output_within_the_scripts_tolerance_gets_a_yes() -> None:
    theirs = Prints(b'["1000"]', networked=True)
    execution = scripted(said=theirs, call=encode_call("ping(uint256)", '["1000"]'))
    mine = Prints(b'["1004"]', networked=True, tolerance=(1, 200))
    assert await verify(execution, recorded(execution), means(read(execution), mine)) == YES


async def test_a_networked_output_beyond_the_tolerance_cannot_be_told() -> None:
    theirs = Prints(b'["1000"]', networked=True)
    execution = scripted(said=theirs, call=encode_call("ping(uint256)", '["1000"]'))
    mine = Prints(b'["1100"]', networked=True, tolerance=(1, 200))
    opinion = await verify(execution, recorded(execution), means(read(execution), mine))
    assert opinion == (Verdict.CANNOT_TELL, "OUTPUT_DIFFERS")


@pytest.mark.parametrize("claimed", [most(USAGE), Usage(0, 0, 0, 0), Usage(250, 900, 50_000, 0)])
async def test_usage_that_another_machine_may_have_had_gets_a_yes(claimed: Usage) -> None:
    execution = scripted(said=Prints(ARGUMENTS, claimed))
    assert await verify(execution, recorded(execution), means(read(execution), HONEST)) == YES


async def test_a_reason_that_a_script_gives_only_for_people_gets_a_yes() -> None:
    theirs = Prints(decides()[:-1] + b', "metadata": {"reason": "at 12:00:01"}}')
    execution = scripted(CUSTOM, theirs)
    mine = Prints(decides()[:-1] + b', "metadata": {"reason": "at 12:00:07"}}')
    assert await verify(execution, recorded(execution), means(read(execution), mine)) == YES


@pytest.mark.parametrize(("spec", "second"), [(MOMENTS, NOW), (CRON, MINUTE)])
async def test_cron_and_specific_times_get_a_yes_at_their_seconds(spec: JobSpec, second: int) -> None:
    execution = executed(spec, trigger_id=Uint256(second))
    own = read(execution, job={"interval": 0, "created_at": spec.created_at})
    assert await verify(execution, recorded(execution), means(own)) == YES


# packages of something else, and what cannot be told


@pytest.mark.parametrize(
    "record",
    [
        {"performer": b"\x01" * 20},
        {"success": False},
        {"fee": 10**16},
        {"timestamp": NOW + 1},
        {"block_number": 51},
        {"digest": bytes(32)},
    ],
)
async def test_a_package_of_another_execution_says_nothing_about_the_recorded_one(record: dict[str, Any]) -> None:
    assert await _verdict(executed(), record=record) == (Verdict.CANNOT_TELL, "WRONG_RECORD")


async def test_an_earlier_attempts_package_says_nothing_about_a_later_ones_record() -> None:
    first, second = executed(attempt=1), executed(attempt=2)
    assert not describes(first, recorded(second))
    opinion = await verify(first, recorded(second), means(read(second)))
    assert opinion == (Verdict.CANNOT_TELL, "WRONG_RECORD")


async def test_endpoints_on_different_branches_are_no_contradiction() -> None:
    for success in (True, False):
        opinion = await _verdict(executed(), transaction={"block_number": 49, "success": success})
        assert opinion == (Verdict.CANNOT_TELL, "TRANSACTION_NOT_FOUND")


async def test_a_transaction_that_another_took_the_place_of_is_waited_for() -> None:
    execution = executed()
    waiting = read(execution, transaction={"block_number": None})
    opinion = await verify(execution, recorded(execution), means(waiting))
    assert opinion == (Verdict.CANNOT_TELL, "TRANSACTION_NOT_FOUND")


@pytest.mark.parametrize(
    ("found", "reason"),
    [(None, "TRANSACTION_NOT_FOUND"), (Transient("RPC_UNREACHABLE"), "RPC_UNREACHABLE")],
)
async def test_an_attester_whose_rpc_lags_cannot_tell(found: Transaction | Exception | None, reason: str) -> None:
    execution = executed()
    lagging = read(execution)
    lagging.transaction_read = found
    assert await verify(execution, recorded(execution), means(lagging)) == (Verdict.CANNOT_TELL, reason)


async def test_an_attester_without_the_script_or_a_sandbox_cannot_tell() -> None:
    execution = scripted()
    opinion = await verify(execution, recorded(execution), means(read(execution)))
    assert opinion == (Verdict.CANNOT_TELL, "SCRIPT_UNREACHABLE")


@pytest.mark.parametrize("code", ["SCRIPT_TIMEOUT", "SCRIPT_MEMORY"])
async def test_an_attester_on_a_slow_machine_cannot_tell(code: str) -> None:
    assert await _verdict(scripted(), own=Prints(b"", code=code)) == (Verdict.CANNOT_TELL, "OUTPUT_DIFFERS")
