"""Keys, clocks, buckets, and reading a change document."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sophia.documents import (
    BUCKETS,
    Clock,
    bucket_of,
    bucket_range,
    canonical_key,
    capture_clock,
    capture_uuid,
    format_lsn,
    from_document,
    key_of,
    parse_key,
    parse_lsn,
    uuid_clock,
    uuid_time,
)
from sophia.errors import DocumentError

numbers = st.integers(min_value=0, max_value=2**40 - 1)
clocks = st.builds(Clock, numbers, numbers, numbers)


@pytest.mark.parametrize(
    ("uuid", "clock", "time"),
    [
        ("3e2bc280-1deb-11b2-8000-071353030311", 1955088577440000000, "1970-01-01T03:00:09+00:00"),
        ("770f6b80-1dda-11b2-8000-071353030311", 1955087424480000000, "1970-01-01T01:00:03+00:00"),
    ],
)
def test_estuary_uuid_vectors(uuid: str, clock: int, time: str) -> None:
    """The vectors come from Estuary's own snapshots."""
    assert uuid_clock(uuid) == clock
    assert uuid_time(clock).isoformat() == time


def test_estuary_sequence_bits_order_documents_of_one_tick() -> None:
    ordered = [f"3e2bc280-1deb-11b2-{0x8000 | sequence << 10:04x}-071353030311" for sequence in range(16)]
    found = [uuid_clock(uuid) for uuid in ordered]
    assert found == list(range(1955088577440000000, 1955088577440000016))


def test_estuary_clock_ignores_transaction_flags_and_producer() -> None:
    same = {
        uuid_clock("3e2bc280-1deb-11b2-8000-071353030311"),
        uuid_clock("3e2bc280-1deb-11b2-8002-071353030311"),
        uuid_clock("3e2bc280-1deb-11b2-8000-0913530303ff"),
    }
    assert len(same) == 1


def test_estuary_uuid_text_does_not_sort_by_time() -> None:
    """The reason why clocks, and never texts, are compared."""
    earlier, later = "fffffff0-1dda-11b2-8000-071353030311", "00000000-1ddb-11b2-8000-071353030311"
    assert earlier > later
    assert uuid_clock(earlier) < uuid_clock(later)


@pytest.mark.parametrize("text", ["abc-123-def-456", "", None, 5, "6fa459ea-ee8a-4ca4-894e-db77e160355e"])
def test_uuid_of_another_kind_is_refused(text: Any) -> None:
    with pytest.raises(DocumentError, match=r"_meta\.uuid"):
        uuid_clock(text)


@given(position=st.integers(0, 2**60 - 1), ordinal=numbers, generation=st.integers(1, 1000))
def test_capture_uuid_and_clock_are_inverse(position: int, ordinal: int, generation: int) -> None:
    text = capture_uuid(position, ordinal)
    assert capture_clock(text, generation) == Clock(generation, position, ordinal)
    assert uuid_clock(text) >> 4 == position


def test_capture_uuid_is_a_version_1_uuid_that_never_changes() -> None:
    """A changed layout would make every replayed document look new."""
    assert capture_uuid(0x16_B374_D848, 3) == "b374d848-0016-1000-8000-010000000003"


@given(clocks, clocks)
def test_clocks_compare_by_generation_then_position_then_ordinal(a: Clock, b: Clock) -> None:
    for ours, theirs in zip(a, b, strict=True):
        if ours != theirs:
            assert (a < b) == (ours < theirs)
            return
    assert a == b


def test_clock_literal_is_an_array_of_three() -> None:
    assert Clock(1, 42, 7).literal == "{1,42,7}"


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ([42], "[42]"),
        (["a", 2], '["a",2]'),
        ([True, 1.5], "[true,1.5]"),
        (["ключ", "雪", "🦎"], '["ключ","雪","🦎"]'),
        (['quo"te', "back\\slash", "new\nline"], '["quo\\"te","back\\\\slash","new\\nline"]'),
        ([""], '[""]'),
    ],
)
def test_canonical_key(values: list[Any], key: str) -> None:
    assert canonical_key(values) == key
    assert json.loads(key) == values


def test_number_and_text_are_different_keys() -> None:
    assert canonical_key([1]) != canonical_key(["1"])


@pytest.mark.parametrize("value", [None, {}, [], {"a": 1}, float("nan"), float("inf")])
def test_what_is_no_key(value: Any) -> None:
    with pytest.raises(DocumentError):
        canonical_key([1, value])


@pytest.mark.parametrize(
    ("text", "key"),
    [("42", "[42]"), ("abc", '["abc"]'), ('["a", 2]', '["a",2]'), ('"42"', '["42"]'), ("a b", '["a b"]')],
)
def test_parse_key_reads_what_a_person_types(text: str, key: str) -> None:
    assert parse_key(text) == key


@pytest.mark.parametrize("text", ["NaN", "null", '{"a": 1}', "[1, [2]]", '"\\ud800"', "caf\udce9"])
def test_parse_key_refuses_what_no_row_can_be_keyed_by(text: str) -> None:
    with pytest.raises(DocumentError, match="key"):
        parse_key(text)


def test_key_of_follows_the_order_of_the_fields() -> None:
    row = {"b": 2, "a": 1, "c": None}
    assert key_of(row, ["a", "b"]) == "[1,2]"
    assert key_of(row, ["b", "a"]) == "[2,1]"
    with pytest.raises(DocumentError, match="'d' is absent"):
        key_of(row, ["a", "d"])
    with pytest.raises(DocumentError, match="no key"):
        key_of(row, ["c"])


def test_buckets_are_stable() -> None:
    """Shards in every stored ledger depend on these."""
    assert bucket_of(canonical_key([1])) == 2058
    assert bucket_of(canonical_key(["雪"])) == 0x401D


@pytest.mark.parametrize("shards", [1, 2, 16, 256])
def test_bucket_ranges_cover_all_buckets_once(shards: int) -> None:
    ranges = [bucket_range(shard, shards) for shard in range(shards)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == BUCKETS - 1
    assert all(a[1] + 1 == b[0] for a, b in itertools.pairwise(ranges))


@given(st.integers(0, 7), st.integers(0, 127))
def test_splitting_a_shard_refines_it(power: int, number: int) -> None:
    shards = 2**power
    shard = number % shards
    left, right = bucket_range(2 * shard, 2 * shards), bucket_range(2 * shard + 1, 2 * shards)
    assert (left[0], right[1]) == bucket_range(shard, shards)


@given(st.integers(0, 2**64 - 1))
def test_lsn_round_trip(value: int) -> None:
    assert parse_lsn(format_lsn(value)) == value


def test_lsn_text_is_postgresqls() -> None:
    assert format_lsn(0x16_B374_D848) == "16/B374D848"
    assert parse_lsn("0/1A") == 26


def _document(**meta: Any) -> dict[str, Any]:
    source = {"ts_ms": 1_700_000_000_123, "schema": "public", "table": "t", "loc": [1, 2, 3], "txid": 9}
    return {"id": 1, "body": "x", "_meta": {"op": "u", "source": source, **meta}}


def test_from_document_reads_body_and_origin() -> None:
    change = from_document(_document(), ["id"], Clock(1, 3, 1), complete=True)
    assert change.key == "[1]"
    assert change.body == {"id": 1, "body": "x"}
    assert (change.origin.lsn, change.origin.txid) == (3, 9)
    assert change.origin.committed_at == datetime(2023, 11, 14, 22, 13, 20, 123000, tzinfo=UTC)


def test_from_document_of_a_delete_has_no_body() -> None:
    assert from_document(_document(op="d"), ["id"], Clock(1, 3, 1), complete=True).body is None


@pytest.mark.parametrize(
    ("before", "expected"),
    [({"id": 7}, "[7]"), ({"id": 1, "body": "old"}, None), ({"body": "old"}, None), (None, None)],
)
def test_before_key_is_set_only_when_the_key_moved(before: dict[str, Any] | None, expected: str | None) -> None:
    document = _document(before=before) if before is not None else _document()
    assert from_document(document, ["id"], Clock(1, 3, 1), complete=True).before_key == expected


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"id": 1}, "_meta is absent"),
        ({"id": 1, "_meta": 5}, "_meta is absent"),
        ({"id": 1, "_meta": {"op": "x"}}, "none of c, u, d"),
        ({"id": 1, "_meta": {}}, "none of c, u, d"),
        ({"_meta": {"op": "c"}}, "'id' is absent"),
        ({"id": None, "_meta": {"op": "c"}}, "no key"),
    ],
)
def test_bad_documents_are_refused_one_by_one(document: dict[str, Any], message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        from_document(document, ["id"], Clock(1, 1, 1), complete=True)
