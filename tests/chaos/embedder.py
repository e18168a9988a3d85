"""The workers' embedder: a vector is a function of model and text, and every call is counted in a file."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sophia.catalog.models import Precision
from sophia.embedding.base import EmbeddingFigures, Engine, Kind, Vectors
from tests.chaos.tables import DIMENSION


class ChaosEmbedder:
    """Implements `sophia.embedding.Embedder`.

    Args:
        calls: a file descriptor to which each call appends the number of its texts, or None.
        delay: seconds that a forward pass takes.
    """

    tokenizer: Any = None
    pass_size = 64
    pass_tokens: int | None = None
    precision: Precision = "exact"
    backend = "chaos"
    engine: Engine | None = None

    def __init__(self, model: str, calls: int | None = None, delay: float = 0.0) -> None:
        self.model = model
        self.dimension = DIMENSION
        self.max_tokens = 1024
        self.fingerprint = model
        self.figures = EmbeddingFigures()
        self._calls = calls
        self._delay = delay

    def embed(
        self, texts: Sequence[str], between: Callable[[], None] = lambda: None, *, kind: Kind = "document"
    ) -> Vectors:
        if self._calls is not None:
            os.write(self._calls, f"{len(texts)}\n".encode())
        for start in range(0, len(texts), self.pass_size):
            if start:
                between()
            time.sleep(self._delay)
        return self._vectors(texts)

    def embed_query(self, text: str) -> Vectors:
        vector: Vectors = self.embed([text])[0]
        return vector

    def probe(self, texts: Sequence[str]) -> Vectors:
        return self._vectors(texts)

    def _vectors(self, texts: Sequence[str]) -> Vectors:
        digests = [hashlib.shake_256(f"{self.model}\0{text}".encode()).digest(2 * self.dimension) for text in texts]
        numbers = np.frombuffer(b"".join(digests), dtype=">u2").reshape(len(texts), self.dimension)
        vectors = numbers.astype(np.float32) - np.float32(32767.5)
        unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit
