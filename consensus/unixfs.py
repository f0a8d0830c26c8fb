"""Files put together from blocks that may be anybody's: what is needed next, and whether what came fits what was said of it.

A block that hashes to its CID can still lie: about sizes, depth, or by linking without end. Everything a block says is checked
against what its parent said of it, and what a whole file may take is fixed before the first block is fetched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from consensus.cid import INVALID, MAX_BLOCK_BYTES, RAW, Cid
from consensus.errors import Failed, Reject

TOO_LARGE: Final = "CONTENT_TOO_LARGE"
WRONG_BYTES: Final = "WRONG_BYTES"
MAX_DEPTH: Final = 8  # levels of one file; Kubo's third ends at 7.9 GB
SMALLEST_CHUNK: Final = 4096
"""What the chunks of a file must have on average for its blocks to be fetched: Kubo's have 64 times as much."""
SPARE_BLOCKS: Final = 32  # of any file, beside those for its chunks
MAX_FIELDS: Final = 4096
"""Of a node, and of its UnixFS data: four times the links of Kubo's widest nodes. A block has room for half a million, which
would take most of a second to read."""

_LINK_FIELDS = 3  # CID, name, cumulative size
_VARINT_BYTES = 9  # 63 bits, the limit of the unsigned-varint specification
_VARINT, _BYTES = 0, 2  # protobuf's wire types; UnixFS files have no others
_RAW_NODE, _FILE = 0, 2  # UnixFS's DataType; directories (1), metadata, symlinks and HAMT shards are no files


@dataclass(frozen=True, slots=True)
class Link:
    """A child as its parent names it: its CID, and the bytes of the file below it."""

    cid: Cid
    size: int


@dataclass(frozen=True, slots=True)
class Node:
    """A UnixFS file, or a part of one: its own bytes come before those of its children."""

    data: bytes
    links: tuple[Link, ...]

    @property
    def size(self) -> int:
        """Bytes of the file at and below it, by its own word."""
        return len(self.data) + sum(link.size for link in self.links)


def decode_node(block: bytes) -> Node:
    """The UnixFS file node in a dag-pb block. Raises `Failed` CONTENT_INVALID for other types, and malformed bytes."""
    said: bytes | None = None
    children: list[Cid] = []
    for number, value in _fields(block, MAX_FIELDS):
        if number == 2 and isinstance(value, bytes):
            children.append(_linked(value))
        elif number == 1 and isinstance(value, bytes) and said is None:
            said = value
        else:
            raise _invalid(f"dag-pb field {number}")
    if said is None:
        raise _invalid("a node without UnixFS data")
    data, size, sizes = _unixfs(said)
    if len(sizes) != len(children):
        raise _invalid(f"{len(sizes)} block sizes for {len(children)} links")
    if not all(sizes):
        raise _invalid("a link to nothing")
    node = Node(data, tuple(Link(cid, each) for cid, each in zip(children, sizes, strict=True)))
    if size is not None and size != node.size:
        raise _invalid(f"a file of {size} bytes in blocks of {node.size}")
    return node


class Assembly:
    """One file in the making. Ask for `wanted`, `take` its block, until nothing is wanted; then `content` is the file.

    Blocks come in the file's order. Bounded whatever they say: at most `max_bytes` of content, `MAX_DEPTH` levels, a number of
    blocks that goes with `max_bytes`; and a hash cannot be part of what it hashes, so no tree contains itself.
    """

    def __init__(self, root: Cid, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._room = SPARE_BLOCKS + max_bytes // SMALLEST_CHUNK
        """Blocks that may still be asked for."""
        self._ahead: list[tuple[Cid, int | None, int]] = [(root, None, 1)]
        """CID, bytes of the file that its parent announced, level; the next one last."""
        self._content = bytearray()
        self.taken: list[bytes] = []
        """Digests of the blocks that made it so far, each once."""

    @property
    def wanted(self) -> Cid | None:
        """The block that is needed next; None when the file is complete."""
        return self._ahead[-1][0] if self._ahead else None

    @property
    def content(self) -> bytes:
        return bytes(self._content)

    def take(self, block: bytes) -> None:
        """The wanted block. Raises `Reject` WRONG_BYTES when it is another (and still wants it), `Failed` CONTENT_TOO_LARGE or
        CONTENT_INVALID when no file within the bounds comes of it."""
        cid, announced, level = self._ahead[-1]
        if len(block) > MAX_BLOCK_BYTES:
            raise Failed(TOO_LARGE, f"a block of {len(block)} bytes, at most {MAX_BLOCK_BYTES}")
        if not cid.names(block):
            raise Reject(WRONG_BYTES, f"not the bytes of {cid}")
        node = Node(block, ()) if cid.codec == RAW else decode_node(block)
        if announced is not None and node.size != announced:
            raise _invalid(f"a part of {node.size} bytes, announced as {announced}")
        if announced is None and node.size > self._max_bytes:
            raise Failed(TOO_LARGE, f"{node.size} bytes, at most {self._max_bytes}")
        if node.links and level == MAX_DEPTH:
            raise _invalid(f"more than {MAX_DEPTH} levels")
        self._room -= len(node.links)
        if self._room < 0:
            raise _invalid("cut into too many blocks")
        self._ahead.pop()
        self._content += node.data
        self._ahead.extend((link.cid, link.size, level + 1) for link in reversed(node.links))
        if cid.digest not in self.taken:
            self.taken.append(cid.digest)


def _linked(link: bytes) -> Cid:
    """The CID of a dag-pb link; its name and its cumulative size (a hint, and nobody's promise) are read and not used."""
    cid: Cid | None = None
    for number, value in _fields(link, _LINK_FIELDS):
        if number == 1 and isinstance(value, bytes) and cid is None:
            cid = Cid.decode(value)
        elif not (number == 2 and isinstance(value, bytes)) and not (number == 3 and isinstance(value, int)):
            raise _invalid(f"field {number} of a link")
    if cid is None:
        raise _invalid("a link to nowhere")
    return cid


def _unixfs(message: bytes) -> tuple[bytes, int | None, list[int]]:
    """Data, file size (None when it is not said) and block sizes. Mode and time (7, 8) are no part of the content."""
    kind: int | None = None
    data: bytes | None = None
    size: int | None = None
    sizes: list[int] = []
    for number, value in _fields(message, MAX_FIELDS):
        match number, value:
            case 1, int() if kind is None:
                kind = value
            case 2, bytes() if data is None:
                data = value
            case 3, int() if size is None:
                size = value
            case 4, int():
                sizes.append(value)
            case (7, int()) | (8, bytes()):
                pass
            case _:
                raise _invalid(f"UnixFS field {number}")
    if kind not in (_RAW_NODE, _FILE):
        raise _invalid("a directory, link or shard, no file")
    return data or b"", size, sizes


def _fields(message: bytes, most: int) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message, in order, and at most so many of them."""
    at = count = 0
    while at < len(message):
        count += 1
        if count > most:
            raise _invalid(f"more than {most} fields")
        tag, at = _varint(message, at)
        value, at = _varint(message, at)
        if tag & 7 == _VARINT:
            yield tag >> 3, value
        elif tag & 7 == _BYTES and value <= len(message) - at:
            yield tag >> 3, message[at : at + value]
            at += value
        else:
            raise _invalid("malformed protobuf")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index in range(_VARINT_BYTES):
        if at + index >= len(message):
            break
        byte = message[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if byte == 0 and index:
                break  # not minimally encoded
            return value, at + index + 1
    raise _invalid("malformed protobuf")


def _invalid(why: str) -> Failed:
    return Failed(INVALID, why)
