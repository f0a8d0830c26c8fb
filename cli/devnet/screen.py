"""Runs a devnet for a person: the steps of its start, then the live view or plain lines, until a signal ends it."""

from __future__ import annotations

import logging
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator

import structlog
import trio
from rich.console import Console
from rich.live import Live

from cli.devnet.devnet import Devnet, DevnetOptions, Say, open_devnet
from cli.devnet.jobs import demo_job, post
from cli.devnet.processes import Child
from cli.devnet.view import Heading, PlainLines, heading_lines, render
from cli.devnet.watch import Watch

DEMO_INTERVAL_S = 5
DEMO_TIME_FRAME_S = 86_400
DEMO_VALUE = 42
_LIVE_S = 0.25  # between two looks at everybody, on a terminal
_PLAIN_S = 1.0
_NOTICES = 5


async def run(options: DevnetOptions, *, demo: bool, console: Console) -> None:
    """Runs until SIGINT, SIGTERM or SIGHUP, then returns when everything is gone. Raises as `open_devnet` does."""
    quiet_logs()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_on_signal, signals, nursery.cancel_scope)
            async with open_devnet(options, lambda text: _print(console, text)) as devnet:
                await _show(devnet, demo=demo, console=console)


async def _end_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()


def quiet_logs() -> None:
    """Only warnings and worse, on stderr: the steps that matter here are told as lines of text."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


async def _show(devnet: Devnet, *, demo: bool, console: Console) -> None:
    watch = Watch(devnet.client, devnet.platform.coordinator_url, devnet.platform.api_key, devnet.places)
    about = "none"
    if demo:
        job_id = await _post_demo(devnet)
        about = f"ping(uint256) of {devnet.deployment.demo} every {DEMO_INTERVAL_S} s, job {job_id}"
    heading = Heading(
        chain=devnet.chain.kind,
        rpc_url=devnet.chain.rpc_url,
        coordinator_url=devnet.platform.coordinator_url,
        ready_file=str(devnet.ready_file),
        demo=about,
    )
    notices: deque[str] = deque(maxlen=_NOTICES)
    async with trio.open_nursery() as nursery:
        if console.is_terminal:
            nursery.start_soon(_notice_ends, devnet, notices.append)
            await _live(heading, watch, notices, console)
        else:
            nursery.start_soon(_notice_ends, devnet, lambda text: _print(console, text))
            await _plain(heading, watch, console)


async def _post_demo(devnet: Devnet) -> str:
    assert devnet.deployment.demo is not None
    job = demo_job(devnet.deployment.demo, DEMO_VALUE, interval=DEMO_INTERVAL_S, time_frame=DEMO_TIME_FRAME_S)
    return await post(devnet.client, devnet.platform, devnet.sender(devnet.roster.demo_owner.private_key), job)


async def _live(heading: Heading, watch: Watch, notices: deque[str], console: Console) -> None:
    with Live(console=console, auto_refresh=False, screen=False, vertical_overflow="crop") as live:
        while True:
            await watch.look()
            live.update(render(heading, watch, list(notices), width=console.width, height=console.height), refresh=True)
            await trio.sleep(_LIVE_S)


async def _plain(heading: Heading, watch: Watch, console: Console) -> None:
    for line in heading_lines(heading):
        _print(console, line)
    lines = PlainLines(lambda text: _print(console, text))
    while True:
        await watch.look()
        lines.update(watch)
        await trio.sleep(_PLAIN_S)


async def _notice_ends(devnet: Devnet, say: Say) -> None:
    async for child in devnet.processes.ended:
        say(_ending(child))


def _ending(child: Child) -> str:
    told = f"{child.name} (pid {child.pid}) {child.ending()}; the devnet goes on. Start it again with: {child.command}"
    crashed = (child.process.returncode or 0) > 0
    return f"{told}\nthe end of {child.log}:\n{child.tail()}" if crashed else told
