"""Containers that are started already and wait for a program, each used once; and the removal of all that were."""

from __future__ import annotations

import os
import secrets
import shutil
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
import trio

from consensus.errors import Misconfigured, Transient
from node.sandbox.beside import beside
from node.sandbox.docker_container import LABEL, Shape, config, tools
from node.sandbox.docker_engine import Attached, Engine
from node.sandbox.languages import Tools

_REMOVAL_S: Final = 10.0
_QUEUED = 64  # containers that wait to be removed: what is beyond is found by its label
_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 10.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Container:
    """One, started, its launcher waiting for a program."""

    name: str
    folder: Path
    attached: Attached
    tools: Tools
    outages: int
    """Of the engine, before it was made."""

    @property
    def script(self) -> Path:
        """What lies at `languages.FOLDER` inside."""
        return self.folder / "script"

    @property
    def egress(self) -> Path:
        """What lies at `egress.MOUNTED` inside."""
        return self.folder / "egress"


class Pool:
    """Made by `open_pool`. At most `size` containers of one shape wait."""

    def __init__(self, engine: Engine, owner: str, folder: Path, shape: Shape, size: int) -> None:
        self._engine = engine
        self._owner = owner
        self._folder = folder
        self._shape = shape
        self._size = size
        self._warm: deque[Container] = deque()
        self._known: set[str] = set()  # names that are somebody's: all others with our label are to be removed
        self._stray = True  # whether there may be such: at the start, what an earlier process left
        self._changed = trio.Event()
        self._settled = trio.Event()
        self._removing = 0
        self._leaving, self._to_remove = trio.open_memory_channel[Container](_QUEUED)

    async def settled(self) -> None:
        """Until as many containers wait as may, and none that was used is left. May be for ever while the engine is away."""
        while len(self._warm) < self._size or self._removing or self._stray:
            self._settled = trio.Event()
            await self._settled.wait()

    async def take(self, shape: Shape) -> tuple[Container, bool]:
        """A container, and whether it had been waiting. Raises `Transient` and `Misconfigured`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if shape == self._shape:
            await self._drop_dead()
            if self._warm:
                self._wake()
                return self._warm.popleft(), True
        return await self.fresh(shape), False

    async def fresh(self, shape: Shape) -> Container:
        """A container that never waited."""
        outages = self._engine.outages
        name = f"triggerx-{secrets.token_hex(8)}"
        folder = self._folder / name
        self._known.add(name)
        started = False
        try:
            for each in (folder, folder / "script", folder / "egress"):
                each.mkdir()
                each.chmod(0o755)  # its user is another than ours
            attached, answer = await self._engine.start(name, config(self._engine.image, self._owner, shape, folder))
            started = True
        except OSError as error:
            raise Misconfigured("state", f"containers' files cannot be written to {self._folder}: {error}") from None
        finally:
            if not started:  # there may be a container all the same
                self._forget(name, folder)
        return Container(name, folder, attached, tools(answer.head.has), outages)

    def discard(self, container: Container) -> None:
        """It has done its work: it is removed soon."""
        try:
            self._leaving.send_nowait(container)
            self._removing += 1
        except trio.WouldBlock:
            self._forget(container.name, container.folder)

    async def kill(self, container: Container) -> None:
        """What runs in it has ended when this returns, and it is removed: unless the engine is away."""
        with trio.CancelScope(shield=True):
            await self._remove(container)

    async def keep_warm(self) -> None:
        """Until cancelled."""
        pause = _PAUSE_S
        while True:
            self._changed = trio.Event()
            try:
                if self._stray:
                    await self._sweep()
                await self._drop_dead()
                while len(self._warm) < self._size:
                    self._warm.append(await self.fresh(self._shape))
                pause = _PAUSE_S
                self._settled.set()
            except (Transient, Misconfigured) as error:
                log.debug("no_container_waits", error=str(error))
                await trio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
                continue
            await self._changed.wait()

    async def remove_used(self) -> None:
        """Until cancelled."""
        async for container in self._to_remove:
            await self._remove(container)
            self._removing -= 1
            self._settled.set()

    async def close(self) -> None:
        """Removes every container that is left."""
        with trio.move_on_after(_REMOVAL_S) as scope:
            scope.shield = True
            for container in self._warm:
                with suppress(trio.ClosedResourceError):
                    await self._engine.hang_up(container.attached)
            self._warm.clear()
            self._known.clear()
            with suppress(Transient):
                await self._sweep(closing=True)
        if scope.cancelled_caught:
            log.warning("containers_left", remedy="they are removed when this node starts again")

    async def _drop_dead(self) -> None:
        """Those that waited when the engine went away died with it."""
        while self._warm and self._warm[0].outages < self._engine.outages:
            container = self._warm.popleft()
            self._forget(container.name, container.folder)
            with suppress(trio.ClosedResourceError):
                await self._engine.hang_up(container.attached)

    async def _remove(self, container: Container) -> None:
        removed = False
        with trio.move_on_after(_REMOVAL_S), suppress(trio.ClosedResourceError, Transient):
            await self._engine.hang_up(container.attached)
            await self._engine.remove(container.name)
            removed = True
        if not removed:
            self._forget(container.name, container.folder)
            return
        self._known.discard(container.name)
        shutil.rmtree(container.folder, ignore_errors=True)

    def _forget(self, name: str, folder: Path) -> None:
        self._known.discard(name)
        shutil.rmtree(folder, ignore_errors=True)
        self._stray = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()

    async def _sweep(self, closing: bool = False) -> None:
        """Removes what carries our label and is nobody's: left by a crash, an engine that went away, or a start cut short."""
        self._stray = False
        try:
            left = [name for name in await self._engine.labelled(f"{LABEL}={self._owner}") if name not in self._known]
            for name in left:
                await self._engine.remove(name)
        except Transient:
            self._stray = True
            raise
        if left and not closing:
            log.info("stray_containers_removed", containers=len(left))
        with suppress(OSError):
            for entry in os.scandir(self._folder):
                if entry.name not in self._known:
                    shutil.rmtree(entry.path, ignore_errors=True)


@asynccontextmanager
async def open_pool(engine: Engine, owner: str, folder: Path, shape: Shape, size: int) -> AsyncIterator[Pool]:
    """Containers of this `owner` (a node) wait from now on; what an earlier process of that name left is removed. `folder` is the
    pool's alone, and must be the same for the engine as for us. Raises `Misconfigured` when it cannot be written to."""
    _make(folder)
    pool = Pool(engine, owner, folder, shape, size)
    try:
        async with beside(pool.keep_warm, pool.remove_used):
            yield pool
    finally:
        await pool.close()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        folder.chmod(0o711)  # whatever umask says: programs run as another user
    except OSError as error:
        raise Misconfigured("state", f"containers' files cannot be written to {folder}: {error}") from None
