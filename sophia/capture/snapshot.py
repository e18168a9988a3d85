"""The first copy of a table, read from the snapshot that a replication slot exported.

Invariant: every snapshot document bears the slot's consistent point as its clock, ordinal 0. Each transaction that
the slot streams committed at or after that point and its documents count from 1, so a row that changed while the
copy ran is right afterwards, whichever of the two arrives first. The collection's floor is raised to the same clock
before the first row, and what the copy did not bring is swept after the last.

A copy that dies starts over: the table counts as captured only when `complete` was set, in the same transaction as
the sweep.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql as composed
from psycopg.rows import TupleRow

from sophia import inbox, sql
from sophia.capture.source import SourceTable, columns
from sophia.capture.values import converter
from sophia.documents import Change, Clock, capture_uuid, format_lsn, from_document
from sophia.errors import DocumentError

Connection = psycopg.Connection[TupleRow]
Q = sql.load("capture")
Progress = Callable[[str, int, int], None]
EVERY_ROW = composed.SQL("")


def copy_table(
    source: Connection,
    own: Connection,
    *,
    source_name: str,
    collection: str,
    table: SourceTable,
    clock: Clock,
    batch_documents: int,
    guard: Callable[[], None],
    progress: Progress | None = None,
) -> int:
    """Copy one table to the inbox. Returns the number of rows.

    Args:
        source: a connection inside a transaction on the exported snapshot.
        own: a connection to Sophia's database, autocommit.
        clock: (generation, consistent point, 0).
        guard: called in every transaction; raises when another capture has taken over. A late sweep would otherwise
            bury rows that the successor's snapshot is bringing at the very clock of its tombstones.
        progress: called with (collection, rows so far, estimated rows).
    """
    with own.transaction():
        guard()
        inbox.raise_floor(own, collection, clock)
        own.execute(
            Q["begin_snapshot"],
            {
                "source": source_name,
                "collection": collection,
                "table": table.qualified,
                "oid": table.oid,
                "lsn": format_lsn(clock.position),
            },
        )
    estimate_row = source.execute(sql.load("source")["estimate"], {"oid": table.oid}).fetchone()
    estimate = int(estimate_row[0]) if estimate_row else 0
    rows = 0
    described = columns(source, table.oid)
    stream = read_rows(source, table.schema, table.name, described)
    while batch := list(itertools.islice(stream, batch_documents)):
        changes: list[Change] = []
        parked: list[str] = []
        for offset, row in enumerate(batch, start=rows):
            try:
                changes.append(row_change(table.schema, table.name, table.key_fields, row, offset, clock, bulk=True))
            except DocumentError as error:
                parked.append(f"row {offset} of the snapshot: {error}")
        with own.transaction():
            guard()
            inbox.accept(own, collection, changes)
            for reason in parked:
                inbox.park(own, collection, None, stage="capture", reason=reason, clock=clock)
        rows += len(batch)
        if progress:
            progress(collection, rows, max(estimate, rows))
    with own.transaction():
        guard()
        inbox.sweep(own, collection)
        own.execute(Q["end_snapshot"], {"source": source_name, "collection": collection, "rows": rows})
    if progress:
        progress(collection, rows, rows)
    return rows


def read_rows(
    source: Connection,
    schema: str,
    table: str,
    described: Sequence[tuple[str, int]],
    where: composed.Composable = EVERY_ROW,
) -> Iterator[dict[str, Any]]:
    """A table's rows as JSON values, streamed by COPY: the same text, and the same converters, as the stream.

    `described` holds names and type oids of its columns, `where` a condition with its keyword.
    """
    converters = [(name, converter(type_oid)) for name, type_oid in described]
    statement = composed.SQL("COPY (SELECT {} FROM {}{}) TO STDOUT").format(
        composed.SQL(", ").join(composed.Identifier(name) for name, _ in described),
        composed.Identifier(schema, table),
        where,
    )
    with source.cursor() as cursor, cursor.copy(statement) as copy:
        for values in copy.rows():
            yield {
                name: None if value is None else convert(value.encode())
                for (name, convert), value in zip(converters, values, strict=True)
            }


def row_change(
    schema: str,
    table: str,
    key_fields: Sequence[str],
    row: Mapping[str, Any],
    offset: int,
    clock: Clock,
    *,
    bulk: bool,
) -> Change:
    """The snapshot document of a row at a consistent point, `offset` being its number in the copy."""
    document = dict(row) | {
        "_meta": {
            "op": "c",
            "source": {"schema": schema, "snapshot": True, "table": table, "loc": [-1, offset, 0]},
            "uuid": capture_uuid(clock.position, 0),
        }
    }
    return from_document(dict(sorted(document.items())), key_fields, clock, complete=True, bulk=bulk)
