"""What a connection withstands whose peer knows Yamux and does not keep to it."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from libp2p.stream_muxer.yamux.yamux import (
    FLAG_ACK,
    FLAG_FIN,
    FLAG_RST,
    FLAG_SYN,
    TYPE_DATA,
    TYPE_GO_AWAY,
    TYPE_PING,
    TYPE_WINDOW_UPDATE,
    YAMUX_HEADER_FORMAT,
)

from p2p import muxer
from p2p.framing import frame
from p2p.muxer import FRAME_BYTES, INBOUND_STREAMS, REPLIES, LeanYamux
from p2p.network import PeerId
from p2p.streams import MULTISTREAM
from tests.p2p.conftest import ECHO, libp2p_mesh, until
from tests.p2p.hostile import Hostile, hostile

HELLO = frame(MULTISTREAM) + frame(ECHO.protocol.encode() + b"\n")


def header(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    return struct.pack(YAMUX_HEADER_FORMAT, 0, kind, flags, stream_id, length)


def connection(peer: Hostile) -> LeanYamux:
    muxed = peer.host.get_network().get_connections(peer.victim)[0].muxed_conn
    assert isinstance(muxed, LeanYamux)
    return muxed


async def never(_message: str, _source: PeerId) -> str:
    await trio.sleep_forever()
    raise AssertionError


async def echo(message: str, _source: PeerId) -> str:
    return message


@pytest.mark.parametrize(
    "frames",
    [
        header(9, 0, 1, 0),
        header(TYPE_DATA, FLAG_SYN, 2, 0),
        header(TYPE_DATA, FLAG_SYN, 0, 0),
        header(TYPE_DATA, FLAG_SYN, 1001, 0) * 2,
        header(TYPE_DATA, 0, 1, FRAME_BYTES + 1),
        header(TYPE_DATA, 0, 1, 2**32 - 1),
        header(TYPE_PING, FLAG_SYN, 0, 7) * (REPLIES + 1),
        header(TYPE_GO_AWAY, 0, 0, 0),
        (header(TYPE_DATA, FLAG_SYN, 1001, FRAME_BYTES) + b"x" * FRAME_BYTES + header(TYPE_DATA, 0, 1001, 1) + b"x"),
    ],
    ids=[
        "a type that is none",
        "a stream of ours",
        "the stream zero",
        "a stream opened twice",
        "a frame too large",
        "a frame far too large",
        "pings without end",
        "a goodbye",
        "beyond the window at once",
    ],
)
async def test_whoever_breaks_the_rules_loses_his_connection_and_nobody_else_does(tmp_path: Path, frames: bytes) -> None:
    async with libp2p_mesh(tmp_path, 2) as (victim, friend), victim.serve(ECHO, never), hostile(victim) as peer:
        with suppress(Exception):
            await connection(peer)._write_frame(frames)
        await until(lambda: peer.peer_id not in victim.connected())
        assert friend.connected() == {victim.peer_id}


async def test_data_beyond_the_window_ends_the_connection(tmp_path: Path) -> None:
    async with libp2p_mesh(tmp_path, 2) as (victim, friend), victim.serve(ECHO, never), hostile(victim) as peer:
        stream = await peer.stream()
        await stream.write(HELLO + frame(b"hold"))
        stream.muxed_stream.send_window = 2**32  # type: ignore[attr-defined]  # it does not keep to its credit
        with suppress(Exception):
            for _ in range(64):
                await stream.write(b"x" * 60_000)
        await until(lambda: not peer.connected)
        assert friend.connected() == {victim.peer_id}


async def test_frames_for_streams_that_are_long_gone_are_passed_over(tmp_path: Path) -> None:
    async with libp2p_mesh(tmp_path, 1) as (victim,), victim.serve(ECHO, echo), hostile(victim) as peer:
        for flags in (0, FLAG_ACK, FLAG_FIN, FLAG_RST):
            await connection(peer)._write_frame(
                header(TYPE_DATA, flags, 99, 3) + b"old" + header(TYPE_WINDOW_UPDATE, flags, 99, 5)
            )
        stream = await peer.stream()
        await stream.write(HELLO + frame(b"still here"))
        with trio.fail_after(5):
            received = b""
            while not received.endswith(b"still here"):
                received += await stream.read(1000)


async def test_streams_that_ended_do_not_use_up_the_places_for_new_ones(tmp_path: Path) -> None:
    async with libp2p_mesh(tmp_path, 2) as (asker, server), server.serve(ECHO, echo):
        with trio.fail_after(10):
            for number in range(3 * INBOUND_STREAMS):
                assert await asker.request(server.peer_id, ECHO, str(number)) == str(number)
        await until(lambda: all(len(streams(network)) <= 2 for network in (asker, server)))  # the two gossip streams


def streams(network: object) -> dict[int, object]:
    (held,) = network._host.get_network().get_connections()  # type: ignore[attr-defined]
    return held.muxed_conn.streams  # type: ignore[no-any-return]


async def test_a_peer_that_falls_silent_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muxer, "PING_SECONDS", 0.05)
    monkeypatch.setattr(muxer, "SILENCE_SECONDS", 0.5)
    async with libp2p_mesh(tmp_path, 2) as (victim, friend), hostile(victim) as peer:
        await until(lambda: peer.peer_id in victim.connected())
        connection(peer)._reply = lambda *_frame: None  # type: ignore[method-assign]  # as if its power had failed
        await until(lambda: peer.peer_id not in victim.connected())
        assert friend.connected() == {victim.peer_id}
