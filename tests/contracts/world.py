"""A deployed set of contracts with operators on it, and the certificates that their keys make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import trio
from eth_account import Account
from eth_keys.datatypes import PrivateKey

from consensus import bls, committee, merkle
from consensus.codec import Domain, keccak, word
from consensus.committee import Epoch, Operator
from consensus.messages import Authorisation, Uint256
from node.infra.deploy import Deployment, DeploySettings, deploy
from tests.contracts.evm import Chain, Contract, Receipt, abi_of, text

ETHER = 10**18
GWEI = 10**9
UNIT = 10**13
MIN_STAKE = ETHER
ROUND_SECONDS = 30
EPOCH_SECONDS = 120
UNBONDING_SECONDS = 600
YES, NO = 1, 2
DISPATCHER = PrivateKey(keccak(b"dispatcher"))
STRANGER_KEY = PrivateKey(keccak(b"stranger"))
DEPLOYER = Account.from_key(keccak(b"deployer"))
OWNER = keccak(b"owner")[:20]
USER = keccak(b"user")[:20]
STRANGER = keccak(b"nobody")[:20]
SPEC = keccak(b"spec")


def account(i: int) -> bytes:
    """The address of operator i, from 1; its id when operators register in order."""
    return keccak(b"operator" + bytes([i]))[:20]


@cache
def secret(i: int) -> int:
    return bls.secret_from_seed(keccak(b"key" + i.to_bytes(2, "big")))


@cache
def key(i: int) -> bytes:
    """The EIP-2537 encoding of key i."""
    return bls.key_to_evm(bls.public_key(secret(i)))


class _TrioRpc:
    def __init__(self, chain: Chain) -> None:
        self.chain = chain

    async def call(self, method: str, params: list[Any]) -> Any:
        return self.chain.rpc(method, *params)


@dataclass(frozen=True)
class Task:
    """An executed task: what the hub answered, and what was asked of it."""

    id: int
    authorisation: Authorisation
    receipt: Receipt
    success: bool
    fee: int
    digest: bytes

    @property
    def block(self) -> int:
        return self.receipt.block


@dataclass(frozen=True)
class Certificate:
    """The arguments of `submitTaskValidation` before they are packed; tests bend one field at a time."""

    task_id: int
    root: bytes
    signature: bytes
    attesters: tuple[bytes, ...]
    verdict: int
    round: int
    epoch: int
    block: int
    index: int = 0
    path: tuple[bytes, ...] = ()
    position: int = 0
    version: int = 1
    depth: int | None = None

    def arguments(self) -> tuple[int, bytes, bytes, tuple[bytes, ...]]:
        depth = len(self.path) if self.depth is None else self.depth
        head = bytes([self.version, self.verdict, self.round, self.index, depth, self.position])
        packed = head + self.epoch.to_bytes(8, "big") + self.block.to_bytes(8, "big") + self.signature + b"".join(self.path)
        return self.task_id, self.root, packed, self.attesters


class World:
    """The contracts of one deployment on one chain."""

    def __init__(self, chain: Chain, deployment: Deployment) -> None:
        def at(name: str, address: str) -> Contract:
            return Contract(chain, bytes.fromhex(address[2:]), abi_of(name))

        assert deployment.demo is not None
        self.chain = chain
        self.deployment = deployment
        self.hub = at("Hub", deployment.hub)
        self.center = at("AttestationCenter", deployment.attestation_center)
        self.registry = at("KeeperRegistry", deployment.keeper_registry)
        self.jobs = at("JobRegistry", deployment.job_registry)
        self.gas = at("TriggerGasRegistry", deployment.gas_registry)
        self.demo = at("Demo", deployment.demo)
        self.safe_factory = at("SafeFactory", deployment.safe_factory)
        self.safe_module = at("SafeModule", deployment.safe_module)
        self.domain = Domain(deployment.chain_id, self.hub.address, self.center.address, self.registry.address)

    # --- operators ---------------------------------------------------------------------------------------------------

    def possession(self, i: int, operator: bytes, domain: Domain | None = None) -> bytes:
        statement = (domain or self.domain).possession_digest(key(i), operator)
        return bls.signature_to_evm(bls.prove_possession(secret(i), statement))

    def register(self, i: int, stake: int = MIN_STAKE) -> Receipt:
        """Operator i registers key i; its earnings go to itself."""
        who = self.chain.fund(account(i))
        return self.registry.send("register", key(i), self.possession(i, who), f"peer{i}".encode(), who, sender=who, value=stake)

    def advance(self) -> Receipt:
        """The next epoch, as soon as it may begin."""
        current = self.registry.view("currentEpoch")
        if current:
            self.chain.warp(EPOCH_SECONDS)
        return self.registry.send("advanceEpoch", sender=self.chain.fund(STRANGER))

    def epoch(self, number: int | None = None) -> Epoch:
        """An epoch's set, read back from the blob's bytes alone."""
        number = self.registry.view("currentEpoch") if number is None else number
        blob, operators, seats, from_block = self.registry.view("epochInfo", number)
        code = self.chain.code(blob)
        assert code[0] == 0
        assert len(code) == 193 + 152 * operators
        assert set(code[1 + seats : 193]) <= {0xFF}
        read = []
        for i in range(operators):
            one = code[193 + 152 * i : 193 + 152 * (i + 1)]
            read.append(Operator(int.from_bytes(one[:4], "big"), one[4:24], bls.key_from_evm(one[24:])))
        following = self.registry.view("epochInfo", number + 1)[3]
        return Epoch(number, from_block, following - 1 if following else None, tuple(read), tuple(code[1 : 1 + seats]))

    # --- jobs and executions -----------------------------------------------------------------------------------------

    def create_job(
        self, kind: int = 1, time_frame: int = 3600, target: bytes | None = None, data: bytes | None = None, owner: bytes = USER
    ) -> int:
        """A job of the demo target; by default every 10 s for an hour."""
        words = {1: word(10), 2: word(0) + word(b"url"), 7: word(0) + word(b"url")}.get(kind, word(1))
        made = self.jobs.send(
            "createJob",
            "a job",
            kind,
            time_frame,
            self.demo.address if target is None else target,
            words if data is None else data,
            sender=self.chain.fund(owner),
        )
        return int(self.jobs.events(made, "JobCreated")[0]["jobId"])

    def deposit(self, wei: int = ETHER, owner: bytes = USER) -> Receipt:
        return self.gas.send("depositETH", wei, sender=self.chain.fund(owner), value=wei)

    def authorise(self, job_id: int, trigger_id: int, performer: bytes, call: bytes, **changes: Any) -> Authorisation:
        now = self.chain.now()
        asked: dict[str, Any] = {
            "job_id": Uint256(job_id),
            "trigger_id": Uint256(trigger_id),
            "attempt": 1,
            "performer": performer,
            "spec": SPEC,
            "target": self.demo.address,
            "selector": call[:4].ljust(4, b"\0"),
            "call_hash": keccak(call),
            "gas_limit": 200_000,
            "level": 0,
            "max_fee": Uint256(ETHER // 10),
            "not_before": 0,
            "deadline": now + 1000,
        }
        return Authorisation(**{**asked, **changes})

    def signed(self, a: Authorisation, signer: PrivateKey = DISPATCHER, domain: Domain | None = None) -> bytes:
        made = signer.sign_msg_hash((domain or self.domain).hub_digest(a.struct_hash()))
        return made.r.to_bytes(32, "big") + made.s.to_bytes(32, "big") + bytes([27 + made.v])

    @staticmethod
    def struct(a: Authorisation) -> tuple[Any, ...]:
        return (
            *(a.job_id, a.trigger_id, a.attempt, a.performer, a.spec, a.target, a.selector, a.call_hash),
            *(a.gas_limit, a.level, a.max_fee, a.not_before, a.deadline),
        )

    def ping(self, value: int) -> bytes:
        return self.demo.encode("ping", value)

    def due(self, job_id: int, i: int = 1) -> int:
        """The i-th due second of an interval job; the chain's clock is moved there when it is behind."""
        job = self.jobs.view("job", job_id)
        second = int(job["createdAt"] + i * max(job["word"], 1))
        if self.chain.now() < second:
            self.chain.warp_to(second)
        return second

    def execute(
        self,
        job_id: int,
        trigger_id: int | None = None,
        performer: bytes | None = None,
        call: bytes | None = None,
        resource_fee: int = 0,
        *,
        to: bytes | None = None,
        **changes: Any,
    ) -> Task:
        """One execution, by operator 1 unless told otherwise; `to` where the authorisation leaves the target open."""
        trigger_id = self.due(job_id) if trigger_id is None else trigger_id
        performer = account(1) if performer is None else performer
        call = self.ping(7) if call is None else call
        a = self.authorise(job_id, trigger_id, performer, call, **changes)
        receipt = self.hub.send("execute", self.struct(a), self.signed(a), to or a.target, call, resource_fee, sender=performer)
        event = self.hub.events(receipt, "TaskExecuted")[0]
        return Task(event["taskId"], a, receipt, event["success"], event["fee"], event["digest"])

    def refused(self, job_id: int, trigger_id: int | None = None, **given: Any) -> str:
        """Why the hub refuses it; `signer`, `domain`, `signature`, `sender`, `call`, `to` and `gas` bend more than fields."""
        trigger_id = self.due(job_id) if trigger_id is None else trigger_id
        call = given.pop("call", self.ping(7))
        sender = given.pop("sender", None)
        gas, to = given.pop("gas", 5_000_000), given.pop("to", None)
        signer, domain, signature = given.pop("signer", DISPATCHER), given.pop("domain", None), given.pop("signature", None)
        struct = given.pop("struct", None)
        a = self.authorise(job_id, trigger_id, given.pop("performer", account(1)), given.pop("authorised", call), **given)
        signature = self.signed(a, signer, domain) if signature is None else signature
        fields = list(self.struct(a))
        for place, value in (struct or {}).items():
            fields[place] = value
        to = fields[5] if to is None else to
        return self.hub.refusal("execute", tuple(fields), signature, to, call, 0, sender=sender or a.performer, gas=gas)

    # --- certificates ------------------------------------------------------------------------------------------------

    def committee(self, task: Task, round_: int = 0, epoch: Epoch | None = None) -> committee.Committee:
        epoch = epoch or self.epoch(self.registry.view("epochAt", task.block))
        block_hash = self.chain.block_hash(task.block)
        return committee.of_task(epoch, block_hash, round_, task.authorisation.level, task.authorisation.performer)

    def sign(
        self, operators: Sequence[int], root: bytes, block: int, epoch: int, round_: int = 0, domain: Domain | None = None
    ) -> bytes:
        """The aggregate signature of these operators (by number), EIP-2537 encoded."""
        digest = (domain or self.domain).attestation_digest(root, block, epoch, round_)
        return bls.signature_to_evm(bls.aggregate([bls.sign(secret(i), digest) for i in operators]))

    def certificate(
        self,
        task: Task,
        *,
        verdict: int = YES,
        round_: int = 0,
        signers: Sequence[int] | None = None,
        others: Sequence[bytes] = (),
        index: int = 0,
    ) -> Certificate:
        """A certificate by the committee members at `signers` (places in draw order; default: just the quorum).

        `others` are further leaves of the tree; the task's own stands at `index` among them.
        """
        epoch = self.epoch(self.registry.view("epochAt", task.block))
        drawn = self.committee(task, round_, epoch)
        quorum = drawn.yes_quorum if verdict == YES else drawn.no_quorum
        chosen = [drawn.members[i] for i in (range(quorum) if signers is None else signers)]
        leaves = list(others)
        leaves.insert(index, merkle.leaf(task.id, task.digest, verdict))
        root = merkle.root(leaves)
        return Certificate(
            task_id=task.id,
            root=root,
            signature=self.sign([m.id for m in chosen], root, task.block, epoch.number, round_),
            attesters=tuple(m.address for m in chosen),
            verdict=verdict,
            round=round_,
            epoch=epoch.number,
            block=task.block,
            index=index,
            path=merkle.path(leaves, index),
        )

    def submitter(self, certificate: Certificate) -> bytes:
        return self.epoch(certificate.epoch).operators[certificate.position].address

    def submit(self, certificate: Certificate, sender: bytes | None = None) -> Receipt:
        who = sender or self.submitter(certificate)
        return self.center.send("submitTaskValidation", *certificate.arguments(), sender=who)

    def refuse(self, certificate: Certificate, sender: bytes | None = None, gas: int = 5_000_000, **changes: Any) -> str:
        """Why the center refuses a certificate, with some fields changed."""
        bent = replace(certificate, **changes)
        who = sender or self.submitter(certificate)
        return self.center.refusal("submitTaskValidation", *bent.arguments(), sender=who, gas=gas)

    def status(self, task: Task) -> int:
        return int(self.hub.view("execution", task.id)["status"])


def found(chain: Chain) -> World:
    """Deploys a set of contracts, without operators."""
    chain.fund(bytes.fromhex(DEPLOYER.address[2:]))
    for who in (OWNER, USER, STRANGER):
        chain.fund(who)
    settings = DeploySettings(
        owner=text(OWNER),
        dispatchers=(DISPATCHER.public_key.to_checksum_address(),),
        epoch_seconds=EPOCH_SECONDS,
        round_seconds=ROUND_SECONDS,
        min_stake=MIN_STAKE,
        seat_stake=MIN_STAKE,
        unbonding_seconds=UNBONDING_SECONDS,
        unit=UNIT,
        demo=True,
    )
    return World(chain, trio.run(deploy, _TrioRpc(chain), DEPLOYER, settings))
