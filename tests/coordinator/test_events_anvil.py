"""Event jobs on anvil: reorganisations, an RPC that restarts, WebSockets that drop, and ten thousand blocks nobody watched."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio

from consensus.events import declared
from coordinator.scheduler.event import RETURN_BLOCKS
from coordinator.store.records import Fired
from node.infra.clock import SystemClock
from node.infra.evm import EvmChain, Tariff
from node.infra.evm_reads import Reader, bytes_of, hex_of, int_of
from node.infra.rpc import Rpc, open_rpc
from node.infra.settings import ChainSettings, ContractSettings
from tests.anvil import running_anvil
from tests.chain.emitter import EMITTER_CODE, emit_call
from tests.coordinator.events_world import CONTRACT, EVENT, Desk, on_event, planned, scheduling, word

CHAIN_ID = 31337
SENDER = b"\x5e" * 20
TOPIC = declared(EVENT).topic
_TARIFF = Tariff(0, 0, 0, 0, 0, 0, 12)


class Line:
    """A TCP line to anvil that can be cut and mended: what is open ends, and nothing new gets through."""

    def __init__(self, host: str, port: int) -> None:
        self._to = (host, port)
        self._open: set[trio.CancelScope] = set()
        self._up = True
        self.opened = 0
        self.port = 0

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, self._carry, 0)
            self.port = listeners[0].socket.getsockname()[1]
            task_status.started()

    async def _carry(self, near: trio.SocketStream) -> None:
        if not self._up:
            await near.aclose()
            return
        self.opened += 1
        with trio.CancelScope() as life:
            self._open.add(life)
            try:
                async with near, await trio.open_tcp_stream(*self._to) as far, trio.open_nursery() as nursery:
                    nursery.start_soon(self._copy, near, far, life)
                    nursery.start_soon(self._copy, far, near, life)
            finally:
                self._open.discard(life)

    async def _copy(self, source: trio.SocketStream, sink: trio.SocketStream, life: trio.CancelScope) -> None:
        try:
            async for chunk in source:
                await sink.send_all(chunk)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        life.cancel()

    def drop(self) -> None:
        for life in list(self._open):
            life.cancel()

    def cut(self) -> None:
        self._up = False
        self.drop()

    def mend(self) -> None:
        self._up = True


class Anvil:
    """An anvil with an emitter on it, reached directly by the test and over a line by the scheduler."""

    def __init__(self, url: str, rpc: Rpc, line: Line) -> None:
        self.url = url
        self.rpc = rpc
        self.line = line
        self.desk = Desk()
        self.clock = SystemClock()
        self.nonce = 0

    @asynccontextmanager
    async def chain(self, *, ws: bool = False, poll_ms: int = 20, confirmations: int = 0) -> AsyncIterator[EvmChain]:
        """The coordinator's view of it."""
        place = f"127.0.0.1:{self.line.port}"
        nobody = {name: bytes([i]) * 20 for i, name in enumerate(ContractSettings.model_fields, 1) if name != "since_block"}
        settings = ChainSettings(
            id=CHAIN_ID,
            name="anvil",
            rpc=(f"http://{place}",),
            ws=f"ws://{place}" if ws else None,
            poll_interval_ms=poll_ms,
            confirmations=confirmations,
            contracts=ContractSettings.model_validate(nobody),
        )
        async with open_rpc(settings.rpc, expect_chain_id=CHAIN_ID, timeout=5) as rpc, trio.open_nursery() as nursery:
            chain = EvmChain(settings, Reader(rpc), _TARIFF)
            await nursery.start(chain.pulse.run, chain.head)
            yield chain
            nursery.cancel_scope.cancel()

    async def now(self) -> int:
        """Time of the newest block: jobs are created then."""
        return int_of((await self.rpc.call("eth_getBlockByNumber", ["latest", False]))["timestamp"])

    async def send(self, nonce: int, value: int = 1, count: int = 1, *, wait: bool = True) -> bytes:
        """A transaction that leaves logs; the same nonce, value and count are the same transaction."""
        request = {
            "from": hex_of(SENDER),
            "to": hex_of(CONTRACT),
            "nonce": hex(nonce),
            "gas": hex(2_000_000),
            "gasPrice": hex(10**11),
            "data": hex_of(emit_call(TOPIC, word(1), word(value), count)),
        }
        tx = await self.rpc.call("eth_sendTransaction", [request])
        if wait:
            with trio.fail_after(10):
                while await self.rpc.call("eth_getTransactionReceipt", [tx]) is None:
                    await trio.lowlevel.checkpoint()
        return bytes_of(tx)

    async def ping(self, value: int = 1) -> bytes:
        """A further log, in a block of its own."""
        self.nonce += 1
        return await self.send(self.nonce - 1, value)

    async def mine(self, count: int) -> None:
        await self.rpc.call("anvil_mine", [hex(count)])

    async def canonical(self) -> set[tuple[bytes, int]]:
        """Every log of the contract that is on the chain, read the long way."""
        head = int_of(await self.rpc.call("eth_blockNumber", []))
        found = set()
        query = {"address": hex_of(CONTRACT), "fromBlock": "0x0", "toBlock": hex(head)}
        for tx in {log["transactionHash"] for log in await self.rpc.call("eth_getLogs", [query])}:
            receipt = await self.rpc.call("eth_getTransactionReceipt", [tx])
            found |= {(bytes_of(tx), position) for position in range(len(receipt["logs"]))}
        return found

    def cancelled(self, job_id: int, gone: Sequence[bytes]) -> set[int]:
        return {self.desk.task_of(job_id, tx) for tx in gone}


@pytest.fixture(scope="module")
def anvil_url() -> Iterator[str]:
    with running_anvil("--accounts", "1", "--prune-history", "128") as url:  # states on disk make ten thousand blocks slow
        yield url


@pytest.fixture
async def anvil(anvil_url: str) -> AsyncIterator[Anvil]:
    parts = urlsplit(anvil_url)
    assert parts.hostname
    assert parts.port
    line = Line(parts.hostname, parts.port)
    async with open_rpc([anvil_url], expect_chain_id=CHAIN_ID, timeout=60) as rpc, trio.open_nursery() as nursery:
        await nursery.start(line.run)
        snapshot = await rpc.call("evm_snapshot", [])
        await rpc.call("anvil_autoImpersonateAccount", [True])
        await rpc.call("anvil_setCode", [hex_of(CONTRACT), hex_of(EMITTER_CODE)])
        await rpc.call("anvil_setBalance", [hex_of(SENDER), hex(10**24)])
        await rpc.call("anvil_setBlockTimestampInterval", [1])  # a job's own second does not count
        await rpc.call("evm_mine", [])
        yield Anvil(anvil_url, rpc, line)
        await rpc.call("evm_revert", [snapshot])
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
async def test_a_reorganisation_of_any_depth_loses_nothing_that_stays(anvil: Anvil, depth: int) -> None:
    jobs = [planned(1, on_event(), await anvil.now()), planned(2, on_event(confirmations=3), await anvil.now())]
    async with anvil.chain() as chain, scheduling(chain, anvil.clock, anvil.desk, *jobs):
        await anvil.desk.until(lambda: anvil.desk.caught_up == {1, 2}, 20)
        before = [await anvil.ping() for _ in range(7)]
        await anvil.desk.until(lambda: len(anvil.desk.fired(1)) == 7 and len(anvil.desk.fired(2)) == 4, 20)
        await anvil.rpc.call("anvil_reorg", [depth, []])
        anvil.nonce -= depth
        first = anvil.nonce
        same = await anvil.send(first)  # the first of those that went comes back, others take the places of the rest
        assert same == before[7 - depth]
        anvil.nonce = first + 1
        after = [await anvil.ping(value=9) for _ in range(depth)]
        await anvil.mine(RETURN_BLOCKS + 4)
        gone = before[8 - depth :]
        deep = [tx for tx in gone if (tx, 0) in anvil.desk.fired(2)]
        stay = anvil.cancelled(1, gone) | anvil.cancelled(2, deep)
        await anvil.desk.until(lambda: len(anvil.desk.cancelled) == len(stay) and len(anvil.desk.fired(2)) == 8 + len(deep), 20)
    expected = await anvil.canonical()
    assert expected == {(tx, 0) for tx in [*before[: 8 - depth], *after]}
    assert anvil.desk.fired(1) == expected | {(tx, 0) for tx in gone}
    assert anvil.desk.fired(2) == expected | {(tx, 0) for tx in deep}
    assert len(deep) == max(0, depth - 4)
    assert set(anvil.desk.cancelled) == stay
    assert anvil.desk.answers[Fired.NEW] == len(anvil.desk.tasks)


@pytest.mark.parametrize("depth", [1, 3, 5])
async def test_a_return_to_a_snapshot_and_another_branch_is_followed(anvil: Anvil, depth: int) -> None:
    async with anvil.chain() as chain, scheduling(chain, anvil.clock, anvil.desk, planned(1, on_event(), await anvil.now())):
        await anvil.desk.until(lambda: anvil.desk.caught_up == {1}, 20)
        stay = [await anvil.ping()]
        snapshot, nonce = await anvil.rpc.call("evm_snapshot", []), anvil.nonce
        gone = [await anvil.ping() for _ in range(depth)]
        await anvil.desk.until(lambda: len(anvil.desk.fired(1)) == 1 + depth, 20)
        await anvil.rpc.call("evm_revert", [snapshot])
        anvil.nonce = nonce
        stay += [await anvil.ping(value=5) for _ in range(depth + 1)]
        await anvil.mine(RETURN_BLOCKS + 1)
        await anvil.desk.until(lambda: len(anvil.desk.cancelled) == depth, 20)
    assert await anvil.canonical() == {(tx, 0) for tx in stay}
    assert anvil.desk.fired(1) == {(tx, 0) for tx in [*stay, *gone]}
    assert set(anvil.desk.cancelled) == anvil.cancelled(1, gone)


@pytest.mark.parametrize("ws", [False, True])
async def test_an_rpc_that_restarts_loses_and_repeats_nothing(anvil: Anvil, ws: bool) -> None:
    created = await anvil.now()
    jobs = [planned(1, on_event(), created), planned(2, on_event(confirmations=2), created)]
    sent = []
    async with anvil.chain(ws=ws) as chain, scheduling(chain, anvil.clock, anvil.desk, *jobs):
        await anvil.desk.until(lambda: anvil.desk.caught_up == {1, 2}, 20)
        for _ in range(3):
            sent += [await anvil.ping() for _ in range(2)]
            anvil.line.cut()
            sent += [await anvil.ping() for _ in range(3)]
            await anvil.mine(30)
            sent.append(await anvil.ping())
            anvil.line.mend()
            await anvil.desk.until_fired(1, len(sent))
        await anvil.mine(2)
        await anvil.desk.until(lambda: len(anvil.desk.fired(2)) == len(sent), 20)
    assert anvil.desk.fired(1) == anvil.desk.fired(2) == await anvil.canonical() == {(tx, 0) for tx in sent}
    assert anvil.desk.answers == {Fired.NEW: 2 * len(sent)}


async def test_a_dropped_websocket_loses_nothing_though_nobody_polls(anvil: Anvil) -> None:
    job = planned(1, on_event(), await anvil.now())
    sent = []
    async with anvil.chain(ws=True, poll_ms=60_000) as chain, scheduling(chain, anvil.clock, anvil.desk, job):
        await anvil.desk.until(lambda: anvil.desk.caught_up == {1}, 20)
        for _ in range(3):
            beats = chain.pulse.heads()
            while not chain.pulse.connected:
                await beats.wait()
            sent.append(await anvil.ping())
            await anvil.desk.until_fired(1, len(sent))
            anvil.line.drop()
            sent += [await anvil.ping() for _ in range(3)]  # while it is opened again
            await anvil.desk.until_fired(1, len(sent))
    assert anvil.desk.fired(1) == await anvil.canonical() == {(tx, 0) for tx in sent}


@pytest.mark.parametrize("blocks", [1_000, pytest.param(10_000, marks=pytest.mark.soak)])  # anvil takes a minute for so many
async def test_a_gap_of_blocks_that_nobody_watched_is_filled(anvil: Anvil, blocks: int) -> None:
    created = await anvil.now()
    async with anvil.chain() as chain, scheduling(chain, anvil.clock, anvil.desk, planned(1, on_event(), created)):
        await anvil.desk.until(lambda: anvil.desk.caught_up == {1}, 20)
        sent = [await anvil.ping()]
        await anvil.desk.until(lambda: len(anvil.desk.fired(1)) == 1 and bool(anvil.desk.checkpoints), 20)
    for _ in range(10):
        await anvil.mine(blocks // 10 - 1)
        sent.append(await anvil.ping())
    jobs = [planned(1, on_event(), created, caught_up=True), planned(2, on_event(), created)]
    async with anvil.chain(confirmations=2) as chain, scheduling(chain, anvil.clock, anvil.desk, *jobs):
        sent.append(await anvil.ping())
        await anvil.mine(2)
        await anvil.desk.until(lambda: len(anvil.desk.tasks) == 2 * len(sent), 30)
    assert anvil.desk.fired(1) == anvil.desk.fired(2) == await anvil.canonical() == {(tx, 0) for tx in sent}
    assert anvil.desk.answers[Fired.NEW] == 2 * len(sent)


async def test_of_a_thousand_logs_in_one_block_none_is_lost(anvil: Anvil) -> None:
    async with anvil.chain() as chain, scheduling(chain, anvil.clock, anvil.desk, planned(1, on_event(), await anvil.now())):
        await anvil.desk.until(lambda: anvil.desk.caught_up == {1}, 20)
        await anvil.rpc.call("evm_setAutomine", [False])
        sent = [await anvil.send(nonce, count=100, wait=False) for nonce in range(10)]
        await anvil.mine(1)
        await anvil.rpc.call("evm_setAutomine", [True])
        await anvil.desk.until(lambda: len(anvil.desk.tasks) == 1000, 30)
    assert anvil.desk.fired(1) == await anvil.canonical() == {(tx, position) for tx in sent for position in range(100)}
