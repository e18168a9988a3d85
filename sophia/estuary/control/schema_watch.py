"""Notices a schema that changed on its way to us: at the source, in Estuary, or in the catalog.

Three things tell: the publication of a collection's spec, the schema that Estuary inferred, and the columns of the
documents that came. What was seen is remembered by the caller; what was never seen before is a change, and the first
look only remembers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
import yaml
from psycopg.rows import TupleRow

from sophia.catalog.models import Catalog
from sophia.estuary.catalog.render import render_tree
from sophia.estuary.control.document_shape import (
    Expected,
    Shape,
    differences,
    document_shape,
    expected_of,
    schema_token,
    shape_changes,
    united,
)
from sophia.estuary.control.observation import CollectionView, Look, observed_environment


@dataclass(frozen=True, slots=True)
class SchemaMemory:
    """What is known of a collection's schema: its publication, the inferred schema's hash, the columns seen so far."""

    publication: str | None
    schema_hash: str | None
    shape: Shape

    @property
    def token(self) -> str:
        """Changes with any of them."""
        return schema_token(self.publication, self.schema_hash, self.shape)

    def to_json(self) -> dict[str, Any]:
        """For a cursor."""
        return {"publication": self.publication, "hash": self.schema_hash, "columns": self.shape}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SchemaMemory:
        """Back from a cursor."""
        return cls(value["publication"], value["hash"], {k: tuple(kinds) for k, kinds in value["columns"].items()})

    def then(self, view: CollectionView, seen: Shape) -> tuple[SchemaMemory, list[str]]:
        """The memory after a look, and what changed by it, a sentence each.

        A collection that Estuary says nothing of now keeps what was known of it.
        """
        spec = view.published
        changes = shape_changes(self.shape, seen)
        if spec and self.publication and spec.publication != self.publication:
            changes.append(f"{view.estuary} was published anew")
        if spec and spec.schema_hash and self.schema_hash and spec.schema_hash != self.schema_hash:
            changes.append(f"Estuary inferred another schema of {view.estuary}")
        publication = spec.publication if spec else self.publication
        inferred = (spec.schema_hash if spec else None) or self.schema_hash
        return SchemaMemory(publication, inferred, united(self.shape, seen)), changes


def shapes_of(connection: psycopg.Connection[TupleRow], look: Look) -> dict[str, Shape]:
    """The columns of each collection's documents, by the collection's name; none for one without documents."""
    return {
        view.name: document_shape(connection, view.ours.id) if view.ours.id is not None else {}
        for view in look.collections
    }


def mismatches(catalog: Catalog, look: Look, shapes: Mapping[str, Shape]) -> dict[str, list[str]]:
    """Where documents do not fit the rendered catalog and the indexes, a sentence each, by the collection's name."""
    rendered: dict[str, Any] = {}
    for text in render_tree(catalog, observed_environment(catalog, look.prefix)).values():
        rendered |= yaml.safe_load(text).get("collections", {})
    return {
        view.name: differences(shapes.get(view.name, {}), _expected(catalog, view, rendered))
        for view in look.collections
    }


def _expected(catalog: Catalog, view: CollectionView, rendered: Mapping[str, Any]) -> Expected:
    collection = catalog.collection(view.name)
    read: dict[str, list[str]] = defaultdict(list)
    for index in catalog.indexes_of(view.name):
        for column in dict.fromkeys((*index.template_columns, *index.metadata, *filter(None, [index.vector]))):
            read[column].append(index.name)
    entry = rendered.get(view.estuary, {})
    return expected_of(entry.get("schema", {}), closed=bool(collection.columns), read=read)
