"""Records of Pinecone: what goes in comes back, within the limits; what someone else wrote is read as wrong."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sophia.documents import BUCKETS, Clock, Key, Origin
from sophia.stores.base import ChunkWrite, DocumentWrite, vector_hash
from sophia.stores.pinecone_records import (
    CONTENT,
    METADATA_BYTES,
    NO_ID,
    Record,
    as_document,
    as_hit,
    as_origin,
    columns,
    encoded,
    prefixes,
    read,
    record_id,
    restored,
    same,
    within,
)
from sophia.stores.pinecone_writes import REQUEST_BYTES, REQUEST_RECORDS, batches

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=5,
)


def as_pinecone(stored: dict[str, Any]) -> dict[str, Any]:
    """As Pinecone gives it back: each number as a 64-bit float."""
    numbers = (name for name, value in stored.items() if type(value) is int)
    return stored | {name: float(stored[name]) for name in numbers}


@given(st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), JSON))
def test_metadata_comes_back_as_it_was(metadata: dict[str, Any]) -> None:
    stored = columns(metadata)
    for value in stored.values():
        flat = isinstance(value, str | int | float | bool)
        assert flat or (value and all(isinstance(item, str) for item in value))
    back = restored(as_pinecone(stored), list(metadata))
    assert json.dumps(back, sort_keys=True) == json.dumps(metadata, sort_keys=True)


def test_an_edited_column_comes_back_as_it_is_there() -> None:
    stored = as_pinecone(columns({"a": 5, "b": "x"}))
    assert restored(stored | {"a": 6.0}, ["a", "b"]) == {"a": 6.0, "b": "x"}
    assert restored(stored | {"c": "added"}, ["a", "b"]) == {"a": 5, "b": "x", "c": "added"}
    assert restored(stored | {"sophia_exact": "not json"}, ["a", "b"]) == {"a": 5.0, "b": "x"}
    assert restored(stored | {"sophia_exact": "[]"}, ["a", "b"]) == {"a": 5.0, "b": "x"}
    # A column that was null, and a value for it in what is said to be exact.
    assert restored({"sophia_exact": '{"a": 5}'}, ["a"]) == {"a": None}


def test_values_are_equal_as_in_postgresql() -> None:
    equal = [(1, 1.0), ({"a": [1]}, {"a": [1.0]}), (None, None)]
    other = [(1, True), (0, False), ("1", 1), ([1], [1, 2]), ({"a": 1}, {"b": 1}), (["a"], "a")]
    assert [same(*pair) for pair in equal + other] == [True] * len(equal) + [False] * len(other)


@given(st.integers(0, BUCKETS - 1), st.integers(0, BUCKETS - 1))
def test_prefixes_cover_a_range_in_few_requests_and_not_much_more(one: int, other: int) -> None:
    first, last = min(one, other), max(one, other)
    found = list(prefixes(first, last))
    assert len(found) <= 17
    assert sorted(found) == found
    covered = 0
    for prefix in found:
        low, width = int(prefix.ljust(4, "0"), 16), 16 ** (4 - len(prefix))
        covered += width
        assert first - width < low <= last
    assert last - first + 1 <= covered < 3 * (last - first + 1)
    for bucket in (first, last, (first + last) // 2):
        assert sum(record_id(bucket, NO_ID).startswith(prefix) for prefix in found) == 1
        assert within(record_id(bucket, NO_ID), first, last)
    assert not within(record_id(first - 1, NO_ID), first, last) or first == 0
    assert not within(record_id(last + 1, NO_ID), first, last) or last == BUCKETS - 1


def test_all_buckets_are_one_prefix_and_hold_also_ids_of_another_form() -> None:
    assert list(prefixes(0, BUCKETS - 1)) == [""]
    assert within("zz", 0, BUCKETS - 1)
    assert not within("zz", 1, BUCKETS - 1)


def document(content: str = "text", **metadata: Any) -> tuple[DocumentWrite, ChunkWrite]:
    vector = np.random.default_rng(3).normal(size=8).astype(np.float32)
    chunk = ChunkWrite(uuid4(), 2, 10, 14, content, b"\x01" * 16, vector_hash(vector), vector)
    origin = Origin(lsn=0x16B374D848, txid=2**60 + 1, committed_at=datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC))
    write = DocumentWrite(Key("[1]"), 255, Clock(1, 2**62 + 1, 3), (chunk,), metadata, origin)
    return write, chunk


def test_a_chunk_comes_back_as_it_was() -> None:
    write, chunk = document(a=1, b=None)
    at = datetime(2026, 2, 3, tzinfo=UTC)
    assert chunk.vector is not None
    record, size = encoded(write, chunk, chunk.vector, "run", at)
    sent = orjson.loads(record.body)
    assert (record.id, record.key, record.number) == (sent["id"], "[1]", 2)
    assert record.id == f"00ff#{chunk.id}"
    assert size == len(orjson.dumps(sent["metadata"]))
    assert len(record.id) <= 512
    assert record.id.isascii()
    stored = read(sent | {"metadata": as_pinecone(sent["metadata"])}, ["a", "b"])
    found = as_document(stored.key, [stored])
    assert (found.ids, found.content_hashes, found.vector_hashes) == (
        (chunk.id,),
        (b"\x01" * 16,),
        (chunk.vector_hash,),
    )
    assert (found.oldest, found.newest) == (write.clock, write.clock)
    assert found.metadata == ('{"a": 1, "b": null}',)
    origin = as_origin(stored)
    assert (origin.chunk, origin.start, origin.end, origin.txid) == (2, 10, 14, 2**60 + 1)
    assert (origin.lsn, origin.committed_at, origin.indexed_at) == ("16/B374D848", write.origin.committed_at, at)
    hit = as_hit(stored, 0.5)
    assert (hit.key, hit.chunk, hit.score, hit.content, hit.metadata) == ("[1]", 2, 0.5, "text", {"a": 1, "b": None})


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"sophia_key": 7.0, "sophia_chunk": "x", "sophia_hash": "zz", "sophia_clock": "{1,2}", CONTENT: 3.0},
        {"sophia_chunk": float("1e400"), "sophia_clock": [], "sophia_committed_at": "now", "sophia_indexed_at": True},
        {"sophia_start": "a", "sophia_end": ["b"], "sophia_txid": "?", "sophia_exact": 7.0},
    ],
)
def test_what_someone_else_wrote_is_read_as_wrong_and_not_as_an_error(metadata: dict[str, Any]) -> None:
    stored = read({"id": "no-uuid", "metadata": metadata}, ["a"])
    found = as_document(stored.key, [stored])
    assert found.ids == (NO_ID,)
    assert (found.oldest, found.newest) == (Clock(0, 0, 0), Clock(0, 0, 0))
    assert as_hit(stored, 0.0).committed_at is None
    assert as_origin(stored).txid is None


def test_requests_are_cut_by_number_and_by_bytes() -> None:
    small = [Record(str(n), Key("k"), 0, b"x" * 10) for n in range(2_500)]
    assert [len(batch) for batch in batches(small)] == [REQUEST_RECORDS, REQUEST_RECORDS, 500]
    large = [Record(str(n), Key("k"), 0, b"x" * (REQUEST_BYTES // 3)) for n in range(5)]
    assert [len(batch) for batch in batches(large)] == [2, 2, 1]
    assert list(batches([])) == []


def test_the_largest_metadata_is_as_documented() -> None:
    assert METADATA_BYTES == 40 * 1024
    write, chunk = document("x" * METADATA_BYTES)
    assert chunk.vector is not None
    assert encoded(write, chunk, chunk.vector, "run", datetime.now(UTC))[1] > METADATA_BYTES
    assert UUID(record_id(0, chunk.id)[5:]) == chunk.id
