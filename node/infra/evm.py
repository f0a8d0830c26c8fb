"""One EVM chain by JSON-RPC: the contracts' state, their events, and what an execution will cost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from eth_abi.exceptions import DecodingError
from eth_utils.address import to_checksum_address

from consensus.codec import Domain
from consensus.committee import SIZE_BY_LEVEL, Epoch
from consensus.errors import Failed, Misconfigured, Transient
from node.infra import contracts
from node.infra.chain import (
    ChainEvent,
    EventFeed,
    ExecutionRecord,
    ExecutionStatus,
    Head,
    Heads,
    Job,
    Keeper,
    Log,
    Policy,
    Receipt,
    RegistryChanged,
    Transaction,
)
from node.infra.chain_feed import REWIND_BLOCKS, ChainFeed
from node.infra.evm_epochs import EpochReader, decode_key
from node.infra.evm_events import DISPATCHER_SET, EventDecoder
from node.infra.evm_heads import Pulse
from node.infra.evm_logs import LogReader
from node.infra.evm_reads import Reader, View, bytes_of, hex_of, int_of
from node.infra.rpc import Rpc, RpcError
from node.infra.settings import ChainSettings

EXECUTE_GAS = 190_000
"""Gas of `Hub.execute` itself, without the inner call and the calldata: measured 157,000 with fresh slots, and a fifth."""
QUOTED_CALL_BYTES = 2_048
"""Calldata that a quote allows for; a static call of ten words has a sixth of it."""
_TRANSACTION_GAS = 21_000
_ZERO_BYTE_GAS, _BYTE_GAS = 4, 16  # EIP-2028
_FLOOR_TOKEN_GAS = 10  # EIP-7623


@dataclass(frozen=True, slots=True)
class Tariff:
    """The hub's constants of its fee formula, gas and wei; `round_seconds` is the AttestationCenter's."""

    overhead_gas: int
    data_gas: int
    validation_gas: int
    validation_seat_gas: int
    priority_cap: int
    unit: int
    round_seconds: int

    def price(self, base_fee: int, tip: int) -> int:
        """What the hub pays a unit of gas at most, wei."""
        return base_fee + min(tip, self.priority_cap)

    def fee(self, level: int, gas: int, call_bytes: int, price: int, service_fee: int) -> int:
        """The hub's fee for a successful execution that it metered at `gas`, wei."""
        size = SIZE_BY_LEVEL[level]
        share = self.validation_gas + self.validation_seat_gas * size
        return (gas + self.overhead_gas + self.data_gas * call_bytes + share) * price + self.unit * size + service_fee


async def open_chain(settings: ChainSettings, rpc: Rpc) -> EvmChain:
    """The chain of `settings`, its contracts' constants read once.
    Raises `Transient` when no RPC answers, `Misconfigured` (`chain.contracts...`) for addresses that are no set of contracts.
    """
    reader = Reader(rpc)
    hub, center = settings.contracts.hub, settings.contracts.attestation_center
    if not await reader.code(hub):
        raise Misconfigured(
            "chain.contracts.hub", f"no contract at {to_checksum_address(hub)} on chain {settings.id}: correct the address"
        )
    links = await reader.views([View(hub, link) for link in contracts.HUB_LINKS.values()])
    for name, (linked,) in zip(contracts.HUB_LINKS, links, strict=True):
        if getattr(settings.contracts, name) != linked:
            raise Misconfigured(f"chain.contracts.{name}", f"the hub works with {to_checksum_address(linked)}: write that")
    constants = (
        contracts.OVERHEAD_GAS,
        contracts.DATA_GAS,
        contracts.VALIDATION_GAS,
        contracts.VALIDATION_SEAT_GAS,
        contracts.PRIORITY_CAP,
        contracts.UNIT,
    )
    answers = await reader.views([*(View(hub, each) for each in constants), View(center, contracts.ROUND_SECONDS)])
    return EvmChain(settings, reader, Tariff(*(answer[0] for answer in answers)))


class EvmChain:
    """`Chain` over JSON-RPC. Epochs are cached; everything else is read when asked for, in one round trip where it can be."""

    def __init__(self, settings: ChainSettings, reader: Reader, tariff: Tariff) -> None:
        c = settings.contracts
        self._domain = Domain(settings.id, c.hub, c.attestation_center, c.keeper_registry)
        self._contracts = c
        self._confirmations = settings.confirmations
        self._poll_s = settings.poll_interval_ms / 1000
        self._logs = LogReader(reader)
        self._decoder = EventDecoder(self._domain, c.job_registry)
        self._dispatchers = _Dispatchers(reader, c.hub, c.since_block)
        self.pulse = Pulse(self._poll_s, settings.ws, settings.id)
        self.reader = reader
        self.tariff = tariff
        self.epochs = EpochReader(reader, c.keeper_registry)

    @property
    def domain(self) -> Domain:
        return self._domain

    @property
    def confirmations(self) -> int:
        return self._confirmations

    @property
    def round_seconds(self) -> int:
        return self.tariff.round_seconds

    @property
    def poll_seconds(self) -> float:
        return self._poll_s

    async def head(self) -> Head:
        return await self.reader.head()

    async def block(self, number: int) -> Head | None:
        return await self.reader.block(number)

    async def job(self, job_id: int) -> Job | None:
        [row] = await self.reader.view(self._contracts.job_registry, contracts.JOB, job_id)
        owner, definition, created_at, time_frame, target, word, active = row
        if not any(owner):
            return None
        timed = definition in (1, 2, 7)
        return Job(
            id=job_id,
            owner=owner,
            definition=definition,
            created_at=created_at,
            time_frame=time_frame,
            target=target,
            interval=word if timed else 0,
            recurring=timed or word == 1,
            active=active,
        )

    async def policy(self, job_id: int) -> Policy | None:
        [(spec_hash, max_fee, gas_limit, level, pinned)] = await self.reader.view(self._contracts.hub, contracts.POLICY, job_id)
        return Policy(spec_hash, max_fee, gas_limit, level) if pinned else None

    async def balance(self, owner: bytes) -> int:
        [wei] = await self.reader.view(self._contracts.gas_registry, contracts.GET_BALANCE, owner)
        return int(wei)

    async def quote(self, level: int, gas_limit: int) -> int:
        """The hub's formula at twice today's base fee, which six full blocks in a row would reach."""
        latest, gas_price, service = await self.reader.batch(
            [
                ("eth_getBlockByNumber", ["latest", False]),
                ("eth_gasPrice", []),
                View(self._contracts.hub, contracts.SERVICE_FEE).request(),
            ]
        )
        base = int_of((latest or {}).get("baseFeePerGas", "0x0"))
        price = self.tariff.price(2 * base, max(0, int_of(gas_price) - base))
        gas = gas_limit + EXECUTE_GAS
        return self.tariff.fee(level, gas, QUOTED_CALL_BYTES, price, int_of(service))

    async def dispatchers(self) -> frozenset[bytes]:
        return await self._dispatchers.read()

    async def keepers(self) -> tuple[Keeper, ...]:
        registry = self._contracts.keeper_registry
        [count] = await self.reader.view(registry, contracts.OPERATOR_COUNT)
        rows = await self.reader.views([View(registry, contracts.OPERATOR, (i,)) for i in range(1, count + 1)])
        keepers = []
        for [row] in rows:
            id_, account, rewards, _, _, peer_id, key, _, _, exited_at, _ = row
            # The contract has proved the key; the peer id is whatever bytes its operator gave.
            name = peer_id.decode("utf-8", errors="replace")
            try:
                keepers.append(Keeper(id_, account, decode_key(key), name, rewards, active=exited_at == 0))
            except ValueError as error:
                raise Transient("RPC_ERROR", f"operator {id_}: {error}") from None
        return tuple(keepers)

    async def epoch_at(self, block_number: int) -> Epoch | None:
        return await self.epochs.at(block_number)

    async def execution(self, task_id: int) -> ExecutionRecord | None:
        [row] = await self.reader.view(self._contracts.hub, contracts.EXECUTION, task_id)
        number, job_id, _, performer, performer_id, block, timestamp, level, status, success, fee, share, digest = row
        if not status:
            return None
        return ExecutionRecord(
            task_id=task_id,
            job_id=job_id,
            number=number,
            performer=performer,
            performer_id=performer_id,
            block_number=block,
            timestamp=timestamp,
            level=level,
            status=ExecutionStatus(status),
            success=success,
            fee=fee,
            digest=digest,
            validation_share=share,
            attester_share=self.tariff.unit if success else 0,  # attesters of an inner failure earn nothing
        )

    async def transaction(self, tx_hash: bytes) -> Transaction | None:
        # Both: just after a block some nodes (anvil) still answer the first from their pool, without a block.
        found, receipt = await self.reader.batch(
            [("eth_getTransactionByHash", [hex_of(tx_hash)]), ("eth_getTransactionReceipt", [hex_of(tx_hash)])]
        )
        if found is None:
            return None
        try:
            # Without a receipt it is not known whether it reverted: it still waits, as far as we can tell.
            return Transaction(
                hash=tx_hash,
                sender=bytes.fromhex(found["from"][2:]),
                to=bytes.fromhex(found["to"][2:]) if found["to"] else None,
                input=bytes.fromhex(found["input"][2:]),
                block_number=int(receipt["blockNumber"], 16) if receipt else None,
                success=receipt is not None and int(receipt["status"], 16) == 1,
            )
        except (KeyError, TypeError, ValueError):
            raise Transient("RPC_ERROR", "a malformed transaction") from None

    async def events(self, from_block: int, to_block: int) -> Sequence[ChainEvent]:
        return await self._events(from_block, to_block, None)

    async def events_until(self, from_block: int, head: Head) -> Sequence[ChainEvent]:
        """The events of the branch that ends in `head`. Raises `Transient` when the node holds another one."""
        return await self._events(from_block, head.number, head.hash)

    async def _events(self, from_block: int, to_block: int, tip: bytes | None) -> Sequence[ChainEvent]:
        logs = await self._logs.raw(self._decoder.addresses, self._decoder.topics, from_block, to_block, tip)
        return [event for event in map(self._decoder.decode, logs) if event is not None]

    async def logs(
        self,
        contracts: Sequence[bytes],
        topics: Sequence[bytes],
        from_block: int,
        to_block: int,
        *,
        tip: bytes | None = None,
    ) -> Sequence[Log]:
        return await self._logs.logs(contracts, topics, from_block, to_block, tip)

    async def receipt(self, tx_hash: bytes) -> Receipt | None:
        return await self._logs.receipt(tx_hash)

    async def call(self, target: bytes, data: bytes, block: int | None = None) -> bytes:
        request = {"to": hex_of(target), "data": hex_of(data)}
        try:
            answer = await self.reader.rpc.call("eth_call", [request, "latest" if block is None else hex(block)])
        except RpcError as error:
            raise _refused("eth_call", error) from error
        return bytes_of(answer)

    async def native_balance(self, account: bytes, block: int | None = None) -> int:
        place = "latest" if block is None else hex(block)
        return int_of(await self.reader.call("eth_getBalance", [hex_of(account), place]))

    async def estimate_call(self, target: bytes, call: bytes) -> int:
        request = {"from": hex_of(self._domain.hub), "to": hex_of(target), "data": hex_of(call)}
        try:
            gas = int_of(await self.reader.rpc.call("eth_estimateGas", [request]))
        except RpcError as error:
            raise _refused("eth_estimateGas", error) from error
        return max(gas - intrinsic_gas(call), 0)

    @asynccontextmanager
    async def heads(self) -> AsyncIterator[Heads]:
        yield self.pulse.heads()

    @asynccontextmanager
    async def follow(self, from_block: int) -> AsyncIterator[EventFeed]:
        async with self.heads() as heads:
            yield _EvmFeed(self, from_block, heads)


def _refused(method: str, error: RpcError) -> Failed | Transient:
    if error.rpc_code == 3 or error.data or "revert" in error.message.lower():
        return Failed("CALL_REVERTS", error.reason or error.message)
    return Transient("RPC_ERROR", f"{method}: {error.message}")


def intrinsic_gas(data: bytes) -> int:
    """What a transaction with this calldata costs before any code runs (EIP-2028)."""
    zeros = data.count(0)
    return _TRANSACTION_GAS + _ZERO_BYTE_GAS * zeros + _BYTE_GAS * (len(data) - zeros)


def floor_gas(data: bytes) -> int:
    """The least a transaction with this calldata is charged (EIP-7623)."""
    zeros = data.count(0)
    return _TRANSACTION_GAS + _FLOOR_TOKEN_GAS * (zeros + 4 * (len(data) - zeros))


class _EvmFeed:
    """A feed that tells the chain's caches what it has seen."""

    def __init__(self, chain: EvmChain, from_block: int, heads: Heads) -> None:
        self._chain = chain
        self._feed = ChainFeed(chain, from_block, heads.wait, chain.events_until, lambda _: chain.epochs.forget())

    async def next(self) -> tuple[Head, Sequence[ChainEvent]]:
        head, events = await self._feed.next()
        changed = any(isinstance(event, RegistryChanged) for event in events)
        self._chain.epochs.followed(head.number, changed=changed)
        return head, events

    @property
    def rewound(self) -> int | None:
        return self._feed.rewound


class _Dispatchers:
    """Who the hub lists, folded from its `DispatcherSet` logs; only blocks not yet beyond a reorganisation are read again."""

    def __init__(self, reader: Reader, hub: bytes, first_block: int) -> None:
        self._reader = reader
        self._hub = hub
        self._next = first_block
        self._settled: frozenset[bytes] = frozenset()
        self._lock = trio.Lock()

    async def read(self) -> frozenset[bytes]:
        async with self._lock:
            head = await self._reader.head()
            logs = await self._reader.logs([self._hub], [DISPATCHER_SET.topic], self._next, head.number, rare=True)
            horizon = head.number - REWIND_BLOCKS
            listed = set(self._settled)
            settled = self._settled
            for log in logs:
                try:
                    topics = [bytes_of(topic) for topic in log["topics"]]
                    address, now_listed = DISPATCHER_SET.decode(topics, bytes_of(log["data"]))
                    number = int_of(log["blockNumber"])
                except (KeyError, TypeError, DecodingError):
                    raise Transient("RPC_ERROR", "a malformed log") from None
                (listed.add if now_listed else listed.discard)(address)
                if number <= horizon:
                    settled = frozenset(listed)
            self._settled = settled
            self._next = max(self._next, horizon + 1)
            return frozenset(listed)
