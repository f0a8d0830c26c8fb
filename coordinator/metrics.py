"""What the coordinator counts: requests, tasks by state and reason, jobs, lateness, and steps that failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.store.port import Store
from node.infra.telemetry import Metrics
from p2p.network import Counters

if TYPE_CHECKING:
    from coordinator.app import Coordinator


class CoordinatorMetrics:
    """The program's registry with its own metrics in it; what others count is read when asked."""

    def __init__(self, version: str) -> None:
        self.metrics = Metrics("coordinator", version)
        self._requests = self.metrics.counter(
            "triggerx_http_requests_total", "HTTP requests answered.", ("method", "route", "status")
        )
        self._seconds = self.metrics.histogram("triggerx_http_seconds", "Seconds to answer a request.", ("method", "route"))
        self._tasks = self.metrics.gauge(
            "triggerx_coordinator_tasks", "Tasks in the store by state and reason.", ("state", "reason")
        )
        self._jobs = self.metrics.gauge("triggerx_coordinator_jobs", "Jobs with a due second ahead.")
        self._fired = self.metrics.gauge("triggerx_coordinator_fired", "Due seconds fired since the start.")
        self._missed = self.metrics.gauge(
            "triggerx_coordinator_missed",
            "Due seconds that passed while nobody ran and that a later one stood in for, since the start.",
        )
        self._keepers = self.metrics.gauge(
            "triggerx_coordinator_keepers_online", "Keepers whose last check-in is recent.", ("chain",)
        )
        self._failures = self.metrics.gauge(
            "triggerx_coordinator_step_failures", "Failures of the program's steps since the start.", ("step", "code")
        )

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered; `route` is the rule it matched, so that series stay few."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    async def render(self, coordinator: Coordinator, store: Store, mesh: Counters) -> bytes:
        """Prometheus' text format."""
        self._tasks.clear()
        for (state, reason), count in (await store.task_counts()).items():
            self._tasks.labels(state, reason).set(count)
        self._jobs.set(len(coordinator.time))
        self._fired.set(coordinator.time.fired)
        self._missed.set(coordinator.time.skipped)
        for chain_id in coordinator.chain_ids:
            self._keepers.labels(str(chain_id)).set(len(coordinator.keepers.online(chain_id)))
        for (step, code), count in coordinator.guard.failures.items():
            self._failures.labels(step, code).set(count)
        return self.metrics.render(mesh)
