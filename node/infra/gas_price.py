"""What gas costs now, what we offer for it at most, and by how much an offer must rise to replace an earlier one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import trio

from consensus.errors import Transient
from node.infra.evm_reads import int_of
from node.infra.rpc import Rpc
from node.infra.settings import FeeSettings
from node.infra.transaction_bytes import Offer

_FRESH_S = 6.0  # prices of this age are used as they are: half a block of Ethereum, three of most rollups
_USABLE_S = 60.0  # and a transaction prepared ahead is still sent at these: at 12 s a block, five blocks' rise is covered
GWEI = 10**9


@dataclass(frozen=True, slots=True)
class FeeLimits:
    """`most` is wei for a unit of gas, base fee and tip together, `tip` what a node's suggested tip is believed up to; after
    `bump_after` seconds a transaction counts as stuck."""

    most: int
    bump_after: float
    tip: int = 50 * GWEI

    @classmethod
    def of(cls, settings: FeeSettings) -> Self:
        """What an operator configured for a chain."""
        return cls(int(settings.max_fee_gwei * GWEI), settings.bump_after_s, int(settings.max_tip_gwei * GWEI))


@dataclass(frozen=True, slots=True)
class Price:
    """What a node said. `base` is None on a chain without EIP-1559, where `tip` is the whole gas price; wei."""

    base: int | None
    tip: int
    at: float  # trio's clock

    def offer(self, most: int) -> Offer:
        """For a new transaction. Raises `Transient` (`GAS_TOO_DEAR`) when the chain asks for more than `most` wei."""
        least = self.tip if self.base is None else self.base
        if least > most:
            raise Transient("GAS_TOO_DEAR", f"a unit of gas costs {least} wei, and at most {most} may be paid")
        if self.base is None:
            return Offer(self.tip, None)
        # Twice the base fee: it can rise by an eighth a block, so six full blocks in a row are covered.
        limit = min(2 * self.base + self.tip, most)
        return Offer(limit, min(self.tip, limit))

    def exceeds(self, offer: Offer) -> bool:
        """Whether the chain asks for more by now than this offer gives."""
        if offer.tip is None:
            return offer.most < (self.base or 0) + self.tip
        return offer.most < (self.base or 0) + offer.tip or self.tip > _raised(offer.tip)

    def raised(self, offer: Offer, most: int) -> Offer | None:
        """What takes the place of a transaction with `offer` and suits today's price; None when that is over `most`."""
        today = 2 * (self.base or 0) + self.tip
        limit = min(max(_raised(offer.most), today), most)
        if limit < _raised(offer.most):
            return None
        if offer.tip is None:
            return Offer(limit, None)
        # The tip may not be more than the limit, and must have risen as well: nodes compare both.
        tip = min(max(_raised(offer.tip), self.tip), limit)
        return Offer(limit, tip) if tip >= _raised(offer.tip) else None


def _raised(wei: int) -> int:
    """An eighth more, rounded up: nodes ask for a tenth of what they hold, and for more than nothing."""
    return max(-(-wei * 9 // 8), wei + 1)


class Market:
    """The price of gas, read when it is needed and kept for as long as it is good."""

    def __init__(self, rpc: Rpc, limits: FeeLimits) -> None:
        self._rpc = rpc
        self._price: Price | None = None
        self.limits = limits

    async def fresh(self) -> Price:
        """At most half a block old. Raises `Transient`."""
        return await self._at_most(_FRESH_S)

    async def usable(self) -> Price:
        """Good enough to send at, without a look at the chain in most cases. Raises `Transient`."""
        return await self._at_most(_USABLE_S)

    def forget(self) -> None:
        """A node says otherwise."""
        self._price = None

    async def _at_most(self, age: float) -> Price:
        if self._price is None or trio.current_time() - self._price.at > age:
            block, price = await self._rpc.batch([("eth_getBlockByNumber", ["latest", False]), ("eth_gasPrice", [])])
            self._price = _price(block, price, self.limits.tip)
        return self._price


def _price(block: Any, price: Any, most: int) -> Price:
    base = block.get("baseFeePerGas") if isinstance(block, dict) else None
    if base is None:
        return Price(None, int_of(price), trio.current_time())
    # A node's gas price is the base fee plus the tip it suggests; asking for the sum works on every chain.
    # What is offered above the base fee need not be paid, but a tip is: a node's word for it goes only so far.
    return Price(int_of(base), min(max(int_of(price) - int_of(base), 0), most), trio.current_time())
