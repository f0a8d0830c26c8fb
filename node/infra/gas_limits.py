"""How much gas a transaction is given: computed where the chain prices as Ethereum does, asked of a node where it may not."""

from __future__ import annotations

from typing import Any

import structlog
import trio

from consensus.errors import Failed, Transient
from node.infra.evm import floor_gas, intrinsic_gas
from node.infra.evm_reads import hex_of, int_of
from node.infra.refusals import contract_reason
from node.infra.rpc import Rpc, RpcError

log = structlog.get_logger(__name__)

MARGIN = 1.25
"""Over a node's estimate: prices of calldata on a rollup's parent chain rise by an eighth a block at most, state changes too."""
MOST = 16
"""Times the computed figure: an estimate beyond it is a node's mistake. Rollups have asked for ten times as much."""
_SAMPLE = b"\xff" * 1024
_NOWHERE = b"\xde\xad" * 10  # no code is there, on any chain
_OTHERWISE = 1.05  # estimates end within 1.5 % of what is needed
_PROBED_S = 600.0
_NOT_SAID = ("TooEarly", "GasTooLow")
"""Reasons that are the estimate's own: made before the second, or with less gas than the transaction will have."""


class GasLimits:
    """Of one sender on one chain."""

    def __init__(self, rpc: Rpc, sender: bytes) -> None:
        self._rpc = rpc
        self._sender = sender
        self._otherwise, self._probed_at = False, float("-inf")

    async def computed(self, data: bytes, gas: int) -> int:
        """`gas` as computed by Ethereum's prices, and what this chain asks for calldata beyond those. Raises `Transient`."""
        if not await self._prices_otherwise():
            return max(gas, floor_gas(data))
        beyond = await self._estimate({"to": hex_of(_NOWHERE), "data": hex_of(data)}) - _ethereum(data)
        return self._believed(max(gas, floor_gas(data)), gas + int(MARGIN * max(0, beyond)))

    async def tried(self, to: bytes, data: bytes, gas: int, at: int) -> int:
        """As `computed`, or what a node finds the transaction to need at second `at`, with a margin, when that is more.

        Raises `Failed` (`HUB_REFUSED` and the contract's reason) when it is bound to revert, and `Transient`.
        """
        limit = await self.computed(data, gas)
        request = {"to": hex_of(to), "data": hex_of(data)}
        try:
            try:
                needed = await self._estimate(request, "latest", {}, {"time": hex(at)})
            except RpcError as error:
                if contract_reason(error):
                    raise
                needed = await self._estimate(request)  # a node that knows no block overrides: at the second that is now
        except RpcError as error:
            reason = contract_reason(error)
            if reason and reason not in _NOT_SAID:
                raise Failed("HUB_REFUSED", reason) from error
            log.debug("gas_not_estimated", why=str(error))
            return limit
        return self._believed(limit, int(MARGIN * needed))

    @staticmethod
    def _believed(computed: int, asked: int) -> int:
        if asked > MOST * computed:
            raise Transient("RPC_ERROR", f"eth_estimateGas asks for {asked} gas where {computed} was computed")
        return max(computed, asked)

    async def _prices_otherwise(self) -> bool:
        """Whether plain calldata costs more here than on Ethereum, as on rollups that add their parent chain's gas."""
        if trio.current_time() - self._probed_at > _PROBED_S:
            try:
                sample = await self._estimate({"to": hex_of(_NOWHERE), "data": hex_of(_SAMPLE)})
            except RpcError as error:
                log.debug("gas_not_probed", why=str(error))
                sample = 0
            self._otherwise = sample > _OTHERWISE * _ethereum(_SAMPLE)
            self._probed_at = trio.current_time()
        return self._otherwise

    async def _estimate(self, request: dict[str, str], *more: Any) -> int:
        return int_of(await self._rpc.call("eth_estimateGas", [{"from": hex_of(self._sender), **request}, *more]))


def _ethereum(data: bytes) -> int:
    return max(intrinsic_gas(data), floor_gas(data))
