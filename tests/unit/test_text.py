"""Templates and chunks."""

from __future__ import annotations

import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sophia.embedding.packing import pack
from sophia.errors import DocumentError
from sophia.indexing.text import Texts, content_hash


def _texts(template: str = "{title}\n\n{body}", tokens: int = 16, overlap: int = 0, size: int = 10_000) -> Texts:
    return Texts(template, tokens, overlap, None, size)


def test_render_fills_in_values_and_strips() -> None:
    texts = _texts()
    assert texts.render({"title": "a", "body": "b"}) == "a\n\nb"
    assert texts.render({"title": None, "body": "b"}) == "b"
    assert texts.render({"title": 5, "body": ["ä", {"k": True}]}) == '5\n\n["ä", {"k": true}]'


@pytest.mark.parametrize("row", [{"title": None, "body": None}, {"title": "", "body": "  \n"}])
def test_empty_text_has_no_chunks(row: dict[str, str | None]) -> None:
    assert _texts().chunks(row) == []


def test_dropped_column_is_named() -> None:
    with pytest.raises(DocumentError, match="column 'body' of the template is not in the row"):
        _texts().render({"title": "a"})


def test_too_long_text_is_refused_by_its_bytes_and_not_quoted() -> None:
    with pytest.raises(DocumentError, match="text of 12 bytes is longer than 11") as error:
        _texts("{body}", size=11).render({"body": "ä" * 6})
    assert "ä" not in str(error.value)
    assert _texts("{body}", size=12).render({"body": "ä" * 6})


def test_hash_is_what_sql_computes() -> None:
    assert content_hash("ä") == hashlib.sha256("ä".encode()).digest()[:16]


@given(st.text(min_size=1, max_size=600))
def test_chunks_are_pieces_of_the_text_in_order(body: str) -> None:
    texts = _texts("{body}", overlap=0)
    rendered = texts.render({"body": body})
    chunks = texts.chunks({"body": body})
    assert all(rendered[c.start : c.end] == c.content and c.content for c in chunks)
    assert all(a.end <= b.start for a, b in itertools.pairwise(chunks))
    assert "".join("".join(c.content.split()) for c in chunks) == "".join(rendered.split())
    assert texts.chunks({"body": body}) == chunks


def test_overlap_repeats_the_end_of_a_chunk() -> None:
    words = " ".join(f"word{n}" for n in range(200))
    chunks = _texts("{body}", tokens=20, overlap=5).chunks({"body": words})
    assert all(b.start < a.end for a, b in itertools.pairwise(chunks))


@given(st.lists(st.integers(0, 300), max_size=50), st.integers(1, 512))
def test_packing_holds_the_budget_and_loses_nothing(lengths: list[int], budget: int) -> None:
    batches = list(pack(lengths, lambda: budget, lambda: None))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= budget


def test_packing_takes_the_longest_first() -> None:
    assert next(pack([1, 9, 3], lambda: 100, lambda: None))[0] == 1
