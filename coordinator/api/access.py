"""Who may ask for what: API keys, how often, and whose jobs and tasks they see."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

from quart import g, request

from coordinator.api.keys import Role, digest_of
from coordinator.api.limits import RateLimits
from coordinator.jobs import Jobs
from coordinator.keepers import Keepers
from coordinator.store.port import Store
from coordinator.store.records import ApiKey, Job, Task
from coordinator.watch import PartState
from node.infra.clock import Clock
from node.infra.compute import Compute
from node.infra.content import SharedContent
from node.infra.telemetry import traced

Answer = dict[str, Any] | list[dict[str, Any]] | tuple[dict[str, Any], int]
Handler = Callable[..., Awaitable[Answer]]

_KEY_CHARS = 256
_OF_ONE = 600
"""Requests a minute of one client address without a key, to a route that is open and costs work: a form asks while one types."""
_OF_ALL = 6000
"""Of all addresses without a key."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What the API answers from. `missing` lists what the coordinator still lacks; `status` is FIELD's GET /status.

    `observe` is told method, route, status and seconds of every request. `keepers` take check-ins and are listed; `parts` are
    the platform's own, as last seen.
    """

    store: Store
    jobs: Jobs
    clock: Clock
    compute: Compute
    explorers: dict[int, str | None]
    missing: Callable[[], list[str]]
    status: Callable[[], dict[str, Any]]
    metrics: Callable[[], Awaitable[bytes]]
    observe: Callable[[str, str, int, float], None]
    keepers: Keepers | None = None
    parts: Callable[[], Mapping[str, PartState]] = dict
    content: SharedContent | None = None


class RefusedError(Exception):
    """An answer other than the one asked for."""

    def __init__(self, status: int, code: str, error: str, **more: str) -> None:
        super().__init__(error)
        self.status = status
        self.body = {"error": error, "code": code, **more}


class Access:
    """What the routes share: `keyed` and `admit` guard one, `own_job` and `own_task` find what the request's key may see."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._limits = RateLimits()

    def keyed(self, handler: Handler) -> Handler:
        """The route needs an API key, in X-API-KEY or as a bearer token; the handler finds it in `g.key`."""

        @wraps(handler)
        async def checked(*args: Any, **kwargs: Any) -> Answer:
            g.key = key = await self._key()
            g.allowance = self._limits.take(key.digest, key.rate_limit, self._clock.now())
            if not g.allowance.allowed:
                message = f"at most {key.rate_limit} requests a minute with this API key"
                raise RefusedError(429, "RATE_LIMITED", message, message=message, remedy="wait X-RateLimit-Reset seconds")
            with traced(g.trace_id):
                return await handler(*args, **kwargs)

        return checked

    async def admit(self) -> None:
        """For open routes that cost work: counts against the API key, if a good one comes along, else the client's address."""
        now, key = self._clock.now(), await self._known(_key_text())
        if key is not None:
            limits = [(key.digest, key.rate_limit)]
        else:
            limits = [(b"of " + (request.remote_addr or "").encode(), _OF_ONE), (b"of all", _OF_ALL)]
        for bucket, limit in limits:
            if not (allowance := self._limits.take(bucket, limit, now)).allowed:
                message = "too many requests" if key is not None else "too many requests without an API key"
                raise RefusedError(429, "RATE_LIMITED", message, message=message, remedy=f"wait {allowance.reset} seconds")

    async def _key(self) -> ApiKey:
        if not (text := _key_text()):
            raise RefusedError(401, "API_KEY_MISSING", "no API key", remedy="send it in the header X-API-KEY")
        if (key := await self._known(text)) is None:
            raise RefusedError(403, "API_KEY_UNKNOWN", "the API key is unknown or inactive", remedy="ask for a new one")
        return key

    async def _known(self, text: str) -> ApiKey | None:
        key = await self._store.key(digest_of(text)) if 0 < len(text) <= _KEY_CHARS else None
        return key if key is not None and key.active else None

    def may_read(self, job: Job) -> bool:
        """Whether the request's key sees the job."""
        key: ApiKey = g.key
        return job.key_owner == key.owner or key.role == Role.ADMIN

    async def own_job(self, job_id: str, *, reading: bool) -> Job:
        """The job, if a key of the same owner posted it; an administrator reads all. A 404 tells nothing of others'."""
        job = await self._store.job(uint256(job_id, "job_id"))
        if job is None or not (self.may_read(job) if reading else job.key_owner == g.key.owner):
            raise RefusedError(404, "JOB_NOT_FOUND", "no such job of this API key")
        return job

    async def own_task(self, task_id: str) -> tuple[Task, Job]:
        """The task with its job, by the rule of `own_job`."""
        task = await self._store.task(uint256(task_id, "task_id"))
        job = await self._store.job(task.job_id) if task else None
        if task is None or job is None or not self.may_read(job):
            raise RefusedError(404, "TASK_NOT_FOUND", "no such task of this API key")
        return task, job


def _key_text() -> str:
    bearer = request.headers.get("Authorization", "")
    return request.headers.get("X-API-KEY") or (bearer[7:] if bearer.startswith("Bearer ") else "")


def uint256(text: str, field: str) -> int:
    """A decimal id out of a path; anything else cannot be found."""
    if not text.isascii() or not text.isdecimal() or len(text) > 78 or int(text) >= 2**256:
        raise RefusedError(404, "NOT_FOUND", f"{field} is a decimal uint256")
    return int(text)
