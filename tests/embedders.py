"""An embedder for tests: a vector is a function of the text alone, it costs nothing, and it counts what it is asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sophia.catalog.models import Precision
from sophia.embedding.base import EmbeddingFigures, Engine, Kind, RefusedTextsError, Vectors

# What a "forward pass" takes, as its figures say; nobody waits for it.
TOKENS_PER_SECOND = 100_000


class HashEmbedder:
    """Implements `sophia.embedding.base.Embedder`.

    Attributes:
        texts: every document text that was embedded, in order.
        before: called before each call of `embed`, with its texts; a test may block or raise here.
        refused: reasons by text, of texts that it cannot embed.
        probes: texts that were probed, in order; not among `texts`.
        pass_size: texts of one "forward pass"; `between` is called between two.
    """

    tokenizer: Any = None
    engine: Engine | None = None
    precision: Precision = "exact"

    def __init__(self, dimension: int = 384, pass_size: int = 8, backend: str = "hash") -> None:
        self.backend = backend
        self.dimension = dimension
        self.max_tokens = 256
        self.fingerprint = f"hash-{dimension}"
        self.pass_size = pass_size
        self.figures = EmbeddingFigures()
        self.pass_tokens: int | None = None
        self.texts: list[str] = []
        self.queries: list[str] = []
        self.probes: list[str] = []
        self.refused: dict[str, str] = {}
        self.before: Callable[[Sequence[str]], None] = lambda texts: None

    def embed(
        self, texts: Sequence[str], between: Callable[[], None] = lambda: None, *, kind: Kind = "document"
    ) -> Vectors:
        self.before(texts)
        (self.queries if kind == "query" else self.texts).extend(texts)
        self.figures.texts += len(texts)
        for start in range(0, len(texts), self.pass_size):
            if start:
                between()
            tokens = sum(len(text) // 4 + 2 for text in texts[start : start + self.pass_size])
            self.figures.tokens += tokens
            self.figures.passes += 1
            self.figures.seconds += tokens / TOKENS_PER_SECOND
        vectors = np.stack([hash_vector(text, self.dimension) for text in texts])
        reasons = {place: self.refused[text] for place, text in enumerate(texts) if text in self.refused}
        if reasons:
            self.figures.refused += len(reasons)
            vectors[list(reasons)] = 0
            raise RefusedTextsError(vectors, reasons)
        return vectors

    def embed_query(self, text: str) -> Vectors:
        vector: Vectors = self.embed([text], kind="query")[0]
        return vector

    def probe(self, texts: Sequence[str]) -> Vectors:
        self.probes.extend(texts)
        return np.stack([hash_vector(text, self.dimension) for text in texts])


def hash_vector(text: str, dimension: int = 384) -> Vectors:
    """A unit vector that equal texts share and different texts do not."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    vector = np.random.default_rng(seed).standard_normal(dimension).astype(np.float32)
    unit: Vectors = vector / np.linalg.norm(vector)
    return unit
