"""Jobs as clients post and update them: checked once, with errors that name the field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from eth_utils.address import to_checksum_address
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from consensus.errors import Failed, Invalid
from consensus.events import MAX_CONFIRMATIONS
from consensus.triggers import Cron, Interval, Moments, Trigger
from coordinator.api.fields import (
    Json,
    LongText,
    OptionalText,
    OptionalWhole,
    Prediction,
    Seconds,
    Text,
    Whole,
    json_of,
    object_of,
    read,
)
from coordinator.definitions import conditions, events, schedules
from coordinator.definitions.posted import CUSTOM_SCRIPT, DYNAMIC, NO_CONTRACT, Posted, at
from coordinator.definitions.values import address
from coordinator.fees import LEAST_GAS, MOST_GAS
from coordinator.jobs import MAX_LINKED
from coordinator.store.records import MissedPolicy
from node.arguments import dump_json
from node.sandbox.port import Language
from node.scripts.source import language_of, parse_source

_TITLE = 256
_ABI = 128 * 1024  # the largest contracts' ABIs
_ARGUMENTS = 60 * 1024  # what a JobSpec has room for


class PostedJob(BaseModel):
    """One element of `POST /api/jobs`. Clients add fields of their own; those are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, arbitrary_types_allowed=True)

    job_id: Annotated[Whole, Field(ge=0, lt=2**256)]
    user_address: str
    job_title: Annotated[Text, StringConstraints(max_length=_TITLE)]
    task_definition_id: Annotated[Whole, Field(ge=1, le=7)]
    time_frame: Seconds
    timezone: OptionalText = "UTC"
    created_chain_id: Annotated[Whole, Field(ge=1, lt=2**63)]
    # what it calls
    target_chain_id: Annotated[Whole, Field(ge=1, lt=2**63)]
    target_contract_address: OptionalText = ""
    target_function: LongText = ""
    abi: Annotated[Text, BeforeValidator(lambda v: "" if v is None else v), StringConstraints(max_length=_ABI)] = ""
    arg_type: Annotated[Whole, Field(ge=0, le=2)] = 0
    arguments: list[Any] | None = None
    dynamic_arguments_script_url: OptionalText = ""
    language: OptionalText = ""
    # schedules
    schedule_type: OptionalText = ""
    time_interval: OptionalWhole = None
    cron_expression: OptionalText = ""
    specific_schedule: Json = None
    # events
    trigger_chain_id: OptionalWhole = None
    trigger_contract_address: OptionalText = ""
    trigger_event: LongText = ""
    event_filter_para_name: OptionalText = ""
    event_filter_value: Json = None
    event_filters: Json = None
    confirmations: Whole | None = None
    # conditions
    condition_type: Json = None
    upper_limit: Json = None
    lower_limit: Json = None
    hysteresis: Json = None
    value_source_type: Json = None
    value_source_url: Json = None
    selected_key_route: Json = None
    condition: Json = None
    # how it is run
    recurring: bool = False
    missed_run_policy: Literal["run_once", "run_all", "skip"] = "run_once"
    priority: Annotated[Whole, Field(ge=1, le=3)] = 3
    security: Annotated[Whole, Field(ge=0, le=4)] = 0
    custom: bool = True
    is_imua: bool = False
    is_safe: bool = False
    safe_address: OptionalText = ""
    safe_name: OptionalText = ""
    job_cost_prediction: Prediction = None
    gas_limit: Whole | None = None
    max_fee: Whole | None = None

    def posted(self) -> Posted:
        """The job, if its fields agree with each other. Raises `Invalid`."""
        if self.created_chain_id != self.target_chain_id:
            raise Invalid("target_chain_id", "differs from created_chain_id", "create the job on the chain it executes on")
        dynamic = self.task_definition_id in DYNAMIC
        self._check_script(dynamic)
        trigger = self._trigger()
        arguments = "[]" if dynamic else dump_json(self.arguments or [])
        if len(arguments) > _ARGUMENTS:
            raise Invalid("arguments", f"are {len(arguments)} characters of JSON, at most {_ARGUMENTS}", "pass less data")
        return Posted(
            id=self.job_id,
            owner=address(self.user_address, "user_address"),
            title=self.job_title,
            definition=self.task_definition_id,
            time_frame=self.time_frame,
            trigger=trigger,
            chain_id=self.target_chain_id,
            created_chain_id=self.created_chain_id,
            contract=self._contract(),
            function=self.target_function,
            abi=self.abi,
            arg_type=2 if dynamic else 1,
            arguments=arguments,
            priority=self.priority,
            security=self.security,
            recurring=self.recurring or isinstance(trigger, Interval | Cron | Moments),
            missed=MissedPolicy(self.missed_run_policy),
            custom=self.custom,
            timezone=self.timezone,
            is_imua=self.is_imua,
            cost_prediction=str(self.job_cost_prediction if self.job_cost_prediction is not None else 0),
            script_url=self.dynamic_arguments_script_url if dynamic else "",
            language=self.language if dynamic else "",
            confirmed=self.confirmations is not None,
            gas_limit=self._gas_limit(),
            max_fee=self._max_fee(),
            is_safe=self.is_safe,
            safe_name=self.safe_name if self.is_safe else "",
            safe_address=self._safe(),
        )

    def _safe(self) -> str:
        return to_checksum_address(address(self.safe_address, "safe_address")) if self.is_safe else ""

    def _gas_limit(self) -> int:
        if not self.gas_limit:
            return 0
        if not LEAST_GAS <= self.gas_limit <= MOST_GAS:
            raise Invalid("gas_limit", f"is not {LEAST_GAS} to {MOST_GAS}", "send the gas of the call alone, or leave it out")
        return self.gas_limit

    def _max_fee(self) -> int:
        if not 0 <= (self.max_fee or 0) < 2**128:
            raise Invalid("max_fee", "is no amount of wei", "send the most that one execution may cost, or leave it out")
        return self.max_fee or 0

    def _contract(self) -> bytes:
        if self.task_definition_id == CUSTOM_SCRIPT and self.target_contract_address in ("", "0x" + "0" * 40):
            return NO_CONTRACT
        return address(self.target_contract_address, "target_contract_address")

    def _check_script(self, dynamic: bool) -> None:
        kind, url = self.task_definition_id, self.dynamic_arguments_script_url
        if not dynamic and url:
            raise Invalid(
                "dynamic_arguments_script_url", f"type {kind} takes no script", "leave it out, or post type 2, 4, 6 or 7"
            )
        if dynamic and not url:
            problem = f"is missing, type {kind} takes a script"
            raise Invalid("dynamic_arguments_script_url", problem, "send ipfs://CID or https://<gateway>/ipfs/CID")
        if dynamic:
            source = parse_source(url)
            try:
                language_of(source, self.language)
            except Failed as error:
                raise Invalid("language", error.detail, f"send one of {', '.join(Language)}") from None
        if self.arg_type not in (0, 2 if dynamic else 1):
            raise Invalid("arg_type", f"is {self.arg_type}", f"send {2 if dynamic else 1} for type {kind}")

    def _trigger(self) -> Trigger:
        match self.task_definition_id:
            case 3 | 4:
                return self._event()
            case 5 | 6:
                return conditions.on_condition({name: getattr(self, name) for name in conditions.FIELDS})
        trigger = schedules.schedule(
            self.schedule_type, self.time_interval, self.cron_expression, self.specific_schedule, self.timezone
        )
        if isinstance(trigger, Interval) and trigger.interval > self.time_frame:
            raise Invalid("time_interval", "is longer than time_frame: the job would never run", "send a longer time_frame")
        return trigger

    def _event(self) -> Trigger:
        if self.trigger_chain_id is None or not 1 <= self.trigger_chain_id < 2**63:
            raise Invalid("trigger_chain_id", "is missing or no chain id", "send the chain that the event is on")
        confirmations = self.confirmations or 0
        if not 0 <= confirmations <= MAX_CONFIRMATIONS:
            raise Invalid("confirmations", f"is not 0 to {MAX_CONFIRMATIONS}", "send a number of blocks, or leave it out")
        return events.on_event(
            self.trigger_chain_id, self.trigger_contract_address, self.trigger_event, self.abi, self._filters(), confirmations
        )

    def _filters(self) -> list[tuple[str, Any, str]]:
        found: list[tuple[str, Any, str]] = []
        if self.event_filter_para_name:
            if self.event_filter_value is None:
                raise Invalid("event_filter_value", "is missing", "send the value that the parameter must have")
            found.append((self.event_filter_para_name, self.event_filter_value, "event_filter_value"))
        elif self.event_filter_value not in (None, ""):
            raise Invalid("event_filter_para_name", "is missing", "name the parameter that must have this value")
        listed = self.event_filters or []
        for place, each in enumerate(listed if isinstance(listed, list) else [listed]):
            if not isinstance(each, dict) or set(each) != {"name", "value"} or not isinstance(each["name"], str):
                raise Invalid("event_filters", "is no list of filters", 'send [{"name": ..., "value": ...}]')
            found.append((each["name"], each["value"], f"event_filters[{place}].value"))
        return found


def posted_jobs(body: bytes) -> list[Posted]:
    """The jobs of `POST /api/jobs`: an array. Raises `Invalid`; of several jobs, the field says which."""
    content = json_of(body)
    if not isinstance(content, list) or not content:
        raise Invalid("body", "is not an array of jobs", "send an array, of one job mostly", code="INVALID_BODY")
    if len(content) > MAX_LINKED:
        raise Invalid("body", f"has {len(content)} jobs", f"link at most {MAX_LINKED}")
    found = []
    for place, element in enumerate(content):
        try:
            found.append(read(PostedJob, element).posted())
        except Invalid as error:
            raise Invalid(at(place, content, error.field), error.problem, error.remedy, code=error.code) from None
    return found


_SCHEDULE = frozenset({"schedule_type", "time_interval", "cron_expression", "specific_schedule"})
_FILTER = frozenset({"event_filter_para_name", "event_filter_value"})
_LIMITS = frozenset({"upper_limit", "lower_limit"})
_COMPARISON = frozenset(conditions.FIELDS) - {"condition"}


def updated_job(stored: Mapping[str, Any], body: bytes) -> Posted:
    """A job with what `PUT /api/jobs/update/{id}` changes; `stored` are its fields as they would be posted. Raises `Invalid`.

    Fields that only make sense together are replaced together: a schedule, an event's filters, a condition's limits.
    """
    given = {name: value for name, value in object_of(body).items() if name in PostedJob.model_fields}
    if not given:
        raise Invalid("body", "changes nothing", "send at least one field of the job", code="INVALID_BODY")
    dropped: set[str] = set()
    if given.keys() & _SCHEDULE:
        dropped |= _SCHEDULE
    if "event_filters" in given:
        dropped |= _FILTER
    elif given.keys() & _FILTER:
        dropped.add("event_filters")
    if given.get("condition") is not None:
        dropped |= _COMPARISON
    elif given.keys() & _COMPARISON:
        dropped.add("condition")
    before, after = stored.get("condition_type"), given.get("condition_type", stored.get("condition_type"))
    if (given.keys() & _LIMITS and after != "between") or (before == "between") != (after == "between"):
        dropped |= _LIMITS  # one limit and two mean different things
    return read(PostedJob, {**{name: value for name, value in stored.items() if name not in dropped}, **given}).posted()


class PostedEmail(BaseModel):
    """Where a user is written to; '' for nowhere."""

    model_config = ConfigDict(extra="ignore", strict=True)

    user_address: str
    email_id: Annotated[Text, StringConstraints(max_length=254, strip_whitespace=True)]

    def checked(self) -> tuple[bytes, str]:
        """Raises `Invalid`."""
        if self.email_id and not _EMAIL.match(self.email_id):
            raise Invalid("email_id", "is no e-mail address", "send it like name@example.org, or '' for none")
        return address(self.user_address, "user_address"), self.email_id


_EMAIL = re.compile(
    r"(?=.{1,64}@)[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    r"@([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z][A-Za-z0-9-]{0,61}[A-Za-z0-9]\Z",
    re.ASCII,
)
"""The dot-atom form of RFC 5321, without quoted parts and address literals: nothing in it can begin another header line."""


def email(body: bytes) -> tuple[bytes, str]:
    """User and address of `/api/users/email`. Raises `Invalid`."""
    return read(PostedEmail, object_of(body)).checked()
