"""What the store keeps, as frozen values. Ids are ints, addresses 20 bytes, money wei, times UTC seconds unless named `_ms`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from consensus.lifecycle import FINAL, TaskState
from consensus.triggers import Observation, Trigger
from coordinator.store.platform_records import ApiKey as ApiKey
from coordinator.store.platform_records import Gap as Gap
from coordinator.store.platform_records import KeeperRecord as KeeperRecord
from coordinator.store.platform_records import KeeperSeen as KeeperSeen

SHARDS = 16
"""Parts that jobs are divided into, each held by one live coordinator; ids are keccaks, so the parts are even."""


def shard_of(job_id: int) -> int:
    """Which of the `SHARDS` a job belongs to."""
    return job_id % SHARDS


class JobStatus(StrEnum):
    """Where a job is. Nothing is ever removed: `deleted` is a status."""

    CREATED = "created"
    SCHEDULED = "scheduled"
    COMPLETED = "completed"
    FAILED = "failed"
    PAUSED = "paused"
    DELETED = "deleted"


class MissedPolicy(StrEnum):
    """What becomes of due seconds that passed while nobody could fire them."""

    RUN_ONCE = "run_once"
    RUN_ALL = "run_all"
    SKIP = "skip"


class Fired(StrEnum):
    """What the store says of a firing."""

    NEW = "new"
    KNOWN = "known"
    """Its task was there, or its edge taken: no task is new."""
    INACTIVE = "inactive"
    """Its job fires no more (or not yet), or has been changed since it was planned: then news of it is under way."""
    FENCED = "fenced"
    """Another coordinator holds the job's shard by now: drop the shard."""


ACTIVE = frozenset({JobStatus.CREATED, JobStatus.SCHEDULED})
"""Jobs that still fire."""

SCRIPT_URLS = 10_000
"""Of live jobs that are listed at a time."""

ENDED = frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.DELETED})
"""Jobs of which nothing more comes."""


@dataclass(frozen=True, slots=True)
class Edge:
    """How often a condition has fired, and whether it may again: it re-arms when it falls back."""

    number: int = 0
    armed: bool = True


@dataclass(frozen=True, slots=True)
class User:
    """An owner of jobs. `total_tasks` counts tasks created for them."""

    id: int
    address: bytes
    email: str
    points: int
    """In units of 10^-15: see `coordinator.points`."""
    total_jobs: int
    total_tasks: int
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class Target:
    """The call as posted, and as understood: `signature` is canonical, `call` the static calldata, `gas_limit` for it."""

    chain_id: int
    contract: bytes
    function: str
    signature: str
    abi: str
    arg_type: int
    arguments: str
    script_url: str
    language: str
    call: bytes
    gas_limit: int


@dataclass(frozen=True, slots=True)
class Called:
    """What a task executes: the bytes of its JobSpec, the calldata, and the gas for it."""

    spec: bytes
    call: bytes
    gas_limit: int


@dataclass(frozen=True, slots=True)
class Job:
    """A job as posted and checked against the chain. `spec` are the bytes of its JobSpec, which keepers are sent.

    `key_owner` owns the API key that created it, and reads it. `next_due` is a time job's next second that has no task yet;
    None when none is left, and for the other kinds. `created_at` is the chain's, `posted_at` ours. `starts_at` is when it
    began to be watched: later than `created_at` for a job that waited for the one before it, None while it waits. `spent`
    says that it fires no more and completes with its last open task. `edge` is a condition job's, `caught_up` says of an
    event job that the blocks between its creation and its posting have been searched.
    """

    id: int
    owner: bytes
    key_owner: str
    title: str
    definition: int
    trigger: Trigger
    target: Target
    spec: bytes
    created_at: int
    time_frame: int
    next_due: int | None
    posted_at: int
    updated_at: int
    status: JobStatus = JobStatus.CREATED
    priority: int = 3
    security: int = 0
    link_job_id: int = -1
    chain_status: int = 0
    custom: bool = True
    recurring: bool = True
    timezone: str = ""
    is_imua: bool = False
    created_chain_id: int = 0
    is_safe: bool = False
    safe_name: str = ""
    safe_address: str = ""
    cost_prediction: str = "0"
    cost_actual: int = 0
    last_executed_at: int | None = None
    trace_id: str = ""
    missed: MissedPolicy = MissedPolicy.RUN_ONCE
    starts_at: int | None = 0
    spent: bool = False
    edge: Edge = Edge()
    caught_up: bool = False
    revision: int = 0
    """How often it was paused, resumed, updated or begun: a firing that was made for another one is stale."""
    max_fee: int = 0
    """Wei that one execution may cost at most, by its owner's word; 0 for no such limit."""

    @property
    def planned(self) -> Planned | None:
        """What a scheduler needs of it, while there is something to schedule."""
        if not self.active or self.spent or self.starts_at is None:
            return None
        return Planned(
            job_id=self.id,
            chain_id=self.target.chain_id,
            definition=self.definition,
            trigger=self.trigger,
            created_at=self.created_at,
            time_frame=self.time_frame,
            starts_at=self.starts_at,
            next_due=self.next_due,
            recurring=self.recurring,
            missed=self.missed,
            priority=self.priority,
            edge=self.edge,
            caught_up=self.caught_up,
            trace_id=self.trace_id,
            revision=self.revision,
        )

    @property
    def called(self) -> Called:
        """What a task that fires now executes."""
        return Called(self.spec, self.target.call, self.target.gas_limit)

    @property
    def shard(self) -> int:
        return shard_of(self.id)

    @property
    def expires_at(self) -> int:
        """The last second of its life: it may still fire then."""
        return self.created_at + self.time_frame

    @property
    def active(self) -> bool:
        return self.status in ACTIVE

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def waiting(self) -> bool:
        """For the job before it to complete."""
        return self.starts_at is None and not self.ended


@dataclass(frozen=True, slots=True)
class Planned:
    """What a scheduler needs of a job; a hundred thousand of them stay in memory."""

    job_id: int
    chain_id: int
    definition: int
    trigger: Trigger
    created_at: int
    time_frame: int
    starts_at: int
    next_due: int | None
    recurring: bool
    missed: MissedPolicy
    priority: int
    edge: Edge
    caught_up: bool
    trace_id: str
    revision: int = 0

    @property
    def expires_at(self) -> int:
        return self.created_at + self.time_frame


@dataclass(frozen=True, slots=True)
class Task:
    """One firing of one job. `stages` are UTC milliseconds by stage name; None where the chain has not said yet.

    `scheduled_at` is the second (UTC) before which it must not execute: a time job's due second, else when it fired.

    `accepted` is the committee's verdict, `successful` the target call's; `reason` and `detail` say why it ended.
    """

    id: int
    job_id: int
    chain_id: int
    trigger_id: int
    definition: int
    created_at_ms: int
    trace_id: str
    scheduled_at: int
    priority: int = 3
    observation: Observation = None
    state: TaskState = TaskState.CREATED
    reason: str = ""
    detail: str = ""
    attempt: int = 0
    arguments: str = ""
    predicted_cost: int = 0
    cost: int | None = None
    number: int | None = None
    executed_at: int | None = None
    execution_tx: bytes | None = None
    performer: bytes | None = None
    performer_id: int | None = None
    attester_ids: tuple[int, ...] = ()
    proof: bytes | None = None
    accepted: bool | None = None
    successful: bool | None = None
    submission_tx: bytes | None = None
    stages: Mapping[str, int] = field(default_factory=dict)

    @property
    def shard(self) -> int:
        return shard_of(self.job_id)

    @property
    def ended(self) -> bool:
        return self.state in FINAL


@dataclass(frozen=True, slots=True)
class Attempt:
    """One keeper's chance at a task. `message` are the bytes for the mesh: stored before they leave, republished unchanged.

    `ended_ms` is set when the coordinator has given it up, with `code` and `detail` saying why. Its authorisation
    stays valid until `deadline` all the same.
    """

    task_id: int
    number: int
    performer: bytes
    peer_id: str
    not_before: int
    deadline: int
    message: bytes
    created_ms: int
    published_ms: int | None = None
    acknowledged_ms: int | None = None
    ended_ms: int | None = None
    code: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class EdgeStep:
    """A condition's step, by compare-and-set: written only while the stored edge's number is `expected`."""

    expected: int
    after: Edge


@dataclass(frozen=True, slots=True)
class Firing:
    """A job's step: the task it makes, if any, and what the job's row becomes. Written together or not at all.

    `next_due` is a time job's, `edge` a condition job's; `spent` says that the job fires no more. With a `revision` it is
    written only while the job is as it was planned.
    """

    job_id: int
    task: Task | None
    next_due: int | None = None
    edge: EdgeStep | None = None
    spent: bool = False
    revision: int | None = None


@dataclass(frozen=True, slots=True)
class TaskChange:
    """What is newly known of a task. `path` are the states it goes through, checked by the lifecycle; fields of None stay."""

    task_id: int
    path: tuple[TaskState, ...]
    stages: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""
    detail: str = ""
    attempt: int | None = None
    arguments: str | None = None
    predicted_cost: int | None = None
    cost: int | None = None
    number: int | None = None
    executed_at: int | None = None
    execution_tx: bytes | None = None
    performer: bytes | None = None
    performer_id: int | None = None
    attester_ids: tuple[int, ...] | None = None
    proof: bytes | None = None
    accepted: bool | None = None
    successful: bool | None = None
    submission_tx: bytes | None = None
    attesters: tuple[bytes, ...] = ()
    """Operators behind `attester_ids`: for their points; not kept."""
    rewards: Mapping[bytes, int] = field(default_factory=dict)
    """Wei that the certificate earned each operator; not kept with the task."""
    storage: Mapping[str, str | None] | None = None
    """What the job's storage becomes, as JSON text by key, None to delete; once for each task. Kept with the job."""
    charge: bytes = b""
    """Wire bytes of the `RunCertificate` whose run is yet to be charged on chain; kept until `cost` is known."""


@dataclass(frozen=True, slots=True)
class RunPackage:
    """The wire bytes of an `Execution` with a run, as its performer signed it. `contradicted` when the performer has signed
    another one of the same attempt."""

    task_id: int
    attempt: int
    package: bytes
    heard_at: int
    contradicted: bool = False


@dataclass(frozen=True, slots=True)
class RunCharge:
    """A certified run that has not been charged on chain: the wire bytes of its `RunCertificate`."""

    task_id: int
    chain_id: int
    certificate: bytes
    at: int
