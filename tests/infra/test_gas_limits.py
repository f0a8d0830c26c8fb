"""Gas limits: Ethereum's price of calldata by arithmetic, another chain's by asking, and no belief in absurd answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio

from consensus.errors import Failed, Transient
from node.infra.evm import floor_gas, intrinsic_gas
from node.infra.gas_limits import MARGIN, MOST, GasLimits
from node.infra.rpc import RpcError
from tests.infra.test_rpc import ERROR_STRING

SENDER, HUB = b"\x11" * 20, b"\x22" * 20
DATA = b"\x01" * 300
COMPUTED = 400_000


class PricingNode:
    """Estimates as a chain whose calldata costs `byte` gas more than Ethereum's; `hub` is what the hub needs, or why not."""

    def __init__(self, *, byte: int = 0, hub: int | RpcError = 300_000, overrides: bool = True) -> None:
        self.byte, self.hub, self.overrides = byte, hub, overrides
        self.asked: list[Sequence[Any]] = []

    async def call(self, method: str, params: Sequence[Any] = ()) -> Any:
        await trio.lowlevel.checkpoint()
        assert method == "eth_estimateGas"
        self.asked.append(params)
        data = bytes.fromhex(params[0]["data"][2:])
        if len(params) > 1 and not self.overrides:
            raise RpcError(-32602, "too many arguments, want at most 3")
        if params[0]["to"] != "0x" + HUB.hex():
            return hex(max(intrinsic_gas(data), floor_gas(data)) + self.byte * len(data))
        if isinstance(self.hub, RpcError):
            raise self.hub
        return hex(self.hub)

    async def batch(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        raise AssertionError


def reverting(reason: str) -> RpcError:
    body = reason.encode().ljust(32, b"\0")
    return RpcError(3, "execution reverted", ERROR_STRING[:36] + len(reason).to_bytes(32, "big") + body)


async def test_where_calldata_costs_what_it_does_on_ethereum_nothing_more_is_asked(autojump_clock):
    node = PricingNode()
    limits = GasLimits(node, SENDER)
    assert [await limits.computed(DATA, COMPUTED) for _ in range(3)] == [COMPUTED] * 3
    assert len(node.asked) == 1
    await trio.sleep(601)  # a chain may change its ways
    node.byte = 100
    assert await limits.computed(DATA, COMPUTED) > COMPUTED
    assert await limits.computed(DATA, 1) >= floor_gas(DATA)


async def test_where_calldata_costs_more_the_difference_is_added_with_a_margin():
    limits = GasLimits(PricingNode(byte=1000), SENDER)
    assert await limits.computed(DATA, COMPUTED) == COMPUTED + int(MARGIN * 300_000)


async def test_a_node_that_estimates_nothing_leaves_it_at_the_computed_figure():
    node = PricingNode(hub=RpcError(-32601, "method not found"))
    assert await GasLimits(node, SENDER).tried(HUB, DATA, COMPUTED, 1) == COMPUTED


@pytest.mark.parametrize("overrides", [True, False])
async def test_an_estimate_above_the_computed_figure_wins_with_a_margin_and_one_below_does_not(overrides):
    for needed, limit in ((300_000, COMPUTED), (1_000_000, 1_250_000)):
        node = PricingNode(hub=needed, overrides=overrides)
        assert await GasLimits(node, SENDER).tried(HUB, DATA, COMPUTED, 1_900_000_000) == limit
        assert node.asked[1][3] == {"time": hex(1_900_000_000)}  # as it will be when it is due
        assert (len(node.asked) == 2) == overrides


@pytest.mark.parametrize("node", [PricingNode(byte=10**6), PricingNode(hub=MOST * COMPUTED)])
async def test_an_absurd_estimate_is_not_believed(node):
    with pytest.raises(Transient) as caught:
        await GasLimits(node, SENDER).tried(HUB, DATA, COMPUTED, 1)
    assert caught.value.code == "RPC_ERROR"


@pytest.mark.parametrize("overrides", [True, False])
async def test_what_reverts_is_refused_with_the_contracts_reason(overrides):
    node = PricingNode(hub=reverting("TaskAlreadyExecuted"), overrides=overrides)
    with pytest.raises(Failed) as caught:
        await GasLimits(node, SENDER).tried(HUB, DATA, COMPUTED, 1)
    assert (caught.value.code, caught.value.detail) == ("HUB_REFUSED", "TaskAlreadyExecuted")


@pytest.mark.parametrize("reason", ["TooEarly", "GasTooLow", "out of luck"])
async def test_a_revert_that_says_nothing_of_the_transaction_refuses_nothing(reason):
    node = PricingNode(hub=reverting(reason))
    assert await GasLimits(node, SENDER).tried(HUB, DATA, COMPUTED, 1) == COMPUTED
