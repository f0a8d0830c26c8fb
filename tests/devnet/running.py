"""Real devnets for tests: started as a person starts them, asked over public HTTP and JSON-RPC only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import trio

from cli.account import Sender
from cli.devnet.jobs import Platform, demo_job, post
from consensus.codec import task_id as task_id_of
from node.infra.chain import ChainEvent
from node.infra.contracts import Function
from node.infra.evm import EvmChain, open_chain
from node.infra.rpc import Rpc, open_rpc
from node.infra.settings import ChainSettings, ContractSettings
from tests.components import NODE_MODULES

ROOT = Path(__file__).resolve().parents[2]
START_S = 120.0  # seven Python programs on two cores that other tests use too
GONE_S = 10.0
TASK_S = 90.0
"""Longest that a task takes which needs all its attempts."""

COUNT_OF = Function("countOf", ("uint256",), ("uint256",))
COMMITTEE = Function("committee", ("uint256", "uint256"), ("address[]",))

T = TypeVar("T")


def program(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def launch(command: list[str], output: Path) -> subprocess.Popen[bytes]:
    """Starts a program in a session of its own, its output in a file, as any shell would with `> file 2>&1`."""
    # What scripts in TypeScript need is where npm put it for the tests.
    path = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{NODE_MODULES / '.bin'}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path}
    with output.open("ab") as stream:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=ROOT,
            start_new_session=True,
        )


def eventually(check: Callable[[], T], seconds: float, what: str) -> T:
    """Looks until `check` answers something true; for what another process does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := check():
            return answer
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


async def soon(check: Callable[[], Awaitable[T]], what: str, seconds: float = TASK_S, every: float = 0.05) -> T:
    """`eventually` for async checks."""
    with trio.move_on_after(seconds):
        while True:
            if answer := await check():
                return answer
            await trio.sleep(every)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


def alive(pid: int) -> bool:
    """Whether a process runs: a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def processes_naming(folder: Path) -> list[int]:
    """Pids of processes whose command line names a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and str(folder).encode() in (entry / "cmdline").read_bytes() and alive(int(entry.name)):
                found.append(int(entry.name))
    return found


@dataclass
class RunningDevnet:
    """`triggerx devnet` as a child of the test."""

    folder: Path
    output: Path
    process: subprocess.Popen[bytes]
    ready: dict[str, Any] = field(default_factory=dict)
    restarted: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def pids(self) -> list[int]:
        """Every process of the devnet, by the ready file."""
        r = self.ready
        return [r["chain_pid"], r["bootstrap_pid"], r["coordinator_pid"], *(keeper["pid"] for keeper in r["keepers"])]

    def said(self) -> str:
        return self.output.read_text("utf-8", errors="replace")

    def wait_ready(self) -> dict[str, Any]:
        path = self.folder / "devnet.json"

        def look() -> bool:
            assert self.process.poll() is None, f"the devnet ended with code {self.process.returncode}:\n{self.said()}"
            return path.exists()

        try:
            eventually(look, START_S, "the ready file")
        except AssertionError as error:
            raise AssertionError(f"{error}; the devnet said:\n{self.said()}") from None
        self.ready = json.loads(path.read_text())
        return self.ready

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Sends a signal and waits; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(GONE_S)

    def close(self) -> None:
        """Whatever the test left, ended."""
        for process in (*self.restarted, self.process):
            if process.poll() is None:
                process.terminate()
        for process in (*self.restarted, self.process):
            try:
                process.wait(GONE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def start_devnet(folder: Path, *arguments: str) -> RunningDevnet:
    output = folder.with_name(folder.name + ".out")
    return RunningDevnet(folder, output, launch(program("cli.triggerx", "devnet", "--dir", str(folder), *arguments), output))


class Network:
    """A ready devnet as its users and operators see it."""

    def __init__(self, devnet: RunningDevnet, client: httpx.AsyncClient, rpc: Rpc, chain: EvmChain) -> None:
        self.devnet = devnet
        self.client = client
        self.rpc = rpc
        self.chain = chain

    @property
    def ready(self) -> dict[str, Any]:
        return self.devnet.ready

    @property
    def keepers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ready["keepers"]
        return found

    def keeper(self, address: str) -> dict[str, Any]:
        return next(k for k in self.keepers if k["address"].lower() == address.lower())

    async def post(self, value: int, *, interval: int, executions: int = 1, account: int = 0) -> int:
        """Posts a job that pings the demo contract with `value`; its id."""
        r = self.ready
        platform = Platform(
            r["coordinator_url"], r["api_key"], r["chain_id"], r["contracts"]["job_registry"], r["contracts"]["gas_registry"]
        )
        owner = Sender(self.rpc, r["accounts"][account]["private_key"], r["chain_id"])
        job = demo_job(r["contracts"]["demo"], value, interval=interval, time_frame=interval * executions)
        return int(await post(self.client, platform, owner, job))

    async def only_task(self, job_id: int) -> int:
        """Id of the one task of a job that runs once."""
        job = await self.chain.job(job_id)
        assert job is not None
        return task_id_of(job_id, job.created_at + job.interval)

    async def task(self, task_id: int) -> dict[str, Any]:
        """The coordinator's record of a task; empty while there is none, or while the coordinator is gone."""
        return await self._get(f"{self.ready['coordinator_url']}/api/tasks/id/{task_id}")

    async def trails(self, keeper: dict[str, Any], task_id: int) -> dict[str, Any]:
        """A keeper's trail of a task; empty while it has none, or is gone."""
        status = await self._get(f"{keeper['status_url']}/status")
        return next((t for t in status.get("trails", ()) if t["task_id"] == str(task_id)), {})

    async def _get(self, url: str) -> dict[str, Any]:
        try:
            answer = await self.client.get(url, headers={"X-API-KEY": self.ready["api_key"]})
            return answer.json() if answer.status_code == 200 else {}
        except httpx.HTTPError:
            return {}

    async def stage_reached(self, task_id: int, stage: str) -> dict[str, Any]:
        """Waits until the coordinator has noted a stage; the task's record."""

        async def look() -> dict[str, Any]:
            record = await self.task(task_id)
            return record if stage in record.get("stages", {}) else {}

        return await soon(look, f"task {task_id} at {stage}", every=0.03)

    async def performer_of(self, task_id: int) -> dict[str, Any]:
        """The keeper that acknowledged a task, once one has."""

        async def look() -> dict[str, Any] | None:
            for keeper in self.keepers:
                trail = await self.trails(keeper, task_id)
                if trail.get("facts", {}).get("role") == "performer" and "acknowledged" in trail["stages"]:
                    return keeper
            return None

        return await soon(look, f"an acknowledgement of task {task_id}", every=0.02)

    async def ended(self, task_id: int) -> dict[str, Any]:
        """Waits for a task's end; its record. The state is final, and if it failed it says why."""

        async def look() -> dict[str, Any]:
            record = await self.task(task_id)
            return record if record.get("task_status") in ENDS else {}

        record = await soon(look, f"the end of task {task_id}")
        assert record["task_status"] == "completed" or record["task_error"], record
        return record

    async def tasks(self, job_id: int) -> list[dict[str, Any]]:
        """The coordinator's records of a job's tasks."""
        answer = await self.client.get(
            f"{self.ready['coordinator_url']}/api/tasks/job/{job_id}", headers={"X-API-KEY": self.ready["api_key"]}
        )
        found: list[dict[str, Any]] = answer.json()
        return found

    async def settled(self, job_id: int) -> list[dict[str, Any]]:
        """Waits until no task of a job is under way; their records."""

        async def look() -> list[dict[str, Any]]:
            tasks = await self.tasks(job_id)
            return tasks if all(task["task_status"] in ENDS for task in tasks) else []

        return await soon(look, f"the end of every task of job {job_id}")

    async def tasks_ended(self, job_id: int, count: int = 1) -> list[dict[str, Any]]:
        """Waits until a job has so many tasks, and all have ended; their records."""

        async def look() -> list[dict[str, Any]]:
            tasks = await self.tasks(job_id)
            return tasks if len(tasks) >= count and all(task["task_status"] in ENDS for task in tasks) else []

        return await soon(look, f"the end of {count} tasks of job {job_id}")

    async def events(self, kind: type[ChainEvent], task_id: int) -> list[Any]:
        """Every event of a kind about a task, from the chain's beginning."""
        head = await self.chain.head()
        return [
            e for e in await self.chain.events(0, head.number) if isinstance(e, kind) and getattr(e, "task_id", None) == task_id
        ]

    async def view(self, contract: str, function: Function, *values: Any) -> Any:
        call = {"to": self.ready["contracts"][contract], "data": "0x" + function.encode(*values).hex()}
        data = await self.rpc.call("eth_call", [call, "pending"])  # a block's hash is known from the next one on
        return function.decode_output(bytes.fromhex(data[2:]))[0]

    async def pings(self, value: int) -> int:
        """How often the demo contract was called with a value."""
        return int(await self.view("demo", COUNT_OF, value))

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not alive(pid), 5, f"the end of {pid}")

    async def restart_keeper(self, keeper: dict[str, Any]) -> None:
        ready = await self._restart("cli.node", Path(keeper["config"]))
        keeper["pid"] = ready["pid"]

    async def restart_coordinator(self) -> None:
        ready = await self._restart("cli.coordinator", Path(self.ready["coordinator_config"]))
        self.ready["coordinator_pid"] = ready["pid"]

    async def _restart(self, module: str, config: Path) -> dict[str, Any]:
        ready = config.with_name("again.json")
        ready.unlink(missing_ok=True)
        output = config.with_name("again.log")
        process = launch(program(module, "start", "--config", str(config), "--ready-file", str(ready)), output)
        self.devnet.restarted.append(process)

        async def look() -> bool:
            assert process.poll() is None, output.read_text()
            return ready.exists()

        await soon(look, f"{module} again", seconds=START_S)
        found: dict[str, Any] = json.loads(ready.read_text())
        return found

    async def whole(self) -> None:
        """Waits until every keeper is ready and connected to all others."""
        ids = {keeper["peer_id"] for keeper in self.keepers}

        async def look() -> bool:
            statuses = [await self._get(f"{keeper['status_url']}/status") for keeper in self.keepers]
            return all(ids - {s["peer_id"]} <= set(s["peers"]) if s else False for s in statuses)

        await soon(look, "the mesh is whole again", every=0.2)


ENDS = frozenset({"completed", "failed", "rejected", "not_executed", "not_attested", "expired"})


@asynccontextmanager
async def connected(devnet: RunningDevnet) -> AsyncIterator[Network]:
    """Connections of a test to a ready devnet."""
    r = devnet.ready
    named = {k: v for k, v in r["contracts"].items() if k in ContractSettings.model_fields}
    contracts = ContractSettings(**{k: bytes.fromhex(v[2:]) for k, v in named.items()})
    settings = ChainSettings(id=r["chain_id"], name="devnet", rpc=(r["rpc_url"],), contracts=contracts)
    async with (
        httpx.AsyncClient(trust_env=False, timeout=5) as client,
        open_rpc([r["rpc_url"]], expect_chain_id=r["chain_id"]) as rpc,
    ):
        yield Network(devnet, client, rpc, await open_chain(settings, rpc))


# One devnet serves all tests of its kind. Two at once would be 16 processes, so the next kind ends the one before.
_shared: dict[str, RunningDevnet] = {}


def shared_devnet(kind: str, folder: Path) -> RunningDevnet:
    """The devnet of a kind (`anvil`, `embedded`) with five keepers and no demo job, started when it does not run yet."""
    for other in [name for name in _shared if name != kind]:
        _shared.pop(other).close()
    if kind not in _shared:
        devnet = _shared[kind] = start_devnet(folder, "--no-demo", "--chain", kind)
        try:
            devnet.wait_ready()
        except BaseException:
            end_shared()
            raise
    return _shared[kind]


def end_shared(kinds: Iterable[str] = ()) -> None:
    for kind in list(kinds) or list(_shared):
        if kind in _shared:
            _shared.pop(kind).close()
