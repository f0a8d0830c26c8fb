"""The embedded chain's history: sealed blocks, their receipts and logs, the pool, and the block that is mined next."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import rlp  # type: ignore[import-untyped]
from eth.abc import BlockHeaderAPI, ComputationAPI, ReceiptAPI, SignedTransactionAPI, StateAPI
from eth_utils.exceptions import ValidationError

from cli.devnet.embedded.evm import BlockBuilder, Evm, base_fee
from cli.devnet.embedded.pool import Pool, Pooled

KEPT_SNAPSHOTS: Final = 64  # evm_snapshot returns a number for ever; older ones are forgotten


@dataclass(frozen=True, slots=True)
class Log:
    """One event as a receipt holds it."""

    address: bytes
    topics: tuple[bytes, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class Mined:
    """A transaction in its block, with all that its receipt says."""

    transaction: SignedTransactionAPI
    hash: bytes
    sender: bytes
    block_number: int
    index: int
    first_log: int
    """Index within the block of this transaction's first log."""
    logs: tuple[Log, ...]
    bloom: int
    success: bool
    gas_used: int
    cumulative_gas: int
    gas_price: int
    """Effective, wei."""
    created: bytes | None
    """Address of the contract it created."""


@dataclass(frozen=True, slots=True)
class Block:
    """A sealed block. `root` is the state that the next one builds on: the header's, unless a test edited a balance."""

    header: BlockHeaderAPI
    hash: bytes
    root: bytes
    transactions: tuple[Mined, ...]
    size: int

    @property
    def number(self) -> int:
        """Height; genesis is 0."""
        return int(self.header.block_number)


@dataclass(slots=True)
class _Chain:
    """What evm_revert cuts back."""

    blocks: list[Block] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    by_hash: dict[bytes, Block] = field(default_factory=dict)
    mined: dict[bytes, Mined] = field(default_factory=dict)

    def append(self, block: Block) -> None:
        self.blocks.append(block)
        self.hashes.append(block.hash)
        self.by_hash[block.hash] = block
        self.mined.update((each.hash, each) for each in block.transactions)

    def cut(self, length: int) -> None:
        for block in self.blocks[length:]:
            del self.by_hash[block.hash]
            for each in block.transactions:
                del self.mined[each.hash]
        del self.blocks[length:]
        del self.hashes[length:]


class Ledger:
    """The chain and its pool. Every method must be called from one thread at a time; none of them waits for anything.

    A block's timestamp is the wall clock's second, never ahead of it; as on anvil several blocks may share one.
    """

    def __init__(self, chain_id: int, balances: dict[bytes, int], now: Callable[[], float] = time.time) -> None:
        self.chain_id = chain_id
        self.automine = True
        self._tried = 0
        self.evm = Evm(chain_id)
        self._now = now
        self._chain = _Chain()
        self._snapshots: dict[int, tuple[Block, int]] = {}
        self._next_snapshot = 1
        self.pool = Pool(chain_id)
        header = self.evm.genesis(balances, int(now()))
        self._chain.append(_sealed(header, header.state_root, ()))

    # ---- reading ----

    @property
    def head(self) -> Block:
        """The newest block."""
        return self._chain.blocks[-1]

    def block(self, number: int) -> Block | None:
        """The block at a height, or None above the head."""
        return self._chain.blocks[number] if 0 <= number < len(self._chain.blocks) else None

    def block_by_hash(self, block_hash: bytes) -> Block | None:
        """A canonical block by its hash."""
        return self._chain.by_hash.get(block_hash)

    def mined(self, transaction_hash: bytes) -> Mined | None:
        """A transaction that is in a block."""
        return self._chain.mined.get(transaction_hash)

    def blocks(self, first: int, last: int) -> Iterator[Block]:
        """Blocks `first` to `last`, both included, as far as they exist."""
        return iter(self._chain.blocks[max(first, 0) : last + 1])

    def state_at(self, block: Block, free_gas: bool = False) -> StateAPI:
        """The state after `block`, in that block's own context (its number, its timestamp), as eth_call sees it.

        With `free_gas` the base fee is 0, as geth has it for calls that name no price.
        """
        header = block.header.copy(state_root=block.root, **({"base_fee_per_gas": 0} if free_gas else {}))
        return self.evm.state(header, self._chain.hashes)

    def pending_state(self, free_gas: bool = False) -> StateAPI:
        """The state in the context of the block that would be mined now, before its transactions."""
        header = self._next_header()
        if free_gas:
            header = header.copy(base_fee_per_gas=0)
        return BlockBuilder(self.evm, header, self._chain.hashes).state

    def pending_header(self) -> BlockHeaderAPI:
        """The empty header of the block that would be mined now."""
        return self._next_header()

    @property
    def wants_mining(self) -> bool:
        """Whether something came into the pool that no attempt to mine has seen yet."""
        return self.automine and self.pool.revision != self._tried

    # ---- writing ----

    def set_automine(self, enabled: bool) -> None:
        """Mine by itself whenever there is something to mine (as at the start), or only when told to."""
        self.automine = enabled
        self._tried = -1

    def send(self, raw: bytes) -> bytes:
        """Take a signed transaction into the pool; returns its hash, raises RpcError with geth's words."""
        header = self._next_header()
        return self.pool.add(raw, self.state_at(self.head), int(header.gas_limit))

    def mine(self, even_empty: bool = False) -> Block | None:
        """Mine one block of what the pool has ready; None (and no block) when nothing is and it need not be."""
        self._tried = self.pool.revision
        if not even_empty and not self.pool:
            return None
        header = self._next_header(secrets.token_bytes(32))
        builder = BlockBuilder(self.evm, header, self._chain.hashes)
        mined: list[Mined] = []
        queue = self.pool.ready(self.state_at(self.head), base_fee(header))
        for candidate in queue:
            if candidate.transaction.gas > header.gas_limit - builder.header.gas_used:
                queue.skip_sender()
                continue
            try:
                mined.append(self._apply(builder, candidate, mined))
            except ValidationError as refusal:
                # Good when it entered the pool, not any more (the balance is spent): it can only be dropped.
                self.pool.drop(candidate, str(refusal))
                queue.skip_sender()
        if not mined and not even_empty:
            return None
        sealed = builder.seal()
        block = _sealed(sealed, sealed.state_root, tuple(mined))
        self._chain.append(block)
        self.pool.forget(block.transactions)
        return block

    def snapshot(self) -> int:
        """Remember the head, for `revert`."""
        number = self._next_snapshot
        self._next_snapshot += 1
        self._snapshots[number] = (self.head, len(self._chain.blocks))
        if len(self._snapshots) > KEPT_SNAPSHOTS:
            del self._snapshots[min(self._snapshots)]
        return number

    def revert(self, number: int) -> bool:
        """Back to a snapshot, which is used up with all later ones; the pool is emptied. False when it is unknown."""
        kept = self._snapshots.get(number)
        if kept is None:
            return False
        head, length = kept
        self._snapshots = {each: value for each, value in self._snapshots.items() if each < number}
        self._chain.cut(length)
        self._replace_head(head)
        self.pool.clear()
        return True

    def set_balance(self, address: bytes, balance: int) -> None:
        """Edit a balance (wei) without a block, for tests."""
        state = self.state_at(self.head)
        state.set_balance(address, balance)  # type: ignore[arg-type]
        state.persist()
        self._tried = -1
        head = self.head
        self._replace_head(Block(head.header, head.hash, state.state_root, head.transactions, head.size))

    # ---- inside ----

    def _replace_head(self, block: Block) -> None:
        self._chain.blocks[-1] = block
        self._chain.by_hash[block.hash] = block

    def _next_header(self, randao: bytes = bytes(32)) -> BlockHeaderAPI:
        head = self.head
        # A wall clock that was set back must not take the chain back with it.
        timestamp = max(int(self._now()), int(head.header.timestamp))
        return self.evm.child_header(head.header, head.root, timestamp, randao)

    @staticmethod
    def _apply(builder: BlockBuilder, pooled: Pooled, before: Sequence[Mined]) -> Mined:
        cumulative = int(builder.header.gas_used)
        price = builder.state.get_gas_price(pooled.transaction)
        receipt, computation = builder.apply(pooled.transaction)
        return Mined(
            transaction=pooled.transaction,
            hash=pooled.hash,
            sender=pooled.sender,
            block_number=int(builder.header.block_number),
            index=len(before),
            first_log=before[-1].first_log + len(before[-1].logs) if before else 0,
            logs=_logs(receipt),
            bloom=receipt.bloom,
            success=not computation.is_error,
            gas_used=receipt.gas_used - cumulative,
            cumulative_gas=receipt.gas_used,
            gas_price=price,
            created=_created(computation),
        )


def _logs(receipt: ReceiptAPI) -> tuple[Log, ...]:
    return tuple(
        Log(bytes(log.address), tuple(topic.to_bytes(32, "big") for topic in log.topics), bytes(log.data)) for log in receipt.logs
    )


def _created(computation: ComputationAPI) -> bytes | None:
    return bytes(computation.msg.storage_address) if computation.msg.is_create else None


def _sealed(header: BlockHeaderAPI, root: bytes, transactions: tuple[Mined, ...]) -> Block:
    # Header and transactions dominate; the lists' own prefixes are left out of the size.
    size = len(rlp.encode(header)) + sum(len(each.transaction.encode()) for each in transactions)
    return Block(header, bytes(header.hash), bytes(root), transactions, size)
