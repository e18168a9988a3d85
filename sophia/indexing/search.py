"""Search: one look-up yields the version that serves and the model that embeds the query; then one query."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from sophia.embedding import Embedder
from sophia.errors import FencedError, SophiaError
from sophia.indexing.versions import IndexVersion, require_model, serving_version
from sophia.stores import IN_DATABASE, Hit, Query, Stores

Connection = psycopg.Connection[TupleRow]


def search(
    connection: Connection,
    name: str,
    text: str,
    embedder_of: Callable[[IndexVersion], Embedder],
    *,
    k: int = 10,
    filters: Mapping[str, Any] | None = None,
    hybrid: bool = False,
    stores: Stores = IN_DATABASE,
) -> list[Hit]:
    """The `k` best chunks of an index for a text, best first.

    Args:
        embedder_of: the embedder of a version's model; the caller caches it.
        filters: metadata fields and the values that they must equal.
        stores: where versions live.

    Raises:
        SophiaError: no such index, an unknown filter, or a filter that the index requires is not given.
    """
    if not text.strip():
        raise SophiaError("the search text is empty")
    if not 1 <= k <= 1000:
        raise SophiaError(f"k is {k}; it must be from 1 to 1000")
    tried: IndexVersion | None = None
    while True:
        version = serving_version(connection, name)
        try:
            return search_version(
                connection, version, text, embedder_of, k=k, filters=filters, hybrid=hybrid, stores=stores
            )
        except FencedError:
            # Replaced and retired while the query was embedded; who serves now is another, with its own model.
            if tried is not None and tried.id == version.id:
                raise
            tried = version


def search_version(
    connection: Connection,
    version: IndexVersion,
    text: str,
    embedder_of: Callable[[IndexVersion], Embedder],
    *,
    k: int = 10,
    filters: Mapping[str, Any] | None = None,
    hybrid: bool = False,
    stores: Stores = IN_DATABASE,
) -> list[Hit]:
    """`search` in one version, whether it serves or not, with the embedder of its model.

    Raises:
        SophiaError: an unknown filter, or one that the index requires is not given.
    """
    filters = dict(filters or {})
    index = version.index
    unknown = [field for field in filters if field not in index.metadata]
    if unknown:
        raise SophiaError(
            f"index {index.name!r} has no metadata field {unknown[0]!r}; "
            f"there are: {', '.join(index.metadata) or 'none'}"
        )
    if index.required_filter is not None and index.required_filter not in filters:
        raise SophiaError(f"index {index.name!r} must be searched with a filter on {index.required_filter!r}")
    require_model(version)
    # A version that was replaced meanwhile is still fed, and answers.
    query = Query(vector=embedder_of(version).embed_query(text), text=text, k=k, filters=filters, hybrid=hybrid)
    return stores.of(version).search(connection, version, query)
