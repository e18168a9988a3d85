"""Writes to a store in Sophia's own database: one transaction a batch, exactly once in effect.

Invariants:

* The transaction checks the lane's lease, moves the ledger (newer clock wins), writes the store where the ledger was
  moved, and advances the lane.
* Bulk documents that the ledger did not have when they were read are copied in, which costs half. If the ledger has one
  of them by now, or the store a row of it, nothing of that transaction stays, and it is done again with all conditions.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

import psycopg
from psycopg import sql as composed
from psycopg.rows import TupleRow

from sophia import sql
from sophia.documents import Clock, Key
from sophia.failpoints import failpoint
from sophia.indexing import records
from sophia.indexing.batch import Figures, Row
from sophia.indexing.external import Batch, MovedError
from sophia.indexing.leases import Lease
from sophia.indexing.versions import IndexVersion
from sophia.stores import DocumentWrite, Store, copying
from sophia.stores.base import COPIED_DOCUMENTS, PREPARED_ROWS

Connection = psycopg.Connection[TupleRow]
Cursor = psycopg.Cursor[TupleRow]
Q = sql.load("indexing")
_COPY = composed.SQL(sql.load("copying")["ledger"])
_COPIED_FIELDS = 10


class TransactionalWrites:
    """The transaction around the writes of one version."""

    def __init__(self, version: IndexVersion, *, run: str, lane: str) -> None:
        self._version = version
        self._run = run
        self._lane = lane

    def commit(self, connection: Connection, store: Store, batch: Batch, figures: Figures, lease: Lease | None) -> None:
        """Write a batch and note what it cost.

        Raises:
            MovedError: the ledger is not what the plan was made from.
            FencedError: the lane was taken over.
        """
        opened = time.perf_counter()
        # In key order, so that two writers that meet wait for each other instead of deadlocking.
        ordered = sorted(batch.writes, key=lambda write: write.key)
        recorded: Cursor | None
        if len(ordered) >= COPIED_DOCUMENTS and all(write.first for write in ordered):
            try:
                recorded = self._transaction(connection, store, batch, ordered, figures, lease, first=True)
            except psycopg.errors.UniqueViolation:
                ordered = [replace(write, first=False) for write in ordered]
                recorded = self._transaction(connection, store, batch, ordered, figures, lease, first=False)
        else:
            recorded = self._transaction(connection, store, batch, ordered, figures, lease, first=False)
        figures.store_seconds = time.perf_counter() - opened
        records.note_lag(figures, recorded)

    def _transaction(
        self,
        connection: Connection,
        store: Store,
        batch: Batch,
        ordered: Sequence[DocumentWrite],
        figures: Figures,
        lease: Lease | None,
        *,
        first: bool,
    ) -> Cursor | None:
        """In two waits: check what it stands on, then write and commit. A copy waits for itself."""
        recorded = None
        opened = time.perf_counter()
        kept = [write.key for write in ordered if any(chunk.vector is None for chunk in write.chunks)]
        with nullcontext() if first else connection.pipeline(), connection.transaction():
            held = lease.check(connection) if lease is not None else None
            found = self._clocks(connection, kept) if kept else None
            if held is not None:
                held()
            if found is not None and not _unmoved(batch.rows, kept, found):
                raise MovedError
            if self._lane == "live" and len(ordered) <= PREPARED_ROWS:
                connection.execute(Q["one_plan"], prepare=True)
            if ordered:
                if first:
                    self._enter(connection, ordered)
                else:
                    self._upsert(connection, ordered, batch.repair)
                failpoint("writer.ledger")
                store.write(connection, self._version, ordered, self._run, replace=batch.replace)
                failpoint("writer.store")
                records.write_dead_letters(connection, self._version, ordered, batch.faults)
                figures.documents = len(ordered)
                figures.parked = len(batch.faults)
                recorded = records.record_batch(
                    connection,
                    self._version,
                    ordered,
                    figures,
                    lane=self._lane,
                    run=self._run,
                    prepared=opened - batch.began,
                )
            if batch.position is not None:
                params = {"version_id": self._version.id, "position": batch.position}
                connection.execute(Q["advance"], params, prepare=True)
            failpoint("writer.before_commit")
        return recorded

    def _clocks(self, connection: Connection, keys: Sequence[Key]) -> Cursor:
        params = {"version_id": self._version.id, "keys": keys}
        return connection.execute(Q["ledger_clocks"], params, prepare=len(keys) <= PREPARED_ROWS)

    def _upsert(self, connection: Connection, writes: Sequence[DocumentWrite], repair: bool) -> None:
        connection.execute(
            Q["ledger"],
            records.ledger_columns(self._version, writes, self._run, repair)
            | {"states": [_state(write) for write in writes]},
            prepare=len(writes) <= PREPARED_ROWS,
        )

    def _enter(self, connection: Connection, writes: Sequence[DocumentWrite]) -> None:
        copying.copy(connection, _COPY, _COPIED_FIELDS, self._entries(writes, copying.now(connection)))

    def _entries(self, writes: Sequence[DocumentWrite], now: bytes) -> Iterator[bytes]:
        version = copying.integer(self._version.id)
        end = copying.text(self._run) + now
        for write in writes:
            yield b"".join(
                (
                    version,
                    copying.text(write.key),
                    copying.integer(write.bucket),
                    copying.clock(write.clock),
                    copying.text(_state(write)),
                    copying.TRUE if write.deleted else copying.FALSE,
                    copying.byteas([chunk.content_hash for chunk in write.chunks]),
                    copying.byteas([chunk.vector_hash for chunk in write.chunks]),
                    end,
                )
            )


def _state(write: DocumentWrite) -> str:
    return "parked" if write.parked else "applied"


def _unmoved(rows: Sequence[Row], kept: Sequence[Key], found: Cursor) -> bool:
    """Whether the ledger still is what the plan was made from, as far as the plan keeps vectors.

    Another writer of this version may have come between plan and write: what was unchanged then is not now.
    """
    planned = {row.key: row.ledger_clock for row in rows}
    clocks = {Key(key): Clock(*clock) for key, clock in found}
    return all(clocks.get(key) == planned[key] for key in kept)
