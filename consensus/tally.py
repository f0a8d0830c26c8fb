"""Counting one round's votes: who said what, when a quorum is there, and what an invalid signature takes away."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from consensus.committee import Committee, Operator
from consensus.errors import Ignore, Reject
from consensus.messages import Verdict, Vote


@dataclass(frozen=True, slots=True)
class Quorum:
    """Enough votes of one verdict, in draw order; their signatures are not verified yet."""

    verdict: Verdict
    signers: tuple[Operator, ...]
    signatures: tuple[bytes, ...]


class Tally:
    """The votes of one committee on one execution digest. Pure: the caller verifies signatures and says which were bad."""

    def __init__(self, committee: Committee, execution: bytes) -> None:
        self._committee = committee
        self._execution = execution
        self._votes: dict[int, Vote] = {}
        self._barred: set[int] = set()

    def add(self, vote: Vote, operator: bytes) -> None:
        """Counts `operator`'s vote. The first yes or no stands. `Reject`: a stranger's. `Ignore`: it does not count."""
        rank = self._committee.rank(operator)
        if rank is None:  # REJECT: the seats are public
            raise Reject("NOT_IN_COMMITTEE", "the voter holds no seat")
        if vote.execution != self._execution:  # IGNORE: after a reorg both are honest
            raise Ignore("OTHER_EXECUTION", "a vote on another execution of this task")
        earlier = self._votes.get(rank)
        undecided = earlier is not None and earlier.verdict is Verdict.CANNOT_TELL and vote.verdict is not Verdict.CANNOT_TELL
        if rank in self._barred or (earlier is not None and not undecided):  # IGNORE: a repeated send
            raise Ignore("DUPLICATE_VOTE", "this seat has voted")
        self._votes[rank] = vote

    def quorum(self) -> Quorum | None:
        """The verdict that has enough votes, if one has. Two can never have: their quorums overlap in more than N votes."""
        if not self._committee.members:
            return None
        for verdict, needed in ((Verdict.YES, self._committee.yes_quorum), (Verdict.NO, self._committee.no_quorum)):
            ranks = sorted(r for r, v in self._votes.items() if v.verdict is verdict)
            if len(ranks) >= needed:
                members = self._committee.members
                return Quorum(verdict, tuple(members[r] for r in ranks), tuple(self._votes[r].signature for r in ranks))
        return None

    def discard(self, operators: Iterable[bytes]) -> None:
        """Takes back votes whose signatures proved bad; those seats count no more in this round."""
        for operator in operators:
            rank = self._committee.rank(operator)
            if rank is not None:
                self._votes.pop(rank, None)
                self._barred.add(rank)

    def counts(self) -> dict[Verdict, int]:
        return {verdict: sum(v.verdict is verdict for v in self._votes.values()) for verdict in Verdict}
