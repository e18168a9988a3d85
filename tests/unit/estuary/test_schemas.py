"""Schemas of collections are those that Estuary's own captures discover."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from sophia.estuary.catalog.columns import ColumnInfo, TableInfo
from sophia.estuary.catalog.locations import locate
from sophia.estuary.catalog.schemas import POSTGRES_TYPES, Schema, postgres_schema, pushed_schema, snowflake_schema

TABLE = TableInfo((ColumnInfo("id", "int8", nullable=False), ColumnInfo("body", "text")), ("id",))


def column(schema: Schema, name: str) -> dict[str, Any]:
    (table,) = schema["$defs"].values()
    found = dict(table["properties"][name])
    found.pop("description", None)
    return found


# As in the snapshots of source-postgres (TestIntegerTypes, TestNumericTypes, TestTemporalTypes, TestArrayTypes, …).
@pytest.mark.parametrize(
    ("info", "wanted"),
    [
        (ColumnInfo("c", "int4"), {"type": ["integer", "null"]}),
        (ColumnInfo("c", "int4", nullable=False), {"type": "integer"}),
        (ColumnInfo("c", "numeric"), {"type": ["string", "null"], "format": "number"}),
        (ColumnInfo("c", "float4", nullable=False), {"type": ["number", "string"], "format": "number"}),
        (ColumnInfo("c", "float8"), {"type": ["number", "string", "null"], "format": "number"}),
        (ColumnInfo("c", "bool"), {"type": ["boolean", "null"]}),
        (ColumnInfo("c", "timestamptz"), {"type": ["string", "null"], "format": "date-time"}),
        (ColumnInfo("c", "date"), {"type": ["string", "null"], "format": "date"}),
        (ColumnInfo("c", "time"), {"type": ["string", "null"], "format": "time"}),
        (ColumnInfo("c", "uuid"), {"type": ["string", "null"], "format": "uuid"}),
        (ColumnInfo("c", "bytea"), {"type": ["string", "null"], "contentEncoding": "base64"}),
        (ColumnInfo("c", "json"), {"contentMediaType": "application/json"}),
        (ColumnInfo("c", "jsonb"), {"contentMediaType": "application/vnd.estuary.postgresql.jsonb+json"}),
        (ColumnInfo("c", "varchar", length=200), {"type": ["string", "null"], "maxLength": 200}),
        (ColumnInfo("c", "bpchar", nullable=False, length=3), {"type": "string", "minLength": 3, "maxLength": 3}),
        (ColumnInfo("c", "mood", kind="enum"), {"type": ["string", "null"]}),
        (ColumnInfo("c", "int4range", kind="range"), {"type": ["string", "null"]}),
        (ColumnInfo("c", "pair", kind="composite"), {}),
        (ColumnInfo("c", "hstore"), {}),
        (
            ColumnInfo("c", "text", array=True),
            {"type": ["array", "null"], "items": {"type": ["string", "null"]}},
        ),
    ],
)
def test_a_column_of_postgresql(info: ColumnInfo, wanted: Schema) -> None:
    table = TableInfo((TABLE.columns[0], info), ("id",))
    assert column(postgres_schema(table, "public.t"), "c") == wanted


def test_a_float_in_the_key_is_sent_as_text() -> None:
    table = TableInfo((ColumnInfo("id", "float8", nullable=False),), ("id",))
    assert column(postgres_schema(table, "public.t"), "id") == {"type": "string", "format": "number"}


def test_descriptions_name_the_source_type() -> None:
    info = (ColumnInfo("id", "int8", nullable=False, comment="Number."), ColumnInfo("h", "hstore"))
    (table,) = postgres_schema(TableInfo(info, ("id",)), "public.t")["$defs"].values()
    assert table["properties"]["id"]["description"] == "Number. (source type: non-nullable int8)"
    assert table["properties"]["h"]["description"] == (
        'using catch-all schema (unable to translate PostgreSQL type "hstore" into JSON schema) (source type: hstore)'
    )


def test_the_document_around_the_columns() -> None:
    schema = postgres_schema(TABLE, "public.documents")
    assert list(schema["$defs"]) == ["PublicDocuments"]
    assert schema["$defs"]["PublicDocuments"]["$anchor"] == "PublicDocuments"
    assert schema["$defs"]["PublicDocuments"]["required"] == ["id"]
    change, table = schema["allOf"]
    assert table == {"$ref": "#PublicDocuments"}
    assert (change["then"], change["else"]) == (
        {"reduce": {"strategy": "merge", "delete": True}},
        {"reduce": {"strategy": "merge"}},
    )
    meta = change["properties"]["_meta"]
    assert (change["required"], meta["required"]) == (["_meta"], ["op", "source"])
    assert meta["properties"]["before"]["reduce"] == {"strategy": "firstWriteWins"}
    assert meta["properties"]["source"]["required"] == ["schema", "table", "loc"]
    assert "reduce" not in meta["properties"]["source"]


def test_history_keeps_every_change() -> None:
    change = postgres_schema(TABLE, "public.documents", history=True)["allOf"][0]
    source = change["properties"]["_meta"]["properties"]["source"]
    assert source["reduce"] == {"strategy": "lastWriteWins", "associative": False}


def test_snowflake_has_capitals_and_numbers() -> None:
    columns = (
        ColumnInfo("id", "int8", nullable=False),
        ColumnInfo("value", "numeric"),
        ColumnInfo("at", "date"),
        ColumnInfo("tags", "text", array=True),
        ColumnInfo("raw", "jsonb"),
    )
    schema = snowflake_schema(TableInfo(columns, ("id",)), "PUBLIC.METRICS")
    assert list(schema["$defs"]) == ["METRICS"]
    assert schema["$defs"]["METRICS"]["required"] == ["ID"]
    assert column(schema, "VALUE") == {"type": ["number", "null"]}
    assert column(schema, "AT") == {"type": ["string", "null"], "format": "date-time"}
    assert column(schema, "TAGS") == {"type": ["array", "null"]}
    assert column(schema, "RAW") == {}
    source = schema["allOf"][0]["properties"]["_meta"]["properties"]["source"]
    assert source["required"] == ["schema", "table", "seq", "off"]
    assert list(snowflake_schema(TABLE, "SALES.METRICS")["$defs"]) == ["SALESMETRICS"]


@pytest.mark.parametrize(
    ("document", "deletes"),
    [
        ({"id": 1, "_meta": {"op": "d"}}, True),
        ({"id": 1, "_meta": {"op": "u"}}, False),
        ({"id": 1, "_meta": {}}, False),
        ({"id": 1}, False),
    ],
)
@pytest.mark.parametrize("schema", [pushed_schema(TABLE, "events"), postgres_schema(TABLE, "public.events")])
def test_only_a_delete_deletes(schema: Schema, document: dict[str, Any], deletes: bool) -> None:
    """`if` holds for what it does not mention: a document without an operation must not count as a delete."""
    assert Draft202012Validator(schema["allOf"][0]["if"]).is_valid(document) is deletes


def test_documents_of_the_capture_are_valid() -> None:
    validator = Draft202012Validator(postgres_schema(TABLE, "public.documents"))
    source = {"schema": "public", "table": "documents", "loc": [1, 2, 3], "ts_ms": 1, "txid": 7}
    assert validator.is_valid({"id": 1, "body": None, "_meta": {"op": "u", "source": source, "before": {"id": 2}}})
    assert validator.is_valid({"id": 1, "_meta": {"op": "d", "source": source}})
    assert not validator.is_valid({"body": "x", "_meta": {"op": "d", "source": source}})
    assert not validator.is_valid({"id": 1, "_meta": {"op": "x", "source": source}})


def test_every_schema_describes_its_key() -> None:
    for kind in POSTGRES_TYPES:
        table = TableInfo((ColumnInfo("id", kind, nullable=False),), ("id",))
        location = locate(postgres_schema(table, "public.t"), "/id")
        assert (location.described, location.required) == (True, True)
