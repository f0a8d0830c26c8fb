"""What can be seen of a running devnet from outside: the keepers' status pages and the coordinator's API, merged by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import trio

from consensus.lifecycle import FINAL

REQUEST_S = 2.0
KEPT_TASKS = 500
ASKED_AT_ONCE = 20  # unsettled tasks looked up in one round

STAGES: tuple[tuple[str, str], ...] = (
    ("sent", "sent"),
    ("mined", "mined"),
    ("recorded", "seen"),
    ("aggregated", "attested"),
    ("certified_sent", "certified"),
    ("certified", "verified"),
)
"""The stages of a task after its due second, in order: the trail's name, and the word for people.

`recorded`: a keeper has seen the execution in the hub; `aggregated`: an aggregator holds a quorum of verified votes.
"""


@dataclass(frozen=True)
class Place:
    """One keeper: where to ask, and who it is."""

    name: str
    address: str
    status_url: str


@dataclass
class KeeperSeen:
    """A keeper as last seen. `performed` and `attested` count tasks since the watch began."""

    place: Place
    peer_id: str = ""
    online: bool = False
    peers: int = 0
    performed: set[str] = field(default_factory=set)
    attested: set[str] = field(default_factory=set)


@dataclass
class TaskSeen:
    """A task as all keepers together tell it: `stages` are UTC milliseconds of the first keeper that reached each.

    `verdict` is the contract's, from the coordinator that follows its events: "accepted", "rejected", or empty so far.
    """

    task_id: str
    due_ms: int = 0
    number: str = ""
    performer: str = ""
    status: str = ""
    error: str = ""
    verdict: str = ""
    execution_tx: str = ""
    validation_tx: str = ""
    stages: dict[str, int] = field(default_factory=dict)
    coordinator_stages: dict[str, int] = field(default_factory=dict)
    votes: dict[str, str] = field(default_factory=dict)

    def after_due(self, stage: str) -> int | None:
        """Milliseconds from the due second to a stage."""
        at = self.stages.get(stage)
        return at - self.due_ms if at is not None and self.due_ms else None


class Watch:
    """Asks every keeper and the coordinator, again and again, and keeps what they said."""

    def __init__(self, client: httpx.AsyncClient, coordinator_url: str, api_key: str, places: Sequence[Place]) -> None:
        self._client = client
        self._coordinator_url = coordinator_url
        self._headers = {"X-API-KEY": api_key}
        self.keepers = [KeeperSeen(place) for place in places]
        self.tasks: dict[str, TaskSeen] = {}

    async def look(self) -> None:
        """One round of questions: to all keepers at once, then to the coordinator about their tasks.

        A keeper that does not answer counts as offline.
        """
        async with trio.open_nursery() as nursery:
            for keeper in self.keepers:
                nursery.start_soon(self._ask_keeper, keeper)
        await self._ask_coordinator()
        while len(self.tasks) > KEPT_TASKS:
            del self.tasks[next(iter(self.tasks))]

    async def _get(self, url: str) -> Any:
        """The JSON answer, or None when there is none."""
        try:
            response = await self._client.get(url, headers=self._headers, timeout=REQUEST_S)
            return response.json() if response.status_code == 200 else None
        except (httpx.HTTPError, ValueError):
            return None

    async def _ask_keeper(self, keeper: KeeperSeen) -> None:
        status = await self._get(f"{keeper.place.status_url}/status")
        keeper.online = isinstance(status, dict)
        if not isinstance(status, dict):
            return
        keeper.peer_id = str(status.get("peer_id", ""))
        keeper.peers = len(status.get("peers", ()))
        for trail in status.get("trails", ()):
            self._merge_trail(keeper, trail)

    def _merge_trail(self, keeper: KeeperSeen, trail: Mapping[str, Any]) -> None:
        task = self._task(str(trail["task_id"]))
        facts, stages = trail.get("facts", {}), trail.get("stages", {})
        task.due_ms = task.due_ms or int(facts.get("due", 0)) * 1000
        for stage, at in stages.items():
            task.stages[stage] = min(at, task.stages.get(stage, at))
        if facts.get("role") == "performer":
            task.performer = keeper.place.name
            task.execution_tx = facts.get("execution_tx", task.execution_tx)
            if "mined" in stages:
                keeper.performed.add(task.task_id)
        if "voted" in stages:
            keeper.attested.add(task.task_id)
            task.votes[keeper.place.name] = str(facts.get("verdict", "?"))
        task.validation_tx = facts.get("validation_tx", task.validation_tx)

    async def _ask_coordinator(self) -> None:
        open_tasks = [task_id for task_id, task in self.tasks.items() if task.status not in FINAL][-ASKED_AT_ONCE:]
        for task_id in open_tasks:
            record = await self._get(f"{self._coordinator_url}/api/tasks/id/{task_id}")
            if isinstance(record, dict):
                self._merge_record(record)

    def _merge_record(self, record: Mapping[str, Any]) -> None:
        task = self._task(str(record["task_id"]))
        task.number = str(record.get("task_number") or task.number)
        task.status = str(record.get("task_status") or task.status)
        task.error = str(record.get("task_error") or "")
        task.execution_tx = str(record.get("execution_tx_hash") or task.execution_tx)
        task.validation_tx = str(record.get("submission_tx_hash") or task.validation_tx)
        task.coordinator_stages.update(record.get("stages") or {})
        if task.status in ("completed", "certified"):
            task.verdict = "accepted"
        elif task.status in ("rejected", "not_attested"):
            task.verdict = task.status.replace("_", " ")

    def _task(self, task_id: str) -> TaskSeen:
        return self.tasks.setdefault(task_id, TaskSeen(task_id))
