"""The indexer process: keeps every index version of this profile in step with the inbox.

One loop, two lanes. The live lane takes what is new since the version's position; a row that changed fifty times
meanwhile is one document, and a row that goes on changing rests between two looks (`sophia.indexing.pace`). Only when
no live work waits does the bulk lane compare a shard (first load, snapshot, huge transaction), and between two of its
forward passes the live lane is looked at again: a backfill never holds up a change for longer than one forward pass,
and passes and transactions are short while live changes come in. What takes a store minutes, building its
nearest-neighbour index, is done aside. When neither lane has work, the continuous verification takes a step
(`sophia.indexing.scan`), no longer than a bulk transaction, and what the live lane wrote is entered into the graph
(`sophia.indexing.absorbing`).

A store outside of the database that is away, or refuses us, makes only its own lanes wait (`sophia.indexing.lane`).

One indexer writes a version's live lane, by its lease; a second one stands by and takes over when the first is gone.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from threading import Event

import psycopg
from psycopg.rows import TupleRow

from sophia import sql
from sophia.catalog import Catalog
from sophia.catalog.models import Index
from sophia.database.connect import Database
from sophia.embedding import Embedder, load_embedder
from sophia.errors import BusyError, ConfigurationError, FencedError, SophiaError, TemporaryError
from sophia.indexing.backends import admit
from sophia.indexing.batch import Figures, Row
from sophia.indexing.beginning import begin_version
from sophia.indexing.building import IndexBuilder
from sophia.indexing.lane import Lane, Observe
from sophia.indexing.leases import Lease
from sophia.indexing.provenance import register_run
from sophia.indexing.publication import settle, unsettled_kinds
from sophia.indexing.repair import mend, neighbours, repair_shard
from sophia.indexing.shards import HeldError
from sophia.indexing.versions import IndexVersion, active_versions, local_indexes, require_model
from sophia.indexing.writer import TRANSACTION_SECONDS
from sophia.settings import Settings
from sophia.stores import Stores

logger = logging.getLogger("sophia.indexer")
Connection = psycopg.Connection[TupleRow]
Q = sql.load("indexing")
# What a live micro-batch may take: a change that comes in meanwhile waits for it.
LIVE_SECONDS = 0.05
# What a bulk transaction may take while live changes come in.
BESIDE_SECONDS = 0.02
# So long after the last live change, bulk work still makes way.
LIVE_MEMORY_SECONDS = 2.0
# Between two tries of what a person must mend first, or of a store that was away when its index was to be begun.
TRY_AGAIN_SECONDS = 10.0
SETTLE_SECONDS = 1.0
# Bulk work and verification make way for live work; a step that has waited so long goes in between.
LATE_SECONDS = 5.0


class Indexer:
    """Runs until told to stop.

    Args:
        bulk: also do the bulk lane's work; off when Dagster runs do it.
        observe: called with what each batch cost; the metrics count it.
        stores: where versions live; those of the settings if not given.
        kind: only versions in this kind of store; all if not given.

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
        stores: Stores | None = None,
        kind: str | None = None,
    ) -> None:
        self._catalog = catalog
        self._database = database
        self._settings = settings
        self._stores = stores or Stores(settings)
        self.kind = kind
        self._bulk = bulk
        self._observe = observe
        # By model name and the whole entry: two versions may differ in their model and not in its name.
        self.embedders: dict[tuple[str, str], Embedder] = {}
        self._lanes: list[Lane] = []
        self._next_reload = 0.0
        self._run = ""
        self._refused: set[int | str] = set()
        self._unloadable: dict[tuple[str, str], tuple[float, ConfigurationError]] = {}
        self._unmade: dict[str, Index] = {}
        self._next_try = 0.0
        self._next_settling = 0.0
        self._unsettled = False
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
            profile = self._settings.profile
            self._unmade = {
                index.name: index
                for index in local_indexes(self._catalog, profile)
                if self.kind in (None, index.store.for_profile(profile))
            }
            self._next_try = self._next_settling = 0.0
            self._settle(connection)
            self._begin(connection)
            self._run = register_run(connection, "live", self._settings)
            # Before the first look at the inbox, so that nothing slips between look and wait.
            connection.execute("LISTEN sophia_inbox")
            self._lanes, self._next_reload = [], 0.0
            try:
                while not stop.is_set():
                    self._reload(connection)
                    if self._looks_are_late():
                        # Else nothing would be verified for as long as there is no quiet moment.
                        self._look(connection, stop)
                    if self._live_pass(connection):
                        continue
                    self.ready.set()
                    if self._bulk and self._bulk_pass(connection, stop):
                        continue
                    if self._look(connection, stop) or self._absorb(connection):
                        continue
                    self._settle(connection)
                    self._wait(connection)
            except Stopped:
                pass
            finally:
                self._builder.stop()
                self._release(connection)
                self._stores.close()

    def _begin(self, connection: Connection) -> None:
        """Make the versions that the catalog asks for. One that cannot be made holds up no other."""
        now = time.monotonic()
        if now < self._next_try:
            return
        self._next_try = now + TRY_AGAIN_SECONDS
        for name, index in list(self._unmade.items()):
            try:
                begin_version(connection, self._catalog, index, self._settings.profile, self._stores)
            except ConfigurationError as error:
                self._refuse(name, error)
            except TemporaryError as error:
                if index.store.for_profile(self._settings.profile) == "pgvector":
                    raise
                if name not in self._refused:
                    logger.warning("%s is begun later: %s", name, error)
                    self._refused.add(name)
            else:
                del self._unmade[name]

    def _settle(self, connection: Connection) -> None:
        """Do in stores outside of the database what promotions and ends of versions have left to do there."""
        now = time.monotonic()
        if now < self._next_settling:
            return
        self._next_settling = now + SETTLE_SECONDS
        try:
            settle(connection, self._stores, kind=self.kind)
        except (ConfigurationError, TemporaryError) as error:
            if not self._unsettled:
                logger.warning("a switch or an end of a version is not yet done in its store: %s", error)
            self._unsettled = True
            self._next_settling = now + TRY_AGAIN_SECONDS
        else:
            self._unsettled = False

    def _reload(self, connection: Connection) -> None:
        """Pick up versions that were created, promoted or retired, and leases that have become free."""
        now = time.monotonic()
        if now < self._next_reload:
            return
        seconds = self._settings.indexer.lease_seconds
        self._next_reload = now + min(1.0, seconds / 3)
        # A first load fills tables within seconds that were empty when the live lane's statements were planned.
        connection.execute(Q["forget_plans"])
        if self._unmade:
            self._begin(connection)
        known = {lane.version.id: lane for lane in self._lanes}
        self._lanes = []
        for version in active_versions(connection):
            if self.kind not in (None, version.store):
                continue
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

    def _lane(self, connection: Connection, version: IndexVersion) -> Lane | None:
        """The lane of a version that is new here; none for one whose store has no settings, or whose model cannot be
        loaded, is not what it was, or is computed otherwise here than by those who write the version, too."""
        try:
            require_model(version)
            store = self._stores.of(version)
            if store.transactional:
                # An earlier release may have made it, and the catalog may have another version by now.
                store.ensure(connection, version)
            embedder = self._embedder(version)
            admit(connection, version, embedder, self._run)
        except ConfigurationError as error:
            self._refuse(version.id, error)
            return None
        return Lane(version, store, embedder, self._settings, self._run, self._observe)

    def _refuse(self, what: int | str, error: ConfigurationError) -> None:
        """Say once why a version is not indexed; the others are."""
        if what not in self._refused:
            logger.error("not indexing %s", error)
            self._refused.add(what)

    def _embedder(self, version: IndexVersion) -> Embedder:
        model = version.model
        precision = version.index.precision
        key = (model.name, f"{precision} {model.model_dump_json()}")
        if key not in self.embedders:
            tried, fault = self._unloadable.get(key, (-TRY_AGAIN_SECONDS, None))
            if fault is not None and time.monotonic() - tried < TRY_AGAIN_SECONDS:
                raise fault
            try:
                self.embedders[key] = load_embedder(model, precision, self._settings)
            except ConfigurationError as error:
                # Trying takes seconds, in which nothing else is indexed.
                self._unloadable[key] = time.monotonic(), error
                raise
        return self.embedders[key]

    def _live_pass(self, connection: Connection) -> bool:
        """Take one micro-batch of each version. Returns whether there was any work."""
        # Read before the documents: all of them up to here are visible to the queries below.
        self._heads = {row[0]: (row[1], row[2]) for row in connection.execute(Q["heads"], prepare=True)}
        now = time.monotonic()
        lanes = [
            lane
            for lane in self._lanes
            if lane.writes(now) and (lane.read < self._head(lane)[0] or (lane.next_due or now + 1) <= now)
        ]
        worked = False
        for lane in lanes:
            worked |= self._take(connection, lane)
        return worked

    def _head(self, lane: Lane) -> tuple[int, int]:
        """Positions of the newest document of a lane's collection, and of the newest that came in bulk."""
        return self._heads[lane.version.collection_id]

    def _take(self, connection: Connection, lane: Lane) -> bool:
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
            if lane.absorption is not None and lane.lease is not None:
                lane.absorption.wrote(connection, lane.lease, figures)
        except FencedError as error:
            logger.warning("%s", error)
            lane.lease = None
            return False
        except SophiaError as error:
            self._left_in_peace(lane, error)
            return False
        lane.answered()
        lane.stored = position
        if not ready:
            return False
        self.figures.add(figures)
        self._live_at = time.monotonic()
        lane.pace.took(len(ready), self._live_at - began, LIVE_SECONDS)
        return True

    def _absorb(self, connection: Connection) -> bool:
        """Move a few rows of one version into its graph, if it is quiet. Returns whether there were any."""
        for lane in self._lanes:
            if lane.lease is None or lane.absorption is None:
                continue
            try:
                if lane.absorption.step(connection, lane.lease):
                    return True
            except FencedError as error:
                logger.warning("%s", error)
                lane.lease = None
        return False

    @staticmethod
    def _left_in_peace(lane: Lane, error: SophiaError) -> None:
        """A store outside of the database is away or refuses: its lane waits. Any other fault ends the loop."""
        if lane.store.transactional:
            raise error
        lane.back_off(error, time.monotonic())

    def _bulk_pass(self, connection: Connection, stop: Event) -> bool:
        """Compare one shard of one version, or some small ones, doing live work in between. Returns whether it did."""
        for lane in self._lanes:
            if not lane.writes(time.monotonic()):
                continue
            bulk = self._head(lane)[1]
            if lane.compared >= bulk:
                continue
            shards = connection.execute(Q["stale_shards"], {"version_id": lane.version.id}, prepare=True).fetchall()
            if not shards:
                lane.compared = bulk
            free = [shard for (shard,) in shards if lane.held_until.get(shard, 0.0) <= time.monotonic()]
            most = self._settings.indexer.bulk_documents
            for together in neighbours(lane.version, free, self._head(lane)[0], most):
                try:
                    figures = repair_shard(
                        connection,
                        lane.bulk,
                        together[0],
                        last=together[-1],
                        batch=most,
                        size=partial(self._bulk_size, lane),
                        between=partial(self._between, connection, stop),
                    )
                except HeldError as error:
                    # Known in advance, so that nothing is embedded in vain until then.
                    lane.held_until |= dict.fromkeys(together, time.monotonic() + error.seconds)
                    continue
                except BusyError:
                    continue  # a Dagster run has this shard
                except FencedError as error:
                    logger.warning("%s", error)
                    continue
                except SophiaError as error:
                    self._left_in_peace(lane, error)
                    break
                lane.answered()
                self.figures.add(figures)
                self._builder.look(lane.bulk)
                return True
        return False

    def _looks_are_late(self) -> bool:
        now = time.monotonic()
        return any(lane.writes(now) and lane.seconds_late(now) > LATE_SECONDS for lane in self._lanes)

    def _look(self, connection: Connection, stop: Event) -> bool:
        """Take one step of what comes behind live and bulk work. Returns whether there was any."""
        return self._pending_pass(connection, stop) or self._scan_pass(connection, stop)

    def _pending_pass(self, connection: Connection, stop: Event) -> bool:
        """Write anew what a writer that is gone began and did not end. Returns whether there was any."""
        for lane in self._lanes:
            now = time.monotonic()
            if lane.lease is None or not lane.writes(now):
                continue
            between = partial(self._between, connection, stop)
            try:
                keys = lane.left_pending(connection, now)
                size = self._bulk_size(lane)
                for figures in mend(connection, lane.bulk, keys, lane.lease, batch=size, between=between):
                    self.figures.add(figures)
                    between()
            except FencedError as error:
                logger.warning("%s", error)
                lane.lease = None
                continue
            except SophiaError as error:
                self._left_in_peace(lane, error)
                continue
            if keys:
                return True
        return False

    def _scan_pass(self, connection: Connection, stop: Event) -> bool:
        """Take one step of one version's verification. Returns whether there was any."""
        for lane in sorted(self._lanes, key=lambda lane: lane.scanner.late, reverse=True):
            if lane.lease is None or not lane.writes(time.monotonic()):
                continue
            try:
                figures = lane.scanner.step(connection, lane.lease, partial(self._between, connection, stop))
            except FencedError as error:
                logger.warning("%s", error)
                lane.lease = None
                continue
            except SophiaError as error:
                self._left_in_peace(lane, error)
                continue
            if figures is not None:
                self.figures.add(figures)
                return True
        return False

    def _between(self, connection: Connection, stop: Event) -> None:
        """Between two steps of bulk work: all the live work that waits, unless it does not end."""
        until = time.monotonic() + LATE_SECONDS
        while True:
            if stop.is_set():
                raise Stopped
            self._reload(connection)
            if not self._live_pass(connection) or time.monotonic() > until:
                break
        beside = self._settings.indexer.beside_tokens if self._live_lately() else None
        for embedder in self.embedders.values():
            embedder.pass_tokens = beside

    def _live_lately(self) -> bool:
        return time.monotonic() - self._live_at < LIVE_MEMORY_SECONDS

    def _bulk_size(self, lane: Lane) -> int:
        lane.bulk.transaction_seconds = BESIDE_SECONDS if self._live_lately() else TRANSACTION_SECONDS
        return lane.bulk.pace.size(self._settings.indexer.bulk_documents)

    def _wait(self, connection: Connection) -> None:
        """Until the inbox notifies, a resting row is due, or the poll time is over."""
        now = time.monotonic()
        timeout = min(self._settings.indexer.poll_seconds, max(0.01, self._next_reload - now))
        dues = [due for lane in self._lanes if lane.writes(now) and (due := lane.next_due) is not None]
        if dues:
            timeout = min(timeout, max(0.0, min(dues) - now))
        working = [lane for lane in self._lanes if lane.writes(now)]
        timeout = min([timeout, *(lane.scanner.wait() for lane in working)])
        moves = [lane.absorption.wait() for lane in working if lane.absorption is not None]
        timeout = min([timeout, *(wait for wait in moves if wait is not None)])
        timeout = min([timeout, *(max(0.01, lane.resume_at - now) for lane in self._lanes if lane.resume_at > now)])
        for _ in connection.notifies(timeout=timeout, stop_after=1):
            pass

    def _release(self, connection: Connection) -> None:
        for lane in self._lanes:
            if lane.lease is not None and not connection.closed:
                lane.lease.release(connection)


def indexers(
    catalog: Catalog, database: Database, settings: Settings, *, bulk: bool = True, observe: Observe
) -> list[Indexer]:
    """An indexer for each kind of store that has versions, or something left of one: one that hangs holds up no index
    in another."""
    wanted = (index.store.for_profile(settings.profile) for index in local_indexes(catalog, settings.profile))
    kinds = {kind for kind in wanted if kind is not None}
    with database.connect("sophia-indexer") as connection:
        kinds |= {version.store for version in active_versions(connection)} | unsettled_kinds(connection)
    # Without any: one that waits for the first.
    each: list[str | None] = [*sorted(kinds)] or [None]
    return [Indexer(catalog, database, settings, bulk=bulk, observe=observe, kind=kind) for kind in each]


class Stopped(Exception):
    """The process was told to stop in the middle of bulk work, which resumes at the next start."""
