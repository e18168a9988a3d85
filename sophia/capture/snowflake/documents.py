"""Change documents of Snowflake rows, in the shape that Estuary's source-snowflake sends, and changes for the inbox.

    {"DATA": "F", "ID": 6, "_meta": {"op": "c", "source": {"schema": "PUBLIC", "table": "T", "seq": 2, "off": 0}}}

`snapshot: true` where `seq` is 0; no ts_ms, loc or txid, since Snowflake tells none; an update carries the whole row
before it, a delete the whole row. Names are in capitals, as Snowflake keeps what is not quoted.

Sophia's catalog, templates and filters name columns as the other sources do, in small letters. `small` is the one place
where a name changes: one that is all capitals becomes small, a quoted one of mixed case stays. So one template serves a
collection whose local source is PostgreSQL and whose cluster source is Snowflake.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sophia.capture.snowflake.connection import ResultColumn
from sophia.capture.snowflake.values import converter
from sophia.documents import Change, Clock, Key, Op, Origin, from_document, key_of
from sophia.errors import DocumentError
from sophia.inbox import WHOLE_ROW


@dataclass(frozen=True, slots=True)
class Place:
    """Where a document comes from: the table, and its row in what was staged (0 and up; seq 0 is a snapshot)."""

    schema: str
    table: str
    seq: int
    off: int


def small(name: str) -> str:
    """A column's name in Sophia."""
    return name.lower() if name == name.upper() else name


class Reader:
    """Makes JSON rows of a result's tuples."""

    def __init__(self, columns: Sequence[ResultColumn]) -> None:
        self._columns = [(column.name, converter(column)) for column in columns]

    def row(self, values: Sequence[Any]) -> dict[str, Any]:
        """A row by the names of Snowflake.

        Raises:
            DocumentError: a value cannot be kept.
        """
        row: dict[str, Any] = {}
        for (name, convert), value in zip(self._columns, values, strict=True):
            try:
                row[name] = None if value is None else convert(value)
            except DocumentError as error:
                raise DocumentError(f"column {name!r}: {error}") from None
        return row

    def key_row(self, values: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
        """Only these columns of a row that cannot be read whole."""
        return {
            name: None if value is None else convert(value)
            for (name, convert), value in zip(self._columns, values, strict=True)
            if name in names
        }


def document(
    op: Op, row: Mapping[str, Any], place: Place, before: Mapping[str, Any] | None = None, *, snapshot: bool = False
) -> dict[str, Any]:
    """The change document of a row."""
    source: dict[str, Any] = {"schema": place.schema, "table": place.table, "seq": place.seq, "off": place.off}
    if snapshot:
        source = {"schema": place.schema, "snapshot": True, "table": place.table, "seq": place.seq, "off": place.off}
    meta: dict[str, Any] = {"op": op, "source": source}
    if before is not None:
        meta["before"] = dict(before)
    # A column of this name would hide the document's own.
    columns = {name: value for name, value in row.items() if name != "_meta"}
    return dict(sorted(columns.items())) | {"_meta": meta}


def changes_of(
    found: Mapping[str, Any], key_fields: Sequence[str], upsert: Clock, delete: Clock, *, bulk: bool = False
) -> list[Change]:
    """What a document means for the inbox; a key that changed is a delete of the old one, at its own clock.

    Args:
        key_fields: in small letters.

    Raises:
        DocumentError: the row has no key.
    """
    meta = found["_meta"]
    row = {small(name): value for name, value in found.items() if name != "_meta"}
    op: Op = meta["op"]
    clock = delete if op == "d" else upsert
    change = from_document({**row, "_meta": {"op": op}}, key_fields, clock, complete=True, bulk=bulk)
    change = replace(change, snapshot=bool(meta["source"].get("snapshot")), origin=Origin())
    before = meta.get("before")
    if before is None:
        return [change]
    old = key_of({small(name): value for name, value in before.items()}, key_fields)
    if old == change.key:
        return [change]
    return [Change(old, "d", delete, None, bulk=bulk), change]


def unreadable(key: Key, clock: Clock) -> Change:
    """In place of a row that cannot be read: its key counts as incomplete until the row was read again."""
    return Change(key, "u", clock, {}, complete=False, missing=(WHOLE_ROW,))
