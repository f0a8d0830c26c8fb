"""Charges certified runs without a transaction: collected, and sent to the hub in batches from the dispatcher's account.

What waits is in the store, and leaves it with the hub's own word (`coordinator.monitor`). A batch that is sent twice charges
once: the hub skips what it has charged. One coordinator sends at a time, since two that count one account's nonces would
stand in each other's way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import structlog
import trio

from consensus.errors import Failed, Transient
from consensus.messages import RunCertificate
from coordinator.store.port import Store
from coordinator.store.records import RunCharge as Waiting
from node.infra.chain import MAX_RUN_FEE, Chain, RunCharge, Wallet
from node.infra.clock import Clock

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

log = structlog.get_logger(__name__)

BATCH = 32
"""Runs in one transaction, unless the operator says otherwise: half of what the hub takes."""
INTERVAL_S = 600.0
"""How long a run waits for others to share its transaction."""
_LOOK_S = 5.0
_MINED_S = 300.0  # for a transaction to be mined; the outbox brings it on its way as long as it takes
_BOOKED_S = 900.0  # for the hub's word of it to be as deep as the chain's confirmations ask
_DUE_S = 15.0  # after its second: runs are made ahead of it, and the hub takes none for a firing that is still to come
_KEPT = 4096  # runs that were sent and are not booked yet


class Charges:
    """`run` sends the runs of one chain while `mine()` says that it is this coordinator's to do."""

    def __init__(
        self,
        store: Store,
        chain: Chain,
        wallet: Wallet,
        clock: Clock,
        *,
        mine: Callable[[], bool],
        batch: int = BATCH,
        interval: float = INTERVAL_S,
    ) -> None:
        self._store = store
        self._chain = chain
        self._wallet = wallet
        self._clock = clock
        self._mine = mine
        self._batch = batch
        self._interval = interval
        self._size = batch
        self._sent: dict[int, float] = {}  # task -> when it may be sent again

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Looks until cancelled."""
        task_status.started()
        while True:
            await trio.sleep(_LOOK_S)
            if not self._mine():
                continue
            try:
                while batch := await self._due():
                    await self._charge(batch)
            except (Failed, Transient) as error:
                log.warning("runs_not_charged", chain=self._chain.domain.chain_id, code=error.code, detail=error.detail)

    async def _due(self) -> Sequence[Waiting]:
        """The next batch, when it is full or its oldest has waited long enough."""
        now = self._clock.now()
        self._sent = {task_id: until for task_id, until in self._sent.items() if until > now}
        if len(self._sent) >= _KEPT:  # what could not be remembered would be sent for ever
            return []
        found = await self._store.run_charges(self._chain.domain.chain_id, 2 * self._batch + len(self._sent))
        waiting = [each for each in found if each.task_id not in self._sent and _opens(each) + _DUE_S <= now][: self._size]
        if not waiting or (len(waiting) < self._size and waiting[0].at + self._interval > now):
            return []
        return waiting

    async def _charge(self, waiting: Sequence[Waiting]) -> None:
        charges = await self._charges(waiting)
        now = self._clock.now()
        if charges:
            # a batch that is prepared twice is one transaction, unless it has waited in vain for long
            prepared = await self._wallet.prepare_run_charges(charges, again=int((now - waiting[0].at) // _BOOKED_S))
            tx_hash = await self._wallet.send(prepared)
            try:
                with trio.fail_after(_MINED_S):
                    mined = await self._wallet.mined(tx_hash)
            except trio.TooSlowError:
                log.warning("charge_not_mined", transaction="0x" + tx_hash.hex(), runs=len(charges))
            else:
                log.info("runs_charged", runs=len(charges), transaction="0x" + tx_hash.hex(), success=mined.success)
                if not mined.success and len(waiting) > 1:  # one of them may be to blame: divide, to find it
                    self._size = max(1, len(waiting) // 2)
                    return
                self._size = min(self._batch, 2 * self._size)
        self._sent.update((each.task_id, now + _BOOKED_S) for each in waiting)

    async def _charges(self, waiting: Sequence[Waiting]) -> list[RunCharge]:
        """What the hub is to charge: never more than it takes for a run, nor than the task might have cost."""
        operators: Mapping[bytes, int] = {keeper.address: keeper.id for keeper in await self._chain.keepers()}
        found = []
        for each in waiting:
            said = RunCertificate.decode(each.certificate).not_executed
            authorisation = said.task.authorisation
            operator = operators.get(authorisation.performer)
            fee = min(int(said.fee), int(authorisation.max_fee), MAX_RUN_FEE)
            if operator is None or fee < 1:
                log.warning("run_cannot_be_charged", task_id=str(each.task_id), fee=fee)
                continue
            found.append(RunCharge(int(authorisation.job_id), int(authorisation.trigger_id), operator, fee))
        return found


def _opens(waiting: Waiting) -> int:
    """The second (UTC) from which the task might have executed."""
    return RunCertificate.decode(waiting.certificate).not_executed.task.authorisation.not_before
