"""Capture by a cursor column: rows whose cursor rose, and now and then a comparison of all keys.

Invariants:

* The cursor moves in the transaction that took the rows, and never past Snowflake's own time: a row from the future, of
  a wrong clock or a typing error, does not hide those that follow. Such rows are read again with each look.
* Each look begins `look_back` behind the cursor, since a row bears the time of its statement and shows only with its
  commit. A row that commits later than that, one whose cursor went backwards or is null, and a deleted row are found by
  the comparison.
* The first copy goes in the order of the cursor and so goes on where it was cut off.

The order of changes is explained in `sophia.capture.snowflake.rows`, the comparison in
`sophia.capture.snowflake.comparison`.
"""

from __future__ import annotations

import logging
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from threading import Event
from typing import Any

from sophia import inbox, sql
from sophia.capture.reread import incomplete_keys
from sophia.capture.snowflake.comparison import compare, reread
from sophia.capture.snowflake.connection import Rows, Session, quoted
from sophia.capture.snowflake.rows import Taker, read
from sophia.capture.snowflake.state import Positions, State
from sophia.capture.snowflake.table import TIMESTAMPS, Table
from sophia.failpoints import failpoint

logger = logging.getLogger("sophia.capture")
Q = sql.load("snowflake")


def source_time(session: Session, about: str) -> datetime:
    """Snowflake's own time."""
    (row,) = session.rows(about, Q["now"])
    moment: datetime = row["now"]
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


class CursorCapture:
    """Reads one table by its cursor column."""

    def __init__(
        self, session: Session, positions: Positions, table: Table, bulk_above: int, batch: int | None = None
    ) -> None:
        assert table.cursor is not None  # noqa: S101 - `inspect` found it
        self._session = session
        self._positions = positions
        self._table = table
        self._cursor = table.cursor
        self._kind = table.types[table.cursor]
        self._bulk_above = bulk_above
        self._batch = batch

    def poll(self, state: State, stop: Event) -> None:
        """One look at the table: the first copy or what is left of it, else what changed, and a comparison if due."""
        about = f"table {self._table.qualified}"
        now = source_time(self._session, about)
        rows = self._open(about, state)
        taker = Taker(self._positions, self._table, state.generation, self._bulk_above)
        copied = state.rows
        for batch in rows:
            found, faults = read(self._table, rows, batch)
            copied += len(found)
            failpoint("snowflake.read")
            with self._positions.own.transaction():
                self._positions.fence()
                taker.take(found, faults, copy=not state.complete)
                self._positions.cursor_read(self._last(rows, batch, now))
                if not state.complete:
                    self._positions.copied(copied)
                failpoint("snowflake.cursor.before_commit")
            failpoint("snowflake.cursor.after_commit")
            if stop.is_set():
                return
        if not state.complete:
            swept = self._positions.finish(copied)
            logger.info("copied %s: %d rows, %d swept", self._table.qualified, copied, swept)
            if state.rows == 0:
                # All in one look: as good as a comparison.
                self._positions.compared()
        elif self._due(state):
            done = compare(self._session, self._positions, self._table, taker, stop)
            if done is None:
                return
            self._positions.compared()
            logger.info("compared %s: %d rows taken, %d deleted", self._table.qualified, done.taken, done.deleted)
        else:
            self._reread(taker)
        self._positions.up_to_date(now)

    def _reread(self, taker: Taker) -> None:
        """Read rows again whose documents lack columns, or that a person asks for."""
        own, table = self._positions.own, self._table
        inbox.resolve_outgrown(own, table.collection)
        if keys := incomplete_keys(own, table.collection):
            reread(self._session, self._positions, table, taker, keys)

    def _due(self, state: State) -> bool:
        hours = self._table.binding.options.compare_hours
        if not hours:
            return False
        return state.compared_at is None or datetime.now(UTC) - state.compared_at >= timedelta(hours=hours)

    def _open(self, about: str, state: State) -> Rows:
        names = self._table.names | {"cursor": quoted(self._cursor), "type": self._kind}
        if state.cursor_value is None:
            return self._session.query(about, Q["read_all"].format(**names), batch=self._batch)
        low = self.low(state.cursor_value) if state.complete else state.cursor_value
        return self._session.query(about, Q["read_since"].format(**names), {"low": low}, self._batch)

    def low(self, value: str) -> str:
        """Where a look begins: `look_back` behind the cursor."""
        back = self._table.binding.options.look_back
        if self._kind in TIMESTAMPS:
            return (datetime.fromisoformat(value) - timedelta(seconds=back)).isoformat(" ")
        if self._kind == "DATE":
            return (date.fromisoformat(value) - timedelta(days=-(-back // 86_400))).isoformat()
        return str(Decimal(value) - Decimal(str(back)))

    def _last(self, rows: Rows, batch: list[tuple[Any, ...]], now: datetime) -> str | None:
        """The cursor behind a batch as text, or None if none of its rows has one."""
        number = [column.name for column in rows.columns].index(self._cursor)
        value = next((row[number] for row in reversed(batch) if row[number] is not None), None)
        match value:
            case None:
                return None
            case datetime():
                limit = now if value.tzinfo is not None else now.astimezone(UTC).replace(tzinfo=None)
                return min(value, limit).isoformat(" ")
            case date():
                return min(value, now.astimezone(UTC).date()).isoformat()
            case _:
                return str(value)
