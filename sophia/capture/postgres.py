"""The capture process: a PostgreSQL source's log, by logical replication, into the inbox.

Invariants:

* A log position is acknowledged to the source only after the inbox transaction with all documents up to it has
  committed. That transaction also stores the position, so a restart resumes exactly there, and checks the epoch
  that this process took, so a process that woke up after its successor started writes nothing.
* A snapshot counts only when its table is marked complete. A slot whose first snapshot never completed is dropped
  and made anew.
* When nothing is outstanding, the server's keepalive positions are confirmed, so an idle table holds back no log.

A slot that is gone, lost, or ahead of what we stored, and a server with another identity or an earlier position,
begin a new generation: snapshot again, then sweep what it did not bring.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event

import psycopg
from psycopg.rows import TupleRow

from sophia import inbox, sql
from sophia.capture import source as source_sql
from sophia.capture.assembler import Assembler, CapturedTable, Taken
from sophia.capture.replication import ReplicationConnection
from sophia.capture.reread import incomplete_keys, reread
from sophia.capture.snapshot import Progress, copy_table
from sophia.capture.source import Server, SourceTable
from sophia.capture.values import SESSION_OPTIONS
from sophia.database.connect import Database, connect
from sophia.documents import Clock, format_lsn, parse_lsn
from sophia.errors import FencedError, SophiaError, SourceError, TemporaryError
from sophia.settings import CaptureSettings

logger = logging.getLogger("sophia.capture")
Connection = psycopg.Connection[TupleRow]
Q = sql.load("capture")


@dataclass(frozen=True, slots=True)
class Binding:
    """One table to capture into one collection. An empty key means the table's primary key."""

    table: str
    collection: str
    key: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CaptureSource:
    """A PostgreSQL source: where it is, what to capture, under which names on that server."""

    name: str
    url: str
    publication: str
    slot: str
    bindings: tuple[Binding, ...]


class Capture:
    """Captures one source until told to stop.

    `run` raises ConfigurationError for what a person must mend, FencedError when another capture took over and
    TemporaryError when a server is away: the caller decides whether to call `run` again.
    """

    def __init__(
        self,
        source: CaptureSource,
        database: Database,
        settings: CaptureSettings,
        progress: Progress | None = None,
    ) -> None:
        self._source = source
        self._database = database
        self._settings = settings
        self._progress = progress
        self._epoch = 0
        self._rereading = threading.Lock()
        self.ready = Event()

    def run(self, stop: Event) -> None:
        """Set up, copy what is not captured yet, then stream until `stop` is set."""
        try:
            while not stop.is_set():
                with self._database.connect("sophia-capture") as own:
                    start, tables = self._prepare(own, stop)
                    if stop.is_set():
                        return
                    self._stream(own, start, tables, stop)
        except psycopg.OperationalError as error:
            raise TemporaryError(f"capture of {self._source.name}: a database is away: {str(error).strip()}") from error

    # ---- set up and snapshot -----------------------------------------------------------------------------

    def _prepare(self, own: Connection, stop: Event) -> tuple[int, dict[int, CapturedTable]]:
        """Publication, slot and snapshots. Returns where to stream from and the captured tables by oid."""
        spec = self._source
        with connect(spec.url, "sophia-capture-setup", options=SESSION_OPTIONS) as source:
            server = source_sql.inspect_server(source)
            found = source_sql.inspect_tables(source, [(b.table, b.key) for b in spec.bindings])
            # What changed while a table was not published is in no stream: it is copied again, even if we die here.
            absent = {table.oid for table in source_sql.unpublished(source, spec.publication, found)}
            own.execute(
                Q["forget_collections"],
                {
                    "source": spec.name,
                    "names": [b.collection for b, t in zip(spec.bindings, found, strict=True) if t.oid in absent],
                },
            )
            source_sql.ensure_publication(source, spec.publication, found)
            for binding, table in zip(spec.bindings, found, strict=True):
                inbox.ensure_collection(own, binding.collection, table.key_fields)
            start = self._resume_position(own, source, server)
        row = own.execute(
            Q["take_epoch"],
            {
                "source": spec.name,
                "slot": spec.slot,
                "publication": spec.publication,
                "system": server.system_identifier,
            },
        ).fetchone()
        assert row is not None  # noqa: S101
        self._epoch = row[0]
        wanted = list(zip(spec.bindings, found, strict=True))
        if start is None:
            start = self._new_generation(own, server, wanted)
        else:
            state = {
                name: (oid, complete) for name, _, oid, _, complete in own.execute(Q["tables"], {"source": spec.name})
            }
            added = [(b, t) for b, t in wanted if state.get(b.collection) != (t.oid, True)]
            if added:
                self._snapshot(own, added, slot=f"{spec.slot}_{self._epoch}", temporary=True, generation=None)
        self.ready.set()
        return start, self._captured(own, wanted)

    def _resume_position(self, own: Connection, source: Connection, server: Server) -> int | None:
        """The position to stream from, or None when a new generation must begin."""
        spec = self._source
        slot = source_sql.inspect_slot(source, spec.slot)
        if slot is not None and slot.active_pid is not None and not self._wait_released(source):
            raise SourceError(
                f"slot {spec.slot!r} is in use by process {slot.active_pid} on the source: another capture is running; "
                "stop it, or give this project a slot of its own in the catalog's sources.yaml"
            )
        row = own.execute(Q["state"], {"source": spec.name}).fetchone()
        if slot is None:
            return None
        if row is None:
            raise SourceError(
                f"slot {spec.slot!r} exists on the source and is not ours; another project may need it. Give this one "
                "a slot of its own in sources.yaml, or drop it on the source: "
                f"SELECT pg_drop_replication_slot('{spec.slot}')"
            )
        _slot, _publication, system, confirmed, _epoch = row
        reason = None
        if system != server.system_identifier:
            reason = "the source is another server than before"
        elif confirmed is None:
            reason = "the first snapshot was never completed"
        elif server.lsn < parse_lsn(confirmed):
            reason = "the source's log is behind what was captured: it was restored"
        elif slot.wal_status == "lost":
            reason = "the server removed log that the slot still needed"
        elif slot.confirmed_lsn is not None and slot.confirmed_lsn > parse_lsn(confirmed):
            reason = "the slot was moved ahead of what was captured"
        elif not any(complete for *_, complete in own.execute(Q["tables"], {"source": spec.name})):
            reason = "the first snapshot was never completed"
        if reason is None:
            return parse_lsn(confirmed)
        logger.warning("capturing %s anew: %s", spec.name, reason)
        source.execute("SELECT pg_drop_replication_slot(%s)", [spec.slot])
        return None

    def _wait_released(self, source: Connection, seconds: float = 5.0) -> bool:
        """A capture that was just killed may leave its sender running for a moment."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            slot = source_sql.inspect_slot(source, self._source.slot)
            if slot is None or slot.active_pid is None:
                return True
            time.sleep(0.1)
        return False

    def _new_generation(self, own: Connection, server: Server, wanted: Sequence[tuple[Binding, SourceTable]]) -> int:
        row = own.execute(Q["generation"], {"names": [b.collection for b, _ in wanted]}).fetchone()
        generation = int(row[0]) + 1 if row else 1
        own.execute(Q["forget_tables"], {"source": self._source.name})
        return self._snapshot(
            own, wanted, slot=self._source.slot, temporary=False, generation=generation, system=server.system_identifier
        )

    def _snapshot(
        self,
        own: Connection,
        tables: Sequence[tuple[Binding, SourceTable]],
        *,
        slot: str,
        temporary: bool,
        generation: int | None,
        system: str | None = None,
    ) -> int:
        """Make a slot, copy the tables from its exported snapshot, return its consistent point."""
        with self._replication() as replication:
            if not temporary:
                with connect(self._source.url, "sophia-capture-setup") as source:
                    if source_sql.inspect_slot(source, slot) is not None:
                        source.execute("SELECT pg_drop_replication_slot(%s)", [slot])
            point, snapshot_name = replication.create_slot(slot, temporary=temporary)
            if system is not None:
                own.execute(
                    Q["begin_generation"], {"source": self._source.name, "system": system, "lsn": format_lsn(point)}
                )
            with connect(
                self._source.url, "sophia-capture-snapshot", autocommit=False, options=SESSION_OPTIONS
            ) as source:
                source.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                source.execute(f"SET TRANSACTION SNAPSHOT '{snapshot_name}'")
                for binding, table in tables:
                    of = generation if generation is not None else self._generation(own, binding.collection)
                    rows = copy_table(
                        source,
                        own,
                        source_name=self._source.name,
                        collection=binding.collection,
                        table=table,
                        clock=Clock(of, point, 0),
                        batch_documents=self._settings.batch_documents,
                        guard=lambda: self._confirm(own, None),
                        progress=self._progress,
                    )
                    logger.info("snapshot of %s: %d rows at %s", table.qualified, rows, format_lsn(point))
                source.rollback()
            return point

    @staticmethod
    def _generation(own: Connection, collection: str) -> int:
        row = own.execute(Q["collection_generation"], {"name": collection}).fetchone()
        return int(row[0]) if row else 1

    def _captured(self, own: Connection, wanted: Sequence[tuple[Binding, SourceTable]]) -> dict[int, CapturedTable]:
        return {
            table.oid: CapturedTable(
                table.oid,
                table.schema,
                table.name,
                binding.collection,
                table.key_fields,
                self._generation(own, binding.collection),
            )
            for binding, table in wanted
        }

    # ---- stream ------------------------------------------------------------------------------------------

    def _replication(self) -> ReplicationConnection:
        return ReplicationConnection(self._source.url, "sophia-capture", SESSION_OPTIONS)

    def _stream(self, own: Connection, start: int, tables: dict[int, CapturedTable], stop: Event) -> None:
        """Read, flush at commits whenever the socket is drained, until stopped or a table changed identity."""
        assembler = Assembler(tables, start, self._settings.bulk_transaction)
        with self._replication() as stream:
            stream.start(self._source.slot, self._source.publication, start)
            self._pump(own, stream, assembler, tables, start, stop)

    def _pump(
        self,
        own: Connection,
        stream: ReplicationConnection,
        assembler: Assembler,
        tables: dict[int, CapturedTable],
        confirmed: int,
        stop: Event,
    ) -> None:
        settings = self._settings
        next_status = next_check = 0.0
        while not stop.is_set():
            message = stream.read()
            if message is not None:
                assembler.feed(message.payload, message.lsn)
                if assembler.size >= settings.batch_documents or assembler.bytes >= settings.batch_bytes:
                    taken = assembler.take(whole=not assembler.in_transaction)
                    confirmed = self._flush(own, stream, taken, confirmed)
                continue
            if assembler.committed:
                confirmed = self._flush(own, stream, assembler.take(), confirmed)
                continue
            now = time.monotonic()
            if now >= next_status or stream.reply_wanted:
                if not assembler.in_transaction:
                    # Nothing is outstanding: what the server has read up to concerns none of our tables.
                    confirmed = max(confirmed, stream.server_lsn)
                # Stored first: a slot ahead of what we stored would mean that changes were lost.
                self._confirm(own, confirmed)
                stream.confirm(confirmed)
                next_status = now + settings.status_seconds
            if now >= next_check:
                if self._tables_changed(own, tables):
                    return
                self._reread_incomplete(own, tables)
                next_check = now + settings.catalog_check_seconds
            stream.wait(min(0.5, settings.status_seconds))

    def _flush(self, own: Connection, stream: ReplicationConnection, taken: Taken, confirmed: int) -> int:
        """One inbox transaction; then, and only then, the acknowledgement."""
        with own.transaction():
            for collection in sorted(taken.events):
                inbox.accept(own, collection, taken.events[collection])
            for parked in taken.parked:
                inbox.park(
                    own, parked.collection, parked.key, stage="capture", reason=parked.reason, clock=parked.clock
                )
            self._confirm(own, taken.end_lsn)
        if taken.end_lsn is not None and taken.end_lsn > confirmed:
            confirmed = taken.end_lsn
            stream.confirm(confirmed)
        return confirmed

    def _confirm(self, own: Connection, lsn: int | None) -> None:
        """Store the position under our epoch.

        Raises:
            FencedError: another capture of this source has started since.
        """
        cursor = own.execute(
            Q["confirm"],
            {"source": self._source.name, "epoch": self._epoch, "lsn": format_lsn(lsn) if lsn is not None else None},
            prepare=True,
        )
        if cursor.rowcount == 0:
            raise FencedError(f"another capture of {self._source.name!r} has taken over; this one stops")

    def _reread_incomplete(self, own: Connection, tables: dict[int, CapturedTable]) -> None:
        """Read rows again whose documents lack columns; aside, since making a slot waits for open transactions."""
        wanted = {table.collection: incomplete_keys(own, table.collection) for table in tables.values()}
        if not any(wanted.values()) or self._rereading.locked():
            return

        def work() -> None:
            with self._rereading:
                try:
                    with self._database.connect("sophia-capture-reread") as connection:
                        reread(self._source.url, connection, tables, f"{self._source.slot}_reread", wanted)
                except (SophiaError, psycopg.Error) as error:
                    logger.warning("rows could not be read again, trying later: %s", str(error).strip())

        threading.Thread(target=work, name="reread", daemon=True).start()

    def _tables_changed(self, own: Connection, tables: dict[int, CapturedTable]) -> bool:
        """Whether a table was dropped and created anew, or has left the publication: set up again.

        A table that is gone altogether is reported and does not stop the capture of the others.
        """
        with connect(self._source.url, "sophia-capture-setup") as source:
            found = []
            for table in tables.values():
                try:
                    found.append(source_sql.inspect_table(source, table.qualified, table.key_fields))
                except SourceError as error:
                    logger.error("%s", error)
                    inbox.park(own, table.collection, None, stage="capture", reason=str(error))
            changed = any(table.oid not in tables for table in found)
            return changed or bool(source_sql.unpublished(source, self._source.publication, found))
