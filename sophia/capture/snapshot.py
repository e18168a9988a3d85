"""The first copy of a table, read from the snapshot that a replication slot exported.

Invariant: every snapshot document bears the consistent point of the slot whose snapshot it was read from, ordinal 0.
Each transaction that a slot streams committed at or after its point and its documents count from 1, so a row that
changed while the copy ran is right afterwards, whichever of the two arrives first. The collection's floor is raised to
the point before the first row, and what the copy did not bring is swept after the last.

A copy that died goes on behind the last key that it stored, from a new snapshot at a later point P'. The main slot
kept the log since the first point P, and streams it only after the copy is complete, so:

* a row copied at P that changed or went before P' gets its change from the stream, at a clock between P and P';
* a row copied at P' ranks above all that the stream brings up to P', and below all that follows;
* a row whose key moved from one part to the other is deleted or inserted by the stream, where the copy did not see it;
* the floor stays at P, so the rows copied first keep standing, and the sweep takes only what neither part brought.

A table counts as captured only when `complete` was set, in the same transaction as the sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql as composed
from psycopg.rows import TupleRow

from sophia import inbox, sql
from sophia.capture.source import SourceTable, columns
from sophia.capture.values import converter
from sophia.documents import Change, Clock, Origin, format_lsn, key_of
from sophia.errors import DocumentError, SourceError, TemporaryError
from sophia.failpoints import failpoint

Connection = psycopg.Connection[TupleRow]
Q = sql.load("capture")
Progress = Callable[[str, int, int], None]
# The first batch of a table whose rows may be of any size.
FIRST_ROWS = 100
_CURSOR = composed.Identifier("sophia_copy")
EVERY_ROW = composed.SQL("")


def begin_copy(
    own: Connection, *, source_name: str, collection: str, table: SourceTable, shape: str, clock: Clock
) -> None:
    """Record that a table is copied from `clock` = (generation, consistent point, 0) on. The caller commits."""
    inbox.raise_floor(own, collection, clock)
    own.execute(
        Q["begin_snapshot"],
        {
            "source": source_name,
            "collection": collection,
            "table": table.qualified,
            "oid": table.oid,
            "shape": shape,
            "lsn": format_lsn(clock.position),
        },
    )


def copy_table(
    source: Connection,
    own: Connection,
    *,
    source_name: str,
    collection: str,
    table: SourceTable,
    clock: Clock,
    batch_documents: int,
    batch_bytes: int,
    guard: Callable[[], None],
    after: Sequence[str] | None = None,
    rows: int = 0,
    progress: Progress | None = None,
) -> int:
    """Copy one table to the inbox, in the order of its keys, after `begin_copy`. Returns the number of rows.

    Args:
        source: a connection inside a transaction on the exported snapshot.
        own: a connection to Sophia's database, autocommit.
        clock: (generation, consistent point of that snapshot, 0).
        batch_bytes: about how much text one batch may have.
        guard: called first in every transaction; raises when another capture has taken over. A late sweep would
            otherwise bury rows that the successor's snapshot is bringing at the very clock of its tombstones.
        after: the key columns' text of the last row that an earlier copy stored; `rows` of them are there.
        progress: called with (collection, rows so far, estimated rows).

    Raises:
        SourceError: a key column is generated, so the stream would not carry it.
        TemporaryError: the table was dropped or altered meanwhile.
    """
    estimate_row = source.execute(sql.load("source")["estimate"], {"oid": table.oid}).fetchone()
    estimate = int(estimate_row[0]) if estimate_row else 0
    described = columns(source, table.oid)
    if not described:
        raise TemporaryError(f"{table.qualified} was dropped before it was copied; starting again")
    names = [name for name, _ in described]
    if absent := [name for name in table.key_fields if name not in names]:
        raise SourceError(f"{table.qualified}: key column {absent[0]!r} is generated; key the collection by others")
    key_numbers = [names.index(name) for name in table.key_fields]
    for batch in read_batches(source, table, described, after, batch_documents, batch_bytes):
        changes, parked = _read(table, described, batch, rows, clock)
        rows += len(batch)
        with own.transaction():
            guard()
            inbox.accept(own, collection, changes)
            for reason in parked:
                inbox.park(own, collection, None, stage="capture", reason=reason, clock=clock)
            own.execute(
                Q["snapshot_progress"],
                {
                    "source": source_name,
                    "collection": collection,
                    "rows": rows,
                    "last_key": _last_key(batch, key_numbers),
                },
            )
            failpoint("capture.snapshot.before_commit")
        failpoint("capture.snapshot.after_commit")
        if progress:
            progress(collection, rows, max(estimate, rows))
    with own.transaction():
        guard()
        inbox.sweep(own, collection)
        failpoint("capture.sweep")
        inbox.resolve_table(own, collection, clock)
        own.execute(Q["end_snapshot"], {"source": source_name, "collection": collection, "rows": rows})
        failpoint("capture.snapshot_done.before_commit")
    failpoint("capture.snapshot_done.after_commit")
    if progress:
        progress(collection, rows, rows)
    return rows


def read_batches(
    source: Connection,
    table: SourceTable,
    described: Sequence[tuple[str, int]],
    after: Sequence[str] | None,
    most_rows: int,
    most_bytes: int,
) -> Iterator[list[list[bytes | None]]]:
    """A table's rows in the order of its keys, as text, a batch at a time, within the caller's transaction.

    `after` holds the key columns' text of the row to go on behind; the columns' own types and collations read it. A
    row of which a key column is null is no document: only a copy from the start reports it.
    """
    keys = composed.SQL(", ").join(composed.Identifier(name) for name in table.key_fields)
    where: composed.SQL | composed.Composed = EVERY_ROW
    if after is not None:
        values = composed.SQL(", ").join(composed.Literal(value) for value in after)
        where = composed.SQL(" WHERE ({}) > ({})").format(keys, values)
    # The whole table is read, not its first rows.
    source.execute("SET LOCAL cursor_tuple_fraction = 1")
    source.execute(
        composed.SQL("DECLARE {} NO SCROLL CURSOR FOR {} ORDER BY {}").format(
            _CURSOR, _select(table.schema, table.name, described, where), keys
        )
    )
    count = min(FIRST_ROWS, most_rows)
    while batch := _fetch(source, composed.SQL("FETCH FORWARD {} FROM {}").format(count, _CURSOR)):
        yield batch
        size = sum(len(value) for row in batch for value in row if value is not None)
        count = max(1, min(most_rows, count * 4, most_bytes * len(batch) // max(size, 1)))
    source.execute(composed.SQL("CLOSE {}").format(_CURSOR))


def read_rows(
    source: Connection,
    schema: str,
    table: str,
    described: Sequence[tuple[str, int]],
    where: composed.Composable = EVERY_ROW,
) -> list[dict[str, Any]]:
    """Rows as JSON values: the same text, and the same converters, as the stream.

    `described` holds names and type oids of the table's columns, `where` a condition with its keyword.

    Raises:
        DocumentError: a value cannot be read.
    """
    return [row_values(described, row) for row in _fetch(source, _select(schema, table, described, where))]


def row_change(key_fields: Sequence[str], row: Mapping[str, Any], clock: Clock, *, snapshot: bool) -> Change:
    """The document of a row as it was at a consistent point. Those of a snapshot take the bulk lane.

    Raises:
        DocumentError: the row has no key.
    """
    return Change(
        key=key_of(row, key_fields),
        op="c",
        clock=clock,
        # A column of this name would hide the document's own `_meta`.
        body={name: value for name, value in row.items() if name != "_meta"},
        origin=Origin(clock.position),
        bulk=snapshot,
        snapshot=snapshot,
    )


def _read(
    table: SourceTable,
    described: Sequence[tuple[str, int]],
    batch: Sequence[Sequence[bytes | None]],
    offset: int,
    clock: Clock,
) -> tuple[list[Change], list[str]]:
    """The documents of a batch, and why others could not be read."""
    changes, parked = [], []
    for number, row in enumerate(batch, start=offset):
        try:
            changes.append(row_change(table.key_fields, row_values(described, row), clock, snapshot=True))
        except DocumentError as error:
            parked.append(f"row {number} of the snapshot: {error}")
    return changes, parked


def row_values(described: Sequence[tuple[str, int]], row: Sequence[bytes | None]) -> dict[str, Any]:
    """One row of `read_batches` as JSON values, by column.

    Raises:
        DocumentError: a value cannot be read.
    """
    return {
        name: None if value is None else converter(type_oid)(value)
        for (name, type_oid), value in zip(described, row, strict=True)
    }


def _last_key(batch: Sequence[Sequence[bytes | None]], key_numbers: Sequence[int]) -> list[str] | None:
    """The key columns' text of the last row that has them all, or None."""
    for row in reversed(batch):
        values = [value for number in key_numbers if (value := row[number]) is not None]
        if len(values) == len(key_numbers):
            return [value.decode() for value in values]
    return None


def _select(
    schema: str, table: str, described: Sequence[tuple[str, int]], where: composed.Composable
) -> composed.Composed:
    return composed.SQL("SELECT {} FROM {}{}").format(
        composed.SQL(", ").join(composed.Identifier(name) for name, _ in described),
        composed.Identifier(schema, table),
        where,
    )


def _fetch(source: Connection, statement: composed.Composed) -> list[list[bytes | None]]:
    """A statement's rows as the server's text, past psycopg's own conversions."""
    result = source.execute(statement).pgresult
    assert result is not None  # noqa: S101 - a statement that has run has a result
    numbers = range(result.nfields)
    return [[result.get_value(row, number) for number in numbers] for row in range(result.ntuples)]
