"""Tasks: one by its id, those of a job."""

from __future__ import annotations

from quart import Blueprint

from coordinator.api import answers
from coordinator.api.access import Access, Answer, Sources

TASKS_SHOWN = 1000  # the newest of a job; paging comes with the list of tasks


def routes(sources: Sources, access: Access) -> Blueprint:
    area = Blueprint("tasks", __name__)

    @area.get("/api/tasks/job/<job_id>")
    @access.keyed
    async def tasks_of_job(job_id: str) -> Answer:
        job = await access.own_job(job_id, reading=True)
        tasks = await sources.store.tasks_of_job(job.id, TASKS_SHOWN)
        return [answers.task_data(task, job, sources.explorers.get(task.chain_id)) for task in tasks]

    @area.get("/api/tasks/id/<task_id>")
    @area.get("/api/tasks/<task_id>")
    @access.keyed
    async def task_by_id(task_id: str) -> Answer:
        task, job = await access.own_task(task_id)
        return answers.task_data(task, job, sources.explorers.get(task.chain_id))

    return area
