"""The three verdicts with their reasons, as every check returns them."""

from __future__ import annotations

from consensus.messages import Verdict
from node.journal import Opinion

YES = Opinion(Verdict.YES, "")


def no(reason: str) -> Opinion:
    """A positive contradiction."""
    return Opinion(Verdict.NO, reason)


def cannot_tell(reason: str) -> Opinion:
    """Not found yet, not reachable, or differing as between honest keepers."""
    return Opinion(Verdict.CANNOT_TELL, reason)
