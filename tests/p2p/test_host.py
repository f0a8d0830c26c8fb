"""A host's life: its key, its port, its connections, and its end."""

from __future__ import annotations

import base64
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from consensus.errors import Misconfigured
from p2p.host import HostConfig, open_network
from p2p.identity import load_identity, peer_id_of
from p2p.network import Network, PeerId
from tests.p2p.conftest import ECHO, LOOPBACK, TEXT, accept, joined, libp2p_mesh, until
from tests.p2p.hostile import hostile

ROOT = Path(__file__).parents[2]


async def test_the_key_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "peer.key"
    async with open_network(HostConfig(path, listen=(LOOPBACK,))) as network:
        first = network.peer_id
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert first == peer_id_of(path)
    assert first.startswith("12D3Koo")
    async with open_network(HostConfig(path, listen=(LOOPBACK,))) as network:
        assert network.peer_id == first
    assert [entry.name for entry in path.parent.iterdir()] == ["peer.key"]


def test_the_key_file_is_the_one_other_libp2ps_read(tmp_path: Path) -> None:
    # A key made by js-libp2p's privateKeyToProtobuf, base64.
    seed = bytes(range(32))
    public = bytes.fromhex("03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8")
    path = tmp_path / "key"
    path.write_bytes(base64.b64encode(b"\x08\x01\x12\x40" + seed + public))
    path.chmod(0o600)
    assert load_identity(path).private_key.to_bytes() == seed
    assert load_identity(path).public_key.to_bytes() == public


@pytest.mark.parametrize(
    "content",
    [b"", b"not base64!", base64.b64encode(b"short"), base64.b64encode(b"\x08\x01\x12\x40" + b"\x01" * 64)],
    ids=["empty", "not base64", "short", "halves that do not match"],
)
async def test_a_damaged_key_file_is_named_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(Misconfigured, match=str(path)) as raised:
        async with open_network(HostConfig(path, listen=(LOOPBACK,))):
            pass
    assert raised.value.key == "mesh.identity"
    assert path.read_bytes() == content


def test_a_key_file_that_others_may_read_or_that_is_no_file_is_refused(tmp_path: Path) -> None:
    peer_id_of(tmp_path / "key")
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(Misconfigured, match="chmod 600"):
        load_identity(tmp_path / "key")
    with pytest.raises(Misconfigured, match="identity"):
        load_identity(tmp_path)


@pytest.mark.parametrize("shared", [False, True], ids=["taken", "taken by a peer that would share it"])
async def test_a_port_in_use_is_named(tmp_path: Path, shared: bool) -> None:
    with socket.socket() as other:
        if shared:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(Misconfigured, match="in use") as raised:
            async with open_network(HostConfig(tmp_path / "key", listen=(f"/ip4/127.0.0.1/tcp/{port}",))):
                pass
        assert raised.value.key == "mesh.listen"


@pytest.mark.parametrize("address", ["nonsense", "/ip4/127.0.0.1/udp/1", "/ip4/203.0.113.1/tcp/0", "/dns4/example.org/tcp/1"])
async def test_an_address_that_cannot_be_listened_on_is_named(tmp_path: Path, address: str) -> None:
    with pytest.raises(Misconfigured) as raised:
        async with open_network(HostConfig(tmp_path / "key", listen=(address,))):
            pass
    assert raised.value.key == "mesh.listen"


@pytest.mark.parametrize("address", ["nonsense", "/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/x/p2p/12D3Koo"])
async def test_a_bootstrap_address_without_a_peer_is_named(tmp_path: Path, address: str) -> None:
    with pytest.raises(Misconfigured) as raised:
        async with open_network(HostConfig(tmp_path / "key", listen=(LOOPBACK,), bootstrap=(address,))):
            pass
    assert raised.value.key == "mesh.bootstrap"


async def test_an_error_in_the_body_comes_out_as_it_is_and_everything_is_closed(tmp_path: Path) -> None:
    with pytest.raises(LookupError):
        async with open_network(HostConfig(tmp_path / "key", listen=(LOOPBACK,))) as network:
            raise LookupError
    port = int(network.addresses[0].split("/")[4])
    with pytest.raises(OSError, match="all attempts to connect"):
        await trio.open_tcp_stream("127.0.0.1", port)


async def test_what_is_announced_is_what_others_are_told(tmp_path: Path) -> None:
    config = HostConfig(tmp_path / "key", listen=(LOOPBACK,), announce=("/dns4/keeper.example.org/tcp/4001",))
    async with open_network(config) as network:
        assert network.addresses == (f"/dns4/keeper.example.org/tcp/4001/p2p/{network.peer_id}",)


async def test_shutdown_is_prompt_with_peers_connected_and_work_under_way(tmp_path: Path) -> None:
    entered = trio.Event()

    async def never(_message: str, _source: PeerId) -> str:
        entered.set()
        await trio.sleep_forever()
        raise AssertionError

    async def hang(_message: str, _source: PeerId) -> None:
        await trio.sleep_forever()

    async with libp2p_mesh(tmp_path, 4) as others, trio.open_nursery() as nursery:
        started = 0.0
        config = HostConfig(tmp_path / "leaver", listen=(LOOPBACK,), bootstrap=others[0].addresses)
        async with open_network(config) as leaver, leaver.serve(ECHO, never), leaver.subscribe(TEXT, hang, capacity=1):
            await until(lambda: len(leaver.connected()) == 4)
            await until(lambda: bool(others[1].topic_peers(TEXT)))
            await others[1].publish(TEXT, "hang")
            nursery.start_soon(_ask_in_vain, others[2], leaver.peer_id)
            await entered.wait()
            started = time.monotonic()
        assert time.monotonic() - started < 0.5
        await until(lambda: all(leaver.peer_id not in other.connected() for other in others))


async def _ask_in_vain(network: Network, peer: PeerId) -> None:
    with pytest.raises(Exception, match="PEER"):
        await network.request(peer, ECHO, "wait")


async def test_cancelling_closes_as_promptly(tmp_path: Path) -> None:
    async with libp2p_mesh(tmp_path, 2) as (other, _):
        config = HostConfig(tmp_path / "leaver", listen=(LOOPBACK,), bootstrap=other.addresses)
        with trio.CancelScope() as scope:
            async with open_network(config) as leaver, leaver.subscribe(TEXT, accept, capacity=1):
                await until(lambda: len(leaver.connected()) == 2)
                started = time.monotonic()
                scope.cancel()
                await trio.sleep_forever()
        assert time.monotonic() - started < 0.5
        await until(lambda: leaver.peer_id not in other.connected())


async def test_peers_that_know_only_the_bootstrap_peer_find_each_other(tmp_path: Path) -> None:
    async with libp2p_mesh(tmp_path, 8) as networks, AsyncExitStack() as stack:
        for network in networks:
            await stack.enter_async_context(network.subscribe(TEXT, accept, capacity=8))
        await joined(list(networks))


async def test_a_peer_listening_everywhere_is_found_where_its_packets_come_from(tmp_path: Path) -> None:
    async with open_network(HostConfig(tmp_path / "boot", listen=("/ip4/0.0.0.0/tcp/0",))) as boot:
        address = boot.addresses[0].replace("0.0.0.0", "127.0.0.1")
        configs = [HostConfig(tmp_path / name, listen=("/ip4/0.0.0.0/tcp/0",), bootstrap=(address,)) for name in ("a", "b")]
        async with open_network(configs[0]) as a, open_network(configs[1]) as b:
            await until(lambda: a.peer_id in b.connected() and b.peer_id in a.connected())


@asynccontextmanager
async def bootstrap_process(key: Path, port: int) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A bootstrap peer in a process of its own, listening when entered, killed when left."""
    program = (
        "import sys, trio\nfrom pathlib import Path\nfrom p2p.host import HostConfig, open_network\n"
        "async def main():\n"
        "    async with open_network(HostConfig(Path(sys.argv[1]), listen=(f'/ip4/127.0.0.1/tcp/{sys.argv[2]}',))):\n"
        "        print('ready', flush=True)\n        await trio.sleep_forever()\n"
        "trio.run(main)\n"
    )
    command = [sys.executable, "-c", program, str(key), str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)  # noqa: ASYNC220 - returns within milliseconds
    try:
        assert process.stdout is not None
        assert await trio.to_thread.run_sync(process.stdout.readline) == b"ready\n"
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        await trio.to_thread.run_sync(process.wait)


async def test_the_mesh_heals_soon_after_its_bootstrap_peer_was_killed_and_restarted(tmp_path: Path) -> None:
    key = tmp_path / "boot"
    boot = peer_id_of(key)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{boot}"
    configs = [HostConfig(tmp_path / name, listen=(LOOPBACK,), bootstrap=(address,)) for name in ("a", "b")]
    async with AsyncExitStack() as stack:
        async with bootstrap_process(key, port):
            a, b = [await stack.enter_async_context(open_network(config)) for config in configs]
            await until(lambda: len(a.connected()) == len(b.connected()) == 2)
        await until(lambda: boot not in a.connected() and boot not in b.connected())
        assert b.peer_id in a.connected()  # the others do not need it to stay connected
        async with bootstrap_process(key, port):
            started = time.monotonic()
            await until(lambda: boot in a.connected() and boot in b.connected())
            assert time.monotonic() - started < 2.5
            late = HostConfig(tmp_path / "c", listen=(LOOPBACK,), bootstrap=(address,))
            c = await stack.enter_async_context(open_network(late))
            await until(lambda: c.connected() == {boot, a.peer_id, b.peer_id})


async def test_a_peer_that_restarts_elsewhere_is_found_again(tmp_path: Path) -> None:
    async with libp2p_mesh(tmp_path, 2) as (boot, other):
        config = HostConfig(tmp_path / "mover", listen=(LOOPBACK,), bootstrap=boot.addresses)
        for _ in range(2):
            async with open_network(config) as mover:
                await until(lambda: mover.connected() == {boot.peer_id, other.peer_id})
            await until(lambda: mover.peer_id not in other.connected() | boot.connected())


async def test_strangers_beyond_the_limit_are_refused_and_known_peers_are_not(tmp_path: Path) -> None:
    friends: set[PeerId] = set()
    config = HostConfig(tmp_path / "key", listen=(LOOPBACK,), max_strangers=2)
    async with open_network(config, known=lambda peer: peer in friends) as network, AsyncExitStack() as stack:
        strangers = [await stack.enter_async_context(hostile(network)) for _ in range(2)]
        await until(lambda: len(network.connected()) == 2)
        refused = await stack.enter_async_context(hostile(network))
        await until(lambda: not refused.connected)
        friend_key = tmp_path / "friend"
        friends.add(peer_id_of(friend_key))
        friend_config = HostConfig(friend_key, listen=(LOOPBACK,), bootstrap=network.addresses)
        friend = await stack.enter_async_context(open_network(friend_config))
        await until(lambda: friend.peer_id in network.connected())
        assert all(stranger.connected for stranger in strangers)


async def test_connections_that_ended_do_not_use_up_the_places_for_new_ones(tmp_path: Path) -> None:
    config = HostConfig(tmp_path / "key", listen=(LOOPBACK,), max_peers=2, max_strangers=2)
    async with open_network(config) as network:
        for _ in range(8):
            async with hostile(network) as visitor:
                await until(lambda v=visitor: v.peer_id in network.connected())
            await until(lambda: not network.connected())


async def test_bare_sockets_that_say_nothing_do_not_keep_others_out(tmp_path: Path) -> None:
    async with open_network(HostConfig(tmp_path / "key", listen=(LOOPBACK,))) as network, AsyncExitStack() as stack:
        port = int(network.addresses[0].split("/")[4])
        for said in (b"", b"\x13/multi", b"\xff\xff\xff\xff\xff\x7f", b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 100):
            stream = await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port))
            if said:
                await stream.send_all(said)
        async with hostile(network) as visitor:
            await until(lambda: visitor.peer_id in network.connected())
