"""What can fire a job: one struct a kind; what was seen when it did; and which task a firing is."""

from __future__ import annotations

import msgspec

from consensus import events
from consensus.conditions import OnCondition
from consensus.events import OnEvent
from consensus.schedules import Cron, Interval, Moments, Schedule

__all__ = ["Cron", "EdgeSeen", "Interval", "LogSeen", "Moments", "Observation", "OnCondition", "OnEvent", "Schedule", "Trigger"]

Trigger = Interval | Cron | Moments | OnEvent | OnCondition
"""Union of what can fire a job."""


class LogSeen(msgspec.Struct, frozen=True, tag="log", forbid_unknown_fields=True):
    """Where to look for the log that fired: the transaction's hash and the log's position within its receipt."""

    transaction: bytes
    position: int

    def __post_init__(self) -> None:
        if len(self.transaction) != 32 or not 0 <= self.position < 2**32:
            raise ValueError("a transaction hash has 32 bytes, a position is 0 to 2^32")


class EdgeSeen(msgspec.Struct, frozen=True, tag="edge", forbid_unknown_fields=True):
    """When the condition was seen to hold (UTC seconds), and the values seen, in the order of the comparisons.

    For the log and the user only: whoever re-checks the condition reads the sources itself.
    """

    at: int
    values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.at < 2**63 or len(self.values) > 16 or any(len(v) > 128 for v in self.values):
            raise ValueError("time out of range, or more or longer values than comparisons have")


Observation = LogSeen | EdgeSeen | None
"""What a task says of its firing beside the trigger id; nothing for a schedule. Not believed: where to look."""


def names(trigger: Trigger, trigger_id: int, observation: Observation) -> bool:
    """Whether the observation is of the firing that `trigger_id` names."""
    match trigger, observation:
        case OnEvent(), LogSeen():
            return events.firing_id(trigger.chain_id, observation.transaction, observation.position) == trigger_id
        case OnCondition(), EdgeSeen():
            return 1 <= trigger_id < 2**63
        case ((Interval() | Cron() | Moments()), None):
            return 0 < trigger_id < 2**63
    return False
