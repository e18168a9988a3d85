"""Texts that cannot be embedded: their documents are parked, and nobody else's are held up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sophia import inbox
from sophia.documents import Change, Clock, Origin, canonical_key
from sophia.embedding import Vectors
from sophia.indexing.gates import SAMPLE, run_gates
from sophia.indexing.verify import verify
from sophia.stores import PgvectorStore
from tests.embedders import HashEmbedder
from tests.integration.library import COLLECTION, Library

RunLoop = Callable[..., Any]
REASON = "its 9 tokens do not fit into the memory of cuda"


def refuse(library: Library, *bodies: str) -> None:
    library.embedder.refused = {f"t\n\n{body}": REASON for body in bodies}


def states(library: Library) -> dict[str, str]:
    return dict(library.connection.execute("SELECT key, state FROM sophia.ledger").fetchall())


def test_the_document_is_parked_and_its_batch_goes_on(library: Library) -> None:
    for number in range(1, 4):
        library.put(number, body=f"first {number}")
    library.apply(1, 2, 3)
    refuse(library, "bad 2")
    for number in range(1, 4):
        library.put(number, body=f"bad {number}")
    figures = library.apply(1, 2, 3)
    assert (figures.documents, figures.parked, figures.embedded) == (3, 1, 2)
    assert library.contents() == {"[1]": ["t\n\nbad 1"], "[3]": ["t\n\nbad 3"]}
    assert states(library) == {"[1]": "applied", "[2]": "parked", "[3]": "applied"}
    assert list(library.parked()) == ["[2]"]
    assert REASON in library.parked()["[2]"]
    assert library.compare().parked == ["[2]"]
    assert library.compare().empty
    assert library.faults() == []


def test_one_refused_chunk_takes_the_whole_document(library: Library) -> None:
    """A document is never shown in part."""
    paragraphs = [" ".join(f"{word}{n}" for n in range(150)) for word in ("one", "two", "three")]
    library.put(1, None, "\n\n".join(paragraphs))
    library.apply(1)
    texts = library.contents()["[1]"]
    assert len(texts) > 2
    paragraphs[-1] = " ".join(f"other{n}" for n in range(150))
    library.put(1, None, "\n\n".join(paragraphs))
    library.embedder.refused = {text: REASON for text in _chunks(library, 1) if text not in texts}
    assert library.apply(1).parked == 1
    assert library.contents() == {}
    assert "other" not in library.parked()["[1]"], "a dead letter quotes no text"
    assert "from character" in library.parked()["[1]"]


def _chunks(library: Library, number: int) -> list[str]:
    """The chunk texts of a document as it is now."""
    (row,) = library.rows(number)
    return [chunk.content for chunk in library.writer()._texts.chunks(row.body or {})]


def test_every_document_with_the_text_is_parked(library: Library) -> None:
    refuse(library, "bad")
    for number in range(1, 4):
        library.put(number, body="bad" if number < 3 else "good")
    assert library.apply(1, 2, 3).parked == 2
    assert set(library.parked()) == {"[1]", "[2]"}
    assert library.contents() == {"[3]": ["t\n\ngood"]}


def test_it_is_tried_again_when_its_text_changes(library: Library) -> None:
    refuse(library, "bad")
    library.put(1, body="bad")
    library.apply(1)
    library.put(1, body="good")
    library.apply(1)
    assert library.parked() == {}
    assert library.contents() == {"[1]": ["t\n\ngood"]}
    assert states(library) == {"[1]": "applied"}
    assert library.faults() == []


def test_it_is_tried_again_when_its_row_was_read_again(library: Library) -> None:
    """`sophia dead-letters --replay`: the same row, at the clock of the reading."""
    refuse(library, "bad")
    library.put(1, body="bad")
    library.apply(1)
    assert inbox.request_reread(library.connection) == 1
    assert library.connection.execute("SELECT missing FROM sophia.documents").fetchall() == [(["*"],)]
    library.embedder.refused = {}
    body = {"id": 1, "title": "t", "body": "bad", "module": "m", "kind": "k"}
    again = Change(canonical_key([1]), "c", Clock(1, 1000, 0), body, origin=Origin(1000))
    with library.connection.transaction():
        inbox.accept(library.connection, COLLECTION, [again])
    library.apply(1)
    assert library.parked() == {}
    assert library.contents() == {"[1]": ["t\n\nbad"]}


def test_a_repair_leaves_it_parked_and_embeds_nothing(library: Library) -> None:
    refuse(library, "bad")
    library.put(1, body="bad")
    library.put(2, body="good")
    assert library.repair().parked == 1
    library.embedder.texts.clear()
    assert library.repair(deep=True).documents == 0
    assert library.embedder.texts == []
    assert set(library.parked()) == {"[1]"}


def test_what_was_edited_and_is_refused_when_it_is_mended(library: Library) -> None:
    """The vector is gone and cannot be computed any more: parked, so that no wrong one is shown."""
    library.put(1, body="text")
    library.put(2, body="other")
    library.repair()
    library.connection.execute(
        "UPDATE indexes.documents_v1 SET embedding = (SELECT embedding FROM indexes.documents_v1 WHERE key = '[2]') "
        "WHERE key = '[1]'"
    )
    refuse(library, "text")
    assert library.repair(deep=True).parked == 1
    assert library.contents() == {"[2]": ["t\n\nother"]}
    assert library.compare().empty


def test_the_live_lane_goes_on(library: Library, run_loop: RunLoop) -> None:
    refuse(library, "bad 3", "bad 7")
    for number in range(10):
        library.put(number, body=f"bad {number}", bulk=number < 5)
    run_loop(library.indexer())
    library.level()
    library.put(20, body="afterwards")
    library.level()
    assert set(library.parked()) == {"[3]", "[7]"}
    assert len(library.contents()) == 9


def test_what_is_embedded_in_between_is_not_counted_twice(library: Library) -> None:
    library.embedder.pass_size = 1
    for number in range(4):
        library.put(number, body=f"bulk {number}")
    inner = library.writer()
    library.put(9, body="live " * 40)
    cost: list[int] = []

    def live() -> None:
        if not cost:
            cost.append(0)
            cost.append(inner.apply(library.connection, library.rows(9)).tokens)

    figures = library.writer().apply(library.connection, library.rows(0, 1, 2, 3), between=live)
    assert cost[1] > 0
    assert figures.tokens + cost[1] == library.embedder.figures.tokens


# ---- proof and gates ---------------------------------------------------------------------------------------


@pytest.fixture
def shelf(library: Library) -> Library:
    """Twenty documents, indexed."""
    for number in range(20):
        library.put(number, body=f"text {number}")
    library.repair()
    return library


def test_a_proof_compares_what_can_still_be_embedded(shelf: Library) -> None:
    refuse(shelf, "text 4", "text 5")
    proof = verify(shelf.connection, shelf.version(), PgvectorStore(), shelf.embedder)
    assert proof.holds
    assert (proof.sampled, proof.refused) == (18, 2)
    assert proof.cosine_min == pytest.approx(1)
    assert "2 sampled texts cannot be embedded any more" in proof.sentence()


def test_a_proof_without_any_vector_to_compare_does_not_hold(shelf: Library) -> None:
    refuse(shelf, *(f"text {number}" for number in range(20)))
    proof = verify(shelf.connection, shelf.version(), PgvectorStore(), shelf.embedder)
    assert (proof.sampled, proof.refused, proof.cosine_min) == (0, 20, None)
    assert not proof.holds


def test_a_proof_of_an_empty_index_holds(library: Library) -> None:
    assert verify(library.connection, library.version(), PgvectorStore(), library.embedder).holds


@pytest.mark.parametrize("refused", [0, 10])
def test_the_gate_counts_a_refused_query_as_not_found(shelf: Library, refused: int) -> None:
    bad = {f"t\n\ntext {number}" for number in range(refused)}

    class Refusing(HashEmbedder):
        """Refuses queries only, whose prefix may make them too long."""

        def embed_query(self, text: str) -> Vectors:
            self.refused = dict.fromkeys(bad, REASON)
            return super().embed_query(text)

    store, version = PgvectorStore(), shelf.version()
    sample = [chunk.content for chunk in store.sample(shelf.connection, version, SAMPLE, "queries ")]
    (gate,) = run_gates(shelf.connection, version, store, lambda _: Refusing(), names=("sample_queries",))
    assert gate.figures["queries"] == len(sample)
    assert gate.figures["found"] == pytest.approx(sum(text not in bad for text in sample) / len(sample))
    assert gate.passed is (refused == 0)
