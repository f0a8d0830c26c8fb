"""The routes of the job API: who asks, what for, and which answer; the work itself is `coordinator.jobs`' and the store's."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import structlog
from quart import Response, g, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from consensus.errors import Invalid, Transient, TriggerXError
from coordinator.api import answers
from coordinator.api.keys import digest_of
from coordinator.api.limits import RateLimits
from coordinator.api.requests import address, one_job
from coordinator.jobs import Jobs
from coordinator.store.port import Store
from coordinator.store.records import ApiKey, Job
from node.infra.clock import Clock
from node.infra.compute import Compute, inline
from node.infra.telemetry import traced

log = structlog.get_logger(__name__)

Answer = dict[str, Any] | list[dict[str, Any]] | tuple[dict[str, Any], int]

Handler = Callable[..., Awaitable[Answer]]
Keyed = Callable[[Handler], Handler]

_SMALL_BODY = 16 * 1024  # parsed in about a millisecond; larger ones off the event loop
_TASKS_SHOWN = 1000  # the newest of a job; paging comes with the list of tasks
_TRACE = 128
_KEY_TEXT = 256


@dataclass(frozen=True, slots=True)
class Sources:
    """What the API answers from. `missing` lists what the coordinator still lacks; `status` is FIELD's GET /status."""

    store: Store
    jobs: Jobs
    clock: Clock
    compute: Compute
    explorers: dict[int, str | None]
    missing: Callable[[], list[str]]
    status: Callable[[], dict[str, Any]]
    metrics: Callable[[], Awaitable[bytes]]
    observe: Callable[[str, str, int], None]


class _RefusedError(Exception):
    """An answer other than the one asked for."""

    def __init__(self, status: int, code: str, error: str, **more: str) -> None:
        super().__init__(error)
        self.status = status
        self.body = {"error": error, "code": code, **more}


def api_app(sources: Sources) -> QuartTrio:
    """All routes. Errors are `{error, code, field?, remedy?}`; every answer carries its X-Trace-ID."""
    app = QuartTrio(__name__)
    keyed = _keyed(sources, RateLimits())
    _around(app, sources)
    _open_routes(app, sources)
    _job_routes(app, sources, keyed)
    _read_routes(app, sources, keyed)
    return app


def _around(app: QuartTrio, sources: Sources) -> None:
    @app.before_request
    async def name_the_trace() -> None:
        asked = request.headers.get("X-Trace-ID", "")[:_TRACE]
        g.trace_id = asked if asked and asked.isprintable() else f"tgrx-{uuid.uuid4()}"

    @app.after_request
    async def finish(response: Response) -> Response:
        response.headers["X-Trace-ID"] = getattr(g, "trace_id", "")
        if (allowance := getattr(g, "allowance", None)) is not None:
            response.headers.update(allowance.headers())
        sources.observe(request.method, request.url_rule.rule if request.url_rule else "none", response.status_code)
        return response

    @app.errorhandler(_RefusedError)
    async def refused(error: _RefusedError) -> tuple[dict[str, str], int]:
        return error.body, error.status

    @app.errorhandler(Invalid)
    async def invalid(error: Invalid) -> tuple[dict[str, str], int]:
        status = {"INVALID_BODY": 400, "JOB_EXISTS": 409}.get(error.code, 422)
        body = {"error": f"{error.field}: {error.problem}", "code": error.code, "field": error.field}
        return {**body, **({"remedy": error.remedy} if error.remedy else {})}, status

    @app.errorhandler(TriggerXError)
    async def unavailable(error: TriggerXError) -> tuple[dict[str, str], int]:
        log.warning("request_failed", code=error.code, detail=error.detail)
        return {"error": "the service cannot answer now; try again", "code": error.code}, 503 if isinstance(
            error, Transient
        ) else 500

    @app.errorhandler(HTTPException)
    async def http(error: HTTPException) -> tuple[dict[str, str], int]:
        code = (error.name or "error").upper().replace(" ", "_")
        return {"error": error.description or error.name, "code": code}, error.code or 500


def _keyed(sources: Sources, limits: RateLimits) -> Keyed:
    """The route needs an API key, in X-API-KEY or as a bearer token; the handler finds it in `g.key`."""

    def decorate(handler: Handler) -> Handler:
        @wraps(handler)
        async def checked(*args: Any, **kwargs: Any) -> Answer:
            bearer = request.headers.get("Authorization", "")
            text = request.headers.get("X-API-KEY") or (bearer[7:] if bearer.startswith("Bearer ") else "")
            if not text:
                raise _RefusedError(401, "API_KEY_MISSING", "no API key", remedy="send it in the header X-API-KEY")
            key = await sources.store.key(digest_of(text)) if len(text) <= _KEY_TEXT else None
            if key is None or not key.active:
                raise _RefusedError(403, "API_KEY_UNKNOWN", "the API key is unknown or inactive", remedy="ask for a new one")
            g.key = key
            g.allowance = limits.take(key.digest, key.rate_limit, sources.clock.now())
            if not g.allowance.allowed:
                message = f"at most {key.rate_limit} requests a minute with this API key"
                raise _RefusedError(429, "RATE_LIMITED", message, message=message, remedy="wait X-RateLimit-Reset seconds")
            with traced(g.trace_id):
                return await handler(*args, **kwargs)

        return checked

    return decorate


def _open_routes(app: QuartTrio, sources: Sources) -> None:
    @app.get("/livez")
    async def livez() -> Answer:
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz() -> Answer:
        missing = sources.missing()
        return {"status": "not ready" if missing else "ready", "missing": missing}, 503 if missing else 200

    @app.get("/api/health")
    async def health() -> Answer:
        missing = sources.missing()
        return {"status": "degraded" if missing else "healthy", "missing": missing, "time": answers.rfc3339(sources.clock.now())}

    @app.get("/status")
    async def status() -> Answer:
        return sources.status()

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(await sources.metrics(), content_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/api/fees")
    @app.get("/api/jobs/fees")
    async def fees() -> Answer:
        asked = request.args
        definition = asked.get("task_definition_id", "1")
        if definition not in tuple("1234567"):
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
        return {
            "total_fee": str(fee),
            "total_fee_wei": str(fee),
            "current_total_fee": str(fee),
            "current_total_fee_wei": str(fee),
        }


def _job_routes(app: QuartTrio, sources: Sources, keyed: Keyed) -> None:
    store = sources.store

    async def own_job(job_id: str, *, reading: bool) -> Job:
        job = await store.job(_id(job_id, "job_id"))
        key: ApiKey = g.key
        if job is None or (job.key_owner != key.owner and not (reading and key.role == "admin")):
            raise _RefusedError(404, "JOB_NOT_FOUND", "no such job of this API key")
        return job

    async def shown(job: Job) -> dict[str, Any]:
        user = await store.user(job.owner)
        ids = await store.task_ids_of_job(job.id, _TASKS_SHOWN)
        return {
            "job_data": answers.job_data(job, user.id if user else 0, ids),
            "time_job_data": answers.time_job_data(job, sources.clock.now()),
        }

    @app.post("/api/jobs")
    @keyed
    async def post_job() -> Answer:
        body = await request.get_data()
        posted = await (sources.compute if len(body) > _SMALL_BODY else inline)(one_job, body)
        return answers.created(await sources.jobs.create(posted, key_owner=g.key.owner, trace_id=g.trace_id))

    @app.get("/api/jobs/by-apikey")
    @keyed
    async def jobs_by_key() -> Answer:
        return {"jobs": [await shown(job) for job in await store.jobs(key_owner=g.key.owner)]}

    @app.get("/api/jobs/user/<user>")
    @keyed
    async def jobs_of_user(user: str) -> Answer:
        owner = address(user, "address")
        return {"jobs": [await shown(job) for job in await store.jobs(key_owner=g.key.owner, owner=owner)]}

    @app.get("/api/jobs/user/<user>/<job_id>")
    @keyed
    async def job_of_user(user: str, job_id: str) -> Answer:
        owner = address(user, "address")
        job = await own_job(job_id, reading=True)
        if job.owner != owner:
            raise _RefusedError(404, "JOB_NOT_FOUND", "no such job of this user")
        parts = await shown(job)
        return {**parts["job_data"], "time_job_data": parts["time_job_data"]}

    @app.get("/api/jobs/id/<job_id>")
    @keyed
    async def job_by_id(job_id: str) -> Answer:
        return await shown(await own_job(job_id, reading=True))

    @app.put("/api/jobs/delete/<job_id>")
    @app.delete("/api/jobs/delete/<job_id>")
    @keyed
    async def delete_job(job_id: str) -> Answer:
        job = await sources.jobs.delete(await own_job(job_id, reading=False))
        return {"job_id": str(job.id), "status": job.status.value}

    @app.get("/api/tasks/job/<job_id>")
    @keyed
    async def tasks_of_job(job_id: str) -> Answer:
        job = await own_job(job_id, reading=True)
        tasks = await store.tasks_of_job(job.id, _TASKS_SHOWN)
        return [answers.task_data(task, job, sources.explorers.get(task.chain_id)) for task in tasks]

    @app.get("/api/tasks/id/<task_id>")
    @app.get("/api/tasks/<task_id>")
    @keyed
    async def task_by_id(task_id: str) -> Answer:
        task = await store.task(_id(task_id, "task_id"))
        if task is None:
            raise _RefusedError(404, "TASK_NOT_FOUND", "no such task of this API key")
        job = await own_job(str(task.job_id), reading=True)
        return answers.task_data(task, job, sources.explorers.get(task.chain_id))


def _read_routes(app: QuartTrio, sources: Sources, keyed: Keyed) -> None:
    store = sources.store

    @app.get("/api/users/<user>")
    @app.get("/api/users/address/<user>")
    @keyed
    async def user_by_address(user: str) -> Answer:
        owner = address(user, "address")
        jobs = await store.jobs(key_owner=g.key.owner, owner=owner)
        known = await store.user(owner) if jobs else None
        if known is None:
            raise _RefusedError(404, "USER_NOT_FOUND", "no job of this user was posted with this API key")
        chains = {job.target.chain_id for job in jobs}
        balance = sum([await sources.jobs.chain(c, "chain").balance(owner) for c in sorted(chains)])
        return answers.user_data(known, [job.id for job in jobs], balance)


def _id(text: str, field: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 78 or int(text) >= 2**256:
        raise _RefusedError(404, "NOT_FOUND", f"{field} is a decimal uint256")
    return int(text)
