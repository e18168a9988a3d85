"""Turns pydantic's findings into sentences of the catalog, each naming the field."""

from __future__ import annotations

import json
import re
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from sophia.catalog.errors import Code, suggestion

QUOTED = re.compile(r"'([^']*)'")


def field_path(loc: tuple[str | int, ...]) -> str:
    """`ports[0].number` for ("ports", 0, "number")."""
    path = ""
    for step in loc:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path


def describe(model: type[BaseModel], error: ErrorDetails) -> tuple[Code, str]:
    """Code and message of one finding in data that was validated as `model`."""
    loc = error["loc"]
    field = field_path(loc)
    match error["type"]:
        case "missing":
            return "missing-field", f'field "{field}" is required'
        case "extra_forbidden":
            owner = _model_at(model, loc[:-1])
            known = owner.model_fields if owner is not None else ()
            return "unknown-field", f'unknown field "{field}"{suggestion(str(loc[-1]), known)}'
        case "value_error":
            text = str(error["ctx"]["error"])
        case "literal_error":
            expected = error["ctx"]["expected"]
            text = f"{_shown(error['input'])} is not {expected}"
            text += suggestion(str(error["input"]), QUOTED.findall(expected))
        case "string_pattern_mismatch":
            text = f"{_shown(error['input'])} does not match {error['ctx']['pattern']}"
        case _:
            text = f"{error['msg'].removeprefix('Input ')}, got {_shown(error['input'])}"
    return "bad-value", f"{field}: {text}" if field else text


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _model_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> type[BaseModel] | None:
    current: type[BaseModel] | None = model
    for step in loc:
        if isinstance(step, int):
            continue
        if current is None or step not in current.model_fields:
            return None
        current = _model_in(current.model_fields[step].annotation)
    return current


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a field of type `M`, `M | None` or `tuple[M, ...]` holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part))), None)
