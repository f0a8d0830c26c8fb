"""The jobs of a storm: every static kind, drawn by a seed; and when each has to fire, worked out without the coordinator."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from cli.devnet.jobs import CONDITION_JOB, EVENT_JOB, TIME_JOB, StaticJob, ping_job

LIFE_AFTER_S = 240
"""Event and condition jobs live longer than the storm: the hub executes none of them after its end."""
CONFIRMATIONS = 5
"""Of the chain: more blocks than a SIGKILL takes back."""
FIRST_VALUE = 1_000_000
WATCHED = 2_000_000
"""Values above are pinged by the storm itself: event jobs watch for one each."""
FIRINGS_A_SECOND = 0.5  # of interval jobs, half of all: what two cores with a whole network on them carry beside restarts


@dataclass(frozen=True, slots=True)
class Plan:
    """A job to be: `kind` names its trigger, `watched` is the value that an event job listens for, `group` the source that a
    condition job reads."""

    number: int
    kind: str
    interval: int = 0
    moments: tuple[int, ...] = ()
    watched: int = 0
    group: int = 0

    @property
    def value(self) -> int:
        """What the job pings with: its own."""
        return FIRST_VALUE + self.number

    def job(self, demo: str, chain_id: int, source_url: str, now: int, end: int) -> StaticJob:
        """What is posted at `now` so that its last due second is at most `end`."""
        frame = end - now
        common = {"missed_run_policy": "run_all"}
        match self.kind:
            case "interval":
                trigger = {"schedule_type": "interval", "time_interval": self.interval, **common}
                return ping_job(demo, self.value, frame, TIME_JOB, self.interval, trigger, frame // self.interval + 1)
            case "cron":
                trigger = {"schedule_type": "cron", "cron_expression": "* * * * *", **common}
                return ping_job(demo, self.value, frame, TIME_JOB, 0, trigger, frame // 60 + 1)
            case "specific":
                trigger = {"schedule_type": "specific", "specific_schedule": ",".join(map(str, self.moments)), **common}
                return ping_job(demo, self.value, frame, TIME_JOB, 0, trigger, len(self.moments))
            case "event":
                trigger = {
                    "trigger_chain_id": str(chain_id),
                    "trigger_contract_address": demo,
                    "trigger_event": "Pinged",
                    "event_filter_para_name": "value",
                    "event_filter_value": str(self.watched),
                }
                return ping_job(demo, self.value, frame + LIFE_AFTER_S, EVENT_JOB, 1, trigger, 60)
            case _:
                trigger = {
                    "condition_type": "greater_than",
                    "upper_limit": 100,
                    "lower_limit": 0,
                    "value_source_type": "api",
                    "value_source_url": f"{source_url}/{self.group}",
                    "selected_key_route": "readings[0].value",
                }
                return ping_job(demo, self.value, frame + LIFE_AFTER_S, CONDITION_JOB, 1, trigger, 60)

    def seconds(self, created_at: int, end: int) -> list[int]:
        """Due seconds of a time job created then, up to `end`."""
        if self.kind == "interval":
            return list(range(created_at + self.interval, end + 1, self.interval))
        if self.kind == "cron":
            return [s for s in range(created_at + 1, end + 1) if s % 60 == 0]
        return [s for s in self.moments if created_at < s <= end]


@dataclass(frozen=True, slots=True)
class Mix:
    """All jobs of a storm. `groups` are the sources' numbers."""

    plans: Sequence[Plan]
    groups: Sequence[int] = field(default=())

    @property
    def watched(self) -> list[int]:
        return [p.watched for p in self.plans if p.kind == "event"]


def draw(rng: random.Random, count: int, begin: int, end: int) -> Mix:
    """`count` jobs for the time from `begin` to `end` (UTC seconds): of ten, six at intervals, one by cron,
    one at specific times, one event, one condition."""
    plans: list[Plan] = []
    groups = max(1, count // 20)
    mean = max(10.0, 0.6 * count / FIRINGS_A_SECOND)
    for number in range(count):
        match number % 10:
            case 6 if end - begin >= 60:  # else no minute may begin within its life
                plans.append(Plan(number, "cron"))
            case 7:
                moments = tuple(sorted(rng.sample(range(begin, end), k=rng.randint(1, 3))))
                plans.append(Plan(number, "specific", moments=moments))
            case 8:
                plans.append(Plan(number, "event", watched=WATCHED + number))
            case 9:
                plans.append(Plan(number, "condition", group=rng.randrange(groups)))
            case _:
                plans.append(Plan(number, "interval", interval=round(rng.uniform(0.5, 1.5) * mean)))
    return Mix(plans, sorted({p.group for p in plans if p.kind == "condition"}))
