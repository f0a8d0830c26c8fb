"""Frames on a byte stream: uvarint length + payload, as js-libp2p's length-prefixed and multistream-select have them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

Read = Callable[[int], Awaitable[bytes]]
"""Reads at most that many bytes, at least one; raises or returns nothing at the end of the stream."""

_MAX_UVARINT_BYTES = 9  # 63 bits, the limit of the unsigned-varint specification
_CHUNK = 64 * 1024


class BrokenFrame(Exception):
    """The other side sent what is not a frame, or one over the limit. Never raised for a stream that ended between frames."""


class EndOfStream(Exception):
    """The stream ended between frames."""


def frame(payload: bytes) -> bytes:
    return uvarint(len(payload)) + payload


def uvarint(value: int) -> bytes:
    """Unsigned LEB128, least significant group first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class FrameReader:
    """Reads frames from a stream that nobody else reads, a chunk at a time. Holds at most one frame and one chunk."""

    def __init__(self, read: Read, chunk: int = _CHUNK) -> None:
        self._read = read
        self._chunk = chunk
        self._buffer = bytearray()

    async def next(self, limit: int) -> bytes:
        """The next frame's payload. The limit is checked on the announced length, before any of the body is read.

        Raises `BrokenFrame`, `EndOfStream`, or whatever the stream's read raises.
        """
        length, start = await self._length()
        if length > limit:
            raise BrokenFrame(f"frame of {length} bytes, at most {limit}")
        end = start + length
        while len(self._buffer) < end:
            await self._fill()
        payload = bytes(memoryview(self._buffer)[start:end])
        del self._buffer[:end]
        return payload

    async def _length(self) -> tuple[int, int]:
        value = 0
        for index in range(_MAX_UVARINT_BYTES):
            while len(self._buffer) <= index:
                await self._fill(may_end=index == 0)
            byte = self._buffer[index]
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                if byte == 0 and index > 0:
                    raise BrokenFrame("length is not minimally encoded")
                return value, index + 1
        raise BrokenFrame("length is longer than a uvarint")

    async def _fill(self, *, may_end: bool = False) -> None:
        data = await self._read(self._chunk)
        if not data:
            raise EndOfStream if may_end else BrokenFrame("stream ended inside a frame")
        self._buffer += data


async def read_exact_frame(read: Read, limit: int) -> bytes:
    """One frame from a stream that somebody else reads on: takes not a byte more. Slower than `FrameReader`."""

    async def one_byte(_chunk: int) -> bytes:
        return await read(1)

    length, _ = await FrameReader(one_byte, 1)._length()
    if length > limit:
        raise BrokenFrame(f"frame of {length} bytes, at most {limit}")
    payload = bytearray()
    while len(payload) < length:
        data = await read(length - len(payload))
        if not data:
            raise BrokenFrame("stream ended inside a frame")
        payload += data
    return bytes(payload)
