"""Every store, for the suite that all of them pass."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeVar

import pytest

from consensus.lifecycle import TaskState
from coordinator.store.memory import MemoryStore
from coordinator.store.port import Store
from coordinator.store.records import Fired, Firing, Job, KeeperRecord, Task, TaskChange, User
from coordinator.store.sqlite import open_store
from tests.coordinator.factory import FENCES, OWNER, START, claim_all, make_job, make_task

T = TypeVar("T")

EVERY_STORE = pytest.mark.parametrize("store", ["memory", "sqlite", "sqlite inline"], indirect=True)
"""As `pytestmark` of a module that imports `a_store`."""


@pytest.fixture(name="store")
async def a_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """With every shard claimed by the token 1."""
    if request.param == "memory":
        store = MemoryStore()
        await claim_all(store)
        yield store
    else:
        async with open_store(tmp_path / "store.db" if request.param == "sqlite" else ":memory:") as opened:
            await claim_all(opened)
            yield opened


def some(value: T | None) -> T:
    """What must be there."""
    assert value is not None
    return value


async def with_job(store: Store, job: Job) -> Job:
    [stored] = await store.add_jobs([job])
    return stored


async def with_task(store: Store, job_id: int = 7, next_due: int | None = START + 20, *, spent: bool = False) -> int:
    """A time job whose first second has fired; the task's id."""
    job = await store.add_job(make_job(job_id))
    task = make_task(job, START + 10, created_at_ms=(START + job_id + 3) * 1000)
    assert await store.fire([Firing(job.id, task, next_due, spent=spent)], START, FENCES) == [Fired.NEW]
    return task.id


async def certify(store: Store, task: Task | int, **facts: object) -> Task:
    """The task executed and was accepted."""
    task_id = task if isinstance(task, int) else task.id
    executed = TaskChange(task_id, (TaskState.EXECUTED,), number=1, executed_at=START + 11, cost=5, successful=True)
    await store.change(executed, START)
    return some(await store.change(TaskChange(task_id, (TaskState.CERTIFIED,), accepted=True, **facts), START))  # type: ignore[arg-type]


async def owner_of(store: Store, address: bytes = OWNER) -> User:
    return some(await store.user(address))


async def record_of(store: Store, address: bytes) -> KeeperRecord:
    [record] = [record for record in await store.keeper_records() if record.address == address]
    return record
