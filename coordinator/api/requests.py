"""What clients may send: checked once, tolerant of exactly what real ones send, with errors that name the field."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal, TypeVar

from eth_utils.address import is_checksum_address
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from consensus.errors import Invalid
from coordinator.jobs import Posted
from node.arguments import dump_json, parse_json

M = TypeVar("M", bound=BaseModel)

_NUMBER = 80  # characters: a uint256 has 78 digits
_TITLE = 256
_ABI = 128 * 1024  # the largest contracts' ABIs
_ARGUMENTS = 60 * 1024  # what a JobSpec has room for


def _whole(value: Any) -> Any:
    """JavaScript sends integers as numbers, `1e+21` among them, and as text."""
    if isinstance(value, bool):
        raise ValueError("must be an integer")
    if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value() and value.adjusted() < 80:
        return int(value)
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 78:
        return int(value)
    return value


def _short(value: Any) -> Any:
    """A prediction is the client's and decides nothing; it is kept as it came, if it is no longer than a number needs."""
    if value is not None and len(str(value)) > _NUMBER:
        raise ValueError(f"must have at most {_NUMBER} characters")
    return value


def address(text: str, field: str) -> bytes:
    """20 bytes of 0x and 40 digits, with a right checksum where the case is mixed. Raises `Invalid` for `field`."""
    digits = text[2:] if text.startswith("0x") else ""
    if len(digits) != 40 or not all(d in "0123456789abcdefABCDEF" for d in digits):
        raise Invalid(field, "is no address", "send 0x and 40 hexadecimal digits")
    if digits not in (digits.lower(), digits.upper()) and not is_checksum_address(text):
        raise Invalid(field, "has a wrong checksum", "copy the address again")
    return bytes.fromhex(digits)


def _text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("must be Unicode text, without half a surrogate pair") from None
    if "\0" in value:
        raise ValueError("must not hold a NUL character")
    return value


Whole = Annotated[int, BeforeValidator(_whole)]
Seconds = Annotated[int, BeforeValidator(_whole), Field(gt=0, lt=2**40)]
Text = Annotated[str, BeforeValidator(_text)]
OptionalText = Annotated[Text, BeforeValidator(lambda v: "" if v is None else v), StringConstraints(max_length=1024)]


class PostedJob(BaseModel):
    """One element of `POST /api/jobs`. Clients add fields of their own; those are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, arbitrary_types_allowed=True)

    job_id: Annotated[Whole, Field(ge=0, lt=2**256)]
    user_address: str
    job_title: Annotated[Text, StringConstraints(max_length=_TITLE)]
    task_definition_id: Annotated[Whole, Field(ge=1, le=7)]
    time_frame: Seconds
    schedule_type: OptionalText = ""
    time_interval: Whole | None = None
    cron_expression: OptionalText = ""
    specific_schedule: OptionalText = ""
    timezone: OptionalText = "UTC"
    created_chain_id: Annotated[Whole, Field(ge=1, lt=2**63)]
    target_chain_id: Annotated[Whole, Field(ge=1, lt=2**63)]
    target_contract_address: str
    target_function: Annotated[Text, StringConstraints(max_length=4096)]
    abi: Annotated[Text, BeforeValidator(lambda v: "" if v is None else v), StringConstraints(max_length=_ABI)] = ""
    arg_type: Annotated[Whole, Field(ge=0, le=2)] = 1
    arguments: list[Any] | None = None
    dynamic_arguments_script_url: OptionalText = ""
    language: OptionalText = ""
    custom: bool = True
    recurring: bool = False
    is_imua: bool = False
    is_safe: bool = False
    safe_name: OptionalText = ""
    safe_address: OptionalText = ""
    job_cost_prediction: Annotated[int | Decimal | Text | None, BeforeValidator(_short)] = None
    priority: Annotated[Whole, Field(ge=1, le=3)] = 3
    security: Annotated[Whole, Field(ge=0, le=4)] = 0

    def posted(self) -> Posted:
        """The job, if it is of a kind that this version executes. Raises `Invalid`."""
        _supported(self)
        arguments = dump_json(self.arguments or [])
        if len(arguments) > _ARGUMENTS:
            raise Invalid("arguments", f"are {len(arguments)} characters of JSON, at most {_ARGUMENTS}", "pass less data")
        assert self.time_interval is not None  # _supported
        return Posted(
            id=self.job_id,
            owner=address(self.user_address, "user_address"),
            title=self.job_title,
            definition=self.task_definition_id,
            time_frame=self.time_frame,
            interval=self.time_interval,
            chain_id=self.target_chain_id,
            created_chain_id=self.created_chain_id,
            contract=address(self.target_contract_address, "target_contract_address"),
            function=self.target_function,
            abi=self.abi,
            arg_type=self.arg_type,
            arguments=arguments,
            priority=self.priority,
            security=self.security,
            custom=self.custom,
            timezone=self.timezone,
            is_imua=self.is_imua,
            is_safe=self.is_safe,
            safe_name=self.safe_name,
            safe_address=self.safe_address,
            cost_prediction=str(self.job_cost_prediction if self.job_cost_prediction is not None else 0),
            language=self.language,
        )


_UNSUPPORTED: Literal["UNSUPPORTED_JOB"] = "UNSUPPORTED_JOB"


def _supported(job: PostedJob) -> None:
    """Refused rather than accepted and ignored: what comes with later versions."""
    if job.task_definition_id != 1:
        raise Invalid("task_definition_id", f"{job.task_definition_id} is not offered yet", "post type 1", code=_UNSUPPORTED)
    if job.schedule_type not in ("", "interval"):
        raise Invalid(
            "schedule_type", f"{job.schedule_type!r} is not offered yet", 'use "interval" and time_interval', code=_UNSUPPORTED
        )
    if job.time_interval is None or not 1 <= job.time_interval < 2**40:
        raise Invalid("time_interval", "is missing or not a positive number of seconds", "send whole seconds, at least 1")
    if job.time_interval > job.time_frame:
        raise Invalid("time_interval", "is longer than time_frame: the job would never run", "send a longer time_frame")
    if job.dynamic_arguments_script_url or job.arg_type == 2:
        raise Invalid("dynamic_arguments_script_url", "scripts are not offered yet", "send static arguments", code=_UNSUPPORTED)
    if job.is_safe:
        raise Invalid("is_safe", "Safe jobs are not offered yet", "send is_safe false", code=_UNSUPPORTED)
    if job.created_chain_id != job.target_chain_id:
        raise Invalid("target_chain_id", "differs from created_chain_id", "create the job on the chain it executes on")


def one_job(body: bytes) -> Posted:
    """The job in a request body: an array of exactly one. Raises `Invalid`."""
    try:
        content = parse_json(body.decode(), "body")
    except UnicodeDecodeError:
        raise Invalid("body", "is not UTF-8", "send JSON text", code="INVALID_BODY") from None
    except Invalid as error:
        raise Invalid("body", error.problem, error.remedy, code="INVALID_BODY") from None
    if not isinstance(content, list):
        raise Invalid("body", "is not an array", "send an array of one job", code="INVALID_BODY")
    if len(content) != 1:
        raise Invalid("body", f"has {len(content)} jobs", "send one; linked jobs are not offered yet", code=_UNSUPPORTED)
    return read(PostedJob, content[0]).posted()


def read(model: type[M], content: object) -> M:
    """`content` as a `model`. Raises `Invalid` for its first wrong field."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "body"
        missing = first["type"] == "missing"
        raise Invalid(
            field, "is missing" if missing else first["msg"][:200], "add it" if missing else "correct it", code="INVALID_FIELD"
        ) from None
