"""Search: one look-up for version and model, filters, fusion, messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from sophia.errors import SophiaError
from sophia.indexing.repair import finish_load
from sophia.indexing.search import search
from sophia.indexing.versions import IndexVersion
from sophia.stores import Hit
from tests.embedders import hash_vector
from tests.integration.library import Library


@pytest.fixture
def shelf(library: Library) -> Library:
    for number in range(1, 31):
        library.put(
            number,
            f"title {number}",
            "a purple elephant dances" if number == 7 else f"plain text {number}",
            module="even" if number % 2 == 0 else "odd",
            kind="class" if number <= 3 else "function",
        )
    library.repair()
    return library


def find(library: Library, text: str, **options: Any) -> list[Hit]:
    return search(library.connection, "documents", text, lambda version: library.embedder, **options)


def test_nearest_chunk_comes_first_with_its_provenance(shelf: Library) -> None:
    hits = find(shelf, "title 5\n\nplain text 5", k=3)
    assert (hits[0].key, hits[0].chunk, hits[0].content) == ("[5]", 0, "title 5\n\nplain text 5")
    assert hits[0].score == pytest.approx(1, abs=1e-5)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert hits[0].metadata == {"module": "odd", "kind": "function"}
    assert hits[0].lsn == "0/E"


def test_filters_compare_metadata(shelf: Library) -> None:
    hits = find(shelf, "anything", k=30, filters={"module": "even"})
    assert len(hits) == 15
    both = find(shelf, "anything", k=30, filters={"module": "even", "kind": "class"})
    assert [hit.key for hit in both] == ["[2]"]
    assert find(shelf, "anything", filters={"module": "nothing"}) == []


@pytest.mark.parametrize("value", ["x' OR true --", '"}', "{}", "%", None, 5, "雪"])
def test_odd_filter_values_match_nothing_and_break_nothing(shelf: Library, value: Any) -> None:
    assert find(shelf, "anything", filters={"module": value}) == []


def test_null_and_absent_metadata_can_be_filtered_for(shelf: Library) -> None:
    assert find(shelf, "anything", filters={"module": None}) == []
    shelf.put(50, module=None)
    shelf.put(51, module=...)
    shelf.apply(50, 51)
    assert {hit.key for hit in find(shelf, "anything", filters={"module": None}, k=50)} == {"[50]", "[51]"}


def test_filter_finds_enough_behind_the_nearest_neighbour_index(library: Library) -> None:
    """A selective filter must not be starved by the graph's candidates."""
    for number in range(400):
        library.put(number, body=f"text {number}", module="rare" if number % 100 == 0 else "common")
    library.repair()
    finish_load(library.connection, library.writer())
    library.connection.execute("SET enable_seqscan = off")
    assert len(find(library, "anything", k=4, filters={"module": "rare"})) == 4


@contextmanager
def graph_that_misses(library: Library) -> Iterator[None]:
    """What is written meanwhile is not in the nearest-neighbour index, which is used as if nothing were wrong."""
    ready = "UPDATE pg_index SET indisready = %s WHERE indexrelid = 'indexes.documents_v1_hnsw'::regclass"
    library.connection.execute(ready, [False])
    yield
    library.connection.execute(ready, [True])


def write(library: Library, numbers: range, module: str = "common") -> None:
    for number in numbers:
        library.put(number, "", f"text {number}", module=module)
    library.apply(*numbers)


def in_graph(library: Library, text: str, k: int) -> set[str]:
    """What the nearest-neighbour index alone has for a text."""
    with library.connection.transaction():
        library.connection.execute("SET LOCAL enable_seqscan = off; SET LOCAL hnsw.ef_search = 400")
        rows = library.connection.execute(
            "SELECT key FROM ONLY indexes.documents_v1 ORDER BY embedding <=> %s::real[]::vector LIMIT %s",
            [hash_vector(text).tolist(), k],
        ).fetchall()
    return {row[0] for row in rows}


def test_row_that_the_graph_misses_is_found_while_it_is_new(library: Library) -> None:
    """A graph may have no way to a row that is far from all others; what was just written is found all the same."""
    library.version()
    write(library, range(600))
    library.repair()
    finish_load(library.connection, library.writer())
    with graph_that_misses(library):
        write(library, range(600, 601))
    assert "[600]" not in in_graph(library, "text 600", 400)
    assert [hit.key for hit in find(library, "text 600", k=1)] == ["[600]"]
    hits = find(library, "text 600", k=5)
    assert len({hit.key for hit in hits}) == 5
    assert hits[0].score == pytest.approx(1, abs=1e-5)


def test_selective_filter_finds_all_its_neighbours(library: Library) -> None:
    """What a filter passes is read and sorted where it is little: recall is 1, whatever the graph has."""
    library.version()
    write(library, range(300))
    library.repair()
    finish_load(library.connection, library.writer())
    with graph_that_misses(library):
        for number in range(300, 340):
            library.put(number, "", f"text {number}", module="rare", bulk=True)
        library.repair()
    write(library, range(340, 350))
    # With as few rows as here the planner would take these instead of the graph.
    library.connection.execute("DROP INDEX indexes.documents_v1_field0, indexes.documents_v1_field1")
    assert not in_graph(library, "text 320", 400) & {f"[{number}]" for number in range(300, 340)}
    for text in ("text 320", "anything", "text 5"):
        near = {number: float(np.dot(hash_vector(text), hash_vector(f"text {number}"))) for number in range(300, 340)}
        best = sorted(near, key=lambda number: -near[number])
        for k in (1, 10, 40):
            found = [hit.key for hit in find(library, text, k=k, filters={"module": "rare"})]
            assert found == [f"[{number}]" for number in best[:k]]


@pytest.mark.parametrize("indexed_first", [True, False])
def test_metadata_value_of_any_length_is_stored_and_filtered_for(library: Library, indexed_first: bool) -> None:
    """Longer than an entry of an index may be, and with nothing to compress."""
    letters = np.random.default_rng(3).integers(0x4E00, 0x9FFF, 10_000)
    long = "".join(map(chr, letters))
    library.version()
    write(library, range(3))
    library.repair()
    if indexed_first:
        finish_load(library.connection, library.writer())
    library.put(10, module=long + "x")
    library.put(11, module=long + "y")
    library.apply(10, 11)
    finish_load(library.connection, library.writer())
    assert library.faults() == []
    assert [hit.key for hit in find(library, "x", filters={"module": long + "x"})] == ["[10]"]
    assert [hit.key for hit in find(library, "x", filters={"module": long + "y"}, hybrid=True)] == ["[11]"]
    assert find(library, "x", filters={"module": long}) == []


def test_hybrid_search_finds_words_that_vectors_miss(shelf: Library) -> None:
    """The cheap embedder knows no meaning, so only the full text can rank this first."""
    assert find(shelf, "purple elephants", k=1, hybrid=True)[0].key == "[7]"
    fused = find(shelf, "purple elephants", k=30, hybrid=True)
    assert len({(hit.key, hit.chunk) for hit in fused}) == len(fused)
    assert [hit.score for hit in fused] == sorted((hit.score for hit in fused), reverse=True)


def test_reciprocal_ranks_are_summed(shelf: Library) -> None:
    """Best of both rankings: 1/61 from each."""
    hit = find(shelf, "title 7\n\na purple elephant dances", k=1, hybrid=True)[0]
    assert (hit.key, hit.score) == ("[7]", pytest.approx(2 / 61))


def test_hybrid_search_honours_filters(shelf: Library) -> None:
    keys = {hit.key for hit in find(shelf, "purple elephant", k=30, hybrid=True, filters={"module": "even"})}
    assert "[7]" not in keys
    assert len(keys) == 15


@pytest.mark.parametrize("text", ['"', "'; DROP TABLE x; --", "a & | !", "<->", "\\", "%s", "{table}"])
def test_odd_queries_break_nothing(shelf: Library, text: str) -> None:
    assert len(find(shelf, text, k=2)) == 2
    assert len(find(shelf, text, k=2, hybrid=True)) == 2


def test_unknown_index_names_those_that_are(shelf: Library) -> None:
    with pytest.raises(SophiaError, match="'nothing' does not exist here; there are: documents"):
        search(shelf.connection, "nothing", "x", lambda version: shelf.embedder)


def test_unknown_filter_names_those_that_are(shelf: Library) -> None:
    with pytest.raises(SophiaError, match="no metadata field 'colour'; there are: module, kind"):
        find(shelf, "x", filters={"colour": "red"})


@pytest.mark.parametrize(("text", "k"), [("", 1), ("  \n", 1), ("x", 0), ("x", 1001)])
def test_unusable_requests_are_refused(shelf: Library, text: str, k: int) -> None:
    with pytest.raises(SophiaError):
        find(shelf, text, k=k)


def test_required_filter_must_be_given(library: Library) -> None:
    library.catalog = library.with_index(required_filter="module")
    for number, module in ((1, "ana"), (2, "ben")):
        library.put(number, module=module)
    library.repair()
    with pytest.raises(SophiaError, match="must be searched with a filter on 'module'"):
        find(library, "x", filters={"kind": "k"})
    assert library.embedder.queries == [], "the query was embedded before it was refused"
    assert [hit.key for hit in find(library, "x", filters={"module": "ana"})] == ["[1]"]


@pytest.mark.parametrize("value", [None, [], {}, ["ana"], [None]])
def test_required_filter_cannot_be_widened_by_its_value(library: Library, value: Any) -> None:
    """Containment of an empty list or object is true of much."""
    library.catalog = library.with_index(required_filter="module")
    library.put(1, module="ana")
    library.put(2, module=["ana", "ben"])
    library.repair()
    try:
        found = {hit.key for hit in find(library, "x", filters={"module": value})}
    except SophiaError:
        return
    assert found == set()


def test_query_is_embedded_by_the_model_of_the_version_that_serves(shelf: Library) -> None:
    asked: list[IndexVersion] = []

    def embedder_of(version: IndexVersion) -> Any:
        asked.append(version)
        return shelf.embedder

    search(shelf.connection, "documents", "x", embedder_of)
    assert [(version.state, version.model.name) for version in asked] == [("serving", "minilm")]
