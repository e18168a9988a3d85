"""The embedders of queries: loaded in the background, one of each model, shared by all searches.

A search before its model is loaded is answered at once (`ModelLoadingError`, 503 with `Retry-After`) instead of
holding a database connection for the seconds that loading takes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

from sophia.catalog import Catalog
from sophia.catalog.models import EmbeddingModel, Precision
from sophia.embedding import Embedder
from sophia.embedding.scheduler import Scheduler
from sophia.errors import TemporaryError
from sophia.indexing.versions import IndexVersion, local_indexes
from sophia.settings import Settings

logger = logging.getLogger("sophia.console")
LoadEmbedder = Callable[[EmbeddingModel, Precision, Settings], Embedder]
# Tokens that may wait for a model: far more than the searches that the console runs at once.
WAITING_TOKENS = 65_536
# How long closing waits for the queries of a model; the server has ended its requests by then.
CLOSE_SECONDS = 1.0


class ModelLoadingError(TemporaryError):
    """The query model is not in memory yet."""


class QueryModels:
    """Embedders by model and precision class, each loaded once."""

    def __init__(self, settings: Settings, load: LoadEmbedder) -> None:
        self._settings = settings
        self._load = load
        # Models are loaded one after another: two at once only take longer.
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="console-models")
        self._lock = Lock()
        self._embedders: dict[str, Future[Scheduler]] = {}

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
            scheduler = future.result()
            if scheduler.died is not None:
                raise TemporaryError(f"model {model.name!r} is loaded again: {scheduler.died}")
        except Exception:
            # The reason may be gone by the next search (weights installed, disk freed).
            with self._lock:
                self._embedders.pop(_key(model, version.index.precision), None)
            raise
        return scheduler

    def close(self) -> None:
        """Load nothing more, and end the models' threads; that of a model being loaded when it was."""
        self._loader.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            loading = list(self._embedders.values())
        for future in loading:
            future.add_done_callback(_close)

    def _start(self, model: EmbeddingModel, precision: Precision) -> Future[Scheduler]:
        key = _key(model, precision)
        with self._lock:
            if key not in self._embedders:
                self._embedders[key] = self._loader.submit(self._make, model, precision)
            return self._embedders[key]

    def _make(self, model: EmbeddingModel, precision: Precision) -> Scheduler:
        try:
            embedder = self._load(model, precision, self._settings)
        except Exception as error:
            logger.error("model %s cannot be loaded: %s", model.name, error)
            raise
        return Scheduler(embedder, online_tokens=WAITING_TOKENS, bulk_tokens=WAITING_TOKENS)


def _close(loaded: Future[Scheduler]) -> None:
    if not loaded.cancelled() and loaded.exception() is None:
        loaded.result().close(CLOSE_SECONDS)


def _key(model: EmbeddingModel, precision: Precision) -> str:
    return f"{precision} {model.model_dump_json()}"
