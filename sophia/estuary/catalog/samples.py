"""Tests of the rendered collections, in Estuary's own form: what an update leaves out stays as it was."""

from __future__ import annotations

from typing import Any

from sophia.catalog.models import CaptureConnector
from sophia.estuary.catalog.columns import ColumnInfo, TableInfo

# A value of each PostgreSQL type that is a plain JSON value on its way; types that are not here get a string.
_VALUES: dict[str, Any] = {
    "bool": True,
    **dict.fromkeys(("int2", "int4", "int8", "oid"), 7),
    "numeric": "7.5",
    **dict.fromkeys(("float4", "float8"), 0.5),
    "bytea": "AAEC",
    "json": {"a": 1},
    "jsonb": {"a": 1},
    "date": "2026-01-02",
    **dict.fromkeys(("timestamp", "timestamptz"), "2026-01-02T03:04:05Z"),
    **dict.fromkeys(("time", "timetz"), "03:04:05Z"),
    "uuid": "00000000-0000-4000-8000-000000000007",
}
_SNOWFLAKE_VALUES: dict[str, Any] = {"numeric": 7.5, "date": "2026-01-02T00:00:00Z"}


def catalog_test(collection: str, table: TableInfo, qualified: str, connector: CaptureConnector) -> list[Any]:
    """Steps that insert a row, update it without one of its columns, and expect both merged."""
    row = {_name(column, connector): _value(column, table, connector) for column in table.columns}
    key = {
        _name(column, connector): row[_name(column, connector)] for column in table.columns if column.name in table.key
    }
    # The update carries the key and the first other column; the rest is as an unchanged large value, which is left out.
    changed = next((name for name in row if name not in key), None)
    update = {**key, **({changed: row[changed]} if changed is not None else {})}
    return [
        {
            "ingest": {
                "collection": collection,
                "documents": [
                    {**row, "_meta": {"op": "c", "source": _source(qualified, connector, 1)}},
                    {**update, "_meta": {"op": "u", "source": _source(qualified, connector, 2)}},
                ],
            }
        },
        {"verify": {"collection": collection, "documents": [{**row, "_meta": {"op": "u"}}]}},
    ]


def _name(column: ColumnInfo, connector: CaptureConnector) -> str:
    return column.name.upper() if connector == "source-snowflake" else column.name


def _value(column: ColumnInfo, table: TableInfo, connector: CaptureConnector) -> Any:
    values = {**_VALUES, **_SNOWFLAKE_VALUES} if connector == "source-snowflake" else _VALUES
    value = values.get(column.type, "x" * (column.length or 1) if column.type == "bpchar" else "x")
    if column.array:
        return [value]
    if column.name in table.key and isinstance(value, float):
        return str(value)
    return value


def _source(qualified: str, connector: CaptureConnector, number: int) -> dict[str, Any]:
    namespace, _, name = qualified.partition(".")
    position = {"seq": number, "off": 0} if connector == "source-snowflake" else {"loc": [number, number, number]}
    return {"schema": namespace, "table": name, **position}
