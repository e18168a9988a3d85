"""Prometheus metrics of the console: its own requests, and the state of every index at the time of the scrape."""

from __future__ import annotations

import time
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sophia.indexing.status import IndexStatus

BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_INDEX = ("index", "version")


class Metrics:
    """The metrics of one application, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Histogram(
            "sophia_console_request_seconds",
            "Time to the end of the answer.",
            ("route", "method", "status"),
            buckets=BUCKETS,
            registry=self._registry,
        )
        self.feed_clients = self._gauge("sophia_console_feed_clients", "Open event streams.")
        self.feed_dropped = Counter(
            "sophia_console_feed_dropped", "Streams closed because they did not keep up.", registry=self._registry
        )
        self._database = self._gauge("sophia_database_up", "1 if the database answered this scrape.")
        self._dead_letters = self._gauge("sophia_dead_letters", "Parked documents.")
        self._lag = self._gauge("sophia_index_lag_seconds", "Source commit to searchable.", (*_INDEX, "quantile"))
        self._backlog = self._gauge("sophia_index_backlog", "Live documents that wait for the indexer.", _INDEX)
        self._documents = self._gauge("sophia_index_documents", "Documents that the store holds.", _INDEX)
        self._chunks = self._gauge("sophia_index_vectors", "Vectors that the store holds.", _INDEX)
        self._parked = self._gauge("sophia_index_parked", "Documents that cannot be indexed.", _INDEX)
        self._level = self._gauge("sophia_index_level", "1 if all that the inbox holds is in the store.", _INDEX)

    def _gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(name, text, labels, registry=self._registry)

    def set_indexes(self, indexes: Sequence[IndexStatus], dead_letters: int) -> None:
        """Take over the state of the indexes; versions that are gone are forgotten."""
        self._database.set(1)
        self._dead_letters.set(dead_letters)
        for gauge in (self._lag, self._backlog, self._documents, self._chunks, self._parked, self._level):
            gauge.clear()
        for status in indexes:
            labels = (status.index, str(status.version))
            for quantile, milliseconds in (("0.5", status.lag_p50_ms), ("0.95", status.lag_p95_ms)):
                if milliseconds is not None:
                    self._lag.labels(*labels, quantile).set(milliseconds / 1000)
            self._backlog.labels(*labels).set(status.backlog)
            self._documents.labels(*labels).set(status.indexed)
            self._chunks.labels(*labels).set(status.chunks)
            self._parked.labels(*labels).set(status.parked)
            self._level.labels(*labels).set(status.level)

    def set_database_down(self) -> None:
        """The database did not answer: what was known of the indexes stays."""
        self._database.set(0)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)


class RequestTimer:
    """Times every request by its route; event streams, which last for hours, are left out."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            # Paths that do not exist share one label: they are the client's to choose, and have no bound.
            route = _route(scope)
            if route != "/api/events":
                self._metrics.requests.labels(route, scope["method"], str(status)).observe(
                    time.perf_counter() - started
                )


def _route(scope: Scope) -> str:
    for route in scope["app"].routes if "app" in scope else ():
        if isinstance(route, Route) and route.path == scope["path"]:
            return route.path
    return "/static" if scope["path"].startswith("/static/") else "other"
