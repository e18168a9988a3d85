"""An embedder for tests: a vector is a function of the text alone, it costs nothing, and it counts what it is asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sophia.embedding.base import Vectors


class HashEmbedder:
    """Implements `sophia.embedding.base.Embedder`.

    Attributes:
        texts: every document text that was embedded, in order.
        before: called before each call of `embed`, with its texts; a test may block or raise here.
        pass_size: texts of one "forward pass"; `between` is called between two.
    """

    tokenizer: Any = None

    def __init__(self, dimension: int = 384, pass_size: int = 8) -> None:
        self.dimension = dimension
        self.max_tokens = 256
        self.fingerprint = f"hash-{dimension}"
        self.pass_size = pass_size
        self.tokens_seen = 0
        self.pass_tokens: int | None = None
        self.texts: list[str] = []
        self.queries: list[str] = []
        self.before: Callable[[Sequence[str]], None] = lambda texts: None

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        return [len(text) // 4 + 2 for text in texts]

    def embed(self, texts: Sequence[str], between: Callable[[], None] = lambda: None) -> Vectors:
        self.before(texts)
        self.texts += texts
        self.tokens_seen += sum(self.token_counts(texts))
        for _ in range(self.pass_size, len(texts), self.pass_size):
            between()
        return np.stack([hash_vector(text, self.dimension) for text in texts])

    def embed_query(self, text: str) -> Vectors:
        self.queries.append(text)
        return hash_vector(text, self.dimension)


def hash_vector(text: str, dimension: int = 384) -> Vectors:
    """A unit vector that equal texts share and different texts do not."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    vector = np.random.default_rng(seed).standard_normal(dimension).astype(np.float32)
    unit: Vectors = vector / np.linalg.norm(vector)
    return unit
