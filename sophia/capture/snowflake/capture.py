"""The capture of a Snowflake source: each of its tables in turn, into the inbox.

Invariants:

* One capture a source writes: it takes the next epoch of `sophia.captures` at its start, and every transaction that
  takes documents checks it first.
* A position is stored in the transaction that takes its documents, and what Snowflake keeps for us is removed only
  after that transaction has committed.
* A table counts as captured when its copy and the sweep behind it are done. It is copied anew, under a new generation,
  when it was altered or made anew, when its stream is lost, when the method or the key in the catalog changes, and when
  the source is another account or database than before.
* A table at fault is reported as a dead letter of its collection and tried again; the others go on. A source of which
  no table was ever captured says its faults and ends.

Snowflake has no log to subscribe to: tables are looked at every `poll_seconds`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from threading import Event

import psycopg

from sophia import inbox, sql
from sophia.capture.snowflake.connection import Account, Session
from sophia.capture.snowflake.cursor import CursorCapture
from sophia.capture.snowflake.state import Connection, Positions, State
from sophia.capture.snowflake.streams import StreamCapture
from sophia.capture.snowflake.table import Binding, Table, inspect
from sophia.database.connect import Database
from sophia.documents import Clock
from sophia.errors import SourceError, TemporaryError
from sophia.failpoints import failpoint
from sophia.settings import CaptureSettings, SnowflakeSettings

logger = logging.getLogger("sophia.capture")
C = sql.load("capture")


@dataclass(frozen=True, slots=True)
class SnowflakeSource:
    """A Snowflake source: where it is, what to capture, and the schema for what is staged there."""

    name: str
    account: Account
    staging: str
    bindings: tuple[Binding, ...]


class _TableLoop:
    """One table of a running capture; looked at when it is due."""

    def __init__(
        self,
        capture: SnowflakeCapture,
        own: Connection,
        session: Session,
        epoch: int,
        binding: Binding,
        table: Table | None,
    ) -> None:
        self.due = 0.0
        self.binding = binding
        self._capture = capture
        self._own = own
        self._session = session
        self._epoch = epoch
        # Whether the table is as it was inspected last, as far as is known.
        self._known = table is not None
        if table is not None:
            self._adopt(table)

    def _adopt(self, table: Table) -> None:
        inbox.ensure_collection(self._own, self.binding.collection, table.key_fields)
        capture = self._capture
        self._table = table
        self._positions = Positions(self._own, capture.source.name, self._epoch, table)
        self._stream = StreamCapture(
            self._session, self._positions, table, capture.source.staging, capture.bulk_above, capture.batch
        )

    def look(self, stop: Event) -> None:
        """Look at the table, and copy it first where that is due. What was reported of it before is void afterwards.

        Raises:
            SourceError: the table is at fault; the next look begins with what it is by then.
        """
        if not self._known:
            self._adopt(inspect(self._session, self.binding))
        # A stream tells first whether there is anything to look for; a cursor's look is a statement anyway.
        self._known = False
        if self.binding.options.method == "cursor":
            state, capture = self._current(), self._capture
            reader = CursorCapture(self._session, self._positions, self._table, capture.bulk_above, capture.batch)
            reader.poll(state, stop)
        else:
            reason = self._stream.poll(self._current(), stop)
            if reason is not None:
                self._adopt(inspect(self._session, self.binding))
                self._stream.poll(self._anew(reason), stop)
            self._known = True
        self._resolve()

    def _resolve(self) -> None:
        state = self._positions.load()
        if state is not None:
            inbox.resolve_table(self._own, self.binding.collection, Clock(state.generation, 0, 0))

    def _current(self) -> State:
        """The state, of a new generation if that of the table as it is now was never begun."""
        state = self._positions.load()
        if state is None:
            return self._anew("it was never captured")
        if state.shape != self._table.shape:
            return self._anew("it was altered or made anew, or the catalog says otherwise")
        if state.stream is None and self.binding.options.method == "stream":
            return self._anew("its method was changed")
        return state

    def _anew(self, reason: str) -> State:
        logger.warning("capturing %s anew: %s", self._table.qualified, reason)
        former = self._positions.load()
        stream = self._stream.new_name() if self.binding.options.method == "stream" else None
        self._positions.begin(stream)
        failpoint("snowflake.generation_begun")
        if former is not None and former.stream is not None:
            self._stream.drop(former.stream)
        state = self._positions.load()
        assert state is not None  # noqa: S101 - just stored
        return state


class SnowflakeCapture:
    """Captures one source until told to stop.

    `run` raises ConfigurationError for what a person must mend, FencedError when another capture took over and
    TemporaryError when a server is away: the caller decides whether to call `run` again.
    """

    def __init__(
        self, source: SnowflakeSource, database: Database, settings: SnowflakeSettings, capture: CaptureSettings
    ) -> None:
        self.source = source
        self.bulk_above = capture.bulk_transaction
        self.batch = settings.batch_documents
        self.ready = Event()
        self._database = database
        self._settings = settings

    def run(self, stop: Event) -> None:
        """Set up, then look at the tables in turn until `stop` is set."""
        session = Session(self.source.name, self.source.account, self._settings)
        try:
            with closing(session), self._database.connect("sophia-snowflake") as own:
                loops = self._prepare(own, session)
                self.ready.set()
                while not stop.is_set():
                    self._round(own, loops, stop)
                    stop.wait(max(0.0, min(loop.due for loop in loops) - time.monotonic()))
        except psycopg.OperationalError as error:
            raise TemporaryError(
                f"capture of {self.source.name}: the database is away: {str(error).strip()}"
            ) from error

    def _prepare(self, own: Connection, session: Session) -> list[_TableLoop]:
        """Look at all tables, then take the epoch.

        Raises:
            SourceError: a table that was never captured is at fault, or all are.
        """
        tables: dict[Binding, Table] = {}
        faults: dict[Binding, str] = {}
        row = own.execute(C["state"], {"source": self.source.name}).fetchone()
        known = {name for name, *_ in own.execute(C["tables"], {"source": self.source.name})}
        for binding in self.source.bindings:
            try:
                tables[binding] = inspect(session, binding)
            except SourceError as error:
                faults[binding] = str(error)
        if not tables or any(binding.collection not in known for binding in faults):
            raise SourceError("\n".join(faults.values()))
        epoch = self._take_epoch(own, str(row[2]) if row else None)
        for binding, text in faults.items():
            _report(own, binding.collection, text)
        return [_TableLoop(self, own, session, epoch, each, tables.get(each)) for each in self.source.bindings]

    def _take_epoch(self, own: Connection, former: str | None) -> int:
        values = {"source": self.source.name, "slot": "", "publication": "", "system": self.source.account.identity}
        with own.transaction():
            row = own.execute(C["take_epoch"], values).fetchone()
            assert row is not None  # noqa: S101 - an upsert yields a row
            epoch = int(row[0])
            if former is not None and former != self.source.account.identity:
                logger.warning("capturing %s anew: it is another account or database than before", self.source.name)
                own.execute(C["begin_generation"], values | {"lsn": None})
                own.execute(C["forget_shapes"], {"source": self.source.name})
        return epoch

    def _round(self, own: Connection, loops: Sequence[_TableLoop], stop: Event) -> None:
        for loop in loops:
            if stop.is_set() or loop.due > time.monotonic():
                continue
            try:
                loop.look(stop)
            except SourceError as error:
                _report(own, loop.binding.collection, str(error))
            loop.due = time.monotonic() + loop.binding.options.poll_seconds


def _report(own: Connection, collection: str, reason: str) -> None:
    logger.error("%s", reason)
    inbox.park(own, collection, None, stage="capture", reason=reason)
