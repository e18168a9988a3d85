"""The indexer process: keeps every index version of this profile in step with the inbox.

One loop, two lanes. The live lane takes what is new since the version's position; a row that changed fifty times
meanwhile is one document. Only when no live work waits does the bulk lane compare a shard (first load, snapshot,
huge transaction), and between two of its forward passes the live lane is looked at again: a backfill never holds up a
change for longer than one forward pass.

One indexer writes a version's live lane, by its lease; a second one stands by and takes over when the first is gone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Event

import psycopg
from psycopg.rows import TupleRow

from sophia import sql
from sophia.catalog import Catalog
from sophia.database.connect import Database
from sophia.embedding import Embedder, load_embedder
from sophia.errors import FencedError, TemporaryError
from sophia.indexing.leases import Lease
from sophia.indexing.repair import finish_load, repair_shard
from sophia.indexing.versions import IndexVersion, active_versions, ensure_version, local_indexes
from sophia.indexing.writer import Figures, Row, Writer
from sophia.settings import Settings
from sophia.stores import store_of

logger = logging.getLogger("sophia.indexer")
Connection = psycopg.Connection[TupleRow]
Q = sql.load("indexing")
RUN = "live"


class _Lane:
    """One version's writers and its lease."""

    def __init__(self, version: IndexVersion, embedder: Embedder, settings: Settings) -> None:
        self.version = version
        self.position = version.position
        self.lease: Lease | None = None
        store = store_of(version.store)
        size = settings.indexer.max_text_bytes
        self.live = Writer(version, store, embedder, size, run=RUN, lane="live")
        self.bulk = Writer(version, store, embedder, size, run=RUN, lane="bulk")


class Indexer:
    """Runs until told to stop.

    Args:
        bulk: also do the bulk lane's work; off when Dagster runs do it.
    """

    def __init__(self, catalog: Catalog, database: Database, settings: Settings, *, bulk: bool = True) -> None:
        self._catalog = catalog
        self._database = database
        self._settings = settings
        self._bulk = bulk
        self._embedders: dict[str, Embedder] = {}
        self._lanes: list[_Lane] = []
        self._next_reload = 0.0
        self.ready = Event()
        self.figures = Figures()

    def run(self, stop: Event) -> None:
        """Index until `stop` is set.

        Raises:
            TemporaryError, psycopg.OperationalError: the database is away; call again.
        """
        with self._database.connect("sophia-indexer") as connection:
            for index in local_indexes(self._catalog, self._settings.profile):
                version = ensure_version(connection, self._catalog, index, self._settings.profile)
                store_of(version.store).ensure(connection, version)
            # Before the first look at the inbox, so that nothing slips between look and wait.
            connection.execute("LISTEN sophia_inbox")
            self._lanes, self._next_reload = [], 0.0
            try:
                while not stop.is_set():
                    self._reload(connection)
                    if self._live_pass(connection):
                        continue
                    self.ready.set()
                    if self._bulk and self._bulk_pass(connection, stop):
                        continue
                    self._wait(connection)
            except Stopped:
                pass
            finally:
                self._release(connection)

    def _reload(self, connection: Connection) -> None:
        """Pick up versions that were created, promoted or retired, and leases that have become free."""
        now = time.monotonic()
        if now < self._next_reload:
            return
        seconds = self._settings.indexer.lease_seconds
        self._next_reload = now + min(1.0, seconds / 3)
        known = {lane.version.id: lane for lane in self._lanes}
        self._lanes = []
        for version in active_versions(connection):
            lane = known.get(version.id) or _Lane(version, self._embedder(version), self._settings)
            if lane.lease is None:
                lane.lease = Lease.try_take(connection, f"live/{version.id}", seconds)
                if lane.lease is not None:
                    lane.position = version.position
                    logger.info("indexing %s from position %d", version.label, lane.position)
            else:
                try:
                    lane.lease.renew(connection)
                except FencedError:
                    logger.warning("%s was taken over; standing by", version.label)
                    lane.lease = None
            self._lanes.append(lane)

    def _embedder(self, version: IndexVersion) -> Embedder:
        model = version.model
        precision = version.index.precision
        key = f"{model.name}/{precision}"
        if key not in self._embedders:
            self._embedders[key] = load_embedder(model, precision, self._settings)
        return self._embedders[key]

    def _live_pass(self, connection: Connection) -> bool:
        """Take one micro-batch of each version. Returns whether there was any work."""
        worked = False
        for lane in self._lanes:
            if lane.lease is None:
                continue
            rows = connection.execute(
                Q["live"],
                {
                    "version_id": lane.version.id,
                    "collection_id": lane.version.collection_id,
                    "position": lane.position,
                    "limit": self._settings.indexer.live_documents,
                },
                prepare=True,
            ).fetchall()
            if not rows:
                continue
            batch = [Row.read(row) for row in rows]
            position = batch[-1].position
            try:
                self.figures.add(lane.live.apply(connection, batch, lease=lane.lease, position=position))
            except FencedError as error:
                logger.warning("%s", error)
                lane.lease = None
                continue
            lane.position = position
            worked = True
        return worked

    def _bulk_pass(self, connection: Connection, stop: Event) -> bool:
        """Compare one shard of one version, doing live work in between. Returns whether there was any."""

        def between() -> None:
            self._live_pass(connection)

        for lane in self._lanes:
            if lane.lease is None:
                continue
            shards = connection.execute(Q["stale_shards"], {"version_id": lane.version.id}, prepare=True).fetchall()
            for (shard,) in shards:
                try:
                    figures = repair_shard(
                        connection,
                        lane.bulk,
                        shard,
                        batch=self._settings.indexer.bulk_documents,
                        between=_until(stop, between),
                    )
                except TemporaryError:
                    continue  # a Dagster run has this shard
                self.figures.add(figures)
                finish_load(connection, lane.bulk)
                return True
        return False

    def _wait(self, connection: Connection) -> None:
        """Until the inbox notifies, or the poll time is over."""
        timeout = min(self._settings.indexer.poll_seconds, max(0.01, self._next_reload - time.monotonic()))
        for _ in connection.notifies(timeout=timeout, stop_after=1):
            pass

    def _release(self, connection: Connection) -> None:
        for lane in self._lanes:
            if lane.lease is not None and not connection.closed:
                lane.lease.release(connection)


class Stopped(Exception):
    """The process was told to stop in the middle of bulk work, which resumes at the next start."""


def _until(stop: Event, work: Callable[[], None]) -> Callable[[], None]:
    def step() -> None:
        if stop.is_set():
            raise Stopped
        work()

    return step
