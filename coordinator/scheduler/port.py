"""What every scheduler is to the rest: jobs are put in and taken out, and firings come out, whatever the kind of trigger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import trio

from coordinator.store.records import Fired, Firing, Planned

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p brings along, shadow trio's own types


class Fire(Protocol):
    """Writes firings and hands their new tasks to dispatch. Raises `Transient` when the store is away: nothing is then written.

    What is FENCED or INACTIVE need not be put in again. (`coordinator.firing`)
    """

    async def __call__(self, firings: Sequence[Firing], /) -> Sequence[Fired]: ...


class Scheduler(Protocol):
    """Watches the jobs of the shards held here, of one kind of trigger. Keeps nothing that is not in the store."""

    def put(self, planned: Planned) -> None:
        """A job that is new here or has changed; takes effect at once. What it knew of the job before is replaced."""
        ...

    def remove(self, job_id: int) -> None:
        """The job fires no more here; nothing happens when it is not known."""
        ...

    def jobs(self) -> Sequence[int]:
        """Ids of the jobs it watches."""
        ...

    def __len__(self) -> int: ...

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watches until cancelled; survives outages of store, chain and sources by itself."""
        ...
