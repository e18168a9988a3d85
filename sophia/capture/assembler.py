"""From replication messages to change documents: a state machine without sockets.

Invariant: a document's clock is (generation of its collection, commit LSN, ordinal in its transaction), the
ordinal starting at 1. So all documents of one transaction lie above the snapshot point that the transaction
follows, and below every later commit; a re-decoded transaction yields the same clocks.

Documents become available with `take()` once their transaction has committed, or earlier when a transaction is
too large to hold (`size` tells); the position to acknowledge moves only at commits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sophia.capture import pgoutput
from sophia.capture.values import converter
from sophia.documents import Change, Clock, Origin, capture_uuid, from_document
from sophia.errors import DocumentError, SourceError
from sophia.inbox import WHOLE_ROW, Floor


@dataclass(frozen=True, slots=True)
class CapturedTable:
    """A table of the source and the collection that it feeds. `shape` tells whether its columns have changed."""

    oid: int
    schema: str
    table: str
    collection: str
    key_fields: tuple[str, ...]
    generation: int
    shape: str = ""

    @property
    def qualified(self) -> str:
        """`schema.table`"""
        return f"{self.schema}.{self.table}"


@dataclass(frozen=True, slots=True)
class Parked:
    """A change that could not be read: its key, if that much was readable, and why."""

    collection: str
    key: str | None
    reason: str
    clock: Clock


@dataclass(slots=True)
class Taken:
    """Events by collection, in their order; `end_lsn` is to be acknowledged once they are durable, if not None."""

    events: dict[str, list[Change | Floor]] = field(default_factory=lambda: defaultdict(list))
    parked: list[Parked] = field(default_factory=list)
    end_lsn: int | None = None

    def __bool__(self) -> bool:
        return bool(self.events or self.parked or self.end_lsn)


@dataclass(frozen=True, slots=True)
class Columns:
    """A relation's columns: their names, and what reads their values."""

    names: tuple[str, ...]
    converters: tuple[Callable[[bytes], Any], ...]

    @classmethod
    def of(cls, relation: pgoutput.Relation) -> Columns:
        """The columns of a relation as the stream describes it."""
        return cls(
            tuple(column.name for column in relation.columns),
            tuple(converter(column.type_oid) for column in relation.columns),
        )


class Assembler:
    """Feeds on replication payloads, yields change documents.

    Args:
        tables: the captured tables by relation oid. Changes of other relations are dropped: an oid that is not
            here belongs to a table that was dropped and created anew.
        start_lsn: transactions that ended at or before this position are in the inbox already and are skipped.
        bulk_transaction: a transaction with more changes takes the bulk lane.
    """

    def __init__(self, tables: Mapping[int, CapturedTable], start_lsn: int, bulk_transaction: int) -> None:
        self._tables = tables
        self._columns: dict[int, Columns] = {}
        self._bulk_transaction = bulk_transaction
        self._begin: pgoutput.Begin | None = None
        self._skipping = False
        self._ordinal = 0
        self._last_end = start_lsn
        self._committed = Taken()
        self._open: list[tuple[str, Change | Floor]] = []
        self._open_parked: list[Parked] = []
        self.size = 0
        self.bytes = 0

    @property
    def committed(self) -> bool:
        """Whether a whole transaction waits to be taken."""
        return self._committed.end_lsn is not None

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction has begun and not ended yet."""
        return self._begin is not None

    def feed(self, payload: bytes, event_lsn: int) -> None:
        """Take one replication message.

        Raises:
            SourceError: a captured table lost a key column.
        """
        message = pgoutput.decode(payload)
        match message:
            case pgoutput.Begin():
                self._begin, self._ordinal = message, 0
                self._skipping = message.final_lsn < self._last_end
            case pgoutput.Commit():
                self._end_transaction(message)
            case pgoutput.Relation():
                self._relation(message)
            case pgoutput.Insert() | pgoutput.Update() | pgoutput.Delete():
                self._ordinal += 1
                table = self._tables.get(message.oid)
                if table is not None and not self._skipping:
                    self._change(table, message, event_lsn)
                    self.bytes += len(payload)
            case pgoutput.Truncate():
                self._ordinal += 1
                for oid in message.oids:
                    table = self._tables.get(oid)
                    if table is not None and not self._skipping:
                        self._add(table.collection, Floor(self._clock(table), self._origin(), self._bulk_transaction))
            case None:
                pass

    def take(self, *, whole: bool = True) -> Taken:
        """Everything of ended transactions; with `whole=False` also of the one that is under way."""
        taken, self._committed = self._committed, Taken()
        if not whole:
            # Too large to hold, so it is a bulk transaction whatever else it brings.
            self._move_open(taken, bulk=True)
        self.size = len(self._open)
        self.bytes = 0
        return taken

    def _end_transaction(self, commit: pgoutput.Commit) -> None:
        self._move_open(self._committed, bulk=self._ordinal > self._bulk_transaction)
        self._committed.end_lsn = commit.end_lsn
        self._last_end = max(self._last_end, commit.end_lsn)
        self._begin = None

    def _move_open(self, taken: Taken, *, bulk: bool) -> None:
        for collection, event in self._open:
            if bulk and isinstance(event, Change):
                event = replace(event, bulk=True)
            taken.events[collection].append(event)
        taken.parked.extend(self._open_parked)
        self._open, self._open_parked = [], []

    def _relation(self, message: pgoutput.Relation) -> None:
        table = self._tables.get(message.oid)
        if table is None:
            return
        names = tuple(column.name for column in message.columns)
        absent = [name for name in table.key_fields if name not in names]
        if absent:
            raise SourceError(
                f"{table.qualified}: key column {absent[0]!r} is gone; "
                "restore it, or change the collection's key in the catalog and capture the table anew"
            )
        self._columns[message.oid] = Columns.of(message)

    def _clock(self, table: CapturedTable) -> Clock:
        assert self._begin is not None  # noqa: S101 - changes come between Begin and Commit
        return Clock(table.generation, self._begin.final_lsn, self._ordinal)

    def _origin(self) -> Origin:
        assert self._begin is not None  # noqa: S101
        return Origin(self._begin.final_lsn, self._begin.xid, self._begin.committed_at)

    def _add(self, collection: str, event: Change | Floor) -> None:
        self._open.append((collection, event))
        self.size += 1

    def _change(
        self,
        table: CapturedTable,
        message: pgoutput.Insert | pgoutput.Update | pgoutput.Delete,
        event_lsn: int,
    ) -> None:
        try:
            document, complete, missing = self._document(table, message, event_lsn)
            begin = self._begin
            self._add(
                table.collection,
                from_document(
                    document,
                    table.key_fields,
                    self._clock(table),
                    complete=complete,
                    missing=missing,
                    committed_at=begin.committed_at if begin else None,
                ),
            )
        except DocumentError as error:
            self._park(table, message, str(error))

    def _document(
        self,
        table: CapturedTable,
        message: pgoutput.Insert | pgoutput.Update | pgoutput.Delete,
        event_lsn: int,
    ) -> tuple[dict[str, Any], bool, tuple[str, ...]]:
        """The document, whether it holds the whole row, and the columns that it lacks."""
        begin = self._begin
        assert begin is not None  # noqa: S101
        document, missing = row_document(
            self._columns[message.oid], table.schema, table.table, message, begin, self._last_end, event_lsn
        )
        document["_meta"]["uuid"] = capture_uuid(begin.final_lsn, self._ordinal)
        return document, not missing, missing

    def _park(
        self,
        table: CapturedTable,
        message: pgoutput.Insert | pgoutput.Update | pgoutput.Delete,
        reason: str,
    ) -> None:
        """Keep the reason, and mark the key, if it can be read, so that nothing passes for complete."""
        columns = self._columns[message.oid]
        values = message.old if isinstance(message, pgoutput.Delete) else message.new
        wanted = {name: i for i, name in enumerate(columns.names) if name in table.key_fields}
        key: str | None = None
        try:
            row = {
                name: columns.converters[i](value)
                for name, i in wanted.items()
                if isinstance(value := values[i], bytes)
            }
            meta = {"op": "u", "source": {"loc": [0, 0, self._clock(table).position]}}
            change = from_document(
                row | {"_meta": meta}, table.key_fields, self._clock(table), complete=False, missing=(WHOLE_ROW,)
            )
            key = change.key
            self._add(table.collection, change)
        except DocumentError:
            pass  # without a key there is nothing to mark; the dead letter says what is known
        self._open_parked.append(Parked(table.collection, key, reason, self._clock(table)))


def row_document(
    columns: Columns,
    schema: str,
    table: str,
    message: pgoutput.Insert | pgoutput.Update | pgoutput.Delete,
    begin: pgoutput.Begin,
    last_end: int,
    event_lsn: int,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A change as source-postgres writes it, without its UUID, and the columns that it leaves out.

    Args:
        last_end: end position of the commit before.

    Raises:
        DocumentError: a value cannot be read.
    """
    missing: tuple[str, ...] = ()
    before: dict[str, Any] | None = None
    if isinstance(message, pgoutput.Delete):
        row = _row(columns, message.old, only_key=message.old_kind == "K")
        op = "d"
    else:
        row = _row(columns, message.new)
        op = "c"
        if isinstance(message, pgoutput.Update):
            op = "u"
            if message.old is not None:
                before = _row(columns, message.old, only_key=message.old_kind == "K")
                # REPLICA IDENTITY FULL: the old row has what the new one left out.
                row = {name: before[name] for name in columns.names if name in before and name not in row} | row
            missing = tuple(name for name in columns.names if name not in row)
    meta: dict[str, Any] = {
        "op": op,
        "source": {
            "ts_ms": int(begin.committed_at.timestamp() * 1000),
            "schema": schema,
            "table": table,
            "loc": [last_end, event_lsn, begin.final_lsn],
            "txid": begin.xid,
        },
    }
    if before is not None:
        meta["before"] = before
    return dict(sorted((row | {"_meta": meta}).items())), missing


def _row(columns: Columns, values: pgoutput.Tuple, *, only_key: bool = False) -> dict[str, Any]:
    """Column values by name. Unchanged columns are absent; of a key-only tuple just its key columns are there."""
    row: dict[str, Any] = {}
    for i, value in enumerate(values):
        if isinstance(value, bytes):
            row[columns.names[i]] = columns.converters[i](value)
        elif value is None and not only_key:
            row[columns.names[i]] = None
    return row
