"""One execution's life at a keeper that did not perform it: find its record, hold a seat or not, vote, aggregate, expire."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
import trio

from consensus import committee
from consensus.errors import Failed, Transient
from consensus.messages import Execution, Verdict, Vote
from node.aggregator import Aggregator, Round
from node.infra.chain import Chain, ExecutionRecord, ExecutionStatus, Wallet
from node.infra.clock import Clock
from node.infra.compute import Compute
from node.infra.observe import Observer
from node.journal import Journal, Opinion
from node.signer import Signer
from node.submitter import Submitter
from node.tracker import Tracker
from node.verifier import verify

_log = structlog.get_logger(__name__)

AGGREGATORS = 3
"""Votes go to the members of the first three ranks: each of the three may be gone and the round still ends in its time."""
_RECORD_POLL_S = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.5, 1.0)  # the record is there about one block after the package
_REVERIFY_S = 1.0  # while this keeper's RPC lags behind the network

SendVote = Callable[[Vote, bytes], Awaitable[None]]
"""Delivers a vote to the operator with this address. Raises `Transient`."""


@dataclass(frozen=True, slots=True)
class DutySettings:
    """Seconds from one aggregator's turn to the next, and how long a package may wait for its record."""

    rank_interval: float = 4.0
    record_patience: float = 60.0


class Attender:
    """Attends executions of one chain, each in a task of its own."""

    def __init__(
        self,
        observer: Observer,
        wallet: Wallet,
        signer: Signer,
        journal: Journal,
        aggregator: Aggregator,
        submitter: Submitter,
        tracker: Tracker,
        clock: Clock,
        compute: Compute,
        send_vote: SendVote,
        settings: DutySettings,
    ) -> None:
        self._observer = observer
        self._chain: Chain = observer.chain
        self._wallet = wallet
        self._signer = signer
        self._journal = journal
        self._aggregator = aggregator
        self._submitter = submitter
        self._tracker = tracker
        self._clock = clock
        self._compute = compute
        self._send_vote = send_vote
        self._settings = settings

    async def attend(self, execution: Execution) -> str:
        """From the package's arrival to the task's end on chain; returns how it ended here."""
        task_id = execution.task.task_id
        record = await self._record(execution)
        if record is None:
            return "RECORD_NOT_FOUND"
        if record.status is not ExecutionStatus.PENDING:
            return "SETTLED"
        self._tracker.step(task_id, "recorded")
        for number in range(committee.MAX_ROUNDS):
            opens = record.timestamp + number * self._chain.round_seconds
            await self._clock.sleep_until(opens)
            round_ = await self._round(execution, record, number)
            if round_ is None:
                return "REORGANISED"
            with trio.move_on_after(max(0.0, opens + self._chain.round_seconds - self._clock.now())):
                await self._until_settled(execution, record, round_, opens)
            if self._observer.settled(task_id):
                return "SETTLED"
        return await self._expire(execution, record)

    async def _record(self, execution: Execution) -> ExecutionRecord | None:
        """The hub's record once it is as deep as the chain's confirmations ask; cheap, and before anything dear."""
        waits = iter(_RECORD_POLL_S)
        with trio.move_on_after(self._settings.record_patience):
            while True:
                try:
                    record = await self._chain.execution(execution.task.task_id)
                    if record is not None and (
                        not self._chain.confirmations
                        or (await self._chain.head()).number >= record.block_number + self._chain.confirmations
                    ):
                        return record
                except Transient as error:
                    _log.warning("cannot read the record yet", code=error.code, detail=error.detail)
                await trio.sleep(next(waits, _RECORD_POLL_S[-1]))
        return None

    async def _round(self, execution: Execution, record: ExecutionRecord, number: int) -> Round | None:
        while True:
            try:
                epoch = await self._chain.epoch_at(record.block_number)
                block = await self._chain.block(record.block_number)
                break
            except Transient as error:
                _log.warning("cannot draw the committee yet", code=error.code, detail=error.detail)
                await trio.sleep(_REVERIFY_S)
        if epoch is None or block is None:
            return None
        drawn = committee.of_task(epoch, block.hash, number, record.level, record.performer)
        return Round(self._chain.domain, execution.task.task_id, record.digest, record.block_number, epoch.number, number, drawn)

    async def _until_settled(self, execution: Execution, record: ExecutionRecord, round_: Round, opens: float) -> None:
        rank = round_.committee.rank(self._signer.address)
        async with trio.open_nursery() as nursery:
            if rank is not None:
                self._tracker.step(round_.task_id, "seated", rank=rank, round=round_.number)
                if rank < AGGREGATORS:
                    nursery.start_soon(self._aggregate, round_, rank, opens)
                nursery.start_soon(self._vote, execution, record, round_)
            await self._observer.wait_settled(round_.task_id)
            nursery.cancel_scope.cancel()

    async def _vote(self, execution: Execution, record: ExecutionRecord, round_: Round) -> None:
        said: Opinion | None = None
        while True:
            opinion = await verify(execution, record, self._chain, self._compute)
            opinion = await self._journal.vote(round_.task_id, record.digest, opinion)
            if opinion != said:
                self._tracker.step(round_.task_id, "voted", verdict=opinion.verdict.name.lower(), reason=opinion.reason)
                vote = self._signer.vote(
                    round_.domain,
                    round_.task_id,
                    record.digest,
                    opinion.verdict,
                    opinion.reason,
                    block_number=round_.block_number,
                    epoch=round_.epoch,
                    round_=round_.number,
                )
                async with trio.open_nursery() as nursery:
                    for member in round_.committee.members[:AGGREGATORS]:
                        nursery.start_soon(self._send_vote, vote, member.address)
                said = opinion
            if opinion.verdict is not Verdict.CANNOT_TELL:
                return
            await trio.sleep(_REVERIFY_S)

    async def _aggregate(self, round_: Round, rank: int, opens: float) -> None:
        turn = trio.Event()

        async def wait_for_turn() -> None:
            await self._clock.sleep_until(opens + rank * self._settings.rank_interval)
            turn.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_turn)
            certificate = await self._aggregator.certificate(round_, not_before=turn)
            nursery.cancel_scope.cancel()
        self._tracker.step(round_.task_id, "aggregated", signers=len(certificate.signers))
        await self._submitter.submit(certificate)

    async def _expire(self, execution: Execution, record: ExecutionRecord) -> str:
        """After three rounds without a quorum anyone may have the fee refunded; the operators take turns by id."""
        grace = record.timestamp + (committee.MAX_ROUNDS + 1) * self._chain.round_seconds
        keeper = self._observer.keeper(self._signer.address)
        turn = (keeper.id if keeper else 0) % len(self._observer.keepers or (None,))
        with trio.move_on_after(max(0.0, grace + (turn + 1) * self._settings.rank_interval - self._clock.now())):
            await self._observer.wait_settled(execution.task.task_id)
            return "SETTLED"
        try:
            await self._submitter.expire(execution.task.task_id)
        except (Failed, Transient) as error:
            return error.code
        return "NO_QUORUM"
