"""An EVM node in a few lines: a pool, nonces, instant or manual mining, and faults a test asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import rlp
import trio
from eth_account import Account
from eth_account.typed_transactions import TypedTransaction
from eth_hash.auto import keccak
from hexbytes import HexBytes

from node.infra.rpc import RpcError, Unreachable
from node.infra.transaction_bytes import read


class FakeNode:
    """`faults` are taken one for each raw transaction that arrives: words it refuses with, or what happens to the request.
    A `strict` one takes nothing that offers less than the base fee; `genesis` is its first block's hash, where it tells."""

    strict = False
    genesis: str | None = None
    doubtful = False

    def __init__(self, *, instant: bool = True, base_fee: int | None = 10**9) -> None:
        self.instant = instant
        self.base_fee = base_fee
        self.calls: list[str] = []
        self.received: list[bytes] = []
        self.pool: dict[tuple[str, int], bytes] = {}
        self.mined: dict[bytes, dict[str, Any]] = {}
        self.counts: dict[str, int] = {}
        self.faults: list[str] = []
        self.entered = trio.Event()

    async def call(self, method: str, params: Sequence[Any] = ()) -> Any:
        await trio.lowlevel.checkpoint()
        self.calls.append(method)
        return await getattr(self, method)(*params)

    async def batch(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        self.calls.append("batch")
        return [await getattr(self, method)(*params) for method, params in calls]

    async def eth_getTransactionCount(self, address: str, tag: str) -> str:
        count = self.counts.get(address, 0)
        while tag == "pending" and (address, count) in self.pool:
            count += 1
        return hex(count)

    async def eth_getBlockByNumber(self, number: str, _: bool) -> dict[str, Any]:
        first = {"hash": self.genesis} if number == "0x0" and self.genesis is not None else {}
        return {"number": "0x1"} | first | ({"baseFeePerGas": hex(self.base_fee)} if self.base_fee is not None else {})

    async def eth_gasPrice(self) -> str:
        return hex((self.base_fee or 0) + 7)

    async def eth_getTransactionByHash(self, tx_hash: str) -> dict[str, Any] | None:
        known = bytes.fromhex(tx_hash[2:]) in self.mined or any(hash_of(raw) == tx_hash for raw in self.pool.values())
        return {"hash": tx_hash} if known else None

    async def eth_getTransactionReceipt(self, tx_hash: str) -> dict[str, Any] | None:
        return self.mined.get(bytes.fromhex(tx_hash[2:]))

    async def eth_sendRawTransaction(self, text: str) -> str:
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "unreachable":
            raise Unreachable("nobody", received=False)
        if fault == "hang":
            self.entered.set()
            await trio.sleep_forever()
        raw = bytes.fromhex(text[2:])
        if fault and fault not in ("answer lost", "hang after"):
            raise RpcError(-32000, fault, doubtful=self.doubtful)
        tx_hash = self._take(raw)
        if fault == "answer lost":
            raise Unreachable("somebody", received=True)
        if fault == "hang after":
            self.entered.set()
            await trio.sleep_forever()
        return tx_hash

    def _take(self, raw: bytes) -> str:
        sender, nonce = Account.recover_transaction(raw).lower(), nonce_of(raw)
        if nonce < self.counts.get(sender, 0):
            raise RpcError(-32000, "nonce too low")
        if self.pool.get((sender, nonce)) == raw:
            raise RpcError(-32000, "already known")
        if (sender, nonce) in self.pool and not _outbids(raw, self.pool[sender, nonce]):
            raise RpcError(-32000, "replacement transaction underpriced")
        if self.strict and not self._pays(raw):
            raise RpcError(-32000, "max fee per gas less than block base fee")
        self.received.append(raw)
        self.pool[sender, nonce] = raw
        if self.instant:
            self.mine()
        return hash_of(raw)

    def mine(self) -> None:
        """Mines whatever is next for its account and pays the base fee."""
        while ready := [
            place for place in self.pool if place[1] == self.counts.get(place[0], 0) and self._pays(self.pool[place])
        ]:
            for sender, nonce in ready:
                raw = self.pool.pop((sender, nonce))
                self.counts[sender] = nonce + 1
                tx_hash = hash_of(raw)
                self.mined[bytes.fromhex(tx_hash[2:])] = {
                    "transactionHash": tx_hash,
                    "blockNumber": hex(len(self.mined) + 1),
                    "blockHash": "0x" + "bb" * 32,
                    "status": "0x1",
                    "gasUsed": "0x5208",
                    "effectiveGasPrice": "0x7",
                    "logs": [{"address": "0x" + "0a" * 20, "topics": ["0x" + "0b" * 32], "data": "0x0c", "logIndex": "0x3"}],
                }

    def _pays(self, raw: bytes) -> bool:
        return read(raw)[1].most >= (self.base_fee or 0)

    @property
    def nonces(self) -> list[int]:
        return [nonce_of(raw) for raw in self.received]


def _outbids(raw: bytes, former: bytes) -> bool:
    """Whether nodes let the one take the other's place: a tenth more, of what may be paid and of the tip."""
    (_, ours), (_, theirs) = read(raw), read(former)
    pairs = [(ours.most, theirs.most), (ours.tip or ours.most, theirs.tip or theirs.most)]
    return all(one > other and one * 100 >= other * 110 for one, other in pairs)


def hash_of(raw: bytes) -> str:
    return "0x" + bytes(keccak(raw)).hex()


def nonce_of(raw: bytes) -> int:
    return int(fields_of(raw)["nonce"])


def fields_of(raw: bytes) -> dict[str, Any]:
    if raw[0] <= 0x7F:
        return dict(TypedTransaction.from_bytes(HexBytes(raw)).as_dict())

    names = ("nonce", "gasPrice", "gas", "to", "value", "data", "v", "r", "s")
    values = rlp.decode(raw)
    return {
        name: value if name in ("to", "data") else int.from_bytes(value, "big") for name, value in zip(names, values, strict=True)
    }
