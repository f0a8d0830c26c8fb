"""Logs and metrics: one line a fact in both formats, libraries included, secrets not, and no state that nodes share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from node.infra import telemetry
from node.infra.telemetry import Metrics
from p2p.network import Counters

ROOT = Path(telemetry.__file__).parents[2]


def run(format: str, program: str, level: str = "info") -> list[str]:
    """What a fresh process logs to stderr, since logging is configured once for a process."""
    head = f"""
        import logging, structlog, trio
        from node.infra.secret import Secret
        from node.infra.settings import LogSettings
        from node.infra.telemetry import configure_logging, traced
        log = structlog.get_logger()
        configure_logging(LogSettings(level={level!r}, format={format!r}), service="keeper")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(program)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_a_line_is_json_with_its_facts():
    [line] = run(
        "json",
        """
        async def finish():
            with traced("tgrx-1"):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(inner)
        async def inner():
            log.info("task_done", task_id=2**200, tx=b"\\x01\\x02", key=Secret("hunter2"), text="a\\nb")
            log.debug("not shown")
        trio.run(finish)
        """,
    )
    entry = json.loads(line)
    assert entry.pop("timestamp").endswith("Z")
    assert entry == {
        "event": "task_done",
        "level": "info",
        "service": "keeper",
        "trace_id": "tgrx-1",
        "function": "inner",
        "task_id": 2**200,
        "tx": "0x0102",
        "key": "***",
        "text": "a\nb",
    }


@pytest.mark.parametrize("format", ["json", "text"])
def test_a_traceback_does_not_show_the_values_of_variables(format):
    lines = run(
        format,
        """
        def sign():
            key = "hunter" + str(2)
            raise ValueError("bad digest")
        try:
            sign()
        except ValueError:
            log.exception("sign_failed")
        """,
    )
    text = "\n".join(lines)
    assert "bad digest" in text
    assert "in sign" in text
    assert "hunter2" not in text


def test_text_is_for_people_and_keeps_one_line_an_event():
    [line] = run("text", 'log.warning("rpc_failed", host="a\\nb", secret=Secret(1))')
    assert "rpc_failed" in line
    assert "warning" in line
    assert "secret=***" in line


def test_libraries_are_routed_and_quietened():
    lines = run(
        "json",
        """
        logging.getLogger("httpcore.connection").info("chatter")
        logging.getLogger("libp2p.pubsub").warning("chatter")
        logging.getLogger("httpx").debug("chatter")
        logging.getLogger("hypercorn.error").error("broken %s", "pipe")
        logging.getLogger("something").info("heard")
        """,
        level="debug",
    )
    entries = [json.loads(line) for line in lines]
    assert [(entry["logger"], entry["event"], entry["level"]) for entry in entries] == [
        ("hypercorn.error", "broken pipe", "error"),
        ("something", "heard", "info"),
    ]
    assert all(entry["service"] == "keeper" for entry in entries)


def samples(text: bytes) -> dict[tuple[str, ...], float]:
    """Values by name and, in the order of the labels' names, labels."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_stages_and_outcomes_are_counted():
    metrics = Metrics("node", "1.2.3")
    metrics.observe_stage("mined", "", 0.12)
    metrics.observe_stage("mined")
    metrics.observe_stage("ended", "done")
    metrics.observe_stage("ended", "HUB_REFUSED")
    found = samples(metrics.render())
    assert found["triggerx_build_info", "node", "1.2.3"] == 1
    assert found["triggerx_stages_total", "mined"] == 2
    assert found["triggerx_stage_seconds_count", "mined"] == 1
    assert found["triggerx_stage_seconds_bucket", "0.15", "mined"] == 1
    assert found["triggerx_stage_seconds_bucket", "0.1", "mined"] == 0
    assert found["triggerx_tasks_total", "", "done"] == 1
    assert found["triggerx_tasks_total", "HUB_REFUSED", "failed"] == 1
    assert found["process_resident_memory_bytes",] > 0


def test_the_mesh_is_shown_as_it_is_now():
    metrics, counters = Metrics("node", "1"), Counters()
    counters.published = 3
    counters.reject("BAD_SIGNATURE")
    assert samples(metrics.render(counters))["triggerx_mesh_published_total",] == 3
    counters.published = 4
    counters.peers = 2
    found = samples(metrics.render(counters))
    assert found["triggerx_mesh_published_total",] == 4
    assert found["triggerx_mesh_rejected_total", "BAD_SIGNATURE"] == 1
    assert found["triggerx_mesh_peers",] == 2


def test_many_nodes_share_nothing():
    nodes = [Metrics("node", "1") for _ in range(50)]
    nodes[0].observe_stage("mined")
    assert ("triggerx_stages_total", "mined") in samples(nodes[0].render())
    assert ("triggerx_stages_total", "mined") not in samples(nodes[1].render())


def test_reasons_are_bounded():
    metrics = Metrics("node", "1")
    for number in range(1000):
        metrics.observe_stage("ended", f"CODE_{number}")
    found = samples(metrics.render())
    series = [key for key in found if key[0] == "triggerx_tasks_total"]
    assert len(series) == 257
    assert found["triggerx_tasks_total", "OTHER", "failed"] == 1000 - 256


def test_the_rows_for_docs_are_what_is_rendered():
    metrics = Metrics("node", "1")
    metrics.counter("triggerx_extra_total", "Something else.", ("kind",)).labels("a").inc()
    metrics.observe_stage("mined", "done", 1.0)
    counters = Counters(rejected={"A": 1}, ignored={"B": 1})
    rendered = {
        family.name + ("_total" if family.type == "counter" else ""): (family.type, family.documentation, family.samples)
        for family in text_string_to_metric_families(metrics.render(counters).decode())
        if family.name.startswith("triggerx_") and not family.name.endswith("_created")
    }
    assert set(rendered) == {row.name for row in metrics.rows()}
    for row in metrics.rows():
        kind, meaning, found = rendered[row.name]
        assert (kind, meaning) == (row.type, row.meaning)
        assert set(found[0].labels) - {"le"} == set(row.labels)
        assert row.meaning.endswith(".")
