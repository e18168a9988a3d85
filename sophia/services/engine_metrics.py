"""Prometheus metrics of embedders: what they counted themselves, read at the time of the scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sophia.embedding.base import Embedder, EmbeddingFigures

_LABELS = ("model", "precision", "backend")
_TEXTS = {
    "texts": "Texts that the engine was asked for.",
    "tokens": "Tokens that the engine computed.",
    "padding": "Tokens computed in vain, to make the texts of a pass equally long.",
    "passes": "Forward passes.",
    "seconds": "Time of the forward passes.",
    "duplicates": "Texts that equalled another of the same call.",
    "cache_hits": "Texts answered by the cache.",
    "refused": "Texts that cannot be embedded.",
    "out_of_memory": "Forward passes that had to be split.",
}


class EngineCollector(Collector):
    """The figures of embedders by model.

    Args:
        embedders: asked at each scrape for models' names and embedders.
    """

    def __init__(self, embedders: Callable[[], Iterable[tuple[str, Embedder]]]) -> None:
        self._embedders = embedders
        self._before: dict[tuple[str, ...], EmbeddingFigures] = {}

    def collect(self) -> Iterator[Metric]:
        """The counters, and the speed since the last scrape."""
        now: dict[tuple[str, ...], EmbeddingFigures] = {}
        for model, embedder in self._embedders():
            labels: tuple[str, ...] = (model, embedder.precision, embedder.backend)
            # Of two entries of one name.
            now[labels] = _sum(now.get(labels, EmbeddingFigures()), embedder.figures)
        for name, text in _TEXTS.items():
            counter = CounterMetricFamily(f"sophia_engine_{name}", text, labels=_LABELS)
            for labels, figures in now.items():
                counter.add_metric(labels, getattr(figures, name))
            yield counter
        speed = GaugeMetricFamily(
            "sophia_engine_tokens_per_second",
            "Tokens of a second of forward passes, since the last scrape; 0 when there were none.",
            labels=_LABELS,
        )
        for labels, figures in now.items():
            speed.add_metric(labels, figures.since(self._before.get(labels, EmbeddingFigures())).tokens_per_second)
        self._before = now
        yield speed


def _sum(one: EmbeddingFigures, other: EmbeddingFigures) -> EmbeddingFigures:
    names = [field.name for field in fields(EmbeddingFigures)]
    return replace(one, **{name: getattr(one, name) + getattr(other, name) for name in names})
