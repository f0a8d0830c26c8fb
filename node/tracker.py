"""How far each task got at this keeper, when, and the named reason it stopped."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import structlog

_log = structlog.get_logger(__name__)

_KEPT = 1024  # tasks whose trail is kept for the status page; older ones live on in logs and metrics


def _unobserved(_stage: str, _outcome: str, _seconds: float) -> None:
    """For a keeper without metrics."""


@dataclass(slots=True)
class Trail:
    """One task's stages at this keeper, as UTC milliseconds by name, and how it ended."""

    task_id: int
    trace_id: str
    stages: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    outcome: str = ""


class Tracker:
    """Keeps the last trails and reports each step and outcome to `observe` (the metrics)."""

    def __init__(self, now_ms: Callable[[], int], observe: Callable[[str, str, float], None] = _unobserved) -> None:
        self._now_ms = now_ms
        self._observe = observe
        self._trails: OrderedDict[int, Trail] = OrderedDict()

    def step(self, task_id: int, stage: str, *, trace_id: str = "", **facts: Any) -> None:
        """Notes that the task reached `stage`; the first time counts. `facts` may be noted at any time."""
        trail = self._trail(task_id, facts)
        trail.trace_id = trail.trace_id or trace_id
        if stage not in trail.stages:
            now = trail.stages[stage] = self._now_ms()
            self._observe(stage, "", (now - min(trail.stages.values())) / 1000)

    def end(self, task_id: int, outcome: str, **facts: Any) -> None:
        """Notes the task's outcome at this keeper (a reason code, or `done`) and logs its one line. The first one stands."""
        trail = self._trail(task_id, facts)
        if trail.outcome:
            return
        trail.outcome = outcome
        trail.stages["ended"] = self._now_ms()
        began = min(trail.stages.values())
        self._observe("ended", outcome, (trail.stages["ended"] - began) / 1000)
        millis = {stage: at - began for stage, at in sorted(trail.stages.items(), key=lambda item: item[1])}
        _log.info("task ended", task_id=str(task_id), trace_id=trail.trace_id, outcome=outcome, stages_ms=millis, **trail.facts)

    def _trail(self, task_id: int, facts: dict[str, Any]) -> Trail:
        trail = self._trails.setdefault(task_id, Trail(task_id, ""))
        while len(self._trails) > _KEPT:
            self._trails.popitem(last=False)
        trail.facts.update(facts)
        return trail

    def trails(self) -> list[Trail]:
        """The kept trails, newest last."""
        return list(self._trails.values())
