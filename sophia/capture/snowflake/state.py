"""How far a table was read, in Sophia's database, under the epoch of the capture that reads it.

Every change of it is in the transaction that takes the documents, and that transaction begins with `fence`: a capture
whose successor has started writes nothing any more.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg.rows import TupleRow

from sophia import inbox, sql
from sophia.capture.snowflake.table import Table
from sophia.documents import Clock, Key
from sophia.errors import FencedError

Connection = psycopg.Connection[TupleRow]
Q = sql.load("snowflake_state")
C = sql.load("capture")


@dataclass(frozen=True, slots=True)
class State:
    """How far a table was read.

    Attributes:
        complete: its first copy is done.
        rows: of that copy.
        last_key: JSON of the key columns of the last row that an unfinished copy brought.
        cursor_value: every row up to it was read (method cursor).
        stream: name of stream and staging table; `seq` and `off`: what of it was read (method stream).
    """

    complete: bool
    shape: str | None
    rows: int
    last_key: tuple[str, ...] | None
    generation: int
    cursor_value: str | None
    compared_at: datetime | None
    stream: str | None
    seq: int
    off: int


class Positions:
    """The state of one table."""

    def __init__(self, own: Connection, source: str, epoch: int, table: Table) -> None:
        self.own = own
        self.epoch = epoch
        self._source = source
        self._table = table
        self._names = {"source": source, "collection": table.collection}

    def load(self) -> State | None:
        """The state, or None of a table that was never captured."""
        row = self.own.execute(Q["state"], self._names).fetchone()
        if row is None:
            return None
        complete, shape, rows, last_key, generation, cursor_value, compared_at, stream, seq, off = row
        return State(
            complete,
            shape,
            rows,
            tuple(last_key) if last_key else None,
            generation,
            cursor_value,
            compared_at,
            stream,
            seq or 0,
            -1 if off is None else off,
        )

    def fence(self) -> None:
        """Begin a transaction's work: nobody else captures this source until it ends.

        Raises:
            FencedError: another capture of this source has started since.
        """
        values = {"source": self._source, "epoch": self.epoch, "lsn": None}
        if self.own.execute(C["confirm"], values).fetchone() is None:
            raise FencedError(f"another capture of {self._source!r} has taken over; this one stops")

    def begin(self, stream: str | None = None) -> int:
        """Begin a new generation: the table is copied, and what the copy does not bring is swept. Returns it."""
        with self.own.transaction():
            self.fence()
            row = self.own.execute(C["collection_generation"], {"name": self._table.collection}).fetchone()
            generation = (int(row[0]) if row else 0) + 1
            inbox.raise_floor(self.own, self._table.collection, Clock(generation, 0, 0))
            self.own.execute(
                C["begin_snapshot"],
                self._names | {"table": self._table.qualified, "oid": 0, "lsn": "0/0", "shape": self._table.shape},
            )
            self.own.execute(Q["begin"], self._names | {"stream": stream})
        return generation

    def copied(self, rows: int, last_key: Key | None = None) -> None:
        """In the caller's transaction: the copy has brought so many rows, the last of them with this key."""
        last = None if last_key is None else [json.dumps(part) for part in json.loads(last_key)]
        self.own.execute(C["snapshot_progress"], self._names | {"rows": rows, "last_key": last})

    def finish(self, rows: int) -> int:
        """Sweep what the copy did not bring; from now on the table counts as captured. Returns how many went."""
        with self.own.transaction():
            self.fence()
            swept = inbox.sweep(self.own, self._table.collection)
            row = self.own.execute(C["collection_generation"], {"name": self._table.collection}).fetchone()
            inbox.resolve_table(self.own, self._table.collection, Clock(int(row[0]) if row else 0, 0, 0))
            self.own.execute(C["end_snapshot"], self._names | {"rows": rows})
        return swept

    def cursor_read(self, value: str | None) -> None:
        """In the caller's transaction: every row up to this cursor is in the inbox."""
        self.own.execute(Q["cursor_read"], self._names | {"value": value})

    def staged_read(self, seq: int, off: int) -> None:
        """In the caller's transaction: every staged row up to this one is in the inbox."""
        self.own.execute(Q["staged_read"], self._names | {"seq": seq, "off": off})

    def compared(self) -> None:
        """All keys were compared just now."""
        self.own.execute(Q["compared"], self._names)

    def up_to_date(self, time: datetime) -> None:
        """Everything that the source had committed at this time is in the inbox."""
        self.own.execute(Q["up_to_date"], self._names | {"time": time})
