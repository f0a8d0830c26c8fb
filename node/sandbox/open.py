"""Which sandbox a keeper has: a Docker engine's where one answers, otherwise the embedded one, otherwise none, and why."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from consensus.errors import Misconfigured, Transient
from node.infra.aio import AsyncioThread, open_asyncio_thread
from node.infra.connections import Addresses
from node.infra.settings import SandboxSettings
from node.sandbox.docker import open_docker
from node.sandbox.docker_engine import Engine
from node.sandbox.embedded import open_embedded
from node.sandbox.port import Sandbox

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Opened:
    """`sandbox`, or None and the reason, for people."""

    sandbox: Sandbox | None
    reason: str = ""


@asynccontextmanager
async def open_sandbox(
    settings: SandboxSettings, *, addresses: Addresses, owner: str, folder: Path, hidden: tuple[Path, ...] = ()
) -> AsyncIterator[Opened]:
    """What `sandbox.kind` asks for.

    `addresses` is the guard of the hosts that scripts declare, `Fetcher.addresses`. `owner` names this node among others on one
    engine, `folder` is of its data: where an engine's containers find their scripts; `hidden` are folders that no script may
    see. Raises `Misconfigured` when what is asked for by name is not to be had; with "auto" that is a reason.
    """
    async with AsyncExitStack() as stack:
        reasons: list[str] = []
        if settings.kind in ("auto", "docker"):
            aio = await stack.enter_async_context(open_asyncio_thread())
            why = await _no_engine(aio, settings) if settings.kind == "auto" else ""
            if not why:
                docker = open_docker(
                    aio,
                    url=settings.docker,
                    image=settings.image,
                    owner=owner,
                    folder=folder,
                    addresses=addresses,
                    concurrency=settings.concurrency,
                    warm=settings.warm,
                )
                yield Opened(await stack.enter_async_context(docker))
                return
            reasons.append(why)
        if settings.kind in ("auto", "embedded"):
            try:
                embedded = await stack.enter_async_context(open_embedded(settings, addresses=addresses, hidden=hidden))
            except Misconfigured as error:
                if settings.kind == "embedded":
                    raise
                reasons.append(error.detail)
            else:
                yield Opened(embedded)
                return
        reason = "; ".join(reasons) or 'sandbox.kind is "none"'
        log.warning("no_sandbox", why=reason)
        yield Opened(None, reason)


async def _no_engine(aio: AsyncioThread, settings: SandboxSettings) -> str:
    """Why the Docker engine cannot be used, '' when it can."""
    engine = Engine(aio, settings.docker, settings.image, expected=False)
    try:
        await engine.image_id()
    except (Transient, Misconfigured) as error:
        return error.detail
    finally:
        await engine.close()
    return ""
