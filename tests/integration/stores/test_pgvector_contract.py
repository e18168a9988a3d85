"""The contract over pgvector, which is in Sophia's own database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from sophia.documents import bucket_of
from sophia.embedding.base import Vectors
from sophia.indexing.text import content_hash
from sophia.indexing.versions import IndexVersion
from tests.embedders import hash_vector
from tests.integration.library import Library, key
from tests.integration.stores.contract import Stand, StoreContract


class PgvectorStand(Stand):
    """Edited by plain SQL."""

    def edit(
        self,
        version: IndexVersion,
        number: int,
        chunk: int,
        *,
        content: str | None = None,
        vector: Vectors | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.library.connection.execute(
            f"UPDATE indexes.{version.store_name} SET content = COALESCE(%s, content), "
            "embedding = COALESCE(%s::vector, embedding), metadata = COALESCE(%s::jsonb, metadata) "
            "WHERE key = %s AND chunk = %s",
            [
                content,
                None if vector is None else _literal(vector),
                None if metadata is None else json.dumps(metadata),
                key(number),
                chunk,
            ],
        )

    def add(self, version: IndexVersion, number: int, chunk: int, content: str) -> None:
        self.library.connection.execute(
            f"INSERT INTO indexes.{version.store_name} "
            "(id, key, bucket, chunk, span, content, content_hash, embedding, metadata, clock, run) "
            "VALUES (gen_random_uuid(), %s, %s, %s, '[0,1)', %s, %s, %s::vector, '{}', '{1,1,1}', 'hand')",
            [
                key(number),
                bucket_of(key(number)),
                chunk,
                content,
                content_hash(content),
                _literal(hash_vector(content, version.dimension)),
            ],
        )

    def remove(self, version: IndexVersion, number: int, chunk: int) -> None:
        self.library.connection.execute(
            f"DELETE FROM indexes.{version.store_name} WHERE key = %s AND chunk = %s", [key(number), chunk]
        )

    def served_by_name(self, version: IndexVersion) -> set[str]:
        return {row[0] for row in self.library.connection.execute(f"SELECT content FROM indexes.{version.index_name}")}


def _literal(vector: Vectors) -> str:
    return json.dumps([float(value) for value in vector])


@pytest.fixture
def stand(library: Library) -> PgvectorStand:
    return PgvectorStand(library)


class TestPgvectorStore(StoreContract):
    """The contract."""
