"""The indexer process: keeps every index version of this profile in step with the inbox.

One loop, two lanes. The live lane takes what is new since the version's position; a row that changed fifty times
meanwhile is one document, and a row that goes on changing rests between two looks (`sophia.indexing.pace`). Only when
no live work waits does the bulk lane compare a shard (first load, snapshot, huge transaction), and between two of its
forward passes the live lane is looked at again: a backfill never holds up a change for longer than one forward pass,
and passes and transactions are short while live changes come in. What takes a store minutes, building its
nearest-neighbour index, is done aside. When neither lane has work, the continuous verification takes a step
(`sophia.indexing.scan`), no longer than a bulk transaction.

One indexer writes a version's live lane, by its lease; a second one stands by and takes over when the first is gone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from threading import Event

import psycopg
from psycopg.rows import TupleRow

from sophia import sql
from sophia.catalog import Catalog
from sophia.database.connect import Database
from sophia.documents import Key
from sophia.embedding import Embedder, load_embedder
from sophia.errors import BusyError, ConfigurationError, FencedError
from sophia.indexing.backends import admit
from sophia.indexing.batch import Figures, Row
from sophia.indexing.building import IndexBuilder
from sophia.indexing.leases import Lease
from sophia.indexing.pace import HotRows, Pace
from sophia.indexing.provenance import register_run
from sophia.indexing.repair import repair_shard
from sophia.indexing.scan import Scanner
from sophia.indexing.versions import IndexVersion, active_versions, ensure_version, local_indexes, require_model
from sophia.indexing.writer import TRANSACTION_SECONDS, Writer
from sophia.settings import Settings
from sophia.stores import store_of

logger = logging.getLogger("sophia.indexer")
Connection = psycopg.Connection[TupleRow]
Q = sql.load("indexing")
# What a live micro-batch may take: a change that comes in meanwhile waits for it.
LIVE_SECONDS = 0.05
# What a bulk transaction may take while live changes come in.
BESIDE_SECONDS = 0.02
# So long after the last live change, bulk work still makes way.
LIVE_MEMORY_SECONDS = 2.0
# Takes the figures of each batch: version, lane, cost.
Observe = Callable[[IndexVersion, str, Figures], None]


class _Lane:
    """One version's writers, its lease, and how far its documents were read.

    Attributes:
        read: position up to which documents were read.
        stored: the version's position in the database. It follows when rows are applied, and where there was nothing
            to apply: at rest all versions of a collection are level, whatever came in bulk.
        held: rows that were read and rest, with their positions; the stored position stays before the first of them.
        compared: position of the newest bulk document up to which no shard is left to compare.
    """

    def __init__(
        self, version: IndexVersion, embedder: Embedder, settings: Settings, run: str, observe: Observe
    ) -> None:
        self.version = version
        self.read = self.stored = version.position
        self.held: dict[Key, int] = {}
        self.compared = -1
        self.hot = HotRows()
        # Of whole batches, with the embedding.
        self.pace = Pace()
        self.lease: Lease | None = None
        store = store_of(version.store)

        def writer(lane: str) -> Writer:
            size = settings.indexer.max_text_bytes
            noted = partial(observe, version, lane)
            return Writer(version, store, embedder, size, run=run, lane=lane, observe=noted)

        self.live = writer("live")
        self.bulk = writer("bulk")
        self.scanner = Scanner(self.bulk, settings.indexer.scan_hours, batch=settings.indexer.live_documents)

    def begin(self, lease: Lease, position: int) -> None:
        """Start at the stored position, which another indexer may have moved."""
        self.lease = lease
        self.read = self.stored = position
        self.compared = -1
        self.held.clear()

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


class Indexer:
    """Runs until told to stop.

    Args:
        bulk: also do the bulk lane's work; off when Dagster runs do it.
        observe: called with what each batch cost; the metrics count it.

    Attributes:
        embedders: those that were loaded so far, by model name and entry.
    """

    def __init__(
        self,
        catalog: Catalog,
        database: Database,
        settings: Settings,
        *,
        bulk: bool = True,
        observe: Observe = lambda version, lane, figures: None,
    ) -> None:
        self._catalog = catalog
        self._database = database
        self._settings = settings
        self._bulk = bulk
        self._observe = observe
        # By model name and the whole entry: two versions may differ in their model and not in its name.
        self.embedders: dict[tuple[str, str], Embedder] = {}
        self._lanes: list[_Lane] = []
        self._next_reload = 0.0
        self._run = ""
        self._refused: set[int] = set()
        self._heads: dict[int, tuple[int, int]] = {}
        self._live_at = -LIVE_MEMORY_SECONDS
        self._builder = IndexBuilder(database)
        self.ready = Event()
        self.figures = Figures()

    def run(self, stop: Event) -> None:
        """Index until `stop` is set.

        Raises:
            TemporaryError, psycopg.OperationalError: the database is away; call again.
        """
        with self._database.connect("sophia-indexer") as connection:
            for index in local_indexes(self._catalog, self._settings.profile):
                # Together, so that no version is ever without its store.
                with connection.transaction():
                    version = ensure_version(connection, self._catalog, index, self._settings.profile)
                    store_of(version.store).ensure(connection, version)
            self._run = register_run(connection, "live", self._settings)
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
                    if self._scan_pass(connection, stop):
                        continue
                    self._wait(connection)
            except Stopped:
                pass
            finally:
                self._builder.stop()
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
            lane = known.get(version.id) or self._lane(connection, version)
            if lane is None:
                continue
            if lane.lease is None:
                lease = Lease.try_take(connection, f"live/{version.id}", seconds)
                if lease is not None:
                    lane.begin(lease, version.position)
                    self._builder.look(lane.bulk)
                    logger.info("indexing %s from position %d", version.label, lane.read)
            else:
                try:
                    lane.lease.renew(connection)
                except FencedError:
                    logger.warning("%s was taken over; standing by", version.label)
                    lane.lease = None
            self._lanes.append(lane)

    def _lane(self, connection: Connection, version: IndexVersion) -> _Lane | None:
        """The lane of a version that is new here; none for one whose model is not what it was, or computed otherwise
        here than by those who write the version, too."""
        try:
            require_model(version)
        except ConfigurationError as error:
            self._refuse(version, error)
            return None
        embedder = self._embedder(version)
        try:
            admit(connection, version, embedder, self._run)
        except ConfigurationError as error:
            self._refuse(version, error)
            return None
        return _Lane(version, embedder, self._settings, self._run, self._observe)

    def _refuse(self, version: IndexVersion, error: ConfigurationError) -> None:
        """Say once why a version is not indexed; the others are."""
        if version.id not in self._refused:
            logger.error("not indexing %s", error)
            self._refused.add(version.id)

    def _embedder(self, version: IndexVersion) -> Embedder:
        model = version.model
        precision = version.index.precision
        key = (model.name, f"{precision} {model.model_dump_json()}")
        if key not in self.embedders:
            self.embedders[key] = load_embedder(model, precision, self._settings)
        return self.embedders[key]

    def _live_pass(self, connection: Connection) -> bool:
        """Take one micro-batch of each version. Returns whether there was any work."""
        # Read before the documents: all of them up to here are visible to the queries below.
        self._heads = {row[0]: (row[1], row[2]) for row in connection.execute(Q["heads"], prepare=True)}
        now = time.monotonic()
        lanes = [
            lane
            for lane in self._lanes
            if lane.lease is not None and (lane.read < self._head(lane)[0] or (lane.next_due or now + 1) <= now)
        ]
        worked = False
        for lane in lanes:
            worked |= self._take(connection, lane)
        return worked

    def _head(self, lane: _Lane) -> tuple[int, int]:
        """Positions of the newest document of a lane's collection, and of the newest that came in bulk."""
        return self._heads[lane.version.collection_id]

    def _take(self, connection: Connection, lane: _Lane) -> bool:
        """Apply what is new for a lane, and its rows whose rest is over. Returns whether there was any."""
        began = time.monotonic()
        params = {"version_id": lane.version.id, "collection_id": lane.version.collection_id}
        limit = lane.pace.size(self._settings.indexer.live_documents)
        due = lane.rested(began)
        # Not prepared: a plan from when the tables were empty reads all of them, and costs more than planning anew.
        with connection.pipeline():
            new = connection.execute(Q["live"], params | {"position": lane.read, "limit": limit}, prepare=False)
            rested = connection.execute(Q["by_keys"], params | {"keys": due}, prepare=False) if due else None
        rows = [Row.read(row) for row in new]
        fresh = {row.key for row in rows}
        again = [row for row in map(Row.read, rested or ()) if row.key not in fresh]
        reached = self._head(lane)[0] if len(rows) < limit else rows[-1].position
        ready, position = lane.choose(rows, again, reached, began)
        if not ready and position <= lane.stored:
            return False
        try:
            figures = lane.live.apply(connection, ready, lease=lane.lease, position=position)
        except FencedError as error:
            logger.warning("%s", error)
            lane.lease = None
            return False
        lane.stored = position
        if not ready:
            return False
        self.figures.add(figures)
        self._live_at = time.monotonic()
        lane.pace.took(len(ready), self._live_at - began, LIVE_SECONDS)
        return True

    def _bulk_pass(self, connection: Connection, stop: Event) -> bool:
        """Compare one shard of one version, doing live work in between. Returns whether there was any."""
        for lane in self._lanes:
            if lane.lease is None:
                continue
            bulk = self._head(lane)[1]
            if lane.compared >= bulk:
                continue
            shards = connection.execute(Q["stale_shards"], {"version_id": lane.version.id}, prepare=True).fetchall()
            if not shards:
                lane.compared = bulk
            for (shard,) in shards:
                try:
                    figures = repair_shard(
                        connection,
                        lane.bulk,
                        shard,
                        batch=self._settings.indexer.bulk_documents,
                        size=partial(self._bulk_size, lane),
                        between=partial(self._between, connection, stop),
                    )
                except BusyError:
                    continue  # a Dagster run has this shard
                except FencedError as error:
                    logger.warning("%s", error)
                    continue
                self.figures.add(figures)
                self._builder.look(lane.bulk)
                return True
        return False

    def _scan_pass(self, connection: Connection, stop: Event) -> bool:
        """Take one step of one version's verification. Returns whether there was any."""
        for lane in self._lanes:
            if lane.lease is None:
                continue
            try:
                figures = lane.scanner.step(connection, lane.lease, partial(self._between, connection, stop))
            except FencedError as error:
                logger.warning("%s", error)
                lane.lease = None
                continue
            if figures is not None:
                self.figures.add(figures)
                return True
        return False

    def _between(self, connection: Connection, stop: Event) -> None:
        """Between two steps of bulk work: all the live work that waits."""
        while True:
            if stop.is_set():
                raise Stopped
            self._reload(connection)
            if not self._live_pass(connection):
                break
        beside = self._settings.indexer.beside_tokens if self._live_lately() else None
        for embedder in self.embedders.values():
            embedder.pass_tokens = beside

    def _live_lately(self) -> bool:
        return time.monotonic() - self._live_at < LIVE_MEMORY_SECONDS

    def _bulk_size(self, lane: _Lane) -> int:
        lane.bulk.transaction_seconds = BESIDE_SECONDS if self._live_lately() else TRANSACTION_SECONDS
        return lane.bulk.pace.size(self._settings.indexer.bulk_documents)

    def _wait(self, connection: Connection) -> None:
        """Until the inbox notifies, a resting row is due, or the poll time is over."""
        now = time.monotonic()
        timeout = min(self._settings.indexer.poll_seconds, max(0.01, self._next_reload - now))
        dues = [due for lane in self._lanes if lane.lease is not None and (due := lane.next_due) is not None]
        if dues:
            timeout = min(timeout, max(0.0, min(dues) - now))
        timeout = min([timeout, *(lane.scanner.wait() for lane in self._lanes if lane.lease is not None)])
        for _ in connection.notifies(timeout=timeout, stop_after=1):
            pass

    def _release(self, connection: Connection) -> None:
        for lane in self._lanes:
            if lane.lease is not None and not connection.closed:
                lane.lease.release(connection)


class Stopped(Exception):
    """The process was told to stop in the middle of bulk work, which resumes at the next start."""
