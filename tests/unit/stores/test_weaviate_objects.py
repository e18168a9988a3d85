"""A chunk as a Weaviate object: filters, slots, tenants, typed properties, and what was edited."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from sophia.documents import BUCKETS, Clock, Key, Origin, bucket_of, canonical_key
from sophia.stores.base import ChunkWrite, DocumentWrite
from sophia.stores.weaviate_objects import (
    SLOT_BITS,
    Found,
    Layout,
    field_token,
    slot_of,
    slot_range,
    tenant_name,
)

NOW = datetime(2026, 3, 2, 9, 14, tzinfo=UTC)


def layout(types: dict[str, Any], tenant: str | None = None) -> Layout:
    return Layout("C_v1", "C", "c v1", tuple(types), {name: name.lower() for name in types}, types, tenant)


def written(found: Layout, metadata: dict[str, Any]) -> dict[str, Any]:
    key = canonical_key([1])
    chunk = ChunkWrite(uuid.uuid4(), 0, 0, 4, "text", b"\1" * 16, b"\2" * 16, None)
    write = DocumentWrite(key, bucket_of(key), Clock(1, 2**62, 3), (chunk,), metadata, Origin(255, 2**40, NOW))
    return found.properties(write, chunk, "run", NOW)


def test_slots_refine_buckets() -> None:
    for number in range(200):
        key = canonical_key([number])
        first, last = slot_range(bucket_of(key), bucket_of(key))
        assert first <= slot_of(key) <= last
    assert slot_range(0, BUCKETS - 1) == (0, 2**SLOT_BITS - 1)
    assert slot_range(0, 9)[1] + 1 == slot_range(10, 19)[0]
    # Weaviate's integers travel as floats.
    assert float(2**SLOT_BITS - 1) == 2**SLOT_BITS - 1


@pytest.mark.parametrize(
    ("one", "other"),
    [("5", 5), (True, 1), (None, "null"), ("", None), ("a", "A"), ([1, 2], [2, 1]), ({}, []), ("x" * 300, "x" * 301)],
)
def test_what_differs_in_json_has_another_token(one: Any, other: Any) -> None:
    assert field_token("a", one) != field_token("a", other)
    assert tenant_name(one) != tenant_name(other)
    assert field_token("a", one) != field_token("b", one)


@pytest.mark.parametrize(("one", "other"), [(5, 5.0), ({"a": 1, "b": 2.0}, {"b": 2, "a": 1}), ([1.0], [1])])
def test_what_is_equal_in_json_has_one_token(one: Any, other: Any) -> None:
    assert field_token("a", one) == field_token("a", other)
    assert tenant_name(one) == tenant_name(other)


@pytest.mark.parametrize(
    "value", ["ana", "a b", "a@example.com", "ä", "", "x" * 500, 5, None, "s-ana", "h-0", "../..", "a" * 60, "a" * 61]
)
def test_a_tenant_has_a_name_that_weaviate_takes(value: Any) -> None:
    import re

    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", tenant_name(value))


def test_tenants_do_not_meet() -> None:
    values = ["ana", "s-ana", "s-s-ana", "h-ana", "a b", tenant_name("a b"), None, "null", 5, "5"]
    assert len({tenant_name(value) for value in values}) == len(values)


@pytest.mark.parametrize(
    ("kind", "value", "shown"),
    [
        ("text", "a", "a"),
        ("text", 5, "5"),
        ("text", {"a": "ä"}, '{"a": "ä"}'),
        ("int", 5, 5),
        ("int", 5.0, 5),
        ("int", 5.5, None),
        ("int", 2**60, None),
        ("int", True, None),
        ("int", "5", None),
        ("number", 5, 5.0),
        ("number", float("inf"), None),
        ("number", 10**400, None),
        ("number", "x", None),
        ("boolean", False, False),
        ("boolean", 1, None),
        ("date", "2026-03-02T09:14:00Z", NOW),
        ("date", "2026-03-02 09:14:00+00", NOW),
        ("date", "2026-03-02 09:14:00", NOW),
        ("date", "2026-03-02T10:14:00+01:00", NOW),
        ("date", "soon", None),
        ("date", 5, None),
        ("text[]", ["a", 5], ["a", "5"]),
        ("text[]", "a", ["a"]),
        ("text[]", [], []),
        ("int[]", [1, 2.0], [1, 2]),
        ("int[]", [1, "2"], None),
        ("number[]", [1, 2.5], [1.0, 2.5]),
    ],
)
def test_typed_properties(kind: str, value: Any, shown: Any) -> None:
    found = written(layout({"A": kind}), {"A": value})["a"]
    assert found == shown
    assert type(found) is type(shown)


def test_what_was_written_reads_as_its_metadata() -> None:
    here = layout({"A": "text", "B": "date", "C": "text[]", "D": "int"})
    metadata = {"A": "x", "B": "2026-03-02T09:14:00Z", "C": [], "D": "no number"}
    properties = written(here, metadata)
    assert json.loads(here.metadata_of(properties)) == metadata
    # Weaviate reads an empty list as nothing, and nothing as an empty list.
    assert json.loads(here.metadata_of(properties | {"c": None, "d": None})) == metadata


@pytest.mark.parametrize(
    "edit",
    [
        {"a": "y"},
        {"b": None},
        {"d": 5},
        {"sophia_metadata": '{"A": "y"}'},
        {"sophia_metadata": "no JSON"},
        {"sophia_metadata": "[1]"},
        {"sophia_metadata": None},
        {"sophia_fields": None},
        {"sophia_fields": ["A=1"]},
        {"sophia_slot": 1},
        {"sophia_key": "[2]"},
    ],
)
def test_an_edit_shows(edit: dict[str, Any]) -> None:
    here = layout({"A": "text", "B": "date", "D": "int"})
    metadata = {"A": "x", "B": "2026-03-02T09:14:00Z", "D": None}
    properties = written(here, metadata) | edit
    assert json.loads(here.metadata_of(properties)) != metadata


def test_what_sophia_says_of_an_object_survives() -> None:
    found = Found(uuid.uuid4(), written(layout({"A": "text"}), {"A": "x"}), None)
    assert found.clock == Clock(1, 2**62, 3)
    assert (found.key, found.chunk, found.content, found.content_hash) == (Key("[1]"), 0, "text", b"\1" * 16)
    origin = found.origin()
    assert (origin.lsn, origin.txid, origin.committed_at, origin.run) == ("0/FF", 2**40, NOW, "run")
    assert found.hit(0.5).metadata == {"A": "x"}


def test_an_object_of_somebody_else_breaks_nothing() -> None:
    here = layout({"A": "text"})
    found = Found(uuid.uuid4(), {"content": None, "sophia_clock": "x/y", "sophia_hash": "no hex"}, None)
    assert (found.key, found.clock, found.content_hash, found.content) == ("", Clock(0, 0, 0), b"", "")
    assert here.metadata_of(found.properties)
    assert found.hit(1.0).key == ""
