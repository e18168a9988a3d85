"""Prometheus metrics of the console: its own requests, and the state of every index at the time of the scrape."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.routing import Route
from starlette.types import Scope

from sophia.indexing.status import IndexStatus
from sophia.services.metrics import IndexGauges
from sophia.services.web import method_label

BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


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
        self.feed_clients = Gauge("sophia_console_feed_clients", "Open event streams.", registry=self._registry)
        self.feed_dropped = Counter(
            "sophia_console_feed_dropped", "Streams closed because they did not keep up.", registry=self._registry
        )
        self._indexes = IndexGauges(self._registry)

    def set_indexes(self, indexes: Sequence[IndexStatus], dead_letters: int) -> None:
        """Take over the state of the indexes; versions that are gone are forgotten."""
        self._indexes.set_progress(indexes, dead_letters)
        self._indexes.set_contents(indexes)

    def set_database_down(self) -> None:
        """The database did not answer: what was known of the indexes stays."""
        self._indexes.set_database_down()

    def observe(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request; event streams, which last for hours, are left out."""
        # Paths that do not exist share one label: they are the client's to choose, and have no bound.
        route = _route(scope)
        if route != "/api/events":
            self.requests.labels(route, method_label(scope), str(status)).observe(seconds)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)


def _route(scope: Scope) -> str:
    for route in scope["app"].routes if "app" in scope else ():
        if isinstance(route, Route) and route.path == scope["path"]:
            return route.path
    return "/static" if scope["path"].startswith("/static/") else "other"
