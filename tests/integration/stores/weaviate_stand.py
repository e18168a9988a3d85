"""A Weaviate class of a test's own, and documents in it: the ledger is written here as the writer would."""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import psycopg
from psycopg.rows import TupleRow
from pydantic import SecretStr

from sophia.catalog import Catalog
from sophia.catalog.models import Index, WeaviateOptions
from sophia.documents import Clock, Key, Origin, bucket_of, canonical_key
from sophia.embedding.base import Vectors
from sophia.indexing.text import content_hash
from sophia.indexing.versions import IndexVersion, ensure_version
from sophia.settings import Settings, WeaviateSettings
from sophia.stores.base import ChunkWrite, DocumentWrite, Query, Scope, StoredDocument, vector_hash
from sophia.stores.weaviate import WeaviateStore
from tests.embedders import hash_vector

URL = os.environ.get("SOPHIA_TEST_WEAVIATE_URL")
GRPC = os.environ.get("SOPHIA_TEST_WEAVIATE_GRPC")
DIMENSION = 384
METADATA = ("module", "kind")


def key(number: int) -> Key:
    return canonical_key([number])


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


class WeaviateStand:
    """One index over the collection `documents` in a class of its own, whose documents the test writes itself."""

    def __init__(self, connection: psycopg.Connection[TupleRow], catalog: Catalog, settings: Settings) -> None:
        self.connection = connection
        self.settings = settings
        self._catalog = catalog
        self._clocks = itertools.count(1)
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

    # ---- documents ---------------------------------------------------------------------------------------

    def document(
        self,
        version: IndexVersion,
        number: int,
        texts: Sequence[str] | None,
        *,
        metadata: Mapping[str, Any] | None = None,
        held: int = 0,
        kept: Sequence[int] = (),
        vectors: Mapping[int, Vectors] | None = None,
    ) -> DocumentWrite:
        """A document of these chunks; None is a delete. `kept` are chunk numbers that keep their vector."""
        clock = Clock(1, next(self._clocks), 1)
        chunks = []
        for place, text in enumerate(texts or ()):
            vector = (vectors or {}).get(place, hash_vector(text, DIMENSION))
            chunks.append(
                ChunkWrite(
                    id=version.chunk_id(key(number), place),
                    number=place,
                    start=place * 10,
                    end=place * 10 + len(text),
                    content=text,
                    content_hash=content_hash(text),
                    vector_hash=vector_hash(vector),
                    vector=None if place in kept else vector,
                )
            )
        given = {"module": "m", "kind": "k"} if metadata is None else metadata
        return DocumentWrite(
            key=key(number),
            bucket=bucket_of(key(number)),
            clock=clock,
            chunks=tuple(chunks),
            metadata={name: given.get(name) for name in version.index.metadata} if texts is not None else {},
            origin=Origin(clock.position, 7, None),
            deleted=texts is None,
            held=held,
        )

    def write(
        self,
        version: IndexVersion,
        *documents: DocumentWrite,
        store: WeaviateStore | None = None,
        replace: bool = False,
    ) -> dict[Key, str]:
        """Write documents, the ledger first."""
        for each in documents:
            self.note(version, each)
        return (store or self.store).write(self.connection, version, documents, "test", replace=replace)

    def note(self, version: IndexVersion, document: DocumentWrite) -> None:
        """What the writer says in the ledger."""
        self.connection.execute(
            "INSERT INTO sophia.ledger (version_id, key, bucket, clock, state, deleted, content_hashes, vector_hashes, "
            "run, held) VALUES (%s, %s, %s, %s::bigint[], 'applied', %s, %s, %s, 'test', %s) "
            "ON CONFLICT (version_id, key) DO UPDATE SET clock = EXCLUDED.clock, deleted = EXCLUDED.deleted, "
            "content_hashes = EXCLUDED.content_hashes, vector_hashes = EXCLUDED.vector_hashes, held = EXCLUDED.held",
            [
                version.id,
                document.key,
                document.bucket,
                document.clock.literal,
                document.deleted,
                [chunk.content_hash for chunk in document.chunks],
                [chunk.vector_hash for chunk in document.chunks],
                len(document.chunks),
            ],
        )

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

    def search(self, version: IndexVersion, text: str, **query: Any) -> list[tuple[str, float]]:
        """(content, score) of the best chunks for a text."""
        asked = Query(vector=hash_vector(text, DIMENSION), text=text, **query)
        return [(hit.content, hit.score) for hit in self.store.search(self.connection, version, asked)]


def unit(seed: int, count: int, dimension: int = DIMENSION) -> Vectors:
    """Random directions, as float32 rows of length 1."""
    rows = np.random.default_rng(seed).normal(size=(count, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
