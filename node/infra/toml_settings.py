"""Configuration from TOML into frozen models: every error names its key, what is wrong and what to write instead."""

from __future__ import annotations

import difflib
import json
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationError, ValidationInfo
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from consensus.errors import Misconfigured


class Settings(BaseModel):
    """Base of every table. Fields carry a description and, when required, an example; `SECRET` ones print `***`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        fields = type(self).model_fields
        for name, value in super().__repr_args__():
            yield name, "***" if name in fields and _is_secret(fields[name]) and value else value

    __str__ = BaseModel.__repr__


M = TypeVar("M", bound=Settings)

SECRET: dict[str, Any] = {"secret": True}
"""`Field(json_schema_extra=SECRET)`: the value may hold credentials and is never shown."""


def _from_folder(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError("must be the path of a file or folder")
    folder: Path = (info.context or {}).get("folder", Path())
    return folder / value


FilePath = Annotated[Path, PlainValidator(_from_folder)]
"""A path; a relative one is relative to the folder of the configuration file."""


@dataclass(frozen=True, slots=True)
class OptionRow:
    """One option as docs/configuration.md shows it. `default` is TOML, `unset`, or empty where the option is required."""

    key: str
    type: str
    default: str
    meaning: str


def refuse(key: str, message: str) -> PydanticCustomError:
    """For validators of whole models: an error that belongs to `key`, relative to the model."""
    return PydanticCustomError("refused", "{message}", {"message": message, "key": key})


def load(path: Path | str, model: type[M], env_overrides: Mapping[str, str] | None = None) -> M:
    """Reads a TOML file. Dials nothing and touches no other file; raises `Misconfigured`.

    `env_overrides` maps dotted keys (`chains.0.rpc`) to TOML values, or to bare strings; they replace the file's.
    """
    path = Path(path)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Misconfigured("config", f"cannot read {path} ({error.strerror}): give the path of a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Misconfigured("config", f"{path} is not TOML: {error}") from error
    for key, text in (env_overrides or {}).items():
        _put(document, key, _toml_value(text))
    return validated(document, model, path.parent.absolute())


def validated(document: dict[str, Any], model: type[M], folder: Path) -> M:
    """The model of a parsed document, with relative paths starting at `folder`; raises `Misconfigured`."""
    _fill(document, model)
    try:
        # By way of JSON, where strict typing still lets a list become a tuple and a string a path.
        return model.model_validate_json(json.dumps(document, default=str), context={"folder": folder})
    except ValidationError as error:
        found = [_explain(model, details) for details in error.errors(include_url=False)]
        # One mistake is reported once, though each member of a union complains.
        lines = list(dict.fromkeys(f"{key}: {detail}" for key, detail in found))
        raise Misconfigured(found[0][0], "\n".join([lines[0].removeprefix(f"{found[0][0]}: "), *lines[1:]])) from None


def overrides_from(environment: Mapping[str, str], prefix: str = "TRIGGERX_") -> dict[str, str]:
    """Overrides for `load` from environment variables: `TRIGGERX_CHAINS__0__RPC` becomes `chains.0.rpc`."""
    return {
        name.removeprefix(prefix).lower().replace("__", "."): value
        for name, value in environment.items()
        if name.startswith(prefix) and len(name) > len(prefix)
    }


def option_rows(model: type[Settings], prefix: str = "") -> list[OptionRow]:
    """Every option of a model, depth first, as rows for docs. Lists of tables show as `chains[].id`."""
    rows = []
    for name, field in model.model_fields.items():
        inner, is_list = _table(field)
        if inner is not None:
            rows += option_rows(inner, f"{prefix}{name}{'[]' if is_list else ''}.")
        else:
            value = None if field.is_required() else field.get_default(call_default_factory=True)
            default = "" if field.is_required() else "unset" if value is None else _toml(value)
            rows.append(OptionRow(prefix + name, _type_name(field.annotation), default, field.description or ""))
    return rows


def render_example(model: type[Settings], prefix: str = "") -> str:
    """A TOML file with every option, its meaning as a comment, and its default or example as the value; it loads."""
    own, tables = [], []
    for name, field in model.model_fields.items():
        inner, is_list = _table(field)
        if inner is not None:
            head = f"[[{prefix}{name}]]" if is_list else f"[{prefix}{name}]"
            meaning = f"# {field.description}\n" if field.description else ""
            tables.append(f"{meaning}{head}\n{render_example(inner, f'{prefix}{name}.')}")
        else:
            own.append(f"# {field.description}\n{_example_line(name, field)}\n")
    return "\n".join(["".join(own), *tables] if own else tables)


def _example_line(name: str, field: FieldInfo) -> str:
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if default is None and not field.is_required():
        return f"# {name} = {_toml(field.examples[0])}" if field.examples else f"# {name} ="
    shown = field.examples[0] if field.examples and (default is None or default == ()) else default
    return f"{name} = {_toml(shown)}"


def _explain(model: type[Settings], details: ErrorDetails) -> tuple[str, str]:
    """(dotted key, what is wrong and what to do)."""
    place = [*details["loc"], *([details["ctx"]["key"]] if "key" in details.get("ctx", {}) else [])]
    key = ".".join(str(part) for part in place) or "config"
    if details["type"] == "extra_forbidden":
        parent = _model_at(model, place[:-1])
        known = list(parent.model_fields) if parent else []
        near = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
        remedy = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known)}"
        return key, f"unknown key: {remedy}"
    problem = details["msg"].removeprefix("Value error, ").removeprefix("Input ").removeprefix("should")
    problem = f"must{problem}" if problem != details["msg"] and problem.startswith(" ") else problem
    parent = _model_at(model, place[:-1])
    field = parent.model_fields.get(str(place[-1])) if parent else None
    if field is None:  # an item of a list: its list knows what it is for
        owner = _model_at(model, place[:-2])
        field = owner.model_fields.get(str(place[-2])) if owner and len(place) > 1 else None
    shown = isinstance(details["input"], str | int | float | bool) and not (field and _is_secret(field))
    if shown and details["type"] != "refused":
        problem += f", found {_toml(details['input'])}"
    if details["type"] == "missing":
        problem = "missing"
    return key, f"{problem}; {_remedy(str(place[-1]) if place else '', field)}" if field else problem


def _remedy(name: str, field: FieldInfo) -> str:
    meaning = (field.description or "").rstrip(".")
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    value = field.examples[0] if field.examples else default
    if value is None or isinstance(value, BaseModel) or name.isdigit():
        return f"it is: {meaning}"
    return f"it is: {meaning}; for example {name} = {_toml(value)}"


def _model_at(model: type[Settings], place: Sequence[str | int]) -> type[Settings] | None:
    """The model of the table at `place`."""
    current: type[Settings] | None = model
    for part in place:
        if isinstance(part, int):
            continue
        if current is None or part not in current.model_fields:
            return None
        current, _ = _table(current.model_fields[part])
    return current


def _table(field: FieldInfo) -> tuple[type[Settings] | None, bool]:
    """The model behind a field, if it is a table, and whether it is a list of them."""
    annotation = field.annotation
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType, tuple) else (annotation,)
    for member in members:
        if isinstance(member, type) and issubclass(member, Settings):
            return member, get_origin(annotation) is tuple
    return None, False


def _is_secret(field: FieldInfo) -> bool:
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("secret"))


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(each) for each in arguments if each is not type(None))
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    if arguments:  # Literal
        return " or ".join(f'"{each}"' for each in arguments)
    return {str: "string", int: "integer", float: "number", bool: "boolean", Path: "path", bytes: "address"}.get(annotation, "")


def _toml(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(str(value), ensure_ascii=False)


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _fill(document: dict[str, Any], model: type[Settings]) -> None:
    """Adds the tables that may be left out, so that their defaults are validated here, where the file's folder is known."""
    for name, field in model.model_fields.items():
        inner, is_list = _table(field)
        if inner is not None and not is_list and isinstance(field.default, Settings):
            table = document.setdefault(name, {})
            if isinstance(table, dict):
                _fill(table, inner)


def _put(document: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key, making tables on the way; `chains.0` is the first of a list of tables."""
    *way, last = key.split(".")
    place: Any = document
    for part, following in zip(way, [*way, last][1:], strict=True):
        fresh: Any = [] if following.isdigit() else {}
        place = _item(place, part, key, fresh) if isinstance(place, list) else place.setdefault(part, fresh)
        if not isinstance(place, dict | list):
            raise Misconfigured(key, f"`{part}` is a value, not a table: check the name of the override")
    if isinstance(place, list):
        _item(place, last, key, value)
        place[int(last)] = value
    else:
        place[last] = value


def _item(items: list[Any], index: str, key: str, fresh: Any) -> Any:
    if not index.isdigit() or int(index) > len(items):
        raise Misconfigured(key, f"`{index}` is no place in a list of {len(items)}: check the name of the override")
    if int(index) == len(items):
        items.append(fresh)
    return items[int(index)]
