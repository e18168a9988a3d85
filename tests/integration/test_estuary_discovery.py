"""Tables of a real PostgreSQL become the schemas that Estuary's source-postgres would discover."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia import sql
from sophia.catalog import Catalog, load
from sophia.database import Database
from sophia.errors import SourceError
from sophia.estuary.catalog.columns import TableInfo, discovered_table
from sophia.estuary.catalog.discovery import discover
from sophia.estuary.catalog.publish import rendered_models
from sophia.estuary.catalog.schemas import postgres_schema
from sophia.settings import load_settings
from tests.catalogs import changed, replaced

Connection = psycopg.Connection[TupleRow]

TABLE = """
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE TYPE pair AS (a int, b int);
CREATE DOMAIN positive AS int4 NOT NULL CHECK (VALUE > 0);
CREATE TABLE public.conversations (
    id bigint PRIMARY KEY,
    name varchar(200) NOT NULL,
    code char(3),
    open_text varchar,
    amount numeric(10, 2),
    ratio double precision,
    seen boolean NOT NULL,
    day date,
    at timestamptz,
    clock time,
    raw bytea,
    loose json,
    tags jsonb NOT NULL,
    who uuid,
    words text[],
    short varchar(5)[],
    mood mood,
    moods mood[],
    span int4range,
    pair pair,
    positive positive,
    twice bigint GENERATED ALWAYS AS (id * 2) STORED,
    gone text
);
ALTER TABLE public.conversations DROP COLUMN gone;
COMMENT ON COLUMN public.conversations.name IS 'Who spoke.';
"""
# As in the snapshots TestSimpleDiscovery, TestDiscoveryComplex, TestArrayTypes and TestJSONTypes of source-postgres.
WANTED: dict[str, Any] = {
    "id": {"type": "integer", "description": "(source type: non-nullable int8)"},
    "name": {"type": "string", "maxLength": 200, "description": "Who spoke. (source type: non-nullable varchar)"},
    "code": {"type": ["string", "null"], "minLength": 3, "maxLength": 3, "description": "(source type: bpchar)"},
    "open_text": {"type": ["string", "null"], "description": "(source type: varchar)"},
    "amount": {"type": ["string", "null"], "format": "number", "description": "(source type: numeric)"},
    "ratio": {"type": ["number", "string", "null"], "format": "number", "description": "(source type: float8)"},
    "seen": {"type": "boolean", "description": "(source type: non-nullable bool)"},
    "day": {"type": ["string", "null"], "format": "date", "description": "(source type: date)"},
    "at": {"type": ["string", "null"], "format": "date-time", "description": "(source type: timestamptz)"},
    "clock": {"type": ["string", "null"], "format": "time", "description": "(source type: time)"},
    "raw": {"type": ["string", "null"], "contentEncoding": "base64", "description": "(source type: bytea)"},
    "loose": {"contentMediaType": "application/json", "description": "(source type: json)"},
    "tags": {
        "contentMediaType": "application/vnd.estuary.postgresql.jsonb+json",
        "description": "(source type: non-nullable jsonb)",
    },
    "who": {"type": ["string", "null"], "format": "uuid", "description": "(source type: uuid)"},
    "words": {
        "type": ["array", "null"],
        "items": {"type": ["string", "null"]},
        "description": "(source type: _text)",
    },
    "short": {
        "type": ["array", "null"],
        "items": {"type": ["string", "null"], "maxLength": 5},
        "description": "(source type: _varchar)",
    },
    "mood": {"type": ["string", "null"], "description": "(source type: enum)"},
    "moods": {
        "description": 'using catch-all schema (unable to translate PostgreSQL type "mood" into JSON schema) '
        "(source type: _mood)"
    },
    "span": {"type": ["string", "null"], "description": "(source type: range)"},
    "pair": {"description": "(source type: composite)"},
    "positive": {"type": "integer", "description": "(source type: non-nullable int4)"},
}


@pytest.fixture
def catalog() -> Catalog:
    """Conversations come from Estuary; the PostgreSQL behind it is named."""
    catalog = load()
    source = catalog.source("estuary")
    return changed(catalog, sources=replaced(catalog.sources, source, url_env="SOPHIA_APP_DATABASE_URL"))


def test_a_table_as_source_postgres_discovers_it(connection: Connection, catalog: Catalog) -> None:
    connection.execute(TABLE)
    table = discovered_table(connection, catalog.collection("conversations"))
    assert table.key == ("id",)
    schema = postgres_schema(table, "public.conversations")
    assert schema["$defs"]["PublicConversations"]["properties"] == WANTED
    assert schema["$defs"]["PublicConversations"]["required"] == ["id"]


def test_the_database_is_asked_where_it_is_named(
    database: Database, connection: Connection, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.execute(TABLE)
    monkeypatch.setenv("SOPHIA_APP_DATABASE_URL", database.url)
    discovered = discover(catalog, load_settings())
    assert (list(discovered.tables), discovered.notes) == (["conversations"], ())
    models = rendered_models(catalog, "production", discovered.tables)
    properties = models["collection", "sophia/conversations"]["schema"]["$defs"]["PublicConversations"]["properties"]
    assert properties == WANTED
    # The test of the collection has a value for each column, and fits.
    (ingest, _) = models["test", "sophia/tests/conversations"]
    assert set(ingest["ingest"]["documents"][0]) == {*WANTED, "_meta"}


def test_without_a_database_the_catalog_is_taken(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    discovered = discover(catalog, load_settings())
    assert discovered.tables == {}
    assert discovered.notes == (
        "conversations: columns are the catalog's; set SOPHIA_APP_DATABASE_URL to ask the source",
    )
    monkeypatch.setenv("SOPHIA_APP_DATABASE_URL", "postgresql://sophia:a-password@127.0.0.1:1/app")
    discovered = discover(catalog, load_settings())
    assert discovered.notes == (
        "conversations: columns are the catalog's; the source at SOPHIA_APP_DATABASE_URL is away",
    )


def test_a_table_that_is_not_there(database: Database, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOPHIA_APP_DATABASE_URL", database.url)
    with pytest.raises(SourceError, match=r"public.conversations: does not exist in the source"):
        discover(catalog, load_settings())


def test_the_catalogs_columns_are_those_of_the_sample(connection: Connection, catalog: Catalog) -> None:
    """What the catalog declares agrees with the tables that the local profile makes."""
    connection.execute(sql.load("sample")["create"])
    for name in ("conversations", "business_metrics"):
        collection = catalog.collection(name)
        found: TableInfo = discovered_table(connection, collection)
        assert {column.name: column.type for column in found.columns} == dict(collection.columns)
        assert found.key == collection.key
