"""What the store keeps, as frozen values. Ids are ints, addresses 20 bytes, money wei, times UTC seconds unless named `_ms`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from consensus.lifecycle import FINAL, TaskState
from consensus.triggers import Trigger


class JobStatus(StrEnum):
    """Where a job is. Nothing is ever removed: `deleted` is a status."""

    CREATED = "created"
    SCHEDULED = "scheduled"
    COMPLETED = "completed"
    FAILED = "failed"
    PAUSED = "paused"
    DELETED = "deleted"


ACTIVE = frozenset({JobStatus.CREATED, JobStatus.SCHEDULED})
"""Jobs that still fire."""


@dataclass(frozen=True, slots=True)
class User:
    """An owner of jobs. `total_tasks` counts tasks created for them."""

    id: int
    address: bytes
    email: str
    points: str
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
class Job:
    """A job as posted and checked against the chain. `spec` are the bytes of its JobSpec, which keepers are sent.

    `key_owner` owns the API key that created it, and reads it. `next_due` is the next second that has no task yet;
    None when none is left. `created_at` is the chain's, `posted_at` ours.
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

    @property
    def planned(self) -> Planned | None:
        """What a scheduler needs of it, while there is something to schedule."""
        if not self.active or self.next_due is None:
            return None
        return Planned(
            self.id,
            self.target.chain_id,
            self.definition,
            self.trigger,
            self.created_at,
            self.time_frame,
            self.next_due,
            self.trace_id,
        )

    @property
    def expires_at(self) -> int:
        return self.created_at + self.time_frame

    @property
    def active(self) -> bool:
        return self.status in ACTIVE


@dataclass(frozen=True, slots=True)
class Planned:
    """What a scheduler needs of a job; a hundred thousand of them stay in memory."""

    job_id: int
    chain_id: int
    definition: int
    trigger: Trigger
    created_at: int
    time_frame: int
    next_due: int
    trace_id: str


@dataclass(frozen=True, slots=True)
class Task:
    """One firing of one job. `stages` are UTC milliseconds by stage name; None where the chain has not said yet.

    `accepted` is the committee's verdict, `successful` the target call's; `reason` and `detail` say why it ended.
    """

    id: int
    job_id: int
    chain_id: int
    trigger_id: int
    definition: int
    created_at_ms: int
    trace_id: str
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
class Firing:
    """A job's step of its schedule: the task it makes, if any, and the job's next due second. Written together or not at all."""

    job_id: int
    task: Task | None
    next_due: int | None


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


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key by the sha-256 of its text; `masked` shows first and last four characters.

    `owner` is an address in checksum case, or a name. `rate_limit` is requests a minute.
    """

    digest: bytes
    masked: str
    owner: str
    role: str
    active: bool
    rate_limit: int
    created_at: int


@dataclass(frozen=True, slots=True)
class KeeperSeen:
    """A keeper by its check-ins. `uptime_s` grows while it is online; times are UTC seconds."""

    chain_id: int
    address: bytes
    peer_id: str
    version: str
    first_seen: int
    last_seen: int
    uptime_s: int
