"""Tasks: one by its id, those of a job, the newest."""

from __future__ import annotations

from typing import Any

from quart import Blueprint

from consensus.messages import Task as TaskMessage
from coordinator.api import answers
from coordinator.api.access import Access, Answer, Sources
from coordinator.store.records import Job, Task

TASKS_SHOWN = 1000  # the newest of a job; paging comes with the list of tasks
RECENT_LOOKED_AT = 200  # of all; those that the key may see are shown
ARGUMENTS_SHOWN = 2**20  # characters in one answer: a task's may have 50,000, and each repeats them


def routes(sources: Sources, access: Access) -> Blueprint:
    area = Blueprint("tasks", __name__)

    @area.get("/api/tasks/job/<job_id>")
    @access.keyed
    async def tasks_of_job(job_id: str) -> Answer:
        job = await access.own_job(job_id, reading=True)
        shown: list[dict[str, Any]] = []
        room = ARGUMENTS_SHOWN
        for task in reversed(await sources.store.tasks_of_job(job.id, TASKS_SHOWN)):
            shown.append(await _shown(sources, task, job))
            room -= len(shown[-1]["converted_arguments"])
            if room < 0:
                break
        return shown[::-1]

    @area.get("/api/tasks/recent")
    @access.keyed
    async def recent_tasks() -> Answer:
        jobs: dict[int, Job | None] = {}
        shown: list[dict[str, Any]] = []
        for task in await sources.store.recent_tasks(RECENT_LOOKED_AT):
            if task.job_id not in jobs:
                jobs[task.job_id] = await sources.store.job(task.job_id)
            job = jobs[task.job_id]
            if job is not None and access.may_read(job):
                shown.append(await _shown(sources, task, job))
        return shown

    @area.get("/api/tasks/id/<task_id>")
    @area.get("/api/tasks/<task_id>")
    @access.keyed
    async def task_by_id(task_id: str) -> Answer:
        task, job = await access.own_task(task_id)
        return await _shown(sources, task, job)

    return area


async def _shown(sources: Sources, task: Task, job: Job) -> dict[str, Any]:
    """The task with what it executes, though the job's owner may have changed the job since."""
    spec = job.spec
    if job.revision and not task.arguments:
        attempts = await sources.store.attempts(task.id)
        called = None if attempts else await sources.store.called(task.id)
        spec = TaskMessage.decode(attempts[-1].message).spec if attempts else called.spec if called else spec
    return answers.task_data(task, spec, sources.explorers.get(task.chain_id))
