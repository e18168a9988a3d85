"""JSON schemas of collections, as Estuary's own captures would discover them.

A document is the row's columns and `_meta`. Deletes are reductions: a document with `_meta.op` "d" removes what was
merged before. Only the key is required, since a delete carries nothing else. `x-infer-schema` is left out: it asks
Estuary to infer the schema a second time, and here the catalog owns it.
"""

from __future__ import annotations

from typing import Any

from sophia.catalog.models import CaptureConnector
from sophia.estuary.catalog.columns import ColumnInfo, TableInfo

Schema = dict[str, Any]

_TEXT_TYPES = [
    "varchar",
    "bpchar",
    "text",
    "citext",
    "xml",
    "bit",
    "varbit",
    "jsonpath",
    "interval",
    "money",
    "point",
    "line",
    "lseg",
    "box",
    "path",
    "polygon",
    "circle",
    "inet",
    "cidr",
    "macaddr",
    "macaddr8",
    "tsvector",
    "tsquery",
]
# source-postgres by PostgreSQL type; a type that is not here gets no constraint.
POSTGRES_TYPES: dict[str, Schema] = {
    "bool": {"type": "boolean"},
    **{name: {"type": "integer"} for name in ("int2", "int4", "int8", "oid")},
    "numeric": {"type": "string", "format": "number"},
    **{name: {"type": ["number", "string"], "format": "number"} for name in ("float4", "float8")},
    **{name: {"type": "string"} for name in _TEXT_TYPES},
    "bytea": {"type": "string", "contentEncoding": "base64"},
    "json": {"contentMediaType": "application/json"},
    "jsonb": {"contentMediaType": "application/vnd.estuary.postgresql.jsonb+json"},
    "date": {"type": "string", "format": "date"},
    **{name: {"type": "string", "format": "date-time"} for name in ("timestamp", "timestamptz")},
    **{name: {"type": "string", "format": "time"} for name in ("time", "timetz")},
    "uuid": {"type": "string", "format": "uuid"},
}
# A float in a key is sent as its text.
POSTGRES_KEY_TYPES: dict[str, Schema] = dict.fromkeys(("float4", "float8"), POSTGRES_TYPES["numeric"])

# source-snowflake, by the PostgreSQL type that the catalog declares of the same column.
SNOWFLAKE_TYPES: dict[str, Schema] = {
    **POSTGRES_TYPES,
    **{name: {"type": "number"} for name in ("numeric", "float4", "float8")},
    **{name: {"type": "string", "format": "date-time"} for name in ("date", "time", "timetz")},
    "json": {},
    "jsonb": {},
    "uuid": {"type": "string"},
}

_POSTGRES_SOURCE: Schema = {
    "ts_ms": {
        "type": "integer",
        "description": "Unix timestamp (in millis) at which this event was recorded by the database.",
    },
    "schema": {"type": "string", "description": "Database schema (namespace) of the event."},
    "snapshot": {
        "type": "boolean",
        "description": "Snapshot is true if the record was produced from an initial table backfill and unset if "
        "produced from the replication log.",
    },
    "table": {"type": "string", "description": "Database table of the event."},
}
_LOC: Schema = {
    "type": "array",
    "items": {"type": "integer"},
    "minItems": 3,
    "maxItems": 3,
    "description": "Location of this WAL event as [last Commit.EndLSN; event LSN; current Begin.FinalLSN].",
}
_OP: Schema = {
    "enum": ["c", "d", "u"],
    "description": "Change operation type: 'c' Create/Insert, 'u' Update, 'd' Delete.",
}


def postgres_schema(table: TableInfo, qualified: str, *, history: bool = False) -> Schema:
    """What source-postgres makes of a table `schema.name`; `history` keeps each change as its own document."""
    properties = {column.name: _postgres_column(column, column.name in table.key) for column in table.columns}
    source: Schema = {
        "type": "object",
        "required": ["schema", "table", "loc"],
        "properties": {
            **_POSTGRES_SOURCE,
            "loc": _LOC,
            "txid": {
                "type": "integer",
                "description": "The 32-bit transaction ID assigned by Postgres to the commit which produced this "
                "change.",
            },
        },
    }
    if history:
        source["reduce"] = {"strategy": "lastWriteWins", "associative": False}
    return _document(_anchor(*qualified.split(".")), properties, sorted(table.key), source)


def snowflake_schema(table: TableInfo, qualified: str) -> Schema:
    """What source-snowflake makes of a table `SCHEMA.NAME`; column names as Snowflake has them, in capitals."""
    key = [name.upper() for name in table.key]
    properties = {
        column.name.upper(): _snowflake_column(column, column.name.upper() in key) for column in table.columns
    }
    source: Schema = {
        "type": "object",
        "required": ["schema", "table", "seq", "off"],
        "properties": {
            **_POSTGRES_SOURCE,
            "seq": {
                "type": "integer",
                "description": "The sequence number of the staging table from which this document was read",
            },
            "off": {
                "type": "integer",
                "description": "The offset within that staging table at which this document occurred",
            },
        },
    }
    namespace, name = qualified.split(".")
    anchor = _anchor(name) if namespace == "PUBLIC" else _anchor(namespace, name)
    return _document(anchor, properties, sorted(key), source)


def pushed_schema(table: TableInfo, name: str) -> Schema:
    """A collection that another capture writes, in documents of the same form; of `_meta` nothing is required."""
    properties = {column.name: _postgres_column(column, column.name in table.key) for column in table.columns}
    schema = _document(_anchor(*name.split("_")), properties, sorted(table.key), {"type": "object"})
    change = schema["allOf"][0]
    del change["required"], change["properties"]["_meta"]["required"]
    return schema


def schema_of(connector: CaptureConnector, table: TableInfo, qualified: str, *, history: bool) -> Schema:
    """The schema of a table `schema.name` as `connector` would discover it."""
    if connector == "source-snowflake":
        return snowflake_schema(table, qualified)
    return postgres_schema(table, qualified, history=history)


def _document(anchor: str, properties: Schema, required: list[str], source: Schema) -> Schema:
    before = {
        "$ref": f"#{anchor}",
        "description": "Record state immediately before this change was applied.",
        "reduce": {"strategy": "firstWriteWins"},
    }
    return {
        "$defs": {anchor: {"$anchor": anchor, "type": "object", "required": required, "properties": properties}},
        "allOf": [
            {
                # Without `required`, a document that has no `_meta.op` would count as a delete.
                "if": {
                    "required": ["_meta"],
                    "properties": {"_meta": {"required": ["op"], "properties": {"op": {"const": "d"}}}},
                },
                "then": {"reduce": {"strategy": "merge", "delete": True}},
                "else": {"reduce": {"strategy": "merge"}},
                "required": ["_meta"],
                "properties": {
                    "_meta": {
                        "type": "object",
                        "required": ["op", "source"],
                        "properties": {"op": _OP, "source": source, "before": before},
                        "reduce": {"strategy": "merge"},
                    }
                },
            },
            {"$ref": f"#{anchor}"},
        ],
    }


def _postgres_column(column: ColumnInfo, in_key: bool) -> Schema:
    if column.kind in ("enum", "range", "multirange"):
        element: Schema | None = {"type": "string"}
    elif column.kind == "composite":
        element = {}
    else:
        special = POSTGRES_KEY_TYPES.get(column.type) if in_key else None
        element = special or POSTGRES_TYPES.get(column.type)
    if not column.type:
        return {"description": "Any value: the catalog declares no type."}
    described = f"(source type: {'' if column.nullable else 'non-nullable '}{_type_name(column)})"
    if element is None:
        reason = f'using catch-all schema (unable to translate PostgreSQL type "{column.type}" into JSON schema)'
        return {"description": f"{reason} {described}"}
    if column.comment:
        described = f"{column.comment} {described}"
    return {**_wrapped(_sized(element, column), column), "description": described}


def _snowflake_column(column: ColumnInfo, in_key: bool) -> Schema:
    if column.array:
        return _nullable({"type": "array"}, column.nullable and not in_key)
    return _nullable(SNOWFLAKE_TYPES.get(column.type, {}), column.nullable and not in_key)


def _sized(element: Schema, column: ColumnInfo) -> Schema:
    if column.length is None:
        return element
    fixed = {"minLength": column.length} if column.type == "bpchar" else {}
    return {**element, **fixed, "maxLength": column.length}


def _wrapped(element: Schema, column: ColumnInfo) -> Schema:
    if not column.array:
        return _nullable(element, column.nullable)
    # Arrays are sent flat; their elements may always be null.
    return _nullable({"type": "array", "items": _nullable(element, True)}, column.nullable)


def _nullable(schema: Schema, nullable: bool) -> Schema:
    if not nullable or "type" not in schema:
        return schema
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return {**schema, "type": [*types, "null"]}


def _type_name(column: ColumnInfo) -> str:
    name = column.type if column.kind == "base" else column.kind
    return f"_{name}" if column.array else name


def _anchor(*parts: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in parts)
