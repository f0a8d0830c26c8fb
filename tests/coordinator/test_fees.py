"""What an execution may cost: the formula's parts, what runs before it say, and that nothing is run or asked for a quote."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from consensus import fees
from consensus.errors import Failed, Invalid
from consensus.fees import BASE_FEE, UNKNOWN_RUN, resource_fee, run_fee
from consensus.messages import Usage
from coordinator.fees import LEAST_GAS, MOST_GAS, SCRIPTED_GAS, UNTRIED_GAS, Fees, cid_of
from coordinator.store.memory import MemoryStore
from node.infra.chain_memory import Ledger, MemoryChain
from node.infra.clock import TrioClock
from node.infra.compute import inline
from tests.coordinator.conftest import ABI, SCRIPT, TARGET

CHAIN = 31337
COUNTS = st.integers(0, 2**40 - 1)
USAGES = st.builds(Usage, COUNTS, COUNTS, COUNTS, COUNTS)


def test_a_second_of_cpu_a_held_mebibyte_and_a_kibibyte_cost_what_the_table_says() -> None:
    assert run_fee(None) == 0
    assert run_fee(Usage(1000, 0, 0, 0)) == fees.CPU_SECOND
    assert run_fee(Usage(0, 1000, 1024, 0)) == fees.MIB_SECOND
    assert run_fee(Usage(0, 0, 0, 1024)) == fees.KIB_TRANSFERRED
    assert resource_fee(1, None) == BASE_FEE[1] > BASE_FEE[2] > BASE_FEE[3]


@given(USAGES, st.integers(1, 3))
def test_more_of_anything_never_costs_less_and_fees_are_whole_wei(usage: Usage, priority: int) -> None:
    fee = resource_fee(priority, usage)
    assert isinstance(fee, int)
    for name in ("cpu_ms", "wall_ms", "peak_kib", "transferred"):
        more = Usage(**{n: getattr(usage, n) + (n == name and getattr(usage, n) < 2**40 - 1) for n in usage.__struct_fields__})
        assert resource_fee(priority, more) >= fee


def test_the_worst_run_that_a_sandbox_allows_is_within_what_the_hub_charges_for_one() -> None:
    from node.infra.chain import MAX_RUN_FEE
    from node.sandbox.port import Limits

    limits = Limits()
    worst = Usage(int(limits.wall_s * 1000 * limits.cpus), int(limits.wall_s * 1000), limits.memory // 1024, limits.transferred)
    assert resource_fee(1, worst) <= MAX_RUN_FEE


class Counted(MemoryChain):
    """Counts estimates, and makes calls revert on demand."""

    estimates = 0
    gas = 40_000
    reverts = False

    async def estimate_call(self, target: bytes, call: bytes) -> int:
        self.estimates += 1
        if self.reverts:
            raise Failed("CALL_REVERTS", "not yet")
        return self.gas


def priced() -> tuple[Fees, Counted, MemoryStore]:
    clock, store = TrioClock(), MemoryStore()
    chain = Counted(clock, ledger=Ledger(clock))
    return Fees(store, {CHAIN: chain}, clock, inline), chain, store


ASKED = {"contract": TARGET, "function": "ping", "abi": ABI, "arguments": '["5"]', "script_url": ""}


async def test_a_static_call_is_tried_once_in_ten_seconds_however_often_it_is_asked_for(autojump_clock: MockClock) -> None:
    priced_by, chain, _ = priced()
    chain.gas = 100_000
    first, gas = await priced_by.quote(CHAIN, 1, **ASKED)
    assert gas == 130_000
    assert first.total == await chain.quote(0, gas) + BASE_FEE[3]
    assert (await priced_by.quote(CHAIN, 1, **ASKED))[0] == first
    assert chain.estimates == 1
    await priced_by.quote(CHAIN, 1, **{**ASKED, "arguments": '["6"]'})
    assert chain.estimates == 2
    autojump_clock.jump(11)
    await priced_by.quote(CHAIN, 1, **ASKED)
    assert chain.estimates == 3


async def test_what_cannot_be_tried_is_priced_by_its_default(autojump_clock: MockClock) -> None:
    priced_by, chain, _ = priced()
    chain.reverts = True
    assert (await priced_by.quote(CHAIN, 1, **ASKED))[1] == UNTRIED_GAS
    chain.reverts, chain.gas = False, 10
    assert (await priced_by.quote(CHAIN, 1, **{**ASKED, "arguments": '["7"]'}))[1] == LEAST_GAS
    chain.gas = MOST_GAS
    with pytest.raises(Invalid, match="at most"):
        await priced_by.quote(CHAIN, 1, **{**ASKED, "arguments": '["8"]'})


async def test_a_scripts_price_is_a_default_until_it_has_run_and_then_its_own(autojump_clock: MockClock) -> None:
    priced_by, chain, store = priced()
    asked = {**ASKED, "arguments": "", "script_url": SCRIPT}
    unknown, gas = await priced_by.quote(CHAIN, 2, **asked)
    assert (gas, unknown.script, chain.estimates) == (SCRIPTED_GAS, run_fee(UNKNOWN_RUN), 0)
    used = Usage(100, 200, 2048, 0)
    await store.add_usage(cid_of(SCRIPT), used)
    known, _ = await priced_by.quote(CHAIN, 2, **{**asked, "script_url": f"https://gateway.example.org/ipfs/{SCRIPT[7:]}"})
    assert known.script == run_fee(Usage(200, 400, 4096, 0)) < unknown.script
    assert replace(known, script=0) == replace(unknown, script=0)
    unnamed, _ = await priced_by.quote(CHAIN, 7, **{**asked, "script_url": "", "contract": None, "function": ""})
    assert unnamed.script == run_fee(UNKNOWN_RUN)


async def test_priority_and_security_have_their_price(autojump_clock: MockClock) -> None:
    priced_by, _, _ = priced()
    totals = [(await priced_by.quote(CHAIN, 1, **ASKED, priority=priority))[0].total for priority in (1, 2, 3)]
    assert totals == sorted(totals, reverse=True)
    assert totals[0] - totals[2] == BASE_FEE[1] - BASE_FEE[3]
    by_level = {level: (await priced_by.quote(CHAIN, 1, **ASKED, level=level))[0].execution for level in range(5)}
    assert by_level[1] > by_level[2] > by_level[3] == by_level[0] > by_level[4]
