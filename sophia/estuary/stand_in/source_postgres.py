"""The stand-in's capture: a PostgreSQL database into the journal, as Estuary's source-postgres does it.

Invariants:

* A log position is acknowledged to the server only after the journal holds all documents up to it, on disk and in one
  transaction with that position. A capture that died goes on exactly there.
* Of each row come first the one of the backfill, then only later changes: what committed before the snapshot of a
  table's backfill was exported is not sent for that table, what committed behind it is sent after all of its rows.
* A backfill that died begins anew from a later snapshot. Changes since its first snapshot are sent, so that rows which
  it had brought already are not left behind.
* A backfill asked for later sends `c` documents for the rows that are there, and nothing for those that went meanwhile.
* TRUNCATE is ignored, a changed primary key is one `u` with `before`, an unchanged large column is left out.

Decoding and values are those of Sophia's own capture; clocks, transactions and backfills are Estuary's.
Source: estuary/connectors `source-postgres`.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import psycopg
from psycopg import sql as composed
from psycopg.rows import TupleRow

from sophia.capture import pgoutput
from sophia.capture import source as source_sql
from sophia.capture.assembler import Columns, row_document
from sophia.capture.replication import ReplicationConnection
from sophia.capture.snapshot import read_batches, read_rows, row_values
from sophia.capture.source import SourceTable
from sophia.capture.values import SESSION_OPTIONS
from sophia.database.connect import connect
from sophia.errors import TemporaryError
from sophia.estuary.source.tables import describe_table
from sophia.estuary.stamps import Producer
from sophia.estuary.stand_in.journal import Journal
from sophia.failpoints import failpoint

logger = logging.getLogger("sophia.estuary")
Connection = psycopg.Connection[TupleRow]
TASK = "source-postgres"
# Documents and bytes of one journal transaction, about.
BATCH_DOCUMENTS = 2_000
BATCH_BYTES = 8_000_000
STATUS_SECONDS = 1.0
# The key of a table that has none.
KEYLESS = ("/_meta/source/loc/0", "/_meta/source/loc/1", "/_meta/source/loc/2")


@dataclass(frozen=True, slots=True)
class Captured:
    """A table (`schema.name`) and the collection (full Estuary name) that it fills."""

    table: str
    collection: str


@dataclass(frozen=True, slots=True)
class PostgresEndpoint:
    """What the capture reads. A temporary slot goes with the capture's connection: nothing stays on the server."""

    url: str
    tables: tuple[Captured, ...]
    slot: str = "flow_slot"
    publication: str = "flow_publication"
    temporary: bool = False


def key_pointers(table: SourceTable) -> tuple[str, ...]:
    """The key of the collection that a table is discovered as, as JSON pointers."""
    escaped = (name.replace("~", "~0").replace("/", "~1") for name in table.key_fields)
    return tuple(f"/{name}" for name in escaped) or KEYLESS


def request_backfill(journal: Journal, collection: str) -> None:
    """Have the capture read a collection's table again when it starts next, as a bumped `backfill` counter does."""
    state = journal.checkpoint(TASK)
    if collection in state.get("tables", {}):
        state["tables"][collection] = {"pending": True, "since": None}
        journal.set_checkpoint(TASK, state)


class SourcePostgres:
    """Captures until told to stop.

    Args:
        now: seconds since 1970, for the UUIDs' clocks.

    Attributes:
        ready: set once all backfills are in the journal.
    """

    def __init__(
        self,
        endpoint: PostgresEndpoint,
        journal: Path,
        *,
        now: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._path = journal
        self._now = now
        # Only a test wants the same producer twice.
        self._rng = rng or random.SystemRandom()
        self.ready = Event()

    def run(self, stop: Event) -> None:
        """Set up, backfill what is pending, then stream.

        Raises:
            SourceError: a table or the server cannot be captured; the message says why.
            TemporaryError: the server went away. The next `run` goes on where this one was.
        """
        try:
            with Journal(self._path) as journal:
                _Task(self._endpoint, journal, Producer(self._now, self._rng, journal.last_clock())).run(
                    stop, self.ready
                )
        except psycopg.OperationalError as error:
            raise TemporaryError(f"the source is away: {str(error).strip()}") from error


class _Task:
    """One start of the capture."""

    def __init__(self, endpoint: PostgresEndpoint, journal: Journal, producer: Producer) -> None:
        self._endpoint = endpoint
        self._journal = journal
        self._producer = producer
        self._state: dict[str, Any] = journal.checkpoint(TASK) or {"lsn": 0, "tables": {}}
        self._tables: dict[int, tuple[SourceTable, str]] = {}
        self._columns: dict[int, Columns] = {}
        self._begin: pgoutput.Begin | None = None
        self._skipping = False
        self._last_end = 0
        self._open: list[tuple[str, dict[str, Any]]] = []
        self._ended: list[tuple[str, dict[str, Any]]] = []
        self._end_lsn: int | None = None
        # The first message of a transaction that comes after the backfills.
        self._held: tuple[bytes, int] | None = None

    def run(self, stop: Event, ready: Event) -> None:
        endpoint = self._endpoint
        with ReplicationConnection(endpoint.url, "estuary-stand-in", SESSION_OPTIONS) as stream:
            with connect(endpoint.url, "estuary-stand-in", options=SESSION_OPTIONS) as source:
                source_sql.inspect_server(source)
                for captured in endpoint.tables:
                    table = describe_table(source, captured.table)
                    self._tables[table.oid] = (table, captured.collection)
                    self._state["tables"].setdefault(captured.collection, {"pending": True, "since": None})
                tables = [table for table, _ in self._tables.values()]
                source_sql.ensure_publication(source, endpoint.publication, tables)
                slot = source_sql.inspect_slot(source, endpoint.slot)
            if slot is None:
                # Of what an older slot held nothing comes any more: every table is read again.
                self._state["lsn"], _ = stream.create_slot(endpoint.slot, temporary=endpoint.temporary)
                for progress in self._state["tables"].values():
                    progress.update(pending=True, since=None)
                self._journal.set_checkpoint(TASK, self._state)
            self._last_end = self._state["lsn"]
            stream.start(endpoint.slot, endpoint.publication, self._last_end)
            self._backfill(stream, stop)
            if not stop.is_set():
                ready.set()
            self._pump(stream, stop, until=None)

    # ---- stream ------------------------------------------------------------------------------------------

    def _pump(self, stream: ReplicationConnection, stop: Event, until: int | None) -> None:
        """Stream until stopped, or until all that committed before position `until` is in the journal."""
        next_status = 0.0
        if self._held is not None and until is None:
            held, self._held = self._held, None
            self._feed(*held)
        while not stop.is_set():
            message = stream.read()
            if message is not None:
                if until is not None and self._begins_behind(message.payload, until):
                    self._held = (message.payload, message.lsn)
                    self._flush(stream)
                    return
                self._feed(message.payload, message.lsn)
                if len(self._ended) >= BATCH_DOCUMENTS:
                    self._flush(stream)
                continue
            self._flush(stream)
            if until is not None and self._begin is None and stream.server_lsn >= until:
                return
            if time.monotonic() >= next_status or stream.reply_wanted:
                # Nothing is outstanding: what the server read up to here concerns none of the tables.
                idle = stream.server_lsn if self._begin is None and until is None else 0
                stream.confirm(max(self._state["lsn"], idle))
                next_status = time.monotonic() + STATUS_SECONDS
            stream.wait(0.2)

    @staticmethod
    def _begins_behind(payload: bytes, position: int) -> bool:
        message = pgoutput.decode(payload)
        return isinstance(message, pgoutput.Begin) and message.final_lsn >= position

    def _feed(self, payload: bytes, event_lsn: int) -> None:
        message = pgoutput.decode(payload)
        match message:
            case pgoutput.Begin():
                self._begin = message
                self._skipping = message.final_lsn < self._last_end
            case pgoutput.Commit():
                self._ended += self._open
                self._open = []
                self._end_lsn = message.end_lsn
                self._last_end = max(self._last_end, message.end_lsn)
                self._begin = None
            case pgoutput.Relation():
                self._columns[message.oid] = Columns.of(message)
            case pgoutput.Insert() | pgoutput.Update() | pgoutput.Delete():
                self._change(message, event_lsn)
            case pgoutput.Truncate():
                for oid in message.oids:
                    if oid in self._tables:
                        logger.warning("%s: TRUNCATE is ignored", self._tables[oid][0].qualified)

    def _change(self, message: pgoutput.Insert | pgoutput.Update | pgoutput.Delete, event_lsn: int) -> None:
        if message.oid not in self._tables or self._skipping:
            return
        table, collection = self._tables[message.oid]
        assert self._begin is not None  # noqa: S101 - changes come between Begin and Commit
        since = self._state["tables"][collection]["since"]
        if since is not None and self._begin.final_lsn < since:
            return
        document, _ = row_document(
            self._columns[message.oid], table.schema, table.name, message, self._begin, self._last_end, event_lsn
        )
        self._open.append((collection, document))

    def _flush(self, stream: ReplicationConnection) -> None:
        """Whole transactions into the journal; then, and only then, the acknowledgement."""
        if self._end_lsn is None:
            return
        self._state["lsn"] = max(self._state["lsn"], self._end_lsn)
        self._append(self._ended)
        self._ended, self._end_lsn = [], None
        failpoint("stand_in.journal.before_acknowledgement")
        stream.confirm(self._state["lsn"])

    def _append(self, documents: Sequence[tuple[str, dict[str, Any]]]) -> None:
        for _, document in documents:
            document["_meta"]["uuid"] = self._producer.stamp()
        self._journal.append(documents, TASK, self._state)

    # ---- backfill ----------------------------------------------------------------------------------------

    def _backfill(self, stream: ReplicationConnection, stop: Event) -> None:
        """Read the pending tables from one snapshot; the stream is taken up to that snapshot first."""
        progress = self._state["tables"]
        pending = [(table, name) for table, name in self._tables.values() if progress[name]["pending"]]
        if not pending:
            return
        url = self._endpoint.url
        with ReplicationConnection(url, "estuary-stand-in-backfill", SESSION_OPTIONS) as exporter:
            point, snapshot = exporter.create_slot(f"{self._endpoint.slot}_backfill", temporary=True)
            for _, name in pending:
                if progress[name]["since"] is None:
                    progress[name]["since"] = point
            self._journal.set_checkpoint(TASK, self._state)
            with connect(url, "estuary-stand-in-backfill", autocommit=False, options=SESSION_OPTIONS) as source:
                source.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                source.execute(composed.SQL("SET TRANSACTION SNAPSHOT {}").format(composed.Literal(snapshot)))
                self._pump(stream, stop, until=point)
                for table, name in pending:
                    if stop.is_set():
                        return
                    for batch in backfill_documents(source, table):
                        self._append([(name, document) for document in batch])
                        failpoint("stand_in.backfilled")
                        # A server that hears nothing for a minute ends the stream.
                        stream.confirm(self._state["lsn"])
                    # What is behind the snapshot is sent from now on, what lay before it was not.
                    progress[name] = {"pending": False, "since": point}
                    self._journal.set_checkpoint(TASK, self._state)
                source.rollback()


def backfill_documents(source: Connection, table: SourceTable) -> Iterator[list[dict[str, Any]]]:
    """A table's rows as source-postgres backfills them, without UUIDs, a batch at a time.

    The caller holds a transaction, whose snapshot it is.
    """
    described = source_sql.columns(source, table.oid)
    number = 0
    if table.key_fields:
        batches: Iterator[list[dict[str, Any]]] = (
            [row_values(described, row) for row in batch]
            for batch in read_batches(source, table, described, None, BATCH_DOCUMENTS, BATCH_BYTES)
        )
    else:
        batches = iter([read_rows(source, table.schema, table.name, described)])
    for rows in batches:
        documents = []
        for row in rows:
            where = {"schema": table.schema, "snapshot": True, "table": table.name, "loc": [-1, number, 0]}
            documents.append(dict(sorted((row | {"_meta": {"op": "c", "source": where}}).items())))
            number += 1
        yield documents
