"""Content addresses as IPFS makes them: CIDs, and the blocks that Kubo's `add` cuts a file into.

A CID names bytes by their sha2-256. A file of one block is that block; a larger one is a tree of blocks ("balanced DAG"), and
the same file has as many CIDs as there are ways to lay it out. Formats: multiformats/cid, ipld dag-pb, UnixFS 1 (ipfs/specs).
The way back, from blocks to the file, is `consensus.unixfs`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from consensus.errors import Failed

RAW: Final = 0x55
DAG_PB: Final = 0x70
MAX_BLOCK_BYTES: Final = 1024 * 1024 + 4096
"""A chunk of 1 MiB in its UnixFS envelope of some 20 bytes, with room: no block of Kubo's layouts is larger."""

INVALID: Final = "CONTENT_INVALID"

_SHA2_256 = b"\x12\x20"
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_DIGITS = {letter: value for value, letter in enumerate(_BASE58)}
_V0_CHARS = 46  # base58 of 34 bytes that begin with 0x12 0x20: "Qm" and 44 more
_V1_CHARS = 59  # "b" and base32 of 36 bytes
_FILE = 2  # UnixFS's DataType


def sha2_256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


@dataclass(frozen=True, slots=True)
class Cid:
    """A CID of the two kinds that files have: raw blocks and UnixFS nodes, hashed with sha2-256. Its text is canonical."""

    version: int
    codec: int
    digest: bytes

    def __post_init__(self) -> None:
        if (self.version, self.codec) not in ((0, DAG_PB), (1, DAG_PB), (1, RAW)) or len(self.digest) != 32:
            raise Failed(INVALID, "no CID of a file: version 0, or 1 with raw or dag-pb, and sha2-256")

    def __str__(self) -> str:
        data = self.encode()
        return _base58(data) if self.version == 0 else "b" + base64.b32encode(data).decode().lower().rstrip("=")

    def encode(self) -> bytes:
        """Its binary form, as links carry it."""
        return (b"" if self.version == 0 else bytes((1, self.codec))) + _SHA2_256 + self.digest

    @staticmethod
    def decode(data: bytes) -> Cid:
        """From the binary form. Raises `Failed` CONTENT_INVALID."""
        if len(data) == 34 and data[:2] == _SHA2_256:
            return Cid(0, DAG_PB, data[2:])
        if len(data) == 36 and data[0] == 1 and data[2:4] == _SHA2_256:
            return Cid(1, data[1], data[4:])
        raise Failed(INVALID, "no CID of a file: version 0, or 1 with raw or dag-pb, and sha2-256")

    @staticmethod
    def parse(text: str) -> Cid:
        """From `Qm...` (base58) or `baf...` (base32, lower case), nothing else. Raises `Failed` CONTENT_INVALID."""
        data = b""
        if len(text) == _V0_CHARS and text.startswith("Qm"):
            data = _unbase58(text)
        elif len(text) == _V1_CHARS and text.startswith("b") and text.isascii() and text == text.lower():
            try:
                data = base64.b32decode(text[1:].upper() + "=" * 6)
            except ValueError:
                data = b""
        try:
            cid = Cid.decode(data)
        except Failed:
            cid = None
        if cid is None or str(cid) != text:
            raise Failed(INVALID, f"{text[:64]!r} is no CID of a file")
        return cid

    def names(self, block: bytes) -> bool:
        """Whether these are the bytes of this very block."""
        return sha2_256(block) == self.digest


def raw_cid(data: bytes) -> Cid:
    """The CID of a file that is one block."""
    return Cid(1, RAW, sha2_256(data))


def _base58(data: bytes) -> str:
    number, text = int.from_bytes(data, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = _BASE58[digit] + text
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + text


def _unbase58(text: str) -> bytes:
    number = 0
    for letter in text:
        if letter not in _DIGITS:
            return b""
        number = number * 58 + _DIGITS[letter]
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


# how a file is laid out in blocks


@dataclass(frozen=True, slots=True)
class Layout:
    """How Kubo's `add` cuts a file: CID version, leaves raw or in a UnixFS envelope, bytes of a chunk, links of a node."""

    version: int = 1
    raw_leaves: bool = True
    chunk: int = 256 * 1024
    width: int = 174


DEFAULT: Final = Layout()
"""`ipfs add --cid-version=1`: what this project publishes in."""
_KUBO = tuple(
    Layout(version, raw, chunk, width)
    for version in (0, 1)
    for raw in (False, True)
    for chunk, width in ((256 * 1024, 174), (1024 * 1024, 174), (1024 * 1024, 1024))
)
"""Those of Kubo's `add` with the options of its documented profiles: legacy-cid-v0, test-cid-v1, test-cid-v1-wide."""


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a file: its CID and bytes."""

    cid: Cid
    data: bytes


@dataclass(frozen=True, slots=True)
class _Placed:
    """A subtree as its parent's link names it: bytes of all its blocks, and bytes of the file below it."""

    cid: Cid
    total: int
    size: int


def blocks(data: bytes, layout: Layout = DEFAULT) -> Iterator[Block]:
    """The blocks of a file, children before parents: the last one is the root, whose CID is the file's."""
    level: list[_Placed] = []
    for start in range(0, max(1, len(data)), layout.chunk):
        chunk = data[start : start + layout.chunk]
        block = _leaf(chunk, layout)
        level.append(_Placed(block.cid, len(block.data), len(chunk)))
        yield block
    while len(level) > 1:
        above: list[_Placed] = []
        for start in range(0, len(level), layout.width):
            children = level[start : start + layout.width]
            links = b"".join(_link(child) for child in children)
            size = sum(child.size for child in children)
            node = links + _field(1, _unixfs(b"", size, [child.size for child in children]))
            cid = Cid(layout.version, DAG_PB, sha2_256(node))
            above.append(_Placed(cid, len(node) + sum(child.total for child in children), size))
            yield Block(cid, node)
        level = above


def cid_of(data: bytes, layout: Layout = DEFAULT) -> Cid:
    """The file's CID in this layout."""
    if layout.raw_leaves and len(data) <= layout.chunk:
        return raw_cid(data)
    *_, root = blocks(data, layout)
    return root.cid


def matches(cid: str | Cid, data: bytes) -> bool:
    """Whether the CID names this file, in any layout that Kubo makes by its defaults. False for what is no CID of a file."""
    return layout_of(cid, data) is not None


def layout_of(cid: str | Cid, data: bytes) -> Layout | None:
    """The layout in which the file has this CID: one of those that Kubo makes by its defaults, or one block. None where `matches`
    is false."""
    try:
        named = Cid.parse(cid) if isinstance(cid, str) else cid
    except Failed:
        return None
    if named.codec == RAW:
        return Layout(chunk=max(len(data), DEFAULT.chunk)) if named.names(data) else None
    shapes: set[tuple[bool, int, int]] = set()  # small files have the same tree in several layouts
    for layout in _KUBO:
        chunks = -(-len(data) // layout.chunk)
        shape = (layout.raw_leaves, layout.chunk if chunks > 1 else 0, layout.width if chunks > layout.width else 0)
        if layout.version != named.version or shape in shapes:
            continue
        shapes.add(shape)
        if cid_of(data, layout) == named:
            return layout
    return None


def _leaf(chunk: bytes, layout: Layout) -> Block:
    if layout.raw_leaves:
        return Block(raw_cid(chunk), chunk)
    node = _field(1, _unixfs(chunk, len(chunk), ()))
    return Block(Cid(layout.version, DAG_PB, sha2_256(node)), node)


def _link(child: _Placed) -> bytes:
    return _field(2, _field(1, child.cid.encode()) + _field(2, b"") + _number(3, child.total))


def _unixfs(data: bytes, size: int, sizes: list[int] | tuple[()]) -> bytes:
    """UnixFS's own message within a node. Kubo leaves out empty data and writes block sizes unpacked."""
    content = _field(2, data) if data else b""
    return _number(1, _FILE) + content + _number(3, size) + b"".join(_number(4, each) for each in sizes)


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
