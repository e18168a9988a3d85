"""Vector stores behind one Protocol."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from sophia.errors import ConfigurationError
from sophia.indexing.versions import IndexVersion
from sophia.settings import Settings
from sophia.stores.base import ChunkWrite, DocumentWrite, Hit, Query, Scope, Store, StoredDocument
from sophia.stores.pgvector import PgvectorStore

__all__ = [
    "IN_DATABASE",
    "ChunkWrite",
    "DocumentWrite",
    "Hit",
    "PgvectorStore",
    "Query",
    "Scope",
    "Store",
    "StoredDocument",
    "Stores",
]


class Stores:
    """The stores of a process, one of each kind, made when first asked for. Safe to use from several threads.

    Args:
        settings: where the stores outside of the database are; None if only the one inside is wanted.
        made: stores by kind that are used instead of those that the settings would make; the caller closes them.
    """

    def __init__(self, settings: Settings | None, made: Mapping[str, Store] | None = None) -> None:
        self._settings = settings
        self._made = dict(made or {})
        self._stores: dict[str, Store] = {}
        self._lock = threading.Lock()

    def of(self, version: IndexVersion) -> Store:
        """The store that a version lives in.

        Raises:
            ConfigurationError: its settings are missing; the variable is named.
        """
        with self._lock:
            if version.store in self._made:
                return self._made[version.store]
            if version.store not in self._stores:
                self._stores[version.store] = self._make(version)
            return self._stores[version.store]

    def _make(self, version: IndexVersion) -> Store:
        if version.store == "pgvector":
            return PgvectorStore()
        if self._settings is None:
            raise ConfigurationError(f"{version.label} is in store {version.store!r}, and the caller names none")
        if version.store == "weaviate":
            from sophia.stores.weaviate import WeaviateStore

            return WeaviateStore(self._settings)
        if version.store == "pinecone":
            from sophia.stores.pinecone import PineconeStore

            return PineconeStore(self._settings)
        raise ConfigurationError(
            f"{version.label}: there is no store {version.store!r}; use pgvector, weaviate or pinecone"
        )

    def close(self) -> None:
        """End the connections of the stores outside of the database. Whoever asks again gets new ones."""
        with self._lock:
            while self._stores:
                self._stores.popitem()[1].close()


# For callers that only look at what is in Sophia's own database.
IN_DATABASE = Stores(None)
