"""What direct streams over real libp2p withstand."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.network.stream.exceptions import StreamError

from consensus.errors import Reject, Transient
from p2p.framing import frame, uvarint
from p2p.host import HostConfig, open_network
from p2p.limits import Rate
from p2p.muxer import INBOUND_STREAMS
from p2p.network import Exchange, PeerId
from p2p.streams import MULTISTREAM, STREAMS_PER_PEER, StreamLimits
from tests.p2p.conftest import ECHO, LOOPBACK, libp2p_mesh, until
from tests.p2p.hostile import hostile

NAME = ECHO.protocol.encode() + b"\n"
HELLO = frame(MULTISTREAM) + frame(NAME)


async def echo(message: str, _source: PeerId) -> str:
    return message


async def read_all(stream: INetStream) -> bytes:
    """What comes until the other side ends or resets the stream."""
    received = b""
    with trio.fail_after(5), suppress(StreamError):
        while data := await stream.read(65536):
            received += data
    return received


async def test_the_frames_on_the_wire_are_those_of_js_libp2p(tmp_path: Path) -> None:
    async with libp2p_mesh(tmp_path, 1) as (victim,), victim.serve(ECHO, echo), hostile(victim) as peer:
        stream = await peer.stream()
        await stream.write(HELLO + b"\xac\x02" + b"x" * 300)
        assert await read_all(stream) == HELLO + b"\xac\x02" + b"x" * 300


@pytest.mark.parametrize(
    "request_bytes",
    [
        uvarint(ECHO.max_request_bytes + 1) + b"x",
        uvarint(2**62) + b"x",
        b"\xff" * 10,
        frame(b"\xff\xfe"),
    ],
    ids=["over the limit", "far over the limit", "an endless length", "undecodable"],
)
async def test_a_malformed_request_is_blamed_and_costs_its_stream_and_nothing_else(tmp_path: Path, request_bytes: bytes) -> None:
    async with libp2p_mesh(tmp_path, 1) as (victim,), victim.serve(ECHO, echo), hostile(victim) as peer:
        stream = await peer.stream()
        await stream.write(HELLO + request_bytes)
        assert await read_all(stream) == HELLO
        assert sum(victim.counters.rejected.values()) == 1
        good = await peer.stream()
        await good.write(HELLO + frame(b"fine"))
        assert await read_all(good) == HELLO + frame(b"fine")


@pytest.mark.parametrize(
    "opening",
    [b"\xff\xff\xff\xff\x7f", frame(b"\xff\xfe\n"), frame(b"/no/such/1\n") * 20, frame(MULTISTREAM) + frame(b"\xff\xfe\n") * 20],
    ids=["an endless line", "not multistream", "no name at all", "names that are not text"],
)
async def test_a_stream_that_agrees_on_nothing_is_closed(tmp_path: Path, opening: bytes) -> None:
    async with libp2p_mesh(tmp_path, 1) as (victim,), victim.serve(ECHO, echo), hostile(victim) as peer:
        stream = await peer.stream()
        await stream.write(opening)
        await read_all(stream)
        good = await peer.stream()
        await good.write(HELLO + frame(b"fine"))
        assert await read_all(good) == HELLO + frame(b"fine")


@pytest.mark.parametrize("said", [b"", frame(MULTISTREAM), HELLO, HELLO + uvarint(100) + b"half"])
async def test_a_stream_that_dawdles_is_closed(tmp_path: Path, said: bytes) -> None:
    hasty = HostConfig(tmp_path / "key", listen=(LOOPBACK,), streams=StreamLimits(negotiate=0.05, read=0.05))
    async with open_network(hasty) as victim, victim.serve(ECHO, echo), hostile(victim) as peer:
        stream = await peer.stream()
        if said:
            await stream.write(said)
        assert HELLO.startswith(await read_all(stream))


async def test_a_handler_that_takes_too_long_hangs_up(tmp_path: Path) -> None:
    async def never(_message: str, _source: PeerId) -> str:
        await trio.sleep_forever()
        raise AssertionError

    hasty = HostConfig(tmp_path / "key", listen=(LOOPBACK,), streams=StreamLimits(handle=0.05))
    async with open_network(hasty) as victim, victim.serve(ECHO, never), hostile(victim) as peer:
        stream = await peer.stream()
        await stream.write(HELLO + frame(b"wait"))
        assert await read_all(stream) == HELLO


async def test_one_peer_cannot_hold_more_than_its_streams_and_others_are_served(tmp_path: Path) -> None:
    waiting = 0

    async def wait(message: str, _source: PeerId) -> str:
        nonlocal waiting
        waiting += 1
        if message == "hold":
            await trio.sleep_forever()
        return message

    async with libp2p_mesh(tmp_path, 2) as (victim, friend), victim.serve(ECHO, wait), hostile(victim) as peer:
        for _ in range(INBOUND_STREAMS + 10):
            stream = await peer.stream()
            with suppress(StreamError):
                await stream.write(HELLO + frame(b"hold"))
        await until(lambda: victim.counters.refused_streams > 0)
        with trio.fail_after(5):
            assert await friend.request(victim.peer_id, ECHO, "me too") == "me too"
        assert waiting <= STREAMS_PER_PEER + 1


async def test_a_liars_answer_is_blamed_on_it(tmp_path: Path) -> None:
    async def answer(_message: str, _source: PeerId) -> str:
        return "fine"

    def refuse(_data: bytes) -> str:
        raise Reject("NOT_AN_ANSWER")

    strict: Exchange[str, str] = Exchange(
        ECHO.protocol, str.encode, ECHO.decode_request, str.encode, refuse, max_request_bytes=64, max_answer_bytes=64
    )
    async with libp2p_mesh(tmp_path, 2) as (asker, liar), liar.serve(ECHO, answer):
        for _ in range(3):
            with trio.fail_after(5), pytest.raises(Reject, match="NOT_AN_ANSWER"):
                await asker.request(liar.peer_id, strict, "?")
        await until(lambda: liar.peer_id not in asker.connected())
        assert asker.counters.cut_off == 1
        with pytest.raises(Transient, match="PEER_CUT_OFF"):
            await asker.request(liar.peer_id, strict, "?")


async def test_a_request_to_a_peer_that_has_left_says_so_soon(tmp_path: Path) -> None:
    async with libp2p_mesh(tmp_path, 1) as (asker,):
        other = HostConfig(tmp_path / "other", listen=(LOOPBACK,), bootstrap=asker.addresses)
        async with open_network(other) as leaver, leaver.serve(ECHO, echo):
            await until(lambda: bool(asker.connected()))
            with trio.fail_after(5):
                assert await asker.request(leaver.peer_id, ECHO, "here?") == "here?"
        with trio.fail_after(5), pytest.raises(Transient):
            await asker.request(leaver.peer_id, ECHO, "still here?")


async def test_large_frames_pass_in_both_directions_at_once(tmp_path: Path) -> None:
    big: Exchange[bytes, bytes] = Exchange(
        "/test/1/big", bytes, bytes, bytes, bytes, max_request_bytes=2**20, max_answer_bytes=2**20
    )

    async def reverse(message: bytes, _source: PeerId) -> bytes:
        return message[::-1]

    message = bytes(range(256)) * 3000  # three windows

    async with libp2p_mesh(tmp_path, 2) as (a, b), a.serve(big, reverse), b.serve(big, reverse), trio.open_nursery() as nursery:

        async def ask(who: object, whom: str) -> None:
            assert await who.request(whom, big, message) == message[::-1]  # type: ignore[attr-defined]

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(ask, a, b.peer_id)
                    nursery.start_soon(ask, b, a.peer_id)


async def test_a_peer_that_opens_streams_without_end_is_slowed_and_nobody_else(tmp_path: Path) -> None:
    slow = StreamLimits(per_peer=Rate(per_second=0.01, burst=10))
    config = HostConfig(tmp_path / "key", listen=(LOOPBACK,), streams=slow)
    async with open_network(config) as victim, victim.serve(ECHO, echo), hostile(victim) as peer:
        answered = 0
        for _ in range(15):
            stream = await peer.stream()
            with suppress(StreamError):
                await stream.write(HELLO + frame(b"x"))
            answered += await read_all(stream) == HELLO + frame(b"x")
        assert 0 < answered <= 10
        assert victim.counters.refused_streams >= 5
        async with open_network(HostConfig(tmp_path / "other", bootstrap=victim.addresses, listen=(LOOPBACK,))) as other:
            await until(lambda: victim.peer_id in other.connected())
            assert await other.request(victim.peer_id, ECHO, "fine") == "fine"
