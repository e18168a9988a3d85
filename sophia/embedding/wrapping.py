"""What an embedder that stands before another one passes on unchanged."""

from __future__ import annotations

from typing import Any

from sophia.embedding.base import Embedder, Engine


class Wrapper:
    """The attributes of `Embedder` that say which model and engine it is, all but `pass_tokens`.

    Attributes:
        inner: the embedder behind.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.inner = embedder
        self.fingerprint = embedder.fingerprint
        self.precision = embedder.precision
        self.backend = embedder.backend
        self.dimension = embedder.dimension
        self.max_tokens = embedder.max_tokens
        self.figures = embedder.figures

    @property
    def tokenizer(self) -> Any:
        """See `Embedder`."""
        return self.inner.tokenizer

    @property
    def engine(self) -> Engine | None:
        """See `Embedder.engine`."""
        return self.inner.engine
