"""A Weaviate class of a test's own, and documents in it: the ledger is written here as the writer would."""

from __future__ import annotations

import os
import uuid
from typing import Any

import numpy as np
import psycopg
from psycopg.rows import TupleRow
from pydantic import SecretStr

from sophia.catalog import Catalog
from sophia.catalog.models import Index, WeaviateOptions
from sophia.documents import Key
from sophia.embedding.base import Vectors
from sophia.indexing.versions import IndexVersion, ensure_version
from sophia.settings import Settings, WeaviateSettings
from sophia.stores.base import Scope, StoredDocument
from sophia.stores.weaviate import WeaviateStore
from tests.integration.stores.documents import DIMENSION, METADATA, Documents

URL = os.environ.get("SOPHIA_TEST_WEAVIATE_URL")
GRPC = os.environ.get("SOPHIA_TEST_WEAVIATE_GRPC")


def weaviate_settings(settings: Settings, url: str | None = None, grpc: str | None = None, **group: Any) -> Settings:
    """Of the test server, or of what stands before it."""
    return settings.model_copy(
        update={
            "weaviate_url": url or URL,
            "weaviate_grpc_url": grpc or GRPC,
            "weaviate_api_key": SecretStr(os.environ["SOPHIA_TEST_WEAVIATE_KEY"])
            if "SOPHIA_TEST_WEAVIATE_KEY" in os.environ
            else None,
            "weaviate": WeaviateSettings(**group),
        }
    )


class WeaviateStand(Documents):
    """One index over the collection `documents` in a class of its own, whose documents the test writes itself."""

    def __init__(self, connection: psycopg.Connection[TupleRow], catalog: Catalog, settings: Settings) -> None:
        super().__init__(connection)
        self.settings = settings
        self._catalog = catalog
        self.class_name = f"T{uuid.uuid4().hex[:12]}"
        self.store = WeaviateStore(settings)
        self.versions: list[IndexVersion] = []

    def index(self, **changes: Any) -> Index:
        index = next(index for index in self._catalog.indexes if index.name == "documents")
        wanted = {"store": "weaviate", "class_name": self.class_name, "metadata": METADATA, "shards": 2} | changes
        options = wanted.pop("weaviate", {})
        fields = index.model_dump() | wanted | {"weaviate": WeaviateOptions.model_validate(options)}
        return Index.model_validate(fields)

    def version(self, **changes: Any) -> IndexVersion:
        """A version of the index with these changes of its entry, its class made."""
        index = self.index(**changes)
        catalog = self._catalog.model_copy(update={"indexes": (index,)})
        version = ensure_version(self.connection, catalog, index, "local")
        self.versions.append(version)
        self.store.ensure(self.connection, version)
        return version

    def clear(self) -> None:
        """Remove alias and classes, and end the connection."""

        async def work(client: Any) -> None:
            await client.alias.delete(alias_name=self.class_name)
            for name in await client.collections.list_all(simple=True):
                if name.startswith(self.class_name):
                    await client.collections.delete(name)

        self.do(work)
        self.store.close()

    def do(self, work: Any) -> Any:
        """What `work` does with the client behind the store's back."""
        return self.store._client.run(work, 20)

    # ---- what is there -----------------------------------------------------------------------------------

    def stored(self, version: IndexVersion, scope: Scope = Scope()) -> dict[Key, StoredDocument]:  # noqa: B008
        """What the store holds, by key; a key that comes twice is a fault."""
        documents = list(self.store.inventory(self.connection, version, scope))
        found = {each.key: each for each in documents}
        assert len(found) == len(documents)
        return found

    def contents(self, version: IndexVersion) -> dict[Key, list[str]]:
        """Texts by key, read with the client and without the store."""
        from sophia.stores.weaviate_schema import class_name

        async def work(client: Any) -> list[tuple[str, int, str]]:
            collection = client.collections.get(class_name(version))
            parts = [collection]
            if version.index.weaviate.tenancy:
                parts = [collection.with_tenant(name) for name in sorted(await collection.tenants.get())]
            return [
                (each.properties["sophia_key"], each.properties["sophia_chunk"], each.properties["content"])
                for part in parts
                for each in (await part.query.fetch_objects(limit=10_000)).objects
            ]

        found: dict[Key, list[str]] = {}
        for name, _, content in sorted(self.do(work)):
            found.setdefault(Key(name), []).append(content)
        return found


def unit(seed: int, count: int, dimension: int = DIMENSION) -> Vectors:
    """Random directions, as float32 rows of length 1."""
    rows = np.random.default_rng(seed).normal(size=(count, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
