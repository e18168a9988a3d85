"""The contract over a real Weaviate server."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from sophia.catalog.models.data import StorePerProfile
from sophia.embedding.base import Vectors
from sophia.errors import TemporaryError
from sophia.indexing.text import content_hash
from sophia.indexing.versions import IndexVersion
from sophia.stores import Stores, weaviate_write
from sophia.stores.weaviate_objects import slot_of
from sophia.stores.weaviate_schema import class_name
from tests.embedders import hash_vector
from tests.integration.library import Library, key
from tests.integration.stores.contract import Stand, StoreContract
from tests.integration.stores.test_weaviate_faults import Gated
from tests.integration.stores.weaviate_stand import WeaviateStand

pytestmark = pytest.mark.weaviate


class WeaviateContractStand(Stand):
    """The store behind gates; what is done behind Sophia's back goes past them."""

    def __init__(self, library: Library, weaviate: WeaviateStand) -> None:
        super().__init__(library)
        self.weaviate = weaviate
        self.gated = Gated(weaviate, write_seconds=20.0, read_seconds=20.0)
        library.catalog = library.with_index(store=StorePerProfile(local="weaviate"), class_name=weaviate.class_name)
        library.stores = Stores(library.settings, {"weaviate": self.gated.store})

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
        if metadata is not None:
            fields["sophia_metadata"] = json.dumps(metadata)

        async def work(client: Any) -> None:
            await client.collections.get(class_name(version)).data.update(
                uuid=version.chunk_id(key(number), chunk),
                properties=fields,
                vector=None if vector is None else vector.tolist(),
            )

        self.weaviate.do(work)

    def add(self, version: IndexVersion, number: int, chunk: int, content: str) -> None:
        async def work(client: Any) -> None:
            await client.collections.get(class_name(version)).data.insert(
                uuid=uuid.uuid4(),
                properties={
                    "content": content,
                    "sophia_key": key(number),
                    "sophia_slot": slot_of(key(number)),
                    "sophia_chunk": chunk,
                    "sophia_hash": content_hash(content).hex(),
                },
                vector=hash_vector(content, version.dimension).tolist(),
            )

        self.weaviate.do(work)

    def remove(self, version: IndexVersion, number: int, chunk: int) -> None:
        async def work(client: Any) -> None:
            gone = await client.collections.get(class_name(version)).data.delete_by_id(
                version.chunk_id(key(number), chunk)
            )
            assert gone

        self.weaviate.do(work)

    def served_by_name(self, version: IndexVersion) -> set[str]:
        async def work(client: Any) -> set[str]:
            found = await client.collections.get(self.weaviate.class_name).query.fetch_objects(limit=1000)
            return {each.properties["content"] for each in found.objects}

        texts: set[str] = self.weaviate.do(work)
        return texts

    @contextmanager
    def away(self) -> Iterator[None]:
        self.gated.shut()
        try:
            yield
        finally:
            self.gated.open()

    @contextmanager
    def fails(self, after: int) -> Iterator[None]:
        put = weaviate_write.put

        async def partly(collection: Any, objects: Any, *rest: Any) -> dict[uuid.UUID, str]:
            keys = list(dict.fromkeys(each.properties["sophia_key"] for each in objects))[:after]
            await put(collection, [each for each in objects if each.properties["sophia_key"] in keys], *rest)
            raise TemporaryError("the server went away")

        weaviate_write.put = partly
        try:
            yield
        finally:
            weaviate_write.put = put


@pytest.fixture
def stand(library: Library, weaviate: WeaviateStand) -> Iterator[WeaviateContractStand]:
    made = WeaviateContractStand(library, weaviate)
    yield made
    made.gated.close()


class TestWeaviate(StoreContract):
    """The contract."""
