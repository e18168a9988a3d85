"""Search: one look-up yields the version that serves and the model that embeds the query; then one query."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from sophia.embedding import Embedder
from sophia.errors import SophiaError
from sophia.indexing.versions import IndexVersion, serving_version
from sophia.stores import Hit, Query, store_of

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
) -> list[Hit]:
    """The `k` best chunks of an index for a text, best first.

    Args:
        embedder_of: the embedder of a version's model; the caller caches it.
        filters: metadata fields and the values that they must equal.

    Raises:
        SophiaError: no such index, an unknown filter, or a filter that the index requires is not given.
    """
    filters = dict(filters or {})
    if not text.strip():
        raise SophiaError("the search text is empty")
    if not 1 <= k <= 1000:
        raise SophiaError(f"k is {k}; it must be from 1 to 1000")
    version = serving_version(connection, name)
    index = version.index
    unknown = [field for field in filters if field not in index.metadata]
    if unknown:
        raise SophiaError(
            f"index {name!r} has no metadata field {unknown[0]!r}; there are: {', '.join(index.metadata) or 'none'}"
        )
    if index.required_filter is not None and index.required_filter not in filters:
        raise SophiaError(f"index {name!r} must be searched with a filter on {index.required_filter!r}")
    vector = embedder_of(version).embed_query(text)
    # The version may have been replaced while the query was embedded; its store is still fed then, and answers.
    return store_of(version.store).search(
        connection, version, Query(vector=vector, text=text, k=k, filters=filters, hybrid=hybrid)
    )
