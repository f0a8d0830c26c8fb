"""What the port suite needs of a chain beside the port: accounts, owners' and administrators' deeds, time and outages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from consensus import bls, committee, ecdsa
from consensus.codec import keccak
from consensus.committee import Committee
from consensus.messages import Authorisation, Uint256, Verdict
from node.infra.chain import Certificate, Chain, ExecutionRecord, Policy, Wallet
from node.infra.chain_memory import Emitted, Ledger, MemoryChain, SentTransactions
from node.infra.contracts import Function, certificate_root

PING = Function("ping", ("uint256",))
COUNT = Function("count", (), ("uint256",))
EMITTER = b"\xe1" * 20
"""A contract that leaves what logs it is asked for."""
DEPOSIT = 10**18
INTERVAL = 10
ROUND_SECONDS = 12
KEEPERS = 7


def word(value: int) -> bytes:
    return value.to_bytes(32, "big")


@dataclass(frozen=True)
class Actor:
    """A keeper's secrets: the account's (32 bytes) and the BLS key's."""

    secret: bytes
    bls_secret: int
    peer_id: str

    @property
    def address(self) -> bytes:
        return ecdsa.address_of(self.secret)

    @property
    def key(self) -> bytes:
        return bls.public_key(self.bls_secret)


def actors(count: int, salt: str = "keeper") -> list[Actor]:
    seeds = [keccak(f"{salt} {i}".encode()) for i in range(count)]
    return [Actor(seed, bls.secret_from_seed(seed), f"12D3KooW{seed.hex()[:44]}") for seed in seeds]


DISPATCHER = keccak(b"dispatcher")
OWNER = keccak(b"owner of the job")
COORDINATOR = Actor(DISPATCHER, 1, "")
"""The dispatcher's account, as a sender of transactions."""


class World(Protocol):
    """A chain with a funded owner, one dispatcher, and `KEEPERS` keepers seated in the first epoch."""

    keepers: Sequence[Actor]
    target: bytes

    @property
    def chain(self) -> Chain: ...

    def wallet(self, actor: Actor) -> Wallet:
        """A new wallet over what this account's earlier ones wrote down: as after a restart."""
        ...

    async def create_job(self, interval: int = INTERVAL, time_frame: int = 3600, definition: int = 1) -> int: ...

    async def delete_job(self, job_id: int) -> None: ...

    async def pin(self, job_id: int, policy: Policy) -> None: ...

    async def unlist_dispatcher(self) -> None: ...

    async def register(self, actor: Actor) -> None: ...

    async def pass_seconds(self, seconds: int) -> None:
        """Mines a block that is so much later."""
        ...

    async def reorg(self, depth: int) -> None:
        """Replaces the last `depth` blocks by others; what they held is gone."""
        ...

    async def calls(self) -> int:
        """How often the target was called."""
        ...

    async def emit(self, topic: bytes, second: bytes, data: bytes) -> bytes:
        """A transaction that leaves one log of `EMITTER`, mined. Returns its hash."""
        ...

    async def emit_in_one_block(self, transactions: Sequence[tuple[bytes, int]]) -> list[bytes]:
        """A block of transactions that each leave so many logs of this first topic."""
        ...

    async def fund(self, account: bytes, wei: int) -> None:
        """Sets what an account holds, in a block of its own."""
        ...

    def cut(self) -> None: ...

    def mend(self) -> None: ...


class SetClock:
    """A clock that a test sets."""

    def __init__(self, now: float = 1_700_000_000) -> None:
        self.time = now

    def now(self) -> float:
        return self.time

    def now_ns(self) -> int:
        return round(self.time * 1e9)

    async def sleep_until(self, t: float) -> None:
        raise NotImplementedError


class MemoryWorld:
    def __init__(self, confirmations: int = 0) -> None:
        self.keepers: Sequence[Actor] = actors(KEEPERS)
        self.target = keccak(b"demo")[12:]
        self._clock = SetClock()
        self._ledger = Ledger(self._clock, round_seconds=ROUND_SECONDS)
        self._sent: dict[bytes, SentTransactions] = {}
        self._memory = MemoryChain(self._clock, ledger=self._ledger, confirmations=confirmations)
        self._owner = ecdsa.address_of(OWNER)
        self._ledger.list_dispatcher(ecdsa.address_of(DISPATCHER))
        for keeper in self.keepers:
            self._ledger.register(keeper.address, keeper.key, keeper.peer_id)
        self._ledger.advance_epoch()
        self._ledger.deposit(self._owner, DEPOSIT)
        self._ledger.answer(self.target, COUNT.encode(), word(0))

    @property
    def chain(self) -> Chain:
        return self._memory

    def wallet(self, actor: Actor) -> Wallet:
        sent = self._sent.setdefault(actor.address, SentTransactions())
        return self._memory.wallet(actor.address, sent)

    async def create_job(self, interval: int = INTERVAL, time_frame: int = 3600, definition: int = 1) -> int:
        return self._ledger.create_job(
            self._owner, target=self.target, interval=interval, time_frame=time_frame, definition=definition
        )

    async def delete_job(self, job_id: int) -> None:
        self._ledger.delete_job(job_id)

    async def pin(self, job_id: int, policy: Policy) -> None:
        self._ledger.set_policy(job_id, policy)

    async def unlist_dispatcher(self) -> None:
        self._ledger.list_dispatcher(ecdsa.address_of(DISPATCHER), listed=False)

    async def register(self, actor: Actor) -> None:
        self._ledger.register(actor.address, actor.key, actor.peer_id)

    async def pass_seconds(self, seconds: int) -> None:
        self._clock.time += seconds
        self._ledger.mine()

    async def reorg(self, depth: int) -> None:
        self._ledger.reorg(depth, keep=False)

    async def calls(self) -> int:
        return len(self._ledger.calls)

    async def emit(self, topic: bytes, second: bytes, data: bytes) -> bytes:
        return self._ledger.emit(EMITTER, (topic, second), data)

    async def emit_in_one_block(self, transactions: Sequence[tuple[bytes, int]]) -> list[bytes]:
        self._ledger.block_seconds = 1
        hashes = [self._ledger.emit_all([Emitted(EMITTER, (topic, word(0)), b"")] * count) for topic, count in transactions]
        self._ledger.mine()
        self._ledger.block_seconds = 0
        return hashes

    async def fund(self, account: bytes, wei: int) -> None:
        self._ledger.set_native_balance(account, wei)

    def cut(self) -> None:
        self._memory.go_offline()

    def mend(self) -> None:
        self._memory.go_online()


# --- what the coordinator, a performer and a committee do -----------------------------------------------------------


def authorise(
    chain: Chain, job_id: int, trigger_id: int, performer: bytes, target: bytes, *, call: bytes, level: int = 0, attempt: int = 1
) -> tuple[Authorisation, bytes]:
    """An authorisation that is valid from long ago to far ahead, and the dispatcher's signature."""
    authorisation = Authorisation(
        job_id=Uint256(job_id),
        trigger_id=Uint256(trigger_id),
        attempt=attempt,
        performer=performer,
        spec=keccak(b"spec"),
        target=target,
        selector=call[:4],
        call_hash=keccak(call),
        gas_limit=200_000,
        level=level,
        max_fee=Uint256(DEPOSIT // 100),
        not_before=0,
        deadline=2**40,
    )
    return authorisation, ecdsa.sign(DISPATCHER, chain.domain.hub_digest(authorisation.struct_hash()))


async def committee_of(chain: Chain, record: ExecutionRecord, round_: int = 0) -> Committee:
    epoch, block = await chain.epoch_at(record.block_number), await chain.block(record.block_number)
    assert epoch is not None
    assert block is not None
    return committee.of_task(epoch, block.hash, round_, record.level, record.performer)


async def certify(
    world: World, record: ExecutionRecord, *, signers: int | None = None, round_: int = 0, verdict: Verdict = Verdict.YES
) -> Certificate:
    """The certificate of the first `signers` members (all of them unless told) of the task's committee."""
    chain = world.chain
    drawn = await committee_of(chain, record, round_)
    members = drawn.members[:signers]
    epoch = await chain.epoch_at(record.block_number)
    assert epoch is not None
    unsigned = Certificate(
        task_id=record.task_id,
        execution=record.digest,
        verdict=verdict,
        block_number=record.block_number,
        epoch=epoch.number,
        round=round_,
        signers=tuple(m.address for m in members),
        signature=b"",
    )
    digest = chain.domain.attestation_digest(certificate_root(unsigned), record.block_number, epoch.number, round_)
    secrets = {k.address: k.bls_secret for k in world.keepers}
    signature = bls.aggregate([bls.sign(secrets[m.address], digest) for m in members])
    return Certificate(**{f: getattr(unsigned, f) for f in unsigned.__slots__} | {"signature": signature})
