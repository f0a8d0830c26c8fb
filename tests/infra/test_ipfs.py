"""Content with an IPFS daemon: a real one (Kubo), and what a daemon may do that is away, slow or wrong."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import MockClock

from consensus.cid import MAX_BLOCK_BYTES, Cid, Layout, blocks, cid_of, matches, raw_cid
from consensus.errors import Failed, Transient
from consensus.messages import Execution, PackageReference, Uint256
from node.infra import content as content_module
from node.infra.content import SharedContent, Uploads, open_content
from node.infra.ipfs import IpfsDaemon
from node.infra.settings import ContentSettings
from node.packages import Packages
from p2p.blobs import Blobs, serve_blobs
from p2p.block_store import MemoryBlocks
from p2p.memory import MemoryMesh, MemoryNetwork
from tests.consensus import samples
from tests.kubo import Kubo, running_kubo

pytestmark = pytest.mark.filterwarnings("ignore:The 'strict' parameter:FutureWarning")

KIB = 1024
MIB = 1024 * KIB
SCRIPT = b"console.log(JSON.stringify([1]))"
FILE = random.Random(1).randbytes(600_000)


@pytest.fixture(scope="module")
def kubo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubo]:
    with running_kubo(tmp_path_factory.mktemp("kubo")) as daemon:
        yield daemon


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


LAYOUTS = {
    (): Layout(0, raw_leaves=False),
    ("--cid-version=1",): Layout(1),
    ("--raw-leaves",): Layout(0, raw_leaves=True),
    ("--cid-version=1", "--raw-leaves=false"): Layout(1, raw_leaves=False),
    ("--cid-version=1", "--chunker=size-1048576"): Layout(1, chunk=MIB),
    ("--cid-version=1", "--chunker=size-1048576", "--max-file-links=1024"): Layout(1, chunk=MIB, width=1024),
}
SIZES = [0, 1, 1000, 256 * KIB - 1, 256 * KIB, 256 * KIB + 1, 512 * KIB, MIB, MIB + 1, 5 * MIB + 3]


@pytest.mark.parametrize("options", LAYOUTS, ids=" ".join)
def test_a_file_has_the_cid_that_kubo_gives_it(kubo: Kubo, options: tuple[str, ...]) -> None:
    for size in SIZES:
        data = noise(size)
        cid = kubo.run("add", "--quieter", "--pin=false", *options, data=data)
        assert str(cid_of(data, LAYOUTS[options])) == cid, size
        assert matches(cid, data), size


@pytest.mark.parametrize("options", [("--cid-version=0",), ("--cid-version=1",)])
def test_a_file_of_two_levels_has_the_cid_that_kubo_gives_it(kubo: Kubo, options: tuple[str, ...]) -> None:
    layout = Layout(0, raw_leaves=False) if options == ("--cid-version=0",) else Layout(1)
    for size in (256 * KIB * 174, 256 * KIB * 174 + 1, 256 * KIB * 350):
        data = noise(KIB) * (size // KIB) + b"x" * (size % KIB)
        assert str(cid_of(data, layout)) == kubo.run("add", "--quieter", "--only-hash", *options, data=data)


async def test_kubo_gives_the_client_the_same_cids_whatever_its_own_defaults_are(kubo: Kubo) -> None:
    daemon = IpfsDaemon(kubo.url)
    kubo.run("config", "Import.CidVersion", "0", "--json")
    for size in SIZES:
        assert await daemon.add(noise(size)) == str(cid_of(noise(size)))
    assert str(cid_of(FILE)) not in kubo.run("pin", "ls", "--type=recursive")
    cid = await daemon.add(FILE)
    assert cid in kubo.run("pin", "ls", "--type=recursive")


@asynccontextmanager
async def program(
    folder: Path, url: str | None, network: MemoryNetwork | None = None, timeout_s: float = 20.0
) -> AsyncIterator[SharedContent]:
    settings = ContentSettings(ipfs_api=url, ipfs_timeout_s=timeout_s)
    async with open_content(settings, folder, network or MemoryMesh().join("a")) as content:
        yield content


async def settled(content: SharedContent) -> None:
    assert content.uploads is not None
    await content.uploads.settled()


async def test_the_daemons_cat_returns_what_a_keeper_put(kubo: Kubo, tmp_path: Path) -> None:
    async with program(tmp_path, kubo.url) as content:
        cids = [await content.put(data) for data in (SCRIPT, b"", FILE)]
        with trio.fail_after(60):
            await settled(content)
        for cid, data in zip(cids, (SCRIPT, b"", FILE), strict=True):
            assert await trio.to_thread.run_sync(cat, kubo, cid) == data
            assert await IpfsDaemon(kubo.url).cat(cid, max_bytes=MIB) == data


def cat(kubo: Kubo, cid: str) -> bytes:
    """As an operator would, past our own client."""
    kubo.run("get", "--output", str(kubo.folder / cid), cid)
    return (kubo.folder / cid).read_bytes()


async def test_a_package_that_a_keeper_publishes_is_the_daemons_and_every_keepers(kubo: Kubo, tmp_path: Path) -> None:
    large = samples.execution(
        samples.script_task(msgspec.structs.replace(samples.CUSTOM_SPEC, arguments="x" * 60_000)), call=bytes(16_000)
    )
    mesh = MemoryMesh()
    performer, attester = mesh.join("performer"), mesh.join("attester")
    async with program(tmp_path / "a", kubo.url, performer) as content, program(tmp_path / "b", None, attester) as other:
        cids = [await Packages(performer, content).publish(package) for package in (large, samples.execution())]
        await settled(content)
        for cid, package in zip(cids, (large, samples.execution()), strict=True):
            assert Execution.decode(await trio.to_thread.run_sync(cat, kubo, cid)) == package
            task = package.task
            named = PackageReference(task.chain_id, Uint256(task.task_id), task.authorisation.attempt, cid)
            assert await Packages(attester, other).fetch(named, "performer") == package


@pytest.mark.parametrize("options", LAYOUTS, ids=" ".join)
async def test_what_was_added_to_the_daemon_is_had_by_every_program_and_its_peers(
    kubo: Kubo, tmp_path: Path, options: tuple[str, ...]
) -> None:
    data = noise(700_001)
    cid = kubo.run("add", "--quieter", *options, data=data)
    mesh = MemoryMesh()
    async with (
        program(tmp_path / "a", kubo.url, mesh.join("a")) as with_daemon,
        program(tmp_path / "b", None, mesh.join("b")) as without,
    ):
        assert await with_daemon.get(cid, max_bytes=MIB) == data
        assert await without.get(cid, max_bytes=MIB, peers=["a"]) == data


async def test_a_file_cut_in_a_way_of_its_own_is_had_by_its_blocks(kubo: Kubo, tmp_path: Path) -> None:
    data = noise(900_000)
    for options in (("--chunker=rabin-16384-65536-131072",), ("--trickle",), ("--chunker=size-50000", "--raw-leaves=false")):
        cid = kubo.run("add", "--quieter", "--cid-version=1", *options, data=data)
        async with program(tmp_path / options[0], kubo.url) as content:
            assert await content.get(cid, max_bytes=MIB) == data


async def test_a_folder_and_what_the_daemon_does_not_have_are_named(kubo: Kubo, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(SCRIPT)
    folder = kubo.run("add", "--quieter", "--recursive", str(tmp_path / "folder"))
    daemon = IpfsDaemon(kubo.url)
    async with program(tmp_path / "a", kubo.url) as content:
        with pytest.raises(Failed, match="CONTENT_INVALID"):
            await content.get(folder, max_bytes=MIB)
        with pytest.raises(Transient, match="CONTENT_NOT_FOUND"):
            await content.get(str(raw_cid(b"nowhere")), max_bytes=MIB)
        with pytest.raises(Transient, match="CONTENT_NOT_FOUND"):
            await daemon.cat(str(raw_cid(b"nowhere")), max_bytes=MIB)
    assert await daemon.block(raw_cid(b"nowhere")) is None
    with pytest.raises(Transient, match="IPFS_UNREACHABLE"):
        await daemon.pin(str(raw_cid(b"nowhere")))


async def test_a_file_over_the_limit_is_refused_and_not_read_to_its_end(kubo: Kubo, tmp_path: Path) -> None:
    cid = kubo.run("add", "--quieter", "--cid-version=1", data=noise(5 * MIB))
    with pytest.raises(Failed, match="CONTENT_TOO_LARGE"):
        await IpfsDaemon(kubo.url).cat(cid, max_bytes=MIB)
    async with program(tmp_path, kubo.url) as content:
        with pytest.raises(Failed, match="CONTENT_TOO_LARGE"):
            await content.get(cid, max_bytes=MIB)


async def test_a_daemon_that_disappears_costs_no_put_and_hears_of_it_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content_module, "_FIRST_PAUSE_S", 0.05)
    with running_kubo(tmp_path) as kubo:
        async with program(tmp_path / "a", kubo.url) as content:
            before = await content.put(b"before")
            with trio.fail_after(60):
                await settled(content)
            kubo.kill()
            during = await content.put(b"during")
            assert await content.get(before, max_bytes=MIB) == b"before"
            assert await content.get(during, max_bytes=MIB) == b"during"
            with pytest.raises(Transient, match="CONTENT_NOT_FOUND"):
                await content.get(str(raw_cid(b"nowhere")), max_bytes=MIB)
            await trio.to_thread.run_sync(kubo.start)
            with trio.fail_after(60):
                await settled(content)
            assert await trio.to_thread.run_sync(cat, kubo, during) == b"during"


# daemons that are none


Answering = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def pretender(answering: Answering) -> AsyncIterator[str]:
    """Something at a daemon's URL that reads a request's head, and answers as the test says."""

    async def serve(stream: trio.SocketStream) -> None:
        received = b""
        try:
            while b"\r\n\r\n" not in received:
                more = await stream.receive_some(65536)
                if not more:
                    return
                received += more
            await answering(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


def says(body: bytes, status: int = 200, kind: str = "text/plain") -> Answering:
    async def answering(stream: trio.SocketStream) -> None:
        head = f"HTTP/1.1 {status} x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        await stream.send_all(head.encode() + body)

    return answering


async def without_end(stream: trio.SocketStream) -> None:
    await stream.send_all(b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await stream.send_all(b"10000\r\n" + bytes(0x10000) + b"\r\n")


async def one_huge_chunk(stream: trio.SocketStream) -> None:
    await stream.send_all(b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffff\r\n")
    while True:
        await stream.send_all(bytes(65536))


async def hangs_up(stream: trio.SocketStream) -> None:
    await stream.send_all(b"HTTP/1.1 200 x\r\nContent-Length: 1000\r\n\r\nabc")
    await stream.aclose()


async def silent(_stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def test_other_bytes_are_never_taken_for_the_content(tmp_path: Path) -> None:
    async with pretender(says(b"tampered")) as url, program(tmp_path, url) as content:
        with pytest.raises(Transient, match="CONTENT_MISMATCH"):
            await content.get(str(raw_cid(SCRIPT)), max_bytes=MIB)
        with pytest.raises(Transient, match="CONTENT_MISMATCH"):
            await IpfsDaemon(url).cat(str(raw_cid(SCRIPT)), max_bytes=MIB)


@pytest.mark.parametrize("endless", [without_end, one_huge_chunk])
async def test_an_answer_without_end_is_read_as_far_as_the_limit(endless: Answering, tmp_path: Path) -> None:
    async with pretender(endless) as url:
        with trio.fail_after(30):
            with pytest.raises(Failed, match="CONTENT_TOO_LARGE"):
                await IpfsDaemon(url).cat(str(raw_cid(SCRIPT)), max_bytes=MIB)
            assert await IpfsDaemon(url).block(raw_cid(SCRIPT)) is None


@pytest.mark.parametrize(
    "answering",
    [
        hangs_up,
        says(b"<html>", 404),
        says(b"{", 500, "application/json"),
        says(b'{"Hash": "QmNot"}', 200, "application/json"),
        says(b'{"Hash": 5}', 200, "application/json"),
        says(b'["Hash"]', 200, "application/json"),
        says(b"\xff\xfe", 200, "application/json"),
        says(b"", 200, "application/json"),
    ],
)
async def test_what_is_no_ipfs_daemon_is_named_and_nothing_else_fails(answering: Answering, tmp_path: Path) -> None:
    async with pretender(answering) as url:
        with pytest.raises(Transient, match="IPFS_UNREACHABLE"):
            await IpfsDaemon(url).add(SCRIPT)


@pytest.mark.parametrize("answering", [hangs_up, says(b"<html>", 404), says(b"{", 500, "application/json"), silent])
async def test_a_daemon_that_gives_nothing_has_nothing(answering: Answering, tmp_path: Path) -> None:
    async with pretender(answering) as url, program(tmp_path, url, timeout_s=0.3) as content:
        with trio.fail_after(30), pytest.raises(Transient, match="CONTENT_NOT_FOUND"):
            await content.get(str(raw_cid(SCRIPT)), max_bytes=MIB)


async def test_a_silent_daemon_is_given_up_and_so_is_whoever_waits_behind_it() -> None:
    async with pretender(silent) as url:
        daemon, codes = IpfsDaemon(url, timeout_s=0.3), []

        async def ask() -> None:
            with pytest.raises(Transient, match="IPFS_UNREACHABLE") as caught:
                await daemon.cat(str(raw_cid(SCRIPT)), max_bytes=MIB)
            codes.append(caught.value.code)

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for _ in range(12):
                    nursery.start_soon(ask)
        assert len(codes) == 12


async def test_a_daemon_that_does_not_run_is_away_at_once(tmp_path: Path) -> None:
    async with program(tmp_path, "http://127.0.0.1:9") as content:
        with trio.fail_after(20), pytest.raises(Transient, match="CONTENT_NOT_FOUND"):
            await content.get(str(raw_cid(SCRIPT)), max_bytes=MIB)
    with pytest.raises(Transient, match="IPFS_UNREACHABLE"):
        await IpfsDaemon("http://user:secret@127.0.0.1:9").add(SCRIPT)


async def test_the_daemons_password_is_in_no_error(tmp_path: Path) -> None:
    for url in ("http://user:secret@127.0.0.1:9", "http://user:secret@[::1]:9"):
        with pytest.raises(Transient) as caught:
            await IpfsDaemon(url).add(SCRIPT)
        assert "secret" not in str(caught.value)
    assert "secret" not in repr(ContentSettings(ipfs_api="http://user:secret@127.0.0.1:9"))


async def test_peers_are_asked_before_the_daemon(tmp_path: Path) -> None:
    asked: list[bytes] = []

    async def noted(stream: trio.SocketStream) -> None:
        asked.append(b"")
        await says(b"", 500)(stream)

    mesh = MemoryMesh()
    async with (
        pretender(noted) as url,
        serve_blobs(MemoryBlocks(), mesh.join("b")) as peer,
        program(tmp_path, url, mesh.join("a")) as content,
    ):
        cid = await peer.put(SCRIPT)
        assert await content.get(cid, max_bytes=MIB, peers=["b"]) == SCRIPT
    assert asked == []


async def test_uploads_are_given_up_after_a_while_and_never_pile_up(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Away:
        tries = 0

        async def add(self, data: bytes) -> str:
            self.tries += 1
            await trio.sleep(1)
            raise Transient("IPFS_UNREACHABLE")

    away, blobs = Away(), Blobs(MemoryBlocks(), MemoryMesh().join("a"))
    uploads = Uploads(away, blobs)  # type: ignore[arg-type]
    content = SharedContent(blobs, uploads)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(uploads.run)
        for number in range(content_module._WAITING + 50):
            await content.put(b"%d" % number)
        await uploads.settled()
        nursery.cancel_scope.cancel()
    assert 0 < away.tries <= content_module._TRIES * (content_module._WAITING + 1)


def test_the_largest_block_of_kubos_layouts_fits() -> None:
    for layout in (Layout(0, raw_leaves=False, chunk=MIB), Layout(1, chunk=MIB, width=1024)):
        assert max(len(block.data) for block in blocks(bytes(2 * MIB), layout)) <= MAX_BLOCK_BYTES
    assert Cid.parse(str(cid_of(b""))) == cid_of(b"")
