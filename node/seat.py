"""What a keeper with a seat does in a round: says what it thinks to the aggregators, and aggregates in its turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import trio

from consensus.messages import Verdict, Vote
from node.aggregator import Aggregator, Round
from node.infra.chain import Certificate
from node.infra.clock import Clock
from node.journal import Opinion
from node.signer import Signer
from node.tracker import Tracker

AGGREGATORS = 3
"""Votes go to the members of the first three ranks: each of the three may be gone and the round still ends in its time."""
REVERIFY_S = 1.0
"""Between looks, while this keeper's RPC lags behind the network."""
_REVERIFY_PAUSES_S = (REVERIFY_S, REVERIFY_S, REVERIFY_S, 2.0, 4.0, 8.0)
"""After looks that could not tell: an RPC catches up soon or not at all, and gateways are not asked for a script every second."""

SendVote = Callable[[Vote, bytes], Awaitable[None]]
"""Delivers a vote to the operator with this address; goes on trying until it is cancelled. Raises nothing."""

S = TypeVar("S")


class Seat:
    """One operator's, in whatever committee has drawn it."""

    def __init__(
        self,
        signer: Signer,
        aggregator: Aggregator,
        tracker: Tracker,
        clock: Clock,
        send_vote: SendVote,
        rank_interval: float,
    ) -> None:
        self._signer = signer
        self._aggregator = aggregator
        self._tracker = tracker
        self._clock = clock
        self._send_vote = send_vote
        self._rank_interval = rank_interval

    def rank(self, round_: Round) -> int | None:
        """This keeper's rank in the round's committee; None when it has no seat."""
        rank = round_.committee.rank(self._signer.address)
        if rank is not None:
            self._tracker.step(round_.task_id, "seated", rank=rank, round=round_.number)
        return rank

    async def vote(self, round_: Round, judge: Callable[[], Awaitable[Opinion | None]]) -> None:
        """Says what `judge` finds (an opinion that is on disk, or None when it cannot be), and looks again until it is yes or no.

        The caller cancels at the round's end.
        """
        said: Opinion | None = None
        pauses = iter(_REVERIFY_PAUSES_S)
        async with trio.open_nursery() as nursery:
            sending = trio.CancelScope()
            while True:
                opinion = await judge()
                if opinion is not None and opinion != said:
                    self._tracker.step(round_.task_id, "voted", verdict=opinion.verdict.name.lower(), reason=opinion.reason)
                    sending.cancel()  # an opinion of before: nobody needs it any more
                    sending = trio.CancelScope()
                    nursery.start_soon(self._send, self._signed(round_, opinion), round_, sending)
                    said = opinion
                if opinion is not None and opinion.verdict is not Verdict.CANNOT_TELL:
                    return
                await trio.sleep(next(pauses, _REVERIFY_PAUSES_S[-1]))

    def _signed(self, round_: Round, opinion: Opinion) -> Vote:
        return self._signer.vote(
            round_.domain,
            round_.task_id,
            round_.execution,
            opinion.verdict,
            opinion.reason,
            block_number=round_.block_number,
            epoch=round_.epoch,
            round_=round_.number,
        )

    async def _send(self, vote: Vote, round_: Round, sending: trio.CancelScope) -> None:
        with sending:
            async with trio.open_nursery() as nursery:
                for member in round_.committee.members[:AGGREGATORS]:
                    nursery.start_soon(self._send_vote, vote, member.address)

    async def aggregate(self, round_: Round, rank: int, opens: float) -> Certificate:
        """The round's certificate, once there is a quorum and this rank's turn has come. `opens` is the first rank's turn, in UTC
        seconds. The caller cancels at the round's end.
        """
        turn = trio.Event()

        async def wait_for_turn() -> None:
            await self._clock.sleep_until(opens + rank * self._rank_interval)
            turn.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_turn)
            certificate = await self._aggregator.certificate(round_, not_before=turn)
            nursery.cancel_scope.cancel()
        self._tracker.step(round_.task_id, "aggregated", signers=len(certificate.signers))
        return certificate


class Outlasting(Generic[S]):
    """Work that goes on though whoever waited for it was cancelled: a script takes longer than a round may last.

    One piece of work at a time under a key; its result is the next one's who asks. `nursery` bounds its life.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._key: Hashable = None
        self._done = trio.Event()
        self._result: list[S] = []

    async def __call__(self, key: Hashable, work: Callable[[], Awaitable[S]]) -> S:
        if self._key != key:
            self._key, self._done, self._result = key, trio.Event(), []
            self._nursery.start_soon(self._work, work, self._done, self._result)
        done, result = self._done, self._result
        await done.wait()
        if self._done is done:
            self._key = None
        return result[0]

    async def _work(self, work: Callable[[], Awaitable[S]], done: trio.Event, result: list[S]) -> None:
        result.append(await work())
        done.set()
