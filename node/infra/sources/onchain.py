"""Sources on chains: oracles, balances, view calls, and how deep a transaction lies."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from decimal import Decimal

from consensus.codec import keccak, word
from consensus.conditions import BalanceSource, ConfirmationsSource, OracleSource, ViewSource
from consensus.errors import Failed, Invalid, Transient
from consensus.numbers import NotANumber, number, scaled
from consensus.view_calls import NoSuchOutput, View, parse_view
from node.infra.chain import Chain
from node.infra.fetch import UNREACHABLE, UNUSABLE

EncodeCall = Callable[[str, str], bytes]
"""Calldata of a canonical signature for the JSON text of an argument array. Raises `Invalid`. (`node.arguments.encode_call`)"""

ChainSource = OracleSource | BalanceSource | ViewSource | ConfirmationsSource

STALE_AFTER_S = 90_000
"""An hour more than the longest heartbeat of Chainlink's feeds, a day: an older answer is one that nobody renews any more."""
_REMEMBERED = 1024  # aggregators whose decimals are kept
_ROUND = parse_view("latestRoundData()(uint80,int256,uint256,uint256,uint80)")
_DECIMALS = parse_view("decimals()(uint8)")
_BALANCE = parse_view("balanceOf(address)(uint256)")


def _selector(view: View) -> bytes:
    return keccak(view.signature.encode())[:4]


class ChainReader:
    """Reads of the chains that are configured here. Raises `Failed` (SOURCE_UNUSABLE) and `Transient` (SOURCE_UNREACHABLE)."""

    def __init__(self, chains: Mapping[int, Chain], encode_call: EncodeCall) -> None:
        self._chains = chains
        self._encode_call = encode_call
        self._decimals: OrderedDict[tuple[int, bytes], int] = OrderedDict()

    async def read(self, source: ChainSource) -> Decimal:
        chain = self._chains.get(source.chain_id)
        if chain is None:
            raise Transient(UNREACHABLE, f"chain {source.chain_id} is not configured here")
        try:
            match source:
                case OracleSource():
                    return await self._oracle(chain, source)
                case BalanceSource():
                    return number(await self._balance(chain, source))
                case ViewSource():
                    return number(await self._view(chain, source))
                case ConfirmationsSource():
                    return number(await _confirmations(chain, source))
        except (NotANumber, NoSuchOutput) as error:
            raise Failed(UNUSABLE, str(error)) from None
        except Invalid as error:
            raise Failed(UNUSABLE, f"{error.field}: {error.problem}") from None
        except Failed as error:  # a view that reverts
            raise Failed(UNUSABLE, error.detail or error.code) from None
        except Transient as error:
            raise Transient(UNREACHABLE, f"chain {source.chain_id}: {error}") from None

    async def _oracle(self, chain: Chain, source: OracleSource) -> Decimal:
        place = (source.chain_id, source.contract)
        decimals = self._decimals.get(place)
        if decimals is None:
            decimals = _DECIMALS.number(await chain.call(source.contract, _selector(_DECIMALS)), 0)
            self._decimals[place] = decimals
            while len(self._decimals) > _REMEMBERED:
                self._decimals.popitem(last=False)
        returned = await chain.call(source.contract, _selector(_ROUND))
        round_id, answer, _, updated_at, answered_in = (_ROUND.number(returned, place) for place in range(5))
        if not updated_at:
            raise Failed(UNUSABLE, "the oracle's round has no answer yet")
        if answered_in < round_id:
            raise Failed(UNUSABLE, f"the oracle's answer is of round {answered_in}, not {round_id}")
        age = (await chain.head()).timestamp - updated_at
        if age > STALE_AFTER_S:
            raise Failed(UNUSABLE, f"the oracle's answer is {age} s old")
        return scaled(answer, decimals)

    async def _balance(self, chain: Chain, source: BalanceSource) -> int:
        if not source.token:
            return await chain.native_balance(source.account)
        return _BALANCE.number(await chain.call(source.token, _selector(_BALANCE) + word(source.account)), 0)

    async def _view(self, chain: Chain, source: ViewSource) -> int:
        view = parse_view(source.function)
        return view.number(await chain.call(source.contract, self._encode_call(view.signature, source.arguments)), source.output)


async def _confirmations(chain: Chain, source: ConfirmationsSource) -> int:
    receipt = await chain.receipt(source.transaction)
    if receipt is None:
        return 0
    # The head may have been read from a node that lags behind the one that knew the receipt.
    return max(1, (await chain.head()).number - receipt.block_number + 1)
