"""What holds on a Docker engine beside what holds for every sandbox: containers used once, none left, an engine that comes and
goes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any, cast

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from consensus.errors import Misconfigured, Transient
from node.infra.aio import open_asyncio_thread
from node.sandbox.docker import DockerSandbox, open_docker
from node.sandbox.docker_container import LABEL, Shape
from node.sandbox.docker_engine import Answer, Attached, Head
from node.sandbox.docker_engine import Engine as DockerEngine
from node.sandbox.docker_pool import open_pool
from node.sandbox.port import Language, Limits, Program, Stopped
from node.sandbox.seccomp import docker_profile
from tests.sandbox.engine import IMAGE, Engine
from tests.sandbox.kinds import nowhere, on_docker

PATIENCE_S = 60.0


def python(source: str, stdin: bytes = b"") -> Program:
    return Program(Language.PYTHON, source.encode(), stdin)


@pytest.fixture
async def sandbox(docker_engine: Engine, tmp_path: Path) -> AsyncIterator[DockerSandbox]:
    async with on_docker(docker_engine, tmp_path / "containers") as opened:
        with trio.fail_after(PATIENCE_S):
            await opened.settled()
        yield opened


async def containers(engine: Engine) -> set[str]:
    return await trio.to_thread.run_sync(engine.containers)


async def test_a_container_that_waited_is_used_once(docker_engine: Engine, sandbox: DockerSandbox):
    [waiting] = await containers(docker_engine)
    write = "import os; print(os.listdir('/tmp')); open('/tmp/mark', 'w').write('x')"
    for _ in range(3):
        assert (await sandbox.run(python(write), Limits())).stdout == b"[]\n"
        await sandbox.settled()
        [later] = await containers(docker_engine)
        assert later != waiting
        waiting = later


async def test_a_run_takes_the_container_that_waits(docker_engine: Engine, sandbox: DockerSandbox):
    [waiting] = await containers(docker_engine)

    async def run() -> None:
        await sandbox.run(python("import time; time.sleep(30)"), Limits())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        await sandbox.settled()  # another waits in its place
        found = await containers(docker_engine)
        assert waiting in found
        assert len(found) == 2
        nursery.cancel_scope.cancel()
    assert waiting not in await containers(docker_engine)


async def test_other_limits_get_a_container_of_their_own(docker_engine: Engine, sandbox: DockerSandbox):
    before = await containers(docker_engine)
    limits = Limits(memory=64 * 1024 * 1024)
    with pytest.raises(Stopped) as stopped:
        await sandbox.run(python("x = bytearray(100 << 20)"), limits)
    assert stopped.value.code == "SCRIPT_MEMORY"
    await sandbox.settled()
    assert await containers(docker_engine) == before


async def test_nothing_is_left_when_it_closes(docker_engine: Engine, tmp_path: Path):
    folder = tmp_path / "containers"
    async with on_docker(docker_engine, folder, warm=2) as sandbox:
        await sandbox.settled()
        assert len(await containers(docker_engine)) == 2
        await sandbox.run(python("print(1)"), Limits())
    assert await containers(docker_engine) == set()
    assert os.listdir(folder) == []


async def test_without_a_pool_runs_are_only_slower(docker_engine: Engine, tmp_path: Path):
    async with on_docker(docker_engine, tmp_path / "containers", warm=0) as sandbox:
        assert (await sandbox.run(python("print(1)"), Limits())).stdout == b"1\n"
        await sandbox.settled()
        assert await containers(docker_engine) == set()


async def test_a_container_that_died_waiting_costs_no_run(docker_engine: Engine, sandbox: DockerSandbox):
    [waiting] = await containers(docker_engine)
    await trio.to_thread.run_sync(docker_engine.docker, "kill", waiting)
    assert (await sandbox.run(python("print(1)"), Limits())).stdout == b"1\n"


CHILD = """
import sys, trio
from pathlib import Path
from tests.sandbox.kinds import on_docker
from tests.sandbox.engine import Engine

async def main():
    async with on_docker(Engine(Path(sys.argv[1])), Path(sys.argv[2]), warm=2, owner="crashed") as sandbox:
        await sandbox.settled()
        print("ready", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


async def test_what_a_killed_node_left_is_removed_when_it_starts_again(docker_engine: Engine, tmp_path: Path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", CHILD, str(docker_engine.folder), str(tmp_path / "containers")]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    async with trio.open_nursery() as nursery:
        child = await nursery.start(partial(trio.run_process, command, stdout=PIPE, check=False, cwd=root, env=environment))
        assert (await child.stdout.receive_some()).startswith(b"ready")
        child.kill()
    left = await containers(docker_engine)
    assert len(left) == 2

    async with on_docker(docker_engine, tmp_path / "others", warm=0, owner="another") as sandbox:
        await sandbox.settled()
        assert await containers(docker_engine) == left  # another node's are not ours to remove
    with capture_logs() as logs:
        async with on_docker(docker_engine, tmp_path / "containers", warm=0, owner="crashed") as sandbox:
            await sandbox.settled()
            assert await containers(docker_engine) == set()
    assert {"event": "stray_containers_removed", "log_level": "info", "containers": 2} in logs


async def test_an_engine_that_is_killed_and_comes_back_is_used_again(docker_engine: Engine, tmp_path: Path):
    async with on_docker(docker_engine, tmp_path / "containers") as sandbox:
        await sandbox.settled()
        problems: list[Transient] = []

        async def run() -> None:
            program = python("import time; time.sleep(60)")
            with pytest.raises(Transient) as raised:
                await sandbox.run(program, Limits(wall_s=60))
            problems.append(raised.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await trio.testing.wait_all_tasks_blocked()
            await sandbox.settled()
            await trio.to_thread.run_sync(docker_engine.kill)
        with pytest.raises(Transient) as raised:
            await sandbox.run(python("print(1)"), Limits())
        problems.append(raised.value)
        assert {problem.code for problem in problems} == {"SANDBOX_UNAVAILABLE"}

        await trio.to_thread.run_sync(docker_engine.start)
        with trio.fail_after(PATIENCE_S):
            await sandbox.settled()
        assert (await sandbox.run(python("print(1)"), Limits())).stdout == b"1\n"
    assert await containers(docker_engine) == set()


async def test_an_engine_that_is_away_at_the_start_is_waited_for(tmp_path: Path):
    engine = Engine(tmp_path)
    with capture_logs() as logs:
        async with on_docker(engine, tmp_path / "containers") as sandbox:
            assert sandbox.languages == frozenset(Language)
            for _ in range(2):
                with pytest.raises(Transient, match="SANDBOX_UNAVAILABLE"):
                    await sandbox.run(python("print(1)"), Limits())
                with pytest.raises(Transient, match="SANDBOX_UNAVAILABLE"):
                    await sandbox.check(Language.PYTHON, b"1")
    assert [each["log_level"] for each in logs if each["event"] == "docker_unreachable"] == ["warning"]


async def test_an_engine_without_the_image_is_misconfigured_and_says_how_to_build_it(docker_engine: Engine, tmp_path: Path):
    async with open_asyncio_thread() as aio:
        with pytest.raises(Misconfigured, match=r"docker build -t no-such-image deploy/sandbox") as raised:
            async with open_docker(
                aio, url=docker_engine.url, image="no-such-image", owner="tests", folder=tmp_path, addresses=nowhere
            ):
                pass
    assert raised.value.key == "sandbox.image"


async def test_an_image_that_goes_away_later_is_this_keepers_fault(docker_engine: Engine, tmp_path: Path):
    await trio.to_thread.run_sync(docker_engine.docker, "tag", IMAGE, "short-lived")
    async with (
        open_asyncio_thread() as aio,
        open_docker(
            aio, url=docker_engine.url, image="short-lived", owner="tests", folder=tmp_path, addresses=nowhere, warm=0
        ) as sandbox,
    ):
        assert (await sandbox.run(python("print(1)"), Limits())).exit_code == 0
        await trio.to_thread.run_sync(docker_engine.docker, "rmi", "short-lived")
        with pytest.raises(Transient, match="docker build"):
            await sandbox.run(python("print(1)"), Limits())


async def test_a_container_has_every_limit_and_no_privilege(docker_engine: Engine, sandbox: DockerSandbox):
    [waiting] = await containers(docker_engine)
    [shown] = json.loads(await trio.to_thread.run_sync(docker_engine.docker, "inspect", waiting))
    host = shown["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == 512 * 1024 * 1024
    assert host["CpuQuota"] == host["CpuPeriod"]
    assert host["PidsLimit"] == 66
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert host["ReadonlyRootfs"]
    assert not host["Privileged"]
    assert host["NetworkMode"] == "none"
    assert host["LogConfig"]["Type"] == "none"
    assert shown["Config"]["User"] == "65534:65534"
    assert shown["Config"]["Labels"] == {LABEL: "tests"}
    assert all(not mount["RW"] for mount in shown["Mounts"])
    assert "no-new-privileges:true" in host["SecurityOpt"]
    [profile] = [each.removeprefix("seccomp=") for each in host["SecurityOpt"] if each.startswith("seccomp=")]
    assert json.loads(profile) == docker_profile()


STATUS = """
import socket
for line in open("/proc/self/status"):
    if line.startswith(("Cap", "NoNewPrivs", "Seccomp:", "Uid", "Gid", "Groups")):
        print(line.split(":")[0], *sorted(set(line.split(":")[1].split())))
try:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)  # which the engine's own profile allows
except OSError as error:
    print("netlink", error.errno)
"""


async def test_the_profile_is_loaded_and_nothing_is_left_of_root(sandbox: DockerSandbox):
    lines = (await sandbox.run(python(STATUS), Limits())).stdout.decode().splitlines()
    found = dict(line.partition(" ")[::2] for line in lines)
    assert {found[each] for each in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (found["NoNewPrivs"], found["Seccomp"], found["netlink"]) == ("1", "2", "1")
    assert (found["Uid"], found["Gid"], found["Groups"]) == ("65534", "65534", found["Groups"])
    assert found["Groups"] in ("", "65534")


LAUNCHER = """
import os, signal
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGCHLD, signal.SIGPIPE):
    os.kill(1, number)
for place in ("/proc/1/mem", "/proc/1/fd/0", "/proc/1/environ", "/proc/1/root/etc/passwd"):
    try:
        open(place, "rb")
        print("opened", place)
    except PermissionError:
        pass
try:
    os.listdir("/proc/1/fd")
    print("listed")
except PermissionError:
    pass
print("tried")
"""


async def test_a_program_can_neither_end_nor_read_nor_speak_for_its_launcher(sandbox: DockerSandbox):
    finished = await sandbox.run(python(LAUNCHER), Limits())
    assert (finished.stdout, finished.stderr, finished.exit_code) == (b"tried\n", b"", 0)


async def test_a_cancelled_run_is_gone_when_it_returns(docker_engine: Engine, sandbox: DockerSandbox):
    [waiting] = await containers(docker_engine)
    with trio.move_on_after(0.3) as scope:
        await sandbox.run(python("while True: pass"), Limits())
    assert scope.cancelled_caught
    assert waiting not in await containers(docker_engine)


async def test_runs_beyond_the_bound_wait_their_turn(docker_engine: Engine, tmp_path: Path):
    async with on_docker(docker_engine, tmp_path / "containers", warm=0, concurrency=1) as sandbox:
        most = 0

        async def run() -> None:
            await sandbox.run(python("print(1)"), Limits())

        async def watch() -> None:
            nonlocal most
            while True:
                running = await trio.to_thread.run_sync(docker_engine.docker, "ps", "--quiet")
                most = max(most, len(running.split()))

        async with trio.open_nursery() as watching:
            watching.start_soon(watch)
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(run)
            watching.cancel_scope.cancel()
        assert most <= 2  # one runs while the one before is removed


async def test_usage_is_of_the_run_and_not_of_the_wait(sandbox: DockerSandbox):
    short = await sandbox.run(python("print(1)"), Limits())
    await sandbox.settled()
    work = "import time\nx = bytearray(100 << 20)\nwhile time.process_time() < 0.5: pass"
    long = await sandbox.run(python(work), replace(Limits(), wall_s=30))
    assert short.usage.cpu_ms < 400 <= long.usage.cpu_ms < 2000
    assert short.usage.peak_kib < 40_000 < 100 * 1024 <= long.usage.peak_kib < 140 * 1024
    assert long.usage.wall_ms >= 400
    assert long.usage.transferred == 0


async def test_stdin_of_a_megabyte_arrives_whole(sandbox: DockerSandbox):
    program = python("import sys; print(len(sys.stdin.buffer.read()))", b"x" * 1_000_000)
    assert (await sandbox.run(program, Limits())).stdout == b"1000000\n"


class Stuck:
    """An engine whose containers start, and are not removed before it is told to."""

    image = "any"
    outages = 0

    def __init__(self) -> None:
        self.there: list[str] = []
        self.stuck = True

    async def start(self, name: str, config: Mapping[str, Any]) -> tuple[Attached, Answer]:
        self.there.append(name)
        return cast(Attached, None), Answer(Head())

    async def hang_up(self, attached: Attached) -> None:
        await trio.lowlevel.checkpoint()

    async def remove(self, name: str) -> None:
        if self.stuck:
            await trio.sleep_forever()
        self.there.remove(name)

    async def labelled(self, label: str) -> list[str]:
        await trio.lowlevel.checkpoint()
        return list(self.there)


async def test_a_container_that_is_not_removed_in_time_is_removed_later(tmp_path: Path, autojump_clock: trio.testing.MockClock):
    engine = Stuck()
    shape = Shape.of(Limits())
    async with open_pool(cast(DockerEngine, engine), "tests", tmp_path / "containers", shape, 0) as pool:
        await pool.settled()
        container, waited = await pool.take(shape)
        assert not waited
        await pool.kill(container)
        assert engine.there == [container.name]
        engine.stuck = False
        await pool.settled()
        assert engine.there == []
        assert os.listdir(tmp_path / "containers") == []


async def test_more_used_containers_than_can_wait_for_their_removal_are_removed_all_the_same(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
):
    engine = Stuck()
    engine.stuck = False
    shape = Shape.of(Limits())
    async with open_pool(cast(DockerEngine, engine), "tests", tmp_path / "containers", shape, 1) as pool:
        await pool.settled()
        for _ in range(100):
            pool.discard(await pool.fresh(shape))
        await pool.settled()
        assert len(engine.there) == 1
