"""An index of a test's own in Pinecone's stand-in, and documents in it: the ledger is written as the writer would."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg.rows import TupleRow
from pydantic import SecretStr

from sophia.catalog import Catalog
from sophia.catalog.models import Index
from sophia.documents import Clock, Key, Origin, bucket_of, canonical_key
from sophia.embedding.base import Vectors
from sophia.indexing.text import content_hash
from sophia.indexing.versions import IndexVersion, ensure_version
from sophia.settings import PineconeSettings, Settings
from sophia.stores.base import ChunkWrite, DocumentWrite, Query, Scope, StoredDocument, vector_hash
from sophia.stores.pinecone import PineconeStore
from sophia.stores.pinecone_records import record_id
from tests.embedders import hash_vector
from tests.pinecone_stand_in import API_KEY, StandIn

INDEX = "sophia-test"
DIMENSION = 384
METADATA = ("module", "kind")


def key(number: int) -> Key:
    return canonical_key([number])


def pinecone_settings(settings: Settings, url: str, **group: Any) -> Settings:
    """Of a stand-in; short deadlines, so that a test of them is short."""
    own = PineconeSettings(**({"write_seconds": 5.0, "read_seconds": 5.0, "fresh_seconds": 5.0} | group))
    return settings.model_copy(update={"pinecone_url": url, "pinecone_api_key": SecretStr(API_KEY), "pinecone": own})


class PineconeStand:
    """One index over the collection `documents` in the stand-in, whose documents the test writes itself."""

    def __init__(
        self, connection: psycopg.Connection[TupleRow], catalog: Catalog, settings: Settings, server: StandIn
    ) -> None:
        self.connection = connection
        # The database is not the test's own: a clone for each of many short tests would be most of their time.
        connection.execute("TRUNCATE sophia.ledger")
        self.server = server
        server.reset()
        server.create(INDEX, DIMENSION)
        self.settings = pinecone_settings(settings, self.server.url)
        self.store = PineconeStore(self.settings)
        self._catalog = catalog
        self._clocks = itertools.count(1)

    def with_settings(self, **group: Any) -> PineconeStore:
        """The store of another process, with these of Pinecone's settings."""
        return PineconeStore(pinecone_settings(self.settings, self.server.url, **group))

    def version(self, *, ensure: bool = True, **changes: Any) -> IndexVersion:
        """A version of the index with these changes of its entry."""
        entry = next(index for index in self._catalog.indexes if index.name == "documents")
        wanted: dict[str, Any] = {"store": "pinecone", "class_name": INDEX, "metadata": METADATA, "shards": 2}
        index = Index.model_validate(entry.model_dump() | wanted | changes)
        catalog = self._catalog.model_copy(update={"indexes": (index,)})
        version = ensure_version(self.connection, catalog, index, "local")
        if ensure:
            self.store.ensure(self.connection, version)
        return version

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
        store: PineconeStore | None = None,
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
                max(document.held, len(document.chunks)),
            ],
        )

    # ---- what is there -----------------------------------------------------------------------------------

    def shown(self, version: IndexVersion) -> dict[str, dict[str, Any]]:
        """The records of a version that Pinecone shows, as it holds them."""
        return self.server.shown(INDEX, version.store_name)

    def id(self, version: IndexVersion, number: int, chunk: int = 0) -> str:
        """Id of a chunk's record."""
        return record_id(bucket_of(key(number)), version.chunk_id(key(number), chunk))

    def texts(self, version: IndexVersion) -> list[str]:
        """The texts that Pinecone shows."""
        return sorted(record["metadata"]["content"] for record in self.shown(version).values())

    def stored(self, version: IndexVersion, scope: Scope = Scope()) -> dict[Key, StoredDocument]:  # noqa: B008
        """What the store says that it holds, by key; a key that comes twice is a fault."""
        documents = list(self.store.inventory(self.connection, version, scope))
        found = {each.key: each for each in documents}
        assert len(found) == len(documents)
        return found

    def search(self, version: IndexVersion, text: str, **query: Any) -> list[tuple[str, float]]:
        """(content, score) of the best chunks for a text."""
        asked = Query(vector=hash_vector(text, DIMENSION), text=text, **query)
        return [(hit.content, hit.score) for hit in self.store.search(self.connection, version, asked)]
