"""An index of vectors that another system computed: from the inbox to the search, and what of them is parked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sophia.indexing.search import search
from sophia.indexing.verify import verify
from sophia.indexing.versions import IndexVersion
from sophia.stores import PgvectorStore
from tests.embedders import hash_vector
from tests.integration.library import Library


@pytest.fixture
def version(library: Library) -> IndexVersion:
    library.catalog = library.with_index(vector="embedding", template="{title}")
    return library.version()


def put(library: Library, number: int, title: str, like: str, **more: Any) -> None:
    """A document whose vector is that of another text than its own."""
    library.put(number, title, embedding=[float(value) for value in hash_vector(like)], **more)


def vector_of(library: Library, version: IndexVersion, number: int) -> Any:
    row = library.connection.execute(
        f"SELECT embedding::real[] FROM indexes.{version.store_name} WHERE key = %s", [f"[{number}]"]
    ).fetchone()
    return None if row is None else np.array(row[0], dtype=np.float32)


def test_a_ready_vector_is_stored_to_the_bit_and_found(library: Library, version: IndexVersion) -> None:
    put(library, 1, "a title", "apples")
    put(library, 2, "a title", "pears")
    library.apply(1, 2)
    assert library.embedder.texts == [], "nothing is computed"
    assert vector_of(library, version, 1).tobytes() == hash_vector("apples").tobytes()
    assert vector_of(library, version, 2).tobytes() == hash_vector("pears").tobytes()
    hits = search(library.connection, "documents", "pears", lambda v: library.embedder, k=1)
    assert (hits[0].key, hits[0].content) == ("[2]", "a title")
    assert hits[0].score == pytest.approx(1, abs=1e-5)


def test_a_new_vector_of_the_same_text_replaces_the_old(library: Library, version: IndexVersion) -> None:
    put(library, 1, "a title", "apples")
    library.apply(1)
    put(library, 1, "a title", "pears")
    library.apply(1)
    assert vector_of(library, version, 1).tobytes() == hash_vector("pears").tobytes()
    assert library.compare().empty


def test_the_same_vector_is_not_written_again(library: Library, version: IndexVersion) -> None:
    put(library, 1, "a title", "apples", module="one")
    library.apply(1)
    put(library, 1, "a title", "apples", module="two")
    figures = library.apply(1)
    assert (figures.embedded, figures.reused) == (0, 1)
    assert library.compare().empty


def test_a_long_text_stays_one_chunk(library: Library, version: IndexVersion) -> None:
    put(library, 1, "word " * 2_000, "apples")
    library.apply(1)
    assert [len(chunks) for chunks in library.contents().values()] == [1]


@pytest.mark.parametrize("vector", [[0.5, 0.5], "[]", None, [0.0] * 384])
def test_what_is_no_vector_of_the_index_is_parked_and_leaves_the_index(
    library: Library, version: IndexVersion, vector: Any
) -> None:
    put(library, 1, "a title", "apples")
    put(library, 2, "another", "pears")
    library.apply(1, 2)
    library.put(1, "a title", embedding=vector)
    figures = library.apply(1)
    assert figures.parked == 1
    assert vector_of(library, version, 1) is None
    assert vector_of(library, version, 2) is not None
    row = library.connection.execute("SELECT reason FROM sophia.dead_letters WHERE key = '[1]'").fetchone()
    assert row is not None
    assert "'embedding'" in row[0]
    put(library, 1, "a title", "apples")
    library.apply(1)
    assert vector_of(library, version, 1) is not None
    assert library.connection.execute("SELECT count(*) FROM sophia.dead_letters").fetchone() == (0,)


def test_the_proof_compares_with_the_documents_vectors(library: Library, version: IndexVersion) -> None:
    """Two documents of one text have vectors of their own; what a model would make of the text is not the measure."""
    put(library, 1, "a title", "apples")
    put(library, 2, "a title", "pears")
    library.apply(1, 2)
    proof = verify(library.connection, version, PgvectorStore(), library.embedder)
    assert proof.holds
    assert proof.sampled == 2
    assert proof.cosine_min == pytest.approx(1, abs=1e-6)
    assert library.embedder.texts == []


def test_a_vector_that_someone_edited_is_restored_from_the_document(library: Library, version: IndexVersion) -> None:
    put(library, 1, "a title", "apples")
    library.apply(1)
    library.repair()
    library.connection.execute(
        f"UPDATE indexes.{version.store_name} SET embedding = %s::real[]::vector", [hash_vector("other").tolist()]
    )
    assert library.compare().altered == ["[1]"]
    library.repair(deep=True)
    assert vector_of(library, version, 1).tobytes() == hash_vector("apples").tobytes()
    assert library.compare().empty


def test_another_vector_column_is_another_version(library: Library, version: IndexVersion) -> None:
    other = library.version(library.with_index(vector="other", template="{title}"))
    computed = library.version(library.with_index(vector=None, template="{title}"))
    assert len({version.fingerprint, other.fingerprint, computed.fingerprint}) == 3
