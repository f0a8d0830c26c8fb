"""What goes over the mesh: frozen values, checked at birth, with their wire bytes (versioned, strict MessagePack).

An invalid message cannot exist: constructing or decoding one raises. Integers of a contract (uint256) travel as
32 bytes, since MessagePack ends at 64 bits. Which bytes are signed is `consensus.codec`'s matter, not the wire's.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum

from consensus import codec
from consensus.cid import RAW, Cid, sha2_256
from consensus.codec import keccak, words
from consensus.errors import Reject
from consensus.triggers import Observation, Trigger
from consensus.wire import Uint256, Wire, need

__all__ = [
    "MAX_CALL_BYTES",
    "MAX_OUTPUT_BYTES",
    "MAX_SPEC_BYTES",
    "MAX_STORAGE_BYTES",
    "MAX_TRACE_CHARS",
    "Acknowledgement",
    "Authorisation",
    "CheckIn",
    "Execution",
    "JobSpec",
    "NotExecuted",
    "PackageReference",
    "Refusal",
    "Run",
    "RunCertificate",
    "Task",
    "Uint256",
    "Usage",
    "Verdict",
    "Vote",
    "Wire",
    "spec_cid",
    "spec_digest",
]

MAX_SPEC_BYTES = 64 * 1024
MAX_CALL_BYTES = 16 * 1024
MAX_OUTPUT_BYTES = 32 * 1024
"""What a script may print: a call's 16 KiB as hex text."""
MAX_STORAGE_BYTES = 16 * 1024
"""What a custom script's job keeps between runs, as JSON text."""
MAX_TRACE_CHARS = 128


class Verdict(IntEnum):
    """What an attester says of an execution. Only YES and NO can be certified."""

    YES = 1
    NO = 2
    CANNOT_TELL = 3


class JobSpec(Wire, frozen=True):
    """The whole job as posted, in the form keepers agree on; its CID binds every authorisation of the job.

    `arguments` is the JSON text of the argument array, `function` the canonical signature (`ping(uint256)`); both empty for
    type 7, whose script decides the call, and `target` then zero unless the job names one. Of types 2, 4 and 6 `arguments` are
    those that the script must print (null for any), and `function` names the members of tuples where the ABI does.
    `script_url` and `language` are empty where the arguments are given. Times are UTC seconds, `time_frame` seconds.
    """

    job_id: Uint256
    chain_id: int
    definition: int
    owner: bytes
    created_at: int
    time_frame: int
    trigger: Trigger
    target: bytes
    function: str
    arguments: str
    level: int
    script_url: str = ""
    language: str = ""
    priority: int = 3

    def __post_init__(self) -> None:
        need(1 <= self.priority <= 3, "priority is 1 to 3")
        need(1 <= self.definition <= 7, "task definition is 1 to 7")
        need(len(self.owner) == 20 and len(self.target) == 20, "owner and target are 20 bytes")
        need(0 <= self.level <= 4, "security level is 0 to 4")
        need(0 < self.created_at < 2**63 and 0 < self.time_frame < 2**63, "created_at and time_frame are positive seconds")
        need(len(self.function) <= 4096, "function signature over 4096 characters")
        need(len(self.script_url) <= 1024 and len(self.language) <= 16, "script URL over 1024 characters, or language over 16")


class Authorisation(Wire, frozen=True):
    """A dispatcher's leave for one performer to execute one firing once. Signed under the hub's EIP-712 domain."""

    job_id: Uint256
    trigger_id: Uint256
    attempt: int
    performer: bytes
    spec: bytes
    target: bytes
    selector: bytes
    call_hash: bytes
    gas_limit: int
    level: int
    max_fee: Uint256
    not_before: int
    deadline: int

    def __post_init__(self) -> None:
        need(len(self.performer) == 20 and len(self.target) == 20, "performer and target are 20 bytes")
        need(
            len(self.spec) == 32 and len(self.call_hash) == 32 and len(self.selector) == 4, "spec, call hash 32 bytes, selector 4"
        )
        need(1 <= self.attempt <= 255, "attempt is 1 to 255")
        need(0 < self.gas_limit <= 30_000_000, "gas limit is 1 to 30,000,000")
        need(0 <= self.level <= 4, "security level is 0 to 4")
        need(0 <= self.not_before <= self.deadline < 2**63, "not_before is not after the deadline")

    @property
    def task_id(self) -> int:
        return codec.task_id(self.job_id, self.trigger_id)

    def struct_hash(self) -> bytes:
        return keccak(
            words(
                codec.AUTHORISATION_TYPEHASH,
                self.job_id,
                self.trigger_id,
                self.attempt,
                self.performer,
                self.spec,
                self.target,
                self.selector,
                self.call_hash,
                self.gas_limit,
                self.level,
                self.max_fee,
                self.not_before,
                self.deadline,
            )
        )


class Task(Wire, frozen=True):
    """What the coordinator publishes: the authorisation, its signature, the JobSpec whose CID it names, and what was seen.

    `pinned_block` and `storage` are a script's inputs, the same for everybody who runs it: a block of the task's chain that
    was final when the attempt was made (0 for static jobs), and the job's storage as the text of a JSON object ('' for none).
    The block's hash also draws the committee of a run that ends without a transaction. `inputs` is the dispatcher's signature
    over both (`inputs_hash`, hub domain), empty where there are none: a performer who could choose them would choose what its
    script prints, and who judges it.
    """

    chain_id: int
    authorisation: Authorisation
    signature: bytes
    spec: bytes
    trace_id: str
    observation: Observation = None
    pinned_block: int = 0
    storage: str = ""
    inputs: bytes = b""

    def __post_init__(self) -> None:
        need(0 < self.chain_id < 2**63, "chain id out of range")
        need(0 <= self.pinned_block < 2**36, "pinned block out of range")
        need(len(self.storage.encode()) <= MAX_STORAGE_BYTES, "storage over 16 KiB")
        need(len(self.signature) == 65, "a signature has 65 bytes")
        scripted = self.pinned_block > 0 or self.storage != ""
        need(len(self.inputs) == (65 if scripted else 0), "pinned block and storage are signed with 65 bytes, nothing with none")
        need(len(self.spec) <= MAX_SPEC_BYTES, "JobSpec over 64 KiB")
        need(len(self.trace_id) <= MAX_TRACE_CHARS, "trace id over 128 characters")

    @property
    def task_id(self) -> int:
        return self.authorisation.task_id

    @staticmethod
    def inputs_hash(authorisation: Authorisation, pinned_block: int, storage: str) -> bytes:
        """Struct hash of a script's inputs, signed by the dispatcher under the hub's domain."""
        said = (authorisation.struct_hash(), pinned_block, keccak(storage.encode()))
        return keccak(words(codec.INPUTS_TYPEHASH, *said))

    def job(self) -> JobSpec:
        """The JobSpec, checked against the authorisation's digest. Raises `Reject`."""
        if hashlib.sha256(self.spec).digest() != self.authorisation.spec:
            raise Reject("SPEC_MISMATCH", "the JobSpec is not the one authorised")
        return JobSpec.decode(self.spec)


class Acknowledgement(Wire, frozen=True):
    """The performer's word that it has the task on disk and will execute it. Signed under the hub's domain."""

    chain_id: int
    task_id: Uint256
    attempt: int
    at: int
    signature: bytes

    def __post_init__(self) -> None:
        need(len(self.signature) == 65, "a signature has 65 bytes")
        need(1 <= self.attempt <= 255, "attempt is 1 to 255")
        need(0 <= self.at < 2**63, "time out of range")

    @staticmethod
    def struct_hash(authorisation: Authorisation, at: int) -> bytes:
        return keccak(words(codec.ACKNOWLEDGEMENT_TYPEHASH, authorisation.struct_hash(), at))


class Refusal(Wire, frozen=True):
    """The performer's word that it will not execute, and why: another keeper can be asked at once."""

    chain_id: int
    task_id: Uint256
    attempt: int
    code: str
    detail: str
    transient: bool

    def __post_init__(self) -> None:
        need(len(self.code) <= 64 and len(self.detail) <= 512, "reason too long")


class Usage(Wire, frozen=True):
    """What a run used: CPU milliseconds, wall milliseconds, peak memory in KiB, bytes sent and received."""

    cpu_ms: int
    wall_ms: int
    peak_kib: int
    transferred: int

    def __post_init__(self) -> None:
        need(all(0 <= each < 2**40 for each in (self.cpu_ms, self.wall_ms, self.peak_kib, self.transferred)), "out of range")


class Run(Wire, frozen=True):
    """What running a job's script came to: sha2-256 of the script's bytes, what it printed, and what that used."""

    script: bytes
    output: bytes
    usage: Usage

    def __post_init__(self) -> None:
        need(len(self.script) == 32, "a script's hash has 32 bytes")
        need(len(self.output) <= MAX_OUTPUT_BYTES, "output over 32 KiB")

    def digest(self) -> bytes:
        """sha2-256 of its wire bytes."""
        return hashlib.sha256(self.encode()).digest()


def _run_digest(run: Run | None) -> bytes:
    return bytes(32) if run is None else run.digest()


class Execution(Wire, frozen=True):
    """The performer's package: the task, what it sent where, and its signature over them (EIP-712, hub domain).

    `target` is the authorisation's, or the script's where that leaves it open; `run` is None for static jobs.
    """

    task: Task
    transaction: bytes
    target: bytes
    call: bytes
    resource_fee: Uint256
    run: Run | None
    signature: bytes

    def __post_init__(self) -> None:
        need(len(self.target) == 20, "a target has 20 bytes")
        need(len(self.transaction) == 32, "a transaction hash has 32 bytes")
        need(len(self.call) <= MAX_CALL_BYTES, "calldata over 16 KiB")
        need(len(self.signature) == 65, "a signature has 65 bytes")

    @staticmethod
    def struct_hash(
        authorisation: Authorisation, transaction: bytes, target: bytes, call: bytes, resource_fee: int, run: Run | None
    ) -> bytes:
        said = (authorisation.struct_hash(), transaction, target, keccak(call), resource_fee, _run_digest(run))
        return keccak(words(codec.PACKAGE_TYPEHASH, *said))


class PackageReference(Wire, frozen=True):
    """Says where a package lies that is too large for gossip: its CID, to be asked of the peer that signed this message.

    It claims nothing of the execution: the package has its performer's signature in it.
    """

    chain_id: int
    task_id: Uint256
    attempt: int
    cid: str

    def __post_init__(self) -> None:
        need(0 < self.chain_id < 2**63, "chain id out of range")
        need(1 <= self.attempt <= 255, "attempt is 1 to 255")
        need(0 < len(self.cid) <= 128 and self.cid.isascii(), "a CID has 1 to 128 characters")


class NotExecuted(Wire, frozen=True):
    """The performer's word that a task's script ran and no transaction follows: it declined, or failed by its own doing.

    `code` is a reason of `consensus.lifecycle`; `detail` quotes the script and is not signed. `run` is None when the script
    could not be run at all by its own fault (too large, no such language). `fee` is wei asked for the run.
    """

    task: Task
    code: str
    detail: str
    run: Run | None
    fee: Uint256
    signature: bytes

    def __post_init__(self) -> None:
        need(0 < len(self.code) <= 64 and len(self.detail) <= 512, "reason too long")
        need(self.task.pinned_block > 0, "a task without a pinned block draws no committee")
        need(len(self.signature) == 65, "a signature has 65 bytes")

    def digest(self) -> bytes:
        """What its committee votes on, and what the performer signs under the hub's domain."""
        return self.struct_hash(self.task, self.code, self.run, self.fee)

    @staticmethod
    def struct_hash(task: Task, code: str, run: Run | None, fee: int) -> bytes:
        said = (task.authorisation.struct_hash(), task.pinned_block, keccak(code.encode()), _run_digest(run), fee)
        return keccak(words(codec.NOT_EXECUTED_TYPEHASH, *said))


class RunCertificate(Wire, frozen=True):
    """A quorum's word that a `NotExecuted` is true: BLS over the attestation digest of its tree of one.

    The digest names pinned block, epoch and round; `signers` are operators' addresses in draw order.
    """

    not_executed: NotExecuted
    epoch: int
    round: int
    signers: tuple[bytes, ...]
    signature: bytes

    def __post_init__(self) -> None:
        need(0 < len(self.signers) <= 16 and all(len(each) == 20 for each in self.signers), "1 to 16 signers of 20 bytes")
        need(0 <= self.round <= 2 and 0 <= self.epoch < 2**40, "round or epoch out of range")
        need(len(self.signature) == 96, "a signature has 96 bytes")


class Vote(Wire, frozen=True):
    """A committee member's verdict on one execution: BLS over the attestation digest of the tree of one.

    Who votes is not in the message: it is the operator whose peer the stream authenticates.
    """

    chain_id: int
    task_id: Uint256
    execution: bytes
    verdict: Verdict
    reason: str
    block_number: int
    epoch: int
    round: int
    signature: bytes

    def __post_init__(self) -> None:
        need(len(self.execution) == 32, "an execution digest has 32 bytes")
        need(len(self.reason) <= 64, "reason over 64 characters")
        need(0 <= self.round <= 2 and self.block_number >= 0 and self.epoch >= 0, "round, block or epoch out of range")
        need(len(self.signature) == 96, "a vote's signature has 96 bytes")


class CheckIn(Wire, frozen=True):
    """A keeper's sign of life. Signed by the operator under the hub's domain, bound to its peer id.

    `sandbox` is where it can run scripts (`docker`, `embedded`), empty when nowhere.
    """

    chain_id: int
    operator: bytes
    version: str
    sandbox: str
    at: int
    signature: bytes

    def __post_init__(self) -> None:
        need(len(self.operator) == 20 and len(self.signature) == 65, "operator 20 bytes, signature 65")
        need(len(self.version) <= 64 and len(self.sandbox) <= 32, "version over 64 characters, or sandbox over 32")
        need(0 <= self.at < 2**63, "time out of range")

    @staticmethod
    def struct_hash(peer_id: str, version: str, sandbox: str, at: int) -> bytes:
        said = (keccak(text.encode()) for text in (peer_id, version, sandbox))
        return keccak(words(codec.CHECK_IN_TYPEHASH, *said, at))


def spec_digest(spec: bytes) -> bytes:
    """The sha2-256 that an authorisation carries for a JobSpec's bytes."""
    return sha2_256(spec)


def spec_cid(digest: bytes) -> str:
    """What IPFS calls a single block with these bytes: CIDv1, raw codec, sha2-256, base32."""
    return str(Cid(1, RAW, digest))
