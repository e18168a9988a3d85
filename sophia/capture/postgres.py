"""The capture process: a PostgreSQL source's log, by logical replication, into the inbox.

Invariants:

* A log position is acknowledged to the source only after the inbox transaction with all documents up to it has
  committed. That transaction also stores the position, so a restart resumes exactly there, and checks the epoch
  that this process took, so a process that woke up after its successor started writes nothing. It takes its locks in
  one order: the capture's row, then the collections by name.
* A snapshot counts only when its table is marked complete. One that was cut off goes on where it was, under the slot
  that kept the log since it began; see `sophia.capture.snapshot`. A slot whose position was never stored is dropped.
* When nothing is outstanding, the server's keepalive positions are confirmed, so an idle table holds back no log.

A slot that is gone, lost, or ahead of what we stored, and a server with another identity or an earlier position,
begin a new generation: snapshot again, then sweep what it did not bring. The generation, its floors and the slot's
position are stored in one transaction right after the slot was made, so this too goes on where it was cut off.

A captured table that does not exist any more is reported, and the others go on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Event

import psycopg
from psycopg import sql as composed
from psycopg.rows import TupleRow

from sophia import inbox, sql
from sophia.capture import source as source_sql
from sophia.capture.assembler import Assembler, CapturedTable, Taken
from sophia.capture.replication import ReplicationConnection
from sophia.capture.reread import incomplete_keys, reread
from sophia.capture.snapshot import Progress, begin_copy, copy_table
from sophia.capture.source import Server, SourceTable
from sophia.capture.values import SESSION_OPTIONS
from sophia.database.connect import Database, connect, pipelined_transaction
from sophia.documents import Clock, format_lsn, parse_lsn
from sophia.errors import FencedError, SophiaError, SourceError, TemporaryError
from sophia.failpoints import failpoint
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


@dataclass(frozen=True, slots=True)
class _Copy:
    """A table to copy; `after` and `rows` say how far an earlier copy came."""

    binding: Binding
    table: SourceTable
    clock: Clock
    after: tuple[str, ...] | None = None
    rows: int = 0


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
                    start, tables = self._prepare(own)
                    if stop.is_set():
                        return
                    self._stream(own, start, tables, stop)
        except psycopg.OperationalError as error:
            raise TemporaryError(f"capture of {self._source.name}: a database is away: {str(error).strip()}") from error
        except psycopg.errors.DuplicateObject as error:
            # Between a look for a slot or a publication and the making of it.
            raise TemporaryError(
                f"capture of {self._source.name}: another process was faster: {str(error).strip()}"
            ) from error
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
            # Between a look at a table and its copy.
            raise TemporaryError(
                f"capture of {self._source.name}: a table was altered meanwhile: {str(error).strip()}"
            ) from error

    # ---- set up and snapshot -----------------------------------------------------------------------------

    def _prepare(self, own: Connection) -> tuple[int, dict[int, CapturedTable]]:
        """Publication, slot and snapshots. Returns where to stream from and the captured tables by oid."""
        spec = self._source
        with connect(spec.url, "sophia-capture-setup", options=SESSION_OPTIONS) as source:
            server = source_sql.inspect_server(source)
            wanted = self._inspect_tables(own, source)
            tables = [table for _, table in wanted]
            # What changed while a table was not (wholly) published is in no stream: it is copied again from the
            # start, even if we die here.
            absent = source_sql.unpublished(source, spec.publication, tables)
            absent += source_sql.restricted(source, spec.publication, tables)
            names = [binding.collection for binding, table in wanted if table in absent]
            own.execute(Q["forget_collections"], {"source": spec.name, "names": names})
            source_sql.ensure_publication(source, spec.publication, tables)
            for binding, table in wanted:
                inbox.ensure_collection(own, binding.collection, table.key_fields)
            shapes = {table.oid: source_sql.table_shape(source, table) for table in tables}
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
        if start is None:
            start = self._new_generation(own, server, wanted, shapes)
        else:
            self._go_on(own, wanted, shapes)
        self.ready.set()
        return start, self._captured(own, wanted, shapes)

    def _inspect_tables(self, own: Connection, source: Connection) -> list[tuple[Binding, SourceTable]]:
        """The tables to capture. One that was captured before and is gone now is reported and left out.

        Raises:
            SourceError: a table is at fault, or none is left.
        """
        bindings = self._source.bindings
        captured = {row[0] for row in own.execute(Q["tables"], {"source": self._source.name})}
        wanted, faults = [], []
        for binding, found in zip(
            bindings, source_sql.inspect_tables(source, [(b.table, b.key) for b in bindings]), strict=True
        ):
            if isinstance(found, SourceTable):
                wanted.append((binding, found))
            elif binding.collection in captured:
                self._report_gone(own, binding.collection, found)
            else:
                faults.append(found)
        if faults:
            raise SourceError("\n".join(faults))
        return wanted

    @staticmethod
    def _report_gone(own: Connection, collection: str, reason: str) -> None:
        logger.error("%s", reason)
        inbox.park(own, collection, None, stage="capture", reason=reason)

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
            reason = "it never got as far as a snapshot"
        elif server.lsn < parse_lsn(confirmed):
            reason = "the source's log is behind what was captured: it was restored"
        elif slot.wal_status == "lost":
            reason = "the server removed log that the slot still needed"
        elif slot.confirmed_lsn is not None and slot.confirmed_lsn > parse_lsn(confirmed):
            reason = "the slot was moved ahead of what was captured"
        if reason is None:
            return parse_lsn(confirmed)
        logger.warning("capturing %s anew: %s", spec.name, reason)
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

    def _new_generation(
        self,
        own: Connection,
        server: Server,
        wanted: Sequence[tuple[Binding, SourceTable]],
        shapes: Mapping[int, str],
    ) -> int:
        """Make the slot and copy every table under a new generation. Returns the slot's consistent point."""
        spec = self._source
        row = own.execute(Q["generation"], {"names": [binding.collection for binding, _ in wanted]}).fetchone()
        generation = int(row[0]) + 1 if row else 1
        row = own.execute(Q["abandon"], {"source": spec.name, "epoch": self._epoch}).fetchone()
        self._fenced(row is not None and row[0] == 1)
        with self._replication() as replication:
            with connect(spec.url, "sophia-capture-setup") as source:
                if source_sql.inspect_slot(source, spec.slot) is not None:
                    source.execute("SELECT pg_drop_replication_slot(%s)", [spec.slot])
            point, snapshot = replication.create_slot(spec.slot, temporary=False)
            failpoint("capture.slot_created")
            clock = Clock(generation, point, 0)
            with own.transaction():
                self._confirm(own, None)
                own.execute(
                    Q["begin_generation"],
                    {"source": spec.name, "system": server.system_identifier, "lsn": format_lsn(point)},
                )
                # In the order of their names, as every transaction locks its collections.
                for binding, table in sorted(wanted, key=lambda pair: pair[0].collection):
                    self._begin_copy(own, binding, table, shapes[table.oid], clock)
            failpoint("capture.generation_begun")
            self._copy(own, snapshot, [_Copy(binding, table, clock) for binding, table in wanted])
        return point

    def _go_on(self, own: Connection, wanted: Sequence[tuple[Binding, SourceTable]], shapes: Mapping[int, str]) -> None:
        """Copy the tables that were added, altered or made anew, and what is left of those that were cut off."""
        recorded = {
            name: (oid, shape, complete, last_key, rows)
            for name, _, oid, complete, last_key, shape, rows in own.execute(Q["tables"], {"source": self._source.name})
        }
        todo = [(b, t) for b, t in wanted if recorded.get(b.collection, ())[:3] != (t.oid, shapes[t.oid], True)]
        if not todo:
            return
        # A table that was away when a generation began joins it now: positions of an older one may be higher.
        row = own.execute(Q["generation"], {"names": [binding.collection for binding, _ in wanted]}).fetchone()
        newest = int(row[0]) if row else 1
        with self._replication() as replication:
            point, snapshot = replication.create_slot(f"{self._source.slot}_{self._epoch}", temporary=True)
            copies = []
            for binding, table in todo:
                oid, shape, _, last_key, rows = recorded.get(binding.collection, (None, None, False, None, 0))
                if last_key is not None and (oid, shape) == (table.oid, shapes[table.oid]):
                    clock = Clock(self._generation(own, binding.collection), point, 0)
                    copies.append(_Copy(binding, table, clock, tuple(last_key), rows))
                    continue
                clock = Clock(newest, point, 0)
                with own.transaction():
                    self._confirm(own, None)
                    self._begin_copy(own, binding, table, shapes[table.oid], clock)
                copies.append(_Copy(binding, table, clock))
            self._copy(own, snapshot, copies)

    def _begin_copy(self, own: Connection, binding: Binding, table: SourceTable, shape: str, clock: Clock) -> None:
        begin_copy(
            own,
            source_name=self._source.name,
            collection=binding.collection,
            table=table,
            shape=shape,
            clock=clock,
        )

    def _copy(self, own: Connection, snapshot: str, copies: Sequence[_Copy]) -> None:
        """Copy tables from an exported snapshot."""
        with connect(self._source.url, "sophia-capture-snapshot", autocommit=False, options=SESSION_OPTIONS) as source:
            source.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            try:
                source.execute(composed.SQL("SET TRANSACTION SNAPSHOT {}").format(composed.Literal(snapshot)))
            except (psycopg.DataError, psycopg.errors.UndefinedObject) as error:
                raise TemporaryError(
                    "the snapshot went with the connection that exported it; starting again"
                ) from error
            for copy in copies:
                rows = copy_table(
                    source,
                    own,
                    source_name=self._source.name,
                    collection=copy.binding.collection,
                    table=copy.table,
                    clock=copy.clock,
                    batch_documents=self._settings.batch_documents,
                    batch_bytes=self._settings.batch_bytes,
                    guard=lambda: self._confirm(own, None),
                    after=copy.after,
                    rows=copy.rows,
                    progress=self._progress,
                )
                logger.info("snapshot of %s: %d rows at %s", copy.table.qualified, rows, format_lsn(copy.clock[1]))
            source.rollback()

    @staticmethod
    def _generation(own: Connection, collection: str) -> int:
        row = own.execute(Q["collection_generation"], {"name": collection}).fetchone()
        return int(row[0]) if row else 1

    def _captured(
        self, own: Connection, wanted: Sequence[tuple[Binding, SourceTable]], shapes: Mapping[int, str]
    ) -> dict[int, CapturedTable]:
        return {
            table.oid: CapturedTable(
                table.oid,
                table.schema,
                table.name,
                binding.collection,
                table.key_fields,
                self._generation(own, binding.collection),
                shapes[table.oid],
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
            self._check_slot(start)
            self._pump(own, stream, assembler, tables, start, stop)

    def _check_slot(self, start: int) -> None:
        """Now that the slot is ours alone: that nobody replaced or moved it since we looked.

        Raises:
            TemporaryError: it would not send all since `start`.
        """
        with connect(self._source.url, "sophia-capture-setup") as source:
            slot = source_sql.inspect_slot(source, self._source.slot)
        if slot is None or (slot.confirmed_lsn is not None and slot.confirmed_lsn > start):
            raise TemporaryError(f"slot {self._source.slot!r} was moved ahead of {format_lsn(start)}; starting again")

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
                if self._forgotten(own, tables) or self._tables_changed(own, tables):
                    return
                self._reread_incomplete(own, tables)
                next_check = now + settings.catalog_check_seconds
            stream.wait(min(0.5, settings.status_seconds))

    def _flush(self, own: Connection, stream: ReplicationConnection, taken: Taken, confirmed: int) -> int:
        """One inbox transaction; then, and only then, the acknowledgement.

        It waits for the database twice: for its locks, and for all the rest with the commit.
        """
        with pipelined_transaction(own):
            fence = self._send_confirm(own, taken.end_lsn)
            locked = inbox.lock(own, list(taken.events))
            self._fenced(fence.fetchone() is not None)
            for name, events in taken.events.items():
                inbox.take(own, locked[name], events)
            for parked in taken.parked:
                inbox.park(
                    own, parked.collection, parked.key, stage="capture", reason=parked.reason, clock=parked.clock
                )
            failpoint("capture.flush.before_commit")
        failpoint("capture.flush.after_commit")
        if taken.end_lsn is not None and taken.end_lsn > confirmed:
            confirmed = taken.end_lsn
            stream.confirm(confirmed)
            failpoint("capture.acknowledged")
        return confirmed

    def _confirm(self, own: Connection, lsn: int | None) -> None:
        """Store the position under our epoch.

        Raises:
            FencedError: another capture of this source has started since.
        """
        self._fenced(self._send_confirm(own, lsn).fetchone() is not None)

    def _send_confirm(self, own: Connection, lsn: int | None) -> psycopg.Cursor[TupleRow]:
        """The statement of `_confirm`; it yields no row if another capture has started since."""
        return own.execute(
            Q["confirm"],
            {"source": self._source.name, "epoch": self._epoch, "lsn": format_lsn(lsn) if lsn is not None else None},
            prepare=True,
        )

    def _fenced(self, ours: bool) -> None:
        if not ours:
            raise FencedError(f"another capture of {self._source.name!r} has taken over; this one stops")

    def _reread_incomplete(self, own: Connection, tables: dict[int, CapturedTable]) -> None:
        """Read rows again whose documents lack columns; aside, since making a slot waits for open transactions."""
        for table in tables.values():
            inbox.resolve_outgrown(own, table.collection)
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

    def _forgotten(self, own: Connection, tables: dict[int, CapturedTable]) -> bool:
        """Whether a table does not count as captured any more: set up again.

        Another process that tried to set up this capture found it unpublished; it is published now, and what changed
        meanwhile is in no stream.
        """
        rows = own.execute(Q["tables"], {"source": self._source.name})
        copied = {name for name, _, _, complete, *_ in rows if complete}
        if all(table.collection in copied for table in tables.values()):
            return False
        # Unless it is a successor that copies them.
        self._confirm(own, None)
        return True

    def _tables_changed(self, own: Connection, tables: dict[int, CapturedTable]) -> bool:
        """Whether a table was altered, made anew, or is not wholly published any more: set up again.

        A table that is gone altogether is reported and does not stop the capture of the others. So is a slot that the
        server is about to give up.
        """
        with connect(self._source.url, "sophia-capture-setup") as source:
            slot = source_sql.inspect_slot(source, self._source.slot)
            if slot is not None and (risk := source_sql.slot_risk(self._source.slot, slot)):
                logger.warning("%s", risk)
            found = []
            for binding in self._source.bindings:
                try:
                    found.append(source_sql.inspect_table(source, binding.table, binding.key))
                except SourceError as error:
                    self._report_gone(own, binding.collection, str(error))
            publication = self._source.publication
            return (
                any(
                    table.oid not in tables or tables[table.oid].shape != source_sql.table_shape(source, table)
                    for table in found
                )
                or bool(source_sql.unpublished(source, publication, found))
                or bool(source_sql.restricted(source, publication, found))
            )
