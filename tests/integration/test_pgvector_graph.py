"""Graphs that hold less than the vectors: what they find, in which order, and how one replaces another."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from sophia.catalog.models import GraphKind
from sophia.errors import SophiaError
from sophia.indexing.repair import finish_load
from sophia.indexing.search import search
from sophia.indexing.versions import IndexVersion
from sophia.stores import PgvectorStore, Query
from sophia.stores.pgvector_graph import Effort, build_progress, is_whole
from tests.embedders import hash_vector
from tests.integration.library import Library
from tests.waiting import until

KINDS: list[GraphKind] = ["full", "half", "binary"]


def load(library: Library, count: int = 600) -> None:
    for number in range(count):
        library.put(number, "", f"text {number}", module="rare" if number % 100 == 0 else "common", bulk=True)


def plan_of(library: Library, version: IndexVersion) -> str:
    """How the search for candidates is planned, as the last search on this connection was."""
    rows = library.connection.execute(
        "SELECT indexrelname FROM pg_stat_user_indexes WHERE schemaname = 'indexes' AND relname = %s AND idx_scan > 0 "
        "AND indexrelname LIKE '%%hnsw%%'",
        [version.store_name],
    )
    return " ".join(sorted(row[0] for row in rows))


@pytest.mark.parametrize("kind", KINDS)
def test_each_graph_is_used_and_orders_by_the_whole_vectors(library: Library, kind: GraphKind) -> None:
    load(library)
    version = library.version(library.with_index(graph=kind))
    library.repair(version=version)
    finish_load(library.connection, library.writer(version))
    assert is_whole(library.connection, version, kind)
    vector = hash_vector("text 17")
    step = np.random.default_rng(5).standard_normal(384).astype(np.float32) * 0.01
    wanted = Query(vector=vector + step, text="", k=5)
    found = PgvectorStore().search(library.connection, version, wanted)
    exact = PgvectorStore().search(library.connection, version, Query(vector=wanted.vector, text="", k=5, exact=True))
    assert found[0].key == "[17]"
    assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)
    # The score is that of the whole vectors, not of what the graph holds.
    assert found[0].score == pytest.approx(exact[0].score, abs=1e-6)
    until(lambda: version.store_name in plan_of(library, version), "the statistics of the graph's use")
    ending = {"full": "hnsw", "half": "hnsw_h", "binary": "hnsw_b"}[kind]
    assert plan_of(library, version) == f"{version.store_name}_{ending}"


@pytest.mark.parametrize("kind", ["half", "binary"])
def test_filters_and_hybrid_work_behind_every_graph(library: Library, kind: GraphKind) -> None:
    load(library)
    catalog = library.with_index(graph=kind)
    version = library.version(catalog)
    library.repair(version=version)
    finish_load(library.connection, library.writer(version))
    library.connection.execute("SET enable_seqscan = off")

    def find(**options: object) -> list[str]:
        hits = search(library.connection, "documents", "anything", lambda v: library.embedder, **options)  # type: ignore[arg-type]
        return [hit.key for hit in hits]

    assert len(find(k=6, filters={"module": "rare"})) == 6
    assert len(find(k=10, hybrid=True)) == 10


def test_a_search_before_the_graph_is_built_reads_all_vectors(library: Library) -> None:
    """A bit a dimension ranks so coarsely that candidates without a graph to justify them would only lose results."""
    # The 500 rows written last are compared exactly in any case.
    load(library, 1_000)
    version = library.version(library.with_index(graph="binary"))
    library.repair(version=version)
    for number in range(5):
        query = Query(vector=hash_vector(f"query {number}"), text="", k=10)
        found = PgvectorStore().search(library.connection, version, query)
        exact = PgvectorStore().search(library.connection, version, replace(query, exact=True))
        assert [hit.key for hit in found] == [hit.key for hit in exact]


def test_another_graph_is_another_index_of_the_same_version(library: Library) -> None:
    """The vectors are the same: nothing is embedded or written again, and the old graph goes when the new is whole."""
    load(library, 50)
    first = library.version()
    library.repair()
    finish_load(library.connection, library.writer(first))
    assert is_whole(library.connection, first, "full")
    embedded = len(library.embedder.texts)
    changed = library.version(library.with_index(graph="half"))
    assert changed.id == first.id
    assert changed.index.graph == "half"
    finish_load(library.connection, library.writer(changed))
    assert is_whole(library.connection, changed, "half")
    assert not is_whole(library.connection, changed, "full")
    assert len(library.embedder.texts) == embedded


@pytest.mark.parametrize(
    ("kind", "k", "visited", "candidates"),
    [("full", 10, 200, 10), ("half", 10, 200, 20), ("binary", 10, 200, 200), ("binary", 100, 1000, 2000)],
)
def test_the_effort_grows_with_what_the_graph_leaves_out(
    kind: GraphKind, k: int, visited: int, candidates: int
) -> None:
    assert Effort.of(kind, k) == Effort(visited, candidates)


def test_a_build_shows_how_far_it_is(library: Library) -> None:
    """Held up by an older transaction, as a real one is by a long reader; its phase is seen from another session."""
    load(library, 50)
    version = library.version()
    library.repair()
    with library.database.connect("builder") as builder:
        with library.database.connect("writer") as writer, writer.transaction():
            writer.execute(f"LOCK TABLE indexes.{version.store_name} IN ROW EXCLUSIVE MODE")
            thread = threading.Thread(target=finish_load, args=(builder, library.writer(version)))
            thread.start()
            until(lambda: build_progress(library.connection, version) is not None, "a build that is under way")
            shown = build_progress(library.connection, version)
        thread.join(60)
        assert not thread.is_alive()
    assert shown is not None
    assert shown.name == f"{version.store_name}_field0"
    assert "waiting for writers before build" in str(shown)
    assert build_progress(library.connection, version) is None


def test_a_required_filter_that_comes_later_is_required_at_once(library: Library) -> None:
    """It is no part of the identity: the version is the same, and must ask for it all the same."""
    library.put(1)
    library.apply(1)
    library.version(library.with_index(required_filter="module"))
    with pytest.raises(SophiaError, match="must be searched with a filter on 'module'"):
        search(library.connection, "documents", "t", lambda version: library.embedder)
