"""py-evm at Prague as this chain runs it: native BLS precompiles, EIP-2935 filled, blocks built one transaction at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from eth.abc import (
    AtomicDatabaseAPI,
    BlockHeaderAPI,
    ComputationAPI,
    ReceiptAPI,
    SignedTransactionAPI,
    StateAPI,
)
from eth.consensus.context import ConsensusContext
from eth.db.atomic import AtomicDB
from eth.db.chain import ChainDB
from eth.db.trie import make_trie_root_and_nodes
from eth.vm.chain_context import ChainContext
from eth.vm.forks.prague import PragueVM
from eth.vm.forks.prague.computation import PRAGUE_PRECOMPILES, PragueComputation
from eth.vm.forks.prague.constants import HISTORY_STORAGE_ADDRESS, HISTORY_STORAGE_CONTRACT_CODE
from eth.vm.forks.prague.state import PragueState
from eth_typing import Hash32

from cli.devnet.embedded.precompiles import BLS_PRECOMPILES

GAS_LIMIT: Final = 30_000_000  # anvil's default
MAX_ANCESTORS: Final = 256  # what BLOCKHASH reaches

_PRECOMPILES: Final[dict[Any, Any]] = {**PRAGUE_PRECOMPILES, **BLS_PRECOMPILES}


class DevnetComputation(PragueComputation):
    """Prague with the BLS precompiles on arkworks."""

    _precompiles = _PRECOMPILES


class DevnetState(PragueState):
    """Prague's state; the system contracts come with genesis."""

    computation_class = DevnetComputation

    def set_system_contracts(self) -> None:
        """Nothing: py-evm 0.12 tests the codes the wrong way round here and would never install one."""


class DevnetVM(PragueVM):
    """The rules of a block, told its ancestors instead of looking them up."""

    _state_class = DevnetState
    ancestors: Iterable[bytes] = ()

    @property
    def previous_hashes(self) -> Iterable[Hash32]:
        """Hashes of the ancestors, the parent's first."""
        return (Hash32(each) for each in self.ancestors)


class _Ancestors:
    """Ancestor hashes that can be walked many times: one generator would be spent by the first BLOCKHASH."""

    def __init__(self, hashes: list[bytes], below: int) -> None:
        self._hashes = hashes
        self._below = below

    def __iter__(self) -> Iterator[bytes]:
        lowest = max(self._below - MAX_ANCESTORS, 0)
        return iter(self._hashes[lowest : self._below][::-1])


class Evm:
    """Builds states and VMs over one in-memory database. Not safe for two threads at once."""

    def __init__(self, chain_id: int) -> None:
        self.chain_id = chain_id
        self.db: AtomicDatabaseAPI = AtomicDB()
        self._chaindb = ChainDB(self.db)
        self._context = ChainContext(chain_id)
        self._consensus = ConsensusContext(self.db)

    def genesis(self, balances: dict[bytes, int], timestamp: int) -> BlockHeaderAPI:
        """The header of block 0 with these balances (wei) and the history contract of EIP-2935."""
        blank = DevnetVM.create_genesis_header(difficulty=0, gas_limit=GAS_LIMIT, timestamp=timestamp)
        state = DevnetVM.build_state(self.db, blank, self._context)
        state.set_code(HISTORY_STORAGE_ADDRESS, HISTORY_STORAGE_CONTRACT_CODE)
        state.set_nonce(HISTORY_STORAGE_ADDRESS, 1)
        for address, balance in balances.items():
            state.set_balance(address, balance)  # type: ignore[arg-type]
        state.persist()
        return blank.copy(state_root=state.state_root)

    def child_header(self, parent: BlockHeaderAPI, root: bytes, timestamp: int, randao: bytes = bytes(32)) -> BlockHeaderAPI:
        """The empty header after `parent`, whose state may have been edited since (`root`)."""
        header: BlockHeaderAPI = DevnetVM.create_header_from_parent(
            parent, timestamp=timestamp, gas_limit=parent.gas_limit, mix_hash=randao
        )
        return header.copy(state_root=root)

    def vm(self, header: BlockHeaderAPI, hashes: list[bytes]) -> DevnetVM:
        """A VM that works on `header`, on the state of its `state_root`; `hashes` are all block hashes by number."""
        vm = DevnetVM(header, self._chaindb, self._context, self._consensus)
        vm.ancestors = _Ancestors(hashes, header.block_number)
        return vm

    def state(self, header: BlockHeaderAPI, hashes: list[bytes]) -> StateAPI:
        """The state of `header.state_root` in the context of `header`."""
        return self.vm(header, hashes).state


def base_fee(header: BlockHeaderAPI) -> int:
    """The header's base fee, wei; every header of this chain has one."""
    assert header.base_fee_per_gas is not None
    return int(header.base_fee_per_gas)


class BlockBuilder:
    """One block in the making: apply transactions, then seal."""

    def __init__(self, evm: Evm, header: BlockHeaderAPI, hashes: list[bytes]) -> None:
        self._vm = evm.vm(header, hashes)
        self._block = self._vm.get_block()
        self._vm.block_preprocessing(self._block)  # EIP-2935: the parent's hash into the history contract
        self.header = header
        self.transactions: list[SignedTransactionAPI] = []
        self.receipts: list[ReceiptAPI] = []

    @property
    def state(self) -> StateAPI:
        """The state so far."""
        return self._vm.state

    def apply(self, transaction: SignedTransactionAPI) -> tuple[ReceiptAPI, ComputationAPI]:
        """Apply one transaction; on any exception the block is as if it had not been tried.

        Raises eth_utils.ValidationError for a transaction that this block cannot hold.
        """
        self._vm.validate_transaction_against_header(self.header, transaction)
        state = self._vm.state
        state.lock_changes()  # what came before is final, and access lists are per transaction
        snapshot = state.snapshot()
        try:
            computation = state.apply_transaction(transaction)
            receipt = self._vm.make_receipt(self.header, transaction, computation, state)
        except Exception:
            state.revert(snapshot)
            raise
        bloom = self.header.bloom | receipt.bloom
        self.header = self.header.copy(bloom=bloom, gas_used=receipt.gas_used)
        self.transactions.append(transaction)
        self.receipts.append(receipt)
        return receipt, computation

    def seal(self) -> BlockHeaderAPI:
        """The finished header; the state is in the database.

        The roots are computed here and their trie nodes dropped: transactions and receipts are kept by the ledger as
        objects. Request and withdrawal roots stay those of the empty list: this chain has neither.
        """
        transaction_root, _ = make_trie_root_and_nodes(tuple(self.transactions))
        receipt_root, _ = make_trie_root_and_nodes(tuple(self.receipts))
        self._vm.state.persist()
        fields: dict[str, Any] = {
            "transaction_root": transaction_root,
            "receipt_root": receipt_root,
            "state_root": self._vm.state.state_root,
        }
        self.header = self.header.copy(**fields)
        return self.header
