"""An embedder for tests: a vector is a function of the text alone, it costs nothing, and it counts what it is asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sophia.catalog.models import Precision
from sophia.embedding.base import EmbeddingFigures, Kind, Vectors


class HashEmbedder:
    """Implements `sophia.embedding.base.Embedder`.

    Attributes:
        texts: every document text that was embedded, in order.
        before: called before each call of `embed`, with its texts; a test may block or raise here.
        pass_size: texts of one "forward pass"; `between` is called between two.
    """

    tokenizer: Any = None
    precision: Precision = "exact"
    backend = "hash"

    def __init__(self, dimension: int = 384, pass_size: int = 8) -> None:
        self.dimension = dimension
        self.max_tokens = 256
        self.fingerprint = f"hash-{dimension}"
        self.pass_size = pass_size
        self.figures = EmbeddingFigures()
        self.pass_tokens: int | None = None
        self.texts: list[str] = []
        self.queries: list[str] = []
        self.before: Callable[[Sequence[str]], None] = lambda texts: None

    def embed(
        self, texts: Sequence[str], between: Callable[[], None] = lambda: None, *, kind: Kind = "document"
    ) -> Vectors:
        self.before(texts)
        (self.queries if kind == "query" else self.texts).extend(texts)
        self.figures.texts += len(texts)
        self.figures.tokens += sum(len(text) // 4 + 2 for text in texts)
        for _ in range(self.pass_size, len(texts), self.pass_size):
            between()
        return np.stack([hash_vector(text, self.dimension) for text in texts])

    def embed_query(self, text: str) -> Vectors:
        vector: Vectors = self.embed([text], kind="query")[0]
        return vector


def hash_vector(text: str, dimension: int = 384) -> Vectors:
    """A unit vector that equal texts share and different texts do not."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    vector = np.random.default_rng(seed).standard_normal(dimension).astype(np.float32)
    unit: Vectors = vector / np.linalg.norm(vector)
    return unit
