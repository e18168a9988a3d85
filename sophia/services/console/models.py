"""The embedders of queries: loaded in the background, one of each model, one query at a time.

A search before its model is loaded is answered at once (`ModelLoadingError`, 503 with `Retry-After`) instead of
holding a database connection for the seconds that loading takes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any

from sophia.catalog import Catalog
from sophia.catalog.models import EmbeddingModel, Precision
from sophia.embedding import Embedder, Vectors
from sophia.embedding.base import Kind
from sophia.errors import TemporaryError
from sophia.indexing.versions import IndexVersion, local_indexes
from sophia.settings import Settings

logger = logging.getLogger("sophia.console")
LoadEmbedder = Callable[[EmbeddingModel, Precision, Settings], Embedder]


class ModelLoadingError(TemporaryError):
    """The query model is not in memory yet."""


class SharedEmbedder:
    """An embedder that many threads may call: one at a time, in any order. Implements `Embedder`."""

    def __init__(self, embedder: Embedder) -> None:
        self.fingerprint = embedder.fingerprint
        self.precision = embedder.precision
        self.backend = embedder.backend
        self.figures = embedder.figures
        self.dimension = embedder.dimension
        self.max_tokens = embedder.max_tokens
        self.pass_tokens = embedder.pass_tokens
        self._embedder = embedder
        self._lock = Lock()

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the model."""
        return self._embedder.tokenizer

    def embed(
        self, texts: Sequence[str], between: Callable[[], None] = lambda: None, *, kind: Kind = "document"
    ) -> Vectors:
        """See `Embedder.embed`."""
        with self._lock:
            return self._embedder.embed(texts, between, kind=kind)

    def embed_query(self, text: str) -> Vectors:
        """See `Embedder.embed_query`."""
        with self._lock:
            return self._embedder.embed_query(text)


class QueryModels:
    """Embedders by model and precision class, each loaded once."""

    def __init__(self, settings: Settings, load: LoadEmbedder) -> None:
        self._settings = settings
        self._load = load
        # Models are loaded one after another: two at once only take longer.
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="console-models")
        self._lock = Lock()
        self._embedders: dict[str, Future[SharedEmbedder]] = {}

    def preload(self, catalog: Catalog) -> None:
        """Begin to load the models of this profile's indexes."""
        for index in local_indexes(catalog, self._settings.profile):
            self._start(catalog.model(index.model), index.precision)

    def embedder(self, version: IndexVersion) -> Embedder:
        """The embedder of a version's queries.

        Raises:
            ModelLoadingError: it is being loaded; ask again.
            ConfigurationError: it cannot be loaded.
        """
        model = version.model
        future = self._start(model, version.index.precision)
        if not future.done():
            raise ModelLoadingError(f"model {model.name!r} is being loaded; try again in a moment")
        try:
            return future.result()
        except Exception:
            # The reason may be gone by the next search (weights installed, disk freed).
            with self._lock:
                self._embedders.pop(_key(model, version.index.precision), None)
            raise

    def close(self) -> None:
        """Load nothing more."""
        self._loader.shutdown(wait=False, cancel_futures=True)

    def _start(self, model: EmbeddingModel, precision: Precision) -> Future[SharedEmbedder]:
        key = _key(model, precision)
        with self._lock:
            if key not in self._embedders:
                self._embedders[key] = self._loader.submit(self._make, model, precision)
            return self._embedders[key]

    def _make(self, model: EmbeddingModel, precision: Precision) -> SharedEmbedder:
        try:
            return SharedEmbedder(self._load(model, precision, self._settings))
        except Exception as error:
            logger.error("model %s cannot be loaded: %s", model.name, error)
            raise


def _key(model: EmbeddingModel, precision: Precision) -> str:
    return f"{precision} {model.model_dump_json()}"
