"""Continuous verification of one index version: what changed, each tick; everything, slice by slice.

Two looks at the store itself, both by the one comparison of `sophia.indexing.compare`:

* the tick compares the keys that the live lane applied since the last tick. It costs as much as there were changes,
  whatever the number of rows;
* the deep scan compares a slice of the buckets at a time, all of them within the cycle time of the settings, and starts
  over. It finds what was edited, added or deleted in a store behind Sophia's back.

What differs is written again, embedding only what the store has not kept. Documents that a lane has still to take are
late, not wrong, and left to it. How far both are is stored after the repair, so that a look which was cut off is done
again. The first load must be over before either begins.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import psycopg
from psycopg.rows import TupleRow

from sophia import sql
from sophia.documents import BUCKETS, Key
from sophia.failpoints import failpoint
from sophia.indexing.batch import Figures
from sophia.indexing.compare import Difference, Slices, compare, compare_here
from sophia.indexing.leases import Lease
from sophia.indexing.repair import SLICE_KEYS, mend
from sophia.indexing.writer import Writer
from sophia.stores import Scope

logger = logging.getLogger("sophia.scan")
Connection = psycopg.Connection[TupleRow]
Q = sql.load("scan")
TICK_SECONDS = 1.0


class Scanner:
    """The continuous verification of the version that `writer` writes. One step is one bounded look.

    Args:
        writer: of the bulk lane.
        hours: time of one whole deep scan; 0 for none.
        batch: documents of one repair transaction.
        clock: seconds of a monotonic clock.
    """

    def __init__(
        self, writer: Writer, hours: float, *, batch: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._writer = writer
        self._hours = hours
        self._batch = batch
        self._clock = clock
        self._width = Slices(0, 0, SLICE_KEYS).width
        self._next_tick = self._next_slice = clock()
        self._begun = False
        self.found = 0
        self.repaired = 0

    def wait(self) -> float:
        """Seconds until there is something to do; 0 when there is now."""
        return max(0.0, -self.late)

    @property
    def late(self) -> float:
        """Seconds since there has been something to do; negative before."""
        soonest = min(self._next_tick, self._next_slice) if self._hours else self._next_tick
        return self._clock() - soonest

    def step(self, connection: Connection, lease: Lease, between: Callable[[], None] = lambda: None) -> Figures | None:
        """Do one look if one is due: at most some 500 keys, some 20 ms, unless something must be repaired.

        Args:
            lease: the right to write the version, checked wherever something is written.
            between: called between the steps of a repair.

        Returns:
            What a repair cost; None when nothing was due.

        Raises:
            FencedError: the lease was taken over.
        """
        if self.wait() > 0:
            return None
        verified, position, next_bucket, loaded = self._state(connection)
        now = self._clock()
        if not loaded:
            self._next_tick = self._next_slice = now + TICK_SECONDS
            return None
        slice_due = self._hours > 0 and now >= self._next_slice
        # What has waited longer comes first, so that neither keeps the other from its turn.
        if now >= self._next_tick and not (slice_due and self._next_slice < self._next_tick):
            self._next_tick = now + TICK_SECONDS
            if verified < position:
                return self._tick(connection, lease, verified, position, between)
        if slice_due:
            return self._slice(connection, lease, next_bucket, now, between)
        return None

    def _state(self, connection: Connection) -> tuple[int, int, int, bool]:
        version = {"version_id": self._writer.version.id}
        if not self._begun:
            connection.execute(Q["begin"], version)
            self._begun = True
        row = connection.execute(Q["state"], version, prepare=True).fetchone()
        assert row is not None  # noqa: S101
        return row[0], row[1], row[2], row[3]

    def _tick(
        self, connection: Connection, lease: Lease, after: int, upto: int, between: Callable[[], None]
    ) -> Figures:
        """Compare what the live lane applied."""
        version = self._writer.version
        with connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            page = connection.execute(
                Q["changed"],
                {"collection_id": version.collection_id, "after": after, "upto": upto, "limit": SLICE_KEYS},
                prepare=True,
            ).fetchall()
            found = Difference()
            scope = Scope(keys=tuple(Key(row[0]) for row in page))
            if page and self._writer.store.transactional:
                found = compare_here(connection, version, self._writer.store, scope)
        if page and not self._writer.store.transactional:
            # Without a transaction: no other system is asked while one is open.
            found = compare(connection, version, self._writer.store, scope)
        if len(page) == SLICE_KEYS:
            # There is more: do not wait for the next tick.
            self._next_tick = self._clock()
            upto = page[-1][1]
        figures, counts = self._repair(connection, lease, found, between)
        self._store(connection, lease, "verified", {"verified": upto} | counts)
        return figures

    def _slice(
        self, connection: Connection, lease: Lease, first: int, now: float, between: Callable[[], None]
    ) -> Figures:
        """Compare the next buckets, whatever is in them."""
        version = self._writer.version
        began = datetime.now(UTC)
        slices = Slices(first, BUCKETS - 1, SLICE_KEYS, self._width)
        scope = next(iter(slices))
        found = compare(connection, version, self._writer.store, scope)
        slices.held(found.compared)
        self._width = slices.width
        figures, counts = self._repair(connection, lease, found, between)
        self._store(connection, lease, "scanned", {"first": scope.first, "last": scope.last, "began": began} | counts)
        self._next_slice = now + self._hours * 3600 * (scope.last - scope.first + 1) / BUCKETS
        return figures

    def _repair(
        self, connection: Connection, lease: Lease, found: Difference, between: Callable[[], None]
    ) -> tuple[Figures, dict[str, int]]:
        """Mend what differs and look again. Returns the cost, and the numbers of keys found and repaired."""
        figures = Figures()
        wrong = found.wrong()
        if not wrong:
            return figures, {"found": 0, "repaired": 0}
        version = self._writer.version
        failpoint("scan.found")
        for step in mend(connection, self._writer, wrong, lease, batch=self._batch, between=between):
            figures.add(step)
            lease.renew(connection)
            between()
        failpoint("scan.mended")
        left = compare(connection, version, self._writer.store, Scope(keys=tuple(wrong))).wrong()
        kinds = {kind: count for kind, count in found.counts().items() if count}
        logger.warning(
            "%s: %d documents differed from the ledger (%s); %d written again, %d texts embedded",
            *(version.label, len(wrong), kinds, len(wrong) - len(left), figures.embedded),
        )
        self.found += len(wrong)
        self.repaired += len(wrong) - len(left)
        return figures, {"found": len(wrong), "repaired": len(wrong) - len(left)}

    def _store(self, connection: Connection, lease: Lease, query: str, params: Mapping[str, object]) -> None:
        failpoint("scan.before_commit")
        with connection.transaction():
            lease.check(connection)()
            connection.execute(Q[query], {"version_id": self._writer.version.id, **params}, prepare=True)
        failpoint("scan.after_commit")
