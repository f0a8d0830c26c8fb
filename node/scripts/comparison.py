"""Whether another keeper's run of a script agrees with one's own: what is a contradiction, and what an honest difference."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

from consensus.errors import Invalid
from consensus.messages import JobSpec, Run
from consensus.numbers import NotANumber, number
from node.scripts.outputs import action_of, essence
from node.scripts.port import NoCall, Outcome

OWN_DOING = frozenset({"SCRIPT_DECLINED", "SCRIPT_FAILED", "SCRIPT_TIMEOUT", "SCRIPT_MEMORY", "SCRIPT_OUTPUT", "SCRIPT_INVALID"})
"""Reasons of a `NotExecuted`: all that can end a run without a transaction by the script's own doing."""
_OF_THE_MACHINE = frozenset({"SCRIPT_TIMEOUT", "SCRIPT_MEMORY", "SCRIPT_INVALID"})
"""A slower keeper, or one with another compiler, may honestly see these where others do not."""
_DECIDED = frozenset({"", "SCRIPT_DECLINED"})


def compare(own: Outcome, claimed: Run | None, job: JobSpec, code: str = "") -> str | None:
    """Why `claimed` contradicts this keeper's own outcome: None when it does not, else WRONG_SCRIPT or WRONG_OUTPUT (a positive
    contradiction) or OUTPUT_DIFFERS (an honest keeper may see it so: cannot tell).

    `code` is what a `NotExecuted` says, '' where a call was sent. Outputs are the same when their bytes are, or their JSON values
    and what they mean; a custom script's `metadata` does not count. Where the script reads the network, numbers (also
    decimal ones in text) may lie apart by its tolerance of this keeper's own.
    """
    if claimed is not None and own.run is not None and claimed.script != own.run.script:
        return "WRONG_SCRIPT"
    if contradicts_itself(claimed, job, code):
        return "WRONG_OUTPUT"
    different = "OUTPUT_DIFFERS" if own.networked else "WRONG_OUTPUT"
    mine = _code_of(own.action)
    if mine != code:
        return "OUTPUT_DIFFERS" if {mine, code} & _OF_THE_MACHINE else different
    if claimed is None or own.run is None or code not in _DECIDED:
        return None
    return None if _same(own, own.run.output, claimed.output, job) else different


def contradicts_itself(claimed: Run | None, job: JobSpec, code: str = "") -> bool:
    """Whether no outcome at all makes the claim true: a reason that is none, a run that is not shown or cannot have been made,
    an output that means something else."""
    if code and code not in OWN_DOING:
        return True
    if (claimed is None) != (code == "SCRIPT_INVALID"):  # what cannot be run has used nothing that could be claimed
        return True
    if claimed is None:
        return False
    return code in _DECIDED and _code_of(action_of(job, claimed.output)) != code


def _code_of(action: object) -> str:
    return action.code if isinstance(action, NoCall) else ""


def _same(own: Outcome, output: bytes, claimed: bytes, job: JobSpec) -> bool:
    if output == claimed:
        return True
    try:
        mine, theirs = essence(job, output), essence(job, claimed)
    except Invalid:  # neither would have had an action
        return False
    return _close(mine, theirs, Fraction(*own.tolerance) if own.networked else Fraction(0))


def _close(mine: Any, theirs: Any, tolerance: Fraction) -> bool:
    """Equal JSON values but for numbers within the tolerance. Both are nested no deeper than `parse_json` lets through."""
    match mine, theirs:
        case dict(), dict():
            return mine.keys() == theirs.keys() and all(_close(each, theirs[key], tolerance) for key, each in mine.items())
        case list(), list():
            return len(mine) == len(theirs) and all(_close(a, b, tolerance) for a, b in zip(mine, theirs, strict=True))
        case (bool() | None, _) | (_, bool() | None):
            return mine is theirs
        case (int() | Decimal(), int() | Decimal()) | (str(), str()):
            return mine == theirs or (tolerance > 0 and _near(mine, theirs, tolerance))
    return False


def _near(mine: str | int | Decimal, theirs: str | int | Decimal, tolerance: Fraction) -> bool:
    try:
        a, b = Fraction(number(mine)), Fraction(number(theirs))
    except NotANumber:
        return False
    return abs(a - b) <= tolerance * abs(a)
