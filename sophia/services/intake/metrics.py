"""Prometheus metrics of the intake. Labels are the catalog's collections and a few reasons: no caller can add one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import Counter, Gauge, Histogram
from starlette.types import Scope

from sophia import sql
from sophia.database import Database
from sophia.estuary.intake.take import Taken
from sophia.services.access import note_of
from sophia.services.metrics import SECONDS, Connection, ProcessMetrics
from sophia.services.web import method_label

Q = sql.load("intake")
# Why a request was refused, by the status of its answer.
_REFUSED = {
    401: "token",
    404: "unknown",
    405: "method",
    408: "slow",
    413: "large",
    415: "media",
    499: "cut off",
    503: "database",
}
_COLLECTION = ("collection",)


class IntakeMetrics(ProcessMetrics):
    """What comes in, and what becomes of it.

    Args:
        names: full Estuary names of the collections that are taken.
    """

    def __init__(self, database: Database, names: Sequence[str]) -> None:
        super().__init__(database, "sophia-intake-metrics")
        self._names = list(names)
        self._documents = Counter(
            "sophia_intake_documents",
            "Documents by what became of them: taken, duplicate, stale, parked.",
            (*_COLLECTION, "outcome"),
            registry=self.registry,
        )
        self._bytes = Counter("sophia_intake_bytes", "Bytes of bodies.", ("route",), registry=self.registry)
        self._requests = Histogram(
            "sophia_intake_request_seconds",
            "Time to the end of the answer, waiting included.",
            ("route", "method", "status"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._transactions = Histogram(
            "sophia_intake_transaction_seconds",
            "Time of an inbox transaction, reading the documents included.",
            _COLLECTION,
            buckets=SECONDS,
            registry=self.registry,
        )
        self._refused = Counter(
            "sophia_intake_refused", "Requests that were not taken, by reason.", ("reason",), registry=self.registry
        )
        self._watermark = Gauge(
            "sophia_estuary_watermark_seconds",
            "Time up to which Estuary has delivered everything, in seconds since 1970.",
            _COLLECTION,
            registry=self.registry,
        )
        self._waiting = Gauge(
            "sophia_intake_waiting",
            "Requests that wait: for room in memory, or for a transaction.",
            ("for",),
            registry=self.registry,
        )

    def watch_waiting(self, name: str, count: Callable[[], int]) -> None:
        """Ask at each scrape how many requests wait for what is named."""
        self._waiting.labels(name).set_function(count)

    def observe_request(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request."""
        kept = note_of(scope)
        self._requests.labels(kept.route, method_label(scope), str(status)).observe(seconds)
        if kept.figures["bytes"]:
            self._bytes.labels(kept.route).inc(kept.figures["bytes"])
        if status >= 400:
            self._refused.labels(_REFUSED.get(status, "other")).inc()

    def observe_taken(self, name: str, taken: Taken, seconds: float) -> None:
        """Count a transaction; called on the threads that write."""
        self._transactions.labels(name).observe(seconds)
        plain = taken.documents - taken.duplicates - taken.stale - taken.parked_documents
        outcomes = {"taken": plain, "duplicate": taken.duplicates, "stale": taken.stale, "parked": taken.parked}
        for outcome, count in outcomes.items():
            if count > 0:
                self._documents.labels(name, outcome).inc(count)

    def collect(self, connection: Connection) -> None:
        """Ask for the watermarks too."""
        super().collect(connection)
        for name, until in connection.execute(Q["watermarks"], {"names": self._names}):
            self._watermark.labels(name).set(until.timestamp())
