"""What operators and their tools ask a running node: is it alive, is it ready, what did it do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quart import Response
from quart_trio import QuartTrio

_TRAILS_SHOWN = 50


@dataclass(frozen=True, slots=True)
class StatusPage:
    """Sources of the answers. `missing` lists what the node still lacks to do its work: empty means ready."""

    missing: Callable[[], list[str]]
    describe: Callable[[], dict[str, Any]]
    trails: Callable[[], list[dict[str, Any]]]
    metrics: Callable[[], bytes]


def status_app(page: StatusPage) -> QuartTrio:
    """`/livez`, `/readyz`, `/metrics` (Prometheus text), and `/status` as JSON for people and the devnet's view."""
    app = QuartTrio(__name__)

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz() -> tuple[dict[str, Any], int]:
        missing = page.missing()
        return {"status": "not ready" if missing else "ready", "missing": missing}, 503 if missing else 200

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(page.metrics(), content_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/status")
    async def status() -> dict[str, Any]:
        return {**page.describe(), "trails": page.trails()[-_TRAILS_SHOWN:]}

    return app
