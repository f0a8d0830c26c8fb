"""What the mesh withstands: control messages, joining and leaving, peers that do not read."""

from __future__ import annotations

from pathlib import Path

import trio
from libp2p.abc import INetStream
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11
from libp2p.pubsub.pb import rpc_pb2

from p2p.framing import frame
from p2p.router import OUTBOX_FRAMES
from tests.p2p.conftest import OTHER, TEXT, accept, libp2p_mesh, until
from tests.p2p.hostile import Hostile, hostile, rpc


def joining(topic: str = TEXT.name, *, leave: bool = False) -> bytes:
    change = rpc_pb2.RPC.SubOpts(subscribe=not leave, topicid=topic)
    return frame(rpc_pb2.RPC(subscriptions=[change]).SerializeToString())


def control(**entries: list[object]) -> bytes:
    return frame(rpc_pb2.RPC(control=rpc_pb2.ControlMessage(**entries)).SerializeToString())  # type: ignore[arg-type]


def published(peer: Hostile) -> list[bytes]:
    return [message.data for rpc in peer.heard for message in rpc.publish]


async def test_a_message_that_was_missed_is_asked_for_and_one_that_is_asked_for_is_sent_again(tmp_path: Path) -> None:
    async with (
        libp2p_mesh(tmp_path, 1) as (victim,),
        victim.subscribe(TEXT, accept, capacity=8) as channel,
        hostile(victim) as peer,
    ):
        stream = await peer.gossip_stream()
        await stream.write(joining())
        await until(lambda: bool(victim.topic_peers(TEXT)))
        unseen = peer.signed(TEXT.name, b"you missed this")
        wanted = unseen.from_id + unseen.seqno
        await stream.write(control(ihave=[rpc_pb2.ControlIHave(topicID=TEXT.name, messageIDs=[wanted])]))
        await until(lambda: any(wanted in ask.messageIDs for rpc in peer.heard for ask in rpc.control.iwant))
        await stream.write(rpc(unseen))
        with trio.fail_after(5):
            assert (await channel.receive()).message == "you missed this"
        await victim.publish(TEXT, "I missed this")
        await until(lambda: published(peer) == [b"I missed this"])
        message = next(message for rpc in peer.heard for message in rpc.publish)
        await stream.write(control(iwant=[rpc_pb2.ControlIWant(messageIDs=[message.from_id + message.seqno])]))
        await until(lambda: published(peer) == [b"I missed this"] * 2)


async def test_whoever_joins_and_leaves_in_a_circle_is_not_sent_everything_each_time(tmp_path: Path) -> None:
    async with libp2p_mesh(tmp_path, 1) as (victim,), hostile(victim) as peer:
        await victim.publish(TEXT, "recent")
        stream = await peer.gossip_stream()
        for _ in range(50):
            await stream.write(joining())
            await stream.write(joining(leave=True))
        await stream.write(joining(OTHER.name))
        await until(lambda: bool(victim.topic_peers(OTHER)))
        await victim.publish(OTHER, "end")
        await until(lambda: published(peer)[-1:] == [b"end"])
        assert published(peer) == [b"recent", b"end"]


async def test_control_messages_about_topics_that_are_not_ours_leave_no_trace(tmp_path: Path) -> None:
    async with (
        libp2p_mesh(tmp_path, 1) as (victim,),
        victim.subscribe(TEXT, accept, capacity=8) as channel,
        hostile(victim) as peer,
    ):
        stream = await peer.gossip_stream()
        names = [f"/junk/{number}" for number in range(200)]
        await stream.write(
            control(
                graft=[rpc_pb2.ControlGraft(topicID=name) for name in names],
                prune=[rpc_pb2.ControlPrune(topicID=name, backoff=2**40) for name in names],
                ihave=[rpc_pb2.ControlIHave(topicID=name, messageIDs=[b"x" * 40]) for name in names],
                iwant=[rpc_pb2.ControlIWant(messageIDs=[b"\xff" * 40, b"0"])],
            )
        )
        for name in names:
            await stream.write(joining(name))
        await stream.write(rpc(peer.signed(TEXT.name, b"end")))
        with trio.fail_after(5):
            assert (await channel.receive()).message == "end"
        router = victim._gossip.mesh
        assert set(router.mesh) == {TEXT.name}
        assert set(router.back_off) <= {TEXT.name}
        peer_id = ID.from_base58(peer.peer_id)
        assert not router.graft_flood_tracking[peer_id]
        assert not router.ihave_message_limits[peer_id]
        assert len(victim._gossip.peer_topics) <= 64


async def test_a_peer_that_reads_nothing_costs_a_bounded_queue_and_delays_nobody(tmp_path: Path) -> None:
    async with (
        libp2p_mesh(tmp_path, 2) as (victim, friend),
        friend.subscribe(TEXT, accept, capacity=2000) as channel,
        hostile(victim) as deaf,
    ):

        async def stare(_stream: INetStream) -> None:
            await trio.sleep_forever()

        deaf.host.set_stream_handler(PROTOCOL_ID_V11, stare)
        await (await deaf.gossip_stream()).write(joining())
        await until(lambda: len(victim.topic_peers(TEXT)) == 2)
        text = "x" * 4000
        for _ in range(1500):
            await victim.publish(TEXT, text)
            await trio.lowlevel.checkpoint()
        with trio.fail_after(20):
            for _ in range(512):  # as many as one source may say at once
                await channel.receive()
        outbox = victim._gossip.mesh.outbox(ID.from_base58(deaf.peer_id))
        assert outbox is None or len(outbox) <= OUTBOX_FRAMES


async def test_a_broken_stream_to_a_peer_does_not_forget_what_the_peer_told_on_its_own(tmp_path: Path) -> None:
    async with libp2p_mesh(tmp_path, 2) as (a, b), b.subscribe(TEXT, accept, capacity=8) as channel:
        await until(lambda: a.topic_peers(TEXT) == {b.peer_id})
        b_id = ID.from_base58(b.peer_id)
        for number in range(3):
            await until(lambda: b_id in a._gossip.peers)
            broken = a._gossip.peers[b_id]
            await broken.reset()
            await a.publish(TEXT, f"lost {number}")
            await until(lambda old=broken: a._gossip.peers.get(b_id) not in (None, old))
            await until(lambda: a.topic_peers(TEXT) == {b.peer_id})
            await a.publish(TEXT, f"found {number}")
            with trio.fail_after(5):
                while (await channel.receive()).message != f"found {number}":
                    pass
