"""The chain of a devnet as a process of its own: anvil where it is on PATH, the embedded py-evm otherwise."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

import httpx
import structlog
import trio

from cli.devnet.embedded.accounts import MNEMONIC, DevAccount, dev_accounts
from consensus.errors import Failed, Misconfigured

log = structlog.get_logger()

Engine = Literal["auto", "anvil", "embedded"]

CHAIN_ID: Final = 31337
HARDFORK: Final = "prague"
"""py-evm ends there; on anvil too, so that gas and precompiles are the same on both (its own default is newer)."""

STATES_KEPT: Final = 128
"""Blocks back from the head whose state anvil answers for (the embedded chain: all), each a copy of some 2 MB after
5,000 blocks. Without a limit it keeps 500 in memory and writes the others below HOME, 0.3 GB after 1,000 small blocks.
Block hashes, logs and EIP-2935 do not depend on it."""

BLOCKS_KEPT: Final = 65_536
"""Blocks whose transactions and logs anvil keeps, at some 10 kB each; six hours of a devnet at 3 blocks a second.
Beyond it eth_getLogs leaves the oldest out."""

STOP_SECONDS: Final = 3.0
TAIL_BYTES: Final = 8192
LISTENING: Final = b"Listening on "

# Runs between fork and the chain: the kernel kills the chain when the thread that started it ends, however that happens
# (prctl(PR_SET_PDEATHSIG) outlives exec). A program instead of preexec_fn, which may deadlock in a threaded process.
_TIED: Final = """
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True, slots=True)
class ChainOptions:
    """How to start the chain. Every start is a fresh chain: nothing is kept on disk."""

    engine: Engine = "auto"
    port: int = 0
    """0 takes a free one."""
    chain_id: int = CHAIN_ID
    accounts: int = 30
    balance: int = 10_000
    """Ether of each account."""
    heartbeat: int | None = None
    """Seconds after which an empty block is mined when nothing else was; None for blocks with transactions only."""
    start_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Chain:
    """A running chain."""

    kind: str
    """For people: "anvil 1.7.1" or "embedded py-evm 0.12.1b1"."""
    rpc_url: str
    ws_url: str | None
    """None where the engine has no subscriptions."""
    chain_id: int
    pid: int
    accounts: tuple[DevAccount, ...]
    """Funded, the same on every start."""


def tied_to_this_process(command: list[str]) -> list[str]:
    """`command`, made to die with us even when we are killed (Linux; elsewhere as it is).

    Start it from a thread that lives as long as it should: the kernel watches the thread, not the process. trio's own
    process functions start from a worker thread that ends after ten idle seconds.
    """
    if not sys.platform.startswith("linux"):
        return command
    return [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), *command]


@asynccontextmanager
async def open_chain(options: ChainOptions) -> AsyncIterator[Chain]:
    """Start a chain, wait until it answers, and end it with the block.

    Raises Misconfigured when the wanted engine is not installed, Failed when the chain does not come up or ends by
    itself; a Failed holds the last of its output.
    """
    engine = _engine(options.engine)
    process = _start(_anvil(options) if engine == "anvil" else _embedded(options))
    output = _Output()
    body_error: BaseException | None = None
    died: Failed | None = None

    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            nonlocal died
            await output.ended.wait()  # the end of its output is the end of the process
            code = await trio.to_thread.run_sync(process.wait)
            died = Failed("CHAIN_ENDED", f"{engine} ended with code {code}; it said:\n{output.tail()}")
            nursery.cancel_scope.cancel()

        nursery.start_soon(output.read, process)
        nursery.start_soon(watch)
        try:
            accounts = await trio.to_thread.run_sync(dev_accounts, options.accounts)  # while the chain starts
            address = await _address(output, engine, options)
            version = await _ready(f"http://{address}", options, output)
            ws_url = f"ws://{address}" if engine == "anvil" else None
            kind = " ".join(version.replace("/v", "/").split("/"))
            log.info("chain is up", kind=kind, rpc_url=f"http://{address}", pid=process.pid)
            yield Chain(kind, f"http://{address}", ws_url, options.chain_id, process.pid, accounts)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  (raised again below, outside the nursery, which would wrap it in a group)
            body_error = error
        finally:
            nursery.cancel_scope.cancel()
            await _stop(process)
    if died is not None:
        raise died from body_error  # what the block made of it is the consequence
    if body_error is not None:
        raise body_error


def _engine(wanted: Engine) -> Literal["anvil", "embedded"]:
    if wanted != "embedded" and shutil.which("anvil"):
        return "anvil"
    if wanted == "anvil":
        raise Misconfigured("chain.engine", "anvil is not on PATH: install foundry, or use the embedded chain")
    if find_spec("eth") is None:
        raise Misconfigured("chain.engine", "neither anvil is on PATH nor py-evm installed: pip install 'triggerx-node[devnet]'")
    return "embedded"


def _anvil(options: ChainOptions) -> list[str]:
    command = ["anvil", "--host", "127.0.0.1", "--port", str(options.port), "--chain-id", str(options.chain_id)]
    command += ["--mnemonic", MNEMONIC, "--accounts", str(options.accounts), "--balance", str(options.balance)]
    command += ["--hardfork", HARDFORK, "--prune-history", str(STATES_KEPT), "--transaction-block-keeper", str(BLOCKS_KEPT)]
    if options.heartbeat is not None:
        # Without --mixed-mining an interval replaces mining at once.
        command += ["--block-time", str(options.heartbeat), "--mixed-mining"]
    return command


def _embedded(options: ChainOptions) -> list[str]:
    command = [sys.executable, "-m", "cli.devnet.embedded", "--port", str(options.port), "--chain-id", str(options.chain_id)]
    command += ["--balance", str(options.balance), "--accounts", str(options.accounts)]
    if options.heartbeat is not None:
        command += ["--heartbeat", str(options.heartbeat)]
    return command


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    """Start it from this very thread (see `tied_to_this_process`), in a group of its own so that Ctrl-C comes to us only."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)
    return subprocess.Popen(
        tied_to_this_process(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )


async def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL after three seconds; also while we are being cancelled."""
    with trio.CancelScope(shield=True):
        process.terminate()
        with trio.move_on_after(STOP_SECONDS):
            while process.poll() is None:  # noqa: ASYNC110  (subprocess has no event to wait for)
                await trio.sleep(0.01)
        if process.returncode is None:
            process.kill()
            await trio.to_thread.run_sync(process.wait)
    if process.stdout is not None:
        process.stdout.close()


class _Output:
    """Keeps reading what the process says, so that it never blocks on a full pipe, and keeps the last of it."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._line = b""
        self.listening: str | None = None
        self.said_address = trio.Event()
        self.ended = trio.Event()

    async def read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        async with trio.lowlevel.FdStream(os.dup(process.stdout.fileno())) as stream:
            async for chunk in stream:
                self._keep(bytes(chunk))
                if self.listening is None:
                    self._look_for_address(bytes(chunk))
        self.ended.set()

    def _keep(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._size += len(chunk)
        while self._size - len(self._chunks[0]) > TAIL_BYTES:
            self._size -= len(self._chunks.popleft())

    def _look_for_address(self, chunk: bytes) -> None:
        *lines, self._line = (self._line + chunk).split(b"\n")
        for line in lines:
            if line.startswith(LISTENING):
                self.listening = line.removeprefix(LISTENING).strip().decode().removeprefix("http://")
                self.said_address.set()

    def tail(self) -> str:
        return b"".join(self._chunks)[-TAIL_BYTES:].decode(errors="replace").strip() or "(nothing)"


async def _address(output: _Output, engine: str, options: ChainOptions) -> str:
    with trio.move_on_after(options.start_seconds):
        await output.said_address.wait()
    if output.listening is None:
        raise Failed("CHAIN_NOT_READY", f"{engine} did not listen within {options.start_seconds} s; it said:\n{output.tail()}")
    return output.listening


async def _ready(url: str, options: ChainOptions, output: _Output) -> str:
    """Ask until it answers with the right chain id; returns its version."""
    last = "no answer"
    with trio.move_on_after(options.start_seconds):
        async with httpx.AsyncClient(trust_env=False) as client:
            while True:
                try:
                    chain_id = await _ask(client, url, "eth_chainId")
                    if int(chain_id, 16) != options.chain_id:
                        raise Failed("CHAIN_NOT_READY", f"{url} is chain {int(chain_id, 16)}, not {options.chain_id}")
                    return await _ask(client, url, "web3_clientVersion")
                except (httpx.HTTPError, ValueError, KeyError) as error:
                    last = repr(error)
                    await trio.sleep(0.05)
    detail = f"{url} gave no chain id within {options.start_seconds} s ({last}); it said:\n{output.tail()}"
    raise Failed("CHAIN_NOT_READY", detail)


async def _ask(client: httpx.AsyncClient, url: str, method: str) -> str:
    response = await client.post(url, json={"jsonrpc": "2.0", "id": 1, "method": method, "params": []})
    return str(response.json()["result"])
