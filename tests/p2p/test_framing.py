"""Frames: whatever is cut into whatever pieces comes out as it went in, and nothing else comes out at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p.framing import BrokenFrame, EndOfStream, FrameReader, frame, read_exact_frame, uvarint


class Pieces:
    """A stream that hands out its bytes in pieces of the given sizes, over and over."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self.data = data
        self.sizes = sizes
        self.reads = 0

    async def read(self, limit: int) -> bytes:
        size = min(limit, self.sizes[self.reads % len(self.sizes)])
        self.reads += 1
        piece, self.data = self.data[:size], self.data[size:]
        return piece


SIZES = st.lists(st.integers(1, 300), min_size=1, max_size=5)


def drive(coroutine: object) -> object:
    """Runs a coroutine that never waits."""
    try:
        coroutine.send(None)  # type: ignore[attr-defined]
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waited")


@given(st.lists(st.binary(max_size=400), max_size=6), SIZES)
def test_frames_come_out_as_they_went_in_however_they_were_cut(payloads: list[bytes], sizes: list[int]) -> None:
    stream = Pieces(b"".join(map(frame, payloads)), sizes)
    reader = FrameReader(stream.read)
    assert [drive(reader.next(400)) for _ in payloads] == payloads
    with pytest.raises(EndOfStream):
        drive(reader.next(400))


@given(st.binary(max_size=200), SIZES)
def test_any_bytes_give_frames_within_the_limit_or_a_broken_frame_or_the_end(data: bytes, sizes: list[int]) -> None:
    stream = Pieces(data, sizes)
    reader = FrameReader(stream.read)
    given_back = b""
    try:
        while True:
            payload = drive(reader.next(50))
            assert isinstance(payload, bytes)
            assert len(payload) <= 50
            given_back += frame(payload)
    except EndOfStream:
        assert given_back == data
    except BrokenFrame:
        assert data.startswith(given_back)


@given(st.binary(max_size=100), st.binary(max_size=100), SIZES)
def test_an_exact_reader_leaves_the_rest_to_the_next(payload: bytes, rest: bytes, sizes: list[int]) -> None:
    stream = Pieces(frame(payload) + rest, sizes)
    assert drive(read_exact_frame(stream.read, 100)) == payload
    assert stream.data == rest


def test_the_limit_is_checked_before_the_body_is_read() -> None:
    stream = Pieces(uvarint(2**40) + b"x" * 10_000, [8])
    with pytest.raises(BrokenFrame, match="at most 1000"):
        drive(FrameReader(stream.read).next(1000))
    assert stream.reads == 1
    with pytest.raises(BrokenFrame, match="at most 1000"):
        drive(read_exact_frame(Pieces(uvarint(2**40) + b"x" * 10_000, [8]).read, 1000))


@pytest.mark.parametrize(
    ("value", "encoded"), [(0, b"\x00"), (1, b"\x01"), (127, b"\x7f"), (128, b"\x80\x01"), (300, b"\xac\x02")]
)
def test_lengths_are_encoded_as_the_multiformats_specification_has_them(value: int, encoded: bytes) -> None:
    assert uvarint(value) == encoded


@pytest.mark.parametrize("data", [b"\x80\x00", b"\x80" * 10, b"\xff" * 9 + b"\x01", b"\x05abc", b"\x80"])
def test_what_is_no_length_or_ends_too_soon_is_broken(data: bytes) -> None:
    with pytest.raises(BrokenFrame):
        drive(FrameReader(Pieces(data, [100]).read).next(1000))
