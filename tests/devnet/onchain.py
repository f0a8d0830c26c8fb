"""What the chain tests do on chain: a chain kept open, a small contract, accounts that sign, and waiting for receipts."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cache
from typing import Any

import trio
from eth_account.signers.local import LocalAccount
from vyper import compile_code
from web3 import Web3
from web3.contract import Contract
from web3.types import TxReceipt

from cli.devnet.chain import Chain, ChainOptions, Engine, open_chain

HISTORY = "0x0000F90827F1C53a10cb7A02335B175320002935"
GWEI = 10**9

SOURCE = """
# pragma version ~=0.4.3

event Counted:
    who: indexed(address)
    number: uint256

unused: uint256
count: public(uint256)
table: public(HashMap[uint256, uint256])

@external
@payable
def bump() -> uint256:
    self.count += 1
    log Counted(who=msg.sender, number=self.count)
    return self.count

@external
def refuse(number: uint256):
    assert number < 10, "too large a number"

@external
def refuse_silently():
    raise

@external
def fill(first: uint256, amount: uint256):
    for i: uint256 in range(amount, bound=100):
        self.table[first + i] = 1

@external
def clear(first: uint256, amount: uint256):
    for i: uint256 in range(amount, bound=100):
        self.table[first + i] = 0

@external
def fill_through_a_call(first: uint256, amount: uint256):
    # 1/64 of the gas stays here, and a failing inner call fails the outer one.
    extcall Self(self).fill(first, amount)

interface Self:
    def fill(first: uint256, amount: uint256): nonpayable

@external
@view
def now() -> uint256:
    return block.timestamp

@external
@view
def height() -> uint256:
    return block.number

@external
@view
def hash_of(number: uint256) -> bytes32:
    return blockhash(number)
"""


@cache
def compiled() -> dict[str, Any]:
    return dict(compile_code(SOURCE, output_formats=["abi", "bytecode"]))


@dataclass(frozen=True)
class Party:
    """An account that signs for itself."""

    web3: Web3
    account: LocalAccount

    @property
    def address(self) -> Any:
        return self.account.address

    def nonce(self, tag: Any = "pending") -> int:
        return int(self.web3.eth.get_transaction_count(self.address, tag))

    def sign(self, **fields: Any) -> Any:
        """A signed transaction; by default a transfer of nothing to itself with plenty of gas."""
        base = {"chainId": 31337, "to": self.address, "value": 0, "gas": 500_000, "nonce": self.nonce()}
        if "gasPrice" not in fields:
            base |= {"maxFeePerGas": 10 * GWEI, "maxPriorityFeePerGas": GWEI}
        base |= fields
        return self.account.sign_transaction({key: value for key, value in base.items() if value is not None}).raw_transaction

    def send(self, **fields: Any) -> Any:
        """Sends without waiting; returns the hash."""
        return self.web3.eth.send_raw_transaction(self.sign(**fields))

    def transact(self, **fields: Any) -> TxReceipt:
        """Sends and waits for the receipt."""
        return self.web3.eth.wait_for_transaction_receipt(self.send(**fields), timeout=20, poll_latency=0.02)

    def deploy(self) -> Contract:
        """The contract of this module, in a block."""
        artefact = compiled()
        receipt = self.transact(to=None, data=artefact["bytecode"], gas=3_000_000)
        assert receipt["status"] == 1
        return self.web3.eth.contract(address=receipt["contractAddress"], abi=artefact["abi"])


@dataclass(frozen=True)
class World:
    """A chain and two funded parties."""

    chain: Chain
    web3: Web3
    party: Party
    other: Party

    def raw(self, method: str, *params: Any) -> Any:
        """The whole JSON-RPC answer, error or not."""
        return self.web3.provider.make_request(method, list(params))  # type: ignore[arg-type]

    @property
    def embedded(self) -> bool:
        return self.chain.kind.startswith("embedded")


class Running:
    """A chain kept open for synchronous tests by a trio loop in a thread of its own, which lives as long as the chain must."""

    def __init__(self, engine: Engine, accounts: int) -> None:
        self._options = ChainOptions(engine=engine, accounts=accounts)
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"chain-{engine}")
        self._error: BaseException | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._close = trio.Event()
        self._chain: Chain | None = None

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:  # noqa: BLE001  (handed to the thread that waits for it)
            self._error = error
        self._up.set()

    async def _serve(self) -> None:
        async with open_chain(self._options) as chain:
            self._chain, self._token = chain, trio.lowlevel.current_trio_token()
            self._up.set()
            await self._close.wait()

    def __enter__(self) -> Chain:
        self._thread.start()
        self._up.wait()
        if self._chain is None:
            raise RuntimeError("the chain did not start") from self._error
        return self._chain

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            self._token.run_sync_soon(self._close.set)
        self._thread.join()
