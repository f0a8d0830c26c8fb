"""A job as posted: its agreement with the chain, its JobSpec, and what of it may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from consensus import runs, schedules
from consensus.errors import Invalid
from consensus.messages import MAX_SPEC_BYTES, JobSpec, Uint256
from consensus.triggers import Cron, Interval, Moments, OnCondition, OnEvent, Trigger
from coordinator.store.records import Job, JobStatus, MissedPolicy
from node.arguments import canonical_arguments, dump_json, encode_call, parse_json, resolve_function, with_names
from node.infra.chain import Job as ChainJob

CUSTOM_SCRIPT = runs.CUSTOM
DYNAMIC = runs.SCRIPTED
"""Types whose calls a script decides, wholly or in their arguments."""
NO_CONTRACT = bytes(20)


@dataclass(frozen=True, slots=True)
class Posted:
    """A job as a user posted it, fields already of their types. `arguments` is JSON text, addresses 20 bytes.

    `contract` is zero for a custom script that names no target. `script_url` and `language` are empty for static jobs.
    `recurring` is true for every scheduled job: its schedule says how often. `confirmed` says that an event's confirmations
    are the user's, not left to its chain. `gas_limit` of the call and `max_fee` (wei) of one execution are 0 where the user says
    nothing; `safe_address` is in checksum case.
    """

    id: int
    owner: bytes
    title: str
    definition: int
    time_frame: int
    trigger: Trigger
    chain_id: int
    created_chain_id: int
    contract: bytes
    function: str
    abi: str
    arg_type: int
    arguments: str
    priority: int = 3
    security: int = 0
    recurring: bool = True
    missed: MissedPolicy = MissedPolicy.RUN_ONCE
    custom: bool = True
    timezone: str = "UTC"
    is_imua: bool = False
    cost_prediction: str = "0"
    script_url: str = ""
    language: str = ""
    confirmed: bool = True
    gas_limit: int = 0
    max_fee: int = 0
    is_safe: bool = False
    safe_name: str = ""
    safe_address: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """A call as understood: canonical signature, canonical arguments as JSON text, and the calldata.

    Empty where a script decides: the calldata of a dynamic job, everything of a custom script's. A dynamic job's arguments are
    empty too, or those that its script cannot choose, with null for each that it can.
    """

    signature: str
    arguments: str
    data: bytes


def call_of(posted: Posted) -> Call:
    """What the job calls. Raises `Invalid` for `target_function`, `abi` or `arguments[i]`."""
    if posted.definition == CUSTOM_SCRIPT:
        return Call("", "", b"")
    if posted.definition in DYNAMIC:
        signature = resolve_function(posted.function, posted.abi)
        return Call(signature, _fixed(posted, signature) if posted.is_safe else "", b"")
    call = static_call(posted.function, posted.arguments, posted.abi)
    if posted.is_safe and parse_json(call.arguments, "arguments")[:1] != [posted.safe_address]:
        raise Invalid("arguments[0]", "is not the job's safe_address", f"send {posted.safe_address} first")
    return call


def _fixed(posted: Posted, signature: str) -> str:
    """A Safe job's script chooses everything but the Safe."""
    types = top_level(signature)
    if types[:1] != ["address"]:
        raise Invalid("target_function", "takes no Safe's address first", "name a function of the Safe module: execJobFromHub")
    return dump_json([posted.safe_address, *[None] * (len(types) - 1)])


def top_level(signature: str) -> list[str]:
    """The parameter types of a canonical signature: `f(uint8,(bool,bytes)[])` has two."""
    found, depth = [""], 0
    for letter in signature[signature.index("(") + 1 : -1]:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and not depth:
            found.append("")
        else:
            found[-1] += letter
    return found if found != [""] else []


def static_call(function: str, arguments: str, abi: str) -> Call:
    """The call of given arguments. Raises as `call_of`."""
    signature = resolve_function(function, abi)
    return Call(signature, canonical_arguments(signature, arguments, abi), encode_call(signature, arguments, abi))


def spec_of(posted: Posted, call: Call, created_at: int, time_frame: int) -> bytes:
    """The JobSpec's bytes: the same for the same job, however often it is posted. Raises `Invalid` when they are too many."""
    # Scripts may name the members of tuples, which static arguments no longer do.
    function = with_names(call.signature, posted.abi) if posted.definition in DYNAMIC and call.signature else call.signature
    spec = JobSpec(
        job_id=Uint256(posted.id),
        chain_id=posted.chain_id,
        definition=posted.definition,
        owner=posted.owner,
        created_at=created_at,
        time_frame=time_frame,
        trigger=posted.trigger,
        target=posted.contract,
        function=function,
        arguments=call.arguments,
        level=posted.security,
        script_url=posted.script_url,
        language=posted.language,
        priority=posted.priority,
    ).encode()
    if len(spec) > MAX_SPEC_BYTES:
        raise Invalid("arguments", f"the job is {len(spec)} bytes, at most {MAX_SPEC_BYTES}", "pass less data")
    return spec


def agrees(posted: Posted, registered: ChainJob) -> None:
    """The chain proves whose job it is; a posted job may add to what is registered, never contradict it. Raises `Invalid`."""
    if not registered.active:
        raise Invalid("job_id", "this job was deleted on chain", "create a new one", code="JOB_INACTIVE")
    for field, said, is_so in (
        ("user_address", posted.owner, registered.owner),
        ("task_definition_id", posted.definition, registered.definition),
        ("target_contract_address", posted.contract, registered.target),
        ("time_frame", posted.time_frame, registered.time_frame),
    ):
        if said != is_so:
            raise _contradiction(field, is_so)
    match posted.trigger:
        case Interval(interval=interval):
            if interval != registered.interval and registered.interval:
                raise _contradiction("time_interval", registered.interval)
            if interval != registered.interval:
                raise Invalid(
                    "schedule_type",
                    "the job on chain has no interval",
                    "post its cron_expression or specific_schedule, or create it on chain with its interval",
                    code="CONTRADICTS_CHAIN",
                )
        case Cron() | Moments():
            if registered.interval:
                raise Invalid(
                    "schedule_type",
                    f"the job on chain has an interval of {registered.interval} s",
                    "create it on chain with interval 0, or post that interval",
                    code="CONTRADICTS_CHAIN",
                )
        case OnEvent() | OnCondition():
            if posted.recurring != registered.recurring:
                raise _contradiction("recurring", registered.recurring)


def _contradiction(field: str, is_so: object) -> Invalid:
    shown = "0x" + is_so.hex() if isinstance(is_so, bytes) else str(is_so).lower()
    return Invalid(field, "differs from the job on chain", f"send {shown}", code="CONTRADICTS_CHAIN")


_FIELD_OF_SCHEDULE = {Interval: "time_interval", Cron: "cron_expression", Moments: "specific_schedule"}


def first_due(trigger: Trigger, after: int, *, created_at: int, time_frame: int) -> int | None:
    """A schedule's first second after `after`; None for the other triggers. Raises `Invalid` when it never comes."""
    match trigger:
        case Interval() | Cron() | Moments():
            due = schedules.next_due(trigger, after, created_at=created_at, time_frame=time_frame)
            if due is None:
                raise Invalid(
                    _FIELD_OF_SCHEDULE[type(trigger)],
                    "is never due within the job's life",
                    "name a time within time_frame of the job's creation",
                )
            return due
    return None


def one_owner(posted: Sequence[Posted]) -> None:
    """Linked jobs are one user's, on one chain, and each is itself. Raises `Invalid`."""
    first = posted[0]
    for place, each in enumerate(posted):
        if each.owner != first.owner:
            raise Invalid(f"[{place}].user_address", "linked jobs belong to one user", "post them apart")
        if each.chain_id != first.chain_id:
            raise Invalid(f"[{place}].target_chain_id", "linked jobs are on one chain", "post them apart")
    if len({each.id for each in posted}) != len(posted):
        raise Invalid("job_id", "a job is in the array twice", "post each job once")


def linked(jobs: Sequence[Job]) -> list[Job]:
    """The jobs in their order, each linked to the next; only the first begins now."""
    if len(jobs) == 1:
        return list(jobs)
    following = [*(job.id for job in jobs[1:]), -1]
    return [
        replace(job, link_job_id=after, chain_status=2 if place else 1, starts_at=None if place else job.starts_at)
        for place, (job, after) in enumerate(zip(jobs, following, strict=True))
    ]


def as_posted(posted: Sequence[Posted], calls: Sequence[Call], known: Mapping[int, Job], key_owner: str) -> list[Job]:
    """What is stored of the posted jobs, if they are stored as they were posted now. Raises `Invalid`."""
    found = []
    for place, (each, call) in enumerate(zip(posted, calls, strict=True)):
        field, job = at(place, posted, "job_id"), known.get(each.id)
        link = posted[place + 1].id if place + 1 < len(posted) else -1
        if job is None:
            raise Invalid(field, "another job of this array was posted before", "post new jobs only", code="JOB_EXISTS")
        if job.key_owner != key_owner:
            raise Invalid(field, "this job was posted with another API key", "post each job once", code="JOB_EXISTS")
        if job.status is JobStatus.DELETED:  # taken, it would never run
            raise Invalid(field, "this job was deleted", "create a new one", code="JOB_INACTIVE")
        beside = (each.title, each.time_frame, each.priority, each.missed, each.timezone, each.max_fee)  # not in the spec
        same = beside == (job.title, job.time_frame, job.priority, job.missed, job.timezone, job.max_fee)
        same = same and (each.is_safe, each.safe_name, each.safe_address) == (job.is_safe, job.safe_name, job.safe_address)
        same = same and link == job.link_job_id and each.gas_limit in (0, job.target.gas_limit)
        if not same or job.spec != spec_of(each, call, job.created_at, job.time_frame):
            raise Invalid(field, "this job was posted before, and differently", "create a new job", code="JOB_EXISTS")
        found.append(job)
    return found


def at(place: int, posted: Sequence[object], field: str) -> str:
    """The field's name for the user: of several jobs, with the place in the array."""
    return field if len(posted) == 1 else f"[{place}].{field}"


def same_job(job: Job, posted: Posted) -> None:
    """An update changes nothing that the chain holds, nor whose job it is. Raises `Invalid`."""
    for field, said, is_so in (
        ("job_id", posted.id, job.id),
        ("user_address", posted.owner, job.owner),
        ("task_definition_id", posted.definition, job.definition),
        ("time_frame", posted.time_frame, job.time_frame),
        ("target_chain_id", posted.chain_id, job.target.chain_id),
        ("created_chain_id", posted.created_chain_id, job.created_chain_id),
        ("target_contract_address", posted.contract, job.target.contract),
        ("dynamic_arguments_script_url", posted.script_url, job.target.script_url),
        ("language", posted.language, job.target.language),
        ("is_safe", posted.is_safe, job.is_safe),
        ("safe_address", posted.safe_address, job.safe_address),
        ("recurring", posted.recurring, job.recurring),
    ):
        if said != is_so:
            raise Invalid(field, "cannot be changed", "leave it out, or create a new job", code="CONTRADICTS_CHAIN")
    if interval_of(posted.trigger) != interval_of(job.trigger):
        raise Invalid("time_interval", "cannot be changed", "create a new job", code="CONTRADICTS_CHAIN")


def interval_of(trigger: Trigger) -> int:
    """What the chain holds of a schedule: 0 for all but fixed intervals."""
    return trigger.interval if isinstance(trigger, Interval) else 0


def ended(job: Job) -> Invalid:
    """The error for whoever wants to change a job that is over."""
    over = f"this job is {job.status.value}" if job.ended else "this job has nothing left to fire for"
    return Invalid("job_id", over, "create a new one", code="JOB_INACTIVE")
