"""The job API as one app: its areas, and what surrounds every request (trace, limits, errors, metrics)."""

from __future__ import annotations

import uuid

import structlog
import trio
from quart import Response, g, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from consensus.errors import Invalid, Transient, TriggerXError
from coordinator.api import content, health, jobs, specs, tasks, users
from coordinator.api.access import Access, RefusedError, Sources

log = structlog.get_logger(__name__)

_TRACE_CHARS = 128  # what a task's message carries
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_STATUS = {"INVALID_BODY": 400, "JOB_EXISTS": 409}
"""Of `Invalid` codes; all others are 422."""

Error = tuple[dict[str, str], int]


def api_app(sources: Sources) -> QuartTrio:
    """All routes. Errors are `{error, code, field?, remedy?}`; every answer carries its X-Trace-ID."""
    app = QuartTrio(__name__)
    access = Access(sources.store, sources.clock)
    _around(app, sources)
    _errors(app)
    for area in (content, health, jobs, specs, tasks, users):
        app.register_blueprint(area.routes(sources, access))
    return app


def _around(app: QuartTrio, sources: Sources) -> None:
    @app.before_request
    async def begin() -> None:
        g.began = trio.current_time()
        asked = request.headers.get("X-Trace-ID", "")[:_TRACE_CHARS]
        g.trace_id = asked if asked and asked.isascii() and asked.isprintable() else f"tgrx-{uuid.uuid4()}"

    @app.after_request
    async def finish(response: Response) -> Response:
        response.headers["X-Trace-ID"] = g.trace_id
        if "allowance" in g:
            response.headers.update(g.allowance.headers())
        method = request.method if request.method in _METHODS else "OTHER"
        route = request.url_rule.rule if request.url_rule else "none"
        sources.observe(method, route, response.status_code, trio.current_time() - g.began)
        return response


def _errors(app: QuartTrio) -> None:
    @app.errorhandler(RefusedError)
    async def refused(error: RefusedError) -> Error:
        return error.body, error.status

    @app.errorhandler(Invalid)
    async def invalid(error: Invalid) -> Error:
        body = {"error": f"{error.field}: {error.problem}", "code": error.code, "field": error.field}
        return {**body, **({"remedy": error.remedy} if error.remedy else {})}, _STATUS.get(error.code, 422)

    @app.errorhandler(TriggerXError)
    async def unavailable(error: TriggerXError) -> Error:
        log.warning("request_failed", code=error.code, detail=error.detail)
        status = 503 if isinstance(error, Transient) else 500
        return {"error": "the service cannot answer now; try again", "code": error.code}, status

    @app.errorhandler(HTTPException)
    async def http(error: HTTPException) -> Error:
        code = (error.name or "error").upper().replace(" ", "_")
        return {"error": error.description or error.name, "code": code}, error.code or 500
