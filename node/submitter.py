"""Brings certificates and expiries to the chain, once each, and stands down when somebody was faster."""

from __future__ import annotations

import structlog
import trio

from consensus.errors import Failed, Transient
from node.infra.chain import Certificate, Chain, ExecutionStatus, Prepared, Wallet
from node.tracker import Tracker

_log = structlog.get_logger(__name__)

_RETRY_S = 1.0


class Submitter:
    """Submits for one chain with one wallet."""

    def __init__(self, chain: Chain, wallet: Wallet, tracker: Tracker) -> None:
        self._chain = chain
        self._wallet = wallet
        self._tracker = tracker

    async def submit(self, certificate: Certificate) -> None:
        """Sends the certificate, again and again while no RPC is to be had: the caller cancels at the round's end.

        The wallet refuses one for a settled task. Other refusals are logged: another rank may try.
        """
        while True:
            try:
                prepared = await self._wallet.prepare_certificate(certificate)
                await self._send(certificate.task_id, "certified", prepared)
                return
            except Transient as error:
                self._refused(certificate, error)
                await trio.sleep(_RETRY_S)
            except Failed as error:
                if not await self._lost_race(certificate.task_id):
                    self._refused(certificate, error)
                return

    async def expire(self, task_id: int) -> None:
        """Has an unattested task refunded, unless the contract has ended it. Raises `Failed` or `Transient`."""
        try:
            await self._send(task_id, "expired", await self._wallet.prepare_expiry(task_id))
        except Failed:
            if not await self._lost_race(task_id):
                raise

    def _refused(self, certificate: Certificate, error: Failed | Transient) -> None:
        self._tracker.step(certificate.task_id, "refused", submit_error=error.code, submit_detail=error.detail)
        _log.warning("certificate refused", task_id=str(certificate.task_id), code=error.code, detail=error.detail)

    async def _send(self, task_id: int, stage: str, prepared: Prepared) -> None:
        tx_hash = await self._wallet.send(prepared)
        self._tracker.step(task_id, f"{stage}_sent", validation_tx="0x" + tx_hash.hex())
        mined = await self._wallet.mined(tx_hash)
        if not mined.success:
            raise Failed("CENTER_REFUSED", mined.reason)
        self._tracker.step(task_id, stage, validation_tx="0x" + mined.tx_hash.hex())  # another one, where it was replaced

    async def _lost_race(self, task_id: int) -> bool:
        try:
            record = await self._chain.execution(task_id)
            return record is not None and record.status is not ExecutionStatus.PENDING
        except Transient:
            return False
