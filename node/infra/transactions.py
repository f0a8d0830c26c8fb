"""Transactions that are sent once: recorded before they leave, the same bytes again after a restart, no gaps between nonces."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import structlog
import trio
from eth_account import Account

from consensus.errors import Failed, Transient
from node.infra.rpc import Rpc, RpcError, Unreachable
from node.infra.secret import Secret
from node.infra.transaction_log import SENT_TABLE, Sent, SqliteTransactionLog, TransactionLog

__all__ = [
    "SENT_TABLE",
    "Log",
    "Outbox",
    "PreparedTransaction",
    "Receipt",
    "Sent",
    "SqliteTransactionLog",
    "TransactionLog",
]

log = structlog.get_logger(__name__)

_FRESH_S = 6.0  # fees of this age are used as they are: half a block of Ethereum, three of most rollups
_USABLE_S = 60.0  # and a transaction prepared ahead is still sent at these: at 12 s a block, five blocks' rise is covered
_TRIES = 4  # nonces or fees that turn out stale, in a row; more means that somebody else sends from this account
_IN_FLIGHT = 256  # transactions whose bytes are kept for that; of a lost race nobody waits for the receipt
_RECOUNT_S, _LONGEST_RECOUNT_S = 5.0, 60.0  # between looks that find the same nonces gone: one that only lags says so again
_SENT_AGAIN = 64  # of what was taken back at one look: more than a crash takes, and little for a node that lies
_REBROADCAST_EVERY = 20  # polls without a receipt, after which the bytes are sent again: a node may have lost them


@dataclass(frozen=True, slots=True)
class Log:
    """An event: 20-byte address, 32-byte topics, data, and its index in the block."""

    address: bytes
    topics: tuple[bytes, ...]
    data: bytes
    log_index: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """A mined transaction. `status` is false when it reverted; prices in wei."""

    tx_hash: bytes
    block_number: int
    block_hash: bytes
    status: bool
    gas_used: int
    effective_gas_price: int
    logs: tuple[Log, ...]


@dataclass(frozen=True, slots=True)
class PreparedTransaction:
    """What to send under `key`; nonce, fees and signature come with the send. `to` is None for a deployment."""

    key: str
    to: bytes | None
    data: bytes = field(repr=False)
    gas: int
    value: int = 0


@dataclass(frozen=True, slots=True)
class _Fees:
    base: int | None  # None: a chain without EIP-1559
    tip: int  # or the gas price, without it
    at: float  # trio's clock

    def fields(self) -> dict[str, int]:
        if self.base is None:
            return {"gasPrice": self.tip}
        # Twice the base fee: it can rise by an eighth a block, so six full blocks in a row are covered.
        return {"type": 2, "maxFeePerGas": 2 * self.base + self.tip, "maxPriorityFeePerGas": self.tip}


class Outbox:
    """One account's transactions. Of each key at most one reaches the chain, this run or a former one.

    One outbox for an account: it counts nonces itself. Sends go one after the other, so that one that fails leaves no gap.
    """

    def __init__(self, rpc: Rpc, secret: Secret[bytes], chain_id: int, sent: TransactionLog) -> None:
        self._rpc = rpc
        self._secret = secret
        self._chain_id = chain_id
        self._log = sent
        self.address: bytes = bytes.fromhex(Account.from_key(secret.reveal()).address[2:])
        self._lock = trio.Lock()
        self._fees: _Fees | None = None
        self._nonce: int | None = None  # the next one; None: ask the chain
        self._unsettled: list[Sent] = []  # left, or not: answers that we did not get, by nonce
        self._in_flight: OrderedDict[bytes, bytes] = OrderedDict()  # hash -> bytes, until its receipt
        self._recount_at, self._recount_pause, self._recounted = float("-inf"), _RECOUNT_S, -1
        self._refused_again: bytes | None = None  # hash of what was refused though it had been taken before

    async def prepare(self, key: str, to: bytes | None, data: bytes, *, gas: int, value: int = 0) -> PreparedTransaction:
        """Fetches what `send` will need, ahead of its time. `gas` is the limit, `value` wei. Raises `Transient`."""
        if self._fees is None or trio.current_time() - self._fees.at > _FRESH_S:
            await self._refresh_fees()
        if self._nonce is None:
            async with self._lock:
                await self._next_nonce()
        return PreparedTransaction(key, to, data, gas, value)

    async def send(self, prepared: PreparedTransaction) -> bytes:
        """Signs, records and sends; the transaction's hash. A key sent before is sent again as the same bytes.

        Raises `Failed`: `TRANSACTION_REFUSED` with the node's reason or `INSUFFICIENT_FUNDS` (nothing was sent),
        `NONCE_TAKEN` when the account's nonce went to a transaction this outbox does not know; `Transient` when no
        node answered. After a `Transient` or a cancellation it may have left: send it again, with the same key.
        """
        async with self._lock:
            former = await self._log.find(prepared.key)
            if former is not None:
                return await self._again(former)
            for _ in range(_TRIES):
                sent = await self._once(prepared)
                if sent is not None:
                    return sent
        raise Transient("NONCE_CONTENDED", "another program sends from this account")

    async def sent(self, key: str) -> bytes | None:
        """Hash of what was recorded under `key`, this run or a former one; whether it is mined, `receipt` tells."""
        former = await self._log.find(key)
        return None if former is None else former.tx_hash

    async def receipt(self, tx_hash: bytes, pauses: Iterable[float]) -> Receipt:
        """Waits for the receipt: looks at once, then after each of `pauses` (seconds; the last one repeats).

        Goes on through unreachable nodes; the caller sets the deadline.
        """
        rhythm, pause, polls = iter(pauses), 1.0, 0
        while True:
            try:
                found = await self._rpc.call("eth_getTransactionReceipt", [_hex(tx_hash)])
                if found is not None:
                    self._in_flight.pop(tx_hash, None)
                    return _receipt(found)
                polls += 1
                if polls % _REBROADCAST_EVERY == 0 and tx_hash in self._in_flight:
                    await self._recount()
                    await self._broadcast(self._in_flight[tx_hash])
            except (Transient, RpcError) as error:
                log.debug("receipt_not_read", tx_hash=_hex(tx_hash), why=str(error))
            pause = next(rhythm, pause)
            await trio.sleep(pause)

    async def _recount(self) -> None:
        """Sends again what the chain does not count any more: a reorganisation, or a node that crashed, takes transactions back
        with their nonces, and all that follow would wait for them for ever.

        A node that lags says the same of what is safe: its word frees no nonce by itself, and while it stays at one number it
        is asked ever more rarely. Raises `Transient` when a node goes away meanwhile: then the next look comes soon.
        """
        async with self._lock:
            if self._nonce is None or trio.current_time() < self._recount_at:
                return
            counted = _quantity(await self._rpc.call("eth_getTransactionCount", [_hex(self.address), "pending"]))
            if counted >= self._nonce:
                self._recount_pause, self._recounted, self._refused_again = _RECOUNT_S, -1, None
                return
            log.warning("transactions_taken_back", address=_hex(self.address), nonce=counted, counted_to=self._nonce)
            taken_back = [sent for sent in await self._log.since(counted) if sent.nonce < self._nonce][:_SENT_AGAIN]
            if not taken_back or taken_back[0].nonce != counted:
                self._nonce = None  # nothing of ours fills the gap: what is sent next does
                return
            for sent in taken_back:
                if not await self._taken_again(sent):
                    break
            self._recount_pause = min(2 * self._recount_pause, _LONGEST_RECOUNT_S) if counted == self._recounted else _RECOUNT_S
            self._recounted, self._recount_at = counted, trio.current_time() + self._recount_pause

    async def _taken_again(self, sent: Sent) -> bool:
        """Whether a node takes what one had taken before. Its nonce is free only when it is refused twice, some time apart."""
        try:
            await self._broadcast(sent.raw)
        except RpcError as error:
            if not _says(error, _NONCE_USED):
                log.warning("transaction_refused_again", key=sent.key, tx_hash=_hex(sent.tx_hash), why=error.message)
                if self._refused_again == sent.tx_hash and not await self._is_known(sent.tx_hash):
                    await self._take_back(sent)
                self._refused_again = sent.tx_hash
                return False
        else:
            self._flies(sent)
        return True

    async def _once(self, prepared: PreparedTransaction) -> bytes | None:
        """One try with one nonce; None when the nonce or the fees were stale and another try is due."""
        nonce = await self._next_nonce()
        if self._fees is None or trio.current_time() - self._fees.at > _USABLE_S:
            await self._refresh_fees()
        sent = self._sign(prepared, nonce)
        self._unsettled = [sent]  # until a node has answered, whatever happens to us
        await self._log.record(sent.key, sent.raw, sent.tx_hash, sent.nonce)
        try:
            await self._broadcast(sent.raw)
        except Unreachable as error:
            if not error.received:
                await self._take_back(sent)
            raise
        except RpcError as error:
            if not _says(error, _NONCE_USED) or not await self._is_known(sent.tx_hash):
                await self._take_back(sent)
                if _says(error, _NONCE_USED + _NONCE_STALE):
                    self._nonce = None
                    return None
                if _says(error, _FEE_STALE):
                    self._fees = None
                    return None
                raise _refused(error) from error
        self._accepted(sent)
        return sent.tx_hash

    async def _again(self, former: Sent) -> bytes:
        """The same bytes once more; they may be pending, mined, or never have left."""
        try:
            await self._broadcast(former.raw)
        except RpcError as error:
            if await self._is_known(former.tx_hash):
                pass
            elif _says(error, _NONCE_USED):
                raise Failed(
                    "NONCE_TAKEN", f"nonce {former.nonce} of {_hex(self.address)} went to another transaction"
                ) from error
            else:
                raise _refused(error) from error
        if former in self._unsettled[:1]:
            self._accepted(former)
        self._flies(former)
        return former.tx_hash

    async def _next_nonce(self) -> int:
        """The nonce of the next new transaction. Those whose fate is unknown go first, lest they leave a gap."""
        if self._nonce is None:
            nonce = _quantity(await self._rpc.call("eth_getTransactionCount", [_hex(self.address), "pending"]))
            former = await self._log.since(nonce)
            # Recorded, and not in this node's pool: a crash came first, or the node forgot. A gap means another chain's life.
            self._unsettled = [sent for place, sent in enumerate(former) if sent.nonce == nonce + place]
            self._nonce = nonce
        while self._unsettled:
            sent = self._unsettled[0]
            try:
                await self._broadcast(sent.raw)
            except RpcError as error:
                if not _says(error, _NONCE_USED):
                    log.warning("transaction_withdrawn", key=sent.key, tx_hash=_hex(sent.tx_hash), why=error.message)
                    await self._take_back(sent)
                    break
            self._accepted(sent)  # or its nonce is used, by itself or another: `_again` tells which
        return self._nonce

    def _accepted(self, sent: Sent) -> None:
        self._unsettled = [other for other in self._unsettled if other.nonce > sent.nonce]
        self._nonce = sent.nonce + 1
        self._flies(sent)

    def _flies(self, sent: Sent) -> None:
        self._in_flight[sent.tx_hash] = sent.raw
        while len(self._in_flight) > _IN_FLIGHT:
            self._in_flight.popitem(last=False)

    async def _take_back(self, sent: Sent) -> None:
        """No node has it: its nonce is free again."""
        with trio.CancelScope(shield=True):
            await self._log.forget(sent.key)
        self._unsettled = []
        self._nonce = sent.nonce

    async def _broadcast(self, raw: bytes) -> None:
        try:
            await self._rpc.call("eth_sendRawTransaction", [_hex(raw)])
        except RpcError as error:
            if not _says(error, _KNOWN):
                raise

    async def _is_known(self, tx_hash: bytes) -> bool:
        return await self._rpc.call("eth_getTransactionByHash", [_hex(tx_hash)]) is not None

    async def _refresh_fees(self) -> None:
        block, price = await self._rpc.batch([("eth_getBlockByNumber", ["latest", False]), ("eth_gasPrice", [])])
        base = block.get("baseFeePerGas") if isinstance(block, dict) else None
        if base is None:
            self._fees = _Fees(None, _quantity(price), trio.current_time())
        else:
            # A node's gas price is the base fee plus the tip it suggests; asking for the sum works on every chain.
            tip = max(_quantity(price) - _quantity(base), 0)
            self._fees = _Fees(_quantity(base), tip, trio.current_time())

    def _sign(self, prepared: PreparedTransaction, nonce: int) -> Sent:
        """0.4 ms: less than a trip to a worker thread would save."""
        assert self._fees is not None
        fields: dict[str, Any] = {
            **self._fees.fields(),
            "chainId": self._chain_id,
            "nonce": nonce,
            "gas": prepared.gas,
            "to": prepared.to if prepared.to is not None else b"",
            "value": prepared.value,
            "data": prepared.data,
        }
        signed = Account.sign_transaction(fields, self._secret.reveal())
        return Sent(prepared.key, bytes(signed.raw_transaction), bytes(signed.hash), nonce)


# What nodes say (geth, erigon, nethermind, besu, reth, anvil, py-evm); there are no codes for it. Lower case.
_KNOWN = ("already known", "known transaction", "alreadyknown", "already imported", "already exists", "already in mempool")
_NONCE_USED = ("nonce too low", "nonce is too low", "oldnonce", "invalid transaction nonce", "nonce has already been used")
_NONCE_STALE = ("nonce too high", "nonce gap", "replacement transaction underpriced", "replacement not allowed")
_FEE_STALE = ("less than block base fee", "max fee per gas", "fee cap less", "feetoolow", "transaction underpriced")
_FUNDS = ("insufficient funds", "insufficientfunds", "sender doesn't have enough", "upfront cost exceeds")


def _says(error: RpcError, phrases: tuple[str, ...]) -> bool:
    message = error.message.lower()
    return any(phrase in message for phrase in phrases)


def _refused(error: RpcError) -> Failed:
    if _says(error, _FUNDS):
        return Failed("INSUFFICIENT_FUNDS", error.message)
    return Failed("TRANSACTION_REFUSED", error.reason or error.message)


def _hex(value: bytes) -> str:
    return "0x" + value.hex()


def _quantity(answer: Any) -> int:
    try:
        return int(answer, 16)
    except (TypeError, ValueError):
        raise Transient("RPC_ERROR", f"expected a quantity, not {str(answer)[:80]!r}") from None


def _receipt(found: Any) -> Receipt:
    def data(value: Any) -> bytes:
        return bytes.fromhex(value.removeprefix("0x"))

    try:
        return Receipt(
            tx_hash=data(found["transactionHash"]),
            block_number=int(found["blockNumber"], 16),
            block_hash=data(found["blockHash"]),
            status=int(found["status"], 16) == 1,
            gas_used=int(found["gasUsed"], 16),
            effective_gas_price=int(found.get("effectiveGasPrice") or "0x0", 16),
            logs=tuple(
                Log(data(each["address"]), tuple(map(data, each["topics"])), data(each["data"]), int(each["logIndex"], 16))
                for each in found["logs"]
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Transient("RPC_ERROR", "a malformed receipt") from None
