"""Points, the field's rule: what jobs and tasks are worth to users and keepers. Whole numbers in units of 10^-15 points.

A point is worth a thousandth of a coin: a task that cost 10^15 wei earns one. So a cost in wei is its points in these units.
"""

from __future__ import annotations

from decimal import Decimal

UNIT = 10**15
JOB_CREATED = 10 * UNIT
CUSTOM_JOB_CREATED = 20 * UNIT
_CUSTOM = 7


def for_creating(definition: int) -> int:
    """What creating a job of this type earns its owner."""
    return CUSTOM_JOB_CREATED if definition == _CUSTOM else JOB_CREATED


def for_accepted(cost: int, booster: int) -> int:
    """What performer and attesters each earn by an accepted task that cost so many wei."""
    return booster * cost


def for_rejected(cost: int, booster: int) -> int:
    """What the performer of a rejected task is deducted (negative), a tenth."""
    return -(booster * cost // 10)


def shown(points: int) -> str:
    """As decimal text, exact, without trailing zeros."""
    text = f"{Decimal(points).scaleb(-15):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
