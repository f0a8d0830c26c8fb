"""One run without a transaction at a keeper that did not perform it: hold a seat or not, vote, aggregate, publish.

No contract records such an end. The pinned block draws the committee, the authorisation's `not_before` counts the rounds
(`consensus.runs`), and the certificate goes by gossip. Votes here are evidence against nobody.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import structlog
import trio

from consensus import runs
from consensus.errors import Transient
from consensus.messages import NotExecuted, RunCertificate, Verdict
from node.aggregator import Round
from node.infra.chain import Certificate, Chain
from node.infra.clock import Clock
from node.journal import Journal, Opinion, Subject
from node.run_certificates import RunCertificates
from node.seat import AGGREGATORS, REVERIFY_S, Outlasting, Seat
from node.tracker import Tracker
from node.verification.executions import Means
from node.verification.not_executed import verify_run

_log = structlog.get_logger(__name__)

_PUBLISH_AGAIN_S = (5.0, 10.0, 20.0, 40.0)  # a certificate: to a mesh that loses some, and to a coordinator that restarts

Publish = Callable[[RunCertificate], Awaitable[None]]
"""Gossips a certificate. Raises nothing but what a defect does."""


class RunAttender:
    """Attends runs of one chain, each in a task of its own."""

    def __init__(
        self,
        chain: Chain,
        seat: Seat,
        journal: Journal,
        certificates: RunCertificates,
        tracker: Tracker,
        clock: Clock,
        means: Means,
        publish: Publish,
    ) -> None:
        self._chain = chain
        self._seat = seat
        self._journal = journal
        self._certificates = certificates
        self._tracker = tracker
        self._clock = clock
        self._means = means
        self._publish = publish

    async def attend(self, said: NotExecuted) -> str:
        """From the performer's word to its certificate, or to the end of all rounds; returns the reason with which the task ended
        here: the script's, or why it was not confirmed."""
        digest, heard = said.digest(), self._clock.now()
        async with trio.open_nursery() as nursery:
            outcome = await self._attend(said, digest, heard, Outlasting(nursery))
            nursery.cancel_scope.cancel()
        return outcome

    async def _attend(self, said: NotExecuted, digest: bytes, heard: float, verifying: Outlasting[Opinion]) -> str:
        made: Certificate | None = None
        while made is None and not self._certificates.certified(digest):
            number = runs.round_at(said.task, self._clock.now())
            if number >= runs.ROUNDS:
                return "NO_QUORUM"
            with trio.move_on_after(max(0.0, runs.opens(said.task, number + 1) - self._clock.now())):
                made = await self._hold_round(said, digest, number, heard, verifying)
        if made is not None:
            if made.verdict is Verdict.NO:
                return "REFUSED_BY_COMMITTEE"
            with trio.move_on_after(max(0.0, runs.opens(said.task, runs.ROUNDS) - self._clock.now())):
                await self._spread(said, made)
        return said.code

    async def _hold_round(
        self, said: NotExecuted, digest: bytes, number: int, heard: float, verifying: Outlasting[Opinion]
    ) -> Certificate | None:
        """One round at this keeper, until somebody's certificate is there (None) or its own is. The caller cancels at its end."""
        round_ = await self._draw(said, digest, number)
        rank = self._seat.rank(round_)
        made: list[Certificate] = []
        async with trio.open_nursery() as nursery:

            async def aggregate(rank: int) -> None:
                made.append(await self._seat.aggregate(round_, rank, max(heard, runs.opens(said.task, number))))
                nursery.cancel_scope.cancel()

            if rank is not None:
                if rank < AGGREGATORS:
                    nursery.start_soon(aggregate, rank)
                nursery.start_soon(self._seat.vote, round_, partial(self._opinion, said, digest, verifying))
            await self._certificates.wait(digest)
            nursery.cancel_scope.cancel()
        return made[0] if made else None

    async def _draw(self, said: NotExecuted, digest: bytes, number: int) -> Round:
        """Goes on until this keeper's RPC knows the pinned block."""
        task = said.task
        while True:
            try:
                epoch, block = await self._chain.epoch_at(task.pinned_block), await self._chain.block(task.pinned_block)
            except Transient as error:
                _log.warning("cannot draw the committee yet", code=error.code, detail=error.detail)
            else:
                if epoch is not None and block is not None:
                    drawn = runs.drawn(task, epoch, block.hash, number)
                    place = (task.pinned_block, epoch.number, number)
                    return Round(self._chain.domain, task.task_id, digest, *place, drawn)
            await trio.sleep(REVERIFY_S)

    async def _opinion(self, said: NotExecuted, digest: bytes, verifying: Outlasting[Opinion]) -> Opinion | None:
        """What this keeper says of the run, on disk; None when the disk does not take it: then nothing is said."""
        opinion = await verifying(digest, partial(verify_run, said, self._means))
        try:
            return await self._journal.vote(said.task.task_id, digest, opinion, Subject.RUN)
        except Transient as error:
            _log.warning("cannot journal a vote yet", code=error.code, detail=error.detail)
            return None

    async def _spread(self, said: NotExecuted, certificate: Certificate) -> None:
        """Gossips the certificate, and some times again until the rounds are over: nobody says that the coordinator has it."""
        made = RunCertificate(said, certificate.epoch, certificate.round, certificate.signers, certificate.signature)
        self._certificates.take(made)
        self._tracker.step(said.task.task_id, "certified")
        await self._publish(made)
        for pause in _PUBLISH_AGAIN_S:
            await trio.sleep(pause)
            await self._publish(made)
