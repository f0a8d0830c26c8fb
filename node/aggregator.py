"""The aggregator's step: collects a round's votes, and in its turn makes one certificate of them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import structlog
import trio

from consensus import bls, merkle
from consensus.codec import Domain
from consensus.committee import Committee
from consensus.messages import Verdict, Vote
from consensus.tally import Quorum, Tally
from node.infra.chain import Certificate
from node.infra.compute import Compute

_log = structlog.get_logger(__name__)

_Key = tuple[int, int, int, bytes]
"""Chain, task, round and execution digest: after a reorganisation both executions of a task may be voted on."""
_EARLY_VOTES = 128  # of one operator, for executions we have not heard of yet: a burst of tasks in one second


@dataclass(frozen=True, slots=True)
class Round:
    """One committee's turn at one execution: what its members sign, and who they are."""

    domain: Domain
    task_id: int
    execution: bytes
    block_number: int
    epoch: int
    number: int
    committee: Committee

    @property
    def key(self) -> _Key:
        return (self.domain.chain_id, self.task_id, self.number, self.execution)

    def digest(self, verdict: Verdict) -> bytes:
        """The message that members sign for `verdict`."""
        root = merkle.leaf(self.task_id, self.execution, verdict)
        return self.domain.attestation_digest(root, self.block_number, self.epoch, self.number)


class _Ballot:
    """A round this keeper aggregates: its tally, and a wake-up for each new vote."""

    def __init__(self, round_: Round) -> None:
        self.tally = Tally(round_.committee, round_.execution)
        self.changed = trio.Event()

    def add(self, vote: Vote, operator: bytes) -> None:
        self.tally.add(vote, operator)
        self.changed.set()


class Aggregator:
    """Takes votes at any time; certificates come of the rounds that `certificate` is waiting on."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self._ballots: dict[_Key, _Ballot] = {}
        # By operator, so that whoever floods pushes out nobody's votes but its own.
        self._early: dict[bytes, OrderedDict[_Key, Vote]] = {}

    def take(self, vote: Vote, operator: bytes) -> None:
        """Counts the vote of a registered operator, or keeps it until its round opens here. Raises `Reject` or `Ignore`."""
        key = (vote.chain_id, vote.task_id, vote.round, vote.execution)
        ballot = self._ballots.get(key)
        if ballot is not None:
            ballot.add(vote, operator)
            return
        waiting = self._early.setdefault(operator, OrderedDict())
        waiting[key] = vote
        if len(waiting) > _EARLY_VOTES:
            waiting.popitem(last=False)

    async def certificate(self, round_: Round, *, not_before: trio.Event | None = None) -> Certificate:
        """Waits for a quorum of valid signatures and aggregates them. Runs until then: the caller cancels at the round's end.

        Signatures are verified once, in aggregate, when `not_before` (this keeper's turn) has come.
        """
        ballot = self._ballots[round_.key] = _Ballot(round_)
        try:
            for member in round_.committee.members:
                early = self._early.get(member.address)
                vote = early.pop(round_.key, None) if early is not None else None
                if vote is not None:
                    ballot.add(vote, member.address)
            while True:
                ballot.changed = trio.Event()
                quorum = ballot.tally.quorum()
                if quorum is None:
                    await ballot.changed.wait()
                    continue
                if not_before is not None:
                    await not_before.wait()
                    quorum = ballot.tally.quorum() or quorum  # what came meanwhile earns its share too
                bad = await self._compute(_invalid, quorum, round_.digest(quorum.verdict))
                if not bad:
                    return await self._compute(_certificate, round_, quorum)
                _log.warning("votes with invalid signatures", task_id=str(round_.task_id), operators=[b.hex() for b in bad])
                ballot.tally.discard(bad)
        finally:
            del self._ballots[round_.key]


def _invalid(quorum: Quorum, digest: bytes) -> list[bytes]:
    """Addresses whose signatures do not verify; one pairing check when none is bad.

    Signatures that cancel each other out are all bad, though each verifies: no contract accepts infinity. With possession
    proved, only owners of all these keys together can bring that about, so no honest vote is lost.
    """
    items = [(signer.key, signature) for signer, signature in zip(quorum.signers, quorum.signatures, strict=True)]
    bad = [quorum.signers[i].address for i in bls.find_invalid(items, digest)]
    if not bad:
        try:
            bls.aggregate(quorum.signatures)
        except bls.InvalidPoint:
            return [signer.address for signer in quorum.signers]
    return bad


def _certificate(round_: Round, quorum: Quorum) -> Certificate:
    return Certificate(
        task_id=round_.task_id,
        execution=round_.execution,
        verdict=quorum.verdict,
        block_number=round_.block_number,
        epoch=round_.epoch,
        round=round_.number,
        signers=tuple(s.address for s in quorum.signers),
        signature=bls.aggregate(quorum.signatures),
    )
