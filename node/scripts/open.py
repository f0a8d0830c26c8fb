"""A keeper's scripts, all that they need opened: the sandbox, and the way to gateways."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from node.infra.compute import Compute
from node.infra.connections import Addresses
from node.infra.settings import FetchSettings, SandboxSettings
from node.sandbox.open import open_sandbox
from node.scripts.library import open_library
from node.scripts.port import Scripts
from node.scripts.runner import ScriptRunner
from p2p.content import Content


@dataclass(frozen=True, slots=True)
class Opened:
    """`sandbox` is its name as check-ins say it, '' where there is none, and then `reason` for people."""

    scripts: Scripts
    sandbox: str
    reason: str = ""


@asynccontextmanager
async def open_scripts(
    settings: SandboxSettings,
    fetch: FetchSettings,
    *,
    content: Content,
    addresses: Addresses,
    owner: str,
    folder: Path,
    hidden: tuple[Path, ...],
    compute: Compute,
) -> AsyncIterator[Opened]:
    """Scripts that run by `settings`, and may name the hosts that `fetch.allow` lists. The other parameters are those of
    `open_sandbox` and `open_library`. Raises `Misconfigured`."""
    async with (
        open_library(content, fetch, settings.gateways, compute) as library,
        open_sandbox(settings, addresses=addresses, owner=owner, folder=folder, hidden=hidden) as opened,
    ):
        runner = ScriptRunner(library, opened.sandbox, compute, private=fetch.allow)
        yield Opened(runner, opened.sandbox.name if opened.sandbox is not None else "", opened.reason)
