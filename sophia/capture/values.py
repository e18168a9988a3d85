"""PostgreSQL text values to JSON values, as Estuary's source-postgres maps them.

Integers and floats are JSON numbers, NaN and the infinities strings; `numeric` is a string (a float would lose
digits); timestamps are RFC 3339 in UTC, dates ISO 8601; bytea is base64; json is parsed; arrays are lists; all
else is its text. psycopg's own loaders do the parsing.

Sessions that read values set `SESSION_OPTIONS`, so that the text does not depend on the server's defaults.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import cache
from typing import Any

from psycopg import DataError
from psycopg.adapt import Transformer
from psycopg.pq import Format

from sophia.errors import DocumentError

SESSION_OPTIONS = (
    "-c DateStyle=ISO -c TimeZone=UTC -c IntervalStyle=iso_8601 -c bytea_output=hex -c extra_float_digits=1"
)

_TEXT_OIDS = frozenset({25, 1043, 1042, 18, 19})
_TRANSFORMER = Transformer()


@cache
def converter(type_oid: int) -> Callable[[bytes], Any]:
    """A function from a value's text (UTF-8 bytes) to its JSON value.

    The function raises DocumentError for bytes that are not UTF-8.
    """
    if type_oid in _TEXT_OIDS:
        return _decode
    load = _TRANSFORMER.get_loader(type_oid, Format.TEXT).load

    def convert(raw: bytes) -> Any:
        try:
            return to_json(load(raw))
        except (DataError, ValueError, OverflowError):
            # A value that Python has no type for, such as the timestamp 'infinity' or the year 20000.
            return _decode(raw)

    return convert


def _decode(raw: bytes) -> str:
    try:
        return bytes(raw).decode()
    except UnicodeDecodeError as error:
        raise DocumentError(f"a value is not UTF-8 ({error.reason} at byte {error.start})") from error


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
        case timedelta():
            return str(value)
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(bytes(value)).decode()
        case list() | tuple():
            return [to_json(item) for item in value]
        case dict():
            return value
        case _:
            return str(value)
