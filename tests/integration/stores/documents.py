"""Documents that a test writes into a store itself: the ledger is written as the writer would."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from sophia.documents import Clock, Key, Origin, bucket_of, canonical_key
from sophia.embedding.base import Vectors
from sophia.indexing.text import content_hash
from sophia.indexing.versions import IndexVersion
from sophia.stores.base import ChunkWrite, DocumentWrite, Query, Store, vector_hash
from tests.embedders import hash_vector

DIMENSION = 384
METADATA = ("module", "kind")


def key(number: int) -> Key:
    return canonical_key([number])


class Documents:
    """Makes documents and writes them to `store`."""

    store: Store

    def __init__(self, connection: psycopg.Connection[TupleRow]) -> None:
        self.connection = connection
        self._clocks: Iterator[int] = itertools.count(1)

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
        store: Store | None = None,
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

    def search(self, version: IndexVersion, text: str, **query: Any) -> list[tuple[str, float]]:
        """(content, score) of the best chunks for a text."""
        asked = Query(vector=hash_vector(text, DIMENSION), text=text, **query)
        return [(hit.content, hit.score) for hit in self.store.search(self.connection, version, asked)]
