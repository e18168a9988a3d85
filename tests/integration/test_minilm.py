"""The real small model: what the cheap embedder of the other tests stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sophia.catalog import Catalog
from sophia.catalog.models import EmbeddingModel
from sophia.embedding import Embedder, agreement, load_embedder, model_fingerprint
from sophia.embedding.scheduler import Scheduler
from sophia.errors import ConfigurationError
from sophia.indexing.search import search
from sophia.indexing.text import Texts
from sophia.indexing.verify import verify
from sophia.settings import load_settings
from sophia.stores import PgvectorStore
from tests.integration.library import Library

TEXTS = ["A short text.", "Another one, a little longer than the first.", "word " * 150, "The deploy failed.", "x"] * 3


@pytest.fixture(scope="module")
def model(catalog: Catalog) -> EmbeddingModel:
    return catalog.model("minilm")


@pytest.fixture(scope="module")
def minilm(model: EmbeddingModel) -> Embedder:
    return load_embedder(model, "exact", load_settings(device="cpu"))


def test_vectors_are_unit_vectors_in_the_order_given(minilm: Embedder) -> None:
    vectors = minilm.embed(TEXTS)
    assert (vectors.shape, vectors.dtype) == ((len(TEXTS), 384), np.float32)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for text, vector in zip(TEXTS[:5], vectors[:5], strict=True):
        assert float(np.dot(minilm.embed([text])[0], vector)) >= 0.9998, "a vector depends on its batch"


def test_fast_is_computed_in_float32_where_bfloat16_breaks_its_promise(
    model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "FAST", 0.999999)
    fast = load_embedder(model, "fast", load_settings(device="cpu", embedding={"backend": "torch"}))
    assert ("float32" in fast.backend, fast.precision) == (True, "fast")


def test_between_is_called_between_two_passes_only(minilm: Embedder) -> None:
    calls: list[int] = []
    minilm.embed(["short"], lambda: calls.append(1))
    assert calls == []
    minilm.embed([f"{number} " + "word " * 200 for number in range(4)], lambda: calls.append(1))
    assert len(calls) >= 1


def test_shared_by_a_bulk_job_and_online_requests_it_computes_the_same_vectors(minilm: Embedder) -> None:
    job = [f"{number} {text}" for number in range(2) for text in TEXTS]
    queries = [f"query {number}" for number in range(12)]
    documents, found = minilm.embed(job), [minilm.embed_query(query) for query in queries]
    scheduler = Scheduler(minilm, online_tokens=10_000, bulk_tokens=100_000)
    bulk = scheduler.submit(job, lane="bulk")
    online = [scheduler.submit([query], kind="query") for query in queries]
    order: list[str] = []
    for name, future in [("bulk", bulk), *(("online", future) for future in online)]:
        future.add_done_callback(lambda _, name=name: order.append(name))
    scheduler.close(120)
    assert order == ["online"] * len(queries) + ["bulk"]
    assert np.abs(bulk.result(0) - documents).max() <= 1e-5
    for future, vector in zip(online, found, strict=True):
        assert np.abs(future.result(0)[0] - vector).max() <= 1e-5


def test_model_of_another_dimension_is_a_clear_fault(model: EmbeddingModel) -> None:
    with pytest.raises(ConfigurationError, match=r"set `dimension: 384` in models\.yaml"):
        load_embedder(model.model_copy(update={"dimension": 385}), "exact", load_settings(device="cpu"))


def test_model_that_is_not_there_is_a_clear_fault_and_no_download(model: EmbeddingModel) -> None:
    with pytest.raises(ConfigurationError, match="pip install no-such-package"):
        load_embedder(model.model_copy(update={"path": "package:no_such_package"}), "exact", load_settings())
    with pytest.raises(ConfigurationError, match="SOPHIA_HUB=true"):
        load_embedder(model.model_copy(update={"path": "/nowhere/at/all"}), "exact", load_settings())


@pytest.mark.parametrize(
    "change",
    [
        {"version": "other"},
        {"max_tokens": 128},
        {"query_prefix": "q: "},
        {"document_prefix": "d: "},
        {"dimension": 385},
    ],
)
def test_fingerprint_changes_with_what_decides_a_vector(model: EmbeddingModel, change: dict[str, Any]) -> None:
    assert model_fingerprint(model, "exact") == model_fingerprint(model, "exact")
    assert model_fingerprint(model.model_copy(update=change), "exact") != model_fingerprint(model, "exact")
    assert model_fingerprint(model, "fast") != model_fingerprint(model, "exact")


def test_fingerprint_follows_the_files(model: EmbeddingModel, tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("a")
    local = model.model_copy(update={"path": str(tmp_path)})
    first = model_fingerprint(local, "exact")
    (tmp_path / "README.md").write_text("b")
    assert model_fingerprint(local, "exact") == first
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert model_fingerprint(local, "exact") != first


@pytest.mark.parametrize(
    "text",
    ["한국어 텍스트는 " * 20, "日本語の文章。" * 30, "🦎🐍" * 60, "Ünïcödé " * 25, "word " * 400, "x" * 1500],
    ids=["hangul", "kana", "emoji", "accents", "words", "one long word"],
)
@pytest.mark.parametrize("length", [40, 190, 10_000])
def test_no_chunk_has_more_tokens_than_its_limit(minilm: Embedder, text: str, length: int) -> None:
    """What lies beyond the model's length is not seen, and is found by no search."""
    texts = Texts("{body}", 200, 20, minilm.tokenizer, 1_000_000)
    chunks = texts.chunks({"body": text[:length]})
    assert chunks
    encodings = minilm.tokenizer.encode_batch([chunk.content for chunk in chunks])
    assert max(len(encoding.ids) for encoding in encodings) <= 202 <= minilm.max_tokens


def test_search_finds_by_meaning_and_the_proof_holds(library: Library, minilm: Embedder) -> None:
    library.put(1, "Cats", "A kitten sleeps on the sofa all day long.")
    library.put(2, "Databases", "The transaction log is flushed before a commit returns.")
    library.put(3, "Cooking", "Simmer the onions in butter until they are soft.")
    library.embedder = minilm  # type: ignore[assignment]
    library.repair()
    for query, expected in (("durability of writes", "[2]"), ("recipe with vegetables", "[3]"), ("pets", "[1]")):
        assert search(library.connection, "documents", query, lambda _: minilm, k=1)[0].key == expected
    proof = verify(library.connection, library.version(), PgvectorStore(), minilm)
    assert proof.holds
    assert (proof.documents, proof.sampled) == (3, 3)
    library.connection.execute(
        "UPDATE indexes.documents_v1 SET embedding = (SELECT embedding FROM indexes.documents_v1 WHERE key = '[1]')"
    )
    proof = verify(library.connection, library.version(), PgvectorStore(), minilm)
    assert not proof.holds
    assert "DIFFERS" in proof.sentence()
