"""Moves fresh rows of a pgvector version into its neighbours' graph, behind the changes and never in their way.

Two occasions: whenever nothing has come in for a moment, down to the rows that stay fresh in any case
(`sophia.stores.pgvector_fresh.KEPT`); and beside the live batches once so many have piled up that every search feels
them (`MOST_FRESH`), as many as a batch has written, so that there are never many more.

Each move is one short transaction that checks the version's lease.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import psycopg
from psycopg.rows import TupleRow

from sophia.failpoints import failpoint
from sophia.indexing.batch import Figures
from sophia.indexing.leases import Lease
from sophia.indexing.versions import IndexVersion
from sophia.stores import pgvector_fresh

Connection = psycopg.Connection[TupleRow]
# Every search reads all fresh rows: so many, of 384 dimensions, cost it some 5 ms.
MOST_FRESH = 5_000
# So long without a change is a quiet moment, and a move in it may hold up the next change by this.
QUIET_SECONDS = 0.05
MOVE_SECONDS = 0.01
# What a row takes until the first was moved, and at least; how long a move waits where everything is being written.
FIRST_ROW_SECONDS = 0.005
LEAST_ROW_SECONDS = 0.0001
AGAIN_SECONDS = 1.0


class Absorption:
    """How many rows of a version are fresh, about, and the moves that keep them few.

    Args:
        clock: seconds of a monotonic clock.
    """

    def __init__(self, version: IndexVersion, clock: Callable[[], float] = time.monotonic) -> None:
        self._version = version
        self._clock = clock
        # Never too low: a row that was fresh before counts again, and one that was deleted still does.
        self._fresh: int | None = None
        self._row_seconds = FIRST_ROW_SECONDS
        self._quiet_from = 0.0

    def begin(self) -> None:
        """The lease was taken: another process may have written and moved rows since the last look."""
        self._fresh = None

    def wait(self) -> float | None:
        """Seconds until a move may be due; None if there is nothing to move."""
        if self._fresh is not None and self._fresh <= pgvector_fresh.KEPT:
            return None
        return max(0.0, self._quiet_from - self._clock())

    def step(self, connection: Connection, lease: Lease) -> bool:
        """Move a few rows if nothing has come in for a moment. Returns whether any went.

        Raises:
            FencedError: the lease was taken over, or the version was retired; nothing was moved.
        """
        if self.wait() != 0.0 or self._known(connection) <= pgvector_fresh.KEPT:
            return False
        moved = self._move(connection, lease, max(1, int(MOVE_SECONDS / self._row_seconds)))
        if not moved:
            # Fewer than they seemed to be, or all are being written.
            self._count(connection)
            self._quiet_from = self._clock() + AGAIN_SECONDS
        return moved > 0

    def wrote(self, connection: Connection, lease: Lease, figures: Figures) -> None:
        """A live batch was written: the moment is not quiet, and where many rows are fresh, as many are moved.

        Raises:
            FencedError: the lease was taken over; nothing was moved.
        """
        self._quiet_from = self._clock() + QUIET_SECONDS
        if not figures.chunks:
            return
        self._fresh = self._known(connection) + figures.chunks
        if self._fresh > MOST_FRESH and self._count(connection) > MOST_FRESH:
            self._move(connection, lease, figures.chunks)

    def _known(self, connection: Connection) -> int:
        return self._count(connection) if self._fresh is None else self._fresh

    def _count(self, connection: Connection) -> int:
        self._fresh = pgvector_fresh.count(connection, self._version)
        return self._fresh

    def _move(self, connection: Connection, lease: Lease, limit: int) -> int:
        began = self._clock()
        rows = pgvector_fresh.oldest(connection, self._version, limit)
        moved = 0
        if rows:
            with connection.transaction():
                lease.check(connection)()
                moved = pgvector_fresh.absorb(connection, self._version, rows)
                failpoint("absorb.before_commit")
            failpoint("absorb.after_commit")
        if moved:
            self._row_seconds = max(LEAST_ROW_SECONDS, (self._clock() - began) / moved)
            self._fresh = max(0, (self._fresh or 0) - moved)
        return moved
