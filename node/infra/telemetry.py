"""Logs that one grep follows through a task, and metrics of one node, however many nodes share the process."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TextIO

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from structlog.typing import EventDict, Processor

from node.infra.settings import LogSettings
from p2p.network import Counters

_QUIET = {
    "libp2p": logging.ERROR,  # it warns of every peer that hangs up
    "async_service": logging.ERROR,
    "multiaddr": logging.ERROR,
    "hypercorn": logging.WARNING,
    "quart": logging.WARNING,
    "httpx": logging.WARNING,
    "httpcore": logging.WARNING,
    "asyncio": logging.WARNING,
}
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)  # the aims are 0.15 and 0.25 s
_MAX_REASONS = 256  # codes are few; a bound all the same, since each is a series


def configure_logging(settings: LogSettings, *, service: str, stream: TextIO | None = None) -> None:
    """Sends this program's and its libraries' logs to `stream` (stderr), one line each. Call it once, at the edge.

    Fields: timestamp (UTC), level, service, event, function, logger of a library, trace_id inside `traced`, and the facts.
    """
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _with_service(service),
    ]
    rendering: list[Processor] = _json_lines() if settings.format == "json" else _text_lines()
    out = stream if stream is not None else sys.stderr
    structlog.configure(
        processors=[
            *shared,
            structlog.processors.CallsiteParameterAdder({structlog.processors.CallsiteParameter.FUNC_NAME}),
            _function,
            *rendering,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name, quiet in _QUIET.items():
        logging.getLogger(name).setLevel(max(level, quiet))


def traced(trace_id: str) -> AbstractContextManager[None]:
    """Every line logged inside carries `trace_id`, also in the tasks started there."""
    return structlog.contextvars.bound_contextvars(trace_id=trace_id)


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric as docs show it."""

    name: str
    type: str
    labels: tuple[str, ...]
    meaning: str


class Metrics:
    """A node's own registry: nothing is global, so a simulation may hold a hundred."""

    def __init__(self, service: str, version: str) -> None:
        self.registry = CollectorRegistry()
        self._rows: list[MetricRow] = []
        self._reasons: set[str] = set()
        build = self.gauge("triggerx_build_info", "Always 1; which program and release this is.", ("service", "version"))
        build.labels(service, version).set(1)
        self._reached = self.counter("triggerx_stages_total", "Tasks that reached a stage here.", ("stage",))
        self._seconds = self.histogram("triggerx_stage_seconds", "Seconds from a task's beginning to a stage.", ("stage",))
        self._tasks = self.counter(
            "triggerx_tasks_total", "Tasks that ended here; the reason is a code of docs/reasons.md.", ("state", "reason")
        )
        self._mesh = _MeshCollector()
        self._rows += _MeshCollector.rows()
        self.registry.register(self._mesh)
        ProcessCollector(registry=self.registry)

    def counter(self, name: str, meaning: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(name, meaning, self._noted(name, "counter", meaning, labels), registry=self.registry)

    def gauge(self, name: str, meaning: str, labels: Iterable[str] = ()) -> Gauge:
        return Gauge(name, meaning, self._noted(name, "gauge", meaning, labels), registry=self.registry)

    def histogram(self, name: str, meaning: str, labels: Iterable[str] = ()) -> Histogram:
        """Of seconds."""
        return Histogram(name, meaning, self._noted(name, "histogram", meaning, labels), registry=self.registry, buckets=_BUCKETS)

    def observe_stage(self, stage: str, outcome: str = "", seconds: float | None = None) -> None:
        """A task reached `stage`, `seconds` after it began where that is known; with an `outcome` (`done` or a code) it ended."""
        self._reached.labels(stage).inc()
        if seconds is not None:
            self._seconds.labels(stage).observe(seconds)
        if outcome:
            done = outcome == "done"
            self._tasks.labels("done" if done else "failed", "" if done else self._bounded(outcome)).inc()

    def render(self, mesh: Counters | None = None) -> bytes:
        """Prometheus' text format, with the mesh's counters where there is a mesh."""
        self._mesh.counters = mesh
        return generate_latest(self.registry)

    def rows(self) -> list[MetricRow]:
        """What `render` shows, for docs; the process's own metrics are Prometheus' standard ones."""
        return list(self._rows)

    def _noted(self, name: str, kind: str, meaning: str, labels: Iterable[str]) -> tuple[str, ...]:
        row = MetricRow(name, kind, tuple(labels), meaning)
        self._rows.append(row)
        return row.labels

    def _bounded(self, reason: str) -> str:
        if reason not in self._reasons:
            if len(self._reasons) >= _MAX_REASONS:
                return "OTHER"
            self._reasons.add(reason)
        return reason


_MESH_COUNTED = {
    "published": "Messages this peer published.",
    "delivered": "Messages that passed their rule and were delivered.",
    "duplicates": "Messages that had been seen.",
    "dropped": "Accepted messages dropped because the reader was behind.",
    "unsent": "Frames not sent to a peer that reads too slowly.",
    "refused_streams": "Direct streams refused.",
    "cut_off": "Peers cut off for what they sent.",
}
_MESH_JUDGED = {"rejected": "Messages whose sender broke the protocol.", "ignored": "Messages dropped without blame."}


class _MeshCollector(Collector):
    """The mesh counts for itself; this reads its counters when asked."""

    counters: Counters | None = None

    def collect(self) -> Iterable[Metric]:
        if self.counters is None:
            return
        for name, meaning in _MESH_COUNTED.items():
            yield CounterMetricFamily(f"triggerx_mesh_{name}", meaning, value=getattr(self.counters, name))
        for name, meaning in _MESH_JUDGED.items():
            family = CounterMetricFamily(f"triggerx_mesh_{name}", meaning, labels=["code"])
            for code, count in getattr(self.counters, name).items():
                family.add_metric([code], count)
            yield family
        yield GaugeMetricFamily("triggerx_mesh_peers", "Peers connected now.", value=self.counters.peers)

    @staticmethod
    def rows() -> list[MetricRow]:
        return [
            *(MetricRow(f"triggerx_mesh_{name}_total", "counter", (), meaning) for name, meaning in _MESH_COUNTED.items()),
            *(MetricRow(f"triggerx_mesh_{name}_total", "counter", ("code",), meaning) for name, meaning in _MESH_JUDGED.items()),
            MetricRow("triggerx_mesh_peers", "gauge", (), "Peers connected now."),
        ]


def _with_service(service: str) -> Processor:
    def add(_logger: Any, _method: str, event: EventDict) -> EventDict:
        event["service"] = service
        return event

    return add


def _function(_logger: Any, _method: str, event: EventDict) -> EventDict:
    event["function"] = event.pop("func_name", "")
    return event


# Tracebacks are written without the values of local variables: those may hold keys.
def _json_lines() -> list[Processor]:
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_json)]


def _text_lines() -> list[Processor]:
    plain: Callable[..., None] = structlog.dev.plain_traceback
    return [
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain, repr_native_str=True, pad_event_to=0)
    ]


def _json(event: dict[str, Any], **_: Any) -> str:
    return json.dumps(event, default=_shown, separators=(",", ":"))


def _shown(value: Any) -> str:
    return "0x" + value.hex() if isinstance(value, bytes) else str(value)
