"""Looks after an account's transactions while they wait: what a node forgot is sent again, what offers too little is replaced."""

from __future__ import annotations

import structlog
import trio

from node.infra.evm_reads import hex_of, int_of
from node.infra.nonces import NonceLine
from node.infra.refusals import Says, says
from node.infra.rpc import RpcError
from node.infra.transaction_bytes import read
from node.infra.transaction_log import Sent

log = structlog.get_logger(__name__)

LOOK_S = 5.0
"""Between looks at an account that waits for something, seconds."""
_LONGEST_S = 60.0  # between looks that find the same nonces gone: one that only lags says so again
_SENT_AGAIN = 64  # of what was taken back, or is stuck, at one look: more than a crash takes, and little for a node that lies


class Watch:
    """One account's. There is no task behind it: whoever waits for one receipt looks after all, as it waits behind them."""

    def __init__(self, line: NonceLine) -> None:
        self._line = line
        self.mined = 0  # of the account's transactions, at the last look
        self._look_at, self._pause, self._counted = float("-inf"), LOOK_S, -1
        self._refused_again: bytes | None = None  # hash of what was refused though it had been taken before
        self._since: dict[bytes, float] = {}  # hash -> since when it is seen to wait, on trio's clock

    async def look(self) -> None:
        """Does nothing when the last look was just now. Raises `Transient` or `RpcError` when a node goes away meanwhile: then
        the next look comes soon."""
        line = self._line
        async with line.lock:
            if trio.current_time() < self._look_at:
                return
            following = await line.next_nonce()  # as after a restart, when nothing was sent yet
            address = hex_of(line.address)
            calls = [("eth_getTransactionCount", [address, tag]) for tag in ("latest", "pending")]
            self.mined, counted = map(int_of, await line.rpc.batch(calls))
            if counted >= following:
                self._pause, self._counted, self._refused_again = LOOK_S, -1, None
            else:
                await self._tell_again(counted)
            if line.next is not None:
                await self._raise_stuck(self.mined, line.next)
            often = min(LOOK_S, line.market.limits.bump_after)
            self._look_at = trio.current_time() + (often if self._counted < 0 else self._pause)

    async def _tell_again(self, counted: int) -> None:
        """Sends again what the chain does not count any more: a reorganisation, or a node that crashed, takes transactions back
        with their nonces, and all that follow would wait for them for ever.

        A node that lags says the same of what is safe: its word frees no nonce by itself, and while it stays at one number it
        is asked ever more rarely.
        """
        line = self._line
        await line.same_chain()
        if line.next is None:
            return
        log.warning("transactions_taken_back", address=hex_of(line.address), nonce=counted, counted_to=line.next)
        taken_back = [sent for sent in await line.log.since(counted) if sent.nonce < line.next][:_SENT_AGAIN]
        if not taken_back or taken_back[0].nonce != counted:
            line.next = None  # nothing of ours fills the gap: what is sent next does
            return
        for sent in taken_back:
            if not await self._taken_again(sent):
                break
        self._pause = min(2 * self._pause, _LONGEST_S) if counted == self._counted else LOOK_S
        self._counted = counted

    async def _taken_again(self, sent: Sent) -> bool:
        """Whether a node takes what one had taken before. Its nonce is free only when it is refused for good twice, some time
        apart."""
        line = self._line
        try:
            await line.broadcast(sent.raw)
        except RpcError as error:
            if says(error, Says.NONCE_USED, Says.OCCUPIED):
                line.flies(sent)
                return True
            if await line.is_known(sent.tx_hash):
                return False
            if says(error, Says.TOO_CHEAP) and await line.replace(sent) is not None:
                return True
            log.warning("transaction_refused_again", key=sent.key, tx_hash=hex_of(sent.tx_hash), why=error.message)
            if says(error, Says.TOO_CHEAP, Says.FUNDS):
                return False  # it waits for the price to fall, or for the account to be filled up
            if self._refused_again == sent.tx_hash:
                await line.give_up(sent)
            self._refused_again = sent.tx_hash
            return False
        line.flies(sent)
        return True

    async def _raise_stuck(self, mined: int, following: int) -> None:
        """Raises the offer of what has waited long enough and offers less than the chain asks for by now."""
        line, now = self._line, trio.current_time()
        waiting = [sent for sent in await line.log.since(mined) if sent.nonce < following][:_SENT_AGAIN]
        self._since = {sent.tx_hash: self._since_when(sent.tx_hash, now) for sent in waiting}
        stuck = [sent for sent in waiting if now - self._since[sent.tx_hash] >= line.market.limits.bump_after]
        if not stuck:
            return
        price = await line.market.fresh()
        for sent in stuck:
            if sent.tx_hash not in line.in_flight:  # recorded, and cut off before it left; or by a former run
                await self._taken_again(sent)
            elif price.exceeds(read(sent.raw)[1]) and not await line.is_mined(sent.tx_hash):
                await line.replace(sent)

    def _since_when(self, tx_hash: bytes, now: float) -> float:
        flying = self._line.in_flight.get(tx_hash)
        return flying.at if flying is not None else self._since.get(tx_hash, now)
