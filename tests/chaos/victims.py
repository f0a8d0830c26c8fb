"""What is killed: an anvil that keeps its state on disk, a Redis, and coordinators; each ends by SIGKILL and starts again."""

from __future__ import annotations

import gzip
import itertools
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import httpx
import structlog
import trio

from cli.devnet.chain import HARDFORK, Chain, ChainOptions, tied_to_this_process
from cli.devnet.devnet import CHILD_READY_S, Devnet
from cli.devnet.embedded.accounts import MNEMONIC, dev_accounts
from cli.devnet.processes import Child
from tests.components import require

log = structlog.get_logger(__name__)

START_S = 30.0
_LOOK_S = 0.05
BLOCK_S = 1.0
BLOCKS_EACH_DUMP = 2
"""From one dump of the chain's state to the next: what a SIGKILL takes back."""
BLOCKS_KEPT = 300
"""Blocks whose transactions the chain keeps: a dump of all of them would soon do nothing else than dump."""


class Victim(Protocol):
    """A process that may be killed at any instant."""

    @property
    def name(self) -> str: ...

    async def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        ...

    async def start(self) -> None:
        """Starts it again; returns when it answers."""
        ...


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@dataclass
class Server:
    """A server program on a fixed port."""

    name: str
    command: list[str]
    log: Path
    answers: Callable[[], bool]
    before_start: Callable[[], None] = lambda: None
    process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        self.before_start()
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(  # noqa: ASYNC220  (from this very thread: see tied_to_this_process)
                tied_to_this_process(self.command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        with trio.move_on_after(START_S):
            while not await trio.to_thread.run_sync(self.answers):
                assert self.process.poll() is None, f"{self.name} ended with {self.process.returncode}: {self.log}"
                await trio.sleep(_LOOK_S)
            return
        raise AssertionError(f"{self.name} did not answer within {START_S:g} s: {self.log}")

    async def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            await trio.to_thread.run_sync(self.process.wait)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid


@dataclass
class Coordinator:
    """One of the devnet's coordinators."""

    name: str
    devnet: Devnet
    child: Child = field(init=False)

    def __post_init__(self) -> None:
        self.child = self.devnet.programs[self.name].child

    async def kill(self) -> None:
        self.child.process.kill()
        await self.child.exited.wait()

    async def start(self) -> None:
        program = self.devnet.programs[self.name]
        ready = program.config.with_name("ready.json")
        ready.unlink(missing_ok=True)
        self.child = self.devnet.processes.start(self.name, program.child.argv)
        await self.devnet.processes.ready(self.child, ready, CHILD_READY_S)


def redis(folder: Path) -> tuple[Server, str]:
    """A Redis that writes every command to disk; and its URL."""
    folder.mkdir()
    port = free_port()
    command = [str(require("redis-server")), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)]
    command += ["--save", "", "--appendonly", "yes"]

    def answers() -> bool:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    return Server("redis", command, folder / "log", answers), f"redis://127.0.0.1:{port}/0"


class DurableAnvil:
    """An anvil whose state is written to disk every two seconds: a SIGKILL takes back the blocks since, as a crash of a real
    node does. Blocks come at once until `tick`, afterwards once a second.

    Blocks and dumps are made here, one after the other: anvil's own dump (`--state-interval`) reads blocks first and accounts
    later, so one taken while a block is mined holds what the block did and not the block with its logs."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._state = folder / "state.json"
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._log = folder / "log"
        self._ticking = trio.Event()
        self.server: Server | None = None

    @asynccontextmanager
    async def open(self, options: ChainOptions) -> AsyncIterator[Chain]:
        """As `cli.devnet.chain.open_chain`."""
        command = [str(require("anvil")), "--host", "127.0.0.1", "--port", str(self._port), "--silent"]
        command += ["--chain-id", str(options.chain_id), "--mnemonic", MNEMONIC, "--accounts", str(options.accounts)]
        command += ["--balance", str(options.balance), "--hardfork", HARDFORK]
        command += ["--transaction-block-keeper", str(BLOCKS_KEPT)]
        self.server = Server("chain", command, self._log, self._answers)
        await self.server.start()
        accounts = await trio.to_thread.run_sync(dev_accounts, options.accounts)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._live)
                yield Chain("anvil", self.url, self.url.replace("http", "ws"), options.chain_id, self.server.pid, accounts)
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await self.server.kill()

    async def tick(self) -> None:
        """From now on a block each second, whatever waits; after restarts too. What was set up is on disk."""
        assert self.server is not None
        await self._ask("evm_setAutomine", [False])
        await self._dump()
        self.server.command += ["--no-mining", "--load-state", str(self._state)]
        self._ticking.set()

    async def _live(self) -> None:
        await self._ticking.wait()
        for block in itertools.count(1):
            await trio.sleep(BLOCK_S)
            try:
                await self._ask("evm_mine", [])
                if block % BLOCKS_EACH_DUMP == 0:
                    await self._dump()
            except (httpx.HTTPError, ValueError, KeyError) as error:
                log.info("chain is away", error=repr(error))  # killed

    async def _dump(self) -> None:
        dump = str(await self._ask("anvil_dumpState", []))
        half = self._state.with_suffix(".half")
        await trio.to_thread.run_sync(lambda: half.write_bytes(gzip.decompress(bytes.fromhex(dump.removeprefix("0x")))))
        half.replace(self._state)

    async def _ask(self, method: str, params: list[object]) -> object:
        return await trio.to_thread.run_sync(_rpc, self.url, method, params)

    def _answers(self) -> bool:
        try:
            return bool(_rpc(self.url, "eth_chainId", []))
        except (httpx.HTTPError, ValueError, KeyError):
            return False


def _rpc(url: str, method: str, params: list[object]) -> object:
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    with httpx.Client(trust_env=False, timeout=10) as client:
        return client.post(url, json=body).json()["result"]
