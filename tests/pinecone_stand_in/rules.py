"""Pinecone's documented limits, and its metadata filters. A breach is a `Fault`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import orjson

UPSERT_RECORDS = 1_000
REQUEST_BYTES = 2_000_000
METADATA_BYTES = 40_960
NAMED_IDS = 1_000
ID_CHARACTERS = 512
LISTED = 100
MOST_RESULTS = 10_000
RESULT_BYTES = 4_000_000
# gRPC's numbers, which the data plane puts into its errors.
INVALID_ARGUMENT = 3
NOT_FOUND = 5
RESOURCE_EXHAUSTED = 8
UNAVAILABLE = 14


class Fault(Exception):
    """A request that is refused."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


def _refuse(message: str) -> Fault:
    return Fault(400, INVALID_ARGUMENT, message)


def check_size(body: bytes) -> None:
    """A request has at most 2 MB."""
    if len(body) > REQUEST_BYTES:
        raise _refuse(f"Request size {len(body)} bytes exceeds the maximum supported size of {REQUEST_BYTES} bytes")


def check_id(name: Any) -> str:
    """A record's id has 1 to 512 ASCII characters."""
    if not isinstance(name, str) or not 1 <= len(name) <= ID_CHARACTERS:
        raise _refuse(f"Vector ID must have from 1 to {ID_CHARACTERS} characters")
    if not name.isascii() or "\0" in name:
        raise _refuse("Vector ID must be ASCII")
    return name


def check_ids(names: Any) -> list[str]:
    """A fetch or a deletion names 1 to 1,000 ids."""
    if not isinstance(names, list) or not 1 <= len(names) <= NAMED_IDS:
        raise _refuse(f"Number of IDs must be from 1 to {NAMED_IDS}")
    return [check_id(name) for name in names]


def check_values(values: Any, dimension: int) -> list[float]:
    """A dense vector has the index's dimension, finite numbers, and one that is not zero."""
    if not isinstance(values, list) or len(values) != dimension:
        found = len(values) if isinstance(values, list) else 0
        raise _refuse(f"Vector dimension {found} does not match the dimension of the index {dimension}")
    if any(isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v) for v in values):
        raise _refuse("Vector values must be finite numbers")
    if not any(values):
        raise _refuse("Dense vectors must contain at least one non-zero value")
    return values


def check_metadata(metadata: Any) -> dict[str, Any]:
    """Metadata is flat: strings, numbers, booleans and lists of strings, up to 40 KB. Numbers become 64-bit floats."""
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise _refuse("Metadata must be an object")
    size = len(orjson.dumps(metadata))
    if size > METADATA_BYTES:
        raise _refuse(f"Metadata size is {size} bytes, which exceeds the limit of {METADATA_BYTES} bytes per vector")
    return {check_field(name): _check_value(name, value) for name, value in metadata.items()}


def check_field(name: str) -> str:
    """A metadata key does not begin with a dollar sign."""
    if name.startswith("$"):
        raise _refuse(f"Metadata key {name!r} must not start with $")
    return name


def _check_value(name: str, value: Any) -> Any:
    if isinstance(value, str | bool):
        return value
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    # As Pinecone does, the message quotes what was sent.
    raise _refuse(
        f"Metadata value must be a string, number, boolean or list of strings, got '{orjson.dumps(value).decode()}' "
        f"for field '{name}'"
    )


def _number(one: Any, other: Any) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in (one, other))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)


_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": _equal,
    "$ne": lambda one, other: not _equal(one, other),
    "$gt": lambda one, other: _number(one, other) and one > other,
    "$gte": lambda one, other: _number(one, other) and one >= other,
    "$lt": lambda one, other: _number(one, other) and one < other,
    "$lte": lambda one, other: _number(one, other) and one <= other,
    "$in": lambda one, other: any(_equal(one, item) for item in other),
    "$nin": lambda one, other: not any(_equal(one, item) for item in other),
}


def passes(metadata: Mapping[str, Any], condition: Any) -> bool:
    """Whether metadata passes a filter. A field that is a list passes if any of its elements does."""
    if not isinstance(condition, dict) or not condition:
        raise _refuse("Filter must be a non-empty object")
    return all(_passes_part(metadata, name, part) for name, part in condition.items())


def _passes_part(metadata: Mapping[str, Any], name: str, part: Any) -> bool:
    if name in ("$and", "$or"):
        if not isinstance(part, list) or not part:
            raise _refuse(f"{name} takes a list of filters")
        found = [passes(metadata, each) for each in part]
        return all(found) if name == "$and" else any(found)
    if name.startswith("$"):
        raise _refuse(f"{name} is not a field")
    operators = part if isinstance(part, dict) else {"$eq": part}
    return all(_compare(metadata, name, operator, wanted) for operator, wanted in operators.items())


def _compare(metadata: Mapping[str, Any], name: str, operator: str, wanted: Any) -> bool:
    if operator == "$exists":
        return (name in metadata) is wanted
    if operator not in _COMPARED:
        raise _refuse(f"{operator} is not a valid operator")
    listed = operator in ("$in", "$nin")
    for value in wanted if listed and isinstance(wanted, list) else [wanted]:
        if not isinstance(value, str | int | float | bool):
            raise _refuse(f"the {operator} operator must be followed by a string, boolean or number")
    if name not in metadata:
        return operator in ("$ne", "$nin")
    value = metadata[name]
    return any(_COMPARED[operator](item, wanted) for item in (value if isinstance(value, list) else [value]))
