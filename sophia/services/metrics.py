"""Prometheus metrics of the capture and the indexer, served with /health and /ready by the process itself.

What costs a query is asked when Prometheus asks, on a connection of its own and under a statement timeout; the hot loop
only hands over the figures of each batch. Documents are counted at most once a minute. A database that does not answer
makes `sophia_database_up` 0 and nothing else: what was known stays. The console shows the same gauges of the indexes.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import psycopg
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from psycopg.rows import TupleRow
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sophia import sql
from sophia.capture import CaptureSource
from sophia.capture.source import inspect_slot
from sophia.database.connect import Database, connect
from sophia.embedding import Embedder
from sophia.errors import SophiaError
from sophia.indexing.batch import Figures
from sophia.indexing.status import (
    IndexProgress,
    IndexStatus,
    capture_status,
    dead_letter_count,
    index_progress,
    index_status,
)
from sophia.indexing.versions import IndexVersion
from sophia.services.connections import BoundedConnection
from sophia.services.engine_metrics import EngineCollector
from sophia.services.listening import listen
from sophia.services.worker import Loop

logger = logging.getLogger("sophia.metrics")
Connection = psycopg.Connection[TupleRow]
Q = sql.load("status")
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
STATEMENT_TIMEOUT = "3s"
# Counting documents reads all of them.
COUNT_SECONDS = 60.0
# Log entries that one scrape looks at for the time from commit to inbox; in a flood the rest is left out.
INBOX_SAMPLE = 20_000
STOP_SECONDS = 5.0
_INDEX = ("index", "version")


class IndexGauges:
    """The state of every index at the time of the scrape. Versions that are gone are forgotten."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, labels: Sequence[str] = _INDEX) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        self._database = gauge("sophia_database_up", "1 if the database answered this scrape.", ())
        self._dead_letters = gauge("sophia_dead_letters", "Parked documents.", ())
        self._lag = gauge("sophia_index_lag_seconds", "Source commit to searchable.", (*_INDEX, "quantile"))
        self._backlog = gauge("sophia_index_backlog", "Live documents that wait for the indexer.")
        self._behind = gauge("sophia_index_shards_behind", "Shards that the bulk lane has still to compare.")
        self._level = gauge("sophia_index_level", "1 if all that the inbox holds is in the store.")
        self._position = gauge("sophia_index_position", "Position of the collection that the live lane reached.")
        self._verified = gauge("sophia_index_verified_position", "Position up to which changes were verified.")
        self._scanned = gauge("sophia_scan_progress", "Share of the present deep scan that is done.")
        self._cycle = gauge("sophia_scan_cycle_seconds", "Time of the last whole deep scan.")
        self._found = gauge("sophia_drift_found", "Documents that verification found to differ, in all.")
        self._repaired = gauge("sophia_drift_repaired", "Documents that verification repaired, in all.")
        self._fresh = gauge("sophia_index_fresh", "Vectors that are not in the nearest-neighbour graph yet, about.")
        self._documents = gauge("sophia_index_documents", "Documents that the store holds.")
        self._chunks = gauge("sophia_index_vectors", "Vectors that the store holds.")
        self._parked = gauge("sophia_index_parked", "Documents that cannot be indexed.")

    def set_progress(self, indexes: Sequence[IndexProgress], dead_letters: int) -> None:
        """Take over what is known without counting."""
        self._database.set(1)
        self._dead_letters.set(dead_letters)
        values: list[tuple[Gauge, Callable[[IndexProgress], float | None]]] = [
            (self._backlog, lambda p: p.backlog),
            (self._behind, lambda p: p.shards_behind),
            (self._level, lambda p: p.level),
            (self._position, lambda p: p.position),
            (self._verified, lambda p: p.verified),
            (self._scanned, lambda p: p.scanned),
            (self._cycle, lambda p: p.scan_seconds),
            (self._found, lambda p: p.drift_found),
            (self._repaired, lambda p: p.drift_repaired),
            (self._fresh, lambda p: p.fresh),
        ]
        self._lag.clear()
        for gauge, value in values:
            gauge.clear()
            for progress in indexes:
                number = value(progress)
                if number is not None:
                    gauge.labels(progress.index, str(progress.version)).set(number)
        for progress in indexes:
            for quantile, milliseconds in (("0.5", progress.lag_p50_ms), ("0.95", progress.lag_p95_ms)):
                if milliseconds is not None:
                    self._lag.labels(progress.index, str(progress.version), quantile).set(milliseconds / 1000)

    def set_contents(self, indexes: Sequence[IndexStatus]) -> None:
        """Take over what had to be counted."""
        for gauge in (self._documents, self._chunks, self._parked):
            gauge.clear()
        for status in indexes:
            labels = (status.index, str(status.version))
            self._documents.labels(*labels).set(status.indexed)
            self._chunks.labels(*labels).set(status.chunks)
            self._parked.labels(*labels).set(status.parked)

    def set_database_down(self) -> None:
        """The database did not answer: what was known of the indexes stays."""
        self._database.set(0)


class ProcessMetrics:
    """A process's registry, and the connection that a scrape asks on. Base of the two processes' metrics."""

    def __init__(self, database: Database, name: str) -> None:
        self.registry = CollectorRegistry()
        self.indexes = IndexGauges(self.registry)
        self._database = database
        self._name = name
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self._count_at = 0.0

    def text(self) -> bytes:
        """The exposition format, after asking the database."""
        with self._lock:
            try:
                self.collect(self._connected())
            except (psycopg.Error, SophiaError) as error:
                logger.warning("metrics: %s", error)
                self.indexes.set_database_down()
                self.close()
            return generate_latest(self.registry)

    def collect(self, connection: Connection) -> None:
        """Ask what costs a query."""
        self.indexes.set_progress(index_progress(connection), dead_letter_count(connection))

    def collect_contents(self, connection: Connection) -> None:
        """Count what the indexes hold, at most once in `COUNT_SECONDS`; too much to count in time is left out."""
        if time.monotonic() < self._count_at:
            return
        self._count_at = time.monotonic() + COUNT_SECONDS
        with contextlib.suppress(psycopg.errors.QueryCanceled):
            self.indexes.set_contents(index_status(connection))

    def close(self) -> None:
        """Give the connection up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = _limited(connect(self._database.url, self._name))
        return self._connection


class IndexerMetrics(ProcessMetrics):
    """What the indexer does. `observe` is called after each batch, in the hot loop; it only counts."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, "sophia-indexer-metrics")
        labels = (*_INDEX, "lane")
        self._documents = Counter(
            "sophia_documents_applied", "Documents written, deletes included.", labels, registry=self.registry
        )
        self._embeddings = Counter(
            "sophia_embeddings",
            "Texts by what their vector cost: paid or reused.",
            (*labels, "kind"),
            registry=self.registry,
        )
        self._sizes = Histogram(
            "sophia_batch_documents", "Documents of a batch.", labels, buckets=SIZES, registry=self.registry
        )
        self._stages = Histogram(
            "sophia_stage_seconds",
            "Time of a batch in each stage: until_taken (source commit of its oldest document to the indexer), embed, "
            "store, and commit_to_searchable in all.",
            (*labels, "stage"),
            buckets=SECONDS,
            registry=self.registry,
        )

    def watch(self, embedders: Mapping[tuple[str, str], Embedder]) -> None:
        """From now on also tell the figures of an indexer's embedders, as they are at each scrape."""
        self.registry.register(EngineCollector(lambda: [(name, each) for (name, _), each in list(embedders.items())]))

    def observe(self, version: IndexVersion, lane: str, figures: Figures) -> None:
        """Count one batch."""
        labels = (version.index_name, str(version.number), lane)
        self._documents.labels(*labels).inc(figures.documents)
        self._embeddings.labels(*labels, "paid").inc(figures.embedded)
        self._embeddings.labels(*labels, "reused").inc(figures.reused)
        self._sizes.labels(*labels).observe(figures.documents)
        if figures.embedded:
            self._stages.labels(*labels, "embed").observe(figures.embed_seconds)
        self._stages.labels(*labels, "store").observe(figures.store_seconds)
        for milliseconds in figures.lag_ms:
            self._stages.labels(*labels, "commit_to_searchable").observe(milliseconds / 1000)
            before = milliseconds / 1000 - figures.embed_seconds - figures.store_seconds
            self._stages.labels(*labels, "until_taken").observe(max(0.0, before))

    def collect(self, connection: Connection) -> None:
        """Ask for the indexes' progress, and now and then for their contents."""
        super().collect(connection)
        self.collect_contents(connection)


class CaptureMetrics(ProcessMetrics):
    """How the captures of this process are doing."""

    def __init__(self, database: Database, sources: Sequence[CaptureSource]) -> None:
        super().__init__(database, "sophia-capture-metrics")
        self._sources = sources
        self._last_id: int | None = None
        self._retained = Gauge(
            "sophia_slot_retained_bytes", "Log that the source keeps for the slot.", ("source",), registry=self.registry
        )
        self._up = Gauge(
            "sophia_source_up", "1 if the source answered this scrape.", ("source",), registry=self.registry
        )
        self._tables = Gauge(
            "sophia_capture_tables",
            "Tables by whether they were copied.",
            ("source", "complete"),
            registry=self.registry,
        )
        self._stages = Histogram(
            "sophia_stage_seconds",
            "Time of a change in a stage: wal_to_inbox, from its commit to the inbox.",
            ("stage",),
            buckets=SECONDS,
            registry=self.registry,
        )

    def collect(self, connection: Connection) -> None:
        """Ask our database for the inbox, and each source for its slot."""
        super().collect(connection)
        for status in capture_status(connection):
            self._tables.labels(status.source, "yes").set(status.complete)
            self._tables.labels(status.source, "no").set(status.tables - status.complete)
        self._collect_inbox(connection)
        for source in self._sources:
            if source.url == self._database.url:
                self._collect_slot(connection, source)
                continue
            try:
                with _limited(connect(source.url, "sophia-capture-metrics")) as remote:
                    self._collect_slot(remote, source)
            except (psycopg.Error, SophiaError) as error:
                logger.warning("metrics: source %s: %s", source.name, error)
                self._up.labels(source.name).set(0)

    def _collect_slot(self, connection: Connection, source: CaptureSource) -> None:
        slot = inspect_slot(connection, source.slot)
        self._up.labels(source.name).set(1)
        self._retained.labels(source.name).set(slot.retained_bytes if slot is not None else 0)

    def _collect_inbox(self, connection: Connection) -> None:
        """Times of what came in since the last scrape, which the log holds already: the hot loop need not count."""
        if self._last_id is None:
            row = connection.execute(Q["last_taken"]).fetchone()
            self._last_id = int(row[0]) if row else 0
        rows = connection.execute(Q["taken"], {"after": self._last_id, "limit": INBOX_SAMPLE}).fetchall()
        for last_id, seconds in rows:
            self._last_id = max(self._last_id, last_id)
            if seconds is not None:
                self._stages.labels("wal_to_inbox").observe(max(0.0, float(seconds)))


@contextlib.contextmanager
def exposed(metrics: ProcessMetrics, host: str, port: int, loops: Sequence[Loop], variable: str) -> Iterator[None]:
    """Serve /metrics, /health and /ready in a thread for as long as the block runs; nothing when the port is 0.

    Args:
        loops: what the process runs; /ready answers 503 unless each of them does its work now.
        variable: the setting that names the port, for the message.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """
    if port == 0:
        yield
        return
    listener = listen(host, port, variable)
    config = uvicorn.Config(
        _application(metrics, loops), http=BoundedConnection, log_level="warning", access_log=False, server_header=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(STOP_SECONDS)
        listener.close()
        metrics.close()


def _application(metrics: ProcessMetrics, loops: Sequence[Loop]) -> Starlette:
    async def health(request: Request) -> Response:
        return JSONResponse({"status": "up"})

    async def readiness(request: Request) -> Response:
        waiting = [loop.name for loop in loops if not loop.ready.is_set()]
        if not waiting:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready", "waiting": waiting}, 503, {"Retry-After": "1"})

    def exposition(request: Request) -> Response:
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return Starlette(
        routes=[Route("/metrics", exposition), Route("/health", health), Route("/ready", readiness)],
    )


def _limited(connection: Connection) -> Connection:
    connection.execute("SELECT set_config('statement_timeout', %s, false)", [STATEMENT_TIMEOUT])
    return connection
