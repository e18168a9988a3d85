"""The gates of a version: each passes where all is well, fails where its own question has another answer."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from sophia.embedding import Vectors
from sophia.indexing.gates import NAMES, Gate, run_gates
from sophia.indexing.versions import IndexVersion, serving_version
from sophia.stores import PgvectorStore, Query
from tests.catalogs import changed, replaced
from tests.embedders import HashEmbedder, hash_vector
from tests.integration.library import Library

STORE = PgvectorStore()


@pytest.fixture
def shelf(library: Library) -> Library:
    for number in range(120):
        library.put(number, f"title {number}", f"text {number}")
    library.repair()
    return library


@pytest.fixture
def candidate(shelf: Library) -> IndexVersion:
    """Version 2, filled, with a nearest-neighbour index."""
    version = shelf.version(shelf.with_index(template="{body}"))
    shelf.repair(version=version)
    STORE.finish(shelf.connection, version)
    return version


def gates(library: Library, version: IndexVersion, embedder: Any = None, **options: Any) -> dict[str, Gate]:
    found = run_gates(
        library.connection,
        version,
        STORE,
        lambda _version: embedder or library.embedder,
        serving=serving_version(library.connection, "documents"),
        **{"patience": 0.0} | options,
    )
    return {gate.name: gate for gate in found}


def failed(found: dict[str, Gate]) -> set[str]:
    return {name for name, gate in found.items() if not gate.passed}


def test_a_version_that_is_right_passes_all_and_says_its_figures(shelf: Library, candidate: IndexVersion) -> None:
    found = gates(shelf, candidate)
    assert tuple(found) == NAMES
    assert failed(found) == set()
    assert found["complete"].figures == {"documents": 120, "parked": 0, "waiting": 0, "shards_behind": 0}
    assert found["proven"].figures["chunks"] == 120
    assert found["recall"].figures["recall"] >= 0.95
    assert found["recall"].figures["queries"] > 50
    assert found["sample_queries"].figures["found"] == 1.0
    assert 0 <= found["sample_queries"].figures["overlap"] <= 1
    assert "documents v2 has 120 of 120 documents (0 parked)" in found["complete"].sentence


def test_only_the_gates_that_are_asked_for_run(shelf: Library, candidate: IndexVersion) -> None:
    assert list(gates(shelf, candidate, names=("recall",))) == ["recall"]


def test_rule_an_incomplete_version_fails(shelf: Library) -> None:
    version = shelf.version(shelf.with_index(template="{body}"))
    found = gates(shelf, version)
    assert failed(found) >= {"complete", "proven"}
    assert found["complete"].figures["waiting"] == 120
    assert "0 of 2 shards are compared" in found["complete"].sentence
    shelf.repair(version=version)
    assert failed(gates(shelf, version)) == set()


@pytest.mark.parametrize("change", ["insert", "update", "delete"])
def test_rule_a_change_that_waits_fails_complete(shelf: Library, candidate: IndexVersion, change: str) -> None:
    if change == "delete":
        shelf.delete(3)
    else:
        shelf.put(3 if change == "update" else 500, "t", "newer")
    assert "complete" in failed(gates(shelf, candidate))
    shelf.apply(3, 500, version=candidate)
    assert failed(gates(shelf, candidate)) == set()


def test_what_is_on_its_way_gets_a_moment(shelf: Library, candidate: IndexVersion) -> None:
    shelf.put(3, "t", "newer")

    def apply() -> None:
        with shelf.database.connect("indexer") as connection:
            writer = shelf.writer(candidate, HashEmbedder())
            writer.apply(connection, shelf_rows)

    shelf_rows = shelf.rows(3, version=candidate)
    timer = threading.Timer(0.5, apply)
    timer.start()
    found = gates(shelf, candidate, patience=20.0)
    timer.join()
    assert failed(found) == set()


def test_a_parked_document_is_counted_and_no_gap(shelf: Library) -> None:
    shelf.put(500, "t", "x" * 1_100_000)
    version = shelf.version(shelf.with_index(template="{body}"))
    shelf.repair(version=version)
    found = gates(shelf, version)
    assert found["complete"].passed
    assert found["complete"].figures["parked"] == 1


def test_rule_a_version_that_differs_fails_its_proof(shelf: Library, candidate: IndexVersion) -> None:
    shelf.connection.execute(f"DELETE FROM indexes.{candidate.store_name} WHERE key = '[7]'")
    found = gates(shelf, candidate)
    assert failed(found) == {"proven"}
    assert found["proven"].figures["missing"] == 1


def test_rule_recall_is_measured_against_exact_search(
    shelf: Library, candidate: IndexVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index that loses what is nearest fails; the exact side must not go through it."""
    search = PgvectorStore.search

    def lossy(self: PgvectorStore, connection: Any, version: IndexVersion, query: Query) -> Any:
        hits = search(self, connection, version, query)
        return hits if query.exact else hits[2:]

    monkeypatch.setattr(PgvectorStore, "search", lossy)
    found = gates(shelf, candidate, names=("recall",))
    assert failed(found) == {"recall"}
    assert found["recall"].figures["recall"] == pytest.approx(0.8, abs=0.02)


def scans(library: Library, version: IndexVersion) -> tuple[int, int]:
    """How often the version's table was read whole, and its nearest-neighbour index was used."""
    library.connection.execute("SELECT pg_stat_force_next_flush()")
    row = library.connection.execute(
        "SELECT t.seq_scan, i.idx_scan FROM pg_stat_user_tables t JOIN pg_stat_user_indexes i USING (relid) "
        "WHERE t.relname = %s AND i.indexrelname = %s",
        [version.store_name, f"{version.store_name}_hnsw"],
    ).fetchone()
    assert row is not None
    return row[0], row[1]


@pytest.mark.parametrize("exact", [False, True])
def test_exact_search_reads_everything_and_another_the_index(
    shelf: Library, candidate: IndexVersion, exact: bool
) -> None:
    before = scans(shelf, candidate)
    STORE.search(shelf.connection, candidate, Query(vector=hash_vector("text 5"), text="", k=1, exact=exact))
    after = scans(shelf, candidate)
    assert (after[0] - before[0], after[1] - before[1]) == ((1, 0) if exact else (0, 1))


def test_without_an_index_a_small_version_passes_and_a_large_one_does_not(
    shelf: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = serving_version(shelf.connection, "documents")
    found = gates(shelf, version, names=("recall",))["recall"]
    assert found.passed
    assert "no nearest-neighbour index" in found.sentence
    monkeypatch.setattr("sophia.indexing.gates.EXACT_CHUNKS", 100)
    assert not gates(shelf, version, names=("recall",))["recall"].passed


class Confused(HashEmbedder):
    """A model whose queries have nothing to do with its documents."""

    def embed_query(self, text: str) -> Vectors:
        return super().embed_query(f"something else than {text}")


def test_rule_queries_that_do_not_find_their_documents_fail(shelf: Library, candidate: IndexVersion) -> None:
    found = gates(shelf, candidate, Confused())
    assert failed(found) == {"sample_queries"}
    assert found["sample_queries"].figures["found"] < 0.5


def test_equal_texts_answer_for_each_other(library: Library) -> None:
    for number in range(60):
        library.put(number, "t", f"one of two {number % 2}")
    version = library.version()
    library.repair()
    STORE.finish(library.connection, version)
    assert failed(gates(library, version)) == set()


def test_a_required_filter_is_given(library: Library) -> None:
    library.catalog = library.with_index(required_filter="module")
    for number in range(40):
        library.put(number, "t", f"text {number}", module=f"m{number % 3}")
    version = library.version()
    library.repair()
    assert failed(gates(library, version)) == set()


def test_other_models_are_not_compared(shelf: Library) -> None:
    """Results of another model differ for good reason."""
    model = shelf.catalog.model(shelf.index.model)
    catalog = changed(shelf.catalog, models=replaced(shelf.catalog.models, model, version="next"))
    version = shelf.version(catalog)
    shelf.repair(version=version)
    found = gates(shelf, version)
    assert failed(found) == set()
    assert "overlap" not in found["sample_queries"].figures


def test_samples_are_the_same_for_a_seed_and_spread(shelf: Library, candidate: IndexVersion) -> None:
    def keys(seed: str) -> Sequence[str]:
        return [chunk.key for chunk in STORE.sample(shelf.connection, candidate, 100, seed)]

    assert keys("a") == keys("a")
    assert set(keys("a")) != set(keys("b"))
    assert len(set(keys("a"))) == len(keys("a")) > 40
