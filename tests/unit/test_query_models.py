"""The console's models: handed out once they are loaded, shared by threads, and ended with the console."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sophia.catalog import Catalog
from sophia.embedding import Embedder
from sophia.errors import ConfigurationError, TemporaryError
from sophia.services.console.models import ModelLoadingError, QueryModels
from sophia.settings import Settings
from tests.embedders import HashEmbedder, hash_vector
from tests.waiting import until


@pytest.fixture
def version(catalog: Catalog) -> Any:
    return SimpleNamespace(model=catalog.model("minilm"), index=SimpleNamespace(precision="exact"))


def loaded(models: QueryModels, version: Any) -> Embedder:
    def embedder() -> Embedder | None:
        try:
            return models.embedder(version)
        except ModelLoadingError:
            return None

    found = until(embedder, "the model")
    assert found is not None
    return found


def test_many_threads_share_a_model_that_serves_one_at_a_time(settings: Settings, version: Any) -> None:
    embedder = HashEmbedder()
    using = threading.Lock()

    def alone(texts: Any) -> None:
        assert using.acquire(blocking=False), "two threads use the embedder at once"
        using.release()

    embedder.before = alone
    models = QueryModels(settings, lambda *_: embedder)
    shared = loaded(models, version)
    queries = [f"query {number}" for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        vectors = list(pool.map(shared.embed_query, queries))
    assert np.array_equal(np.stack(vectors), np.stack([hash_vector(query) for query in queries]))
    models.close()


def test_closing_ends_the_threads_also_that_of_a_model_which_is_being_loaded(settings: Settings, version: Any) -> None:
    before = set(threading.enumerate())
    go = threading.Event()
    loading = threading.Event()

    def load(model: Any, precision: Any, _: Settings) -> Embedder:
        if precision == "fast":
            loading.set()
            assert go.wait(60)
        return HashEmbedder()

    models = QueryModels(settings, load)
    shared = loaded(models, version)
    slow = SimpleNamespace(model=version.model, index=SimpleNamespace(precision="fast"))
    with pytest.raises(ModelLoadingError):
        models.embedder(slow)
    assert loading.wait(60)
    models.close()
    with pytest.raises(TemporaryError, match="closed"):
        shared.embed_query("late")
    go.set()
    until(lambda: not set(threading.enumerate()) - before, "the end of all threads")


def test_model_that_could_not_be_loaded_is_tried_again(settings: Settings, version: Any) -> None:
    faults = [ConfigurationError("no weights")]

    def load(*_: Any) -> Embedder:
        if faults:
            raise faults.pop()
        return HashEmbedder()

    models = QueryModels(settings, load)
    with pytest.raises(ConfigurationError, match="no weights"):
        loaded(models, version)
    assert loaded(models, version).dimension == 384
    models.close()


class PowerCutError(BaseException):
    """Nothing that a thread outlives."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_model_whose_thread_has_died_is_loaded_again(settings: Settings, version: Any) -> None:
    broken = HashEmbedder()

    def cut(texts: Any) -> None:
        raise PowerCutError

    broken.before = cut
    embedders = [HashEmbedder(), broken]
    models = QueryModels(settings, lambda *_: embedders.pop())
    with pytest.raises(TemporaryError, match="died"):
        loaded(models, version).embed_query("last")
    with pytest.raises(TemporaryError, match="is loaded again"):
        models.embedder(version)
    assert np.array_equal(loaded(models, version).embed_query("next"), hash_vector("next"))
    models.close()
