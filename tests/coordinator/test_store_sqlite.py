"""What only a store on disk can be asked: that it is still there."""

from __future__ import annotations

from pathlib import Path

from consensus.lifecycle import TaskState
from coordinator.store.records import Fired, Firing, TaskChange
from coordinator.store.sqlite import open_store
from tests.coordinator.factory import CHAIN, FENCES, START, claim_all, make_attempt, make_job, make_key, make_task


async def test_everything_acknowledged_is_there_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    job = make_job()
    task = make_task(job, START + 10)
    async with open_store(path) as store:
        await store.add_job(job)
        await store.fire([Firing(job.id, task, START + 20)], START, await claim_all(store))
        await store.add_attempt(make_attempt(task), TaskChange(task.id, (TaskState.DISPATCHED,), attempt=1), START)
        await store.record(CHAIN, 12, [], [], START)
        await store.add_key(make_key())
        open_before = await store.open_tasks()
    async with open_store(path) as store:
        stored = await store.job(job.id)
        assert stored is not None
        assert (stored.spec, stored.next_due) == (job.spec, START + 20)
        assert await store.open_tasks() == open_before
        assert [a.message for a in await store.attempts(task.id)] == [b"bytes for the mesh"]
        assert await store.checkpoint(f"hub:{CHAIN}") == 12
        assert await store.key(make_key().digest) == make_key()
        assert await store.fire([Firing(job.id, task, START + 20)], START, FENCES) == [Fired.KNOWN]
