"""Fires event jobs: each matching log that stays on its chain once, however often the chain or this process changes its mind.

A reorganisation takes matches that have not fired with it. A task that was created already is cancelled when its log has not
come back within `RETURN_BLOCKS` blocks, unless it has executed. A log that comes back fires again whenever that is: the same
transaction with the log at the same place in its receipt is the same firing, which the store knows (`KNOWN`); whoever is given
that answer may take a cancelled task up again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import structlog
import trio

from consensus.events import OnEvent
from coordinator.scheduler.event_chain import RETURN_BLOCKS, Cancel, ChainWatch
from coordinator.scheduler.event_shards import Checkpoints
from coordinator.scheduler.port import Fire
from coordinator.store.records import Planned
from node.infra.chain import Chain
from node.infra.clock import Clock

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types

__all__ = ["RETURN_BLOCKS", "Cancel", "Checkpoints", "EventScheduler"]

log = structlog.get_logger(__name__)


class EventScheduler:
    """`Scheduler` of event jobs: one `ChainWatch` a chain, and nothing more to read for the thousandth job than for the first."""

    def __init__(self, chains: Mapping[int, Chain], clock: Clock, fire: Fire, checkpoints: Checkpoints, cancel: Cancel) -> None:
        self._watches = {chain_id: ChainWatch(chain, clock, fire, checkpoints, cancel) for chain_id, chain in chains.items()}
        self._chain_of: dict[int, int] = {}

    @property
    def fired(self) -> int:
        """Firings that were new."""
        return sum(watch.fired for watch in self._watches.values())

    @property
    def positions(self) -> dict[int, int | None]:
        """By chain: the newest block read for all jobs; None before the first."""
        return {chain_id: watch.position for chain_id, watch in self._watches.items()}

    def put(self, planned: Planned) -> None:
        trigger = planned.trigger
        if not isinstance(trigger, OnEvent) or trigger.chain_id != self._chain_of.get(planned.job_id):
            self.remove(planned.job_id)
        if not isinstance(trigger, OnEvent) or trigger.chain_id not in self._watches:
            log.warning("event_job_unwatched", job_id=str(planned.job_id), why="no event of a chain that is configured")
            return
        try:
            self._watches[trigger.chain_id].put(planned, trigger)
        except ValueError as error:
            self.remove(planned.job_id)
            log.warning("event_job_unwatched", job_id=str(planned.job_id), why=str(error))
            return
        self._chain_of[planned.job_id] = trigger.chain_id

    def remove(self, job_id: int) -> None:
        chain_id = self._chain_of.pop(job_id, None)
        if chain_id is not None:
            self._watches[chain_id].remove(job_id)

    def jobs(self) -> Sequence[int]:
        return [job_id for watch in self._watches.values() for job_id in watch.job_ids()]

    def __len__(self) -> int:
        return sum(map(len, self._watches.values()))

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            for watch in self._watches.values():
                nursery.start_soon(watch.run)
            task_status.started()
