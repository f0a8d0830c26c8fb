"""Fees and jobs: quoting, posting, reading, changing, deleting."""

from __future__ import annotations

from typing import Any

from quart import Blueprint, g, request

from consensus.errors import Invalid
from coordinator.api import answers
from coordinator.api.access import Access, Answer, RefusedError, Sources
from coordinator.api.requests import posted_jobs, updated_job
from coordinator.definitions.posted import CUSTOM_SCRIPT
from coordinator.definitions.shown import posted_fields
from coordinator.definitions.values import address
from coordinator.store.records import Job
from node.infra.compute import Compute, inline

TASK_IDS_SHOWN = 1000  # the newest of a job; paging comes with the list of tasks
_SMALL_BODY = 16 * 1024  # parsed in about a millisecond; larger ones off the event loop


def routes(sources: Sources, access: Access) -> Blueprint:
    area = Blueprint("jobs", __name__)
    keyed = access.keyed
    _reading(area, sources, access)

    @area.get("/api/fees")
    @area.get("/api/jobs/fees")
    async def fees() -> Answer:
        await access.admit()
        asked = request.args
        chain_id = asked.get("target_chain_id", "")
        if not chain_id.isascii() or not chain_id.isdecimal() or len(chain_id) > 19:
            raise Invalid("target_chain_id", "is no chain id", "send a decimal number")
        contract = asked.get("target_contract_address", "")
        quote, gas = await sources.jobs.fees.quote(
            int(chain_id),
            _digit("task_definition_id", "1", "1234567"),
            contract=address(contract, "target_contract_address") if contract else None,
            function=asked.get("target_function", ""),
            abi=asked.get("abi", ""),
            arguments=asked.get("args", ""),
            script_url=asked.get("ipfs_url", ""),
            level=_digit("security", "0", "01234"),
            priority=_digit("priority", "3", "123"),
        )
        return answers.fee(quote, gas)

    @area.post("/api/jobs")
    @keyed
    async def post_job() -> Answer:
        body: bytes = await request.get_data()  # type: ignore[assignment]  # as_text is False
        posted = await _compute_for(sources, len(body))(posted_jobs, body)
        return answers.created(await sources.jobs.create(posted, key_owner=g.key.owner, trace_id=g.trace_id))

    @area.put("/api/jobs/update/<job_id>")
    @keyed
    async def update_job(job_id: str) -> Answer:
        job = await access.own_job(job_id, reading=False)
        body: bytes = await request.get_data()  # type: ignore[assignment]  # as_text is False
        compute = _compute_for(sources, len(body) + len(job.target.abi))
        posted = await compute(updated_job, posted_fields(job), body)
        return await shown(sources, await sources.jobs.update(job, posted))

    @area.put("/api/jobs/<job_id>/status/<status>")
    @keyed
    async def set_status(job_id: str, status: str) -> Answer:
        job = await access.own_job(job_id, reading=False)
        match status:
            case "paused":
                job = await sources.jobs.pause(job)
            case "running" | "active":
                job = await sources.jobs.resume(job)
            case "deleted":
                job = await sources.jobs.delete(job)
            case _:
                raise Invalid("status", f"{status[:40]!r} is not to be had", "ask for paused, running or deleted")
        return {"job_id": str(job.id), "status": answers.status_text(job)}

    @area.put("/api/jobs/delete/<job_id>")
    @area.delete("/api/jobs/delete/<job_id>")
    @keyed
    async def delete_job(job_id: str) -> Answer:
        job = await sources.jobs.delete(await access.own_job(job_id, reading=False))
        return {"job_id": str(job.id), "status": answers.status_text(job)}

    return area


def _reading(area: Blueprint, sources: Sources, access: Access) -> None:
    keyed = access.keyed

    @area.get("/api/jobs/by-apikey")
    @keyed
    async def jobs_by_key() -> Answer:
        return {"jobs": [await shown(sources, job) for job in await sources.store.jobs(key_owner=g.key.owner)]}

    @area.get("/api/jobs/user/<user>")
    @keyed
    async def jobs_of_user(user: str) -> Answer:
        owner = address(user, "address")
        return {"jobs": [await shown(sources, job) for job in await sources.store.jobs(key_owner=g.key.owner, owner=owner)]}

    @area.get("/api/jobs/user/<user>/<job_id>")
    @keyed
    async def job_of_user(user: str, job_id: str) -> Answer:
        owner = address(user, "address")
        job = await access.own_job(job_id, reading=True)
        if job.owner != owner:
            raise RefusedError(404, "JOB_NOT_FOUND", "no such job of this user")
        parts = await shown(sources, job)
        return {**parts.pop("job_data"), **parts}

    @area.get("/api/jobs/id/<job_id>")
    @keyed
    async def job_by_id(job_id: str) -> Answer:
        return await shown(sources, await access.own_job(job_id, reading=True))


def _digit(name: str, otherwise: str, allowed: str) -> int:
    """A small number in the query. Raises `Invalid`."""
    given = request.args.get(name) or otherwise
    if given not in tuple(allowed):
        raise Invalid(name, f"is not {allowed[0]} to {allowed[-1]}", "send the job's, or leave it out")
    return int(given)


def _compute_for(sources: Sources, size: int) -> Compute:
    """Where so many bytes are read."""
    return sources.compute if size > _SMALL_BODY else inline


async def shown(sources: Sources, job: Job) -> dict[str, Any]:
    """A job as clients read it: job_data, and the data of its trigger's kind."""
    store = sources.store
    user = await store.user(job.owner)
    ids = await store.task_ids_of_job(job.id, TASK_IDS_SHOWN)
    scopes = answers.gap_scopes(job)
    gaps = await store.gaps(scopes, job.starts_at or job.created_at) if scopes else ()
    kind, data = answers.trigger_data(job, sources.clock.now(), gaps)
    if job.definition == CUSTOM_SCRIPT:
        data["storage"] = answers.storage(await store.storage(job.id))
    return {"job_data": answers.job_data(job, user.id if user else 0, ids), kind: data}
