"""Tasks that end without a transaction: who attests a `NotExecuted`, when its rounds are, and what its certificate must show.

No block records such an end, so the clock is the authorisation's: rounds are counted from `not_before`, which a dispatcher
signed and everybody reads from the task. The committee is drawn from the hash of the task's pinned block, which the
dispatcher signed too: the performer chooses neither.
"""

from __future__ import annotations

from consensus import bls, committee, merkle
from consensus.codec import Domain
from consensus.committee import Committee, Epoch
from consensus.errors import Reject
from consensus.messages import NotExecuted, RunCertificate, Task, Verdict

SCRIPTED = frozenset({2, 4, 6, 7})
"""Task definitions whose call a script decides."""
CUSTOM = 7
"""The one whose script may decide that there is no call."""
ROUNDS = committee.MAX_ROUNDS
ROUND_SECONDS = 60
"""Seconds of a round: a performer's run and an attester's of 20 s each at most, one after the other, and the votes' way."""


def opens(task: Task, round_: int) -> int:
    """The second (UTC) at which a round opens; the first is open earlier too: runs are made ahead of their time."""
    return task.authorisation.not_before + round_ * ROUND_SECONDS


def round_at(task: Task, now: float) -> int:
    """The round that is open at `now`; `ROUNDS` or more when all are over."""
    return max(0, int((now - task.authorisation.not_before) // ROUND_SECONDS))


def drawn(task: Task, epoch: Epoch, block_hash: bytes, round_: int) -> Committee:
    """The committee of a round: of the epoch that covers the pinned block, by that block's hash."""
    authorisation = task.authorisation
    return committee.of_task(epoch, block_hash, round_, authorisation.level, authorisation.performer)


def digest(said: NotExecuted, domain: Domain, epoch: int, round_: int, verdict: Verdict) -> bytes:
    """The message that members of a round's committee sign."""
    root = merkle.leaf(said.task.task_id, said.digest(), verdict)
    return domain.attestation_digest(root, said.task.pinned_block, epoch, round_)


def check_certificate(certificate: RunCertificate, domain: Domain, epoch: Epoch, block_hash: bytes) -> None:
    """Committee, quorum and signature; 4 ms of CPU. Raises `Reject`.

    `epoch` covers the pinned block, whose hash is `block_hash`; `consensus.rules.check_run_certificate` has accepted it.
    """
    said, signers = certificate.not_executed, certificate.signers
    if certificate.epoch != epoch.number:
        raise Reject("WRONG_EPOCH", f"epoch {certificate.epoch}, the pinned block is of {epoch.number}")
    seated = drawn(said.task, epoch, block_hash, certificate.round)
    ranks = [seated.rank(signer) for signer in signers]
    known = [rank for rank in ranks if rank is not None]
    if len(known) != len(ranks) or sorted(set(known)) != known:
        raise Reject("NOT_IN_COMMITTEE", "the signers are not members of the committee in draw order")
    if not known or len(known) < seated.yes_quorum:
        raise Reject("NO_QUORUM", f"{len(known)} of {len(seated.members)} signed")
    keys = [seated.members[rank].key for rank in known]
    message = digest(said, domain, epoch.number, certificate.round, Verdict.YES)
    if not bls.fast_aggregate_verify(keys, message, certificate.signature):
        raise Reject("BAD_SIGNATURE", "the committee did not sign this")
