"""The contract over the double of a store outside of the database: the two-phase path, wherever the tests run."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest

from sophia.catalog.models.data import StorePerProfile
from sophia.documents import bucket_of
from sophia.embedding.base import Vectors
from sophia.indexing.text import content_hash
from sophia.indexing.versions import IndexVersion
from sophia.stores import Stores
from tests.embedders import hash_vector
from tests.integration.library import Library, key
from tests.integration.stores.contract import Stand, StoreContract
from tests.integration.stores.memory_store import UNACCEPTABLE, MemoryStore


class MemoryStand(Stand):
    """The memory store under the name of Weaviate."""

    unacceptable: ClassVar[Mapping[str, Any] | None] = {"title": "t", "body": UNACCEPTABLE}

    def __init__(self, library: Library) -> None:
        super().__init__(library)
        self.memory = MemoryStore()
        library.catalog = library.with_index(store=StorePerProfile(local="weaviate"), class_name="Documents")
        library.stores = Stores(library.settings, {"weaviate": self.memory})

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
        fields: dict[str, Any] = {}
        if content is not None:
            fields["content"] = content
        if vector is not None:
            fields["vector"] = vector
        if metadata is not None:
            fields["metadata"] = json.dumps(metadata)
        self.memory.edit(version, version.chunk_id(key(number), chunk), **fields)

    def add(self, version: IndexVersion, number: int, chunk: int, content: str) -> None:
        place = self.memory.objects[version.store_name]
        model = next(iter(place.values()))
        place[uuid.uuid4()] = replace(
            model,
            key=key(number),
            bucket=bucket_of(key(number)),
            chunk=chunk,
            content=content,
            content_hash=content_hash(content),
            vector=np.asarray(hash_vector(content, version.dimension)),
        )

    def remove(self, version: IndexVersion, number: int, chunk: int) -> None:
        del self.memory.objects[version.store_name][version.chunk_id(key(number), chunk)]

    def served_by_name(self, version: IndexVersion) -> set[str]:
        return {stored.content for stored in self.memory.objects[self.memory.names["Documents"]].values()}

    @contextmanager
    def away(self) -> Iterator[None]:
        self.memory.down = True
        try:
            yield
        finally:
            self.memory.down = False

    @contextmanager
    def fails(self, after: int) -> Iterator[None]:
        self.memory.fail_after = after
        yield
        assert self.memory.fail_after is None


@pytest.fixture
def stand(library: Library) -> MemoryStand:
    return MemoryStand(library)


class TestMemoryStore(StoreContract):
    """The contract."""
