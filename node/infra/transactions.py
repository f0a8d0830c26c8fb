"""Transactions that are sent once: recorded before they leave, the same bytes again after a restart, no gaps between nonces."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import structlog
import trio

from consensus.errors import Failed, Transient
from node.infra.evm_reads import hex_of, int_of
from node.infra.gas_price import FeeLimits, Market
from node.infra.nonces import NonceLine
from node.infra.receipts import Log, Receipt, receipt_of
from node.infra.rpc import Rpc, RpcError
from node.infra.secret import Secret
from node.infra.settings import FeeSettings
from node.infra.stuck import LOOK_S, Watch
from node.infra.transaction_bytes import Payload
from node.infra.transaction_log import NO_LIMIT, SENT_MIGRATIONS, Sent, SqliteTransactionLog, TransactionLog

__all__ = [
    "SENT_MIGRATIONS",
    "FeeLimits",
    "Log",
    "Outbox",
    "PreparedTransaction",
    "Receipt",
    "Sent",
    "SqliteTransactionLog",
    "TransactionLog",
]

log = structlog.get_logger(__name__)

_TRIES = 4  # nonces or fees that turn out stale, in a row; more means that somebody else sends from this account
_REBROADCAST_EVERY = 20  # polls without a receipt, after which the bytes are sent again: a node may have lost them
_GONE_S = 30.0  # so long a nonce must be used, and no receipt be found, until it is another's: indexes lag behind counts


@dataclass(frozen=True, slots=True)
class PreparedTransaction:
    """What to send under `key`, offering `most` wei for a unit of gas at most; nonce, fees and signature come with the send."""

    key: str
    payload: Payload
    most: int = NO_LIMIT


class Outbox:
    """One account's transactions. Of each key at most one reaches the chain, this run or a former one.

    One outbox for an account: it counts nonces itself. Sends go one after the other, so that one that fails leaves no gap.
    A key's transaction may be replaced by one with a higher offer while it waits: it has several hashes then, and each of
    them stands for all.
    """

    def __init__(
        self, rpc: Rpc, secret: Secret[bytes], chain_id: int, sent: TransactionLog, limits: FeeLimits | None = None
    ) -> None:
        self._rpc = rpc
        self._log = sent
        self._market = Market(rpc, limits or FeeLimits.of(FeeSettings()))
        self._line = NonceLine(rpc, secret, chain_id, sent, self._market)
        self._watch = Watch(self._line)

    @property
    def address(self) -> bytes:
        return self._line.address

    async def prepare(
        self, key: str, to: bytes | None, data: bytes, *, gas: int, value: int = 0, most: int = NO_LIMIT
    ) -> PreparedTransaction:
        """Fetches what `send` will need, ahead of its time. `to` is None for a deployment, `gas` the limit, `value` wei, and
        `most` wei for a unit of gas, where it is worth less than the outbox's own limit.

        Raises `Transient`, and `Failed` (`INSUFFICIENT_FUNDS`) when what was sent before cannot be paid for any more."""
        await self._market.fresh()
        if self._line.next is None:
            async with self._line.lock:
                await self._line.next_nonce()
        return PreparedTransaction(key, Payload(to, value, data, gas), most)

    async def send(self, prepared: PreparedTransaction) -> bytes:
        """Signs, records and sends; the transaction's hash. A key sent before is sent again as it was, or with a higher offer.

        Raises `Failed`: `TRANSACTION_REFUSED` with the node's reason or `INSUFFICIENT_FUNDS` (nothing was sent),
        `NONCE_TAKEN` when the account's nonce went to a transaction this outbox does not know; `Transient` when no
        node answered, or gas costs more than the limit (`GAS_TOO_DEAR`). After a `Transient` or a cancellation it may have
        left: send it again, with the same key.
        """
        line = self._line
        async with line.lock:
            if line.unsettled:
                await line.next_nonce()
            former = await self._log.find(prepared.key)
            if former is not None:
                return await line.again(former)
            for _ in range(_TRIES):
                sent = await line.offer(prepared.key, prepared.payload, prepared.most)
                if sent is not None:
                    return sent.tx_hash
        raise Transient("NONCE_CONTENDED", "another program sends from this account")

    async def sent(self, key: str) -> bytes | None:
        """Hash of the newest version recorded under `key`, this run or a former one; which is mined, `receipt` tells."""
        former = await self._log.find(key)
        return None if former is None else former.tx_hash

    async def receipt(self, tx_hash: bytes, pauses: Iterable[float], *, confirmations: int = 0) -> Receipt:
        """Waits for the receipt, with so many blocks on top of it: looks at once, then after each of `pauses` (seconds; the last
        one repeats). Of a transaction that was replaced it is the receipt of the version that was mined.

        Goes on through unreachable nodes; the caller sets the deadline. Raises `Failed` (`NONCE_TAKEN`) when the nonce went
        to another transaction.
        """
        rhythm, pause, polls = iter(pauses), 1.0, 0
        versions = await self._log.versions(tx_hash)
        looked, gone_since = trio.current_time(), None
        patience = min(LOOK_S, self._market.limits.bump_after)
        while True:
            try:
                found = await self._look_for([sent.tx_hash for sent in versions] or [tx_hash])
                if found is not None and await self._is_deep(found, confirmations):
                    return found
                polls += 1
                now = trio.current_time()
                if found is None and versions and (polls % _REBROADCAST_EVERY == 0 or now - looked >= patience):
                    looked = now
                    await self._watch.look()
                    gone_since = (gone_since or now) if self._watch.mined > versions[0].nonce else None
                    if gone_since is not None and now - gone_since >= _GONE_S:
                        raise Failed("NONCE_TAKEN", f"nonce {versions[0].nonce} went to another transaction")
                    versions = await self._log.versions(tx_hash) or versions
                    newest = self._line.in_flight.get(versions[0].tx_hash)
                    if newest is not None and polls % _REBROADCAST_EVERY == 0:
                        await self._line.broadcast(newest.raw)
            except (Transient, RpcError) as error:
                log.debug("receipt_not_read", tx_hash=hex_of(tx_hash), why=str(error))
            pause = next(rhythm, pause)
            await trio.sleep(pause)

    async def _look_for(self, hashes: list[bytes]) -> Receipt | None:
        """Of all versions at most one is mined."""
        calls = [("eth_getTransactionReceipt", [hex_of(tx_hash)]) for tx_hash in hashes]
        answers = [await self._rpc.call(*calls[0])] if len(calls) == 1 else await self._rpc.batch(calls)
        for answer in answers:
            if answer is not None:
                for tx_hash in hashes:
                    self._line.in_flight.pop(tx_hash, None)
                return receipt_of(answer)
        return None

    async def _is_deep(self, receipt: Receipt, confirmations: int) -> bool:
        if not confirmations:
            return True
        return int_of(await self._rpc.call("eth_blockNumber")) >= receipt.block_number + confirmations
