"""Which streams a coordinator uses: those of the server that its settings name, or of an embedded one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from coordinator.settings import RedisSettings
from coordinator.streams.embedded import open_embedded
from coordinator.streams.port import Streams
from coordinator.streams.redis import open_redis, open_redis_socket
from node.infra.aio import open_asyncio_thread

FOLDER = "streams"
"""Of the embedded server, below `data_dir`."""


@asynccontextmanager
async def open_streams(settings: RedisSettings, data_dir: Path, instance: str) -> AsyncIterator[Streams]:
    """The streams, as the coordinator `instance`. Raises `Misconfigured`; a server that is away for now is none."""
    async with open_asyncio_thread() as aio:
        if settings.url is not None:
            async with open_redis(aio, settings.url, settings.prefix, instance) as streams:
                yield streams
        else:
            async with (
                open_embedded(data_dir / FOLDER) as server,
                open_redis_socket(aio, server.socket, settings.prefix, instance) as streams,
            ):
                yield streams
