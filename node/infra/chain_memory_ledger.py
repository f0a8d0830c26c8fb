"""Blocks of the in-process chain: transactions applied one by one, reorganisations, and the test's levers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import trio

from consensus.codec import Domain, keccak, word
from node.infra import chain_memory_rules as rules
from node.infra.chain import ChainEvent, EventPlace, Head, Job, Keeper, Log, Mined, Policy
from node.infra.chain_feed import REWIND_BLOCKS
from node.infra.chain_memory_state import (
    Context,
    Registered,
    Reverted,
    Rule,
    State,
    TargetCall,
    address_from,
    hash_of_block,
)
from node.infra.clock import Clock

_ADMINISTRATOR = address_from("administrator")
_GAS_USED = 200_000  # of every transaction: nobody decides by it here


class Emitted(NamedTuple):
    """A log of a contract that is none of ours, as its transaction leaves it."""

    contract: bytes
    topics: tuple[bytes, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class Sending:
    """A transaction as submitted; `rule` is what the contract does with it, `logs` are left when it succeeds."""

    hash: bytes
    sender: bytes
    to: bytes
    input: bytes
    rule: Rule
    logs: tuple[Emitted, ...] = ()


@dataclass(slots=True)
class Block:
    """A mined block with what its transactions led to, in order."""

    head: Head
    sendings: list[Sending] = field(default_factory=list)
    results: list[Mined] = field(default_factory=list)
    events: list[ChainEvent] = field(default_factory=list)
    logs: list[Log] = field(default_factory=list)


class Ledger:
    """One chain, shared by every `MemoryChain` and wallet that looks at it.

    With `block_seconds` 0 every transaction is a block of its own, mined at once; otherwise transactions wait for the next
    tick of `run()`, or for `mine()`. Block times are the clock's, whole seconds, never backwards.
    """

    def __init__(
        self, clock: Clock, *, chain_id: int = 31337, block_seconds: float = 0, round_seconds: int = 12, epoch_seconds: int = 600
    ) -> None:
        self.domain = Domain(chain_id, address_from("hub"), address_from("attestation center"), address_from("keeper registry"))
        self.job_registry = address_from("job registry")
        self.clock = clock
        self.block_seconds = block_seconds
        self.round_seconds = round_seconds
        self.epoch_seconds = epoch_seconds
        self.state = State()
        self.moved = trio.Event()
        self.pending: list[Sending] = []
        self.found: dict[bytes, int] = {}
        self._branch = 0
        self._nonce = 0
        self._jobs = 0
        genesis = Head(0, hash_of_block(0, bytes(32), int(clock.now()), 0), int(clock.now()))
        self.blocks = [Block(genesis)]
        self._snapshots = {0: self.state.copy()}

    # --- blocks

    @property
    def head(self) -> Head:
        return self.blocks[-1].head

    def block(self, number: int) -> Block | None:
        return self.blocks[number] if 0 <= number < len(self.blocks) else None

    def block_hash(self, number: int) -> bytes | None:
        found = self.block(number)
        return found.head.hash if found else None

    def sending(self, sender: bytes, to: bytes, data: bytes, rule: Rule, logs: tuple[Emitted, ...] = ()) -> Sending:
        self._nonce += 1
        return Sending(keccak(sender + word(self._nonce) + to + data), sender, to, data, rule, logs)

    def state_at(self, number: int | None) -> State | None:
        """The contracts' storage after a block; None before what is kept, or ahead."""
        return self.state if number is None else self._snapshots.get(number)

    def submit(self, sending: Sending) -> None:
        """Takes a transaction; one that is known already is not taken twice."""
        if sending.hash in self.found or any(p.hash == sending.hash for p in self.pending):
            return
        self.pending.append(sending)
        if not self.block_seconds:
            self.mine()

    def mine(self, count: int = 1) -> None:
        """Mines blocks; the first takes all that waits."""
        for _ in range(count):
            taken, self.pending = self.pending, []
            self._append(taken)
        moved, self.moved = self.moved, trio.Event()
        moved.set()

    async def run(self) -> None:
        """Mines a block at every multiple of `block_seconds`, until cancelled."""
        while True:
            tick = (self.clock.now() // self.block_seconds + 1) * self.block_seconds
            await self.clock.sleep_until(tick)
            self.mine()

    def reorg(self, depth: int, *, keep: bool = True) -> list[Sending]:
        """Replaces the last `depth` blocks by as many others and one more. `keep`: their transactions come again, in
        blocks of the same height; otherwise they are lost, as if other transactions had taken their nonces. Returns the
        transactions of the replaced blocks, which `submit` takes again."""
        depth = min(depth, len(self.blocks) - 1, REWIND_BLOCKS)
        dropped = self.blocks[len(self.blocks) - depth :]
        del self.blocks[len(self.blocks) - depth :]
        for block in dropped:
            for sending in block.sendings:
                self.found.pop(sending.hash, None)
        self.state = self._snapshots[self.head.number].copy()
        self._branch += 1
        for block in dropped:
            self._append(block.sendings if keep else [], block.head.timestamp)
        self.mine()
        return [sending for block in dropped for sending in block.sendings]

    def _append(self, sendings: list[Sending], timestamp: int | None = None) -> None:
        parent = self.head
        when = max(int(self.clock.now()) if timestamp is None else timestamp, parent.timestamp)
        number = parent.number + 1
        block = Block(Head(number, hash_of_block(number, parent.hash, when, self._branch), when))
        for sending in sendings:
            self._apply(block, sending)
        self.blocks.append(block)
        self._snapshots[number] = self.state.copy()
        self._snapshots.pop(number - REWIND_BLOCKS - 1, None)

    def _apply(self, block: Block, sending: Sending) -> None:
        placed = 0

        def place() -> EventPlace:
            nonlocal placed
            placed += 1
            return EventPlace(block.head.number, block.head.hash, sending.hash, len(block.events) + placed - 1)

        context = Context(
            domain=self.domain,
            job_registry=self.job_registry,
            sender=sending.sender,
            number=block.head.number,
            timestamp=block.head.timestamp,
            round_seconds=self.round_seconds,
            epoch_seconds=self.epoch_seconds,
            place=place,
            block_hash=self.block_hash,
        )
        try:
            block.events += sending.rule(self.state, context)
            reason = ""
        except Reverted as refusal:
            reason = str(refusal)
        else:
            place_in_block = (block.head.number, block.head.hash, sending.hash)
            block.logs += [Log(*place_in_block, position, *emitted) for position, emitted in enumerate(sending.logs)]
        block.sendings.append(sending)
        block.results.append(Mined(sending.hash, block.head.number, not reason, _GAS_USED, reason))
        self.found[sending.hash] = block.head.number

    # --- levers: what owners, operators and the administrator do on a real chain

    def transact(self, rule: Rule, sender: bytes = _ADMINISTRATOR) -> None:
        """Sends a lever's transaction and, with ticks, mines it at once. Raises `Reverted`."""
        sending = self.sending(sender, self.domain.hub, b"", rule)
        self.submit(sending)
        if sending.hash not in self.found:
            self.mine()
        block = self.blocks[self.found[sending.hash]]
        result = next(r for r in block.results if r.tx_hash == sending.hash)
        if not result.success:
            raise Reverted(result.reason)

    def list_dispatcher(self, address: bytes, listed: bool = True) -> None:
        def change(state: State) -> None:
            state.dispatchers = state.dispatchers | {address} if listed else state.dispatchers - {address}

        self.transact(rules.change_registry(change))

    def register(self, address: bytes, key: bytes, peer_id: str, *, seats: int = 1, rewards: bytes | None = None) -> int:
        """Registers a keeper (BLS key 48 bytes) and returns its id; it is drawn from the next epoch on."""

        def change(state: State) -> None:
            if address in state.keepers:
                raise Reverted("AlreadyRegistered")
            if key in state.keys_ever:
                raise Reverted("KeyReused")
            if any(r.keeper.peer_id == peer_id for r in state.keepers.values()):
                raise Reverted("PeerIdTaken")
            keeper = Keeper(len(state.keepers) + 1, address, key, peer_id, rewards or address, active=True)
            state.keepers[address] = Registered(keeper, seats)
            state.keys_ever |= {key}

        self.transact(rules.change_registry(change), address)
        return self.state.keepers[address].keeper.id

    def exit(self, address: bytes) -> None:
        def change(state: State) -> None:
            registered = state.keepers[address]
            state.keepers[address] = replace(registered, keeper=replace(registered.keeper, active=False))

        self.transact(rules.change_registry(change), address)

    def advance_epoch(self) -> int:
        """Seats all changes at once, whatever the epoch's length; the new epoch covers the blocks that follow."""
        self.transact(rules.advance_epoch(forced=True))
        return self.state.epochs[-1].number

    def deposit(self, owner: bytes, amount: int) -> None:
        def rule(state: State, _: Context) -> list[ChainEvent]:
            state.balances[owner] = state.balances.get(owner, 0) + amount
            return []

        self.transact(rule, owner)

    def create_job(
        self,
        owner: bytes,
        *,
        target: bytes,
        interval: int,
        time_frame: int,
        definition: int = 1,
        recurring: bool = True,
    ) -> int:
        """Creates a job now and returns its id."""

        def build(job_id: int, sender: bytes, now: int) -> Job:
            return Job(job_id, sender, definition, now, time_frame, target, interval, recurring, active=True)

        self._jobs += 1
        self.transact(rules.create_job(build, self._jobs), owner)
        return rules.job_id_of(self.domain.chain_id, self.job_registry, self._jobs)

    def delete_job(self, job_id: int) -> None:
        self.transact(rules.delete_job(job_id), self.state.jobs[job_id].owner)

    def set_policy(self, job_id: int, policy: Policy) -> None:
        def rule(state: State, _: Context) -> list[ChainEvent]:
            state.policies[job_id] = policy
            return []

        self.transact(rule, self.state.jobs[job_id].owner)

    def set_run_allowance(self, job_id: int, wei: int) -> None:
        def rule(state: State, _: Context) -> list[ChainEvent]:
            state.run_allowances[job_id] = wei
            return []

        self.transact(rule, self.state.jobs[job_id].owner)

    def fail_target(self, target: bytes, failing: bool = True) -> None:
        """Makes every call of `target` revert, or succeed again."""

        def rule(state: State, _: Context) -> list[ChainEvent]:
            state.failing = state.failing | {target} if failing else state.failing - {target}
            return []

        self.transact(rule)

    def emit(self, contract: bytes, topics: Sequence[bytes], data: bytes = b"") -> bytes:
        """A transaction that leaves one log, mined as any other: returns its hash."""
        return self.emit_all([Emitted(contract, tuple(topics), data)])

    def emit_all(self, logs: Sequence[Emitted]) -> bytes:
        """One transaction that leaves these logs, in this order."""
        sending = self.sending(_ADMINISTRATOR, logs[0].contract, b"", lambda _state, _context: [], tuple(logs))
        self.submit(sending)
        return sending.hash

    def answer(self, target: bytes, data: bytes, returned: bytes) -> None:
        """What a view of `target` returns to the calldata `data` from now on."""

        def rule(state: State, _: Context) -> list[ChainEvent]:
            state.views[target, data] = returned
            return []

        self.transact(rule)

    def set_native_balance(self, account: bytes, wei: int) -> None:
        """What an account holds of the chain's own coin from now on."""

        def rule(state: State, _: Context) -> list[ChainEvent]:
            state.native[account] = wei
            return []

        self.transact(rule)

    @property
    def calls(self) -> list[TargetCall]:
        """Calls that reached a target, on the canonical branch."""
        return self.state.calls

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Returns once `condition` holds; looks again after every block."""
        while not condition():
            await self.moved.wait()
