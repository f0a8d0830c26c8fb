"""Types of the fields that clients send, tolerant of exactly what real ones send; and how a field's error is told."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, StringConstraints, ValidationError

from consensus.errors import Invalid
from node.arguments import parse_json

M = TypeVar("M", bound=BaseModel)

_NUMBER = 80  # characters: a uint256 has 78 digits


def _whole(value: Any) -> Any:
    """JavaScript sends integers as numbers, `1e+21` among them, and as text."""
    if isinstance(value, bool):
        raise ValueError("must be an integer")
    if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value() and value.adjusted() < 80:
        return int(value)
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 78:
        return int(value)
    return value


def _unset(value: Any) -> Any:
    """Clients send '' and null for what does not apply, and 0 for an interval that there is not."""
    return None if value == "" or (value == 0 and not isinstance(value, bool)) else value


def _short(value: Any) -> Any:
    """A prediction is the client's and decides nothing; it is kept as it came, if it is no longer than a number needs."""
    if value is not None and len(str(value)) > _NUMBER:
        raise ValueError(f"must have at most {_NUMBER} characters")
    return value


def _text(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("must be Unicode text, without half a surrogate pair") from None
        if "\0" in value:
            raise ValueError("must not hold a NUL character")
    return value


def _clean(value: Any) -> Any:
    """Whatever JSON, with nothing but proper text in it; `parse_json` has bounded how deep it nests."""
    if isinstance(value, list):
        return [_clean(each) for each in value]
    if isinstance(value, dict):
        return {_text(key): _clean(each) for key, each in value.items()}
    return _text(value)


Whole = Annotated[int, BeforeValidator(_whole)]
OptionalWhole = Annotated[Whole | None, BeforeValidator(_unset)]
Seconds = Annotated[int, BeforeValidator(_whole), Field(gt=0, lt=2**40)]
Text = Annotated[str, BeforeValidator(_text)]
OptionalText = Annotated[Text, BeforeValidator(lambda v: "" if v is None else v), StringConstraints(max_length=1024)]
LongText = Annotated[Text, BeforeValidator(lambda v: "" if v is None else v), StringConstraints(max_length=4096)]
Json = Annotated[Any, BeforeValidator(_clean)]
Prediction = Annotated[int | Decimal | Text | None, BeforeValidator(_short)]


def json_of(body: bytes) -> Any:
    """The JSON of a request's body, numbers exact. Raises `Invalid`."""
    try:
        return parse_json(body.decode(), "body")
    except UnicodeDecodeError:
        raise Invalid("body", "is not UTF-8", "send JSON text", code="INVALID_BODY") from None
    except Invalid as error:
        raise Invalid("body", error.problem, error.remedy, code="INVALID_BODY") from None


def object_of(body: bytes) -> dict[str, Any]:
    """The JSON object of a request's body. Raises `Invalid`."""
    content = json_of(body)
    if not isinstance(content, dict):
        raise Invalid("body", "is no object", "send a JSON object", code="INVALID_BODY")
    return content


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
