"""Searches of a namespace of Pinecone.

Pinecone answers with at most 10,000 records and 4 MB: few results bring their metadata along, of many the ids are asked
for and their records fetched. A filter on a list finds records that have its elements, so every record is compared
with the filters again, and more are asked for where some do not pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sophia.indexing.versions import IndexVersion
from sophia.stores.base import Query
from sophia.stores.pinecone_http import Deadline, NoNamespaceError, PineconeHttp
from sophia.stores.pinecone_read import FETCHED_IDS, PineconeReader, index_of
from sophia.stores.pinecone_records import Stored, condition, read, same

MOST_RESULTS = 10_000
# With metadata of 40 KB each these stay below 4 MB.
RESULTS_WITH_METADATA = 90
# Pinecone has no exact search. The best of so many candidates stand for one, for measuring what a search misses.
WIDE = 1_000


def matches(
    http: PineconeHttp, version: IndexVersion, query: Query, reader: PineconeReader
) -> list[tuple[Stored, float]]:
    """The best `query.k` records that pass its filters, with their cosine, best first."""
    deadline = reader.deadline()
    top = min(max(query.k, WIDE) if query.exact else query.k, MOST_RESULTS)
    while True:
        found = _ask(http, version, query, top, deadline)
        passed = (
            (record, score)
            for record, score in _resolved(version, found, deadline, reader)
            # Someone else's record is no result.
            if "key" in record.own
            and all(same(record.metadata.get(name), value) for name, value in query.filters.items())
        )
        best = list(itertools.islice(passed, query.k))
        if len(best) == query.k or len(found) < top or top == MOST_RESULTS:
            return best
        top = min(top * 4, MOST_RESULTS)


def _ask(http: PineconeHttp, version: IndexVersion, query: Query, top: int, deadline: Deadline) -> list[dict[str, Any]]:
    body: dict[str, Any] = {
        "namespace": version.store_name,
        "topK": top,
        "vector": np.ascontiguousarray(query.vector, dtype=np.float32),
        "includeMetadata": top <= RESULTS_WITH_METADATA,
    }
    conditions = [part for name, value in query.filters.items() for part in condition(name, value)]
    if conditions:
        body["filter"] = {"$and": conditions}
    try:
        return http.post(index_of(version), "/query", body, deadline).body.get("matches") or []
    except NoNamespaceError:
        return []


def _resolved(
    version: IndexVersion, found: Sequence[dict[str, Any]], deadline: Deadline, reader: PineconeReader
) -> Iterator[tuple[Stored, float]]:
    """The records of results, fetched as far as they are asked for; one that was deleted meanwhile is left out."""
    if len(found) <= RESULTS_WITH_METADATA and all("metadata" in match for match in found):
        yield from ((read(match, version.index.metadata), float(match["score"])) for match in found)
        return
    for start in range(0, len(found), FETCHED_IDS):
        part = found[start : start + FETCHED_IDS]
        there = reader.fetch(version, [match["id"] for match in part], deadline)
        yield from ((there[match["id"]], float(match["score"])) for match in part if match["id"] in there)
