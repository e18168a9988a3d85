"""An index of a test's own in Pinecone's stand-in, and documents in it: the ledger is written as the writer would."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import TupleRow
from pydantic import SecretStr

from sophia.catalog import Catalog
from sophia.catalog.models import Index
from sophia.documents import Key, bucket_of
from sophia.indexing.versions import IndexVersion, ensure_version
from sophia.settings import PineconeSettings, Settings
from sophia.stores.base import Scope, StoredDocument
from sophia.stores.pinecone import PineconeStore
from sophia.stores.pinecone_records import record_id
from tests.integration.stores.documents import DIMENSION, METADATA, Documents, key
from tests.pinecone_stand_in import API_KEY, StandIn

INDEX = "sophia-test"


def pinecone_settings(settings: Settings, url: str, **group: Any) -> Settings:
    """Of a stand-in. Deadlines that only a test of them comes to, which sets shorter ones."""
    own = PineconeSettings(**({"write_seconds": 30.0, "read_seconds": 30.0, "fresh_seconds": 30.0} | group))
    return settings.model_copy(update={"pinecone_url": url, "pinecone_api_key": SecretStr(API_KEY), "pinecone": own})


class PineconeStand(Documents):
    """One index over the collection `documents` in the stand-in, whose documents the test writes itself."""

    def __init__(
        self, connection: psycopg.Connection[TupleRow], catalog: Catalog, settings: Settings, server: StandIn
    ) -> None:
        super().__init__(connection)
        # The database is not the test's own: a clone for each of many short tests would be most of their time.
        connection.execute("TRUNCATE sophia.ledger")
        self.server = server
        server.reset()
        server.create(INDEX, DIMENSION)
        self.settings = pinecone_settings(settings, self.server.url)
        self.store = PineconeStore(self.settings)
        self._catalog = catalog

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
