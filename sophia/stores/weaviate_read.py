"""Reading objects of one tenant (or of a class without tenants): by filter, by range of keys, by nearness.

A server returns a limited number of objects for a filter, and a page by offset skips an object when another one moves.
So a filter is never paged: it is cut into filters that pass little enough, each answered at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from sophia.documents import Key
from sophia.stores.base import Hit, Query
from sophia.stores.weaviate_client import MissingTenantError, translated
from sophia.stores.weaviate_objects import SLOT_BITS, Found, field_token, found_of
from sophia.stores.weaviate_schema import FLAT_CUTOFF

if TYPE_CHECKING:
    from weaviate.collections import CollectionAsync

T = TypeVar("T")
# Objects of one answer: with 1,024 dimensions and long texts some 8 MB.
PAGE = 1_000
KEYS = 100
HASHES = 200
# Chunks of a key that one answer holds for certain.
CHUNKS = 500
LAST_SLOT = (1 << SLOT_BITS) - 1
READ = (
    *("content", "sophia_key", "sophia_slot", "sophia_chunk", "sophia_hash", "sophia_fields", "sophia_metadata"),
    *("sophia_clock", "sophia_start", "sophia_end", "sophia_lsn", "sophia_txid", "sophia_committed_at", "sophia_run"),
    "sophia_indexed_at",
)
SHOWN = ("content", "sophia_key", "sophia_chunk", "sophia_metadata", "sophia_lsn", "sophia_committed_at")


async def count(collection: CollectionAsync[Any, Any], where: Any = None) -> int:
    """Objects that a filter passes; 0 in a tenant that is not there."""
    try:
        counted = await collection.aggregate.over_all(total_count=True, filters=where)
    except Exception as error:
        return _nothing(error, 0)
    return int(counted.total_count or 0)


async def first_chunks(collection: CollectionAsync[Any, Any]) -> int:
    """Objects that are chunk number 0: one a document."""
    from weaviate.classes.query import Filter

    return await count(collection, Filter.by_property("sophia_chunk").equal(0))


async def by_ids(collection: CollectionAsync[Any, Any], ids: Sequence[UUID], *, vectors: bool) -> list[Found]:
    """The objects of these ids that are there."""
    from weaviate.classes.query import Filter

    found: list[Found] = []
    for begin in range(0, len(ids), PAGE):
        part = ids[begin : begin + PAGE]
        where = Filter.by_id().contains_any([str(each) for each in part])
        found += await _fetch(collection, where, len(part), READ, vectors=vectors)
    return found


async def by_keys(
    collection: CollectionAsync[Any, Any], keys: Sequence[str], columns: Sequence[str], *, vectors: bool
) -> list[Found]:
    """All objects of these keys. `columns` are properties to be read beside Sophia's own."""
    from weaviate.classes.query import Filter

    found: list[Found] = []
    todo = [list(keys[begin : begin + KEYS]) for begin in range(0, len(keys), KEYS)]
    while todo:
        part = todo.pop()
        where = Filter.by_property("sophia_key").contains_any(part)
        answer = await _fetch(collection, where, PAGE, (*READ, *columns), vectors=vectors)
        if len(answer) < PAGE:
            found += answer
        elif len(part) > 1:
            todo += [part[: len(part) // 2], part[len(part) // 2 :]]
        else:
            found += await _chunk_by_chunk(collection, where, columns, vectors=vectors)
    return found


async def by_slots(
    collection: CollectionAsync[Any, Any], first: int, last: int, columns: Sequence[str]
) -> list[Found] | None:
    """All objects of these slots, with vectors; None if they are too many for one answer and the range can be cut."""
    where = _slots(first, last)
    found = await _fetch(collection, where, PAGE, (*READ, *columns), vectors=True)
    if len(found) < PAGE:
        return found
    return None if first < last else await _chunk_by_chunk(collection, where, columns, vectors=True)


async def by_hashes(collection: CollectionAsync[Any, Any], hashes: Sequence[bytes]) -> list[Found]:
    """Objects with texts of these hashes: of a text that is there very often perhaps not all, or none."""
    from weaviate.classes.query import Filter

    found: list[Found] = []
    for begin in range(0, len(hashes), HASHES):
        where = Filter.by_property("sophia_hash").contains_any([each.hex() for each in hashes[begin : begin + HASHES]])
        found += await _fetch(collection, where, PAGE, ("sophia_key", "sophia_chunk", "sophia_hash"), vectors=True)
    return found


async def search(collection: CollectionAsync[Any, Any], query: Query) -> list[Hit]:
    """The best `k` chunks; none in a tenant that is not there."""
    try:
        if query.hybrid:
            return await _hybrid(collection, query)
        if query.exact:
            return await _exact(collection, query)
        return await _near(collection, query, _filters(query))
    except Exception as error:
        return _nothing(error, [])


async def _near(collection: CollectionAsync[Any, Any], query: Query, where: Any) -> list[Hit]:
    from weaviate.classes.query import MetadataQuery

    answer = await collection.query.near_vector(
        near_vector=query.vector.tolist(),
        limit=query.k,
        filters=where,
        return_properties=[*SHOWN, "sophia_indexed_at"],
        return_metadata=MetadataQuery(distance=True),
    )
    hits = [found_of(item).hit(1 - (item.metadata.distance or 0.0)) for item in answer.objects]
    return [hit for hit in hits if hit.key]


async def _hybrid(collection: CollectionAsync[Any, Any], query: Query) -> list[Hit]:
    """Ranks of nearness and of BM25 over the text, equally weighted, fused as 1 / (60 + rank)."""
    from weaviate.classes.query import HybridFusion, MetadataQuery

    answer = await collection.query.hybrid(
        query=query.text,
        vector=query.vector.tolist(),
        alpha=0.5,
        fusion_type=HybridFusion.RANKED,
        query_properties=["content"],
        limit=query.k,
        filters=_filters(query),
        return_properties=[*SHOWN, "sophia_indexed_at"],
        return_metadata=MetadataQuery(score=True),
    )
    hits = [found_of(item).hit(item.metadata.score or 0.0) for item in answer.objects]
    return [hit for hit in hits if hit.key]


async def _exact(collection: CollectionAsync[Any, Any], query: Query) -> list[Hit]:
    """Behind a filter that passes few objects Weaviate compares all of them: so each range of keys by itself."""
    where = _filters(query)
    total = await count(collection, where)
    # Half as many as a range may hold, since ranges differ a little in size.
    ranges = 1 + total // (FLAT_CUTOFF // 2)
    width = (LAST_SLOT + 1) // ranges + 1
    hits: list[Hit] = []
    for number in range(ranges):
        part = _slots(number * width, min(LAST_SLOT, (number + 1) * width - 1))
        hits += await _near(collection, query, part if where is None else where & part)
    return sorted(hits, key=lambda hit: -hit.score)[: query.k]


def _filters(query: Query) -> Any:
    """The condition of a query's filters; None without any."""
    from weaviate.classes.query import Filter

    terms = [
        Filter.by_property("sophia_fields").contains_any([field_token(column, value)])
        for column, value in query.filters.items()
    ]
    return Filter.all_of(terms) if terms else None


def _slots(first: int, last: int) -> Any:
    from weaviate.classes.query import Filter

    slot = Filter.by_property("sophia_slot")
    return slot.greater_or_equal(first) & slot.less_or_equal(last)


async def _chunk_by_chunk(
    collection: CollectionAsync[Any, Any], where: Any, columns: Sequence[str], *, vectors: bool
) -> list[Found]:
    """All objects of one key with very many chunks."""
    from weaviate.classes.query import Filter

    total = await count(collection, where)
    chunk = Filter.by_property("sophia_chunk")
    found: dict[UUID, Found] = {}
    begin = 0
    while len(found) < total:
        part = where & chunk.greater_or_equal(begin) & chunk.less_than(begin + CHUNKS)
        answer = await _fetch(collection, part, PAGE, (*READ, *columns), vectors=vectors)
        if not answer:
            # Numbers that no document of ours has: what was read so far differs from the ledger in any case.
            break
        found |= {each.id: each for each in answer}
        begin += CHUNKS
    return list(found.values())


async def _fetch(
    collection: CollectionAsync[Any, Any], where: Any, limit: int, properties: Sequence[str], *, vectors: bool
) -> list[Found]:
    """At most `limit` objects; none in a tenant that is not there."""
    try:
        answer = await collection.query.fetch_objects(
            filters=where, limit=limit, return_properties=list(properties), include_vector=vectors
        )
    except Exception as error:
        return _nothing(error, [])
    return [found_of(item) for item in answer.objects]


def _nothing(error: Exception, empty: T) -> T:
    """Nothing, if the error says that there is no such tenant."""
    if isinstance(translated(error, ""), MissingTenantError):
        return empty
    raise error


def grouped(found: Sequence[Found]) -> dict[Key, list[Found]]:
    """By key; objects that are not Sophia's are left out."""
    keys: dict[Key, list[Found]] = {}
    for each in found:
        if each.key:
            keys.setdefault(each.key, []).append(each)
    return keys
