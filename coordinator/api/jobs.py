"""Fees and jobs: quoting, posting, reading, deleting."""

from __future__ import annotations

from typing import Any

from quart import Blueprint, g, request

from consensus.errors import Invalid
from coordinator.api import answers
from coordinator.api.access import Access, Answer, RefusedError, Sources
from coordinator.api.requests import address, one_job
from coordinator.store.records import Job
from node.infra.compute import inline

TASK_IDS_SHOWN = 1000  # the newest of a job; paging comes with the list of tasks
_SMALL_BODY = 16 * 1024  # parsed in about a millisecond; larger ones off the event loop


def routes(sources: Sources, access: Access) -> Blueprint:
    area = Blueprint("jobs", __name__)
    store, keyed = sources.store, access.keyed

    async def shown(job: Job) -> dict[str, Any]:
        user = await store.user(job.owner)
        ids = await store.task_ids_of_job(job.id, TASK_IDS_SHOWN)
        return {
            "job_data": answers.job_data(job, user.id if user else 0, ids),
            "time_job_data": answers.time_job_data(job, sources.clock.now()),
        }

    @area.get("/api/fees")
    @area.get("/api/jobs/fees")
    async def fees() -> Answer:
        asked = request.args
        if asked.get("task_definition_id", "1") not in tuple("1234567"):
            raise Invalid("task_definition_id", "is not 1 to 7", "send the job's type")
        chain_id = asked.get("target_chain_id", "")
        if not chain_id.isascii() or not chain_id.isdecimal() or len(chain_id) > 19:
            raise Invalid("target_chain_id", "is no chain id", "send a decimal number")
        contract = asked.get("target_contract_address", "")
        fee = await sources.jobs.fee(
            int(chain_id),
            address(contract, "target_contract_address") if contract else None,
            asked.get("target_function", ""),
            asked.get("abi", ""),
            asked.get("args", ""),
        )
        return dict.fromkeys(("total_fee", "total_fee_wei", "current_total_fee", "current_total_fee_wei"), str(fee))

    @area.post("/api/jobs")
    @keyed
    async def post_job() -> Answer:
        body: bytes = await request.get_data()  # type: ignore[assignment]  # as_text is False
        posted = await (sources.compute if len(body) > _SMALL_BODY else inline)(one_job, body)
        return answers.created(await sources.jobs.create(posted, key_owner=g.key.owner, trace_id=g.trace_id))

    @area.get("/api/jobs/by-apikey")
    @keyed
    async def jobs_by_key() -> Answer:
        return {"jobs": [await shown(job) for job in await store.jobs(key_owner=g.key.owner)]}

    @area.get("/api/jobs/user/<user>")
    @keyed
    async def jobs_of_user(user: str) -> Answer:
        owner = address(user, "address")
        return {"jobs": [await shown(job) for job in await store.jobs(key_owner=g.key.owner, owner=owner)]}

    @area.get("/api/jobs/user/<user>/<job_id>")
    @keyed
    async def job_of_user(user: str, job_id: str) -> Answer:
        owner = address(user, "address")
        job = await access.own_job(job_id, reading=True)
        if job.owner != owner:
            raise RefusedError(404, "JOB_NOT_FOUND", "no such job of this user")
        parts = await shown(job)
        return {**parts["job_data"], "time_job_data": parts["time_job_data"]}

    @area.get("/api/jobs/id/<job_id>")
    @keyed
    async def job_by_id(job_id: str) -> Answer:
        return await shown(await access.own_job(job_id, reading=True))

    @area.put("/api/jobs/delete/<job_id>")
    @area.delete("/api/jobs/delete/<job_id>")
    @keyed
    async def delete_job(job_id: str) -> Answer:
        job = await sources.jobs.delete(await access.own_job(job_id, reading=False))
        return {"job_id": str(job.id), "status": job.status.value}

    return area
