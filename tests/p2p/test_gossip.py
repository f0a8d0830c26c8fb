"""What gossip over real libp2p withstands, and whom it blames."""

from __future__ import annotations

import random
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.rsa import create_new_key_pair as create_rsa_pair
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from consensus.errors import Ignore, Reject
from p2p.framing import uvarint
from p2p.host import HostConfig, Libp2pNetwork, open_network
from p2p.limits import Rate
from p2p.network import PeerId
from p2p.router import MAX_RPC_BYTES, GossipConfig
from p2p.upstream import build_host
from tests.p2p.conftest import LOOPBACK, TEXT, accept, libp2p_mesh, until
from tests.p2p.hostile import hostile, rpc


async def hears(network: Libp2pNetwork, speaker: Libp2pNetwork, channel: trio.MemoryReceiveChannel, text: str = "alive") -> None:
    """The node lives: it still hears an honest peer."""
    await until(lambda: network.peer_id in speaker.topic_peers(TEXT))
    await speaker.publish(TEXT, text)
    with trio.fail_after(5):
        while (await channel.receive()).message != text:
            pass


async def test_an_unparsable_key_kills_nobody_and_is_blamed_on_its_sender(tmp_path: Path) -> None:
    async with (
        libp2p_mesh(tmp_path, 2) as (victim, friend),
        victim.subscribe(TEXT, accept, capacity=8) as channel,
        hostile(victim) as enemy,
    ):
        stream = await enemy.gossip_stream()
        with_key = enemy.signed(TEXT.name, b"unparsable key field")
        with_key.key = b"\xff\xff\xff"
        from_rsa = enemy.signed(TEXT.name, b"unparsable key, and a peer id that does not hold one")
        from_rsa.from_id = ID.from_pubkey(create_rsa_pair(1024).public_key).to_bytes()
        from_rsa.key = b"\x08\x63\x12\x01\x00"
        from_junk = enemy.signed(TEXT.name, b"no peer id at all")
        from_junk.from_id = b"\x00\x01"
        await stream.write(rpc(with_key, from_rsa, from_junk))
        await until(lambda: victim.counters.rejected == {"BAD_KEY": 3})
        await until(lambda: not enemy.connected)
        await hears(victim, friend, channel)


async def test_forged_and_unsigned_messages_are_refused_and_their_sender_cut_off(tmp_path: Path) -> None:
    async with (
        libp2p_mesh(tmp_path, 2) as (victim, friend),
        victim.subscribe(TEXT, accept, capacity=8) as channel,
        hostile(victim) as enemy,
    ):
        stream = await enemy.gossip_stream()
        forged = enemy.signed(TEXT.name, b"forged")
        forged.from_id = ID.from_base58(friend.peer_id).to_bytes()
        unsigned = enemy.signed(TEXT.name, b"unsigned")
        unsigned.ClearField("signature")
        altered = enemy.signed(TEXT.name, b"signed")
        altered.data = b"altered"
        await stream.write(rpc(forged, unsigned, altered))
        await until(lambda: victim.counters.rejected == {"BAD_SIGNATURE": 3})
        await until(lambda: not enemy.connected)
        await hears(victim, friend, channel)
        assert victim.counters.delivered == 1


async def test_a_forged_copy_does_not_take_the_place_of_the_real_message(tmp_path: Path) -> None:
    async with (
        libp2p_mesh(tmp_path, 1) as (victim,),
        victim.subscribe(TEXT, accept, capacity=8) as channel,
        hostile(victim) as author,
        hostile(victim) as forger,
    ):
        real = author.signed(TEXT.name, b"real")
        fake = author.signed(TEXT.name, b"fake", seqno=int.from_bytes(real.seqno, "big"))
        fake.signature = b"\x00" * 64
        await (await forger.gossip_stream()).write(rpc(fake))
        await until(lambda: victim.counters.rejected == {"BAD_SIGNATURE": 1})
        await (await author.gossip_stream()).write(rpc(real))
        with trio.fail_after(5):
            received = await channel.receive()
        assert (received.message, received.source) == ("real", author.peer_id)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x05hello",
        b"\xff" * 12,
        uvarint(MAX_RPC_BYTES + 1) + b"x",
        b"\x80\x00",
        b"\x02\x12\x7f",
    ],
    ids=["not an RPC", "an endless length", "an oversized frame", "a padded length", "a field cut short"],
)
async def test_a_broken_frame_costs_its_stream_and_nothing_else(tmp_path: Path, garbage: bytes) -> None:
    async with (
        libp2p_mesh(tmp_path, 2) as (victim, friend),
        victim.subscribe(TEXT, accept, capacity=8) as channel,
        hostile(victim) as enemy,
    ):
        stream = await enemy.gossip_stream()
        await stream.write(garbage)
        await until(lambda: victim.counters.rejected == {"BROKEN_RPC": 1})
        with trio.fail_after(5), suppress(StreamError):
            while await stream.read(64):
                pass
        fresh = await enemy.gossip_stream()
        await fresh.write(rpc(enemy.signed(TEXT.name, b"sorry")))
        with trio.fail_after(5):
            assert (await channel.receive()).message == "sorry"
        await hears(victim, friend, channel)


async def test_random_frames_kill_nobody(tmp_path: Path) -> None:
    noise = random.Random(7)
    async with libp2p_mesh(tmp_path, 2) as (victim, friend), victim.subscribe(TEXT, accept, capacity=8) as channel:
        for _ in range(6):
            async with hostile(victim) as enemy:
                for _ in range(4):
                    if not enemy.connected:
                        break
                    try:
                        stream = await enemy.gossip_stream()
                        good = rpc(enemy.signed(TEXT.name, noise.randbytes(20)))
                        bad = bytearray(good)
                        for _ in range(noise.randrange(1, 6)):
                            bad[noise.randrange(len(bad))] = noise.randrange(256)
                        await stream.write(bytes(bad) + noise.randbytes(noise.randrange(200)))
                    except Exception:  # noqa: BLE001 - it has just been cut off
                        continue
        await hears(victim, friend, channel)


async def test_a_message_under_judgement_is_judged_once_however_often_it_comes(tmp_path: Path) -> None:
    judged: list[str] = []
    release = trio.Event()

    async def slow(message: str, _source: PeerId) -> None:
        judged.append(message)
        await release.wait()

    async with (
        libp2p_mesh(tmp_path, 1) as (victim,),
        victim.subscribe(TEXT, slow, capacity=8) as channel,
        hostile(victim) as one,
        hostile(victim) as other,
    ):
        message = one.signed(TEXT.name, b"again and again")
        await (await one.gossip_stream()).write(rpc(*[message] * 10))
        await (await other.gossip_stream()).write(rpc(*[message] * 10))
        await until(lambda: victim.counters.duplicates == 19)
        release.set()
        with trio.fail_after(5):
            assert (await channel.receive()).message == "again and again"
        await (await other.gossip_stream()).write(rpc(message))
        await until(lambda: victim.counters.duplicates == 20)
    assert judged == ["again and again"]
    assert victim.counters.delivered == 1


async def chain(stack: AsyncExitStack, folder: Path, count: int) -> list[Libp2pNetwork]:
    """Peers in a line: each is connected to the one before and the one after it."""
    networks: list[Libp2pNetwork] = []
    for index in range(count):
        bootstrap = networks[-1].addresses if networks else ()
        config = HostConfig(folder / f"key-{index}", listen=(LOOPBACK,), bootstrap=bootstrap, target_peers=0)
        networks.append(await stack.enter_async_context(open_network(config)))
        if len(networks) > 1:
            await until(lambda: networks[-1].connected() == {networks[-2].peer_id})
    return networks


async def test_what_is_accepted_is_passed_on_and_what_is_ignored_or_rejected_is_not(tmp_path: Path) -> None:
    async def rule(message: str, _source: PeerId) -> None:
        if message == "late":
            raise Ignore("TOO_LATE")
        if message == "lie":
            raise Reject("A_LIE")

    async with AsyncExitStack() as stack:
        first, middle, last = await chain(stack, tmp_path, 3)
        await stack.enter_async_context(middle.subscribe(TEXT, rule, capacity=8))
        heard = await stack.enter_async_context(last.subscribe(TEXT, accept, capacity=8))
        await until(lambda: bool(first.topic_peers(TEXT)) and bool(middle.topic_peers(TEXT)))
        for message in ("late", "lie", "fine"):
            await first.publish(TEXT, message)
        with trio.fail_after(5):
            received = await heard.receive()
        assert (received.message, received.source) == ("fine", first.peer_id)
        assert last.counters.delivered == 1


async def test_the_signer_of_a_lie_is_cut_off_and_an_honest_forwarder_is_not(tmp_path: Path) -> None:
    async def strict(message: str, _source: PeerId) -> None:
        if message.startswith("lie"):
            raise Reject("A_LIE")

    async with AsyncExitStack() as stack:
        liar, forwarder, judge = await chain(stack, tmp_path, 3)
        await stack.enter_async_context(forwarder.subscribe(TEXT, accept, capacity=8))
        heard = await stack.enter_async_context(judge.subscribe(TEXT, strict, capacity=8))
        await until(lambda: bool(liar.topic_peers(TEXT)) and bool(forwarder.topic_peers(TEXT)))
        for number in range(3):
            await liar.publish(TEXT, f"lie {number}")
        await until(lambda: judge.counters.cut_off == 1)
        assert judge.connected() == {forwarder.peer_id}
        await liar.publish(TEXT, "honest now")
        await forwarder.publish(TEXT, "honest always")
        with trio.fail_after(5):
            assert (await heard.receive()).message == "honest always"
        assert judge.counters.rejected == {"A_LIE": 3}


async def test_a_source_that_talks_too_fast_is_ignored_and_not_blamed(tmp_path: Path) -> None:
    slow = GossipConfig(per_source=Rate(per_second=0.001, burst=2))
    async with (
        open_network(HostConfig(tmp_path / "key", listen=(LOOPBACK,), gossip=slow)) as victim,
        victim.subscribe(TEXT, accept, capacity=8),
        hostile(victim) as talker,
        hostile(victim) as other,
    ):
        await (await talker.gossip_stream()).write(rpc(*(talker.signed(TEXT.name, b"%d" % n) for n in range(5))))
        await until(lambda: victim.counters.ignored == {"RATE_LIMITED": 3})
        await (await other.gossip_stream()).write(rpc(other.signed(TEXT.name, b"one")))
        await until(lambda: victim.counters.delivered == 3)
        assert talker.connected
        assert victim.counters.rejected == {}


async def test_a_neighbour_that_floods_is_slowed_down_and_loses_nothing(tmp_path: Path) -> None:
    gentle = GossipConfig(per_stream=Rate(per_second=200.0, burst=5))
    async with (
        open_network(HostConfig(tmp_path / "key", listen=(LOOPBACK,), gossip=gentle)) as victim,
        victim.subscribe(TEXT, accept, capacity=64),
        hostile(victim) as flooder,
    ):
        started = time.monotonic()
        await (await flooder.gossip_stream()).write(rpc(*(flooder.signed(TEXT.name, b"%d" % n) for n in range(25))))
        await until(lambda: victim.counters.delivered == 25)
        assert time.monotonic() - started >= 0.09


async def test_a_rule_that_never_ends_is_given_up(tmp_path: Path) -> None:
    async def never(_message: str, _source: PeerId) -> None:
        await trio.sleep_forever()

    impatient = GossipConfig(rule_timeout=0.01)
    async with (
        open_network(HostConfig(tmp_path / "key", listen=(LOOPBACK,), gossip=impatient)) as victim,
        victim.subscribe(TEXT, never, capacity=8),
        hostile(victim) as enemy,
    ):
        await (await enemy.gossip_stream()).write(rpc(enemy.signed(TEXT.name, b"hang")))
        await until(lambda: victim.counters.ignored == {"RULE_TIMEOUT": 1})


async def test_sequence_numbers_do_not_repeat_after_a_restart(tmp_path: Path) -> None:
    seen: list[bytes] = []
    for _ in range(2):
        async with open_network(HostConfig(tmp_path / "key", listen=(LOOPBACK,))) as network:
            before = time.time_ns()
            seen += [network._gossip._signed(TEXT.name, b"x").seqno for _ in range(3)]
            assert int.from_bytes(seen[-1], "big") <= before + 3
    assert seen == sorted(set(seen))


async def test_messages_of_the_last_seconds_reach_whoever_joins_late(tmp_path: Path) -> None:
    async with libp2p_mesh(tmp_path, 2) as (early, late):
        await early.publish(TEXT, "before you came")
        async with late.subscribe(TEXT, accept, capacity=8) as channel:
            with trio.fail_after(5):
                assert (await channel.receive()).message == "before you came"


async def test_a_plain_libp2p_gossipsub_peer_is_heard_and_hears(tmp_path: Path) -> None:
    plain = build_host(create_new_key_pair(), max_connections=8, announce=None)
    router = GossipSub(protocols=[PROTOCOL_ID_V11], degree=3, degree_low=2, degree_high=4, heartbeat_interval=1)
    pubsub = Pubsub(plain, router, strict_signing=True)
    async with (
        open_network(HostConfig(tmp_path / "key", listen=(LOOPBACK,))) as ours,
        ours.subscribe(TEXT, accept, capacity=8) as channel,
        plain.run([Multiaddr(LOOPBACK)]),
        background_trio_service(router),
        background_trio_service(pubsub),
    ):
        await pubsub.wait_until_ready()
        theirs = await pubsub.subscribe(TEXT.name)
        await plain.connect(info_from_p2p_addr(Multiaddr(ours.addresses[0])))
        await until(lambda: bool(ours.topic_peers(TEXT)) and TEXT.name in pubsub.peer_topics)
        await ours.publish(TEXT, "from ours")
        await pubsub.publish(TEXT.name, b"from theirs")
        with trio.fail_after(5):
            assert (await channel.receive()).message == "from theirs"
            while True:
                message = await theirs.get()
                if message.data == b"from ours":
                    break
        assert ID(message.from_id).to_base58() == ours.peer_id
        await until(lambda: ours.counters.rejected == {})
