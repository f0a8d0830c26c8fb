"""Whether another keeper's run of a script agrees with one's own."""

from __future__ import annotations

from consensus.messages import JobSpec, Run
from node.scripts.port import Outcome


def compare(own: Outcome, claimed: Run | None, job: JobSpec, code: str = "") -> str | None:
    """Why `claimed` contradicts this keeper's own outcome: None when it does not, else WRONG_SCRIPT or WRONG_OUTPUT (a positive
    contradiction) or OUTPUT_DIFFERS (an honest keeper may see it so: cannot tell). `code` is what a `NotExecuted` says."""
    raise NotImplementedError
