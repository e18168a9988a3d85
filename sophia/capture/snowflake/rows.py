"""Takes rows as they were just read into the inbox: the order of looks is the order of changes.

A cursor column says that a row changed, and not in which order: rows of one value, values that go backwards, clocks
that differ, rows edited by hand. What is certain is this: one process reads (its epoch is checked where it writes), one
statement after the other, and each statement sees one state of the table. So what a later statement saw is later.

Hence the clock of a row that differs from what is stored (`next_clock`):

* (generation, cursor value, 0) where that is above the stored clock: the usual case;
* else the stored clock with its ordinal one higher: another content at the same value, a value that went backwards, a
  deleted row that came back.

A row with the stored content has no effect, so that the same rows may be read any number of times. A row that is gone
becomes a delete at the stored clock with its ordinal one higher. Stored clocks are read under the collection's lock, in
the transaction that writes, so nothing comes in between.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from sophia import inbox, sql
from sophia.capture.snowflake.connection import Rows
from sophia.capture.snowflake.documents import Place, Reader, changes_of, document, small, unreadable
from sophia.capture.snowflake.state import Connection, Positions
from sophia.capture.snowflake.table import Table
from sophia.documents import Change, Clock, Key, key_of
from sophia.errors import DocumentError
from sophia.inbox import WHOLE_ROW, Locked

Q = sql.load("snowflake_state")
_HIGHEST = (1 << 63) - 1
as_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it was read: its document, or why it cannot be kept; `position` is its cursor as a clock's number."""

    key: Key
    position: int
    found: dict[str, Any] | None
    fault: str | None = None

    @property
    def body(self) -> str:
        """The content as the inbox keeps it, as JSON."""
        return as_json({small(name): value for name, value in (self.found or {}).items() if name != "_meta"})


def position_of(value: Any) -> int:
    """A cursor value as a clock's number: microseconds since 1970 of a time, a number itself, 0 for null."""
    number = 0
    match value:
        case datetime():
            moment = value.replace(tzinfo=UTC) if value.tzinfo is None else value
            # In whole numbers: a double has no microseconds left in far years.
            gone = moment - _EPOCH
            number = (gone.days * 86_400 + gone.seconds) * 1_000_000 + gone.microseconds
        case date():
            number = (value - _EPOCH.date()).days * 86_400_000_000
        case int() | float() | Decimal():
            # What is no number at all is as good as null.
            number = int(min(max(value, 0), _HIGHEST)) if value == value else 0
    return min(max(number, 0), _HIGHEST)


def next_clock(generation: int, position: int, stored: Clock | None) -> Clock:
    """The clock of a row that was just read and differs from what is stored."""
    fresh = Clock(generation, position, 0)
    if stored is None or stored < fresh:
        return fresh
    return Clock(stored.generation, stored.position, stored.ordinal + 1)


def read(table: Table, rows: Rows, batch: Sequence[Sequence[Any]]) -> tuple[list[Row], list[str]]:
    """The rows of a batch, and the faults of those that have no key."""
    reader = Reader(rows.columns)
    names = [column.name for column in rows.columns]
    cursor = names.index(table.cursor) if table.cursor in names else None
    found: list[Row] = []
    faults: list[str] = []
    for values in batch:
        position = position_of(values[cursor]) if cursor is not None else 0
        try:
            key = key_of(
                {small(name): value for name, value in reader.key_row(values, table.key_columns).items()},
                table.key_fields,
            )
        except DocumentError as error:
            faults.append(f"a row of {table.qualified}: {error}")
            continue
        try:
            row = reader.row(values)
        except DocumentError as error:
            found.append(Row(key, position, None, str(error)))
            continue
        found.append(Row(key, position, document("c", row, Place(table.schema, table.name, 0, 0))))
    return found, faults


@dataclass(frozen=True, slots=True)
class _Stored:
    clock: Clock
    deleted: bool
    missing: tuple[str, ...]
    same: bool


class Taker:
    """Writes rows that were read, and the deletes of those that are gone, as changes. Within the caller's transaction.

    Attributes:
        bulk_above: more changes than this in one batch take the bulk lane.
    """

    def __init__(self, positions: Positions, table: Table, generation: int, bulk_above: int) -> None:
        self._own: Connection = positions.own
        self._table = table
        self._generation = generation
        self._bulk_above = bulk_above

    @property
    def newest(self) -> Clock:
        """Above every clock of this generation."""
        return Clock(self._generation, _HIGHEST, _HIGHEST)

    def take(self, rows: Sequence[Row], faults: Sequence[str] = (), *, copy: bool = False) -> int:
        """Take rows, those of a first copy on the bulk lane. Returns how many differed from what is stored."""
        collection = self._table.collection
        locked = inbox.lock(self._own, [collection])[collection]
        # Of two rows with one key, which Snowflake does not keep out, the later one counts.
        latest = {row.key: row for row in rows}
        stored = self._stored(locked, list(latest.values()))
        changes: list[Change] = []
        parked: list[tuple[Key, str, Clock]] = []
        for row in latest.values():
            known = stored.get(row.key)
            clock = next_clock(self._generation, row.position, known.clock if known else None)
            current = known is not None and known.clock.generation >= self._generation
            if row.found is None:
                if known is not None and current and known.missing == (WHOLE_ROW,):
                    continue
                changes.append(unreadable(row.key, clock))
                parked.append((row.key, f"{self._table.qualified}: {row.fault}", clock))
            elif known is None or known.deleted or known.missing or not known.same or not current:
                op = "c" if known is None or known.deleted else "u"
                changes += changes_of(
                    row.found | {"_meta": row.found["_meta"] | {"op": op}}, self._table.key_fields, clock, clock
                )
        bulk = copy or len(changes) > self._bulk_above
        inbox.take(self._own, locked, [replace(change, bulk=bulk, snapshot=copy) for change in changes])
        for key, reason, clock in parked:
            inbox.park(self._own, collection, key, stage="capture", reason=reason, clock=clock)
        # Of this generation: the next copy makes them void.
        table_clock = Clock(self._generation, 0, 0)
        for fault in faults:
            inbox.park(self._own, collection, None, stage="capture", reason=fault, clock=table_clock)
        if len(latest) < len(rows):
            fault = (
                f"{self._table.qualified} has {len(rows) - len(latest)} rows whose key another row has; mend the key"
            )
            inbox.park(self._own, collection, None, stage="capture", reason=fault, clock=table_clock)
        return len(changes)

    def delete(self, keys: Sequence[Key]) -> int:
        """Delete what is stored of rows that the table does not have. Returns how many there were."""
        collection = self._table.collection
        locked = inbox.lock(self._own, [collection])[collection]
        stored = self._stored(locked, [Row(key, 0, None) for key in keys])
        changes = [
            Change(key, "d", next_clock(known.clock.generation, 0, known.clock), None)
            for key, known in stored.items()
            if not known.deleted
        ]
        bulk = len(changes) > self._bulk_above
        inbox.take(self._own, locked, [replace(change, bulk=bulk) for change in changes])
        return len(changes)

    def _stored(self, locked: Locked, rows: Sequence[Row]) -> dict[Key, _Stored]:
        values = {
            "collection_id": locked.id,
            "keys": [row.key for row in rows],
            "bodies": [row.body for row in rows],
        }
        return {
            Key(key): _Stored(Clock(*clock), deleted, tuple(missing), same)
            for key, clock, deleted, missing, same in self._own.execute(Q["observed"], values)
        }
