"""Values of Snowflake as JSON, as Estuary's source-snowflake writes them.

| Snowflake | JSON |
|---|---|
| NUMBER without decimals | number; a string where it needs more than 64 bits |
| NUMBER with decimals | number; a string where a double would change its digits |
| FLOAT | number; "NaN", "Infinity" and "-Infinity" as strings |
| BOOLEAN | true or false |
| DATE | "1991-08-31T00:00:00Z" |
| TIME | "0001-01-01T09:25:27Z" |
| TIMESTAMP_NTZ, _LTZ, _TZ | RFC 3339; without a zone it is UTC; the connector keeps microseconds of the nanoseconds |
| BINARY | base64 |
| VARIANT, OBJECT, ARRAY, GEOGRAPHY, GEOMETRY, VECTOR | the JSON itself |
| all others | string |

A NUL character, which PostgreSQL cannot keep, is a `DocumentError`: the row is parked.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

from sophia.capture.snowflake.connection import ResultColumn
from sophia.errors import DocumentError

Converter = Callable[[Any], Any]
# The connector's type codes (snowflake.connector.constants.FIELD_TYPES).
FIXED, REAL, TEXT, DATE = 0, 1, 2, 3
_JSON_CODES = {5, 9, 10, 14, 15, 16}
_LONGEST = 63


def converter(column: ResultColumn) -> Converter:
    """What makes JSON of a column's values that are not null."""
    if column.code in _JSON_CODES:
        return _json
    return _plain


def _plain(value: Any) -> Any:
    match value:
        case bool():
            return value
        case int():
            return value if value.bit_length() <= _LONGEST else str(value)
        case str():
            return _text(value)
        case float():
            return _float(value)
        case Decimal():
            return _decimal(value)
        case datetime():
            return _timestamp(value)
        case date():
            return f"{value.isoformat()}T00:00:00Z"
        case time():
            return f"0001-01-01T{_fraction(value.isoformat('microseconds'))}Z"
        case bytes() | bytearray():
            return base64.b64encode(value).decode()
        case _:
            return _text(str(value))


def _text(value: str) -> str:
    if "\0" in value:
        raise DocumentError("a text holds a NUL character, which PostgreSQL cannot keep; take it out of the row")
    return value


def _float(value: float) -> float | str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _decimal(value: Decimal) -> int | float | str:
    if value == value.to_integral_value():
        whole = int(value)
        return whole if whole.bit_length() <= _LONGEST else str(whole)
    return float(value) if Decimal(repr(float(value))) == value else str(value)


def _timestamp(value: datetime) -> str:
    moment = value.replace(tzinfo=UTC) if value.tzinfo is None else value
    text = moment.isoformat(timespec="microseconds")
    zone = text[26:]
    return _fraction(text[:26]) + ("Z" if zone == "+00:00" else zone)


def _fraction(text: str) -> str:
    """Without the zeros at the end of the microseconds."""
    return text.rstrip("0").rstrip(".")


def _json(value: Any) -> Any:
    if not isinstance(value, str):
        return _checked(json.loads(json.dumps(value)))
    try:
        parsed = json.loads(value, parse_constant=str)
    except ValueError:
        # An array may have `undefined` in it, which is no JSON.
        return _text(value)
    return _checked(parsed) if "\\u0000" in value else parsed


def _checked(value: Any) -> Any:
    if "\\u0000" in json.dumps(value).replace("\\\\", ""):
        raise DocumentError("a text in a VARIANT holds a NUL character, which PostgreSQL cannot keep")
    return value
