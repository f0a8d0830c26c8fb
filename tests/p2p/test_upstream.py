"""Pins what we override, patch or read of py-libp2p's insides: an upgrade that moves any of it fails here first, by name.

Where upstream's fault can be shown cheaply it is shown, so that we hear of its repair.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import logging

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.host.basic_host import BasicHost
from libp2p.network.connection import swarm_connection
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.pubsub import pubsub as upstream_pubsub
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.pubsub.validators import signature_validator
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream
from libp2p.transport.tcp import tcp
from libp2p.transport.tcp.tcp import TCP
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from p2p import gossip, muxer, router, upstream
from p2p.upstream import GuardedSwarm, build_host


def test_the_version_is_the_one_that_was_read() -> None:
    assert importlib.metadata.version("libp2p") == "0.8.1"


@pytest.mark.parametrize(
    ("ours", "theirs", "ours_alone"),
    [
        (
            gossip.Gossip,
            Pubsub,
            {"subscribe_to", "publish_to", "_signed", "_handle", "_pace", "_receive", "_judge", "_blame", "_count_lie"},
        ),
        (router.Router, GossipSub, {"outbox", "spread"}),
        (router.Outbox, RpcQueue, {"push_frame", "may_replay", "take"}),
        (upstream.GuardedSwarm, Swarm, set()),
        (upstream.BufferedTransport, TCP, set()),
        (upstream.LeanUpgrader, TransportUpgrader, set()),
        (muxer.LeanStream, YamuxStream, {"_release"}),
        (
            muxer.LeanYamux,
            Yamux,
            {"_read_frames", "_frame", "_open_inbound", "_reply", "_send_replies", "_to_stream", "_add", "_wake_writers"},
        ),
    ],
)
def test_every_method_we_override_exists_upstream_and_takes_the_same_arguments(
    ours: type, theirs: type, ours_alone: set[str]
) -> None:
    for name, method in vars(ours).items():
        if not inspect.isfunction(method) or name in ("__init__", "__len__"):
            continue
        if name in ours_alone:
            assert not hasattr(theirs, name), f"{theirs.__name__} has a {name} of its own now"
            continue
        original = getattr(theirs, name)
        wanted = [p for p in inspect.signature(original).parameters.values() if p.default is p.empty]
        taken = inspect.signature(method).parameters
        assert inspect.iscoroutinefunction(method) == inspect.iscoroutinefunction(original), name
        assert all(parameter.name in taken for parameter in wanted), name


async def test_the_private_attributes_we_use_are_there() -> None:
    host = build_host(create_new_key_pair(), max_connections=4, announce=None)
    swarm = host.get_network()
    assert isinstance(swarm, GuardedSwarm)
    for name in ("auto_connector", "connections", "listeners", "unblock_peer", "dial_addr", "_notify"):
        assert hasattr(swarm, name), name
    assert hasattr(swarm.auto_connector, "maybe_connect")
    pubsub = Pubsub(host, router.Router(router.GossipConfig()))
    pubsub.seen_messages.stop()
    for name in (
        "counter",
        "sign_key",
        "peers",
        "peer_queues",
        "peer_topics",
        "topic_ids",
        "_next_seqno",
        "_handle_dead_peer",
        "_send_recent_messages_to_new_peer",
    ):
        assert hasattr(pubsub, name), name
    for name in ("mesh", "mcache", "scorer", "_push_control_retry", "select_from_minus"):
        assert hasattr(pubsub.router, name), name
    assert isinstance(host.multiselect.handlers, dict)


def test_the_streams_insides_are_where_the_muxer_expects_them() -> None:
    source = inspect.getsource(Yamux.__init__)
    for name in (
        "streams",
        "stream_buffers",
        "stream_events",
        "stream_backlog_semaphore",
        "next_stream_id",
        "_write_lock",
        "_ping_id",
        "new_stream_send_channel",
        "event_shutting_down",
    ):
        assert f"self.{name}" in source, name
    stream = inspect.getsource(YamuxStream.__init__)
    for name in ("send_window", "recv_window", "send_closed", "recv_closed", "reset_received", "_owns_backlog_slot"):
        assert f"self.{name}" in stream, name
    start = inspect.getsource(Yamux.start)
    assert "_measure_rtt_loop" in start
    assert "_handle_incoming_with_ready_signal" in start


def test_upstream_still_raises_on_an_unparsable_key() -> None:
    message = rpc_pb2.Message(from_id=b"\x12\x20" + b"\x01" * 32, seqno=b"1", signature=b"x", key=b"\xff")
    with pytest.raises(Exception):  # noqa: B017 - which one is chance; that it leaves the validator kills the node
        signature_validator(message)


def test_upstream_still_counts_from_the_second_and_drops_beyond_32() -> None:
    assert "self.counter = int(time.time())" in inspect.getsource(Pubsub.__init__)
    assert upstream_pubsub.SUBSCRIPTION_CHANNEL_SIZE == 32
    assert inspect.signature(RpcQueue.__init__).parameters["max_size"].default == 32


def test_upstream_still_marks_a_message_seen_only_after_it_was_validated() -> None:
    source = inspect.getsource(Pubsub.push_msg)
    assert source.index("await self.validate_msg") < source.index("self._mark_msg_seen(msg)")


def test_upstream_still_keeps_inbound_slots_until_the_swarm_ends() -> None:
    source = inspect.getsource(Swarm._do_handle_inbound_connection)
    assert source.index("upgrade_inbound_raw_conn") < source.rindex("await self.manager.wait_finished()")


def test_upstream_still_shares_a_busy_port() -> None:
    assert "SO_REUSEPORT" in inspect.getsource(tcp._set_reuse_flags)


def test_upstreams_stream_handler_still_lets_errors_out() -> None:
    source = inspect.getsource(BasicHost._swarm_stream_handler)
    assert "except MultiselectError" in source
    assert "except Exception" not in source


async def test_a_message_pushed_by_upstream_code_finds_no_way_around_our_rules() -> None:
    host = build_host(create_new_key_pair(), max_connections=4, announce=None)
    plain = Pubsub(host, router.Router(router.GossipConfig()))
    plain.seen_messages.stop()
    # The only callers of push_msg are publish, which we do not use, and the reader, which we replace.
    callers = [name for name, method in vars(Pubsub).items() if callable(method) and "self.push_msg" in inspect.getsource(method)]
    assert sorted(callers) == ["continuously_read_stream", "publish"]


async def test_upstream_says_nothing_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    upstream.quiet()
    host = build_host(create_new_key_pair(), max_connections=4, announce=None)
    async with host.run([]):
        with pytest.raises(SwarmException):
            await upstream.dial(host, ID.from_pubkey(create_new_key_pair().public_key), Multiaddr("/ip4/127.0.0.1/tcp/1"))
    swarm_connection.logging.warning("a connection closed")
    await trio.lowlevel.checkpoint()
    assert logging.getLogger("libp2p").level == logging.CRITICAL
    assert capfd.readouterr() == ("", "")
