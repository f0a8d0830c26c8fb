"""Whether the coordinator is alive, ready and well, and which keepers it sees: open to all."""

from __future__ import annotations

from quart import Blueprint, Response

from coordinator.api import answers
from coordinator.api.access import Access, Answer, Sources


def routes(sources: Sources, access: Access) -> Blueprint:
    area = Blueprint("health", __name__)

    @area.get("/livez")
    async def livez() -> Answer:
        return {"status": "alive"}

    @area.get("/readyz")
    async def readyz() -> Answer:
        missing = sources.missing()
        return {"status": "not ready" if missing else "ready", "missing": missing}, 503 if missing else 200

    @area.get("/api/health")
    async def health() -> Answer:
        missing = sources.missing()
        return {"status": "degraded" if missing else "healthy", "missing": missing, "time": answers.rfc3339(sources.clock.now())}

    @area.get("/status")
    async def status() -> Answer:
        return sources.status()

    @area.get("/metrics")
    async def metrics() -> Response:
        return Response(await sources.metrics(), content_type="text/plain; version=0.0.4; charset=utf-8")

    return area
