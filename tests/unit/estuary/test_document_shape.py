"""Columns of documents against what was seen before and what the catalog says."""

from __future__ import annotations

from typing import Any

from sophia.catalog import Catalog
from sophia.estuary.control.document_shape import (
    MOST_COLUMNS,
    Expected,
    differences,
    expected_of,
    shape_changes,
    united,
)
from sophia.estuary.control.metrics_text import TaskTotals
from sophia.estuary.control.observation import CollectionView, Position
from sophia.estuary.control.schema_watch import SchemaMemory
from sophia.estuary.control.shapes import LiveSpec

TEXT = ("string",)


def _view(publication: str | None = "p1", schema_hash: str | None = None) -> CollectionView:
    spec = publication and LiveSpec.model_validate(
        {
            "catalogName": "sophia/c",
            "liveSpec": {"catalogType": "collection", "lastPubId": publication},
            "status": {"type": "OK", "summary": "", "controller": {"inferredSchema": {"schemaMd5": schema_hash}}},
        }
    )
    return CollectionView(
        name="c",
        estuary="sophia/c",
        source="estuary",
        written_docs=0,
        written_bytes=0,
        deliveries=(),
        tasks=(),
        published=spec or None,
        totals=TaskTotals(),
        alerts=(),
        ours=Position(None, 1, 0, None, None),
    )


def test_what_was_never_seen_is_a_change_and_what_is_missing_now_is_none() -> None:
    before = {"id": ("number",), "title": TEXT, "note": ()}
    assert shape_changes(before, {"id": ("number",)}) == []
    assert shape_changes(before, {"id": ("number",), "author": TEXT}) == ["new column author"]
    assert shape_changes(before, {"title": ("object", "string")}) == ["column title is now also object (it was string)"]
    assert shape_changes({}, {"id": ("number",)}) == []
    # It was always null; that it has a value now is no other type.
    assert shape_changes(before, {"note": TEXT}) == []


def test_what_was_seen_is_remembered_with_an_end_to_the_columns() -> None:
    union = united({"a": TEXT}, {"a": ("number",), "b": TEXT})
    assert union == {"a": ("number", "string"), "b": TEXT}
    many = {f"c{n}": TEXT for n in range(2 * MOST_COLUMNS)}
    assert len(united({"a": TEXT}, many)) == MOST_COLUMNS


def test_expectations_come_from_the_rendered_schema() -> None:
    schema: dict[str, Any] = {
        "$defs": {
            "C": {
                "properties": {
                    "id": {"type": "integer"},
                    "score": {"type": ["number", "string", "null"]},
                    "extra": {"description": "any"},
                }
            }
        }
    }
    expected = expected_of(schema, closed=True, read={"id": ["i"]})
    assert expected.types == {
        "id": frozenset({"number"}),
        "score": frozenset({"number", "string", "null"}),
        "extra": None,
    }
    seen = {"id": ("number",), "score": TEXT, "extra": ("object",)}
    assert differences(seen, expected) == []
    assert differences({}, expected) == []


def test_an_open_collection_may_have_columns_that_nobody_declared() -> None:
    types = {"id": frozenset({"number"})}
    seen = {"id": ("number",), "other": TEXT}
    assert differences(seen, Expected(types, closed=False, read={})) == []
    assert differences(seen, Expected(types, closed=True, read={})) == [
        "column other is not in the catalog; add it to the collection's columns"
    ]


def test_a_memory_says_what_changed_by_a_look_and_keeps_what_estuary_does_not_say() -> None:
    memory, changes = SchemaMemory("p1", "h1", {"id": ("number",)}).then(_view("p1", "h1"), {"id": ("number",)})
    assert changes == []
    later, changes = memory.then(_view("p2", "h2"), {"id": ("number",), "title": TEXT})
    assert changes == [
        "new column title",
        "sophia/c was published anew",
        "Estuary inferred another schema of sophia/c",
    ]
    assert later.token != memory.token
    # Deleted at Estuary, or not readable for a moment: nothing is forgotten.
    gone, changes = later.then(_view(None), {})
    assert (gone, changes) == (later, [])
    assert SchemaMemory.from_json(later.to_json()) == later


def test_every_rendered_collection_has_the_columns_that_its_indexes_read(catalog: Catalog) -> None:
    """The checkout's own catalog: what Estuary publishes of it holds whatever an index reads."""
    import yaml

    from sophia.estuary.catalog.render import render_tree

    rendered: dict[str, Any] = {}
    for text in render_tree(catalog, "production").values():
        rendered |= yaml.safe_load(text).get("collections", {})
    for collection in catalog.collections:
        if collection.estuary in rendered:
            expected = expected_of(rendered[collection.estuary]["schema"], closed=True, read={})
            read = {name for index in catalog.indexes_of(collection.name) for name in index.template_columns}
            names = {name.lower() for name in expected.types}
            assert {name.lower() for name in read} <= names, collection.name
