"""Writing objects of one tenant (or of a class without tenants): put, delete, and what becomes of refused ones.

Invariants:

* An object is put under its id: what was there under it is replaced whole, vector and all.
* Every answer of a batch is read object by object. What the server cannot take at this moment is sent again until the
  deadline of the whole write; what it refuses for what it is, twice, is handed back with the reason.
* Deletes name ids, or keys; a delete of what is not there is no fault.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from sophia.errors import TemporaryError
from sophia.stores.weaviate_client import MissingTenantError, masked, translated

if TYPE_CHECKING:
    from weaviate.collections import CollectionAsync

T = TypeVar("T")
# Ids or keys of one delete: each is a term of a filter.
DELETE_TERMS = 1_000
KEY_TERMS = 200
# Bytes of text and vectors of one request, far below what a server takes.
REQUEST_BYTES = 8_000_000
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 2.0
# What passes by itself: overload, a cluster that elects or moves shards, a full disk that someone clears, a deadline.
_PASSING = re.compile(
    r"deadline|timed? ?out|cancel|unavailable|connection|refused|reset|broken pipe|read-only|readonly|memory|disk|"
    r"not ready|shutting down|loading|leader|consistency level|replica|broadcast|no such host|too many|rate limit|"
    r"quota|store is closed|not found in cluster|status code 5\d\d",
    re.IGNORECASE,
)
_TOO_LARGE = re.compile(r"larger than max|exceeds maximum|message too large|payload too large", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class NewObject:
    """An object to put; `size` is what it takes in a request, in bytes."""

    id: UUID
    properties: dict[str, Any]
    vector: list[float]

    @property
    def size(self) -> int:
        """An estimate that is rather too large. Metadata is there twice, as JSON and as typed properties."""
        texts = len(self.properties["content"]) + 2 * len(self.properties["sophia_metadata"])
        return 4 * len(self.vector) + 2 * texts + 1_000


async def put(
    collection: CollectionAsync[Any, Any], objects: Sequence[NewObject], batch: int, gate: asyncio.Semaphore, url: str
) -> dict[UUID, str]:
    """Put objects, `batch` a request, as many requests at a time as `gate` lets through.

    It never gives up on a server that is away: the caller has the deadline.

    Returns:
        Ids that the server refuses for what they are, with the reason.
    """
    refused: dict[UUID, str] = {}

    async def one(part: Sequence[NewObject]) -> None:
        async with gate:
            refused.update(await _put_part(collection, part, url))

    await together([one(part) for part in _parts(objects, batch)])
    return refused


async def together(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of works that go on side by side. When one fails, the others have ended before its error is raised.

    They would else go on behind the write's deadline, and write what a successor has overtaken.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def delete_ids(collection: CollectionAsync[Any, Any], ids: Sequence[UUID], url: str) -> None:
    """Delete objects by id, as far as they are there."""
    from weaviate.classes.query import Filter

    for begin in range(0, len(ids), DELETE_TERMS):
        part = [str(each) for each in ids[begin : begin + DELETE_TERMS]]
        await _delete(collection, Filter.by_id().contains_any(part), url)


async def delete_keys(collection: CollectionAsync[Any, Any], keys: Sequence[str], url: str) -> int:
    """Delete all objects of these keys, whatever their ids are. Returns how many there were."""
    from weaviate.classes.query import Filter

    deleted = 0
    for begin in range(0, len(keys), KEY_TERMS):
        part = list(keys[begin : begin + KEY_TERMS])
        while found := await _delete(collection, Filter.by_property("sophia_key").contains_any(part), url):
            # A server deletes so many at a time only, and says how many it found.
            deleted += found
    return deleted


async def _delete(collection: CollectionAsync[Any, Any], where: Any, url: str) -> int:
    async def attempt() -> int | None:
        done = await collection.data.delete_many(where=where)
        return int(done.matches) if done.failed == 0 else None

    try:
        return await _until_taken(attempt, url)
    except MissingTenantError:
        return 0


async def _put_part(collection: CollectionAsync[Any, Any], part: Sequence[NewObject], url: str) -> dict[UUID, str]:
    """Put the objects of one request, again and again those that the server could not take yet."""
    refused: dict[UUID, str] = {}
    doubted: set[UUID] = set()
    pause = FIRST_PAUSE
    left = list(part)
    while left:
        errors = await _until_taken(partial(_insert, collection, left), url)
        again = []
        for each in left:
            message = errors.get(each.id)
            if message is None:
                continue
            said = masked(message)
            if _PASSING.search(said) is None and each.id in doubted:
                refused[each.id] = said[:300]
                continue
            if _PASSING.search(said) is None:
                doubted.add(each.id)
            again.append(each)
        left = again
        if left:
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, 2 * pause)
    return refused


async def _insert(collection: CollectionAsync[Any, Any], objects: Sequence[NewObject]) -> dict[UUID, str]:
    """Messages of the objects that were not taken, by id."""
    from weaviate.classes.data import DataObject
    from weaviate.exceptions import WeaviateInsertManyAllFailedError, WeaviateInvalidInputError, WeaviateQueryError

    items = [DataObject(uuid=each.id, properties=each.properties, vector=each.vector) for each in objects]
    try:
        done = await collection.data.insert_many(items)
    except (WeaviateInsertManyAllFailedError, WeaviateInvalidInputError, ValueError, TypeError) as error:
        message = str(error) if isinstance(error, WeaviateInsertManyAllFailedError) else "it cannot be sent"
    except WeaviateQueryError as error:
        if _TOO_LARGE.search(str(error)) is None:
            raise
        message = f"with {objects[0].size} bytes it is larger than the server takes"
    else:
        return {objects[index].id: failed.message for index, failed in done.errors.items()}
    if len(objects) == 1:
        return {objects[0].id: message}
    # The client does not say which of the objects it is, or what is wrong with which.
    middle = len(objects) // 2
    return await _insert(collection, objects[:middle]) | await _insert(collection, objects[middle:])


async def _until_taken(attempt: Callable[[], Awaitable[T | None]], url: str) -> T:
    """The result of `attempt`, called again while the server is away or answers None, until the caller's deadline."""
    pause = FIRST_PAUSE
    while True:
        try:
            result = await attempt()
            if result is not None:
                return result
        except Exception as error:
            raised = translated(error, url)
            if raised is None:
                raise
            if type(raised) is not TemporaryError:
                raise raised from error
        await asyncio.sleep(pause)
        pause = min(LONGEST_PAUSE, 2 * pause)


def _parts(objects: Sequence[NewObject], batch: int) -> list[Sequence[NewObject]]:
    """Cut by number and by bytes."""
    parts: list[Sequence[NewObject]] = []
    begin = size = 0
    for place, each in enumerate(objects):
        if place > begin and (place - begin == batch or size + each.size > REQUEST_BYTES):
            parts.append(objects[begin:place])
            begin, size = place, 0
        size += each.size
    return [*parts, objects[begin:]] if objects else parts
