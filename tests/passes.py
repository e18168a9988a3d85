"""A backend for tests: vectors that tell texts apart, a clock that only passes move, faults on demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from sophia.catalog.models import EmbeddingModel
from sophia.embedding.base import Backend, DeviceMemoryError, Ids, Vectors
from sophia.embedding.local import LocalEmbedder

DIMENSION = 8


class Passes:
    """Implements `Backend`.

    Attributes:
        log: lengths of the texts of each pass that was begun.
        fails: whether a pass of such lengths finds no memory: when begun, when waited for, or not at all.
        seconds: what a pass of that many tokens takes.
        now: the time. A device that computes aside begins a pass when the one before it has ended.
        most_in_flight: most passes at a time between begin and fetch.
    """

    name = "passes"
    first_budget = 64
    largest_budget = 1_024

    def __init__(self, device: Literal["cpu", "cuda"] = "cpu", *, padded: bool = False) -> None:
        self.device = device
        self.padded = padded
        self.log: list[list[int]] = []
        self.fails: Callable[[list[int]], Literal["start", "wait"] | None] = lambda _: None
        self.seconds: Callable[[int], float] = lambda _: 1.0
        self.now = 0.0
        self.most_in_flight = 0
        self._in_flight = 0
        self._free = 0.0

    def start(self, batch: Sequence[Ids]) -> Callable[[], Vectors]:
        lengths = [len(ids) for ids in batch]
        self.log.append(lengths)
        fault = self.fails(lengths)
        if fault == "start":
            raise DeviceMemoryError("the test's limit")
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        self._free = ended = max(self._free, self.now) + self.seconds(sum(lengths))

        def wait() -> Vectors:
            self._in_flight -= 1
            self.now = max(self.now, ended)
            if fault == "wait":
                raise DeviceMemoryError("the test's limit")
            return np.stack([vector(ids) for ids in batch])

        return wait


def vector(ids: Ids) -> Vectors:
    """The vector of a text, shape (DIMENSION,)."""
    unit: Vectors = np.random.default_rng(ids.tolist()).normal(size=DIMENSION).astype(np.float32)
    return unit / np.float32(np.linalg.norm(unit))


def embedder(backend: Backend, tokenizer: Any, budget: int | None = None, max_tokens: int = 64) -> LocalEmbedder:
    """The engine over a backend."""
    model = EmbeddingModel(
        name="passes",
        description="A backend for tests.",
        provider="sentence-transformers",
        path="nowhere",
        dimension=DIMENSION,
        max_tokens=max_tokens,
        version="1",
    )
    return LocalEmbedder(model, "exact", "passes", backend, tokenizer, max_tokens, budget)
