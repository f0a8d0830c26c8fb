"""What only a server of its own can show: addresses, passwords, servers that hang, and the embedded one's life and death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import redis
import structlog
import trio

from consensus.errors import Misconfigured, Transient
from coordinator.settings import RedisSettings
from coordinator.streams import connect
from coordinator.streams.connect import open_streams
from coordinator.streams.embedded import DATA, open_embedded
from coordinator.streams.port import UNREACHABLE
from tests.components import require
from tests.coordinator.servers import PREFIX, Real, answers

ROOT = Path(__file__).resolve().parents[2]

COORDINATOR = """
import sys, trio
from pathlib import Path
from coordinator.streams.embedded import open_embedded

async def main():
    async with open_embedded(Path(sys.argv[1])) as server:
        print(server.pid, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.fixture
def real(tmp_path):
    server = Real(require("redis-server"), tmp_path)
    yield server
    server.end()


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def until(check: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not check():  # noqa: ASYNC110 - other processes tell us nothing
            await trio.sleep(0.01)


def listens(pid: int | None) -> bool:
    """Whether the process has a TCP socket."""
    names = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    sockets = {name.removeprefix("socket:[").removesuffix("]") for name in names if name.startswith("socket:")}
    tables = [Path(f"/proc/net/{net}").read_text().splitlines()[1:] for net in ("tcp", "tcp6")]
    return bool(sockets & {line.split()[9] for table in tables for line in table})


# a server by its URL


async def test_a_server_that_is_away_at_the_start_is_waited_for(real, tmp_path):
    async with open_streams(RedisSettings(url=real.url), tmp_path, "one") as streams:
        with pytest.raises(Transient) as caught:
            await streams.push([(1, 1)])
        assert caught.value.code == UNREACHABLE
        await real.start()
        await answers(streams)
        await streams.push([(1, 1)])
        assert [entry.task_id for entry in await streams.take(1)] == [1]


async def test_a_wrong_password_is_the_operator_s_to_mend_and_is_not_shown(real, tmp_path):
    real.options = ("--requirepass", "right-one")
    await real.start()
    url = real.url.replace("//", "//:wrong-one@")
    with pytest.raises(Misconfigured) as caught:
        async with open_streams(RedisSettings(url=url), tmp_path, "one"):
            pytest.fail("opened")
    assert caught.value.key == "redis.url"
    assert "wrong-one" not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(Misconfigured):
        async with open_streams(RedisSettings(url=real.url), tmp_path, "one"):
            pytest.fail("opened")
    async with open_streams(RedisSettings(url=real.url.replace("//", "//:right-one@")), tmp_path, "one") as streams:
        await streams.ping()


@pytest.mark.parametrize("tail", ["/99", "/words", "?db=x", "?nonsense=1", "?socket_timeout=0.000001"])
async def test_an_address_that_makes_no_connection_is_the_operator_s_to_mend(real, tmp_path, tail):
    await real.start()
    url = real.url.removesuffix("/0") + tail
    if tail.startswith("?socket_timeout"):  # our own limits go before the URL's
        async with open_streams(RedisSettings(url=url), tmp_path, "one") as streams:
            await streams.ping()
        return
    with pytest.raises(Misconfigured) as caught:
        async with open_streams(RedisSettings(url=url), tmp_path, "one"):
            pytest.fail("opened")
    assert caught.value.key == "redis.url"


async def test_prefixes_keep_platforms_apart(real, tmp_path):
    await real.start()
    async with (
        open_streams(RedisSettings(url=real.url, prefix="a"), tmp_path, "one") as one,
        open_streams(RedisSettings(url=real.url, prefix="b"), tmp_path, "two") as two,
    ):
        await one.push([(1, 1)])
        assert await two.backlog() == 0
        assert await one.acquire("shard:1", 10) is not None
        assert await two.acquire("shard:1", 10) is not None
        assert await two.beat("two", 10) == {"two"}


async def test_calls_to_a_server_that_hangs_end_and_those_that_follow_end_at_once(real, tmp_path):
    await real.start()
    async with open_streams(RedisSettings(url=real.url), tmp_path, "one") as streams:
        await streams.ping()
        assert real.process is not None
        real.process.send_signal(signal.SIGSTOP)
        try:
            with trio.fail_after(20):
                with pytest.raises(Transient):
                    await streams.push([(1, 1)])
                with pytest.raises(Transient, match="a moment ago"):
                    await streams.push([(1, 1)])
        finally:
            real.process.send_signal(signal.SIGCONT)
        await answers(streams)


async def test_a_wait_for_tasks_can_be_cancelled_while_the_server_hangs(real, tmp_path):
    async def take() -> None:
        with suppress(Transient):  # a call that was under way when the server stopped may say so instead of being cancelled
            await streams.take(1)

    await real.start()
    async with open_streams(RedisSettings(url=real.url), tmp_path, "one") as streams, trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        assert real.process is not None
        real.process.send_signal(signal.SIGSTOP)
        began = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began < 10
    real.process.send_signal(signal.SIGCONT)


# the embedded server


async def test_the_embedded_server_needs_no_configuration_and_ends_with_its_coordinator(tmp_path):
    async with open_streams(RedisSettings(prefix=PREFIX), tmp_path, "one") as streams:
        await streams.push([(1, 1)])
        assert [entry.task_id for entry in await streams.take(1)] == [1]
        assert await streams.acquire("shard:1", 3600) is not None
    async with open_streams(RedisSettings(prefix=PREFIX), tmp_path, "two") as streams:
        # Nobody else uses it: what its former coordinator held is free at once, its queue is the store's to fill.
        assert await streams.acquire("shard:1", 3600) is not None
        assert await streams.orphans(0, 10) == []
        await streams.push([(1, 1)])
        assert await streams.backlog() == 1


async def test_its_folder_is_its_owner_s_and_it_listens_nowhere_else(tmp_path):
    async with open_embedded(tmp_path / "streams") as server:
        assert os.stat(tmp_path / "streams").st_mode & 0o077 == 0
        assert not listens(server.pid)


async def test_it_works_in_a_folder_with_a_path_too_long_for_a_socket(tmp_path):
    folder = tmp_path / ("long" * 30)
    async with open_streams(RedisSettings(), folder, "one") as streams:
        await streams.ping()


async def test_a_second_coordinator_on_the_same_folder_is_told_to_share_a_server(tmp_path, monkeypatch):
    monkeypatch.setattr("coordinator.streams.embedded._LOCK_S", 0.1)
    async with open_streams(RedisSettings(), tmp_path, "one"):
        with pytest.raises(Misconfigured) as caught:
            async with open_streams(RedisSettings(), tmp_path, "two"):
                pytest.fail("opened")
    assert caught.value.key == "redis.url"


async def test_it_dies_with_a_coordinator_that_is_killed_and_the_next_one_starts_at_once(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", COORDINATOR, tmp_path], cwd=ROOT, stdout=subprocess.PIPE)  # noqa: ASYNC220
    try:
        assert child.stdout is not None
        pid = int(await trio.to_thread.run_sync(child.stdout.readline))
    finally:
        child.kill()
        child.wait(10)
    async with open_embedded(tmp_path) as server:
        await until(lambda: not runs(pid))
        assert server.pid != pid


async def test_data_that_stop_it_are_set_aside(tmp_path):
    async with open_streams(RedisSettings(), tmp_path, "one") as streams:
        await streams.push([(1, 1)])
    folder = tmp_path / connect.FOLDER
    for file in (folder / DATA).iterdir():
        file.write_bytes(b"no append-only file")
    async with open_streams(RedisSettings(), tmp_path, "one") as streams:
        await streams.push([(2, 1)])
        assert [entry.task_id for entry in await streams.take(10)] == [2]
    assert (folder / f"{DATA}.damaged").is_dir()


async def test_a_folder_that_cannot_be_written_is_the_operator_s_to_mend(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Misconfigured) as caught:
        async with open_streams(RedisSettings(), tmp_path / "file", "one"):
            pytest.fail("opened")
    assert caught.value.key == "data_dir"


async def test_it_is_begun_anew_as_often_as_it_dies(tmp_path):
    async with open_embedded(tmp_path) as server:
        for _ in range(3):
            pid = server.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: server.pid not in (pid, None))
        assert server.restarts == 3


async def test_what_others_write_into_the_queue_is_cleared_away_and_holds_nothing_up(real, tmp_path):
    await real.start()
    with redis.Redis(port=real.port) as client:
        async with open_streams(RedisSettings(url=real.url, prefix=PREFIX), tmp_path, "one") as streams:
            await streams.push([(1, 1)])
            for priority in (1, 2):
                client.xadd(f"{PREFIX}:queue:{priority}", {"t": "no task"})
                client.xadd(f"{PREFIX}:queue:{priority}", {"other": b"\xff"})
            client.zadd(f"{PREFIX}:instances", {b"\xff": 2**52})
            await streams.push([(2, 1)])
            assert [entry.task_id for entry in await streams.take(10)] == [1, 2]
            assert "one" in await streams.beat("one", 10)
            with trio.move_on_after(0.5):
                await streams.take(10)
            client.xadd(f"{PREFIX}:queue:1", {"other": "while it waits"})
            await streams.push([(3, 3)])
            assert [entry.task_id for entry in await streams.take(10)] == [3]
            assert [entry.task_id for entry in await streams.orphans(0, 10)] == [1, 2, 3]
            assert [client.xlen(f"{PREFIX}:queue:{priority}") for priority in (1, 2, 3)] == [2, 0, 1]


async def test_news_that_nobody_can_read_do_not_end_those_that_follow(real, tmp_path):
    await real.start()
    async with (
        open_streams(RedisSettings(url=real.url, prefix=PREFIX), tmp_path, "one") as one,
        open_streams(RedisSettings(url=real.url, prefix=PREFIX), tmp_path, "two") as two,
        one.news() as news,
    ):
        with redis.Redis(port=real.port) as client:
            client.xadd(f"{PREFIX}:news", {"job": "none"})
            client.xadd(f"{PREFIX}:news", {"other": "1"})
        await two.announce(7)
        with trio.fail_after(10):
            assert await anext(news) == 7


async def test_a_server_that_takes_no_writes_is_away_although_it_answers(real, tmp_path):
    real.options = ("--replicaof", "127.0.0.1", "1")
    await real.start()
    async with open_streams(RedisSettings(url=real.url), tmp_path, "one") as streams:
        with pytest.raises(Transient) as caught:
            await streams.ping()
        assert caught.value.code == UNREACHABLE


async def test_a_server_that_may_evict_is_named_at_the_start(real, tmp_path):
    real.options = ("--maxmemory-policy", "allkeys-lru")
    await real.start()
    with structlog.testing.capture_logs() as logs:
        async with open_streams(RedisSettings(url=real.url), tmp_path, "one") as streams:
            await streams.ping()
    assert [entry["policy"] for entry in logs if entry["event"] == "streams_may_be_evicted"] == ["allkeys-lru"]
