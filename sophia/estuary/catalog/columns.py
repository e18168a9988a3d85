"""A table's columns as Estuary's captures see them: from the source database, or from what the catalog declares.

The database is asked as source-postgres asks it on discovery: domains by their base type, generated columns left out
(the stream does not carry them), comments kept. What the catalog declares is taken where no database can be asked;
such columns are nullable unless they are part of the key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import psycopg
from psycopg.rows import TupleRow

from sophia import sql
from sophia.capture.source import inspect_table
from sophia.catalog.models import Catalog, Collection

Q = sql.load("discovery")
ColumnKind = Literal["base", "enum", "range", "multirange", "composite"]
_KINDS: dict[str, ColumnKind] = {"e": "enum", "r": "range", "m": "multirange", "c": "composite"}


@dataclass(frozen=True, slots=True)
class ColumnInfo:
    """One column. `type` is PostgreSQL's short name of the base or element type, such as `int8`."""

    name: str
    type: str
    kind: ColumnKind = "base"
    array: bool = False
    nullable: bool = True
    length: int | None = None
    comment: str = ""


@dataclass(frozen=True, slots=True)
class TableInfo:
    """Columns and key of one table."""

    columns: tuple[ColumnInfo, ...]
    key: tuple[str, ...]


def discovered_table(connection: psycopg.Connection[TupleRow], collection: Collection) -> TableInfo:
    """The collection's table as the source database has it.

    Raises:
        SourceError: it does not exist, may not be read, or has no usable key.
        ValueError: the collection names no table.
    """
    if collection.table is None:
        raise ValueError(f"collection {collection.name!r} has no table")
    table = inspect_table(connection, collection.table, collection.key)
    rows = connection.execute(Q["estuary_columns"], {"oid": table.oid}).fetchall()
    columns = tuple(
        ColumnInfo(name, kind_of, _KINDS.get(kind, "base"), array, nullable, length, comment or "")
        for name, kind_of, kind, array, nullable, length, comment in rows
    )
    return TableInfo(columns, table.key_fields)


def declared_table(catalog: Catalog, collection: Collection) -> TableInfo:
    """The collection's columns as the catalog declares them; those that only an index reads have no known type."""
    declared = [
        ColumnInfo(name, kind.removesuffix("[]"), array=kind.endswith("[]"), nullable=name not in collection.key)
        for name, kind in collection.columns.items()
    ]
    read = [
        name
        for index in catalog.indexes_of(collection.name)
        for name in (*index.template_columns, *index.metadata, *((index.vector,) if index.vector else ()))
        if name not in collection.columns
    ]
    unknown = [
        ColumnInfo(name, "", nullable=name not in collection.key)
        for name in dict.fromkeys((*(name for name in collection.key if name not in collection.columns), *read))
    ]
    return TableInfo((*declared, *unknown), collection.key)
