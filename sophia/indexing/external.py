"""Writes to a store outside of the database: between two transactions, exactly once in effect.

Invariants:

* The first transaction says `pending`, the second `applied`. A process that dies in between leaves `pending`, the
  lane's position did not move, and whoever comes next writes these keys anew and trusts nothing that the store has.
* Only the holder of the keys' shards writes, and `sophia.indexing.shards` gives them to nobody else before the last
  request of a dead holder must be over. So no older write comes behind a newer one, except from a writer that was
  halted between its last look at the clock and its request, for longer than the lease: docs/guarantees.md.
* What the ledger does not take, since it has a newer clock, is not written.
* `held` counts the chunks that the store may have, from before the first write of them: a surplus is removed also by
  the writer after the one that died.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import psycopg
from psycopg.rows import TupleRow

from sophia import sql
from sophia.documents import Clock, Key, bucket_of
from sophia.errors import UnreachableError
from sophia.failpoints import failpoint
from sophia.indexing import records
from sophia.indexing.batch import Figures, Row
from sophia.indexing.leases import Lease
from sophia.indexing.shards import HELD_SECONDS, MARGIN_SECONDS, HeldError, shards_of, take, turn
from sophia.indexing.versions import IndexVersion
from sophia.stores import DocumentWrite, Store

Connection = psycopg.Connection[TupleRow]
Q = sql.load("external")
Given = TypeVar("Given")
Outcome = TypeVar("Outcome")


class MovedError(Exception):
    """The ledger is not what the plan was made from; plan again."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A planned batch.

    Attributes:
        rows: what the plan was made from.
        faults: reasons of documents that cannot be indexed.
        repair: write also what the ledger has at the same clock.
        replace: trust nothing that the store has of these keys.
        position: the lane's new position, advanced when all is applied.
        began: when the batch was begun, on the clock of `time.perf_counter`.
    """

    rows: Sequence[Row]
    writes: Sequence[DocumentWrite]
    faults: Mapping[Key, str]
    repair: bool
    replace: bool
    position: int | None
    began: float


class ExternalWrites:
    """The two transactions around the writes of one version.

    Attributes:
        patience: seconds to wait for shards whose last holder did not give them back.
    """

    def __init__(self, version: IndexVersion, store: Store, *, run: str, lane: str) -> None:
        self._version = version
        self._store = store
        self._run = run
        self._lane = lane
        self.patience = 0.0

    @property
    def lease_seconds(self) -> float:
        """How long a shard is kept for a write."""
        return self._store.write_seconds + MARGIN_SECONDS

    def commit(self, connection: Connection, batch: Batch, figures: Figures, lease: Lease | None) -> None:
        """Write a batch and note what it cost.

        Raises:
            MovedError: the ledger is not what the plan was made from.
            HeldError: a shard is not free yet, and `patience` is over.
            FencedError: the lane or a shard was taken over.
            TemporaryError: the store is away; the batch is pending.
        """
        opened = time.perf_counter()
        if batch.writes:
            # In key order, as in every other writer.
            ordered = sorted(batch.writes, key=lambda write: write.key)
            names = shards_of(self._version, (write.bucket for write in ordered))
            self._patiently(lambda: self._write(connection, names, ordered, batch, figures, lease))
        else:
            with connection.transaction():
                if lease is not None:
                    lease.check(connection)()
                self._advance(connection, batch.position)
        figures.store_seconds += time.perf_counter() - opened

    def discard(self, connection: Connection, keys: Sequence[Key], lease: Lease | None) -> None:
        """Remove from the store what the ledger does not hold as live, and entries whose document is gone.

        Raises: as `commit`.
        """
        names = shards_of(self._version, map(bucket_of, keys))
        params = {"version_id": self._version.id, "collection_id": self._version.collection_id, "keys": list(keys)}

        def begin() -> None:
            connection.execute(Q["begin_discard"], params)

        def end() -> None:
            connection.execute(Q["end_discard"], params)

        def work() -> None:
            self._between(
                connection,
                names,
                lease,
                begin,
                lambda _: self._store.discard(connection, self._version, keys),
                lambda _: end(),
            )

        self._patiently(work)

    def _write(
        self,
        connection: Connection,
        names: Sequence[str],
        ordered: Sequence[DocumentWrite],
        batch: Batch,
        figures: Figures,
        lease: Lease | None,
    ) -> None:
        def begin() -> list[DocumentWrite]:
            self._refuse_moved(connection, batch)
            params = records.ledger_columns(self._version, ordered, self._run, batch.repair)
            held = {Key(key): int(count) for key, count in connection.execute(Q["begin"], params)}
            return [replace(write, held=held[write.key]) for write in ordered if write.key in held]

        def write(given: list[DocumentWrite]) -> dict[Key, str]:
            if not given:
                return {}
            return self._store.write(connection, self._version, given, self._run, replace=batch.replace)

        recorded = None

        def end(outcome: tuple[list[DocumentWrite], dict[Key, str]]) -> None:
            nonlocal recorded
            given, refused = outcome
            if given:
                recorded = self._end(connection, given, dict(batch.faults) | refused, figures, batch.began)
            self._advance(connection, batch.position)

        self._between(connection, names, lease, begin, write, end)
        records.note_lag(figures, recorded)

    def _end(
        self,
        connection: Connection,
        given: list[DocumentWrite],
        faults: Mapping[Key, str],
        figures: Figures,
        began: float,
    ) -> records.Cursor:
        keys = {write.key for write in given}
        faults = {key: reason for key, reason in faults.items() if key in keys}
        connection.execute(
            Q["end"],
            {
                "version_id": self._version.id,
                "keys": [w.key for w in given],
                "clocks": [w.clock.literal for w in given],
                "states": ["parked" if w.key in faults else "applied" for w in given],
                "helds": [0 if w.key in faults else len(w.chunks) for w in given],
            },
        )
        records.write_dead_letters(connection, self._version, given, faults)
        figures.documents = len(given)
        figures.parked = len(faults)
        prepared = time.perf_counter() - began
        return records.record_batch(
            connection, self._version, given, figures, lane=self._lane, run=self._run, prepared=prepared
        )

    def _between(
        self,
        connection: Connection,
        names: Sequence[str],
        lease: Lease | None,
        begin: Callable[[], Given],
        send: Callable[[Given], Outcome],
        end: Callable[[tuple[Given, Outcome]], None],
    ) -> None:
        """`begin` in one transaction, `send` outside of any, `end` in another one, under the shards' leases."""
        with turn(connection, names):
            with connection.transaction():
                ours = lease.check(connection) if lease is not None else None
                taken = take(connection, names, self._version.label, self.lease_seconds)
                if ours is not None:
                    ours()
                given = begin()
            failpoint("external.pending")
            under_way = False
            try:
                taken.refuse_halted()
                under_way = True
                outcome = send(given)
                under_way = False
                failpoint("external.written")
                with connection.transaction():
                    ours = lease.check(connection) if lease is not None else None
                    taken.give_back(connection)
                    if ours is not None:
                        ours()
                    end((given, outcome))
                    failpoint("external.before_commit")
            except Exception as error:
                if not under_way or isinstance(error, UnreachableError):
                    taken.free(connection)
                raise

    def _patiently(self, work: Callable[[], None]) -> None:
        deadline = time.monotonic() + self.patience
        while True:
            try:
                work()
                return
            except HeldError as error:
                if time.monotonic() + error.seconds > deadline:
                    raise
                time.sleep(min(error.seconds, HELD_SECONDS))

    def _refuse_moved(self, connection: Connection, batch: Batch) -> None:
        """What a plan keeps must still be what the ledger vouches for."""
        kept = [w.key for w in batch.writes if any(chunk.vector is None for chunk in w.chunks)]
        if not kept:
            return
        found = connection.execute(Q["ledger_states"], {"version_id": self._version.id, "keys": kept})
        states = {Key(key): (Clock(*clock), state) for key, clock, state in found}
        planned = {row.key: (row.ledger_clock, row.ledger_state) for row in batch.rows}
        if any(states.get(key) != planned[key] for key in kept):
            raise MovedError

    def _advance(self, connection: Connection, position: int | None) -> None:
        if position is not None:
            connection.execute(
                sql.load("indexing")["advance"], {"version_id": self._version.id, "position": position}, prepare=True
            )
