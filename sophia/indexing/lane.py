"""One version's lane in the indexer: its writers, its lease, how far documents were read, and how its store fares."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import psycopg
from psycopg.rows import TupleRow

from sophia.documents import Key
from sophia.embedding import Embedder
from sophia.errors import SophiaError
from sophia.indexing.absorbing import Absorption
from sophia.indexing.batch import Figures, Row
from sophia.indexing.leases import Lease
from sophia.indexing.pace import HotRows, Pace
from sophia.indexing.repair import left_pending
from sophia.indexing.scan import Scanner
from sophia.indexing.shards import HeldError
from sophia.indexing.versions import IndexVersion
from sophia.indexing.writer import Writer
from sophia.settings import Settings
from sophia.stores import Store

logger = logging.getLogger("sophia.indexer")
Connection = psycopg.Connection[TupleRow]
# Takes the figures of each batch: version, lane, cost.
Observe = Callable[[IndexVersion, str, Figures], None]
# Between two tries of a store that is away.
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 5.0
# Between two looks for what dead writers left.
LOOK_SECONDS = 5.0


class Lane:
    """One version's writers, its lease, and how far its documents were read.

    Attributes:
        read: position up to which documents were read.
        stored: the version's position in the database. It follows when rows are applied, and where there was nothing
            to apply: at rest all versions of a collection are level, whatever came in bulk.
        resume_at: until then, on the monotonic clock, a store outside of the database is left in peace.
        held: rows that were read and rest, with their positions; the stored position stays before the first of them.
        compared: position of the newest bulk document up to which no shard is left to compare.
        held_until: when the bulk lane's shards come free whose last writer is gone or silent, on the monotonic clock.
    """

    def __init__(
        self, version: IndexVersion, store: Store, embedder: Embedder, settings: Settings, run: str, observe: Observe
    ) -> None:
        self.version = version
        self.store = store
        self.read = self.stored = version.position
        self.held: dict[Key, int] = {}
        self.compared = -1
        self.held_until: dict[int, float] = {}
        self.hot = HotRows()
        self.settings = settings
        # Of whole batches, with the embedding.
        self.pace = Pace()
        self.lease: Lease | None = None
        self.resume_at = 0.0
        self._pause = 0.0
        self._next_look = 0.0

        def writer(lane: str) -> Writer:
            size = settings.indexer.max_text_bytes
            noted = partial(observe, version, lane)
            return Writer(version, store, embedder, size, run=run, lane=lane, observe=noted)

        self.live = writer("live")
        self.bulk = writer("bulk")
        self.absorption = Absorption(version) if store.transactional else None
        self.scanner = Scanner(self.bulk, settings.indexer.scan_hours, batch=settings.indexer.live_documents)

    def begin(self, lease: Lease, position: int) -> None:
        """Start at the stored position, which another indexer may have moved."""
        self.lease = lease
        self.stored = position
        self.compared = -1
        if self.absorption is not None:
            self.absorption.begin()
        self._rewind()

    def _rewind(self) -> None:
        """What was read and not applied is read again."""
        self.read = self.stored
        self.held.clear()

    def writes(self, now: float) -> bool:
        """Whether this process may write the version, and its store is not left in peace."""
        return self.lease is not None and now >= self.resume_at

    def back_off(self, error: SophiaError, now: float) -> None:
        """The store did not take what it was given: said once, tried again after pauses that grow.

        What a person must mend (a key that was withdrawn, a plan that is used up) is tried again like the rest.
        """
        self._rewind()
        if not self._pause:
            logger.warning("%s waits, others go on: %s", self.version.label, error)
        self._pause = min(LONGEST_PAUSE_SECONDS, 2 * self._pause or FIRST_PAUSE_SECONDS)
        # A shard whose writer is gone comes free at a known time.
        self.resume_at = now + (min(self._pause, error.seconds) if isinstance(error, HeldError) else self._pause)

    def answered(self) -> None:
        """The store took something."""
        if self._pause:
            logger.info("%s goes on: its store answers again", self.version.label)
            self._pause = 0.0

    def left_pending(self, connection: Connection, now: float) -> list[Key]:
        """Keys that a writer which is gone began and did not end; asked every few seconds."""
        if self.store.transactional or now < self._next_look:
            return []
        self._next_look = now + LOOK_SECONDS
        return left_pending(connection, self.bulk, self.settings.indexer.live_documents)

    def seconds_late(self, now: float) -> float:
        """How long the look that is most overdue has waited for a quiet moment."""
        pending = 0.0 if self.store.transactional else now - self._next_look
        return max(pending, self.scanner.late)

    @property
    def next_due(self) -> float | None:
        """When the first resting row may be taken, on the monotonic clock."""
        return min((self.hot.due(key) for key in self.held), default=None)

    def rested(self, now: float) -> list[Key]:
        """The rows whose rest is over; they are not held any more."""
        keys = [key for key in self.held if self.hot.due(key) <= now]
        for key in keys:
            del self.held[key]
        return keys

    def choose(self, rows: Sequence[Row], again: Sequence[Row], reached: int, now: float) -> tuple[list[Row], int]:
        """Of the rows just read and those whose rest is over: which to apply, and the position that this completes.

        `reached` is the position up to which all rows were read.
        """
        ready = list(again)
        for row in rows:
            # Deletes cost nothing and must show at once.
            if row.deleted or self.hot.due(row.key) <= now:
                self.held.pop(row.key, None)
                ready.append(row)
            else:
                self.held[row.key] = row.position
        self.read = max(self.read, reached)
        self.hot.take((row.key for row in ready if not row.deleted), now)
        return ready, min([self.read, *(position - 1 for position in self.held.values())])
