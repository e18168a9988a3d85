"""The contract over Pinecone's stand-in."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import MappingProxyType
from typing import Any

import pytest

from sophia.catalog.models.data import StorePerProfile
from sophia.documents import bucket_of
from sophia.embedding.base import Vectors
from sophia.indexing.text import content_hash
from sophia.indexing.versions import IndexVersion, serving_version
from sophia.stores import Stores
from sophia.stores.pinecone_records import METADATA_BYTES, columns, record_id
from tests.embedders import hash_vector
from tests.integration.library import Library, key
from tests.integration.stores.contract import Stand, StoreContract
from tests.integration.stores.documents import DIMENSION
from tests.integration.stores.pinecone_stand import INDEX, pinecone_settings
from tests.pinecone_stand_in import StandIn


class PineconeStand(Stand):
    """The sample index in the stand-in. A fault lasts longer than a write may take."""

    hybrid = False
    unacceptable = MappingProxyType({"title": "t", "body": "b", "module": "m" * METADATA_BYTES})

    def __init__(self, library: Library, server: StandIn) -> None:
        super().__init__(library)
        self.server = server
        server.reset()
        server.create(INDEX, DIMENSION)
        library.settings = pinecone_settings(library.settings, server.url)
        library.catalog = library.with_index(store=StorePerProfile(local="pinecone"), class_name=INDEX)
        library.stores = Stores(library.settings)

    def _shown(self, version: IndexVersion) -> dict[str, dict[str, Any]]:
        return self.server.shown(INDEX, version.store_name)

    def _id(self, version: IndexVersion, number: int, chunk: int) -> str:
        return record_id(bucket_of(key(number)), version.chunk_id(key(number), chunk))

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
        record = self._shown(version)[self._id(version, number, chunk)]
        if content is not None:
            record["metadata"]["content"] = content
        if vector is not None:
            record["values"] = vector
        record["metadata"] |= columns(metadata or {})

    def add(self, version: IndexVersion, number: int, chunk: int, content: str) -> None:
        shown = self._shown(version)
        metadata = next(iter(shown.values()))["metadata"] | {
            "content": content,
            "sophia_key": key(number),
            "sophia_chunk": float(chunk),
            "sophia_hash": content_hash(content).hex(),
        }
        name = record_id(bucket_of(key(number)), uuid.uuid4())
        shown[name] = {"values": hash_vector(content, version.dimension), "metadata": metadata}

    def remove(self, version: IndexVersion, number: int, chunk: int) -> None:
        del self._shown(version)[self._id(version, number, chunk)]

    def served_by_name(self, version: IndexVersion) -> set[str]:
        """Which namespace serves is said by PostgreSQL."""
        serving = serving_version(self.library.connection, version.index_name)
        return {record["metadata"]["content"] for record in self._shown(serving).values()}

    def _in_a_hurry(self) -> None:
        """From now on a fault lasts a second or two: whoever meets it waits for a deadline."""
        self.library.stores.close()
        self.library.settings = pinecone_settings(
            self.library.settings, self.server.url, write_seconds=1.0, read_seconds=2.0
        )
        self.library.stores = Stores(self.library.settings)

    def away(self) -> AbstractContextManager[None]:
        self._in_a_hurry()
        return self._stopped()

    @contextmanager
    def _stopped(self) -> Iterator[None]:
        self.server.stop()
        try:
            yield
        finally:
            self.server.start()

    def fails(self, after: int) -> AbstractContextManager[None] | None:
        """A small batch is one upsert and one deletion; either may be what fails."""
        return self._refuses(("/vectors/upsert", "/vectors/delete")[after]) if after < 2 else None

    @contextmanager
    def _refuses(self, path: str) -> Iterator[None]:
        patient = self.library.stores
        self._in_a_hurry()
        self.server.trouble(503, 1_000, path=path)
        yield
        self.server.calm()
        self.library.stores.close()
        self.library.stores = patient


@pytest.fixture(scope="module")
def stand_in() -> Iterator[StandIn]:
    server = StandIn()
    yield server
    server.stop()


@pytest.fixture
def stand(library: Library, stand_in: StandIn) -> Iterator[PineconeStand]:
    stand = PineconeStand(library, stand_in)
    yield stand
    library.stores.close()


class TestPineconeStore(StoreContract):
    """The contract."""
