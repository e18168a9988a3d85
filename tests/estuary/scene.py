"""Documents by hand, and a table captured by the stand-in: what the tests of this folder begin with."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from sophia.catalog import Catalog
from sophia.database import Database
from sophia.documents import uuid_clock
from sophia.estuary.stamps import Producer
from sophia.estuary.stand_in.journal import Entry, Journal
from sophia.estuary.stand_in.materialize import Materialization, Materializer
from sophia.estuary.stand_in.source_postgres import Captured, PostgresEndpoint, SourcePostgres
from sophia.estuary.stand_in.triggers import Triggers
from sophia.estuary.stand_in.webhook import Binding, Endpoint
from tests.catalogs import changed

Connection = psycopg.Connection[TupleRow]
NAME = "acme/items"
ITEMS = Binding(NAME, ("/id",), NAME)
TASK = "acme/webhook"
_numbers = itertools.count(1)


class Writer:
    """Makes stamped documents and appends them to a journal."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.producer = Producer(lambda: 1_750_000_000.0, random.Random(7))

    def document(self, op: str, number: int, before: dict[str, Any] | None = None, /, **columns: Any) -> dict[str, Any]:
        meta: dict[str, Any] = {"op": op, "source": {"schema": "public", "table": "items", "loc": [1, 2, 3]}}
        if before is not None:
            meta["before"] = before
        meta["uuid"] = self.producer.stamp()
        return {"_meta": meta, "id": number} | columns

    def put(self, *documents: dict[str, Any], collection: str = NAME) -> None:
        with Journal(self.path) as journal:
            journal.append([(collection, document) for document in documents])

    def entries(self, collection: str = NAME) -> list[Entry]:
        with Journal(self.path) as journal:
            return journal.read(0, [collection], 1_000_000)


def materializer(
    path: Path,
    address: str,
    *,
    bindings: tuple[Binding, ...] = (ITEMS,),
    headers: tuple[tuple[str, str], ...] = (),
    triggers: Triggers | None = None,
    **options: Any,
) -> Materializer:
    """A materialisation of the journal whose waits take no time unless a test says so."""
    spec = Materialization(TASK, Endpoint(address, headers), bindings, triggers or Triggers())
    return Materializer(spec, path, **{"sleep": lambda seconds: None} | options)


class Source:
    """The table of a test in the test's own database, captured into a journal."""

    def __init__(self, database: Database, connection: Connection, path: Path) -> None:
        self.connection = connection
        self.database = database
        self.path = path
        self.slot = f"flow_{next(_numbers)}_{database.url.rsplit('/', 1)[-1].split('?')[0]}"

    def capture(self, *tables: str, **options: Any) -> SourcePostgres:
        captured = tuple(Captured(table, f"acme/{table.rpartition('.')[2]}") for table in tables or ("public.items",))
        return SourcePostgres(PostgresEndpoint(self.database.url, captured, slot=self.slot), self.path, **options)

    def execute(self, statement: str, *params: Any) -> None:
        self.connection.execute(statement, params or None)

    def entries(self, collection: str = NAME) -> list[Entry]:
        if not self.path.exists():
            return []
        with Journal(self.path) as journal:
            return journal.read(0, [collection], 1_000_000)

    def documents(self, collection: str = NAME) -> list[dict[str, Any]]:
        return [entry.document for entry in self.entries(collection)]


def state_of(documents: list[dict[str, Any]], key: str = "id") -> dict[Any, dict[str, Any]]:
    """What a receiver that keeps, a key, the highest clock and merges top level is left with."""
    clocks: dict[Any, int] = {}
    rows: dict[Any, dict[str, Any] | None] = {}
    for document in documents:
        clock = uuid_clock(document["_meta"]["uuid"])
        number = document[key]
        before = document["_meta"].get("before", {}).get(key, number)
        if before != number and clock > clocks.get(before, 0):
            clocks[before], rows[before] = clock, None
        if clock <= clocks.get(number, 0):
            continue
        clocks[number] = clock
        body = {name: value for name, value in document.items() if name != "_meta"}
        if document["_meta"]["op"] == "d":
            rows[number] = None
        elif document["_meta"]["op"] == "c":
            rows[number] = body
        else:
            rows[number] = (rows.get(number) or {}) | body
    return {number: row for number, row in rows.items() if row is not None}


def estuary_catalog(
    catalog: Catalog, *, history: bool = False, variable: str | None = "SOPHIA_ESTUARY_SOURCE_URL"
) -> Catalog:
    """The catalog with the collection `items`, which Estuary feeds from `public.items`, and one index over it.

    `variable` names the one with the DSN behind Estuary; None says that there is none.
    """
    source = catalog.source("estuary").model_copy(update={"url_env": variable})
    documents = catalog.collection("documents")
    items = documents.model_copy(
        update={
            "name": "items",
            "table": "public.items",
            "estuary": NAME,
            "key": ("id",),
            "history": history,
            "source": documents.source.model_copy(update={"local": "estuary"}),
        }
    )
    index = next(index for index in catalog.indexes if index.name == "documents")
    index = index.model_copy(
        update={"name": "items", "collection": "items", "template": "{body} {big}", "metadata": ("n",), "shards": 1}
    )
    return changed(
        catalog,
        sources=tuple(source if other.name == "estuary" else other for other in catalog.sources),
        collections=(*catalog.collections, items),
        indexes=(index,),
    )
