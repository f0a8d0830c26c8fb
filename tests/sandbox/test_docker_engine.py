"""What comes from a container is read as if its program had written it."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from typing import Any, cast

import pytest
import trio
from aiodocker.stream import Message
from hypothesis import given
from hypothesis import strategies as st

from node.sandbox.docker_engine import Answer, Attached, Gone

MOST = 1000


class Stream:
    """Brings `pieces` on stdout, and then nothing more."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)

    async def read_out(self) -> Message | None:
        await trio.lowlevel.checkpoint()
        return Message(1, self._pieces.pop(0)) if self._pieces else None


def heard(*pieces: bytes) -> Answer:
    return trio.run(Attached(cast(Any, Stream(*pieces))).hear, MOST)


def said(head: dict[str, Any], *bodies: bytes) -> bytes:
    text = json.dumps(head).encode()
    return struct.pack(">I", len(text)) + text + b"".join(bodies)


@given(st.lists(st.integers(1, 50), max_size=20))
def test_an_answer_is_the_same_in_whatever_pieces_it_comes(sizes: list[int]):
    whole = said({"end": "exit", "exit": 3, "stdout": 5, "stderr": 3, "cpu_ms": 7}, b"hello", b"bad")
    pieces = []
    for size in sizes:
        pieces.append(whole[:size])
        whole = whole[size:]
    answer = heard(*[piece for piece in [*pieces, whole] if piece])
    assert (answer.stdout, answer.stderr, answer.head.exit, answer.head.cpu_ms) == (b"hello", b"bad", 3, 7)


@pytest.mark.parametrize(
    "head",
    [
        {"stdout": MOST + 1},
        {"stdout": -1},
        {"stderr": 2**50},
        {"stdout": "5"},
        {"exit": 1e300},
        {"cpu_ms": -5},
        {"peak": 2**70},
        {"end": "well"},
        {"has": 1},
    ],
)
def test_an_answer_out_of_bounds_is_none(head: dict[str, Any]):
    with pytest.raises(Gone):
        heard(said(head, b"x" * 5000))


def test_an_answer_that_nests_deep_is_none():
    text = b"[" * 60_000
    with pytest.raises(Gone):
        heard(struct.pack(">I", len(text)) + text)


def test_an_answer_longer_than_any_is_not_waited_for():
    with pytest.raises(Gone, match="announces"):
        heard(b"\xff\xff\xff\xff")


@given(st.binary(max_size=200))
def test_whatever_comes_is_an_answer_or_none(data: bytes):
    with suppress(Gone):
        heard(data)
