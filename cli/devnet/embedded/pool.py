"""Transactions that wait for a block: what geth's pool refuses is refused, what it orders is ordered the same way."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog
from eth.abc import SignedTransactionAPI, StateAPI
from eth.vm.forks.prague.constants import STANDARD_TOKEN_COST, TOTAL_COST_FLOOR_PER_TOKEN
from eth.vm.forks.prague.transactions import PragueTransactionBuilder
from eth.vm.forks.shanghai.constants import MAX_INITCODE_SIZE

from cli.devnet.embedded.errors import invalid_params, refused

if TYPE_CHECKING:
    from cli.devnet.embedded.ledger import Mined

log = structlog.get_logger()

MAX_POOLED: Final = 4096  # a devnet has a few dozen senders; anything near this is a loop gone wild
PRICE_BUMP_PERCENT: Final = 10  # geth's: both caps must rise by it for a replacement
BASE_GAS: Final = 21_000
BLOB_TYPE: Final = 3


@dataclass(frozen=True, slots=True)
class Pooled:
    """A valid signed transaction, its sender recovered once."""

    transaction: SignedTransactionAPI
    hash: bytes
    sender: bytes
    arrival: int

    @property
    def cost(self) -> int:
        """The most it can take from its sender, wei."""
        return int(self.transaction.gas * self.transaction.max_fee_per_gas + self.transaction.value)


class ReadyQueue:
    """Iterates the transactions that a block may take: best tip first, first come among equals, nonces of a sender in order."""

    def __init__(self, lists: Iterable[list[Pooled]], base_fee: int) -> None:
        self._base_fee = base_fee
        self._rest = {each[0].sender: each[::-1] for each in lists if each}
        self._heads: list[tuple[int, int, bytes]] = []
        self._last: bytes | None = None
        for sender in list(self._rest):
            self._offer(sender)

    def _offer(self, sender: bytes) -> None:
        best = self._rest[sender][-1] if self._rest[sender] else None
        if best is None or best.transaction.max_fee_per_gas < self._base_fee:
            return  # its later nonces cannot go before it
        tip = min(best.transaction.max_priority_fee_per_gas, best.transaction.max_fee_per_gas - self._base_fee)
        heapq.heappush(self._heads, (-tip, best.arrival, sender))

    def skip_sender(self) -> None:
        """The transaction just given does not fit: nothing more from its sender in this block."""
        self._last = None

    def __iter__(self) -> Iterator[Pooled]:
        while self._heads:
            _, _, sender = heapq.heappop(self._heads)
            self._last = sender
            yield self._rest[sender].pop()
            if self._last is not None:
                self._offer(sender)


class Pool:
    """Waiting transactions by sender and nonce."""

    def __init__(self, chain_id: int) -> None:
        self._chain_id = chain_id
        self._by_sender: dict[bytes, dict[int, Pooled]] = {}
        self._by_hash: dict[bytes, Pooled] = {}
        self.revision = 0
        """Counts the transactions that came in."""

    def __len__(self) -> int:
        return len(self._by_hash)

    def get(self, transaction_hash: bytes) -> Pooled | None:
        """A waiting transaction by its hash."""
        return self._by_hash.get(transaction_hash)

    def all(self) -> list[Pooled]:
        """Every waiting transaction, in order of arrival."""
        return sorted(self._by_hash.values(), key=lambda each: each.arrival)

    def next_nonce(self, sender: bytes, mined: int) -> int:
        """The nonce after `mined` ones and the waiting ones that follow without a gap."""
        waiting = self._by_sender.get(sender, {})
        while mined in waiting:
            mined += 1
        return mined

    def add(self, raw: bytes, state: StateAPI, gas_limit: int) -> bytes:
        """Take a transaction; returns its hash. Raises RpcError with geth's words when it cannot be valid next."""
        transaction = self._decode(raw)
        transaction_hash = bytes(transaction.hash)
        if transaction_hash in self._by_hash:
            raise refused("already known")
        self._check_form(transaction, gas_limit)
        sender = _sender(transaction)
        pooled = Pooled(transaction, transaction_hash, sender, self.revision + 1)
        replaced = self._check_account(pooled, state)
        if replaced is not None:
            del self._by_hash[replaced.hash]
        elif len(self._by_hash) >= MAX_POOLED:
            raise refused("txpool is full")
        self.revision += 1
        self._by_sender.setdefault(sender, {})[transaction.nonce] = pooled
        self._by_hash[transaction_hash] = pooled
        return transaction_hash

    def ready(self, state: StateAPI, base_fee: int) -> ReadyQueue:
        """What the next block may take, given the state it builds on; stale nonces are dropped on the way."""
        lists: list[list[Pooled]] = []
        for sender, waiting in list(self._by_sender.items()):
            nonce = state.get_nonce(sender)  # type: ignore[arg-type]
            for stale in [each for each in waiting.values() if each.transaction.nonce < nonce]:
                self.drop(stale, "nonce is used")
            run: list[Pooled] = []
            while nonce in waiting:
                run.append(waiting[nonce])
                nonce += 1
            lists.append(run)
        return ReadyQueue(lists, base_fee)

    def drop(self, pooled: Pooled, reason: str) -> None:
        """Forget a transaction that can no longer be mined."""
        log.info("dropped a transaction", hash="0x" + pooled.hash.hex(), reason=reason)
        self._remove(pooled)

    def forget(self, mined: Iterable[Mined]) -> None:
        """These are in a block now."""
        for each in mined:
            pooled = self._by_hash.get(each.hash)
            if pooled is not None:
                self._remove(pooled)

    def clear(self) -> None:
        """Forget everything."""
        self._by_sender.clear()
        self._by_hash.clear()

    def _remove(self, pooled: Pooled) -> None:
        self._by_hash.pop(pooled.hash, None)
        waiting = self._by_sender.get(pooled.sender, {})
        waiting.pop(pooled.transaction.nonce, None)
        if not waiting:
            self._by_sender.pop(pooled.sender, None)

    def _decode(self, raw: bytes) -> SignedTransactionAPI:
        try:
            transaction = PragueTransactionBuilder.decode(raw)
            transaction.validate()
        except Exception as error:  # rlp, eth-keys and py-evm each have their own; the bytes are the caller's
            raise invalid_params(f"failed to decode transaction: {error}") from error
        chain_id = transaction.chain_id
        if chain_id is not None and chain_id != self._chain_id:
            raise refused(f"invalid chain id for signer: have {chain_id} want {self._chain_id}")
        return transaction

    @staticmethod
    def _check_form(transaction: SignedTransactionAPI, gas_limit: int) -> None:
        if transaction.type_id == BLOB_TYPE:
            raise refused("transaction type not supported")
        if transaction.max_priority_fee_per_gas > transaction.max_fee_per_gas:
            raise refused("max priority fee per gas higher than max fee per gas")
        if transaction.gas > gas_limit:
            raise refused("exceeds block gas limit")
        if not transaction.to and len(transaction.data) > MAX_INITCODE_SIZE:
            raise refused(f"max initcode size exceeded: code size {len(transaction.data)}, limit {MAX_INITCODE_SIZE}")
        needed = max(transaction.intrinsic_gas, floor_gas(transaction.data))
        if transaction.gas < needed:
            raise refused(f"intrinsic gas too low: gas {transaction.gas}, minimum needed {needed}")

    def _check_account(self, pooled: Pooled, state: StateAPI) -> Pooled | None:
        """Nonce, price and funds; returns the waiting transaction that this one replaces."""
        transaction, sender = pooled.transaction, pooled.sender
        nonce = state.get_nonce(sender)  # type: ignore[arg-type]
        if transaction.nonce < nonce:
            raise refused(f"nonce too low: next nonce {nonce}, tx nonce {transaction.nonce}")
        balance = state.get_balance(sender)  # type: ignore[arg-type]
        waiting = self._by_sender.get(sender, {})
        others = sum(each.cost for each in waiting.values() if each.transaction.nonce != transaction.nonce)
        if pooled.cost + others > balance:
            total = pooled.cost + others
            raise refused(
                f"insufficient funds for gas * price + value: balance {balance}, tx cost {total}, overshot {total - balance}"
            )
        previous = waiting.get(transaction.nonce)
        if previous is not None and not (
            _bumped(transaction.max_fee_per_gas, previous.transaction.max_fee_per_gas)
            and _bumped(transaction.max_priority_fee_per_gas, previous.transaction.max_priority_fee_per_gas)
        ):
            raise refused("replacement transaction underpriced")
        return previous


def floor_gas(data: bytes) -> int:
    """The least gas a transaction with this calldata pays (EIP-7623)."""
    zeros = data.count(0)
    return BASE_GAS + TOTAL_COST_FLOOR_PER_TOKEN * (zeros + STANDARD_TOKEN_COST * (len(data) - zeros))


def _bumped(new: int, old: int) -> bool:
    return new * 100 >= old * (100 + PRICE_BUMP_PERCENT)


def _sender(transaction: SignedTransactionAPI) -> bytes:
    try:
        return bytes(transaction.sender)
    except Exception as error:  # eth-keys raises its own and coincurve's
        raise refused("invalid sender") from error
