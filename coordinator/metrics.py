"""What the coordinator counts: requests, jobs, firings and their lateness, the queue, shards, keepers, parts, and what failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.store.port import Store
from coordinator.store.records import SHARDS, Task
from node.infra.telemetry import Metrics
from p2p.network import Counters

if TYPE_CHECKING:
    from coordinator.coordinator import Coordinator

_QUANTILES = (0.5, 0.99)
_DAY_S = 86_400


class CoordinatorMetrics:
    """The program's registry with its own metrics in it; what others count is read when asked."""

    def __init__(self, version: str) -> None:
        m = self.metrics = Metrics("coordinator", version)
        self._requests = m.counter("triggerx_http_requests_total", "HTTP requests answered.", ("method", "route", "status"))
        self._seconds = m.histogram("triggerx_http_seconds", "Seconds to answer a request.", ("method", "route"))
        self._tasks = m.gauge("triggerx_coordinator_tasks", "Tasks in the store by state and reason.", ("state", "reason"))
        self._jobs = m.gauge("triggerx_coordinator_jobs", "Jobs watched here, by kind of trigger.", ("kind",))
        self._fired = m.gauge("triggerx_coordinator_fired", "Tasks fired here since the start.", ("kind",))
        self._missed = m.gauge(
            "triggerx_coordinator_missed",
            "Due seconds that passed while nobody ran and that their jobs' missed-run policy gave up, since the start.",
        )
        self._lateness = m.gauge(
            "triggerx_coordinator_lateness_seconds",
            "How late time firings were written and handed to the queue: of the newest 8,192, and the worst since the start.",
            ("quantile",),
        )
        self._published = m.histogram(
            "triggerx_coordinator_published_seconds", "Seconds from a task's firing to its first publication in the mesh."
        )
        self._backlog = m.gauge("triggerx_coordinator_queue_backlog", "Tasks in the queue that no coordinator has taken.")
        self._driven = m.gauge("triggerx_coordinator_tasks_driven", "Tasks that this coordinator has in hand.")
        self._line = m.gauge("triggerx_coordinator_tasks_in_line", "Of these, tasks that wait for a keeper to be free.")
        self._untold = m.gauge("triggerx_coordinator_news_dropped", "News of tasks that no stream was told, since the start.")
        self._shards = m.gauge("triggerx_coordinator_shards", f"Shards held here, of {SHARDS}.")
        self._instances = m.gauge("triggerx_coordinator_instances", "Coordinators alive, as last heard.")
        self._takeovers = m.gauge("triggerx_coordinator_takeovers", "Shards taken over since the start.")
        self._losses = m.gauge("triggerx_coordinator_losses", "Shards that another coordinator has claimed, since the start.")
        self._gaps = m.gauge(
            "triggerx_coordinator_gaps", "Times in the last day in which shards held here were watched by nobody, at most 100."
        )
        self._sources = m.gauge("triggerx_coordinator_sources", "Places that conditions watched here are read from.")
        self._failing = m.gauge("triggerx_coordinator_sources_failing", "Values that were asked for there and not had.")
        self._reads = m.gauge("triggerx_coordinator_source_reads", "Reads of them since the start.")
        self._position = m.gauge("triggerx_coordinator_event_block", "Newest block searched for events.", ("chain",))
        self._keepers = m.gauge(
            "triggerx_coordinator_keepers",
            "Keepers that ever checked in: `online` by their last check-in or `offline`; and those `connected` to this peer.",
            ("chain", "state"),
        )
        self._parts = m.gauge("triggerx_coordinator_part_up", "1 while a part of the platform works, else 0.", ("part",))
        self._alerts = m.gauge(
            "triggerx_coordinator_alerts", "Messages by channel and what became of them, since the start.", ("channel", "outcome")
        )
        self._failures = m.gauge(
            "triggerx_coordinator_step_failures", "Failures of the program's steps since the start.", ("step", "code")
        )

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered; `route` is the rule it matched, so that series stay few."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def observe_published(self, task: Task, at: float) -> None:
        """A task was published for the first time, at `at` (UTC seconds)."""
        self._published.observe(max(0.0, at - task.created_at_ms / 1000))

    async def render(self, coordinator: Coordinator, store: Store, mesh: Counters) -> bytes:
        """Prometheus' text format."""
        counts = await store.task_counts()
        held = [f"shard:{shard}" for shard in coordinator.ownership.held]
        gaps = await store.gaps(held, int(coordinator.clock.now()) - _DAY_S)
        self._tasks.clear()
        for (state, reason), count in counts.items():
            self._tasks.labels(state, reason).set(count)
        self._gaps.set(len(gaps))
        self._firing(coordinator)
        self._dispatch(coordinator)
        self._health(coordinator)
        return self.metrics.render(mesh)

    def _firing(self, c: Coordinator) -> None:
        for kind, scheduler in c.schedulers.items():
            self._jobs.labels(kind).set(len(scheduler))
        for kind, fired in (("time", c.time.fired), ("event", c.event.fired), ("condition", c.condition.fired)):
            self._fired.labels(kind).set(fired)
        self._missed.set(c.time.skipped)
        for quantile in _QUANTILES:
            self._lateness.labels(str(quantile)).set(c.time.lateness.quantile(quantile))
        self._lateness.labels("1").set(c.time.lateness.worst)
        self._sources.set(len(c.condition.readings))
        self._failing.set(c.condition.readings.failing)
        self._reads.set(c.condition.readings.requests)
        for chain_id, position in c.event.positions.items():
            self._position.labels(str(chain_id)).set(position or 0)

    def _dispatch(self, c: Coordinator) -> None:
        self._backlog.set(c.dispatcher.backlog)
        self._driven.set(len(c.dispatcher))
        self._line.set(len(c.line))
        self._untold.set(c.teller.dropped)
        self._shards.set(len(c.ownership.held))
        self._instances.set(len(c.ownership.instances))
        self._takeovers.set(c.ownership.takeovers)
        self._losses.set(c.ownership.losses)

    def _health(self, c: Coordinator) -> None:
        for chain_id in c.chain_ids:
            seen = [k for k in c.keepers.all() if k.chain_id == chain_id]
            online = sum(c.keepers.is_online(k) for k in seen)
            connected = sum(k.connected for k in c.keepers.online(chain_id))
            for state, count in (("online", online), ("offline", len(seen) - online), ("connected", connected)):
                self._keepers.labels(str(chain_id), state).set(count)
        for name, part in c.part_watch.states().items():
            self._parts.labels(name).set(int(part.up))
        for (channel, outcome), count in c.alerts.counts().items():
            self._alerts.labels(channel, outcome).set(count)
        for (step, code), count in c.guard.failures.items():
            self._failures.labels(step, code).set(count)
