"""Vector stores behind one Protocol."""

from sophia.stores.base import ChunkWrite, DocumentWrite, Hit, Query, Scope, Store, StoredDocument
from sophia.stores.pgvector import PgvectorStore

__all__ = [
    "ChunkWrite",
    "DocumentWrite",
    "Hit",
    "PgvectorStore",
    "Query",
    "Scope",
    "Store",
    "StoredDocument",
    "store_of",
]


def store_of(kind: str) -> Store:
    """The store of that kind.

    Raises:
        LookupError: no such store is connected.
    """
    if kind != "pgvector":
        raise LookupError(f"store {kind!r} is not connected")
    return PgvectorStore()
