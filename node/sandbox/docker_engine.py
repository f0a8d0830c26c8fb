"""The Docker engine as the sandbox uses it: a container at a time, spoken to through its stdin and stdout, errors by one name."""

from __future__ import annotations

import json
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar, TypeVarTuple

import aiodocker
import aiohttp
import msgspec
import structlog
import trio
from aiodocker.stream import Stream

from consensus.errors import Misconfigured, Transient
from node.infra.aio import AsyncioThread

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

UNAVAILABLE: Final = "SANDBOX_UNAVAILABLE"
STDOUT: Final = 1

_CALL_S = 30.0  # a busy engine takes seconds to start a container
_CLOSE_S = 5.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
_NOISE = 2048  # bytes kept of what a launcher says on stderr, which is nothing unless it fails
_HEAD_BYTES = 64 * 1024
_NOT_CONNECTED = 900  # aiodocker's own

_Amount = Annotated[int, msgspec.Meta(ge=0, lt=2**40)]

log = structlog.get_logger(__name__)


class Gone(Exception):
    """The container ended, or its connection did, before it answered."""


class Head(msgspec.Struct, frozen=True):
    """What the launcher says: at first which files the image `has`, then its report. The program cannot speak for it; all the
    same it is read as if it could."""

    has: tuple[str, ...] = ()
    end: Literal["exit", "time", "output", "memory"] = "exit"
    exit: Annotated[int, msgspec.Meta(ge=-128, le=255)] = 0
    wall_ms: _Amount = 0
    cpu_ms: _Amount = 0
    peak: _Amount = 0
    """Bytes."""
    oom: _Amount = 0
    """Processes that were killed for want of memory."""
    stdout: _Amount = 0
    stderr: _Amount = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the launcher said, and the bytes that it announced."""

    head: Head
    stdout: bytes = b""
    stderr: bytes = b""


class Attached:
    """A started container and the connection to its launcher. Everything here runs in the asyncio thread."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._received = bytearray()
        self._noise = bytearray()

    async def hear(self, most: int) -> Answer:
        """The launcher's next words, with at most `most` bytes of output. Raises `Gone`."""
        (size,) = struct.unpack(">I", await self._exactly(4, _HEAD_BYTES))
        text = await self._exactly(size, _HEAD_BYTES)
        try:
            head = msgspec.json.decode(text, type=Head)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise Gone(f"the launcher says what it never would: {error}") from None
        stdout = await self._exactly(head.stdout, most)
        return Answer(head, stdout, await self._exactly(head.stderr, most))

    async def ask(self, head: Mapping[str, Any], stdin: bytes, most: int) -> Answer:
        """Gives the launcher its one request, and hears how that ended. Raises `Gone`."""
        text = json.dumps({**head, "stdin": len(stdin)}).encode()
        try:
            await self._stream.write_in(struct.pack(">I", len(text)) + text + stdin)
        except (OSError, RuntimeError, AssertionError, aiohttp.ClientError) as error:  # aiodocker asserts that it is connected
            raise Gone(str(error)) from None
        return await self.hear(most)

    async def _exactly(self, size: int, most: int) -> bytes:
        if size > most:
            raise Gone(f"the launcher announces {size} bytes")
        while len(self._received) < size:
            try:
                message = await self._stream.read_out()
            except (OSError, aiohttp.ClientError) as error:
                raise Gone(str(error)) from None
            if message is None:
                raise Gone(self._noise.decode(errors="replace").strip()[-500:])
            if message.stream == STDOUT:
                self._received += message.data
            else:
                self._noise = (self._noise + message.data)[-_NOISE:]
        found = bytes(self._received[:size])
        del self._received[:size]
        return found

    async def close(self) -> None:
        await self._stream.close()


class Engine:
    """Made by `docker.open_docker`. Raises `Transient` SANDBOX_UNAVAILABLE, at once when the engine was away a moment ago."""

    def __init__(self, aio: AsyncioThread, url: str, image: str, *, expected: bool = True) -> None:
        """`expected` is whether an engine that does not answer is worth a warning."""
        self.image = image
        self.outages = 0
        """How often the engine went away so far: what ran before may have ended."""
        self._aio = aio
        self._url = url
        self._docker: aiodocker.Docker | None = None
        self._pause = _FIRST_PAUSE_S
        self._not_before = -float("inf")
        self._expected = expected
        self._reachable = True

    async def start(self, name: str, config: Mapping[str, Any]) -> tuple[Attached, Answer]:
        """A container with its launcher's first words. What is left of one that failed is the caller's to remove."""
        return await self._call(self._start, name, config)

    async def ask(self, attached: Attached, head: Mapping[str, Any], stdin: bytes, most: int) -> Answer:
        """Raises `Gone` when the container ends before it answers. Takes as long as the program may run: bound it."""
        try:
            return await self._aio.run(attached.ask, head, stdin, most)
        except trio.BrokenResourceError as error:
            raise Gone(str(error)) from None

    async def ran_out_of_memory(self, name: str) -> bool:
        """Whether the kernel ended this container's first process for want of memory."""
        found = await self._call(self._show, name)
        return bool(found.get("State", {}).get("OOMKilled"))

    async def remove(self, name: str) -> None:
        """Kills what runs in it, and removes it. One that is not there is removed already."""
        await self._call(self._remove, name)

    async def labelled(self, label: str) -> list[str]:
        """The names of all containers with the label, running or not."""
        return await self._call(self._labelled, label)

    async def image_id(self) -> str:
        """Of the image by its name. Raises `Misconfigured` without it."""
        return await self._call(self._image_id)

    async def hang_up(self, attached: Attached) -> None:
        await self._aio.run(attached.close)

    async def close(self) -> None:
        with trio.move_on_after(_CLOSE_S) as scope:
            scope.shield = True
            if self._docker is not None:
                await self._aio.run(self._docker.close)

    async def paced(self) -> None:
        """Waits until the engine may be asked again: for those who ask in a loop."""
        await trio.sleep_until(max(self._not_before, trio.current_time()))

    async def _call(self, fn: Callable[[*Ts], Awaitable[T]], /, *args: *Ts) -> T:
        if trio.current_time() < self._not_before:
            await trio.lowlevel.checkpoint()
            raise Transient(UNAVAILABLE, "the Docker engine was away a moment ago")
        try:
            with trio.fail_after(_CALL_S):
                result = await self._aio.run(fn, *args)
        except aiodocker.DockerError as error:
            if error.status == _NOT_CONNECTED:
                raise self._away(error) from error
            raise Transient(UNAVAILABLE, f"the Docker engine refuses: {error.message}"[:500]) from error
        except Gone as error:
            raise Transient(UNAVAILABLE, f"a container ended before it began: {error}"[:500]) from error
        except (aiohttp.ClientError, OSError, TimeoutError, trio.TooSlowError, trio.BrokenResourceError) as error:
            raise self._away(error) from error
        if not self._reachable:
            log.info("docker_reachable_again")
        self._pause, self._reachable = _FIRST_PAUSE_S, True
        return result

    def _away(self, error: Exception) -> Transient:
        if self._reachable:
            remedy = "scripts wait until the engine of sandbox.docker answers"
            tell = log.warning if self._expected else log.debug
            tell("docker_unreachable", error=str(error) or type(error).__name__, remedy=remedy)
            self.outages += 1
        self._reachable = False
        self._not_before = trio.current_time() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_S)
        return Transient(UNAVAILABLE, f"the Docker engine does not answer: {error}"[:500])

    # in the asyncio thread

    def _client(self) -> aiodocker.Docker:
        if self._docker is None:  # it looks for its loop when it is made
            self._docker = aiodocker.Docker(url=self._url)
        return self._docker

    async def _start(self, name: str, config: Mapping[str, Any]) -> tuple[Attached, Answer]:
        try:
            container = await self._client().containers.create(dict(config), name=name)
        except aiodocker.DockerError as error:
            if error.status == 404:
                raise _image_missing(self.image) from error
            raise
        stream = container.attach(stdin=True, stdout=True, stderr=True)
        attached = Attached(stream)
        try:
            await stream.__aenter__()  # before the start, or the first words would be lost
            await container.start()
            return attached, await attached.hear(0)
        except BaseException:
            await stream.close()
            raise

    async def _show(self, name: str) -> Mapping[str, Any]:
        shown: Mapping[str, Any] = await self._client().containers.container(name).show()
        return shown

    async def _remove(self, name: str) -> None:
        container = self._client().containers.container(name)
        try:
            try:
                await container.delete(force=True, v=True)
            except aiodocker.DockerError as error:
                if error.status != 409:
                    raise
                await container.wait(condition="removed")  # it is being removed already
        except aiodocker.DockerError as error:
            if error.status != 404:
                raise

    async def _labelled(self, label: str) -> list[str]:
        found = await self._client().containers.list(all=True, filters=json.dumps({"label": [label]}))
        return [str(each["Names"][0]).lstrip("/") for each in found if each["Names"]]

    async def _image_id(self) -> str:
        try:
            return str((await self._client().images.inspect(self.image))["Id"])
        except aiodocker.DockerError as error:
            if error.status == 404:
                raise _image_missing(self.image) from error
            raise


def _image_missing(image: str) -> Misconfigured:
    return Misconfigured(
        "sandbox.image", f"the engine has no image {image}: build it with `docker build -t {image} deploy/sandbox`, or pull it"
    )
