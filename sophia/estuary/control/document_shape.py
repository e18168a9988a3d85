"""What columns a collection's documents really have, and where that differs from what the catalog says of them.

A schema changes at the source without a word to us: the webhook carries documents and nothing else. So the newest
documents are looked at, by column and JSON type, never by value. A column is remembered once it was seen, since a
sample need not show all of them each time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from sophia import sql

Q = sql.load("estuary_observation")
SAMPLE = 200
# A document may have any number of keys; beyond these nothing is said.
MOST_COLUMNS = 300
# Column to the JSON types of its values, null aside.
Shape = Mapping[str, tuple[str, ...]]


def document_shape(connection: psycopg.Connection[TupleRow], collection_id: int) -> dict[str, tuple[str, ...]]:
    """The columns of up to 400 complete documents, `_meta` aside."""
    rows = connection.execute(
        Q["columns"], {"collection_id": collection_id, "limit": SAMPLE, "columns": MOST_COLUMNS}
    ).fetchall()
    return {name: tuple(sorted(kind for kind in kinds if kind != "null")) for name, kinds in rows}


def united(remembered: Shape, seen: Shape) -> dict[str, tuple[str, ...]]:
    """Both together; new columns only as long as there is room."""
    union = {name: tuple(sorted({*kinds, *seen.get(name, ())})) for name, kinds in remembered.items()}
    for name, kinds in seen.items():
        if name not in union and len(union) < MOST_COLUMNS:
            union[name] = kinds
    return dict(sorted(union.items()))


def shape_changes(remembered: Shape, seen: Shape) -> list[str]:
    """What of `seen` was not there before, a sentence each; none for the first documents of all."""
    if not remembered:
        return []
    new = sorted(seen.keys() - remembered.keys())
    changes = [f"new column {name}" for name in new]
    for name in sorted(seen.keys() & remembered.keys()):
        kinds = [kind for kind in seen[name] if kind not in remembered[name]]
        # A column that was always null has its first type now.
        if kinds and remembered[name]:
            changes.append(f"column {name} is now also {', '.join(kinds)} (it was {', '.join(remembered[name])})")
    return changes


@dataclass(frozen=True, slots=True)
class Expected:
    """What the catalog says of a collection's columns.

    Attributes:
        types: column to the JSON types that its rendered schema permits; None where it permits any.
        closed: whether the catalog declares the columns, so that another one is a difference.
        read: columns that indexes read, with the indexes' names.
    """

    types: Mapping[str, frozenset[str] | None]
    closed: bool
    read: Mapping[str, tuple[str, ...]]


def expected_of(schema: Mapping[str, Any], *, closed: bool, read: Mapping[str, Sequence[str]]) -> Expected:
    """What a rendered collection schema (its `$defs` hold the table) and the indexes expect."""
    types: dict[str, frozenset[str] | None] = {}
    for table in schema.get("$defs", {}).values():
        for name, column in table.get("properties", {}).items():
            kinds = column.get("type")
            listed = [kinds] if isinstance(kinds, str) else kinds
            # JSON knows one kind of number, and null tells nothing of a type.
            types[name] = frozenset("number" if kind == "integer" else kind for kind in listed) if listed else None
    return Expected(types, closed, {name: tuple(indexes) for name, indexes in read.items()})


def differences(seen: Shape, expected: Expected) -> list[str]:
    """Where documents and catalog do not fit, a sentence each with the fix; empty without any document."""
    if not seen:
        return []
    found: list[str] = []
    for name, indexes in sorted(expected.read.items()):
        if name not in seen:
            found.append(f"no document has column {name}, which index {', '.join(indexes)} reads; change the index")
    for name, kinds in sorted(seen.items()):
        permitted = expected.types.get(name)
        if name not in expected.types:
            if expected.closed:
                found.append(f"column {name} is not in the catalog; add it to the collection's columns")
        elif permitted is not None and not permitted.issuperset(kinds):
            found.append(
                f"column {name} is {', '.join(kinds)} and the catalog says {', '.join(sorted(permitted - {'null'}))}; "
                "change the collection's columns"
            )
    return found


def schema_token(publication: str | None, schema_hash: str | None, shape: Shape) -> str:
    """Sixteen hex digits that change with the published spec, the schema that Estuary inferred, or the documents."""
    return hashlib.sha256(json.dumps([publication, schema_hash, shape]).encode()).hexdigest()[:16]
