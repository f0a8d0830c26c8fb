"""What a script is given: the same bytes for everybody who runs it for the same task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from eth_utils.address import to_checksum_address

from consensus.errors import Failed, Invalid, Transient
from consensus.messages import JobSpec, Task
from consensus.triggers import LogSeen, OnEvent
from node.arguments import dump_json, parse_json
from node.infra.chain import Log
from node.recheck import timed


@dataclass(frozen=True, slots=True)
class Inputs:
    """One JSON object on stdin, and its scalars in the environment."""

    stdin: bytes = field(repr=False)
    environment: dict[str, str] = field(repr=False)


def inputs_of(job: JobSpec, task: Task, log: Log | None) -> Inputs:
    """The inputs of a task's script; `log` is the event's as this keeper's own RPC gives it.

    Raises `Transient` EVENT_NOT_FOUND without the log that an event's job needs, `Failed` WRONG_RECORD when the storage that the
    task carries is no JSON object.
    """
    authorisation = task.authorisation
    due = int(authorisation.trigger_id) if timed(job) else authorisation.not_before
    storage = dump_json(_storage(task.storage))
    scalars = {
        "job_id": str(int(authorisation.job_id)),
        "trigger_id": str(int(authorisation.trigger_id)),
        "time": due,
        "chain_id": task.chain_id,
        "block": task.pinned_block,
    }
    members = [f'"{name}":{dump_json(value)}' for name, value in scalars.items()]
    members += [f'"storage":{storage}', f'"event":{dump_json(_event(job, task, log))}']
    environment = {f"TRIGGERX_{name.upper()}": str(value) for name, value in scalars.items()}
    return Inputs(("{" + ",".join(members) + "}\n").encode(), {**environment, "TRIGGERX_STORAGE": storage})


def _storage(text: str) -> dict[str, Any]:
    try:
        storage = parse_json(text, "storage") if text else {}
    except Invalid as error:
        raise Failed("WRONG_RECORD", error.detail) from None
    if not isinstance(storage, dict):
        raise Failed("WRONG_RECORD", "the task's storage is no JSON object")
    return storage


def _event(job: JobSpec, task: Task, log: Log | None) -> dict[str, Any] | None:
    if not isinstance(job.trigger, OnEvent):
        return None
    if log is None or not isinstance(task.observation, LogSeen):
        raise Transient("EVENT_NOT_FOUND", "the script needs its event's log")
    return {
        "address": to_checksum_address(log.address),
        "topics": [f"0x{topic.hex()}" for topic in log.topics],
        "data": f"0x{log.data.hex()}",
        "transaction_hash": f"0x{task.observation.transaction.hex()}",
        "position": task.observation.position,
    }
