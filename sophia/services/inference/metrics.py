"""Prometheus metrics of the service: its requests, what waits in the engine, and what the engine computed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import Scope

from sophia.embedding.scheduler import Scheduler
from sophia.services.access import note_of
from sophia.services.engine_metrics import EngineCollector
from sophia.services.inference.models import Loading
from sophia.services.web import method_label

BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 10.0, 30.0)


class Metrics:
    """The metrics of one service, in a registry of its own."""

    def __init__(self, loading: Loading) -> None:
        self._registry = CollectorRegistry()
        self._requests = Histogram(
            "sophia_inference_request_seconds",
            "Time to the end of the answer.",
            ("route", "method", "status"),
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._texts = Counter("sophia_inference_texts", "Texts of requests.", ("route",), registry=self._registry)
        self._tokens = Counter("sophia_inference_tokens", "Tokens of requests.", ("route",), registry=self._registry)
        self._registry.register(_Engine(loading))
        self._registry.register(EngineCollector(partial(_embedders, loading)))

    def observe(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request."""
        kept = note_of(scope)
        self._requests.labels(kept.route, method_label(scope), str(status)).observe(seconds)
        for counter, count in ((self._texts, kept.figures["texts"]), (self._tokens, kept.figures["tokens"])):
            if count:
                counter.labels(kept.route).inc(count)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)


class _Engine(Collector):
    """Whether and which model is loaded, and what waits for it, read at the time of the scrape."""

    def __init__(self, loading: Loading) -> None:
        self._loading = loading

    def collect(self) -> Iterator[Metric]:
        """Nothing but `loaded` before the models are."""
        yield GaugeMetricFamily("sophia_inference_loaded", "1 once the models are loaded.", self._loading.done)
        if not self._loading.done:
            return
        functions = self._loading.functions
        scheduler = functions.scheduler
        yield InfoMetricFamily(
            "sophia_inference_model",
            "The embedding model.",
            {
                "model": self._loading.functions.model.name,
                "precision": scheduler.precision,
                "backend": scheduler.backend,
                "fingerprint": scheduler.fingerprint,
            },
        )
        waiting = GaugeMetricFamily("sophia_inference_waiting_tokens", "Tokens that wait.", labels=("lane",))
        waiting.add_metric(("online",), scheduler.waiting("online"))
        waiting.add_metric(("bulk",), scheduler.waiting("bulk"))
        yield waiting
        if functions.results is not None:
            results = CounterMetricFamily(
                "sophia_inference_results", "Answers asked of the cache of results.", labels=("route", "outcome")
            )
            for labels, count in sorted(functions.results.counted.items()):
                results.add_metric(labels, count)
            yield results


def _embedders(loading: Loading) -> list[tuple[str, Scheduler]]:
    return [(loading.functions.model.name, loading.functions.scheduler)] if loading.done else []
