"""PostgreSQL text values to JSON values, as Estuary's source-postgres maps them.

Integers and floats are JSON numbers, NaN and the infinities strings; `numeric` is a string (a float would lose
digits); timestamps are RFC 3339 in UTC, dates ISO 8601; bytea is base64; json is parsed; arrays are lists; all
else (intervals, ranges, enums, …) is its text. psycopg's own loaders do the parsing.

What the type `json` takes and no text or `jsonb` can hold (the character U+0000, half a surrogate pair) becomes
U+FFFD, and a number beyond a float's range, or of more digits than `jsonb` has, a string.

Sessions that read values set `SESSION_OPTIONS`, so that the text does not depend on the server's defaults, and so that
a table whose rows are hidden from the role fails instead of looking emptier than it is.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from functools import cache
from typing import Any

from psycopg import DataError
from psycopg.adapt import Transformer
from psycopg.postgres import types
from psycopg.pq import Format

from sophia.errors import DocumentError

SESSION_OPTIONS = (
    "-c DateStyle=ISO -c TimeZone=UTC -c IntervalStyle=iso_8601 -c bytea_output=hex -c extra_float_digits=1 "
    "-c row_security=off"
)

_JSON_NAMES = ("json", "jsonb")
# The types whose text is parsed; psycopg knows more, and shows some in a way of its own.
_PARSED = frozenset(
    types[name].oid
    for name in (
        *("bool", "int2", "int4", "int8", "oid", "float4", "float8", "numeric"),
        *("date", "time", "timestamp", "timestamptz", "bytea", "uuid", *_JSON_NAMES),
    )
)
_JSON = frozenset(oid for name in _JSON_NAMES for oid in (types[name].oid, types[name].array_oid))
_TEXT_ARRAY = types["text"].array_oid
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
# An integer of `jsonb` has at most 131,072 digits.
_MOST_BITS = 435_411
_TRANSFORMER = Transformer()


@cache
def converter(type_oid: int) -> Callable[[bytes], Any]:
    """A function from a value's text (UTF-8 bytes) to its JSON value.

    The function raises DocumentError for bytes that are not UTF-8, and for json that is nested too deep to be read.
    """
    info = types.get(type_oid)
    if info is not None and type_oid == info.array_oid and info.delimiter == ",":
        loaded_oid = type_oid if info.oid in _PARSED else _TEXT_ARRAY
    elif type_oid in _PARSED:
        loaded_oid = type_oid
    else:
        return _decode
    load = _TRANSFORMER.get_loader(loaded_oid, Format.TEXT).load
    storable = _storable if type_oid in _JSON else to_json

    def convert(raw: bytes) -> Any:
        try:
            return storable(load(raw))
        except (DataError, ValueError, OverflowError):
            # A value that Python has no type for, such as the timestamp 'infinity' or the year 20000.
            return _decode(raw)
        except RecursionError:
            raise DocumentError("a json value is nested too deep to be read") from None

    return convert


def _decode(raw: bytes) -> str:
    try:
        return bytes(raw).decode()
    except UnicodeDecodeError as error:
        raise DocumentError(f"a value is not UTF-8 ({error.reason} at byte {error.start})") from error


def _storable(value: Any) -> Any:
    """Parsed json without what `jsonb` refuses."""
    match value:
        case str():
            return _UNSTORABLE.sub("\ufffd", value)
        case float():
            return to_json(value)
        case int() if value.bit_length() > _MOST_BITS:
            return str(value)
        case list():
            return [_storable(item) for item in value]
        case dict():
            return {_storable(name): _storable(item) for name, item in value.items()}
        case _:
            return value


def to_json(value: Any) -> Any:
    """A Python value as psycopg loads it, as JSON."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return (
                value
                if math.isfinite(value)
                else ("NaN" if math.isnan(value) else str(value).replace("inf", "Infinity"))
            )
        case Decimal():
            return format(value, "f") if value.is_finite() else str(value)
        case datetime():
            text = value.isoformat()
            return text.removesuffix("+00:00") + "Z" if value.tzinfo is None or text.endswith("+00:00") else text
        case date() | time():
            return value.isoformat()
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(bytes(value)).decode()
        case list() | tuple():
            return [to_json(item) for item in value]
        case _:
            return str(value)
