"""A keeper's process that executes one task and may be killed at any await of it: started once, it forks for each run.

Reads orders from stdin and writes what became of each run to stdout, one JSON object a line.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog
import trio

from node.infra.evm import EvmChain, Tariff, open_chain
from node.infra.evm_reads import Reader
from node.infra.evm_wallet import EvmWallet
from node.infra.gas_price import GWEI, FeeLimits
from node.infra.rpc import Rpc, open_rpc
from node.infra.secret import Secret
from node.infra.settings import ChainSettings, ContractSettings
from node.infra.sqlite import open_database
from node.infra.transaction_log import SENT_MIGRATIONS, SqliteTransactionLog
from node.infra.transactions import Outbox
from tests.chain.worlds import PING, actors, authorise

ROOT = Path(__file__).resolve().parent.parent.parent
DEAR = 10 * GWEI
_LIMITS = FeeLimits(10_000 * GWEI, 0.0)  # what waits and offers too little is replaced at the next look
_KEEPER = actors(1)[0]
_CALL = PING.encode(7)
_AT_ONCE_S = 5.0


@dataclass(frozen=True)
class Setup:
    """What stays the same: the chain, its contracts, the keeper's database, and an interval job."""

    url: str
    chain_id: int
    contracts: dict[str, str]
    database: str
    job_id: int
    target: str


@dataclass(frozen=True)
class Order:
    """One life of the process: the task of `second`. `kill_at` counts awaits, before and after each; None lives on.

    With `stuck` the transaction is sent first and the base fee raised above its offer, and only then may the process die.
    `other_first` sends something else before the task, and `other_after` when it is done.
    """

    second: int
    kill_at: int | None = None
    stuck: bool = False
    other_first: bool = False
    other_after: bool = False


@dataclass(frozen=True)
class Outcome:
    """`killed`, or the transaction that was mined, in how many steps, and how many hashes its key had by then."""

    killed: bool
    tx_hash: str = ""
    success: bool = False
    steps: int = 0
    versions: int = 0


class Executioner(trio.abc.Instrument):
    """Kills this process at one of the points where a task stops or goes on, counted from `arm`."""

    def __init__(self, kill_at: int | None) -> None:
        self._kill_at = kill_at
        self._armed = False
        self.steps = 0

    @contextmanager
    def armed(self) -> Iterator[None]:
        self._armed = True
        yield
        self._armed = False

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._step()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._step()

    def _step(self) -> None:
        if self._armed:
            if self.steps == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            self.steps += 1


def settings_of(setup: Setup) -> ChainSettings:
    addresses: dict[str, Any] = {name: bytes.fromhex(at[2:]) for name, at in setup.contracts.items()}
    contracts = ContractSettings(**addresses)
    return ChainSettings(id=setup.chain_id, name="anvil", rpc=(setup.url,), poll_interval_ms=10, contracts=contracts)


async def read_tariff(setup: Setup) -> Tariff:
    """Once for all runs: a start reads it before it submits anything."""
    async with open_rpc([setup.url], expect_chain_id=setup.chain_id) as rpc:
        return (await open_chain(settings_of(setup), rpc)).tariff


async def live(setup: Setup, tariff: Tariff, order: Order, executioner: Executioner) -> Outcome:
    async with (
        open_rpc([setup.url], expect_chain_id=setup.chain_id) as rpc,
        open_database(setup.database, SENT_MIGRATIONS, durable=True) as database,
    ):
        sent_log = SqliteTransactionLog(database)
        chain = EvmChain(settings_of(setup), Reader(rpc), tariff)
        outbox = Outbox(rpc, Secret(_KEEPER.secret), setup.chain_id, sent_log, _LIMITS)
        wallet = EvmWallet(chain, outbox)
        target = bytes.fromhex(setup.target)
        authorisation, signature = authorise(chain, setup.job_id, order.second, _KEEPER.address, target, call=_CALL)

        async def send() -> bytes:
            return await wallet.send(await wallet.prepare_execution(authorisation, signature, target, _CALL, 0))

        if order.other_first:
            await _send_other(outbox, f"before {order.second}")
        if order.stuck:
            tx_hash = await send()
            await _make_dear(rpc)
            with executioner.armed():
                mined = await wallet.mined(tx_hash)
        else:
            with executioner.armed():
                mined = await wallet.mined(await send())
        versions = len(await sent_log.versions(mined.tx_hash))
        if order.other_after:
            await _send_other(outbox, f"after {order.second}")
        return Outcome(False, mined.tx_hash.hex(), mined.success, executioner.steps, versions)


async def _send_other(outbox: Outbox, key: str) -> None:
    """Is mined at once, unless there is a gap before it."""
    with trio.fail_after(_AT_ONCE_S):
        prepared = await outbox.prepare(key, b"\x11" * 20, key.encode(), gas=50_000)
        assert (await outbox.receipt(await outbox.send(prepared), [0.01])).status


async def _make_dear(rpc: Rpc) -> None:
    """A block that the waiting transaction cannot pay for; what comes after is mined at once."""
    await rpc.call("anvil_setNextBlockBaseFeePerGas", [hex(DEAR)])
    await rpc.call("evm_mine")
    await rpc.call("evm_setAutomine", [True])


def _fork(setup: Setup, tariff: Tariff, order: Order) -> Outcome:
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        executioner = Executioner(order.kill_at)
        outcome = trio.run(live, setup, tariff, order, executioner, instruments=[executioner])
        os.write(write_end, json.dumps(asdict(outcome)).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return Outcome(True)
    if status != 0 or not told:
        raise RuntimeError(f"a run ended with status {status}")
    return Outcome(**json.loads(told))


class Keeper:
    """The process, seen from the test."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    async def run(self, order: Order) -> Outcome:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(asdict(order)), file=self._process.stdin, flush=True)
        line = await trio.to_thread.run_sync(self._process.stdout.readline)
        assert line, "the keeper's process ended; its errors are above"
        return Outcome(**json.loads(line))


@contextmanager
def keeper_process(setup: Setup) -> Iterator[Keeper]:
    command = [sys.executable, "-m", "tests.chain.submitting", json.dumps(asdict(setup))]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Keeper(process)
        assert process.stdin is not None
        process.stdin.close()


def main() -> None:
    quiet = structlog.make_filtering_bound_logger(logging.ERROR)
    structlog.configure(wrapper_class=quiet, logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is for outcomes
    setup = Setup(**json.loads(sys.argv[1]))
    tariff = trio.run(read_tariff, setup)
    gc.freeze()  # or each run would copy what it only collects
    for line in sys.stdin:
        print(json.dumps(asdict(_fork(setup, tariff, Order(**json.loads(line))))), flush=True)


if __name__ == "__main__":
    main()
