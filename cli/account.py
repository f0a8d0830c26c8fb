"""An account at the command line: one transaction after another, each waited for, each refusal with its reason."""

from __future__ import annotations

from string import hexdigits
from typing import Any

import httpx
import trio
from eth_account import Account as EthAccount
from eth_account.signers.local import LocalAccount
from eth_utils.address import is_checksum_address, to_checksum_address

from consensus.errors import Failed, Misconfigured, Transient
from node.infra.rpc import Rpc, RpcError

RECEIPT_S = 180.0
"""How long a transaction may take to be mined: 15 blocks of 12 s."""
CONNECT_S = 10.0
_POLL_S = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)


class Sender:
    """Sends from one key. Not for two tasks at once: the nonce is the node's count of pending transactions."""

    def __init__(self, rpc: Rpc, key: LocalAccount | bytes | str, chain_id: int) -> None:
        self.rpc = rpc
        self._account: LocalAccount = key if isinstance(key, LocalAccount) else EthAccount.from_key(key)
        self._chain_id = chain_id

    @property
    def address(self) -> str:
        """0x checksum address."""
        return str(self._account.address)

    async def send(self, to: str, data: bytes, *, value: int = 0) -> dict[str, Any]:
        """Sends, waits, and returns the receipt.

        Raises `Failed`: `TRANSACTION_REFUSED` with the contract's reason when it would revert or cannot be paid,
        `TRANSACTION_REVERTED` when it did, `NOT_MINED` when it was not mined within `RECEIPT_S`.
        """
        request = {"from": self.address, "to": to, "data": "0x" + data.hex(), "value": hex(value)}
        try:
            gas, nonce, tip, block = await self.rpc.batch(
                [
                    ("eth_estimateGas", [request]),
                    ("eth_getTransactionCount", [self.address, "pending"]),
                    ("eth_maxPriorityFeePerGas", []),
                    ("eth_getBlockByNumber", ["latest", False]),
                ]
            )
            transaction: dict[str, Any] = {
                "type": 2,
                "chainId": self._chain_id,
                "nonce": int(nonce, 16),
                "gas": int(gas, 16) * 6 // 5,
                "maxPriorityFeePerGas": int(tip, 16),
                "maxFeePerGas": 2 * int(block["baseFeePerGas"], 16) + int(tip, 16),
                "to": to,
                "value": value,
                "data": data,
            }
            signed = self._account.sign_transaction(transaction)
            tx_hash = await self.rpc.call("eth_sendRawTransaction", ["0x" + bytes(signed.raw_transaction).hex()])
        except RpcError as error:
            raise Failed("TRANSACTION_REFUSED", error.reason or error.message) from error
        return await self._receipt(tx_hash)

    async def _receipt(self, tx_hash: str) -> dict[str, Any]:
        pauses = iter(_POLL_S)
        with trio.move_on_after(RECEIPT_S):
            while True:
                receipt: dict[str, Any] | None = await self.rpc.call("eth_getTransactionReceipt", [tx_hash])
                if receipt is None:
                    await trio.sleep(next(pauses, _POLL_S[-1]))
                    continue
                if int(receipt["status"], 16) != 1:
                    raise Failed("TRANSACTION_REVERTED", f"transaction {tx_hash}")
                return receipt
        raise Failed("NOT_MINED", f"transaction {tx_hash} within {RECEIPT_S:.0f} s")


def address_in(option: str, text: str) -> str:
    """The address that an option names, in checksum case. Raises `Misconfigured`; for a wrong checksum too."""
    digits = text[2:] if text.startswith("0x") else ""
    if len(digits) != 40 or not all(d in hexdigits for d in digits) or not int(digits, 16):
        raise Misconfigured(option, f"{text!r} is not an address; give 0x and 40 hex digits")
    if digits not in (digits.lower(), digits.upper()) and not is_checksum_address(text):
        raise Misconfigured(option, f"{text!r} has a wrong checksum; copy the address again")
    return str(to_checksum_address(text))


async def chain_id_at(url: str) -> int:
    """The id of the chain that an endpoint serves. Raises `Transient` (`RPC_UNREACHABLE`)."""
    question = {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []}
    try:
        async with httpx.AsyncClient() as client:
            return int((await client.post(url, json=question, timeout=CONNECT_S)).json()["result"], 16)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
        raise Transient("RPC_UNREACHABLE", "the endpoint of --rpc does not answer as an Ethereum node") from None
