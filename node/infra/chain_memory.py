"""A chain within the process: the contracts' rules in Python behind the same ports as a real one, for simulations and tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from consensus import committee
from consensus.codec import Domain
from consensus.committee import Epoch
from consensus.errors import Failed, Transient
from consensus.messages import Authorisation
from node.infra import chain_memory_rules as rules
from node.infra import contracts
from node.infra.chain import (
    Certificate,
    ChainEvent,
    EventFeed,
    ExecutionRecord,
    ExecutionStatus,
    Head,
    Heads,
    Job,
    Keeper,
    Log,
    Mined,
    Policy,
    Prepared,
    Receipt,
    RunCharge,
    Transaction,
)
from node.infra.chain_feed import ChainFeed
from node.infra.chain_memory_ledger import Emitted, Ledger, Sending
from node.infra.chain_memory_state import Reverted, Rule, State, TargetCall
from node.infra.clock import Clock

__all__ = ["Emitted", "Ledger", "MemoryChain", "MemoryWallet", "Policy", "Reverted", "SentTransactions", "TargetCall"]


@dataclass(slots=True)
class SentTransactions:
    """What one account sent, by key. Give a "restarted" keeper's wallet the same object: it is what survives on disk."""

    by_key: dict[str, Sending] = field(default_factory=dict)


class MemoryChain:
    """`Chain` over a `Ledger`. Give several the same ledger and each is one process's connection, cut off by itself.

    `latency` is what every answer takes, in seconds of trio's clock.
    """

    def __init__(self, clock: Clock, *, ledger: Ledger | None = None, confirmations: int = 0, latency: float = 0) -> None:
        self.ledger = ledger or Ledger(clock)
        self._confirmations = confirmations
        self._latency = latency
        self._offline = False

    def wallet(self, address: bytes, sent: SentTransactions | None = None) -> MemoryWallet:
        """An account's wallet over this connection; `sent` carries over what an earlier wallet of the account sent."""
        return MemoryWallet(self, address, sent or SentTransactions())

    def go_offline(self) -> None:
        """From now on every call over this connection raises `Transient`; feeds and waits for receipts too."""
        self._offline = True
        self._wake()

    def go_online(self) -> None:
        self._offline = False
        self._wake()

    def _wake(self) -> None:
        moved, self.ledger.moved = self.ledger.moved, trio.Event()
        moved.set()

    async def reach(self) -> None:
        """The way to the node: its latency, and `Transient` when it is cut off."""
        await trio.sleep(self._latency)
        if self._offline:
            raise Transient("RPC_UNREACHABLE", "the chain is offline")

    # --- Chain

    @property
    def domain(self) -> Domain:
        return self.ledger.domain

    @property
    def confirmations(self) -> int:
        return self._confirmations

    @property
    def round_seconds(self) -> int:
        return self.ledger.round_seconds

    async def head(self) -> Head:
        await self.reach()
        return self.ledger.head

    async def block(self, number: int) -> Head | None:
        await self.reach()
        found = self.ledger.block(number)
        return found.head if found else None

    async def job(self, job_id: int) -> Job | None:
        await self.reach()
        return self.ledger.state.jobs.get(job_id)

    async def policy(self, job_id: int) -> Policy | None:
        await self.reach()
        return self.ledger.state.policies.get(job_id)

    async def balance(self, owner: bytes) -> int:
        await self.reach()
        return self.ledger.state.balances.get(owner, 0)

    async def quote(self, level: int, gas_limit: int) -> int:
        await self.reach()
        gas = gas_limit + rules.INNER_GAS + rules.OVERHEAD_GAS
        seats = rules.ATTESTER_UNIT * committee.SIZE_BY_LEVEL[level]
        return 2 * (gas * rules.GAS_PRICE + rules.validation_share(level)) + seats + rules.SERVICE_FEE

    async def dispatchers(self) -> frozenset[bytes]:
        await self.reach()
        return self.ledger.state.dispatchers

    async def keepers(self) -> tuple[Keeper, ...]:
        await self.reach()
        return tuple(registered.keeper for registered in self.ledger.state.keepers.values())

    async def epoch_at(self, block_number: int) -> Epoch | None:
        await self.reach()
        return self.ledger.state.epoch_of(block_number)

    async def execution(self, task_id: int) -> ExecutionRecord | None:
        await self.reach()
        state = self.ledger.state
        executed = state.executed.get(task_id)
        return executed.record if executed else state.charged.get(task_id)

    async def transaction(self, tx_hash: bytes) -> Transaction | None:
        await self.reach()
        number = self.ledger.found.get(tx_hash)
        among = self.ledger.pending if number is None else self.ledger.blocks[number].sendings
        found = next((s for s in among if s.hash == tx_hash), None)
        success = number is not None and any(r.success for r in self.ledger.blocks[number].results if r.tx_hash == tx_hash)
        return Transaction(found.hash, found.sender, found.to, found.input, number, success) if found else None

    async def events(self, from_block: int, to_block: int) -> Sequence[ChainEvent]:
        await self.reach()
        return [event for block in self.ledger.blocks[max(0, from_block) : to_block + 1] for event in block.events]

    async def estimate_call(self, target: bytes, call: bytes) -> int:
        await self.reach()
        if target in self.ledger.state.failing:
            raise Failed("CALL_REVERTS", "the target fails")
        return rules.INNER_GAS

    async def logs(
        self,
        contracts: Sequence[bytes],
        topics: Sequence[bytes],
        from_block: int,
        to_block: int,
        *,
        tip: bytes | None = None,
    ) -> Sequence[Log]:
        await self.reach()
        if tip is not None and self.ledger.block_hash(to_block) != tip:
            raise Transient("RPC_ERROR", f"block {to_block} is another one here")
        addresses, first = frozenset(contracts), frozenset(topics)
        return [
            log
            for block in self.ledger.blocks[max(0, from_block) : to_block + 1]
            for log in block.logs
            if (not addresses or log.address in addresses) and (not first or (log.topics and log.topics[0] in first))
        ]

    async def receipt(self, tx_hash: bytes) -> Receipt | None:
        await self.reach()
        number = self.ledger.found.get(tx_hash)
        if number is None:
            return None
        block = self.ledger.blocks[number]
        success = any(r.success for r in block.results if r.tx_hash == tx_hash)
        return Receipt(tx_hash, number, block.head.hash, success, tuple(log for log in block.logs if log.tx_hash == tx_hash))

    async def call(self, target: bytes, data: bytes, block: int | None = None) -> bytes:
        state = await self._state(block)
        if target in state.failing or (target, data) not in state.views:
            raise Failed("CALL_REVERTS", "the target has no such view")
        return state.views[target, data]

    async def native_balance(self, account: bytes, block: int | None = None) -> int:
        return (await self._state(block)).native.get(account, 0)

    async def _state(self, block: int | None) -> State:
        await self.reach()
        state = self.ledger.state_at(block)
        if state is None:
            raise Transient("RPC_ERROR", f"the state of block {block} is not known here")
        return state

    @asynccontextmanager
    async def heads(self) -> AsyncIterator[Heads]:
        yield _LedgerHeads(self.ledger)

    @asynccontextmanager
    async def follow(self, from_block: int) -> AsyncIterator[EventFeed]:
        async def read(first: int, head: Head) -> Sequence[ChainEvent]:
            return await self.events(first, head.number)

        async with self.heads() as heads:
            yield ChainFeed(self, from_block, heads.wait, read)


class _LedgerHeads:
    """Each move of the ledger is a beat; what moved since the last return is not missed."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._moved = ledger.moved

    async def wait(self) -> None:
        await self._moved.wait()
        self._moved = self._ledger.moved


@dataclass(frozen=True, slots=True)
class MemoryPrepared:
    """A transaction that only waits to be sent."""

    key: str
    sending: Sending


class MemoryWallet:
    """`Wallet` over a `MemoryChain`. A doomed transaction is mined and reverts, as on a real chain; `prepare_certificate`
    and `prepare_expiry` refuse one for a task that the hub does not hold as pending."""

    def __init__(self, chain: MemoryChain, address: bytes, sent: SentTransactions) -> None:
        self._chain = chain
        self._ledger = chain.ledger
        self._address = address
        self._sent = sent

    @property
    def address(self) -> bytes:
        return self._address

    async def prepare_execution(
        self, authorisation: Authorisation, signature: bytes, target: bytes, call: bytes, resource_fee: int
    ) -> MemoryPrepared:
        data = contracts.encode_execute(authorisation, signature, target, call, resource_fee)
        rule = rules.execute(contracts.ExecuteCall(authorisation, signature, target, call, resource_fee))
        key = f"execute:{authorisation.task_id}:{authorisation.attempt}"
        return await self._prepared(key, self._ledger.domain.hub, data, rule)

    async def prepare_certificate(self, certificate: Certificate) -> MemoryPrepared:
        key = f"certify:{certificate.task_id}:{certificate.round}"
        epoch = await self._chain.epoch_at(certificate.block_number)
        position = epoch.by_address.get(self._address) if epoch else None
        await self._refuse_settled(key, certificate.task_id)
        if position is None:
            raise Failed("HUB_REFUSED", "NotActiveOperator")
        data = contracts.encode_certificate(certificate, position)
        return await self._prepared(key, self._ledger.domain.attestation_center, data, rules.submit(certificate))

    async def prepare_expiry(self, task_id: int) -> MemoryPrepared:
        key = f"expire:{task_id}"
        await self._refuse_settled(key, task_id)
        return await self._prepared(
            key, self._ledger.domain.attestation_center, contracts.EXPIRE.encode(task_id), rules.expire(task_id)
        )

    async def prepare_run_charges(self, charges: Sequence[RunCharge], *, again: int = 0) -> MemoryPrepared:
        data = contracts.encode_charges(charges)
        return await self._prepared(contracts.charges_key(data, again), self._ledger.domain.hub, data, rules.charge_runs(charges))

    async def prepare_epoch(self) -> MemoryPrepared:
        epochs = self._ledger.state.epochs
        key = f"epoch:{epochs[-1].number + 1 if epochs else 1}:{self._ledger.head.number}"
        return await self._prepared(
            key, self._ledger.domain.keeper_registry, contracts.ADVANCE_EPOCH.encode(), rules.advance_epoch()
        )

    async def send(self, prepared: Prepared) -> bytes:
        if not isinstance(prepared, MemoryPrepared):
            raise TypeError("prepared by another wallet")
        await self._chain.reach()
        # The first transaction under a key is the only one: what is prepared again after a restart gives way to it.
        sending = self._sent.by_key.setdefault(prepared.key, prepared.sending)
        self._ledger.submit(sending)
        return sending.hash

    async def sent(self, key: str) -> bytes | None:
        sending = self._sent.by_key.get(key)
        return sending.hash if sending else None

    async def mined(self, tx_hash: bytes) -> Mined:
        while True:
            await self._chain.reach()
            number = self._ledger.found.get(tx_hash)
            if number is not None:
                return next(result for result in self._ledger.blocks[number].results if result.tx_hash == tx_hash)
            await self._ledger.moved.wait()

    async def _refuse_settled(self, key: str, task_id: int) -> None:
        if key in self._sent.by_key:
            return
        record = await self._chain.execution(task_id)
        if record is None:
            raise Failed("HUB_REFUSED", "UnknownExecution")
        if record.status is not ExecutionStatus.PENDING:
            raise Failed("HUB_REFUSED", "AlreadyCertified")

    async def _prepared(self, key: str, to: bytes, data: bytes, rule: Rule) -> MemoryPrepared:
        await self._chain.reach()
        return MemoryPrepared(key, self._ledger.sending(self._address, to, data, rule))
