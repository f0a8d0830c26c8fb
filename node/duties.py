"""One execution's life at a keeper that did not perform it: find its record, hold a seat or not, vote, aggregate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import structlog
import trio

from consensus import committee
from consensus.errors import Transient
from consensus.messages import Execution
from node.aggregator import Round
from node.expirer import Expirer
from node.infra.chain import Chain, ExecutionRecord, ExecutionStatus
from node.infra.clock import Clock
from node.infra.observe import Observer, outcome_of
from node.journal import Journal, Opinion
from node.packages import describes
from node.seat import AGGREGATORS, REVERIFY_S, Outlasting, Seat
from node.submitter import Submitter
from node.tracker import Tracker
from node.verification.executions import Means, verify

_log = structlog.get_logger(__name__)

_RECORD_POLL_S = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.5, 1.0)  # the record is there about one block after the package
_PACKAGES_OF_ONE = 4  # of one attempt: its transaction may be replaced, and not for ever


@dataclass(frozen=True, slots=True)
class DutySettings:
    """Seconds from one aggregator's turn to the next, and how long a package may wait for its record."""

    rank_interval: float = 4.0
    record_patience: float = 60.0


class Package:
    """The newest package of one attempt: its performer publishes another when another transaction took the first one's place."""

    def __init__(self, execution: Execution, cid: str = "") -> None:
        self.execution = execution
        self.cid = cid
        """Under which it was fetched; empty when it came by gossip."""
        self._left = _PACKAGES_OF_ONE - 1

    def replace(self, execution: Execution, cid: str = "") -> None:
        """Takes a later one of the same attempt; a performer who cannot make up its mind is not listened to any more."""
        if execution != self.execution and self._left:
            self._left -= 1
            self.execution, self.cid = execution, cid


class Attender:
    """Attends executions of one chain, each in a task of its own."""

    def __init__(
        self,
        observer: Observer,
        seat: Seat,
        journal: Journal,
        submitter: Submitter,
        expirer: Expirer,
        tracker: Tracker,
        clock: Clock,
        means: Means,
        settings: DutySettings,
    ) -> None:
        self._observer = observer
        self._chain: Chain = observer.chain
        self._seat = seat
        self._journal = journal
        self._submitter = submitter
        self._expirer = expirer
        self._tracker = tracker
        self._clock = clock
        self._means = means
        self._settings = settings

    async def performer(self, task_id: int) -> bytes | None:
        """Who executed a task, by the hub's record as deep as it has to be; None when there is none in time."""
        record = await self._record(task_id, None)
        return None if isinstance(record, str) else record.performer

    async def attend(self, package: Package) -> str | None:
        """From the package's arrival to the task's end on chain; returns how it ended here (`observe.DONE` or a reason's code).

        None when the package is not of the execution that the hub recorded: then it says nothing about that one.
        """
        async with trio.open_nursery() as nursery:
            outcome = await self._attend(package, Outlasting(nursery))
            nursery.cancel_scope.cancel()
        return outcome

    async def _attend(self, package: Package, verifying: Outlasting[Opinion]) -> str | None:
        task_id = package.execution.task.task_id
        opened: ExecutionRecord | None = None
        while True:
            record = await self._record(task_id, opened)
            if isinstance(record, str):
                return record
            if (outcome := outcome_of(record)) is not None:
                return outcome
            if not describes(package.execution, record):
                return None
            number = self._round_of(record)
            if number >= committee.MAX_ROUNDS:
                self._expirer.add(task_id, record.timestamp)
                return "NO_QUORUM"
            self._tracker.step(task_id, "recorded")
            ends = record.timestamp + (number + 1) * self._chain.round_seconds
            with trio.move_on_after(max(0.0, ends - self._clock.now())):
                await self._hold_round(package, record, number, verifying)
            if (outcome := self._observer.outcome(task_id)) is not None:
                return outcome
            opened = record  # from here on the record is read anew for each round: its block may be another by now

    def _round_of(self, record: ExecutionRecord) -> int:
        """The round that is open by this keeper's clock."""
        return max(0, int((self._clock.now() - record.timestamp) // self._chain.round_seconds))

    async def _record(self, task_id: int, known: ExecutionRecord | None) -> ExecutionRecord | str:
        """The hub's record once it is as deep as the chain's confirmations ask, or the code of why there is none.

        Cheap, and before anything dear. A record has `record_patience` to appear, and then all rounds' time to be confirmed.
        """
        waits = iter(_RECORD_POLL_S)
        why = "RECORD_NOT_FOUND" if known is None else "REORGANISED"
        with trio.move_on_after(self._settings.record_patience) as patience:
            while True:
                try:
                    record = await self._chain.execution(task_id)
                    if record is None:
                        why = "RECORD_NOT_FOUND" if known is None else "REORGANISED"
                    elif record.status is not ExecutionStatus.PENDING or await self._confirmed(record.block_number):
                        return record
                    elif known is None or known.digest != record.digest:
                        known, why = record, "NO_QUORUM"
                        rounds_end = record.timestamp + committee.MAX_ROUNDS * self._chain.round_seconds
                        left = max(self._settings.record_patience, rounds_end - self._clock.now())
                        patience.deadline = trio.current_time() + left
                except Transient as error:
                    _log.warning("cannot read the record yet", code=error.code, detail=error.detail)
                    why = error.code
                await trio.sleep(next(waits, _RECORD_POLL_S[-1]))
        return why

    async def _confirmed(self, block_number: int) -> bool:
        depth = self._chain.confirmations
        return not depth or (await self._chain.head()).number >= block_number + depth

    async def _hold_round(self, package: Package, record: ExecutionRecord, number: int, verifying: Outlasting[Opinion]) -> None:
        """One round at this keeper, until the contract has settled the task or the block that drew its committee is gone.

        The caller cancels at the round's end.
        """
        rewinds = self._observer.rewinds
        drawn = await self._draw(record, number)
        if drawn is None:
            await trio.sleep(REVERIFY_S)
            return
        round_, block_hash = drawn
        rank = self._seat.rank(round_)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_block, round_, block_hash, rewinds, nursery.cancel_scope)
            if rank is not None:
                if rank < AGGREGATORS:
                    opens = record.timestamp + number * self._chain.round_seconds
                    nursery.start_soon(self._aggregate, round_, rank, opens)
                nursery.start_soon(self._seat.vote, round_, partial(self._opinion, package, record, verifying))
            await self._observer.wait_settled(round_.task_id)
            nursery.cancel_scope.cancel()

    async def _draw(self, record: ExecutionRecord, number: int) -> tuple[Round, bytes] | None:
        """The round and the hash of the block that drew it; None when an RPC does not know the block (any more)."""
        while True:
            try:
                epoch = await self._chain.epoch_at(record.block_number)
                block = await self._chain.block(record.block_number)
                break
            except Transient as error:
                _log.warning("cannot draw the committee yet", code=error.code, detail=error.detail)
                await trio.sleep(REVERIFY_S)
        if epoch is None or block is None:
            return None
        drawn = committee.of_task(epoch, block.hash, number, record.level, record.performer)
        domain, place = self._chain.domain, (record.block_number, epoch.number, number)
        return Round(domain, record.task_id, record.digest, *place, drawn), block.hash

    async def _watch_block(self, round_: Round, block_hash: bytes, rewinds: int, holding: trio.CancelScope) -> None:
        """Ends the round when its block was reorganised away: another block draws another committee."""
        while True:
            await self._observer.wait_rewound(rewinds)
            while True:
                rewinds = self._observer.rewinds
                try:
                    block = await self._chain.block(round_.block_number)
                    break
                except Transient:
                    await trio.sleep(REVERIFY_S)
            if block is None or block.hash != block_hash:
                _log.warning("the executing block was reorganised away", task_id=str(round_.task_id), block=round_.block_number)
                holding.cancel()
                return

    async def _opinion(self, package: Package, record: ExecutionRecord, verifying: Outlasting[Opinion]) -> Opinion | None:
        """What this keeper says of an execution, on disk; None when the disk does not take it: then nothing is said."""
        execution = package.execution
        key = (execution.transaction, record.digest)
        opinion = await verifying(key, partial(verify, execution, record, self._means))
        try:
            return await self._journal.vote(execution.task.task_id, record.digest, opinion)
        except Transient as error:
            _log.warning("cannot journal a vote yet", code=error.code, detail=error.detail)
            return None

    async def _aggregate(self, round_: Round, rank: int, opens: float) -> None:
        await self._submitter.submit(await self._seat.aggregate(round_, rank, opens))
