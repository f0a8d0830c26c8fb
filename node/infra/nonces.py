"""One account's transactions in the order of their nonces: which one is next, what has left, and what takes its place."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import structlog
import trio
from eth_account import Account

from consensus.errors import Failed, Transient
from node.infra.evm_reads import hex_of, int_of
from node.infra.gas_price import Market
from node.infra.refusals import Says, refused, says
from node.infra.rpc import Rpc, RpcError, Unreachable
from node.infra.secret import Secret
from node.infra.transaction_bytes import Payload, read, sign
from node.infra.transaction_log import NO_LIMIT, Sent, TransactionLog

log = structlog.get_logger(__name__)

_IN_FLIGHT = 256  # transactions that are sent again while they wait; of a lost race nobody waits for the receipt
_TAKEN_S = 10.0  # so long a node must say that a nonce is used by what it does not know: one that lags says so for a while


@dataclass(frozen=True, slots=True)
class Flying:
    """A transaction that a node has taken, `at` on trio's clock."""

    raw: bytes = field(repr=False)
    at: float


class NonceLine:
    """Hands out nonces, and keeps what has one apart from what never left. The caller holds `lock` around every method.

    What may have left is never forgotten: its key is sent again as the same bytes, or as the same with a higher offer, and
    else not at all. A nonce is free again when its transaction never left; when one that may have left is refused for good,
    the nonce is free too, but the key stays bound to it.
    """

    def __init__(self, rpc: Rpc, secret: Secret[bytes], chain_id: int, sent: TransactionLog, market: Market) -> None:
        self.rpc = rpc
        self.log = sent
        self.market = market
        self.lock = trio.Lock()
        self.address: bytes = bytes.fromhex(Account.from_key(secret.reveal()).address[2:])
        self.next: int | None = None  # None: ask the chain
        self.in_flight: OrderedDict[bytes, Flying] = OrderedDict()  # by hash, until its receipt
        self._secret = secret
        self._chain_id = chain_id
        self._unsettled: list[Sent] = []  # recorded, and no node's answer: by nonce, without a gap after the first
        self._doubted: OrderedDict[str, float] = OrderedDict()  # key -> when its nonce was first said to be another's

    async def next_nonce(self) -> int:
        """The nonce of the next new transaction. Those whose fate is unknown go first, lest they leave a gap.

        Raises what `tell` raises: while they cannot be sent, nothing after them can.
        """
        if self.next is None:
            await self.same_chain()
            nonce = await self.count("pending")
            former = await self.log.since(nonce)
            # Recorded, and not in this node's pool: a crash came first, or the node forgot. A gap means another chain's life.
            self._unsettled = [sent for place, sent in enumerate(former) if sent.nonce == nonce + place]
            self.next = nonce
        while self._unsettled and self._unsettled[0].nonce == self.next:
            sent = self._unsettled[0]
            if not await self.tell(sent):
                await self.give_up(sent)
                break  # what is new fills the gap before the others go on
        return self.next

    @property
    def unsettled(self) -> bool:
        """Whether there is something that may have left, or not."""
        return bool(self._unsettled)

    async def offer(self, key: str, payload: Payload, most: int = NO_LIMIT) -> Sent | None:
        """One try to send something new with the next nonce, offering `most` wei for a unit of gas at most. None when nonce or
        price were stale and another try is due.

        Raises `Failed` when the node refused it (then nothing was sent) and `Transient` when none answered.
        """
        nonce = await self.next_nonce()
        price = await self.market.usable()
        signed = sign(self._secret, self._chain_id, nonce, payload, price.offer(min(self.market.limits.most, most)))
        sent = Sent(key, signed.raw, signed.tx_hash, nonce, most)
        await self.log.record(key, sent.raw, sent.tx_hash, nonce, most)
        self._unsettled = [sent, *self._unsettled]  # until a node has answered, whatever happens to us
        try:
            await self.broadcast(sent.raw)
        except Unreachable as error:
            if not error.received:
                await self._take_back(sent)
            raise
        except RpcError as error:
            if error.doubtful:
                raise Transient("RPC_UNREACHABLE", f"one endpoint gave no answer, another refused: {error.message}") from error
            if not says(error, Says.NONCE_USED) or not await self.is_known(sent.tx_hash):
                await self._take_back(sent)
                if says(error, Says.NONCE_USED, Says.NONCE_AHEAD, Says.OCCUPIED):
                    self.next = None
                    return None
                if says(error, Says.TOO_CHEAP):
                    self.market.forget()
                    return None
                raise refused(error) from error
        self.accepted(sent)
        return sent

    async def again(self, former: Sent) -> bytes:
        """Sends what is recorded once more; it may be pending, mined, or never have left. The hash of the version that counts.

        Raises `Failed`: `NONCE_TAKEN` when its nonce went to another transaction, or as the node refuses it; `Transient`.
        """
        versions = await self.log.versions(former.tx_hash)
        if former.given_up:
            return await self._once_given_up(former, versions)
        try:
            await self.broadcast(former.raw)
        except RpcError as error:
            for version in versions:
                if await self.is_known(version.tx_hash):
                    self._settled(former)
                    return version.tx_hash
            if says(error, Says.NONCE_AHEAD):
                self.next = None
                raise Transient("NONCE_CONTENDED", f"a node is behind: {error.message}") from error
            if says(error, Says.NONCE_USED, Says.OCCUPIED):
                raise self._taken(former) from error
            if not says(error, Says.TOO_CHEAP):
                raise refused(error) from error
            raised = await self._dearer(former, error)
            self._settled(raised)
            return raised.tx_hash
        self._settled(former)
        self.flies(former)
        return former.tx_hash

    async def _once_given_up(self, former: Sent, versions: list[Sent]) -> bytes:
        for version in versions:
            if await self.is_known(version.tx_hash):
                return version.tx_hash
        nonce = await self.next_nonce()
        holders = await self.log.since(former.nonce)
        if nonce != former.nonce or any(sent.nonce == former.nonce for sent in holders):
            raise self._taken(former)
        try:
            await self.broadcast(former.raw)
        except RpcError as error:
            if not says(error, Says.TOO_CHEAP):
                raise refused(error) from error
            former = await self._dearer(former, error)
        await self.log.give_up(former.key, False)
        self.accepted(former)
        return former.tx_hash

    async def _dearer(self, sent: Sent, why: RpcError) -> Sent:
        """What replaced it. Raises `Transient` (`GAS_TOO_DEAR`): the price may fall."""
        raised = await self.replace(sent)
        if raised is None:
            raise Transient("GAS_TOO_DEAR", why.message) from why
        return raised

    def _taken(self, sent: Sent) -> Failed | Transient:
        """At first a node that lags may be behind it."""
        now = trio.current_time()
        since = self._doubted.setdefault(sent.key, now)
        while len(self._doubted) > _IN_FLIGHT:
            self._doubted.popitem(last=False)
        which = f"nonce {sent.nonce} of {hex_of(self.address)}"
        if now - since < _TAKEN_S:
            return Transient("NONCE_CONTENDED", f"{which} is used, and the node does not know what we sent with it")
        return Failed("NONCE_TAKEN", f"{which} went to another transaction")

    async def tell(self, sent: Sent) -> bool:
        """Brings to a node what may have left before. False when the node refuses it for good.

        Raises `Failed` (`INSUFFICIENT_FUNDS`), and `Transient` when no node answers, when one does not see the transactions
        before it, or when gas costs more than the limit.
        """
        try:
            await self.broadcast(sent.raw)
        except RpcError as error:
            if says(error, Says.NONCE_AHEAD):
                self.next = None
                raise Transient("NONCE_CONTENDED", f"a node is behind: {error.message}") from error
            if says(error, Says.TOO_CHEAP):
                self._settled(await self._dearer(sent, error))
                return True
            if says(error, Says.FUNDS):
                raise refused(error) from error  # as will be what comes after, until the account is filled up
            # A used nonce is used by this one or by another, and one that is occupied is another version's or another's:
            # `again` and `receipt` tell which.
            if not says(error, Says.NONCE_USED, Says.OCCUPIED):
                log.warning("transaction_withdrawn", key=sent.key, tx_hash=hex_of(sent.tx_hash), why=error.message)
                return False
        self._settled(sent)
        self.flies(sent)
        return True

    async def replace(self, sent: Sent) -> Sent | None:
        """Puts the same transaction with a higher offer in its place: the same key, nonce and payload, so that only one can be
        mined. None when no node takes it, or when it would cost more than the limit."""
        payload, offer = read(sent.raw)
        self.market.forget()
        raised = (await self.market.fresh()).raised(offer, min(self.market.limits.most, sent.most))
        if raised is None:
            log.warning("fee_limit_reached", key=sent.key, tx_hash=hex_of(sent.tx_hash), offer=offer.most)
            return None
        signed = sign(self._secret, self._chain_id, sent.nonce, payload, raised)
        following = Sent(sent.key, signed.raw, signed.tx_hash, sent.nonce, sent.most)
        await self.log.record(following.key, following.raw, following.tx_hash, following.nonce, following.most)
        try:
            await self.broadcast(following.raw)
        except Unreachable as error:
            if not error.received:
                await self._forget_version(following)
            raise
        except RpcError as error:
            # Mined meanwhile, or too dear for the account; what may be at another node stays recorded.
            log.info("replacement_refused", key=sent.key, tx_hash=hex_of(sent.tx_hash), why=error.message)
            if not error.doubtful:
                await self._forget_version(following)
            return None
        log.info(
            "transaction_replaced",
            key=sent.key,
            former=hex_of(sent.tx_hash),
            tx_hash=hex_of(following.tx_hash),
            offer=raised.most,
            was=offer.most,
        )
        self.in_flight.pop(sent.tx_hash, None)
        self.flies(following)
        return following

    def accepted(self, sent: Sent) -> None:
        """A node has it: the next nonce is the one after."""
        self._unsettled = [other for other in self._unsettled if other.nonce > sent.nonce]
        self.next = sent.nonce + 1
        self.flies(sent)

    def _settled(self, sent: Sent) -> None:
        """As `accepted`, where it may be one whose turn is long over."""
        self._doubted.pop(sent.key, None)
        if self._unsettled and self._unsettled[0].key == sent.key:
            self.accepted(sent)

    async def give_up(self, sent: Sent) -> None:
        """No node takes it, though one may have it: what is new gets its nonce, and whichever is mined is the only one."""
        with trio.CancelScope(shield=True):
            await self.log.give_up(sent.key)
            after = await self.log.since(sent.nonce + 1)
        self._free(sent)
        # They have their nonces, and are told again once the gap is filled.
        self._unsettled = [other for place, other in enumerate(after, 1) if other.nonce == sent.nonce + place]

    async def _take_back(self, sent: Sent) -> None:
        """It never left: its nonce is free, and its key too."""
        with trio.CancelScope(shield=True):
            await self.log.forget(sent.key)
        self._free(sent)

    async def _forget_version(self, sent: Sent) -> None:
        with trio.CancelScope(shield=True):
            await self.log.forget_version(sent.tx_hash)

    def _free(self, sent: Sent) -> None:
        self._unsettled = [other for other in self._unsettled if other.nonce > sent.nonce]
        self.in_flight.pop(sent.tx_hash, None)
        self.next = sent.nonce

    def flies(self, sent: Sent) -> None:
        self.in_flight.setdefault(sent.tx_hash, Flying(sent.raw, trio.current_time()))
        while len(self.in_flight) > _IN_FLIGHT:
            self.in_flight.popitem(last=False)

    async def same_chain(self) -> None:
        """Drops what was recorded on a chain that was started anew since: its nonces mean nothing here."""
        try:
            first = await self.rpc.call("eth_getBlockByNumber", ["0x0", False])
        except RpcError:
            return  # some endpoints keep no old blocks
        text = first.get("hash") if isinstance(first, dict) else None
        if isinstance(text, str) and not await self.log.begin(text.encode()):
            log.warning("chain_started_anew", chain_id=self._chain_id, genesis=text)
            self._unsettled, self.next = [], None
            self.in_flight.clear()

    async def count(self, tag: str) -> int:
        """Transactions of the account: mined ones (`latest`), or with those that wait at the node (`pending`)."""
        return int_of(await self.rpc.call("eth_getTransactionCount", [hex_of(self.address), tag]))

    async def broadcast(self, raw: bytes) -> None:
        try:
            await self.rpc.call("eth_sendRawTransaction", [hex_of(raw)])
        except RpcError as error:
            if not says(error, Says.KNOWN):
                raise

    async def is_mined(self, tx_hash: bytes) -> bool:
        return await self.rpc.call("eth_getTransactionReceipt", [hex_of(tx_hash)]) is not None

    async def is_known(self, tx_hash: bytes) -> bool:
        return await self.rpc.call("eth_getTransactionByHash", [hex_of(tx_hash)]) is not None
