"""Capture by a Snowflake stream: every change, deletes included, staged in Snowflake first.

A stream gives what changed since its offset, and moves the offset when a transaction that wrote from it commits. So the
changes are first written to a staging table, in one transaction with a number (`seq`) from a control table; then read
from there, in order; and deleted there after the inbox has committed them with the position (seq, off).

Invariants:

* Between the stream and the inbox a change is always in the staging table: death anywhere loses nothing. What is read
  again after a restart lies at or below the stored position, or has a clock that the inbox has seen.
* A capture that was succeeded stages nothing: the transaction first raises `seq` under its own epoch in the control
  table, and the successor has put a higher one there. Nor can it replace its successor's stream, since the names of
  stream and staging table have the epoch in them. So `seq` only rises, and what lies below the stored position is done.
* The clock of a change is (generation, seq, off + 1), of a delete (generation, seq, 0): a stream tells the net change
  of each row and no order between rows, so a key that one row gave up and another took must end as an upsert.
* The first copy is read AT the stream's offset, so that the stream joins on without a gap or an overlap; a row that
  came and went in between would else stay for ever. It bears (generation, 0, 0), goes in the order of the keys, and
  goes on where it was cut off, since the offset stays where it is until the first staging.
* A stream that was dropped, has gone stale, or whose table was altered or made anew: a new generation, a copy, a sweep.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from threading import Event
from typing import Any

from sophia import inbox, sql
from sophia.capture.reread import incomplete_keys
from sophia.capture.snowflake.comparison import reread
from sophia.capture.snowflake.connection import ResultColumn, Session, quoted
from sophia.capture.snowflake.cursor import source_time
from sophia.capture.snowflake.documents import Place, Reader, changes_of, document, small, unreadable
from sophia.capture.snowflake.rows import Taker
from sophia.capture.snowflake.state import Positions, State
from sophia.capture.snowflake.table import Table, inspect
from sophia.documents import Change, Clock, Key, Op, key_of
from sophia.errors import ConfigurationError, DocumentError, FencedError, SourceError, TemporaryError
from sophia.failpoints import failpoint

logger = logging.getLogger("sophia.capture")
Q = sql.load("snowflake")
CONTROL = "SOPHIA_CONTROL"
# Columns of a staging table before those of the table itself.
STAGED = 5


@dataclass(frozen=True, slots=True)
class Staged:
    """A staged change, an update's two rows taken together; `before` and `values` are the table's columns."""

    seq: int
    off: int
    op: Op
    values: tuple[Any, ...]
    before: tuple[Any, ...] | None = None


def paired(rows: Iterator[Sequence[Any]]) -> Iterator[Staged]:
    """Staged rows, in their order, as changes: DELETE and INSERT of one updated row are one `u`.

    Rows are (seq, off, action, isupdate, row id, columns…). The halves of an update stand next to each other; one that
    has lost its other half counts for itself.
    """
    held: Sequence[Any] | None = None
    for row in rows:
        seq, off, action, is_update, row_id, *values = row
        if held is not None:
            if action == "INSERT" and is_update and (held[0], held[4]) == (seq, row_id):
                yield Staged(int(seq), int(off), "u", tuple(values), tuple(held[STAGED:]))
                held = None
                continue
            yield Staged(int(held[0]), int(held[1]), "d", tuple(held[STAGED:]))
            held = None
        if action == "DELETE" and is_update:
            held = row
        else:
            op: Op = "d" if action == "DELETE" else ("u" if is_update else "c")
            yield Staged(int(seq), int(off), op, tuple(values))
    if held is not None:
        yield Staged(int(held[0]), int(held[1]), "d", tuple(held[STAGED:]))


def batched(items: Iterator[Staged], size: int) -> Iterator[list[Staged]]:
    """Lists of at most `size`."""
    while batch := list(islice(items, size)):
        yield batch


class StreamCapture:
    """Reads one table by a stream of its own."""

    def __init__(
        self, session: Session, positions: Positions, table: Table, staging: str, bulk_above: int, batch: int
    ) -> None:
        self._session = session
        self._positions = positions
        self._table = table
        self._staging = staging.upper()
        self._bulk_above = bulk_above
        self._batch = batch
        self._about = f"table {table.qualified}"
        self._taken_over: str | None = None
        self._drained = False

    # ---- what it has in Snowflake --------------------------------------------------------------------------

    def new_name(self) -> str:
        """A name for stream and staging table that no other capture uses, and no earlier generation."""
        row = self._positions.load()
        number = (row.generation if row else 0) + 1
        return f"SOPHIA_{self._table.collection.upper()}_{number}_{self._positions.epoch}"

    def drop(self, name: str) -> None:
        """Remove a stream that is not read any more; what cannot be removed is left, and said."""
        names = self._names(name)
        try:
            for statement in ("drop_stream", "drop_staging"):
                self._session.execute(self._about, Q[statement].format(**names))
            self._session.execute(self._about, Q["drop_control"].format(**names), {"name": name})
        except (ConfigurationError, TemporaryError) as error:
            logger.warning("stream %s is of no use any more and could not be dropped: %s", name, error)

    def fault(self, name: str) -> str | None:
        """Why a stream cannot be read any more, or None."""
        shown = self._session.rows(
            self._about, Q["show_stream"].format(name=name, schema=quoted(self._session.database, self._staging))
        )
        found = [row for row in shown if row["name"] == name]
        if not found:
            return f"stream {name} is gone"
        if str(found[0].get("stale", "")).lower() in ("true", "y"):
            return f"stream {name} has gone stale: it was not read for longer than its table keeps changes"
        return None

    def _names(self, name: str) -> dict[str, str]:
        return self._table.names | {
            "control": quoted(self._session.database, self._staging, CONTROL),
            "schema": quoted(self._session.database, self._staging),
            "stream": quoted(self._session.database, self._staging, name),
            "staging": quoted(self._session.database, self._staging, f"{name}_STAGED"),
        }

    def _make(self, name: str) -> None:
        """Stream, staging table and control row, as far as they are not there."""
        names, about = self._names(name), f"schema {self._staging}"
        try:
            self._session.execute(about, Q["create_control"].format(**names))
        except SourceError:
            self._session.execute(about, Q["create_schema"].format(**names))
            self._session.execute(about, Q["create_control"].format(**names))
        self._session.execute(about, Q["add_control"].format(**names), {"name": name, "epoch": self._positions.epoch})
        self._session.execute(self._about, Q["create_staging"].format(**names))
        try:
            self._session.execute(self._about, Q["create_stream"].format(**names))
        except SourceError as error:
            raise SourceError(
                f"{error}\nA stream needs GRANT CREATE STREAM ON SCHEMA {self._staging}, and its table "
                f"ALTER TABLE {self._table.qualified} SET CHANGE_TRACKING = TRUE by the owner"
            ) from None

    def _take_over(self, name: str) -> bool:
        """Put our epoch into the control table, once. False if the stream's row is not there."""
        if self._taken_over == name:
            return True
        values = {"name": name, "epoch": self._positions.epoch}
        if self._session.execute(self._about, Q["take_control"].format(**self._names(name)), values) == 0:
            return False
        self._taken_over = name
        return True

    # ---- reading -------------------------------------------------------------------------------------------

    def poll(self, state: State, stop: Event) -> str | None:
        """One look: the first copy or what is left of it; else what is staged, then what the stream has.

        Returns why the table must be copied anew, or None.
        """
        assert state.stream is not None  # noqa: S101 - `begin` named it
        name = state.stream
        if not state.complete and state.last_key is None:
            self._make(name)
        if fault := self.fault(name):
            return fault
        if not self._take_over(name):
            return f"the control table has no row of stream {name} that is ours"
        if not state.complete and not self._copy(name, state, stop):
            return None
        if not self._drained:
            self._drain(name, stop)
        if not self._drained:
            return None
        self._reread(name, state.generation)
        now = source_time(self._session, self._about)
        if self._has_data(name) and not stop.is_set():
            if inspect(self._session, self._table.binding).shape != self._table.shape:
                return f"{self._table.qualified} was altered or made anew"
            self._drained = False
            self._stage(name)
            failpoint("snowflake.staged")
            self._drain(name, stop)
        if not stop.is_set():
            self._positions.up_to_date(now)
        return None

    def _has_data(self, name: str) -> bool:
        (row,) = self._session.rows(self._about, Q["has_data"].format(**self._names(name)))
        return str(row["has_data"]).lower() == "true"

    def _stage(self, name: str) -> None:
        """Move what the stream has to the staging table.

        Raises:
            FencedError: another capture of this source has taken over.
        """
        names, values = self._names(name), {"name": name}
        with self._session.transaction(self._about):
            mine = values | {"epoch": self._positions.epoch}
            if self._session.execute(self._about, Q["next_seq"].format(**names), mine) != 1:
                raise FencedError(f"another capture has taken over stream {name}; this one stops")
            self._session.execute(self._about, Q["stage"].format(**names), values)

    def _copy(self, name: str, state: State, stop: Event) -> bool:
        """Copy the table as it was at the stream's offset. False if it was broken off, since `stop` was set."""
        where, values = self._table.where_after(state.last_key) if state.last_key else ("", {})
        rows = self._session.query(
            self._about, Q["snapshot"].format(**self._names(name), where=where), values, self._batch
        )
        copied = state.rows
        for batch in rows:
            staged = [Staged(0, copied + number, "c", tuple(values)) for number, values in enumerate(batch)]
            self._take(rows.columns, staged, state.generation, copied=copied + len(batch))
            copied += len(batch)
            failpoint("snowflake.snapshot.after_commit")
            if stop.is_set():
                return False
        swept = self._positions.finish(copied)
        failpoint("snowflake.snapshot_done.after_commit")
        logger.info("copied %s: %d rows, %d swept", self._table.qualified, copied, swept)
        return True

    def _drain(self, name: str, stop: Event) -> None:
        """Take what is staged behind the stored position, then delete it there."""
        state = self._positions.load()
        assert state is not None  # noqa: S101 - `begin` stored it
        names = self._names(name)
        rows = self._session.query(
            self._about, Q["staged"].format(**names), {"seq": state.seq, "off": state.off}, self._batch
        )
        seq = state.seq
        for batch in batched(paired(row for part in rows for row in part), self._batch):
            self._take(rows.columns[STAGED:], batch, state.generation)
            seq = batch[-1].seq
            failpoint("snowflake.after_commit")
            if stop.is_set():
                return
        if seq:
            self._session.execute(self._about, Q["clear"].format(**names), {"seq": seq})
            failpoint("snowflake.cleared")
        self._drained = True

    def _take(
        self, columns: Sequence[ResultColumn], staged: Sequence[Staged], generation: int, copied: int | None = None
    ) -> None:
        """One inbox transaction with the position; `copied` rows of a first copy, or else of the staging table."""
        reader, table = Reader(columns), self._table
        changes: list[Change] = []
        parked: list[tuple[Key | None, str, Clock]] = []
        last_key: Key | None = None
        for item in staged:
            upsert = Clock(generation, item.seq, 0 if copied is not None else item.off + 1)
            delete = Clock(generation, item.seq, 0)
            try:
                key = self._key(reader, item.values)
            except DocumentError as error:
                parked.append((None, f"a row of {table.qualified}: {error}", Clock(generation, 0, 0)))
                continue
            last_key = key
            try:
                row = self._gone(reader, item.values) if item.op == "d" else reader.row(item.values)
                before = None if item.before is None else self._gone(reader, item.before)
                place = Place(table.schema, table.name, item.seq, item.off)
                found = document(item.op, row, place, before, snapshot=copied is not None)
                changes += changes_of(found, table.key_fields, upsert, delete)
            except DocumentError as error:
                if item.before is not None and (old := self._key(reader, item.before)) != key:
                    changes.append(Change(old, "d", delete, None))
                changes.append(unreadable(key, upsert))
                parked.append((key, f"{table.qualified}: {error}", upsert))
        bulk = copied is not None or len(changes) > self._bulk_above
        own = self._positions.own
        with own.transaction():
            self._positions.fence()
            inbox.accept(own, table.collection, [replace(change, bulk=bulk) for change in changes])
            for parked_key, reason, clock in parked:
                inbox.park(own, table.collection, parked_key, stage="capture", reason=reason, clock=clock)
            if copied is None:
                self._positions.staged_read(staged[-1].seq, staged[-1].off)
            else:
                self._positions.copied(copied, last_key)
            failpoint("snowflake.before_commit")

    def _gone(self, reader: Reader, values: Sequence[Any]) -> dict[str, Any]:
        """A row that is not there any more; if it cannot be read, its key will do."""
        try:
            return reader.row(values)
        except DocumentError:
            return reader.key_row(values, self._table.key_columns)

    def _key(self, reader: Reader, values: Sequence[Any]) -> Key:
        row = reader.key_row(values, self._table.key_columns)
        return key_of({small(name): value for name, value in row.items()}, self._table.key_fields)

    def _reread(self, name: str, generation: int) -> None:
        """Read rows whose documents lack columns, or that a person asks for, as they were at the stream's offset."""
        own, table = self._positions.own, self._table
        inbox.resolve_outgrown(own, table.collection)
        keys = incomplete_keys(own, table.collection)
        if not keys:
            return
        at = f" AT(STREAM => '{self._names(name)['stream']}')"
        reread(
            self._session, self._positions, table, Taker(self._positions, table, generation, self._bulk_above), keys, at
        )
